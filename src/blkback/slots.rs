//! The slots of one ring: as many as it has entries, in pages that are taken from the pool when the
//! device is offered. Reconnecting costs nothing; a pool that is used up refuses an attach, never a
//! request.

use core::array;
use core::fmt;
use core::ops::{Index, IndexMut};

use heapless::Vec;

use super::slot::Slot;
use crate::hal::Memory;
use crate::limits::RING_ENTRIES;
use crate::mem::private::PageBox;
use crate::units::PAGE_SIZE;

/// Slots in a page.
const PER_PAGE: usize = PAGE_SIZE / size_of::<Slot>();

/// Pages for the slots of a ring.
pub(super) const PAGES: usize = RING_ENTRIES.div_ceil(PER_PAGE);

// Slots are named by a byte.
const _: () = assert!(RING_ENTRIES <= 1 << u8::BITS);

/// There are not enough pages: so many are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OutOfMemory {
    pages_left: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |pages| pages * PAGE_SIZE / 1024;
        let (needed, left) = (kib(PAGES), kib(self.pages_left));
        write!(f, "memory: {needed} KiB are needed for each device and {left} KiB are left; ")?;
        f.write_str("raise memory= in platter's configuration")
    }
}

/// The slots of a ring, named by its entries' numbers.
#[derive(Debug)]
pub(super) struct Slots(Vec<PageBox<[Slot; PER_PAGE]>, PAGES>);

impl Slots {
    /// Empty slots.
    ///
    /// # Errors
    /// Memory is used up; what there was is left there.
    pub(super) fn take(hal: &mut impl Memory) -> Result<Self, OutOfMemory> {
        let empty = || array::from_fn(|_| Slot::EMPTY);
        let pages = core::iter::from_fn(|| hal.take_private()).take(PAGES);
        let slots = Self(pages.map(|page| PageBox::new(page, empty())).collect());
        let pages_left = slots.0.len();
        if pages_left < PAGES {
            slots.give_back(hal);
            return Err(OutOfMemory { pages_left });
        }
        Ok(slots)
    }

    /// Gives the pages back to the pool.
    pub(super) fn give_back(self, hal: &mut impl Memory) {
        self.0.into_iter().for_each(|page| hal.return_private(page.into_page()));
    }
}

impl Index<u8> for Slots {
    type Output = Slot;

    fn index(&self, slot: u8) -> &Slot {
        &self.0[usize::from(slot) / PER_PAGE][usize::from(slot) % PER_PAGE]
    }
}

impl IndexMut<u8> for Slots {
    fn index_mut(&mut self, slot: u8) -> &mut Slot {
        &mut self.0[usize::from(slot) / PER_PAGE][usize::from(slot) % PER_PAGE]
    }
}
