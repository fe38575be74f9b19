//! A disk's partition table, block by block as it is asked for, with checksums that are right where
//! the input wants them so: only blocks of the disk are read, and not without end; what is served is on
//! the disk, apart from all else that is served and from all that was read; names find what they name.

use std::cell::RefCell;
use std::ops::Range;

use platter::sim::tables::seal;
use platter::units::{Block, PAGE_SIZE, Sector};
use platter::volume::reader::{Extent, Reader};
use platter::volume::{Disk, DiskIndex, NameError, Volume, Volumes};
use platter::wire::crc32::Crc32;
use platter::wire::nvme::identify::{Identity, Text};

use crate::input::Input;
use crate::output;

const INDEX: DiskIndex = DiskIndex { controller: 0, namespace: 0 };

/// Extents after which nothing can be read, so that a long table does not take long here.
const READS: usize = 12;

/// Extents that a table may want at most: both copies of a GUID partition table with as many entries
/// as are served, each a page, and their headers, or the records of a chain.
const WANTED: usize = 2 * 1025 + 128;

/// The length that says a block cannot be read.
const UNREADABLE: u16 = u16::MAX;

thread_local! {
    /// Large, and therefore used again: adding the disk anew forgets the one before.
    static VOLUMES: RefCell<Box<Volumes>> = RefCell::new(Box::new(Volumes::new()));
}

/// A disk, a name to look for, then what each read brings.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.byte();
    output::log(flags & 0x10 != 0);
    let (block_size, blocks) = (512 << (flags & 3), Block(input.long()));
    let identity = match flags & 0x20 {
        0 => Identity::NONE,
        _ => Identity { model: Text(input.array()), serial: Text(input.array()) },
    };
    let Ok(whole) = Volume::whole(INDEX, block_size, blocks, true) else { return };
    let name = input.text();
    VOLUMES.with_borrow_mut(|volumes| {
        let disk = Disk { index: INDEX, identity, nsid: 1, opaque: false, volume: Ok(whole) };
        volumes.add_disk(disk);
        let mut survey = Survey { input, volumes, whole, is_sealed: flags & 4 != 0, read: Vec::new() };
        survey.run();
        survey.check();
        survey.look_for(name);
    });
    output::take_log();
}

/// A disk whose table is read.
struct Survey<'a> {
    input: Input<'a>,
    volumes: &'a mut Volumes,
    whole: Volume,
    /// Signatures and checksums are made right.
    is_sealed: bool,
    /// What was read, in blocks.
    read: Vec<Range<u64>>,
}

impl Survey<'_> {
    fn run(&mut self) {
        let mut reader = Reader::new(self.whole);
        let block_size = self.whole.block_size();
        while let Some(Extent { first, bytes }) = reader.wants() {
            assert!(bytes > 0 && bytes as usize <= PAGE_SIZE && bytes.is_multiple_of(block_size));
            let end = first.0.checked_add(u64::from(bytes / block_size));
            assert!(end.is_some_and(|end| end <= self.whole.blocks().0), "{first:?} is not on the disk");
            self.read.push(first.0..end.unwrap_or_default());
            assert!(self.read.len() <= WANTED, "it reads without end");
            let mut page = [0; PAGE_SIZE];
            let data = &mut page[..bytes as usize];
            let is_read = self.read.len() <= READS && take(&mut self.input, data);
            if is_read && self.is_sealed {
                self.seal(first, data);
            }
            reader.take(is_read.then_some(data), self.volumes);
            let is_used = || self.volumes.find("nvme0n1p1", false).is_ok();
            assert!(reader.wants().is_none() || !is_used(), "used before all was read");
        }
    }

    /// Makes right what is at fixed places, and the checksums. Those of the entries are of bytes that
    /// are still to be read.
    fn seal(&self, at: Block, data: &mut [u8]) {
        if at == Block(0) {
            data[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        if !data.starts_with(b"EFI PART") {
            return;
        }
        let word = |offset: usize| data[offset..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
        let array = word(80).checked_mul(word(84)).map_or(usize::MAX, |bytes| bytes as usize);
        if array <= READS * PAGE_SIZE {
            let crc = self.crc_ahead(array);
            data[88..92].copy_from_slice(&crc.to_le_bytes());
        }
        data[24..32].copy_from_slice(&at.0.to_le_bytes());
        seal(data);
    }

    /// The checksum of the next so many bytes, as they will be read.
    fn crc_ahead(&self, bytes: usize) -> u32 {
        let (mut ahead, mut left, mut crc) = (self.input.clone(), bytes, Crc32::new());
        while left > 0 {
            let mut page = [0; PAGE_SIZE];
            let now = left.min(PAGE_SIZE);
            take(&mut ahead, &mut page[..now.next_multiple_of(self.whole.block_size() as usize)]);
            crc = crc.with(&page[..now]);
            left -= now;
        }
        crc.value()
    }

    /// The blocks of each partition that is served.
    fn served(&self) -> Vec<Range<u64>> {
        let mut served = Vec::new();
        for (partition, state) in self.volumes.partitions(INDEX).filter(|(_, state)| state.is_ok()) {
            let name = partition.name.to_string();
            let Ok((found, volume)) = self.volumes.find(&name, true) else { continue };
            assert_eq!((found, Some(volume), state), (partition.name, partition.range, Ok(())));
            let first = volume.translate(Sector(0), 0).expect("where it starts").0;
            let end = first.checked_add(volume.blocks().0).expect("where it ends");
            assert!(first < end && end <= self.whole.blocks().0, "{name} is not on the disk");
            served.push(first..end);
        }
        served
    }

    /// What is served is apart from all else that is served, and from what was read.
    fn check(&self) {
        let mut served = self.served();
        served.sort_unstable_by_key(|range| range.start);
        assert!(served.is_sorted_by(|one, other| one.end <= other.start), "served twice: {served:?}");
        for one in &served {
            let overlaps = |other: &Range<u64>| one.start < other.end && other.start < one.end;
            assert!(!self.read.iter().any(overlaps), "{one:?} was read, and is served");
        }
    }

    /// Any name finds something sound, or a reason that can be shown.
    fn look_for(&self, name: &str) {
        for writable in [true, false] {
            match self.volumes.find(name, writable) {
                Ok((found, volume)) => {
                    assert!(found.disk == INDEX && volume.blocks() <= self.whole.blocks());
                    assert!(!writable || found.partition.is_some(), "a disk whose table is read");
                }
                Err(error) => {
                    assert!(!matches!(error, NameError::Nothing(_)));
                    output::assert_plain(error);
                }
            }
        }
    }
}

/// Fills a block or more with what the input has for it, and zeroes; false when it cannot be read.
fn take(input: &mut Input<'_>, data: &mut [u8]) -> bool {
    let length = input.half();
    if length == UNREADABLE {
        return false;
    }
    let bytes = input.bytes(data.len().min(length.into()));
    data[..bytes.len()].copy_from_slice(bytes);
    true
}
