//! Makes partitions of a disk's table, of which it says block by block what it wants to see; `domain`
//! brings the blocks. Whatever the disk holds, it asks for a bounded number of blocks of that disk.
//!
//! A GUID partition table counts only behind a protective boot record, as Linux has it. Of its two
//! copies the backup is used when the primary is damaged. In a boot record of the other kind, the
//! logical partitions of extended ones are followed along their chain.

#[cfg(all(test, feature = "sim"))]
mod tests;

use core::fmt;

use heapless::Vec;

use super::{DiskIndex, PartUuid, Partition, Unusable, Volume, VolumeName, Volumes};
use crate::limits;
use crate::report::Escaped;
use crate::units::{Block, PAGE_SIZE};
use crate::wire::crc32::Crc32;
use crate::wire::gpt::{self, Entry, Flaw, Header, Label};
use crate::wire::mbr::{BootRecord, Slot};
use crate::wire::xenbus;

const BOOT_RECORD: Block = Block(0);

/// The number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;

/// Blocks to be read, which fill a page at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first one.
    pub first: Block,
    /// Their length in bytes, whole blocks.
    pub bytes: u32,
}

/// The records of an extended partition.
#[derive(Clone, Copy, Debug)]
struct Chain {
    /// The master boot record.
    master: BootRecord,
    /// Its slot with the extended partition.
    slot: usize,
    /// The record to be read.
    at: Block,
    /// The number of the next logical partition.
    number: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    BootRecord,
    /// The header of a GUID partition table, in this block.
    Header(Block),
    /// The entries of that table from this one on, with the checksum of those before.
    Entries(Block, Header, u32, Crc32),
    Chain(Chain),
    Done,
}

/// The way through one disk's table.
#[derive(Debug)]
pub struct Reader {
    disk: DiskIndex,
    whole: Volume,
    state: State,
    /// Boot records that were read, so that none is read twice, and none covered by a partition.
    records: Vec<Block, { limits::BOOT_RECORDS }>,
    /// Partitions that found no room.
    left_out: u32,
}

impl Reader {
    /// Begins with a disk that was added to the volumes.
    #[must_use]
    pub const fn new(whole: Volume) -> Self {
        Self { disk: whole.disk, whole, state: State::BootRecord, records: Vec::new(), left_out: 0 }
    }

    /// What is to be read next; nothing when all is done.
    #[must_use]
    pub fn wants(&self) -> Option<Extent> {
        let block = self.whole.block_size();
        let (first, bytes) = match self.state {
            State::BootRecord => (BOOT_RECORD, block),
            State::Header(at) => (at, block),
            State::Entries(_, header, from, _) => {
                let before = header.entry_bytes * from;
                let bytes = (header.array_bytes() - before).min(PAGE_SIZE as u32);
                let first = header.entries_at.0 + u64::from(before / block);
                (Block(first), bytes.next_multiple_of(block))
            }
            State::Chain(chain) => (chain.at, block),
            State::Done => return None,
        };
        Some(Extent { first, bytes })
    }

    /// The bytes that [`Reader::wants`] asked for, or none when they cannot be read. Partitions are
    /// added to the volumes as they are found, and those of a bad table taken back.
    pub fn take(&mut self, bytes: Option<&[u8]>, volumes: &mut Volumes) {
        self.state = match self.state {
            State::BootRecord => self.take_master(bytes, volumes),
            State::Header(at) => match self.header(at, bytes) {
                Ok(header) => State::Entries(at, header, 0, Crc32::new()),
                Err(flaw) => self.give_up(at, flaw, volumes),
            },
            State::Entries(at, header, from, crc) => {
                match self.take_entries(header, from, crc, bytes, volumes) {
                    Ok(None) => State::Done,
                    Ok(Some((from, crc))) => State::Entries(at, header, from, crc),
                    Err(flaw) => self.give_up(at, flaw, volumes),
                }
            }
            State::Chain(chain) => self.take_record(chain, bytes, volumes),
            State::Done => State::Done,
        };
        if let State::Done = self.state {
            self.finish(volumes);
        }
    }

    fn take_master(&mut self, bytes: Option<&[u8]>, volumes: &mut Volumes) -> State {
        volumes.set_unread(Some(self.disk));
        let Some(bytes) = bytes else {
            log::warn!("{}: its first block cannot be read: no partitions of it are served", self.disk);
            return State::Done;
        };
        let Some(master) = BootRecord::parse(bytes).filter(BootRecord::is_table) else {
            log::info!("{}: no partition table", self.disk);
            return State::Done;
        };
        if master.is_protective() && gpt::PRIMARY < self.whole.blocks() {
            return State::Header(gpt::PRIMARY);
        }
        // There is room for the first.
        let _ = self.records.push(BOOT_RECORD);
        for (number, slot) in (1..).zip(&master.slots).filter(|(_, slot)| slot.is_partition()) {
            let uuid = PartUuid::Mbr(master.signature, number);
            self.add(number, uuid, Label::NONE, self.whole.part(slot.first, slot.blocks), volumes);
        }
        self.next_chain(master, 0, FIRST_LOGICAL)
    }

    fn header(&self, at: Block, bytes: Option<&[u8]>) -> Result<Header, Flaw> {
        Header::parse(bytes.ok_or(Flaw::Unreadable)?, at, self.whole.blocks())
    }

    /// Takes a page of entries; returns where the next one begins, or nothing when all were good.
    fn take_entries(
        &mut self,
        header: Header,
        from: u32,
        crc: Crc32,
        bytes: Option<&[u8]>,
        volumes: &mut Volumes,
    ) -> Result<Option<(u32, Crc32)>, Flaw> {
        let bytes = bytes.ok_or(Flaw::Unreadable)?;
        let length = bytes.len().min((header.array_bytes() - header.entry_bytes * from) as usize);
        let bytes = &bytes[..length];
        let mut next = from;
        for entry in bytes.chunks_exact(header.entry_bytes as usize) {
            next += 1;
            if let Some(entry) = Entry::parse(entry) {
                self.add(
                    next,
                    PartUuid::Gpt(entry.unique),
                    entry.label,
                    self.usable(&header, &entry),
                    volumes,
                );
            }
        }
        let crc = crc.with(bytes);
        if next < header.entries && next > from {
            return Ok(Some((next, crc)));
        }
        if crc.value() == header.entries_crc { Ok(None) } else { Err(Flaw::EntriesCrc) }
    }

    /// The blocks of an entry, if a partition may have them.
    fn usable(&self, header: &Header, entry: &Entry) -> Option<Volume> {
        let is_usable = header.first_usable <= entry.first && entry.last <= header.last_usable;
        let blocks = entry.last.0.checked_sub(entry.first.0)?.checked_add(1)?;
        self.whole.part(entry.first, Block(blocks)).filter(|_| is_usable)
    }

    /// What follows a copy, whose header is at `at`, that is not to be used.
    fn give_up(&mut self, at: Block, flaw: Flaw, volumes: &mut Volumes) -> State {
        volumes.remove_partitions(self.disk);
        self.left_out = 0;
        let last = Block(self.whole.blocks().0 - 1);
        if at == gpt::PRIMARY && at < last {
            log::warn!("{}: its GUID partition table is damaged: {flaw}; trying the backup", self.disk);
            return State::Header(last);
        }
        log::warn!(
            "{}: the backup of its GUID partition table is damaged: {flaw}; no partitions of it are served",
            self.disk
        );
        State::Done
    }

    /// The chain of the first extended partition from this slot on.
    fn next_chain(&mut self, master: BootRecord, from: usize, number: u32) -> State {
        for (slot, container) in master.slots.iter().enumerate().skip(from) {
            if container.is_extended() && self.may_read(container, container.first) {
                return State::Chain(Chain { master, slot, at: container.first, number });
            }
        }
        State::Done
    }

    /// Takes a record of logical partitions, as Linux does (block/partitions/msdos.c): partitions
    /// count their blocks from the record, the link to the next one from the extended partition.
    fn take_record(&mut self, chain: Chain, bytes: Option<&[u8]>, volumes: &mut Volumes) -> State {
        let Chain { master, slot, at, mut number } = chain;
        let container = master.slots[slot];
        let record = bytes.and_then(BootRecord::parse);
        if record.is_none() {
            log::warn!("{}: the boot record in block {} is damaged: the chain ends there", self.disk, at.0);
        }
        let slots = record.as_ref().map_or(&[][..], |record| &record.slots);
        for data in slots.iter().filter(|data| data.is_partition()) {
            let range = self.within(&container, Block(at.0 + data.first.0), data.blocks);
            self.add(number, PartUuid::Mbr(master.signature, number), Label::NONE, range, volumes);
            number += 1;
        }
        let link = slots.iter().find(|link| link.is_extended());
        let next = link.map(|link| Block(container.first.0 + link.first.0));
        match next.filter(|next| self.may_read(&container, *next)) {
            Some(next) => State::Chain(Chain { at: next, number, ..chain }),
            None => self.next_chain(master, slot + 1, number),
        }
    }

    /// Notes that this record is to be read, unless it cannot be.
    fn may_read(&mut self, container: &Slot, at: Block) -> bool {
        let reason = if self.within(container, at, Block(1)).is_none() {
            "is outside its extended partition"
        } else if self.records.contains(&at) {
            "was read already"
        } else if self.records.push(at).is_err() {
            "is one too many"
        } else {
            return true;
        };
        log::warn!("{}: the boot record in block {} {reason}: the chain ends there", self.disk, at.0);
        false
    }

    /// These blocks, if they are in that extended partition, and on the disk.
    fn within(&self, container: &Slot, first: Block, blocks: Block) -> Option<Volume> {
        // The numbers have 32 bits each.
        let end = container.first.0 + container.blocks.0;
        let is_inside = container.first <= first && first.0 + blocks.0 <= end;
        self.whole.part(first, blocks).filter(|_| is_inside)
    }

    fn add(
        &mut self,
        number: u32,
        uuid: PartUuid,
        label: Label,
        range: Option<Volume>,
        volumes: &mut Volumes,
    ) {
        let name = VolumeName { disk: self.disk, partition: Some(number) };
        let added = volumes.add_partition(Partition { name, uuid, label, range });
        self.left_out += u32::from(added.is_err());
    }

    /// Keeps the records to themselves, and says what was found.
    fn finish(&self, volumes: &mut Volumes) {
        for record in self.records.iter().filter_map(|at| self.whole.part(*at, Block(1))) {
            volumes.protect(&record);
        }
        volumes.set_unread(None);
        for (partition, state) in volumes.partitions(self.disk) {
            let Partition { name, uuid, label, range } = partition;
            match state.and(range.ok_or(Unusable::Outside)) {
                Ok(range) => {
                    let (blocks, mebibytes) = (range.blocks().0, range.sectors().0 >> 11);
                    log::info!("{name}: {blocks} blocks, {mebibytes} MiB, PARTUUID {uuid}{}", Shown(label));
                }
                Err(reason) => log::warn!("{name}: not served: {reason}"),
            }
        }
        if self.left_out > 0 {
            let (disk, count, most) = (self.disk, self.left_out, limits::PARTITIONS);
            log::warn!("{disk}: {count} partitions are not served: there are {most} on all disks");
        }
    }
}

/// A label as it is logged, if there is one.
struct Shown<'a>(&'a Label);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == Label::NONE {
            return Ok(());
        }
        // At most 36 characters of three bytes: a surrogate pair is two of them, and four bytes.
        let text = xenbus::cut(self.0);
        write!(f, ", PARTLABEL \"{}\"", Escaped(text.as_bytes()))
    }
}
