//! What a guest knows about its disk: which content each sector must have, and which must survive
//! a loss of power. Contents are made from stamps, so that old, foreign and misplaced data differ.

use std::collections::BTreeMap;

use super::rng::Rng;
use crate::units::SECTOR_SIZE;

/// Names one write; 0 is the content a disk has at first, all zero.
pub type Stamp = u64;

/// A sector's bytes.
pub type Bytes = [u8; SECTOR_SIZE];

/// What is known of a disk. Sectors that are not listed hold what they held at first.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    /// None: a write of it failed or was never answered, so it may hold either content.
    sectors: BTreeMap<u64, Option<Stamp>>,
    /// Written, and not yet promised to be durable.
    volatile: BTreeMap<u64, Stamp>,
}

impl Shadow {
    /// A write was answered with success.
    pub fn written(&mut self, first: u64, count: u64, stamp: Stamp) {
        for sector in first..first + count {
            self.sectors.insert(sector, Some(stamp));
            self.volatile.insert(sector, stamp);
        }
    }

    /// A write failed, or its answer will never come.
    pub fn unsettled(&mut self, first: u64, count: u64) {
        for sector in first..first + count {
            self.sectors.insert(sector, None);
            self.volatile.remove(&sector);
        }
    }

    /// What a flush that is issued now promises once it is answered.
    pub fn take_volatile(&mut self) -> BTreeMap<u64, Stamp> {
        core::mem::take(&mut self.volatile)
    }

    /// The promise was not kept: the next flush makes it again.
    pub fn still_volatile(&mut self, sectors: BTreeMap<u64, Stamp>) {
        for (sector, stamp) in sectors {
            if self.sectors.get(&sector) == Some(&Some(stamp)) {
                self.volatile.entry(sector).or_insert(stamp);
            }
        }
    }

    /// The stamp a sector must have; none when it may be one of two.
    #[must_use]
    pub fn stamp(&self, sector: u64) -> Option<Stamp> {
        self.sectors.get(&sector).copied().unwrap_or(Some(0))
    }

    /// Whether these bytes may be the sector's content.
    #[must_use]
    pub fn accepts(&self, sector: u64, bytes: &[u8]) -> bool {
        self.stamp(sector).is_none_or(|stamp| bytes == content(sector, stamp))
    }

    /// All sectors to which a write was sent.
    pub fn touched(&self) -> impl Iterator<Item = u64> {
        self.sectors.keys().copied()
    }
}

/// The bytes of a sector that was written under a stamp.
#[must_use]
pub fn content(sector: u64, stamp: Stamp) -> Bytes {
    let mut bytes = [0; SECTOR_SIZE];
    if stamp != 0 {
        // One piece by chance, and its number in each copy: all of it by chance takes too long.
        let mut piece = [0; 64];
        Rng::new(stamp ^ sector.rotate_left(40)).fill(&mut piece);
        for (i, copy) in bytes.chunks_exact_mut(piece.len()).enumerate() {
            copy.copy_from_slice(&piece);
            copy[0] = i as u8;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_content_in_its_own_place_is_accepted() {
        let mut shadow = Shadow::default();
        assert!(shadow.accepts(9, &content(9, 0)));
        shadow.written(8, 2, 1);
        shadow.written(9, 1, 2);
        assert!(shadow.accepts(8, &content(8, 1)) && shadow.accepts(9, &content(9, 2)));
        assert!(!shadow.accepts(9, &content(9, 1)), "old");
        assert!(!shadow.accepts(9, &content(8, 2)), "misplaced");
        shadow.unsettled(9, 1);
        assert!(shadow.accepts(9, &content(9, 1)) && shadow.accepts(9, &content(9, 3)));
    }

    #[test]
    fn a_failed_flush_leaves_its_promise_to_the_next_one() {
        let mut shadow = Shadow::default();
        shadow.written(1, 2, 7);
        let promised = shadow.take_volatile();
        assert_eq!(promised, BTreeMap::from([(1, 7), (2, 7)]));
        shadow.written(2, 1, 8);
        shadow.still_volatile(promised);
        assert_eq!(shadow.take_volatile(), BTreeMap::from([(1, 7), (2, 8)]));
    }
}
