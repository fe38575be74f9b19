//! The two guests that write while the power may fail: where they do it, and how one knows what they were told.
//!
//! Both work step by step. When all of a step was synced, the guest gives up one block in a partition that has nothing
//! else in it, and says so on its console. That discard is the step's mark in the log of its disk: it comes behind all
//! that the guest's kernel was told before, takes no part in any write or flush, and its place is the step's number.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};

use super::log::{Entry, Log};
use super::{files, raw};
use crate::machine::{Controller, Disk};

/// Bytes of a disk, of the partition that is written to, and of the one for marks.
pub(super) const SIZE: usize = 42 << 20;
pub(super) const DATA: Range<usize> = 1 << 20..33 << 20;
const MARKS: Range<usize> = 33 << 20..41 << 20;
/// From one mark to the next, in bytes.
const MARK: usize = 4096;
/// Steps that can be marked.
pub(super) const STEPS_LIMIT: u64 = (MARKS.end - MARKS.start) as u64 / MARK as u64 - 1;

/// The partitions for sfdisk, in sectors of 512 bytes.
pub(super) const TABLE: &str = "label: gpt\nstart=2048, size=65536\nstart=67584, size=16384\n";

/// How a guest says on its console that a step was synced.
const SAID: &str = "@synced ";

/// A guest that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// Files on ext4.
    Files,
    /// A pattern on the disk itself.
    Pattern,
}

impl Writer {
    pub(super) const ALL: [Self; 2] = [Self::Files, Self::Pattern];

    /// The guest's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Files => "alice",
            Self::Pattern => "bob",
        }
    }

    /// What it writes.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Files => "files on ext4",
            Self::Pattern => "a raw pattern",
        }
    }

    /// Its disk, one of a folder's.
    pub(super) fn disk(self, folder: &Path) -> Disk {
        let namespace = match self {
            Self::Files => 1,
            Self::Pattern => 2,
        };
        Controller::PLATTER.disk(folder, namespace)
    }

    /// What of its disk it takes for written at once or not at all.
    pub(super) fn whole(self) -> Range<usize> {
        match self {
            Self::Files => DATA.start..DATA.start + files::SUPER_BLOCK,
            Self::Pattern => 0..0,
        }
    }

    /// The script for a fresh disk. At its end comes the mark of step 0.
    pub(super) fn prepare(self) -> String {
        let script = match self {
            Self::Files => files::PREPARE,
            Self::Pattern => "",
        };
        format!("set -e\nn=0\n{script}\n{}", mark())
    }

    /// The script for a disk after a power cut: recovers what is there and looks for what must be.
    pub(super) fn recover(self, acknowledged: u64) -> String {
        match self {
            Self::Files => format!("set -e\n{}", files::recover(acknowledged)),
            Self::Pattern => format!("head -c {} /dev/xvdb | md5sum", raw::BYTES),
        }
    }

    /// The script that does the steps after `done` up to `last`.
    pub(super) fn work(self, done: u64, last: u64) -> String {
        let step = match self {
            Self::Files => files::step(),
            Self::Pattern => raw::step(),
        };
        let mark = mark();
        format!("set -e\nn={done}\nwhile [ $n -lt {last} ]; do\nn=$((n + 1))\n{step}\n{mark}\ndone")
    }

    /// What is lost on a disk, if anything is, of what was acknowledged: all up to step `acknowledged`.
    ///
    /// # Errors
    /// A program of the host's cannot be used.
    pub(super) fn check(self, disk: &[u8], acknowledged: u64, scratch: &Path) -> Result<Option<String>> {
        let data = disk.get(DATA).context("the disk is too small")?;
        match self {
            Self::Files => files::check(data, acknowledged, scratch),
            Self::Pattern => Ok(raw::check(&data[..raw::BYTES as usize], acknowledged)),
        }
    }
}

/// The last step that a guest has said was synced.
pub(super) fn last_said(console: &str) -> Option<u64> {
    let complete = &console[..console.rfind('\n')?];
    complete.lines().rev().find_map(|line| line.strip_prefix(SAID)?.parse().ok())
}

/// The steps that have marks in a log, each with the number of entries up to its mark.
pub(super) fn marks(log: &Log) -> Vec<(usize, u64)> {
    let step = |entry: &Entry| match entry {
        Entry::Discard { at } if at.start >= MARKS.start && at.end <= MARKS.end && at.len() == MARK => {
            Some(((at.start - MARKS.start) / MARK) as u64)
        }
        _ => None,
    };
    (1..).zip(&log.entries).filter_map(|(count, entry)| Some((count, step(entry)?))).collect()
}

/// The part of a script that marks step `$n`.
fn mark() -> String {
    format!("blkdiscard -o $((n * {MARK})) -l {MARK} /dev/xvdc\necho \"{SAID}$n\" > /dev/hvc0")
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::log::tests::{Builder, SECTOR};
    use super::*;

    /// A log that goes on with the mark of a step.
    pub(in crate::cuts) fn marked(log: Builder, step: u64) -> Builder {
        let at = MARKS.start + step as usize * MARK;
        log.discard((at / SECTOR) as u64..((at + MARK) / SECTOR) as u64)
    }

    #[test]
    fn a_mark_is_a_discard_of_one_block_among_the_marks() {
        let sector = |byte: usize| (byte / SECTOR) as u64;
        let log = marked(Builder::new(), 0)
            .write(sector(MARKS.start + MARK), &[1; MARK / SECTOR])
            .discard(sector(DATA.start)..sector(DATA.start + MARK))
            .discard(sector(MARKS.start)..sector(MARKS.start + 2 * MARK))
            .flush();
        assert_eq!(marks(&marked(log, 7).log()), [(1, 0), (6, 7)]);
    }

    #[test]
    fn only_whole_lines_are_believed() {
        assert_eq!(last_said("@lab up\n@synced 1\n@synced 2\nnoise\n@synced 3"), Some(2));
        assert_eq!(last_said("@lab up\n"), None);
    }

    #[test]
    fn marks_and_data_are_where_the_table_has_partitions() {
        for place in [DATA, MARKS] {
            let (start, size) = (place.start / SECTOR, place.len() / SECTOR);
            assert!(TABLE.contains(&format!("start={start}, size={size}\n")));
        }
    }
}
