//! What the requests of one device need: slots, pages for the segments of indirect requests, a table
//! of kept pages, places for its rings. It is taken from the pool of pages when the device is
//! offered, with its size known: reconnecting costs nothing, and a pool that is used up refuses an
//! attach, never a request.
//!
//! While memory is plentiful a device has all of it. When what is left is for other devices and
//! controllers that may yet come, it has slots and one ring, and is offered nothing that takes more.

use core::array;
use core::fmt;
use core::ops::{Index, IndexMut};

use heapless::Vec;

use super::counters::Counters;
use super::keep::{self, Keep};
use super::link::Link;
use super::slot::Slot;
use crate::hal::{DmaPage, Memory};
use crate::limits::{CONTROLLER_PAGES, CONTROLLERS, INDIRECT_SLOTS, LATECOMERS, QUEUES, SLOTS};
use crate::mem::private::{PageBox, PrivatePage};
use crate::units::{Instant, PAGE_SIZE};

/// Slots in a page.
const PER_PAGE: usize = PAGE_SIZE / size_of::<Slot>();
const SLOT_PAGES: usize = SLOTS.div_ceil(PER_PAGE);

// Slots are named by a byte, and found by shifts and a mask.
const _: () = assert!(SLOTS <= 1 << u8::BITS && PER_PAGE.is_power_of_two() && SLOT_PAGES.is_power_of_two());

/// Rings in a page.
const LINKS_PER_PAGE: usize = 8;
const LINK_PAGES: usize = QUEUES.div_ceil(LINKS_PER_PAGE);

/// Pages of a device that is offered nothing but a ring: for its slots, its ring, and its requests.
pub(super) const PLAIN: usize = SLOT_PAGES + 2;

/// Pages of one that is offered everything.
const FULL: usize = PLAIN + LINK_PAGES - 1 + INDIRECT_SLOTS + keep::PAGES;

/// What is left alone by devices that take more than they need.
const FOR_OTHERS: usize = LATECOMERS * PLAIN + CONTROLLERS * CONTROLLER_PAGES;

/// There are not enough pages: so many are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OutOfMemory {
    pages_left: usize,
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |pages| pages * PAGE_SIZE / 1024;
        let (needed, left) = (kib(PLAIN), kib(self.pages_left));
        write!(f, "memory: {needed} KiB are needed for each device and {left} KiB are left; ")?;
        f.write_str("raise memory= in platter's configuration")
    }
}

/// What a device may have at most, as budgets for all of them allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allowance {
    /// Rings: one at least.
    pub(super) rings: usize,
    /// Whether it may keep pages mapped.
    pub(super) keeps: bool,
    /// Mappings for its requests in flight.
    pub(super) mappings: usize,
}

/// The means.
#[derive(Debug)]
pub(super) struct Means {
    /// One for each request in flight.
    pub(super) slots: Slots,
    /// The rings that are connected.
    pub(super) links: Links,
    /// Pages for the segments of indirect requests; those in use are with their slots.
    pub(super) segment_pages: Vec<DmaPage, INDIRECT_SLOTS>,
    /// Pages that stay mapped, if any may.
    pub(super) keep: Option<Keep>,
    /// Pages that may be mapped for requests in flight beside those.
    pub(super) mappings: usize,
    /// What was done for the device.
    pub(super) counters: Counters,
    /// Whether there are pages for indirect requests.
    pub(super) is_full: bool,
}

impl Means {
    /// As much as is allowed and there is memory for, and a page for the requests themselves.
    ///
    /// # Errors
    /// There is not even enough for a plain device; what there was is left there.
    pub(super) fn take(
        hal: &mut impl Memory,
        allowance: Allowance,
        now: Instant,
    ) -> Result<(PrivatePage, Self), OutOfMemory> {
        let pages_left = hal.free_pages();
        let is_full = pages_left >= FULL + FOR_OTHERS;
        if pages_left < PLAIN {
            return Err(OutOfMemory { pages_left });
        }
        let rings = if is_full { allowance.rings } else { 1 };
        let segment_pages = if is_full { INDIRECT_SLOTS } else { 0 };
        // As there are enough pages, nothing of this fails.
        let short = OutOfMemory { pages_left };
        let page = hal.take_private().ok_or(short)?;
        let means = Self {
            slots: Slots::take(hal).ok_or(short)?,
            links: Links::take(hal, rings).ok_or(short)?,
            segment_pages: (0..segment_pages).map_while(|_| hal.take_page()).collect(),
            keep: if is_full && allowance.keeps { Keep::take(hal, now.0) } else { None },
            mappings: allowance.mappings,
            counters: Counters::new(now),
            is_full,
        };
        Ok((page, means))
    }

    /// Gives the memory back. No request is in flight, no ring connected, no page kept.
    pub(super) fn give_back(self, hal: &mut impl Memory) {
        self.slots.0.into_iter().for_each(|page| hal.return_private(page.into_page()));
        self.links.pages.into_iter().for_each(|page| hal.return_private(page.into_page()));
        self.segment_pages.into_iter().for_each(|page| hal.return_page(page));
        if let Some(keep) = self.keep {
            keep.give_back(hal);
        }
    }
}

/// The slots, by number.
#[derive(Debug)]
pub(super) struct Slots([PageBox<[Slot; PER_PAGE]>; SLOT_PAGES]);

impl Slots {
    fn take(hal: &mut impl Memory) -> Option<Self> {
        let empty = || array::from_fn(|_| Slot::EMPTY);
        let pages = (0..SLOT_PAGES).map(|_| hal.take_private().map(|page| PageBox::new(page, empty())));
        pages.collect::<Option<Vec<_, SLOT_PAGES>>>()?.into_array().ok().map(Self)
    }
}

impl Index<u8> for Slots {
    type Output = Slot;

    fn index(&self, slot: u8) -> &Slot {
        &self.0[usize::from(slot) / PER_PAGE % SLOT_PAGES][usize::from(slot) % PER_PAGE]
    }
}

impl IndexMut<u8> for Slots {
    fn index_mut(&mut self, slot: u8) -> &mut Slot {
        &mut self.0[usize::from(slot) / PER_PAGE % SLOT_PAGES][usize::from(slot) % PER_PAGE]
    }
}

/// Places for rings, and the rings that are connected, by number.
#[derive(Debug)]
pub(super) struct Links {
    pages: Vec<PageBox<Vec<Link, LINKS_PER_PAGE>>, LINK_PAGES>,
    len: usize,
    /// Rings that can be connected.
    pub(super) most: usize,
}

impl Links {
    fn take(hal: &mut impl Memory, most: usize) -> Option<Self> {
        let pages = (0..most.div_ceil(LINKS_PER_PAGE))
            .map(|_| hal.take_private().map(|page| PageBox::new(page, Vec::new())));
        pages.collect::<Option<_>>().map(|pages| Self { pages, len: 0, most })
    }

    /// Connects one more.
    ///
    /// # Panics
    /// When there is no place for it.
    pub(super) fn push(&mut self, link: Link) {
        let page = self.pages.iter_mut().find(|page| !page.is_full());
        page.expect("no more rings than were offered").push(link).expect("the page has room");
        self.len += 1;
    }

    /// Takes the last one out.
    pub(super) fn pop(&mut self) -> Option<Link> {
        let last = self.pages.iter_mut().rev().find_map(|page| page.pop());
        self.len -= usize::from(last.is_some());
        last
    }

    /// How many are connected.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// All that are connected.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        (0..self.len).map(|ring| &self[ring])
    }
}

impl Index<usize> for Links {
    type Output = Link;

    fn index(&self, ring: usize) -> &Link {
        &self.pages[ring / LINKS_PER_PAGE][ring % LINKS_PER_PAGE]
    }
}

impl IndexMut<usize> for Links {
    fn index_mut(&mut self, ring: usize) -> &mut Link {
        &mut self.pages[ring / LINKS_PER_PAGE][ring % LINKS_PER_PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blkback::testing::Machine;
    use crate::limits::SHARE;

    /// What is taken when so many pages are free, and what it is worth: rings, pages for segments,
    /// whether pages are kept.
    fn take(free: usize, allowance: Allowance) -> (usize, [usize; 3]) {
        let mut machine = Machine::with(0, free);
        let (page, means) = Means::take(&mut machine, allowance, Instant(1)).unwrap();
        let taken = machine.taken_pages;
        let worth = [means.links.most, means.segment_pages.len(), usize::from(means.keep.is_some())];
        assert_eq!(means.is_full, worth[1] > 0);
        means.give_back(&mut machine);
        machine.return_private(page);
        assert_eq!((machine.taken_pages, machine.free_pages), (0, free));
        (taken, worth)
    }

    #[test]
    fn a_device_has_everything_while_enough_is_left_for_others() {
        let all = Allowance { rings: QUEUES, keeps: true, mappings: SHARE };
        assert_eq!(take(FULL + FOR_OTHERS, all), (FULL, [QUEUES, INDIRECT_SLOTS, 1]));
        assert_eq!(take(FULL + FOR_OTHERS - 1, all), (PLAIN, [1, 0, 0]));
        assert_eq!(take(PLAIN, all), (PLAIN, [1, 0, 0]));
    }

    #[test]
    fn a_device_has_no_more_than_is_allowed() {
        let taken = |rings, keeps| take(FULL + FOR_OTHERS, Allowance { rings, keeps, mappings: SHARE });
        assert_eq!(taken(8, true), (FULL - LINK_PAGES + 1, [8, INDIRECT_SLOTS, 1]));
        assert_eq!(taken(1, false), (FULL - LINK_PAGES + 1 - keep::PAGES, [1, INDIRECT_SLOTS, 0]));
    }

    #[test]
    fn what_is_too_little_is_left_there() {
        let mut machine = Machine::with(0, PLAIN - 1);
        let allowance = Allowance { rings: 1, keeps: true, mappings: SHARE };
        let short = Means::take(&mut machine, allowance, Instant(1));
        assert_eq!(short.err(), Some(OutOfMemory { pages_left: PLAIN - 1 }));
        assert_eq!(machine.taken_pages, 0);
    }
}
