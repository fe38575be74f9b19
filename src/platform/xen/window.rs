//! Which addresses of the map window are taken: a bit a page. `paging` maps and unmaps at them.

use crate::units::PAGE_SIZE;

const BITS: usize = u64::BITS as usize;

/// A window of `WORDS` times 64 pages of addresses.
pub(super) struct Window<const WORDS: usize> {
    base: usize,
    taken: [u64; WORDS],
}

impl<const WORDS: usize> Window<WORDS> {
    /// The window from the address `base` on, nothing of it taken.
    pub(super) const fn new(base: usize) -> Self {
        Self { base, taken: [0; WORDS] }
    }

    /// Takes the first `pages` addresses in a row that are free.
    pub(super) fn reserve(&mut self, pages: usize) -> Option<usize> {
        let full = self.taken.iter().take_while(|word| **word == u64::MAX).count();
        let mut free = 0;
        for page in full * BITS..WORDS * BITS {
            free = if self.is_taken(page) { 0 } else { free + 1 };
            if free == pages {
                let first = page + 1 - pages;
                (first..=page).for_each(|page| self.taken[page / BITS] |= 1 << (page % BITS));
                return Some(self.base + first * PAGE_SIZE);
            }
        }
        None
    }

    /// Gives `pages` addresses from `address` on back.
    pub(super) fn release(&mut self, address: usize, pages: usize) {
        let first = (address - self.base) / PAGE_SIZE;
        for page in first..first + pages {
            assert!(self.is_taken(page), "an address is given back once");
            self.taken[page / BITS] &= !(1 << (page % BITS));
        }
    }

    fn is_taken(&self, page: usize) -> bool {
        self.taken[page / BITS] & 1 << (page % BITS) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: usize = 0x4000_0000;

    fn at(page: usize) -> Option<usize> {
        Some(BASE + page * PAGE_SIZE)
    }

    #[test]
    fn runs_of_any_length_are_used_again() {
        let mut window = Window::<2>::new(BASE);
        assert_eq!([window.reserve(1), window.reserve(16), window.reserve(1)], [at(0), at(1), at(17)]);
        window.release(BASE + PAGE_SIZE, 16);
        assert_eq!(window.reserve(17), at(18), "the gap is too short");
        assert_eq!(window.reserve(4), at(1));
        assert_eq!(window.reserve(12), at(5), "the rest of the gap");
        assert_eq!(window.reserve(60), at(35), "across words");
        assert_eq!(window.reserve(34), None);
        assert_eq!(window.reserve(33), at(95));
        assert_eq!(window.reserve(1), None);
    }

    #[test]
    fn a_controller_can_come_and_go_for_ever() {
        let mut window = Window::<1>::new(BASE);
        for _ in 0..1000 {
            let (ring, registers) = (window.reserve(1).unwrap(), window.reserve(16).unwrap());
            window.release(ring, 1);
            window.release(registers, 16);
        }
        assert_eq!(window.reserve(64), at(0));
    }

    #[test]
    #[should_panic(expected = "given back once")]
    fn an_address_cannot_be_given_back_twice() {
        let mut window = Window::<1>::new(BASE);
        let address = window.reserve(1).unwrap();
        window.release(address, 1);
        window.release(address, 1);
    }
}
