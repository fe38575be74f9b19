//! Pages of a guest that stay mapped between requests (blkif.h, `feature-persistent`): by grant
//! reference, where devices find the page. A page is mapped the first time that a request names it,
//! and given back when it was not used for a while, when others need its place, or at the end.
//!
//! No calls to the hypervisor here: what is given back is handed to the caller to be unmapped.

use core::array;
use core::time::Duration;

use heapless::Vec;

use crate::hal::{GrantMapping, Memory};
use crate::limits::KEPT;
use crate::mem::private::PageBox;
use crate::units::{BusAddr, GrantHandle, GrantRef, Instant, PAGE_SIZE};

/// A page that was not used for so long is given back.
const IDLE: Duration = Duration::from_secs(60);

/// Pages that are given back at once when all places are taken: it is done together with other
/// pages, and not again for each new page.
const EVICTED: usize = KEPT / 16;

const PER_PAGE: usize = PAGE_SIZE / size_of::<Entry>();
const ENTRY_PAGES: usize = KEPT.div_ceil(PER_PAGE);
const CHAINS: usize = PAGE_SIZE / size_of::<u16>();

/// Pages that it takes.
pub(super) const PAGES: usize = ENTRY_PAGES + 1;

/// Ends a chain or a list.
const NONE: u16 = u16::MAX;

const _: () = assert!(KEPT < NONE as usize && CHAINS.is_power_of_two());

/// A place for a page.
#[derive(Debug)]
struct Entry {
    gref: GrantRef,
    handle: GrantHandle,
    bus: BusAddr,
    used: Instant,
    /// The next of the same chain, or the next free place.
    next: u16,
    /// Among those not in use, the one that was used next after this one, and the one before.
    newer: u16,
    older: u16,
    /// Uses by requests in flight.
    users: u16,
}

/// The table.
#[derive(Debug)]
pub(super) struct Keep {
    entries: Vec<PageBox<[Entry; PER_PAGE]>, ENTRY_PAGES>,
    /// By hash, the first place of a chain.
    chains: PageBox<[u16; CHAINS]>,
    factor: u32,
    free: u16,
    /// Of those not in use, in the order in which their last uses ended.
    newest: u16,
    oldest: u16,
    len: usize,
    /// A page has found no place since room was made.
    is_short: bool,
    /// When idle ones are looked for next.
    look_at: Instant,
}

impl Keep {
    /// An empty table; nothing when memory is used up. Guests choose grant references, and do not
    /// know `seed`: so they cannot choose them to meet in one chain.
    pub(super) fn take(hal: &mut impl Memory, seed: u64) -> Option<Self> {
        if hal.free_pages() < PAGES {
            return None;
        }
        let entries = (0..ENTRY_PAGES).map_while(|page| {
            let entry = |i| Entry {
                gref: GrantRef(0),
                handle: GrantHandle(0),
                bus: BusAddr(0),
                used: Instant(0),
                next: if page * PER_PAGE + i + 1 < KEPT { (page * PER_PAGE + i + 1) as u16 } else { NONE },
                newer: NONE,
                older: NONE,
                users: 0,
            };
            hal.take_private().map(|page| PageBox::new(page, array::from_fn(entry)))
        });
        let entries = entries.collect();
        let chains = PageBox::new(hal.take_private()?, [NONE; CHAINS]);
        let factor = (seed ^ seed >> 32) as u32 | 1;
        Some(Self {
            entries,
            chains,
            factor,
            free: 0,
            newest: NONE,
            oldest: NONE,
            len: 0,
            is_short: false,
            look_at: Instant(0),
        })
    }

    /// Gives the memory back. Nothing is kept any more.
    pub(super) fn give_back(self, hal: &mut impl Memory) {
        debug_assert_eq!(self.len, 0, "kept pages are given back first");
        self.entries.into_iter().for_each(|page| hal.return_private(page.into_page()));
        hal.return_private(self.chains.into_page());
    }

    /// How many pages are kept.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Finds a page for one use by a request: its place, and where devices find it.
    pub(super) fn find(&mut self, gref: GrantRef, now: Instant) -> Option<(u16, BusAddr)> {
        let place = self.place_of(gref)?;
        if self.entry(place).users == 0 {
            self.unlist(place);
        }
        let entry = self.entry_mut(place);
        entry.users += 1;
        entry.used = now;
        Some((place, entry.bus))
    }

    /// Keeps a page that was just mapped for one use by a request: its place. Nothing when there is
    /// no place, or the page is kept already.
    pub(super) fn insert(&mut self, gref: GrantRef, mapping: GrantMapping, now: Instant) -> Option<u16> {
        if self.free == NONE {
            self.is_short = true;
            return None;
        }
        if self.place_of(gref).is_some() {
            return None;
        }
        let (place, chain) = (self.free, self.chain(gref));
        let first = core::mem::replace(&mut self.chains[chain], place);
        let entry = self.entry_mut(place);
        let free = core::mem::replace(&mut entry.next, first);
        (entry.gref, entry.handle, entry.bus) = (gref, mapping.handle, mapping.bus);
        (entry.used, entry.users) = (now, 1);
        self.free = free;
        if self.len == 0 {
            self.look_at = now + IDLE;
        }
        self.len += 1;
        Some(place)
    }

    /// One use is over.
    pub(super) fn release(&mut self, place: u16) {
        let entry = self.entry_mut(place);
        entry.users = entry.users.checked_sub(1).expect("a use is ended once");
        if entry.users == 0 {
            self.list_newest(place);
        }
    }

    /// Makes room once a page has found no place: adds pages to a batch to be unmapped, those that were
    /// not used for the longest time and are not in use, while the batch has room. A table that is full and enough
    /// loses none.
    pub(super) fn make_room<const N: usize>(&mut self, unmaps: &mut Vec<GrantMapping, N>) {
        if !core::mem::take(&mut self.is_short) {
            return;
        }
        for _ in 0..EVICTED {
            let Some(mapping) = (if unmaps.is_full() { None } else { self.take_oldest() }) else { break };
            let _ = unmaps.push(mapping);
        }
    }

    /// Takes out a page that was idle for long, to be unmapped.
    pub(super) fn take_idle(&mut self, now: Instant) -> Option<GrantMapping> {
        if now < self.look_at {
            return None;
        }
        let used = if self.oldest == NONE { now } else { self.entry(self.oldest).used };
        self.look_at = used + IDLE;
        if now < self.look_at { None } else { self.take_oldest() }
    }

    /// When there may be such a page: later than any time when [`Keep::take_idle`] found none.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        (self.len > 0).then_some(self.look_at)
    }

    /// Takes out the page that was not used for the longest time, to be unmapped, if there is one that
    /// is not in use.
    pub(super) fn take_oldest(&mut self) -> Option<GrantMapping> {
        (self.oldest != NONE).then(|| self.remove(self.oldest))
    }

    /// Takes out a page that is not in use.
    fn remove(&mut self, place: u16) -> GrantMapping {
        self.unlist(place);
        let Entry { gref, handle, bus, next, .. } = *self.entry(place);
        let chain = self.chain(gref);
        if self.chains[chain] == place {
            self.chains[chain] = next;
        } else {
            let before = self.chained(self.chains[chain]).find(|before| self.entry(*before).next == place);
            self.entry_mut(before.expect("each place is in its chain")).next = next;
        }
        self.entry_mut(place).next = core::mem::replace(&mut self.free, place);
        self.len -= 1;
        GrantMapping { handle, bus }
    }

    fn place_of(&self, gref: GrantRef) -> Option<u16> {
        self.chained(self.chains[self.chain(gref)]).find(|place| self.entry(*place).gref == gref)
    }

    /// The places of a chain.
    fn chained(&self, first: u16) -> impl Iterator<Item = u16> {
        let some = |place: u16| (place != NONE).then_some(place);
        core::iter::successors(some(first), move |place| some(self.entry(*place).next)).take(KEPT)
    }

    fn chain(&self, gref: GrantRef) -> usize {
        (gref.0.wrapping_mul(self.factor) >> (u32::BITS - CHAINS.ilog2())) as usize
    }

    fn unlist(&mut self, place: u16) {
        let Entry { newer, older, .. } = *self.entry(place);
        match newer {
            NONE => self.newest = older,
            newer => self.entry_mut(newer).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entry_mut(older).newer = newer,
        }
    }

    fn list_newest(&mut self, place: u16) {
        let older = core::mem::replace(&mut self.newest, place);
        let entry = self.entry_mut(place);
        (entry.older, entry.newer) = (older, NONE);
        match older {
            NONE => self.oldest = place,
            older => self.entry_mut(older).newer = place,
        }
    }

    fn entry(&self, place: u16) -> &Entry {
        &self.entries[usize::from(place) / PER_PAGE][usize::from(place) % PER_PAGE]
    }

    fn entry_mut(&mut self, place: u16) -> &mut Entry {
        &mut self.entries[usize::from(place) / PER_PAGE][usize::from(place) % PER_PAGE]
    }
}

#[cfg(test)]
mod tests;
