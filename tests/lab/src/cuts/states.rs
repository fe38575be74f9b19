//! Rebuilds the states that power cuts leave of a recorded disk, and checks each.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::log::{Entry, Log};
use super::state::{Cut, Replay};
use super::writer::{SIZE, Writer, marks};
use crate::interrupt;
use crate::progress::Step;

/// How often the work is said to go on, in states.
const REPORT_EVERY: usize = 250;

/// Which states to check.
#[derive(Debug, Clone, Copy)]
pub(super) enum Choice {
    /// So many of each disk.
    Many(u32),
    /// The one of this number of each disk, which is kept beside the log.
    One(u32),
}

/// What became of the states of one disk.
pub(super) struct Tally {
    pub(super) writer: Writer,
    pub(super) writes: usize,
    pub(super) flushes: usize,
    /// Steps that were acknowledged in the end.
    pub(super) steps: u64,
    pub(super) states: usize,
    pub(super) torn: usize,
    /// Of each state with a loss: its number, and the first thing that was missed.
    pub(super) lost: Vec<(u32, String)>,
}

impl Tally {
    fn new(writer: Writer, log: &Log, steps: u64) -> Self {
        let count = |is: fn(&Entry) -> bool| log.entries.iter().filter(|entry| is(entry)).count();
        Self {
            writer,
            writes: count(|entry| matches!(entry, Entry::Write { .. })),
            flushes: count(|entry| matches!(entry, Entry::Flush)),
            steps,
            states: 0,
            torn: 0,
            lost: Vec::new(),
        }
    }
}

/// Checks states of a writer's disk, whose log is in `folder`.
///
/// # Errors
/// The log cannot be used, or the user interrupts. A loss is none.
pub(super) fn check(step: &Step, writer: Writer, folder: &Path, seed: u32, choice: Choice) -> Result<Tally> {
    let log = Log::read(&writer.disk(folder).log())?;
    let marks = marks(&log);
    let (first, last) = marks.first().zip(marks.last()).context("the guest has marked no step")?;
    ensure!(first.1 == 0, "the first mark is of step {}", first.1);
    let mut tally = Tally::new(writer, &log, last.1);
    let places = first.0..log.entries.len();
    let moments: Vec<usize> = marks.iter().map(|(count, _)| *count).collect();
    let numbers = match choice {
        Choice::Many(count) => 0..count,
        Choice::One(number) => number..number.saturating_add(1),
    };
    let mut cuts: Vec<Cut> = numbers.map(|number| Cut::new(seed, number, &places, &moments)).collect();
    // The disk is taken through its log once.
    cuts.sort_by_key(|cut| cut.after);
    let (mut replay, mut disk) = (Replay::new(&log, vec![0; SIZE], writer.whole()), Vec::new());
    // In memory: each state is written whole, and synced by e2fsck.
    let scratch = tempfile::tempdir_in("/dev/shm")?;
    for (index, cut) in cuts.iter().enumerate() {
        interrupt::check()?;
        if index % REPORT_EVERY == 0 {
            step.now(&format!("{}: state {index} of {}", writer.what(), cuts.len()));
        }
        replay.rebuild(cut, &mut disk)?;
        if let Choice::One(number) = choice {
            fs::write(folder.join(format!("{}-state-{number}.raw", writer.name())), &disk)?;
        }
        let acknowledged = marks.iter().rev().find(|(count, _)| *count <= cut.after).map_or(0, |mark| mark.1);
        tally.states += 1;
        tally.torn += usize::from(cut.torn);
        let lost = writer.check(&disk, acknowledged, scratch.path())?;
        tally.lost.extend(lost.map(|what| (cut.number, what)));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::{Builder, SECTOR};
    use super::super::raw::tests::written;
    use super::super::writer::{DATA, tests::marked};
    use super::*;
    use crate::progress::Progress;

    /// When a disk flushes in a step.
    #[derive(Clone, Copy, PartialEq)]
    enum Flushes {
        BehindTheWrites,
        BeforeTheLastWrite,
        Never,
    }

    /// What becomes of a disk with a log of thirty steps of the pattern.
    fn tally(flushes: Flushes, choice: Choice) -> (Tally, tempfile::TempDir) {
        let mut log = marked(Builder::new(), 0);
        for number in 1..=30 {
            let writes: Vec<_> = written(number).collect();
            for (index, (sector, bytes)) in writes.iter().enumerate() {
                if flushes == Flushes::BeforeTheLastWrite && index + 1 == writes.len() {
                    log = log.flush();
                }
                log = log.write_bytes((DATA.start / SECTOR) as u64 + sector, bytes);
            }
            if flushes == Flushes::BehindTheWrites {
                log = log.flush();
            }
            log = marked(log, number);
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(Writer::Pattern.disk(folder.path()).log(), log.bytes()).unwrap();
        let step = Progress::new().task("test");
        (check(&step, Writer::Pattern, folder.path(), 5, choice).unwrap(), folder)
    }

    #[test]
    fn a_disk_that_flushes_loses_nothing() {
        let (tally, _) = tally(Flushes::BehindTheWrites, Choice::Many(60));
        assert_eq!(tally.lost, []);
        assert_eq!((tally.writes, tally.flushes, tally.steps, tally.states), (120, 30, 30, 60));
        assert!((10..50).contains(&tally.torn), "{}", tally.torn);
    }

    #[test]
    fn one_that_does_not_flush_or_too_early_is_found() {
        for flushes in [Flushes::Never, Flushes::BeforeTheLastWrite] {
            let (tally, _) = tally(flushes, Choice::Many(60));
            assert!(tally.lost.len() > 10, "{:?}", tally.lost);
        }
    }

    #[test]
    fn one_state_is_checked_again_and_kept() {
        let (many, _) = tally(Flushes::Never, Choice::Many(60));
        let lost = many.lost[0].clone();
        let (one, folder) = tally(Flushes::Never, Choice::One(lost.0));
        assert_eq!((one.states, &one.lost), (1, &vec![lost.clone()]));
        let disk = fs::read(folder.path().join(format!("bob-state-{}.raw", lost.0))).unwrap();
        let again = Writer::Pattern.check(&disk, 30, folder.path()).unwrap();
        assert!(again.is_some(), "the kept disk has lost it too");
    }
}
