//! The GUID partition table (UEFI 2.10, 5.3): its header and its entries. Every field is a disk's
//! claim until a parse here has bounded it. Neighbours: `mbr`, the table before it on the disk, and
//! `volume`, which reads both.

use core::fmt::{self, Write};

use super::crc32::Crc32;
use crate::limits;
use crate::units::{Block, PAGE_SIZE};

/// Where the primary header is; the backup is in the last block (5.3.1).
pub const PRIMARY: Block = Block(1);

/// Bytes of the smallest header, and of the smallest entry (5.3.2, 5.3.3).
const HEADER_BYTES: usize = 92;
const ENTRY_BYTES: u32 = 128;

const SIGNATURE: &[u8] = b"EFI PART";

/// Where the header's own checksum is.
const HEADER_CRC: core::ops::Range<usize> = 16..20;

/// A GUID, in the mixed byte order of UEFI (appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = u32::from_le_bytes(array(&self.0, 0));
        let (second, third) = (u16::from_le_bytes(array(&self.0, 4)), u16::from_le_bytes(array(&self.0, 6)));
        write!(f, "{first:08x}-{second:04x}-{third:04x}-{:02x}{:02x}-", self.0[8], self.0[9])?;
        self.0[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A partition's name: UTF-16, up to the first zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(pub [u16; 36]);

impl Label {
    /// No name.
    pub const NONE: Self = Self([0; 36]);

    /// Its characters. A surrogate without its other half is U+FFFD.
    pub fn chars(&self) -> impl Iterator<Item = char> {
        let units = self.0.iter().copied().take_while(|unit| *unit != 0);
        char::decode_utf16(units).map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chars().try_for_each(|char| f.write_char(char))
    }
}

/// Why a copy of the table is not to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// There is no header.
    Signature,
    /// The header's size is less than it has fields, or more than a block.
    HeaderSize,
    /// The header's checksum is wrong.
    HeaderCrc,
    /// The header says that it is elsewhere.
    Place,
    /// An entry's size is not 128 bytes times a power of two, or more than a page.
    EntrySize,
    /// No entries, or more than [`limits::GPT_ENTRIES`].
    EntryCount,
    /// The usable blocks, the entries and the headers are not in order.
    Bounds,
    /// The entries' checksum is wrong.
    EntriesCrc,
    /// It cannot be read.
    Unreadable,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature => f.write_str("it has no header"),
            Self::HeaderSize => f.write_str("its header has an impossible size"),
            Self::HeaderCrc => f.write_str("the checksum of its header is wrong"),
            Self::Place => f.write_str("its header was made for another block"),
            Self::EntrySize => f.write_str("the size of its entries is not served"),
            Self::EntryCount => {
                write!(f, "the number of its entries is not 1 to {}", limits::GPT_ENTRIES)
            }
            Self::Bounds => f.write_str("its bounds contradict each other or the disk"),
            Self::EntriesCrc => f.write_str("the checksum of its entries is wrong"),
            Self::Unreadable => f.write_str("it cannot be read"),
        }
    }
}

/// What is kept of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Where the entries start.
    pub entries_at: Block,
    /// Bytes of an entry: 128 times a power of two, up to a page.
    pub entry_bytes: u32,
    /// How many entries there are, up to [`limits::GPT_ENTRIES`].
    pub entries: u32,
    /// The checksum of all entries.
    pub entries_crc: u32,
    /// The first block that a partition may have.
    pub first_usable: Block,
    /// The last one.
    pub last_usable: Block,
}

impl Header {
    /// The header in this block, which was read from `at` on a disk of `blocks` blocks.
    ///
    /// # Errors
    /// The first flaw that is found.
    pub fn parse(block: &[u8], at: Block, blocks: Block) -> Result<Self, Flaw> {
        if block.len() < HEADER_BYTES || !block.starts_with(SIGNATURE) {
            return Err(Flaw::Signature);
        }
        let word = |offset| u32::from_le_bytes(array(block, offset));
        let long = |offset| u64::from_le_bytes(array(block, offset));
        let bytes = word(12) as usize;
        if !(HEADER_BYTES..=block.len()).contains(&bytes) {
            return Err(Flaw::HeaderSize);
        }
        let blank = Crc32::new().with(&block[..HEADER_CRC.start]).with(&[0; 4]);
        if blank.with(&block[HEADER_CRC.end..bytes]).value() != word(HEADER_CRC.start) {
            return Err(Flaw::HeaderCrc);
        }
        if long(24) != at.0 {
            return Err(Flaw::Place);
        }
        let header = Self {
            entries_at: Block(long(72)),
            entry_bytes: word(84),
            entries: word(80),
            entries_crc: word(88),
            first_usable: Block(long(40)),
            last_usable: Block(long(48)),
        };
        let is_served =
            |bytes: u32| bytes.is_power_of_two() && bytes >= ENTRY_BYTES && bytes as usize <= PAGE_SIZE;
        if !is_served(header.entry_bytes) {
            return Err(Flaw::EntrySize);
        }
        if !(1..=limits::GPT_ENTRIES).contains(&header.entries) {
            return Err(Flaw::EntryCount);
        }
        let in_order = header.is_in_order(at, Block(long(32)), blocks, block.len());
        if in_order { Ok(header) } else { Err(Flaw::Bounds) }
    }

    /// Bytes of all entries.
    #[must_use]
    pub const fn array_bytes(&self) -> u32 {
        self.entry_bytes * self.entries
    }

    /// Whether nothing overlaps: boot record, primary header and entries, usable blocks, backup
    /// entries and header, the last block. Of the copy that this is not, only the header's place is
    /// known; room for its entries must be there all the same.
    fn is_in_order(&self, at: Block, other: Block, blocks: Block, block_bytes: usize) -> bool {
        let array = u64::from(self.array_bytes()).div_ceil(block_bytes as u64);
        let (first, last) = (self.first_usable.0, self.last_usable.0);
        let end = self.entries_at.0.checked_add(array);
        let after = last.checked_add(array);
        let (Some(end), Some(after)) = (end, after) else { return false };
        let fits = first <= last && after < blocks.0 - 1;
        fits && if at == PRIMARY {
            self.entries_at > PRIMARY && end <= first && after < other.0
        } else {
            self.entries_at.0 > last && end <= at.0 && first > PRIMARY.0 + array
        }
    }
}

/// A partition as its entry describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Names it, on whatever disk.
    pub unique: Guid,
    /// Its first block.
    pub first: Block,
    /// Its last block.
    pub last: Block,
    /// Its name.
    pub label: Label,
}

impl Entry {
    /// The partition of an entry of at least 128 bytes, unless the entry is unused.
    #[must_use]
    pub fn parse(entry: &[u8]) -> Option<Self> {
        let entry: &[u8; ENTRY_BYTES as usize] = entry.first_chunk()?;
        let kind: [u8; 16] = array(entry, 0);
        let mut label = Label::NONE;
        for (unit, bytes) in label.0.iter_mut().zip(entry[56..].as_chunks().0) {
            *unit = u16::from_le_bytes(*bytes);
        }
        (kind != [0; 16]).then(|| Self {
            unique: Guid(array(entry, 16)),
            first: Block(u64::from_le_bytes(array(entry, 32))),
            last: Block(u64::from_le_bytes(array(entry, 40))),
            label,
        })
    }
}

/// The `N` bytes from `offset` on; the caller has checked that there are as many.
fn array<const N: usize>(data: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&data[offset..offset + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of a disk with 1000 blocks of 512 bytes, and eight entries, which take two blocks.
    #[derive(Clone, Copy)]
    struct Claim {
        at: u64,
        other: u64,
        first: u64,
        last: u64,
        entries_at: u64,
        entry_bytes: u32,
    }

    /// Both copies where nothing is to spare.
    const PRIMARY: Claim = Claim { at: 1, other: 999, first: 4, last: 996, entries_at: 2, entry_bytes: 128 };
    const BACKUP: Claim = Claim { at: 999, other: 1, entries_at: 997, ..PRIMARY };

    impl Claim {
        fn block(self) -> [u8; 512] {
            let mut block = [0; 512];
            block[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
            let longs = [self.at, self.other, self.first, self.last, 0, 0, self.entries_at];
            for (to, long) in block[24..].chunks_mut(8).zip(longs) {
                to.copy_from_slice(&long.to_le_bytes());
            }
            block[80..84].copy_from_slice(&8_u32.to_le_bytes());
            block[84..88].copy_from_slice(&self.entry_bytes.to_le_bytes());
            let crc = Crc32::new().with(&block[..HEADER_BYTES]).value();
            block[HEADER_CRC].copy_from_slice(&crc.to_le_bytes());
            block
        }

        fn flaw(self) -> Option<Flaw> {
            Header::parse(&self.block(), Block(self.at), Block(1000)).err()
        }
    }

    #[test]
    fn what_a_table_consists_of_may_meet_and_not_overlap() {
        assert_eq!([PRIMARY, BACKUP].map(Claim::flaw), [None; 2]);
        for (i, claim) in [
            Claim { entries_at: 1, ..PRIMARY },
            Claim { entries_at: 3, ..PRIMARY },
            Claim { other: 998, ..PRIMARY },
            Claim { other: 1000, last: 997, ..PRIMARY },
            Claim { first: 997, ..PRIMARY },
            Claim { first: 3, ..BACKUP },
            Claim { entries_at: 996, ..BACKUP },
            Claim { entries_at: 998, ..BACKUP },
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(claim.flaw(), Some(Flaw::Bounds), "claim {i}");
        }
    }

    #[test]
    fn entries_are_128_bytes_times_a_power_of_two_up_to_a_page() {
        let flaw = |entry_bytes| Claim { entry_bytes, first: 100, last: 900, ..PRIMARY }.flaw();
        assert_eq!([128, 256, 4096].map(flaw), [None; 3]);
        assert_eq!([0, 64, 192, 8192].map(flaw), [Some(Flaw::EntrySize); 4]);
    }

    #[test]
    fn a_header_has_92_bytes() {
        let block = Claim { first: 100, last: 900, ..PRIMARY }.block();
        let parse = |bytes| Header::parse(&block[..bytes], Block(1), Block(1000));
        assert!(parse(HEADER_BYTES).is_ok());
        assert_eq!(parse(HEADER_BYTES - 1), Err(Flaw::Signature));
        assert_eq!(std::format!("{}", Flaw::Signature), "it has no header");
    }
}
