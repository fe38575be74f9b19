//! Partition tables for simulated disks, as tools make them: where each block of a table goes, and
//! what it holds.

use crate::units::Block;
use crate::wire::crc32::Crc32;

/// Bytes of an entry of a GUID partition table.
const ENTRY: usize = 128;

/// Blocks by their number.
pub type Blocks = Vec<(Block, Vec<u8>)>;

/// A partition: its first block, how many it has, its label.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its first block.
    pub first: u64,
    /// How many it has.
    pub blocks: u64,
    /// PARTLABEL.
    pub label: String,
}

impl Part {
    /// A partition without a label.
    #[must_use]
    pub fn new(first: u64, blocks: u64) -> Self {
        Self { first, blocks, label: String::new() }
    }
}

/// A GUID partition table, with room for `entries` partitions, on a disk of so many blocks.
#[derive(Clone, Debug)]
pub struct Gpt {
    /// Bytes of a block of the disk.
    pub block_size: usize,
    /// Blocks of the disk.
    pub blocks: u64,
    /// Entries, used or not.
    pub entries: u32,
    /// The first entries that are used.
    pub parts: Vec<Part>,
    /// Makes the GUIDs of its partitions others than those of other disks.
    pub disk: u8,
}

impl Gpt {
    /// The usual table of 128 entries.
    #[must_use]
    pub fn new(block_size: usize, blocks: u64, parts: Vec<Part>) -> Self {
        Self { block_size, blocks, entries: 128, parts, disk: 0xd1 }
    }

    /// So many partitions of equal size.
    #[must_use]
    pub fn equal(block_size: usize, blocks: u64, count: u64) -> Self {
        let mut gpt = Self::new(block_size, blocks, Vec::new());
        let size = (gpt.last_usable() - gpt.first_usable() + 1) / count;
        let first = gpt.first_usable();
        gpt.parts = (0..count).map(|i| Part::new(first + i * size, size)).collect();
        gpt
    }

    /// PARTUUID of the partition with this number, from 1.
    #[must_use]
    pub fn uuid(&self, number: u32) -> String {
        format!("03020100-0504-0706-0809-{:02x}0b{number:08x}", self.disk)
    }

    /// The first block for partitions.
    #[must_use]
    pub fn first_usable(&self) -> u64 {
        2 + self.array_blocks()
    }

    /// The last block for partitions.
    #[must_use]
    pub fn last_usable(&self) -> u64 {
        self.blocks - 2 - self.array_blocks()
    }

    /// Every block of the table: the protective boot record, both headers, both arrays.
    #[must_use]
    pub fn build(&self) -> Blocks {
        let array = self.array();
        let crc = Crc32::new().with(&array[..self.entries as usize * ENTRY]).value();
        let last = self.blocks - 1;
        let backup = last - self.array_blocks();
        let mut blocks = vec![
            (Block(0), mbr(self.block_size, 0, &[(0xee, 1, u32::MAX)])),
            (Block(1), self.header(1, last, 2, crc)),
            (Block(last), self.header(last, 1, backup, crc)),
        ];
        for at in [2, backup] {
            blocks.extend((at..).map(Block).zip(array.chunks(self.block_size).map(<[u8]>::to_vec)));
        }
        blocks
    }

    fn array_blocks(&self) -> u64 {
        (self.entries as usize * ENTRY).div_ceil(self.block_size) as u64
    }

    fn array(&self) -> Vec<u8> {
        let mut array = vec![0; self.array_blocks() as usize * self.block_size];
        for (number, (part, entry)) in (1_u32..).zip(self.parts.iter().zip(array.chunks_mut(ENTRY))) {
            entry[..16].fill(0xaf);
            entry[16..32].copy_from_slice(&core::array::from_fn::<u8, 16, _>(|i| i as u8));
            entry[26] = self.disk;
            entry[28..32].copy_from_slice(&number.to_be_bytes());
            entry[32..40].copy_from_slice(&part.first.to_le_bytes());
            entry[40..48].copy_from_slice(&(part.first + part.blocks).wrapping_sub(1).to_le_bytes());
            for (to, unit) in entry[56..].chunks_mut(2).zip(part.label.encode_utf16()) {
                to.copy_from_slice(&unit.to_le_bytes());
            }
        }
        array
    }

    fn header(&self, at: u64, other: u64, array: u64, crc: u32) -> Vec<u8> {
        let mut block = vec![0; self.block_size];
        block[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        let longs = [at, other, self.first_usable(), self.last_usable(), 1, 2, array];
        for (to, long) in block[24..].chunks_mut(8).zip(longs) {
            to.copy_from_slice(&long.to_le_bytes());
        }
        for (to, word) in block[80..].chunks_mut(4).zip([self.entries, ENTRY as u32, crc]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        seal(&mut block);
        block
    }
}

/// Makes the checksum of a header right.
pub fn seal(header: &mut [u8]) {
    header[16..20].fill(0);
    let crc = Crc32::new().with(&header[..92]).value();
    header[16..20].copy_from_slice(&crc.to_le_bytes());
}

/// A boot record with a disk signature and slots: type, first block, blocks.
#[must_use]
pub fn mbr(block_size: usize, signature: u32, slots: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut block = vec![0; block_size];
    block[440..444].copy_from_slice(&signature.to_le_bytes());
    for (to, (kind, first, blocks)) in block[446..].chunks_mut(16).zip(slots) {
        to[4] = *kind;
        to[8..12].copy_from_slice(&first.to_le_bytes());
        to[12..16].copy_from_slice(&blocks.to_le_bytes());
    }
    block[510..512].copy_from_slice(&[0x55, 0xaa]);
    block
}
