//! Volumes: what a `target=` can name, and where a volume's sectors lie on its disk. `domain` brings
//! disks and the blocks that [`reader`] asks for, `blkback` looks names up and translates every
//! request. The only place that turns 512-byte sectors into blocks.
//!
//! `table` holds what there is, `names` knows how it may be named, `reader` makes partitions of
//! their tables on a disk, whose formats are in `wire`.
//!
//! A table that is read is one that no guest can write: no partition covers any block of it, a table
//! within a partition is not looked at, and a whole disk is writable only if its table is never read.

mod names;
pub mod reader;
mod table;

use core::fmt;

use crate::units::{Block, Discard, SECTOR_SIZE, Sector};
use crate::wire::blkif::Reject;
use crate::wire::nvme::identify::Identity;

pub use table::{Disk, NameError, NoRoom, PartUuid, Partition, Unusable, Volumes};

/// Which disk: a controller, and one of the disks behind it. Displayed as Linux names it: `nvme0n1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskIndex {
    /// Index among the controllers of the domain.
    pub controller: usize,
    /// Index among the namespaces of the controller.
    pub namespace: usize,
}

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nvme{}n{}", self.controller, self.namespace + 1)
    }
}

/// A volume's name, displayed without `/dev/`: `nvme0n1`, `nvme0n1p2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeName {
    /// The disk it is on.
    pub disk: DiskIndex,
    /// The number of the partition; none for the whole disk.
    pub partition: Option<u32>,
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.disk.fmt(f)?;
        self.partition.map_or(Ok(()), |number| write!(f, "p{number}"))
    }
}

/// A range of a disk's blocks that is served as a disk of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Volume {
    /// The disk it lies on.
    pub disk: DiskIndex,
    /// Whether the disk keeps writes in a volatile cache, so that a flush means something.
    pub volatile_cache: bool,
    /// Bytes that the disk writes well together, and all or none of them when the power fails: a
    /// power of two, not less than a block.
    pub physical_block_size: u32,
    /// How it gives up blocks, if it does, counted from its own start.
    pub discard: Option<Discard>,
    /// Sectors of a block, as a power of two.
    sector_shift: u32,
    /// Its place on the disk, of which it has no block beyond the end.
    first: Block,
    /// Its length; in sectors it fits a `u64`.
    blocks: Block,
}

/// What tells where a volume begins from everywhere else, also when its controller comes back under another number or
/// another one takes that: the disk, and the first block on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    identity: Identity,
    nsid: u32,
    first: Block,
}

impl Volume {
    /// The whole of a disk with that many blocks of `block_size` bytes.
    ///
    /// # Errors
    /// Why such a disk cannot be served. The numbers are the disk's claims.
    pub fn whole(
        disk: DiskIndex,
        block_size: u32,
        blocks: Block,
        volatile_cache: bool,
    ) -> Result<Self, &'static str> {
        // A block larger than a page could not be written from a guest's pages in one piece.
        if ![512, 1024, 2048, 4096].contains(&block_size) {
            return Err("its block size is not served");
        }
        let sector_shift = (block_size / SECTOR_SIZE as u32).trailing_zeros();
        if blocks.0 == 0 || blocks.0 > u64::MAX >> sector_shift {
            return Err("its size makes no sense");
        }
        Ok(Self {
            disk,
            volatile_cache,
            physical_block_size: block_size,
            discard: None,
            sector_shift,
            first: Block(0),
            blocks,
        })
    }

    /// The part of it that starts at `first` and has that many blocks, if there is such a part.
    #[must_use]
    pub fn part(&self, first: Block, blocks: Block) -> Option<Self> {
        let end = first.0.checked_add(blocks.0)?;
        let is_inside = blocks.0 != 0 && end <= self.blocks.0;
        let discard = self.discard.map(|discard| self.discard_from(first, discard));
        is_inside.then(|| Self { first: Block(self.first.0 + first.0), blocks, discard, ..*self })
    }

    /// The same pieces that are given up together, counted from a block on: as Linux does it for a
    /// partition (`bdev_discard_alignment`).
    fn discard_from(&self, first: Block, discard: Discard) -> Discard {
        let granularity = u64::from(discard.granularity);
        // A power of two divides what a product loses when it wraps.
        let start = first.0.wrapping_mul(self.block_size().into());
        let alignment = u64::from(discard.alignment).wrapping_sub(start) % granularity;
        // It is less than the granularity.
        Discard { alignment: alignment as u32, ..discard }
    }

    /// Whether it has a block of the disk in common with another volume.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let end = |volume: &Self| volume.first.0 + volume.blocks.0;
        self.disk == other.disk && self.first.0 < end(other) && other.first.0 < end(self)
    }

    /// Its length in blocks.
    #[must_use]
    pub const fn blocks(&self) -> Block {
        self.blocks
    }

    /// Its length.
    #[must_use]
    pub const fn sectors(&self) -> Sector {
        Sector(self.blocks.0 << self.sector_shift)
    }

    /// The blocks that so many sectors are, if they are whole blocks of it.
    #[must_use]
    pub const fn blocks_of(&self, sectors: u64) -> Block {
        Block(sectors >> self.sector_shift)
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        (SECTOR_SIZE as u32) << self.sector_shift
    }

    /// Blocks that so many bytes fill; what is left over does not count.
    #[must_use]
    pub const fn blocks_in(&self, bytes: u32) -> Block {
        Block((bytes as u64 / SECTOR_SIZE as u64) >> self.sector_shift)
    }

    /// The block where a request of `sectors` sectors at `sector` starts on the disk; all of it lies
    /// in the volume and is whole blocks.
    ///
    /// # Errors
    /// It is not so.
    pub const fn translate(&self, sector: Sector, sectors: u64) -> Result<Block, Reject> {
        match sector.0.checked_add(sectors) {
            Some(end) if end <= self.sectors().0 => {}
            Some(_) | None => return Err(Reject::Range),
        }
        let within_block = (1 << self.sector_shift) - 1;
        if (sector.0 | sectors) & within_block != 0 {
            return Err(Reject::Alignment);
        }
        match self.first.0.checked_add(sector.0 >> self.sector_shift) {
            Some(block) => Ok(Block(block)),
            None => Err(Reject::Range),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::nvme::identify::Identity;

    pub(crate) const DISK: DiskIndex = DiskIndex { controller: 1, namespace: 2 };

    pub(crate) fn volume(block_size: u32, blocks: u64) -> Volume {
        Volume::whole(DISK, block_size, Block(blocks), true).unwrap()
    }

    /// The opaque disk `nvme0n1`, or one behind it, with that volume as its whole.
    pub(crate) fn disk(namespace: usize, whole: Volume) -> Disk {
        let index = DiskIndex { controller: 0, namespace };
        let volume = Ok(Volume { disk: index, ..whole });
        let nsid = u32::try_from(namespace).unwrap() + 1;
        Disk { index, identity: Identity::NONE, nsid, opaque: true, volume }
    }

    #[test]
    fn a_disk_that_makes_no_sense_is_no_volume() {
        for size in [0, 1, 256, 513, 768, 8192, u32::MAX] {
            assert!(Volume::whole(DISK, size, Block(8), true).is_err(), "{size}");
        }
        assert!(Volume::whole(DISK, 512, Block(0), true).is_err());
        assert!(Volume::whole(DISK, 4096, Block(1 << 61), true).is_err());
        assert_eq!(volume(512, u64::MAX).sectors(), Sector(u64::MAX));
        assert_eq!(volume(4096, u64::MAX >> 3).sectors(), Sector(u64::MAX - 7));
    }

    #[test]
    fn sectors_become_blocks_inside_the_volume_only() {
        let small = volume(512, 100);
        assert_eq!(small.translate(Sector(99), 1), Ok(Block(99)));
        assert_eq!(small.translate(Sector(0), 100), Ok(Block(0)));
        assert_eq!(small.translate(Sector(99), 2), Err(Reject::Range));
        assert_eq!(small.translate(Sector(100), 1), Err(Reject::Range));
        assert_eq!(small.translate(Sector(u64::MAX), 1), Err(Reject::Range));
        assert_eq!(small.translate(Sector(u64::MAX - 7), 88), Err(Reject::Range));
        assert_eq!(volume(512, u64::MAX).translate(Sector(u64::MAX), 1), Err(Reject::Range));
        assert_eq!(volume(512, u64::MAX).translate(Sector(0), u64::MAX), Ok(Block(0)));
        assert_eq!(small.translate(Sector(1), u64::MAX), Err(Reject::Range));
        assert_eq!(small.translate(Sector(0), u64::MAX), Err(Reject::Range));
    }

    #[test]
    fn large_blocks_are_taken_whole() {
        let large = volume(4096, 100);
        assert_eq!((large.sectors(), large.block_size()), (Sector(800), 4096));
        assert_eq!(large.translate(Sector(792), 8), Ok(Block(99)));
        assert_eq!(large.translate(Sector(792), 16), Err(Reject::Range));
        for sector in 1..8 {
            assert_eq!(large.translate(Sector(sector), 8), Err(Reject::Alignment));
            assert_eq!(large.translate(Sector(8), sector), Err(Reject::Alignment));
        }
        assert_eq!((large.blocks_in(8191), large.blocks_in(8192)), (Block(1), Block(2)));
        assert_eq!(large.blocks_of(800), large.blocks());
    }

    /// The same by plain arithmetic: every sector that is named lies on the disk, in the volume.
    fn translated(
        first: u64,
        blocks: u64,
        block_size: u32,
        sector: u64,
        sectors: u64,
    ) -> Result<Block, Reject> {
        let per_block = u128::from(block_size / 512);
        let (start, end) = (u128::from(sector), u128::from(sector) + u128::from(sectors));
        if end > u128::from(blocks) * per_block {
            Err(Reject::Range)
        } else if !start.is_multiple_of(per_block) || !end.is_multiple_of(per_block) {
            Err(Reject::Alignment)
        } else {
            Ok(Block(first + u64::try_from(start / per_block).unwrap()))
        }
    }

    #[test]
    fn every_request_to_every_small_volume_is_judged() {
        for (block_size, disk_blocks) in [512, 1024, 2048, 4096].into_iter().zip([9, 7, 5, 4]) {
            let disk = volume(block_size, disk_blocks);
            for (first, blocks) in
                (0..=disk_blocks).flat_map(|first| (0..=disk_blocks).map(move |n| (first, n)))
            {
                let part = disk.part(Block(first), Block(blocks));
                assert_eq!(part.is_some(), blocks > 0 && first + blocks <= disk_blocks);
                let Some(part) = part else { continue };
                for (sector, sectors) in (0..40).flat_map(|sector| (0..40).map(move |n| (sector, n))) {
                    let expected = translated(first, blocks, block_size, sector, sectors);
                    assert_eq!(
                        part.translate(Sector(sector), sectors),
                        expected,
                        "{sector}+{sectors} of {part:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_request_at_the_end_of_the_numbers_leaves_the_volume() {
        let last = |n: u64| (u64::MAX - n..=u64::MAX).chain(0..=n);
        for block_size in [512, 1024, 2048, 4096] {
            let most = u64::MAX / u64::from(block_size / 512);
            for (disk_blocks, first) in
                (most - 9..=most).flat_map(|n| [(n, 0), (n, 1), (n, n - 3), (n, n - 1)])
            {
                let blocks = disk_blocks - first;
                let part = volume(block_size, disk_blocks).part(Block(first), Block(blocks)).unwrap();
                let end = part.sectors().0;
                let starts = last(20).chain(end.saturating_sub(20)..=end.saturating_add(20));
                for (sector, sectors) in starts.flat_map(|sector| last(20).map(move |n| (sector, n))) {
                    let expected = translated(first, blocks, block_size, sector, sectors);
                    assert_eq!(
                        part.translate(Sector(sector), sectors),
                        expected,
                        "{sector}+{sectors} of {part:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_disk_is_moved_and_bounded() {
        let disk = volume(1024, 2058);
        let part = disk.part(Block(2048), Block(10)).unwrap();
        assert_eq!(part.translate(Sector(18), 2), Ok(Block(2057)));
        assert_eq!(part.translate(Sector(20), 2), Err(Reject::Range));
    }

    #[test]
    fn a_part_counts_what_is_given_up_together_from_its_own_start() {
        let discard = |granularity, alignment| Some(Discard { granularity, alignment });
        let disk = Volume { discard: discard(1 << 20, 0), ..volume(512, 1 << 20) };
        let of = |volume: &Volume, first| volume.part(Block(first), Block(8)).unwrap().discard;
        assert_eq!(of(&disk, 0), discard(1 << 20, 0));
        assert_eq!(of(&disk, 63), discard(1 << 20, (1 << 20) - 63 * 512));
        assert_eq!(of(&disk, 2048), discard(1 << 20, 0));
        assert_eq!(of(&disk, 2049), discard(1 << 20, (1 << 20) - 512));
        let odd = Volume { discard: discard(8 * 512, 3 * 512), ..disk };
        assert_eq!([of(&odd, 2), of(&odd, 3)], [discard(8 * 512, 512), discard(8 * 512, 0)]);
        let far = Volume { discard: discard(8 << 12, 0), ..volume(4096, u64::MAX >> 3) };
        assert_eq!(of(&far, (u64::MAX >> 3) - 9), discard(8 << 12, 2 << 12));
        assert_eq!(of(&volume(512, 100), 3), None);
    }

    #[test]
    fn a_part_has_blocks_and_all_of_them_on_the_disk() {
        let disk = volume(512, 100);
        assert_eq!(disk.part(Block(0), Block(100)), Some(disk));
        for (first, blocks) in [(0, 0), (0, 101), (100, 1), (99, 2), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(disk.part(Block(first), Block(blocks)), None, "{first}+{blocks}");
        }
    }

    #[test]
    fn volumes_overlap_by_block_on_the_same_disk_only() {
        let disk = volume(512, 100);
        let part = |first, blocks| disk.part(Block(first), Block(blocks)).unwrap();
        let middle = part(10, 10);
        for (first, blocks, expected) in
            [(0, 10, false), (0, 11, true), (10, 10, true), (12, 1, true), (19, 1, true), (20, 80, false)]
        {
            assert_eq!(part(first, blocks).overlaps(&middle), expected, "{first}+{blocks}");
            assert_eq!(middle.overlaps(&part(first, blocks)), expected, "{first}+{blocks}");
        }
        assert!(disk.overlaps(&middle) && middle.overlaps(&disk));
        let elsewhere = DiskIndex { controller: 1, namespace: 3 };
        assert!(!middle.overlaps(&Volume { disk: elsewhere, ..middle }));
    }

    #[test]
    fn any_two_parts_overlap_when_they_have_a_block_in_common() {
        let disk = volume(512, 6);
        let places = || (0..6).flat_map(|first| (1..=6 - first).map(move |blocks| (first, blocks)));
        let part = |(first, blocks)| disk.part(Block(first), Block(blocks)).unwrap();
        let has = |(first, blocks): (u64, u64), block| (first..first + blocks).contains(&block);
        for (one, other) in places().flat_map(|one| places().map(move |other| (one, other))) {
            let common = (0..6).any(|block| has(one, block) && has(other, block));
            assert_eq!(part(one).overlaps(&part(other)), common, "{one:?} {other:?}");
        }
    }
}
