//! Tables as tools make them, tables that are damaged, and tables that lie.

use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use super::*;
use crate::sim::rng::Rng;
use crate::sim::tables::{self, Blocks, Gpt, Part, mbr};
use crate::volume::tests::disk;
use crate::volume::{Disk, NameError};

/// Blocks of the disks here.
const BLOCKS: u64 = 20_000;

/// A disk, and what became of its table.
struct Bench {
    block_size: u32,
    blocks: u64,
    bytes: BTreeMap<u64, Vec<u8>>,
    /// Blocks that cannot be read.
    bad: Vec<u64>,
    /// Blocks that were read.
    read: Vec<u64>,
    volumes: Volumes,
}

impl Bench {
    fn new(block_size: u32, blocks: u64, bytes: Blocks) -> Self {
        let bytes = bytes.into_iter().map(|(block, bytes)| (block.0, bytes)).collect();
        Self { block_size, blocks, bytes, bad: Vec::new(), read: Vec::new(), volumes: Volumes::new() }
    }

    fn gpt(gpt: &Gpt) -> Self {
        Self::new(u32::try_from(gpt.block_size).unwrap(), gpt.blocks, gpt.build())
    }

    /// Reads the table as `domain` does.
    fn survey(&mut self) -> &mut Self {
        let whole = crate::volume::tests::volume(self.block_size, self.blocks);
        let found = Disk { opaque: false, ..disk(0, whole) };
        let whole = found.volume.unwrap();
        self.volumes.add_disk(found);
        let mut reader = Reader::new(whole);
        while let Some(Extent { first, bytes }) = reader.wants() {
            assert!(bytes as usize <= PAGE_SIZE && bytes.is_multiple_of(self.block_size) && bytes > 0);
            let wanted = first.0..first.0 + u64::from(bytes / self.block_size);
            assert!(wanted.end <= self.blocks, "{wanted:?} is not all on the disk");
            let can_be_read = !wanted.clone().any(|block| self.bad.contains(&block));
            let blank = vec![0; self.block_size as usize];
            let block = |block| self.bytes.get(&block).unwrap_or(&blank).clone();
            let data: Vec<u8> = wanted.clone().flat_map(block).collect();
            self.read.extend(wanted);
            reader.take(can_be_read.then_some(&data), &mut self.volumes);
            let is_used = |number| self.volumes.find(&format!("nvme0n1p{number}"), false).is_ok();
            assert!(reader.wants().is_none() || !(1..10).any(is_used), "used before all was read");
            assert!(self.read.len() < 20_000, "it reads without end");
        }
        self
    }

    /// A volume's place in blocks, or why it cannot be used.
    fn find(&self, target: &str) -> Result<(u64, u64), String> {
        let found = self.volumes.find(target, true).map_err(|error| error.to_string());
        found.map(|(_, volume)| (volume.translate(crate::units::Sector(0), 0).unwrap().0, volume.blocks().0))
    }

    /// The numbers of all partitions that are served.
    fn served(&self) -> Vec<u32> {
        let partitions = self.volumes.partitions(crate::volume::DiskIndex { controller: 0, namespace: 0 });
        let served = partitions.filter(|(_, state)| state.is_ok());
        served.filter_map(|(partition, _)| partition.name.partition).collect()
    }

    /// What is served is on the disk, apart from all else that is served, and from all that was read.
    fn assert_sound(&self) {
        let partitions: Vec<_> = self.served().iter().map(|number| format!("nvme0n1p{number}")).collect();
        let mut ranges: Vec<_> = partitions.iter().map(|name| self.find(name).unwrap()).collect();
        ranges.sort_unstable();
        assert!(ranges.iter().all(|(first, blocks)| *blocks > 0 && first + blocks <= self.blocks));
        assert!(ranges.is_sorted_by(|one, other| one.0 + one.1 <= other.0), "{ranges:?}");
        for block in &self.read {
            let covers = |(first, blocks): &(u64, u64)| (*first..first + blocks).contains(block);
            assert!(!ranges.iter().any(covers), "block {block} was read and is served");
        }
    }
}

/// A block of so many bytes, with these from `at` on.
fn block(size: usize, at: usize, hex: &str) -> Vec<u8> {
    let mut block = vec![0; size];
    for (i, digits) in hex.as_bytes().chunks(2).enumerate() {
        block[at + i] = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
    }
    block
}

/// What `sgdisk` 1.0.9 makes: header, backup header, and the first and the third entry.
const SGDISK: [&str; 4] = [
    "4546492050415254000001005c000000ccf424bd000000000100000000000000ff3f00000000000022000000000000\
     00de3f00000000000011111111222233334444555555555555020000000000000080000000800000000358df5f",
    "4546492050415254000001005c000000f9e1110900000000ff3f0000000000000100000000000000220000000000000\
     0de3f00000000000011111111222233334444555555555555df3f00000000000080000000800000000358df5f",
    "af3dc60f838472478e793d69d8477de433221100554477668899aabbccddeeff0008000000000000ff0f00000000000\
     000000000000000006d00790020006400610074006100",
    "af3dc60f838472478e793d69d8477de4efbeadde00000000000000000000000300100000000\
     00000ff170000000000000000000000000000fc006e00ef002f007800",
];

/// The protective slot of the same.
const PROTECTIVE: &str = "00000000000000000200ee05040101000000ff3f0000";

fn sgdisk() -> Bench {
    let entries = |at: u64| {
        let mut block = block(512, 0, SGDISK[2]);
        block[256..].copy_from_slice(&self::block(256, 0, SGDISK[3]));
        (Block(at), block)
    };
    let mut boot = block(512, 440, PROTECTIVE);
    boot[510..].copy_from_slice(&[0x55, 0xaa]);
    let headers = [(Block(1), block(512, 0, SGDISK[0])), (Block(0x3fff), block(512, 0, SGDISK[1]))];
    let blocks = [(Block(0), boot), entries(2), entries(0x3fdf)].into_iter().chain(headers);
    Bench::new(512, 0x4000, blocks.collect())
}

#[test]
fn a_table_of_sgdisk_is_read_and_named_in_every_way() {
    let mut bench = sgdisk();
    bench.survey().assert_sound();
    assert_eq!(bench.served(), [1, 3]);
    for name in [
        "nvme0n1p1",
        "/dev/nvme0n1p1",
        "PARTUUID=00112233-4455-6677-8899-aabbccddeeff",
        "PARTUUID=00112233-4455-6677-8899-AABBCCDDEEFF",
        "/dev/disk/by-partuuid/00112233-4455-6677-8899-aabbccddeeff",
        "PARTLABEL=my data",
        "/dev/disk/by-partlabel/my\\x20data",
    ] {
        assert_eq!(bench.find(name), Ok((2048, 2048)), "{name}");
    }
    for name in ["nvme0n1p3", "disk/by-partlabel/\u{fc}n\u{ef}\\x2fx", "PARTLABEL=\u{fc}n\u{ef}/x"] {
        assert_eq!(bench.find(name), Ok((4096, 2048)), "{name}");
    }
    for name in
        ["nvme0n1p2", "nvme0n1p", "nvme0n1p01", "nvme0n1p1 ", "PARTUUID=", "PARTLABEL=", "PARTLABEL=my"]
    {
        assert_eq!(bench.find(name), Err(format!("no volume named \"{name}\"")));
    }
}

#[test]
fn the_backup_serves_when_the_primary_is_damaged() {
    type Damage = fn(&mut Bench);
    let damages: [Damage; 6] = [
        |bench| drop(bench.bytes.remove(&1)),
        |bench| bench.bytes.get_mut(&1).unwrap()[60] ^= 1,
        |bench| bench.bytes.get_mut(&2).unwrap()[0] ^= 1,
        |bench| bench.bytes.get_mut(&2).unwrap()[511] ^= 1,
        |bench| bench.bad.push(1),
        |bench| bench.bad.push(33),
    ];
    for (i, damage) in damages.iter().enumerate() {
        let mut bench = sgdisk();
        damage(&mut bench);
        bench.survey().assert_sound();
        assert_eq!((bench.served(), bench.find("nvme0n1p3")), (vec![1, 3], Ok((4096, 2048))), "damage {i}");
        assert!(bench.read.contains(&0x3fff));
        bench.bytes.get_mut(&0x3fdf).unwrap()[1] ^= 1;
        assert_eq!(bench.survey().served(), [], "both copies, damage {i}");
    }
    let mut bench = sgdisk();
    bench.survey();
    assert!(!bench.read.contains(&0x3fff), "the primary is good");
}

#[test]
fn a_table_without_a_protective_boot_record_does_not_count() {
    for boot in [vec![0; 512], mbr(512, 7, &[]), mbr(512, 7, &[(0xee, 2, 9)])] {
        let mut bench = sgdisk();
        bench.bytes.insert(0, boot);
        bench.survey().assert_sound();
        assert_eq!(bench.find("nvme0n1p3"), Err("no volume named \"nvme0n1p3\"".to_string()));
        assert!(!bench.read.contains(&1));
    }
    let mut bench = sgdisk();
    bench.bad.push(0);
    assert_eq!(bench.survey().served(), []);
}

/// What `fdisk` 2.38 makes on a disk with blocks of 4096 bytes: header and entry.
const FDISK: [&str; 2] = [
    "4546492050415254000001005c000000a51071fe000000000100000000000000ff0f0000000000000001000000000000\
     fa0f00000000000040e2b4bf24d74444957cf87ba6236a1f02000000000000008000000080000000c1e0213c",
    "af3dc60f838472478e793d69d8477de489b0329d972c431f95a686531b5611e10001000000000000ff02000000000000\
     000000000000000066006f007500720020006b00",
];

#[test]
fn blocks_of_4096_bytes_have_tables_too() {
    let mut boot = block(4096, 440, PROTECTIVE);
    boot[510..512].copy_from_slice(&[0x55, 0xaa]);
    let [header, entry] = FDISK.map(|hex| block(4096, 0, hex));
    let mut bench = Bench::new(4096, 4096, vec![(Block(0), boot), (Block(1), header), (Block(2), entry)]);
    bench.survey().assert_sound();
    assert_eq!(bench.find("PARTLABEL=four k"), Ok((256, 512)));
    assert_eq!(bench.find("PARTUUID=9d32b089-2c97-1f43-95a6-86531b5611e1"), Ok((256, 512)));
    let gpt = Gpt::new(4096, 1010, vec![Part::new(10, 5), Part::new(15, 985)]);
    let mut bench = Bench::gpt(&gpt);
    bench.bytes.remove(&1);
    bench.survey().assert_sound();
    assert_eq!(bench.find(&format!("PARTUUID={}", gpt.uuid(2))), Ok((15, 985)));
}

#[test]
fn as_many_entries_as_there_may_be_are_read_and_not_one_more() {
    for (entries, served) in [(1, 1), (3, 3), (128, 128), (1000, 511), (1024, 511), (1025, 0)] {
        let mut gpt = Gpt::equal(512, BLOCKS, 1);
        gpt.entries = entries;
        gpt.parts = (0..u64::from(entries)).map(|i| Part::new(gpt.first_usable() + i, 1)).collect();
        // An overlap beyond the room in the table is one all the same.
        gpt.parts.last_mut().unwrap().first = gpt.first_usable();
        if entries <= 512 {
            gpt.parts.last_mut().unwrap().first += u64::from(entries) - 1;
        }
        let mut bench = Bench::gpt(&gpt);
        bench.survey().assert_sound();
        assert_eq!(bench.served().len(), served, "{entries} entries");
        assert_eq!(bench.find("nvme0n1p1").is_ok(), entries <= 512, "{entries} entries");
    }
}

#[test]
fn partitions_that_overlap_are_refused_and_the_others_served() {
    let parts =
        [(100, 100), (199, 1), (200, 50), (240, 20), (259, 2), (300, 10), (5, 90), (19_950, 40), (400, 0)];
    let parts = parts.map(|(first, blocks)| Part::new(first, blocks));
    let mut bench = Bench::gpt(&Gpt::new(512, BLOCKS, parts.into()));
    bench.survey().assert_sound();
    assert_eq!(bench.served(), [6]);
    let reason = |number: u32, reason: &str| {
        let expected = format!("\"nvme0n1p{number}\" cannot be used: {reason}");
        assert_eq!(bench.find(&format!("nvme0n1p{number}")), Err(expected));
    };
    reason(1, "it overlaps nvme0n1p2");
    reason(2, "it overlaps nvme0n1p1");
    reason(3, "it overlaps nvme0n1p4");
    reason(4, "it overlaps nvme0n1p3");
    reason(5, "it overlaps nvme0n1p4");
    for outside in [7, 8, 9] {
        reason(outside, "its blocks are not within those for partitions");
    }
}

/// What `sfdisk` 2.38 makes of three logical partitions, from byte 440 of each record on.
const SFDISK: [(u64, &str); 4] = [
    (0, "01beadde00000020210083612100000800000010000000820300059612040020000000000100"),
    (8192, "00000000000000a2230083c30300000800000008000000c304000505040100100000001000000000"),
    (12288, "00000000000000e3240083050401000800000008000000252501 05c8070100280000002800000000"),
    (18432, "0000000000000046060183c80701000800000020000000000000000000000000000000000000"),
];

fn sfdisk() -> Bench {
    let blocks = SFDISK.map(|(at, hex)| {
        let mut record = block(512, 440, &hex.replace(' ', ""));
        record[510..].copy_from_slice(&[0x55, 0xaa]);
        (Block(at), record)
    });
    Bench::new(512, 131_072, blocks.into())
}

#[test]
fn a_table_of_sfdisk_with_logical_partitions_is_read() {
    let mut bench = sfdisk();
    bench.survey().assert_sound();
    assert_eq!(bench.served(), [1, 5, 6, 7]);
    assert_eq!(bench.read, [0, 8192, 12_288, 18_432]);
    for (name, place) in [
        ("nvme0n1p1", (2048, 4096)),
        ("nvme0n1p5", (10_240, 2048)),
        ("PARTUUID=deadbe01-06", (14_336, 2048)),
        ("PARTUUID=DEADBE01-07", (20_480, 8192)),
    ] {
        assert_eq!(bench.find(name), Ok(place), "{name}");
    }
    assert_eq!(bench.find("nvme0n1p2"), Err("no volume named \"nvme0n1p2\"".to_string()));
}

#[test]
fn no_partition_covers_a_boot_record() {
    let container = [(0x83, 0, 9), (0x83, 90, 20), (0x83, 149, 2), (0x0f, 100, 100)];
    let second = [(0x83, 1, 1), (0x83, 0, 1)];
    let records = [(0, &container[..]), (100, &[(0x83, 2, 5), (0x05, 50, 50)]), (150, &second)];
    let records = records.map(|(at, slots)| (Block(at), mbr(512, 1, slots)));
    let mut bench = Bench::new(512, 1000, records.into());
    bench.survey().assert_sound();
    for number in [1, 3, 7] {
        let reason = format!("\"nvme0n1p{number}\" cannot be used: it covers the partition table");
        assert_eq!(bench.find(&format!("nvme0n1p{number}")), Err(reason));
    }
    assert_eq!(bench.served(), [6], "5 overlaps another");
}

#[test]
fn a_logical_partition_ends_where_the_extended_one_does() {
    let served = |blocks| {
        let records = [(0, [(0x0f, 100, 100)]), (100, [(0x83, 2, blocks)])];
        let records = records.map(|(at, slots)| (Block(at), mbr(512, 1, &slots)));
        let mut bench = Bench::new(512, 1000, records.into());
        bench.survey().assert_sound();
        bench.served()
    };
    assert_eq!((served(98), served(99)), (vec![5], vec![]));
}

#[test]
fn a_chain_that_does_not_end_is_followed_once() {
    let outer = [(0x85, 10, 900)];
    for link in [(5, 0, 1), (5, 5, 1), (5, 899, 1), (5, 900, 1), (5, u32::MAX, u32::MAX)] {
        let records = [(0, &outer[..]), (10, &[(0x83, 1, 2), (5, 5, 3)]), (15, &[(0x83, 3, 4), link])];
        let records = records.map(|(at, slots)| (Block(at), mbr(512, 1, slots)));
        let mut bench = Bench::new(512, 1000, records.into());
        bench.survey().assert_sound();
        assert_eq!(bench.served(), [5, 6], "{link:?}");
        assert!(bench.read.len() <= 4);
    }
    // Each record leads to the next, for ever.
    let mut records = vec![(Block(0), mbr(512, 1, &outer))];
    let record = |at: u32| (Block(at.into()), mbr(512, 1, &[(0x83, 0, 0), (5, at - 9, 1)]));
    records.extend((10..900).map(record));
    let mut bench = Bench::new(512, 1000, records);
    bench.survey().assert_sound();
    assert_eq!(bench.read.len(), limits::BOOT_RECORDS);
}

#[test]
fn a_read_that_brings_no_entry_brings_the_table_to_an_end() {
    let mut bench = sgdisk();
    let mut reader = Reader::new(crate::volume::tests::volume(512, 0x4000));
    for at in [0, 1] {
        reader.take(Some(&bench.bytes[&at]), &mut bench.volumes);
    }
    assert_eq!(reader.wants(), Some(Extent { first: Block(2), bytes: 4096 }));
    reader.take(Some(&[]), &mut bench.volumes);
    assert_eq!(reader.wants(), Some(Extent { first: Block(0x3fff), bytes: 512 }), "the backup");
}

#[test]
fn a_label_is_logged_where_there_is_one() {
    let label = Label(core::array::from_fn(|i| if i == 0 { u16::from(b'a') } else { 0 }));
    assert_eq!([Label::NONE, label].map(|label| Shown(&label).to_string()), ["", ", PARTLABEL \"a\""]);
}

#[test]
fn a_boot_sector_of_a_file_system_is_no_table() {
    let mut boot = mbr(512, 1, &[(0x83, 8, 8)]);
    boot[462] = 0x6c;
    let mut bench = Bench::new(512, 1000, vec![(Block(0), boot)]);
    bench.survey();
    assert_eq!((bench.served(), bench.read.as_slice()), (vec![], &[0][..]));
}

#[test]
fn a_header_with_any_wrong_field_is_not_believed() {
    let gpt = Gpt::new(512, BLOCKS, vec![Part::new(100, 100), Part::new(200, 100)]);
    let wrong = |at: usize, bytes: usize, value: u64| {
        let mut bench = Bench::gpt(&gpt);
        // The backup is gone, and the checksum is right.
        bench.bytes.remove(&(BLOCKS - 1));
        let header = bench.bytes.get_mut(&1).unwrap();
        header[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        tables::seal(header);
        bench.survey().assert_sound();
        bench.served().len()
    };
    assert_eq!(wrong(24, 8, 1), 2, "nothing is wrong");
    let values = [0, 1, 2, 3, 33, 91, 127, 129, 1025, 1 << 31, u64::from(u32::MAX), BLOCKS, u64::MAX];
    for (at, bytes) in
        [(0, 8), (12, 4), (24, 8), (32, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4), (88, 4)]
    {
        for value in values {
            let served = wrong(at, bytes, value);
            // Some of these are right, or do no harm where they are.
            let is_harmless =
                matches!((at, value), (24, 1) | (32, 1..) | (40, 34..=129) | (48, 1025) | (72, 2));
            assert!(served == 0 || is_harmless && served <= 2, "{value:#x} at {at}: {served}");
        }
    }
    // The last block for partitions leaves room for the backup, and no more than that is needed.
    assert_eq!([BLOCKS - 34, BLOCKS - 33].map(|last| wrong(48, 8, last)), [2, 0]);
    // The other copy's place is a claim too: it may have been left behind when the disk grew.
    assert_eq!([300, 10_000 + 33, 10_000 + 32].map(|other| wrong(32, 8, other)), [0; 3]);
}

#[test]
fn any_mutation_of_a_table_is_sound_or_refused() {
    let mut outcomes = BTreeMap::new();
    for seed in 0..4000 {
        let mut rng = Rng::new(seed);
        let mut bench = [sgdisk, sfdisk][rng.index(2)]();
        let blocks: Vec<u64> = bench.bytes.keys().copied().collect();
        for _ in 0..rng.within(1..4) {
            let at = blocks[rng.index(blocks.len())];
            let bytes = bench.bytes.get_mut(&at).unwrap();
            let offset = if at == 0 || bytes[511] == 0xaa { 440 + rng.index(70) } else { rng.index(384) };
            bytes[offset] = [0, 1, 0xff, rng.bits() as u8][rng.index(4)];
            if bytes.starts_with(b"EFI PART") && rng.one_in(2) {
                tables::seal(bytes);
            }
        }
        bench.survey().assert_sound();
        *outcomes.entry(bench.served().len()).or_insert(0) += 1;
    }
    assert!((0..=4).all(|count| outcomes.get(&count).is_some_and(|seen| *seen > 5)), "{outcomes:?}");
}

#[test]
fn any_bytes_behind_good_signatures_are_sound() {
    for seed in 0..500 {
        let mut rng = Rng::new(seed);
        let mut bench = Bench::gpt(&Gpt::equal(512, BLOCKS, 4));
        for (at, bytes) in &mut bench.bytes {
            if *at == 0 {
                rng.fill(&mut bytes[446..510]);
                (0..4).for_each(|slot| bytes[446 + slot * 16] = 0);
                (0..4).for_each(|slot| bytes[450 + slot * 16] = [0x83, 5, 0xf, 0x85, 0xee][rng.index(5)]);
                (0..4).for_each(|slot| bytes[456 + slot * 16..462 + slot * 16].fill(0));
            } else {
                let keep = if bytes.starts_with(b"EFI PART") { 16 } else { 0 };
                rng.fill(&mut bytes[keep..]);
                bytes[510..].copy_from_slice(&[0x55, 0xaa]);
            }
        }
        bench.survey().assert_sound();
    }
    let all = (0..BLOCKS).map(|at| (Block(at), vec![0xff; 512])).collect();
    assert_eq!(Bench::new(512, BLOCKS, all).survey().served(), []);
}

#[test]
fn disks_too_small_for_a_table_have_none() {
    for blocks in 1..80 {
        let build = Gpt::new(512, BLOCKS, vec![Part::new(34, 1)]).build().into_iter();
        let mut bench = Bench::new(512, blocks, build.filter(|(at, _)| at.0 < blocks).collect());
        bench.survey().assert_sound();
        assert_eq!(bench.served(), [], "{blocks} blocks");
    }
}

#[test]
fn a_partition_is_not_looked_into() {
    let mut bench = sgdisk();
    // A table at the start of the first partition, for a disk of that size.
    let inner = Gpt::equal(512, 2048, 3).build().into_iter();
    bench.bytes.extend(inner.map(|(at, bytes)| (2048 + at.0, bytes)));
    bench.survey().assert_sound();
    assert_eq!(bench.served(), [1, 3]);
    let error = bench.volumes.find("nvme0n1", true).unwrap_err();
    assert!(matches!(error, NameError::Whole(_)), "{error}");
}
