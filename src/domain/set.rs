//! A set of vbds, by their places in the table. Adding, removing and finding the next member cost
//! the same however many places there are, so that idle vbds cost a turn nothing.

use crate::limits::VBD_PLACES;

const BITS: usize = u64::BITS as usize;
const WORDS: usize = VBD_PLACES.div_ceil(BITS);

// One word says which words have members.
const _: () = assert!(WORDS <= BITS);

/// The set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Set {
    words: [u64; WORDS],
    /// Words with members.
    used: u64,
}

impl Set {
    pub(super) const EMPTY: Self = Self { words: [0; WORDS], used: 0 };

    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    pub(super) fn add(&mut self, index: usize) {
        self.words[index / BITS] |= 1 << (index % BITS);
        self.used |= 1 << (index / BITS);
    }

    /// Takes the first member out.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<usize> {
        if self.used == 0 {
            return None;
        }
        let word = self.used.trailing_zeros() as usize;
        let bits = &mut self.words[word];
        let bit = bits.trailing_zeros() as usize;
        *bits &= *bits - 1;
        if *bits == 0 {
            self.used &= self.used - 1;
        }
        Some(word * BITS + bit)
    }

    pub(super) fn add_all(&mut self, others: &Self) {
        if others.is_empty() {
            return;
        }
        self.words.iter_mut().zip(others.words).for_each(|(word, other)| *word |= other);
        self.used |= others.used;
    }

    /// Adds the members of another set, which has them no more.
    pub(super) fn take_all(&mut self, others: &mut Self) {
        if !others.is_empty() {
            self.add_all(&core::mem::take(others));
        }
    }

    pub(super) fn remove(&mut self, index: usize) {
        let word = &mut self.words[index / BITS];
        *word &= !(1 << (index % BITS));
        if *word == 0 {
            self.used &= !(1 << (index / BITS));
        }
    }

    /// The members as they are now, the first one from `start` on first, each once.
    pub(super) fn from(self, start: usize) -> Members {
        let start = if start < VBD_PLACES { start } else { 0 };
        let Self { mut words, used } = self;
        let word = start / BITS;
        let bits = words[word] & (u64::MAX << (start % BITS));
        // What is before `start` in its word comes last.
        words[word] &= !bits;
        let rest = if words[word] == 0 { used & !(1 << word) } else { used };
        Members { words, rest, word, bits }
    }

    /// The first member from `start` on, or else the first of all.
    pub(super) fn next(&self, start: usize) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        self.first_from(start).or_else(|| self.first_from(0))
    }

    fn first_from(&self, start: usize) -> Option<usize> {
        let first = start / BITS;
        let bits = self.words.get(first)? & (u64::MAX << (start % BITS));
        if bits != 0 {
            return Some(first * BITS + bits.trailing_zeros() as usize);
        }
        // Shifted twice, as one shift by all bits is none.
        let later = self.used & (u64::MAX << first << 1);
        let word = (later != 0).then(|| later.trailing_zeros() as usize)?;
        Some(word * BITS + self.words[word].trailing_zeros() as usize)
    }
}

/// Members that are walked, word by word and once round the end.
pub(super) struct Members {
    words: [u64; WORDS],
    /// Words with members that are still to come, without those of the one that is walked.
    rest: u64,
    word: usize,
    bits: u64,
}

impl Iterator for Members {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.bits == 0 {
            let after = self.rest & (u64::MAX << self.word << 1);
            let words = if after == 0 { self.rest } else { after };
            self.word = (words != 0).then(|| words.trailing_zeros() as usize)?;
            self.rest &= !(1 << self.word);
            self.bits = self.words[self.word];
        }
        let bit = self.bits.trailing_zeros() as usize;
        self.bits &= self.bits - 1;
        Some(self.word * BITS + bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: usize = VBD_PLACES - 1;

    #[test]
    fn a_set_is_walked_from_anywhere() {
        let mut set = Set::EMPTY;
        for index in [0, 5, 63, 64, LAST] {
            set.add(index);
        }
        let from = |set: Set, start| set.from(start).collect::<Vec<_>>();
        assert_eq!(from(set, 0), [0, 5, 63, 64, LAST]);
        assert_eq!(from(set, 5), [5, 63, 64, LAST, 0]);
        assert_eq!(from(set, 64), [64, LAST, 0, 5, 63]);
        assert_eq!(from(set, LAST), [LAST, 0, 5, 63, 64]);
        assert_eq!(from(set, VBD_PLACES), [0, 5, 63, 64, LAST]);
        set.remove(64);
        set.remove(5);
        set.remove(5);
        assert_eq!(from(set, 6), [63, LAST, 0]);
        let mut others = Set::EMPTY;
        [5, 63, 64].into_iter().for_each(|index| others.add(index));
        set.add_all(&others);
        assert_eq!(from(set, 6), [63, 64, LAST, 0, 5]);
    }

    #[test]
    fn a_set_holds_what_was_added_and_not_removed() {
        let mut set = Set::EMPTY;
        for index in 0..VBD_PLACES {
            set.add(index);
        }
        for index in (0..VBD_PLACES).filter(|index| index % 3 != 0) {
            set.remove(index);
        }
        for start in [0, 1, 100, LAST, 10 * VBD_PLACES] {
            let mut left: Vec<_> = set.from(start).collect();
            left.sort_unstable();
            assert_eq!(left, (0..VBD_PLACES).step_by(3).collect::<Vec<_>>());
        }
        (0..VBD_PLACES).for_each(|index| set.remove(index));
        assert!(set.is_empty());
    }
}
