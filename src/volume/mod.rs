//! Volumes: what a `target=` can name, and where a volume's sectors lie on its disk. `domain` fills
//! the table from what `drivers` found, `blkback` looks names up and translates every request. The
//! only place that turns 512-byte sectors into blocks.
//!
//! Not handled: partitions.

use core::fmt;

use heapless::{String, Vec};

use crate::limits;
use crate::units::{Block, SECTOR_SIZE, Sector};
use crate::wire::blkif::Reject;
use crate::wire::xenbus::{self, Value};

/// A volume's name without `/dev/`: `nvme0n1`.
pub type VolumeName = String<16>;

/// Which disk: a controller, and one of the disks behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskIndex {
    /// Index among the controllers of the domain.
    pub controller: usize,
    /// Index among the namespaces of the controller.
    pub namespace: usize,
}

/// A range of a disk's blocks that is served as a disk of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Volume {
    /// The disk it lies on.
    pub disk: DiskIndex,
    /// Whether the disk keeps writes in a volatile cache, so that a flush means something.
    pub volatile_cache: bool,
    /// Sectors of a block, as a power of two.
    sector_shift: u32,
    first: Block,
    /// Its length; in sectors it fits a `u64`.
    blocks: Block,
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
        Ok(Self { disk, volatile_cache, sector_shift, first: Block(0), blocks })
    }

    /// Its length.
    #[must_use]
    pub const fn sectors(&self) -> Sector {
        Sector(self.blocks.0 << self.sector_shift)
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
    pub const fn translate(&self, sector: Sector, sectors: u32) -> Result<Block, Reject> {
        let length = sectors as u64;
        match sector.0.checked_add(length) {
            Some(end) if end <= self.sectors().0 => {}
            Some(_) | None => return Err(Reject::Range),
        }
        let within_block = (1 << self.sector_shift) - 1;
        if (sector.0 | length) & within_block != 0 {
            return Err(Reject::Alignment);
        }
        match self.first.0.checked_add(sector.0 >> self.sector_shift) {
            Some(block) => Ok(Block(block)),
            None => Err(Reject::Range),
        }
    }
}

/// Why a name cannot be served, for whoever asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError<'a> {
    /// There are volumes, none of that name.
    Unknown(&'a str),
    /// There are no volumes at all, for this reason.
    Nothing(&'a str),
    /// There is such a volume, but it cannot be used, for this reason.
    Unusable(&'a str, &'a str),
}

impl fmt::Display for NameError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "no volume named \"{}\"", name.as_bytes().escape_ascii()),
            Self::Nothing(reason) => f.write_str(reason),
            Self::Unusable(name, reason) => {
                write!(f, "\"{}\" cannot be used: {reason}", name.as_bytes().escape_ascii())
            }
        }
    }
}

/// The table has no room for another volume, or for so long a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

type Entry = (VolumeName, Result<Volume, &'static str>);

/// Every volume by name.
#[derive(Debug)]
pub struct Volumes {
    entries: Vec<Entry, { limits::VOLUMES }>,
    /// Why there is nothing to serve, where that is known.
    nothing: Option<Value>,
}

impl Volumes {
    /// No volumes.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: Vec::new(), nothing: None }
    }

    /// Adds a volume under a name such as `nvme0n1`, or the reason why it cannot be used.
    ///
    /// # Errors
    /// There are [`limits::VOLUMES`] already, or the name is too long for a [`VolumeName`].
    pub fn add(
        &mut self,
        name: impl fmt::Display,
        volume: Result<Volume, &'static str>,
    ) -> Result<(), NoRoom> {
        let name = VolumeName::try_from(xenbus::cut(name).as_str()).map_err(|_| NoRoom)?;
        self.entries.push((name, volume)).map_err(|_| NoRoom)
    }

    /// Says why there is nothing to serve, for as long as that is so.
    pub fn explain_nothing(&mut self, reason: impl fmt::Display) {
        self.nothing = Some(xenbus::cut(reason));
    }

    /// The volume a `target=` names, with or without `/dev/`, and its name.
    ///
    /// # Errors
    /// Why it cannot be served.
    pub fn find<'a>(&'a self, target: &'a str) -> Result<(&'a VolumeName, Volume), NameError<'a>> {
        let name = target.strip_prefix("/dev/").unwrap_or(target);
        match self.entries.iter().find(|(known, _)| known == name) {
            Some((known, Ok(volume))) => Ok((known, *volume)),
            Some((_, Err(reason))) => Err(NameError::Unusable(target, reason)),
            None if self.entries.is_empty() => {
                Err(NameError::Nothing(self.nothing.as_deref().unwrap_or("there are no disks")))
            }
            None => Err(NameError::Unknown(target)),
        }
    }
}

impl Default for Volumes {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::format;
    use std::string::ToString;

    pub(crate) const DISK: DiskIndex = DiskIndex { controller: 1, namespace: 2 };

    pub(crate) fn volume(block_size: u32, blocks: u64) -> Volume {
        Volume::whole(DISK, block_size, Block(blocks), true).unwrap()
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
    }

    #[test]
    fn large_blocks_are_taken_whole() {
        let large = volume(4096, 100);
        assert_eq!((large.sectors(), large.block_size()), (Sector(800), 4096));
        assert_eq!(large.translate(Sector(792), 8), Ok(Block(99)));
        assert_eq!(large.translate(Sector(792), 16), Err(Reject::Range));
        for sector in 1..8 {
            assert_eq!(large.translate(Sector(sector), 8), Err(Reject::Alignment));
            assert_eq!(large.translate(Sector(8), u32::try_from(sector).unwrap()), Err(Reject::Alignment));
        }
        assert_eq!((large.blocks_in(8191), large.blocks_in(8192)), (Block(1), Block(2)));
    }

    #[test]
    fn a_volume_inside_a_disk_is_moved_and_bounded() {
        let part = Volume { first: Block(2048), ..volume(1024, 10) };
        assert_eq!(part.translate(Sector(18), 2), Ok(Block(2057)));
        assert_eq!(part.translate(Sector(20), 2), Err(Reject::Range));
    }

    #[test]
    fn names_are_found_with_or_without_dev() {
        let mut volumes = Volumes::new();
        volumes.add("nvme0n1", Ok(volume(512, 1))).unwrap();
        volumes.add(format_args!("nvme{}n{}", 0, 2), Ok(volume(512, 2))).unwrap();
        volumes.add("nvme0n3", Err("its block size is not served")).unwrap();
        for name in ["nvme0n2", "/dev/nvme0n2"] {
            let (name, volume) = volumes.find(name).unwrap();
            assert_eq!((name.as_str(), volume.sectors()), ("nvme0n2", Sector(2)));
        }
        let why = |name| volumes.find(name).unwrap_err().to_string();
        assert_eq!(why("/dev/nvme0n9"), "no volume named \"/dev/nvme0n9\"");
        assert_eq!(why("nvme0n"), "no volume named \"nvme0n\"");
        assert_eq!(why("/dev//dev/nvme0n1"), "no volume named \"/dev//dev/nvme0n1\"");
        assert_eq!(why("a\n\"\u{e9}"), "no volume named \"a\\n\\\"\\xc3\\xa9\"");
        assert_eq!(why("/dev/nvme0n3"), "\"/dev/nvme0n3\" cannot be used: its block size is not served");
    }

    #[test]
    fn an_empty_table_says_why() {
        let mut volumes = Volumes::new();
        assert_eq!(volumes.find("nvme0n1").unwrap_err().to_string(), "there are no disks");
        volumes.explain_nothing("no PCI device was given to this domain");
        let why = volumes.find("nvme0n1").unwrap_err().to_string();
        assert_eq!(why, "no PCI device was given to this domain");
        volumes.add("nvme0n1", Ok(volume(512, 1))).unwrap();
        assert_eq!(volumes.find("x").unwrap_err(), NameError::Unknown("x"));
    }

    #[test]
    fn the_table_is_bounded() {
        let mut volumes = Volumes::new();
        for n in 0..limits::VOLUMES {
            volumes.add(format!("nvme0n{n}"), Ok(volume(512, 1))).unwrap();
        }
        assert_eq!(volumes.add("nvme9n9", Ok(volume(512, 1))), Err(NoRoom));
        assert_eq!(Volumes::new().add("a-name-of-17-byte", Ok(volume(512, 1))), Err(NoRoom));
    }
}
