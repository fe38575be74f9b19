//! The master boot record and the extended boot records of logical partitions: four slots each
//! (UEFI 2.10, 5.2; there is no other standard, so what Linux makes of them counts). Every field is
//! a disk's claim. Neighbours: `gpt`, behind a protective one, and `volume`, which reads both.

use crate::units::Block;

/// Bytes that are looked at, of whatever a block has.
const BYTES: usize = 512;

/// Where the slots start, and the bytes of each.
const SLOTS: usize = 446;
const SLOT_BYTES: usize = 16;

/// The type of the slot that keeps a GPT disk from others (5.2.3).
const PROTECTIVE: u8 = 0xee;

/// A slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Marked for booting, or not, or no slot at all.
    flag: u8,
    kind: u8,
    /// The first block: of the disk, or counted from the record or the container it is in.
    pub first: Block,
    /// How many blocks.
    pub blocks: Block,
}

impl Slot {
    fn parse(bytes: &[u8; SLOT_BYTES]) -> Self {
        let [flag, _, _, _, kind, _, _, _, f0, f1, f2, f3, n0, n1, n2, n3] = *bytes;
        Self {
            flag,
            kind,
            first: Block(u32::from_le_bytes([f0, f1, f2, f3]).into()),
            blocks: Block(u32::from_le_bytes([n0, n1, n2, n3]).into()),
        }
    }

    /// Whether it holds a partition.
    #[must_use]
    pub const fn is_partition(&self) -> bool {
        self.blocks.0 != 0 && !matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// Whether it is a container of logical partitions (DOS, LBA and Linux extended).
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.blocks.0 != 0 && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// A boot record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootRecord {
    /// What tells the disk from others.
    pub signature: u32,
    /// Its partitions, or the next record of a chain.
    pub slots: [Slot; 4],
}

impl BootRecord {
    /// The boot record in this block, if there is one.
    #[must_use]
    pub fn parse(block: &[u8]) -> Option<Self> {
        let block: &[u8; BYTES] = block.first_chunk()?;
        let [a, b, c, d] = *block[440..].first_chunk()?;
        let slots = block[SLOTS..].first_chunk::<{ 4 * SLOT_BYTES }>()?.as_chunks().0;
        let slots = [slots[0], slots[1], slots[2], slots[3]].map(|bytes| Slot::parse(&bytes));
        let signature = u32::from_le_bytes([a, b, c, d]);
        block.ends_with(&[0x55, 0xaa]).then_some(Self { signature, slots })
    }

    /// Whether it is a partition table, and not the boot code of a file system that has the disk to
    /// itself.
    #[must_use]
    pub fn is_table(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot.flag, 0 | 0x80))
    }

    /// Whether it stands before a GUID partition table.
    #[must_use]
    pub fn is_protective(&self) -> bool {
        self.slots.iter().any(|slot| slot.kind == PROTECTIVE && slot.first == Block(1))
    }
}
