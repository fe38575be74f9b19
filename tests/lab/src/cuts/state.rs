//! What a disk may hold after its power was cut: everything up to the last flush, and of what came after that whatever
//! had left its cache. Rebuilt from the [`super::log`], one cut after the other.

use std::ops::Range;

use anyhow::{Context, Result};
use fastrand::Rng;

use super::log::{Entry, Log};

/// What the disk writes at once or not at all: one logical block, as QEMU's controller says that it
/// writes no more (Identify Controller, AWUPF is 0).
const BLOCK: usize = crate::machine::BLOCK_SIZE as usize;

/// A power cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    /// Which one it is, to name it by.
    pub(super) number: u32,
    /// How many entries of the log were done by then.
    pub(super) after: usize,
    /// Whether writes that no flush has covered may be there in part.
    pub(super) torn: bool,
    /// How likely such a write, or a block of a torn one, is to be there: never at 0, always at [`Cut::SURE`].
    odds: u8,
    rng: Rng,
}

impl Cut {
    const SURE: u8 = 4;

    /// The cut of this number, somewhere in these places of the log: in every other case at one of the `marks`, where
    /// most has just been promised. The same seed and number give the same cut.
    pub(super) fn new(seed: u32, number: u32, places: &Range<usize>, marks: &[usize]) -> Self {
        let mut rng = Rng::with_seed(u64::from(seed) << 32 | u64::from(number));
        let (anywhere, mark) = (rng.usize(places.start..=places.end), rng.choice(marks));
        let after = mark.copied().filter(|_| rng.bool()).unwrap_or(anywhere);
        let (torn, odds) = (rng.bool(), rng.u8(0..=Self::SURE));
        Self { number, after, torn, odds, rng }
    }

    fn survives(&mut self) -> bool {
        self.rng.u8(0..Self::SURE) < self.odds
    }
}

/// A disk that is taken through its log.
pub(super) struct Replay<'l> {
    log: &'l Log,
    /// Where no write is torn.
    whole: Range<usize>,
    /// What it holds for sure.
    durable: Vec<u8>,
    /// So many entries are in that.
    flushed: usize,
}

impl<'l> Replay<'l> {
    /// A disk that held this before the log began, and writes the bytes of `whole` at once or not at all.
    pub(super) fn new(log: &'l Log, initial: Vec<u8>, whole: Range<usize>) -> Self {
        Self { log, whole, durable: initial, flushed: 0 }
    }

    /// Makes `disk` what is there after a cut, which is no earlier than the one before.
    ///
    /// # Errors
    /// An entry is not within the disk.
    pub(super) fn rebuild(&mut self, cut: &Cut, disk: &mut Vec<u8>) -> Result<()> {
        let log = self.log;
        let unseen = &log.entries[self.flushed..cut.after];
        if let Some(flush) = unseen.iter().rposition(|entry| *entry == Entry::Flush) {
            for entry in &unseen[..flush] {
                apply(log, entry, &mut self.durable, |_| true)?;
            }
            self.flushed += flush + 1;
        }
        disk.clone_from(&self.durable);
        let mut cut = cut.clone();
        for entry in &log.entries[self.flushed..cut.after] {
            let through = matches!(entry, Entry::Write { through: true, .. });
            let mut fate = through || cut.survives();
            apply(log, entry, disk, |place| {
                let alike = self.whole.contains(&place)
                    && place.checked_sub(BLOCK).is_some_and(|before| self.whole.contains(&before));
                if cut.torn && !through && !alike {
                    fate = cut.survives();
                }
                fate
            })?;
        }
        Ok(())
    }
}

/// Brings those blocks of an entry to the disk that survive, each by its place.
fn apply(log: &Log, entry: &Entry, disk: &mut [u8], mut survives: impl FnMut(usize) -> bool) -> Result<()> {
    let (at, data) = match entry {
        Entry::Flush => return Ok(()),
        Entry::Write { at, data, .. } => (at, Some(log.data(data))),
        Entry::Discard { at } => (at, None),
    };
    let blocks = disk.get_mut(at.clone()).with_context(|| format!("{entry:?} is beyond the disk's end"))?;
    for (index, block) in blocks.chunks_mut(BLOCK).enumerate() {
        if survives(at.start + index * BLOCK) {
            match data {
                Some(data) => block.copy_from_slice(&data[index * BLOCK..][..block.len()]),
                None => block.fill(0),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::{Builder, SECTOR};
    use super::*;

    const SECTORS: usize = 16;

    /// The first byte of each sector of all disks that many cuts after `after` entries leave, each state once.
    fn states(log: &Log, after: usize) -> Vec<[u8; SECTORS]> {
        states_but(log, after, 0..0)
    }

    /// The same, with sectors that are not torn from each other.
    fn states_but(log: &Log, after: usize, whole: Range<usize>) -> Vec<[u8; SECTORS]> {
        let mut found = Vec::new();
        for number in 0..400 {
            let cut = Cut::new(7, number, &(after..after), &[]);
            let mut disk = Vec::new();
            let whole = whole.start * SECTOR..whole.end * SECTOR;
            Replay::new(log, vec![0xee; SECTORS * SECTOR], whole).rebuild(&cut, &mut disk).unwrap();
            assert!(disk.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            found.push(std::array::from_fn(|index| disk[index * SECTOR]));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Of each state, these sectors.
    fn sectors<const N: usize>(states: &[[u8; SECTORS]], which: [usize; N]) -> Vec<[u8; N]> {
        let mut found: Vec<[u8; N]> = states.iter().map(|state| which.map(|index| state[index])).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn what_a_flush_covers_is_always_there() {
        let log = Builder::new().write(0, &[1, 2]).discard(4..5).flush().write(1, &[3]).log();
        let states = states(&log, 4);
        assert_eq!(sectors(&states, [0, 4]), [[1, 0]]);
        assert_eq!(sectors(&states, [1]), [[2], [3]], "the write after it may be there or not");
    }

    #[test]
    fn writes_that_no_flush_covers_are_there_in_any_subset() {
        let log = Builder::new().write(0, &[1]).write(1, &[2]).discard(2..3).log();
        let states = sectors(&states(&log, 3), [0, 1, 2]);
        assert_eq!(states.len(), 8);
        assert_eq!((states[0], states[7]), ([1, 2, 0], [0xee; 3]));
    }

    #[test]
    fn a_write_may_be_torn_between_blocks() {
        let log = Builder::new().write(0, &[1, 2, 3]).log();
        let states = sectors(&states(&log, 1), [0, 1, 2]);
        assert_eq!(states.len(), 8, "{states:?}");
    }

    #[test]
    fn what_is_written_at_once_is_not_torn() {
        let log = Builder::new().write(0, &[1, 2, 3, 4]).log();
        let states = states_but(&log, 1, 1..3);
        assert_eq!(sectors(&states, [1, 2]), [[2, 3], [0xee; 2]]);
        assert_eq!(sectors(&states, [0, 1, 3]).len(), 8);
    }

    #[test]
    fn of_two_writes_to_a_place_the_first_never_takes_the_seconds() {
        let log = Builder::new().write(0, &[1]).flush().write(0, &[2]).write(0, &[3]).log();
        assert_eq!(sectors(&states(&log, 4), [0]), [[1], [2], [3]]);
        assert_eq!(sectors(&states(&log, 3), [0]), [[1], [2]], "what comes after the cut is not there");
    }

    #[test]
    fn what_went_past_the_cache_needs_no_flush() {
        let log = Builder::new().write(0, &[1]).write_through(0, 2).write(1, &[3]).log();
        assert_eq!(sectors(&states(&log, 3), [0]), [[2]]);
    }

    #[test]
    fn later_cuts_go_on_where_the_last_one_was() {
        let log = Builder::new().write(0, &[1]).flush().write(1, &[2]).write(2, &[3]).flush().log();
        let mut replay = Replay::new(&log, vec![0; SECTORS * SECTOR], 0..0);
        let mut disk = Vec::new();
        for (after, expected) in [(2, [1, 0, 0]), (2, [1, 0, 0]), (5, [1, 2, 3])] {
            replay.rebuild(&Cut::new(7, 0, &(after..after), &[]), &mut disk).unwrap();
            assert_eq!([0, 1, 2].map(|index| disk[index * SECTOR]), expected);
        }
    }

    #[test]
    fn a_write_beyond_the_end_is_refused() {
        let log = Builder::new().write(SECTORS as u64, &[1]).flush().log();
        let mut replay = Replay::new(&log, vec![0; SECTORS * SECTOR], 0..0);
        let error = replay.rebuild(&Cut::new(7, 0, &(2..2), &[]), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("beyond the disk's end"));
    }

    #[test]
    fn a_number_names_a_cut() {
        let cut = |seed, number| Cut::new(seed, number, &(10..1000), &[2000]);
        assert_eq!(cut(1, 5), cut(1, 5));
        assert!(cut(1, 5) != cut(1, 6) && cut(1, 5) != cut(2, 5));
        let places: Vec<usize> = (0..500).map(|number| cut(3, number).after).collect();
        let at_the_mark = places.iter().filter(|place| **place == 2000).count();
        assert!((200..300).contains(&at_the_mark), "{at_the_mark}");
        assert!(places.iter().all(|place| *place == 2000 || (10..=1000).contains(place)));
    }
}
