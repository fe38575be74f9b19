//! The medium of a simulated namespace: sparse blocks behind a volatile write cache. Neighbour of
//! [`super`], the controller; also the oracle that a test compares with.

use core::ops::Range;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

use crate::sim::rng::Rng;

type Blocks = BTreeMap<u64, Box<[u8]>>;

/// Blocks that were never written, and held nothing from the start, read as zeroes.
#[derive(Clone, Debug)]
pub struct Disk {
    block_size: usize,
    volatile_cache: bool,
    /// What it held before anybody here wrote.
    original: Blocks,
    safe: Blocks,
    /// Written and not flushed.
    cached: Blocks,
}

impl Disk {
    /// An empty disk; without a volatile cache each write is safe at once.
    #[must_use]
    pub fn new(block_size: usize, volatile_cache: bool) -> Self {
        let (original, safe, cached) = (Blocks::new(), Blocks::new(), Blocks::new());
        Self { block_size, volatile_cache, original, safe, cached }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The contents of so many blocks from `first` on.
    #[must_use]
    pub fn read(&self, first: u64, blocks: u64) -> Vec<u8> {
        let mut data = Vec::new();
        for block in first..first + blocks {
            match self.cached.get(&block) {
                Some(bytes) => data.extend_from_slice(bytes),
                None => data.extend(self.read_safe(block)),
            }
        }
        data
    }

    /// Gives it a block that it held from the start.
    pub fn hold(&mut self, block: u64, data: &[u8]) {
        self.original.insert(block, data.into());
    }

    /// Whether it held nothing from the start.
    #[must_use]
    pub fn was_blank(&self) -> bool {
        self.original.is_empty()
    }

    /// What a block holds after a power cut, whatever the cut takes from the cache.
    #[must_use]
    pub fn read_safe(&self, block: u64) -> Vec<u8> {
        let bytes = self.safe.get(&block).or_else(|| self.original.get(&block));
        bytes.map_or_else(|| vec![0; self.block_size], |bytes| bytes.to_vec())
    }

    /// Whether a power cut would take nothing.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.cached.is_empty()
    }

    /// Writes whole blocks from `first` on.
    pub fn write(&mut self, first: u64, data: &[u8]) {
        let blocks = if self.volatile_cache { &mut self.cached } else { &mut self.safe };
        for (block, bytes) in (first..).zip(data.chunks_exact(self.block_size)) {
            blocks.insert(block, bytes.into());
        }
    }

    /// Writes whole blocks from `first` on past the cache: they are safe at once.
    pub fn write_through(&mut self, first: u64, data: &[u8]) {
        for (block, bytes) in (first..).zip(data.chunks_exact(self.block_size)) {
            self.cached.remove(&block);
            self.safe.insert(block, bytes.into());
        }
    }

    /// Gives blocks up: each reads as zeroes from now on, or stays as it is.
    pub fn discard(&mut self, blocks: Range<u64>, rng: &mut Rng) {
        let holdings = [&self.original, &self.safe, &self.cached];
        let held: BTreeSet<u64> =
            holdings.iter().flat_map(|of| of.range(blocks.clone())).map(|(block, _)| *block).collect();
        for block in held {
            if rng.one_in(2) {
                self.write(block, &vec![0; self.block_size]);
            }
        }
    }

    /// The blocks that were ever written.
    pub fn written(&self) -> impl Iterator<Item = u64> {
        self.safe.keys().chain(self.cached.keys()).copied()
    }

    /// Makes everything safe that was written.
    pub fn flush(&mut self) {
        // Not `append`, which builds the whole map anew.
        self.safe.extend(core::mem::take(&mut self.cached));
    }

    /// Takes the power away: of what was not flushed, any block may be lost.
    pub fn cut_power(&mut self, rng: &mut Rng) {
        self.cached.retain(|_, _| rng.one_in(2));
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_survives_and_what_was_not_may_be_lost() {
        let mut disk = Disk::new(512, true);
        disk.write(0, &[1; 512]);
        disk.flush();
        disk.write(0, &[2; 512]);
        disk.write(8, &[3; 1024]);
        assert_eq!(disk.read(0, 1), [2; 512]);
        assert_eq!(disk.read_safe(0), [1; 512]);
        assert_eq!(disk.read_safe(8), [0; 512]);
        assert_eq!(disk.written().collect::<Vec<_>>(), [0, 0, 8, 9]);
        let after = |seed| {
            let mut disk = disk.clone();
            disk.cut_power(&mut Rng::new(seed));
            (disk.read(0, 1)[0], disk.read(8, 1)[0], disk.read(9, 1)[0])
        };
        let outcomes: std::collections::BTreeSet<_> = (0..100).map(after).collect();
        assert_eq!(outcomes.len(), 8);
        assert!(outcomes.iter().all(|(first, ..)| [1, 2].contains(first)));
    }

    #[test]
    fn what_is_written_through_is_safe_and_the_rest_of_the_cache_is_not() {
        let mut disk = Disk::new(512, true);
        disk.write(0, &[1; 1024]);
        disk.write_through(0, &[2; 512]);
        assert_eq!(disk.read(0, 2), [[2; 512], [1; 512]].concat());
        assert_eq!((disk.read_safe(0), disk.read_safe(1)), ([2; 512].into(), [0; 512].into()));
        assert!(!disk.is_safe());
    }

    #[test]
    fn what_is_given_up_is_lost_or_not_and_nothing_else_is() {
        let mut disk = Disk::new(512, true);
        disk.hold(1, &[1; 512]);
        disk.write(2, &[2; 1024]);
        let after = |seed| {
            let mut disk = disk.clone();
            disk.discard(1..3, &mut Rng::new(seed));
            [0, 1, 2, 3].map(|block| disk.read(block, 1)[0])
        };
        let outcomes: BTreeSet<_> = (0..100).map(after).collect();
        assert!(outcomes.into_iter().eq([[0, 0, 0, 2], [0, 0, 2, 2], [0, 1, 0, 2], [0, 1, 2, 2]]));
    }

    #[test]
    fn without_a_cache_every_write_is_safe() {
        let mut disk = Disk::new(4096, false);
        disk.write(7, &[9; 4096]);
        disk.cut_power(&mut Rng::new(0));
        assert_eq!(disk.read(6, 3), [vec![0; 4096], vec![9; 4096], vec![0; 4096]].concat());
    }
}
