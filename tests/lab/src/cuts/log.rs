//! The log that QEMU's `blklogwrites` keeps of a disk, in the format of Linux's dm-log-writes
//! (Documentation/admin-guide/device-mapper/log-writes.rst; struct log_write_super and log_write_entry of
//! drivers/md/dm-log-writes.c): a super block, then entries, each a head and its data, all in whole sectors.
//!
//! QEMU logs a write when the file has its data, and a flush when the file was flushed, in both cases before the
//! controller tells its driver. So the order is that of completion: what a driver saw done before it submitted a flush
//! stands before that flush, and what it submitted after it saw the flush done stands behind it. Writes that
//! were under way together with a flush may stand before it although it did not cover them: taking them for
//! covered allows for fewer states of the disk than there are, and for none that cannot be.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;
/// Bytes of the super block that mean something, and of an entry's head.
const SUPER_SIZE: usize = 28;
const HEAD_SIZE: usize = 32;

const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;

/// Something that a disk has done. Places are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// It wrote what [`Log::data`] has at `data`, past its cache if `through`.
    Write { at: Range<usize>, data: Range<usize>, through: bool },
    /// It gave blocks up, which read as zeros, or as before, until they are written.
    Discard { at: Range<usize> },
    /// It made everything before durable.
    Flush,
}

/// What a disk has done, in the order of completion.
pub(super) struct Log {
    bytes: Vec<u8>,
    pub(super) entries: Vec<Entry>,
}

impl Log {
    /// Reads a log file.
    ///
    /// # Errors
    /// It cannot be read, or is not such a log.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(bytes).with_context(|| path.display().to_string())
    }

    /// Takes a log's bytes. Entries that the super block does not count yet are left out.
    fn parse(bytes: Vec<u8>) -> Result<Self> {
        let head = bytes.get(..SUPER_SIZE).context("it is too short for a super block")?;
        ensure!(
            word(head, 0) == MAGIC && word(head, 1) == VERSION,
            "it is no log of writes, version {VERSION}"
        );
        let count = word(head, 2);
        let sector = u32::from_le_bytes([head[24], head[25], head[26], head[27]]) as usize;
        ensure!(sector.is_power_of_two() && sector >= HEAD_SIZE, "its sectors are of {sector} bytes");
        let (mut entries, mut at) = (Vec::new(), sector);
        for number in 0..count {
            at = parse_entry(&bytes, at, sector, &mut entries).with_context(|| format!("entry {number}"))?;
        }
        Ok(Self { bytes, entries })
    }

    /// The data of a write.
    pub(super) fn data(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }
}

/// Takes the entry at `at`; where the next one begins.
fn parse_entry(bytes: &[u8], at: usize, sector: usize, entries: &mut Vec<Entry>) -> Result<usize> {
    let head = bytes.get(at..).and_then(|rest| rest.get(..HEAD_SIZE)).context("it is cut off")?;
    let [first, count, flags, data_len] = [0, 1, 2, 3].map(|index| word(head, index));
    if flags & !(FLUSH | FUA | DISCARD) != 0 || data_len != 0 {
        bail!("flags {flags:#x} with {data_len} bytes are nothing that QEMU logs");
    }
    let bytes_of =
        |sectors: u64| usize::try_from(sectors).ok().and_then(|sectors| sectors.checked_mul(sector));
    let place = || Some(bytes_of(first)?..bytes_of(first.checked_add(count)?)?);
    let place = place().context("it is out of all bounds")?;
    if flags & FLUSH != 0 {
        entries.push(Entry::Flush);
    }
    let data = at + sector;
    if flags & DISCARD != 0 {
        entries.push(Entry::Discard { at: place });
        return Ok(data);
    }
    let end =
        data.checked_add(place.len()).filter(|end| *end <= bytes.len()).context("its data is cut off")?;
    if !place.is_empty() {
        entries.push(Entry::Write { at: place, data: data..end, through: flags & FUA != 0 });
    }
    Ok(end)
}

/// A little-endian word of 64 bits.
fn word(bytes: &[u8], index: usize) -> u64 {
    let bytes = bytes[index * 8..].first_chunk().copied();
    u64::from_le_bytes(bytes.unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cuts) const SECTOR: usize = 512;

    /// A log in the making.
    pub(in crate::cuts) struct Builder {
        bytes: Vec<u8>,
        count: u64,
    }

    impl Builder {
        pub(in crate::cuts) fn new() -> Self {
            Self { bytes: vec![0; SECTOR], count: 0 }
        }

        fn entry(mut self, first: u64, data: &[u8], sectors: u64, flags: u64) -> Self {
            let mut head = [0; SECTOR];
            for (index, value) in [first, sectors, flags].into_iter().enumerate() {
                head[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            self.bytes.extend(head);
            self.bytes.extend(data);
            self.count += 1;
            self
        }

        /// Sectors full of this byte each.
        pub(in crate::cuts) fn write(self, first: u64, sectors: &[u8]) -> Self {
            self.write_bytes(first, &sectors.iter().flat_map(|byte| [*byte; SECTOR]).collect::<Vec<u8>>())
        }

        /// Whole sectors.
        pub(in crate::cuts) fn write_bytes(self, first: u64, data: &[u8]) -> Self {
            self.entry(first, data, (data.len() / SECTOR) as u64, 0)
        }

        pub(in crate::cuts) fn write_through(self, first: u64, sector: u8) -> Self {
            self.entry(first, &[sector; SECTOR], 1, FUA)
        }

        pub(in crate::cuts) fn discard(self, sectors: Range<u64>) -> Self {
            self.entry(sectors.start, &[], sectors.end - sectors.start, DISCARD)
        }

        pub(in crate::cuts) fn flush(self) -> Self {
            self.entry(0, &[], 0, FLUSH)
        }

        /// What QEMU leaves in its file.
        pub(in crate::cuts) fn bytes(mut self) -> Vec<u8> {
            for (index, value) in [MAGIC, VERSION, self.count, SECTOR as u64].into_iter().enumerate() {
                self.bytes[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
            }
            self.bytes
        }

        pub(in crate::cuts) fn log(self) -> Log {
            Log::parse(self.bytes()).unwrap()
        }
    }

    #[test]
    fn entries_come_in_their_order_with_their_data() {
        let log = Builder::new().write(8, &[1, 2]).discard(16..24).flush().write_through(3, 9).log();
        let [first, discard, flush, last] = &log.entries[..] else { panic!("{:?}", log.entries) };
        let Entry::Write { at, data, through: false } = first else { panic!("{first:?}") };
        assert_eq!((at.clone(), log.data(data)), (4096..5120, &[[1; SECTOR], [2; SECTOR]].concat()[..]));
        assert_eq!((discard, flush), (&Entry::Discard { at: 8192..12288 }, &Entry::Flush));
        let Entry::Write { at, data, through: true } = last else { panic!("{last:?}") };
        assert_eq!((at.clone(), log.data(data)), (1536..2048, &[9; SECTOR][..]));
    }

    #[test]
    fn only_entries_that_the_super_block_counts_are_taken() {
        let mut bytes = Builder::new().write(0, &[1]).flush().bytes();
        bytes[16] = 1;
        assert_eq!(Log::parse(bytes).unwrap().entries.len(), 1);
    }

    #[test]
    fn a_flush_with_data_comes_before_it() {
        let log = Builder::new().entry(0, &[7; SECTOR], 1, FLUSH).log();
        assert!(matches!(log.entries[..], [Entry::Flush, Entry::Write { .. }]), "{:?}", log.entries);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let refused = |bytes: Vec<u8>| format!("{:#}", Log::parse(bytes).err().unwrap());
        assert!(refused(Vec::new()).contains("too short"));
        assert!(refused(vec![0; 4096]).contains("no log of writes"));
        let whole = Builder::new().flush().write(0, &[1]).bytes();
        assert!(refused(whole[..whole.len() - 1].to_vec()).contains("entry 1: its data is cut off"));
        assert!(refused(whole[..SECTOR + 8].to_vec()).contains("entry 0: it is cut off"));
        let mark = Builder::new().entry(0, &[], 0, 1 << 3).bytes();
        assert!(refused(mark).contains("nothing that QEMU logs"));
        let far = Builder::new().entry(u64::MAX, &[], 1, DISCARD).bytes();
        assert!(refused(far).contains("out of all bounds"));
    }
}
