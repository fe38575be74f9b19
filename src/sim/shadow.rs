//! What a guest knows about its disk: which content each sector must have, and which must survive
//! a loss of power. Contents are made from stamps, so that old, foreign and misplaced data differ.

use std::collections::BTreeMap;

use super::rng::Rng;
use crate::units::SECTOR_SIZE;

/// Names one write; 0 is the content a disk has at first, all zero.
pub type Stamp = u64;

/// A sector's bytes.
pub type Bytes = [u8; SECTOR_SIZE];

/// What is known of a sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// It holds what was written under this stamp.
    Is(Stamp),
    /// The same, or zeroes: it was discarded since.
    IsOrZero(Stamp),
    /// A write of it failed or was never answered, so it may hold either content.
    Unsettled,
}

/// What is known of a disk. Sectors that are not listed hold what they held at first.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    sectors: BTreeMap<u64, Known>,
    /// Written, and not yet promised to be durable.
    volatile: BTreeMap<u64, Stamp>,
}

impl Shadow {
    /// A write was answered with success.
    pub fn written(&mut self, first: u64, count: u64, stamp: Stamp) {
        for sector in first..first + count {
            self.sectors.insert(sector, Known::Is(stamp));
            self.volatile.insert(sector, stamp);
        }
    }

    /// A write failed, or its answer will never come.
    pub fn unsettled(&mut self, first: u64, count: u64) {
        for sector in first..first + count {
            self.sectors.insert(sector, Known::Unsettled);
            self.volatile.remove(&sector);
        }
    }

    /// A discard was sent: whatever is answered, its sectors hold what they held, or zeroes, until
    /// they are written again.
    pub fn discarded(&mut self, first: u64, count: u64) {
        for sector in first..first + count {
            self.volatile.remove(&sector);
            let known = self.sectors.entry(sector).or_insert(Known::Is(0));
            if let Known::Is(stamp) = *known {
                *known = Known::IsOrZero(stamp);
            }
        }
    }

    /// What a flush that is issued now promises once it is answered.
    pub fn take_volatile(&mut self) -> BTreeMap<u64, Stamp> {
        core::mem::take(&mut self.volatile)
    }

    /// The promise was not kept: the next flush makes it again.
    pub fn still_volatile(&mut self, sectors: BTreeMap<u64, Stamp>) {
        for (sector, stamp) in sectors {
            if self.sectors.get(&sector) == Some(&Known::Is(stamp)) {
                self.volatile.entry(sector).or_insert(stamp);
            }
        }
    }

    fn known(&self, sector: u64) -> Known {
        self.sectors.get(&sector).copied().unwrap_or(Known::Is(0))
    }

    /// The stamp a sector must have; none when it may be one of two.
    #[must_use]
    pub fn stamp(&self, sector: u64) -> Option<Stamp> {
        match self.known(sector) {
            Known::Is(stamp) => Some(stamp),
            Known::IsOrZero(_) | Known::Unsettled => None,
        }
    }

    /// Whether these bytes may be the sector's content.
    #[must_use]
    pub fn accepts(&self, sector: u64, bytes: &[u8]) -> bool {
        match self.known(sector) {
            Known::Is(stamp) => bytes == content(sector, stamp),
            Known::IsOrZero(stamp) => [stamp, 0].iter().any(|stamp| bytes == content(sector, *stamp)),
            Known::Unsettled => true,
        }
    }

    /// All sectors to which a write or a discard was sent.
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

    #[test]
    fn discarded_sectors_are_old_or_zero_until_they_are_written() {
        let mut shadow = Shadow::default();
        shadow.written(8, 2, 1);
        shadow.unsettled(10, 1);
        shadow.discarded(8, 3);
        shadow.discarded(8, 1);
        assert!(shadow.accepts(8, &content(8, 1)) && shadow.accepts(8, &content(8, 0)));
        assert!(!shadow.accepts(8, &content(8, 2)) && !shadow.accepts(9, &content(8, 1)));
        assert!(shadow.accepts(10, &content(10, 5)), "unsettled before");
        assert_eq!(shadow.take_volatile(), BTreeMap::new(), "nothing of it is promised");
        assert_eq!(shadow.stamp(8), None);
        shadow.written(8, 1, 3);
        assert!(shadow.accepts(8, &content(8, 3)) && !shadow.accepts(8, &content(8, 0)));
    }
}
