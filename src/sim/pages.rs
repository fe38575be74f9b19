//! Pages that a guest grants to the driver domain: each for one request, or kept granted for as long
//! as a frontend is connected (`feature-persistent`).

use super::machine::{DRIVER, Machine, Violation};
use crate::units::{DomId, GrantRef, Mfn};

/// What a page holds outside the bytes of a request: a read that changes one of them is found.
pub const CANARY: u8 = 0xc5;

/// A page of a guest, and its grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// The page.
    pub mfn: Mfn,
    /// The grant to the driver domain.
    pub gref: GrantRef,
}

impl Page {
    /// A new page of the guest's, zeroed.
    pub fn grant(machine: &mut Machine, guest: DomId, readonly: bool) -> Self {
        let mfn = machine.memory.take();
        Self { mfn, gref: machine.grants.offer(guest, DRIVER, mfn, readonly) }
    }

    /// Takes it back. When it is mapped, that is a violation, and it stays granted.
    pub fn revoke(self, machine: &mut Machine, guest: DomId) {
        if machine.grants.revoke(guest, self.gref) {
            machine.memory.give_back(self.mfn);
        } else {
            machine.violated(Violation::StillMapped(guest, self.gref));
        }
    }
}

/// The pages of a connected frontend for its requests.
#[derive(Debug)]
pub struct Pool {
    guest: DomId,
    /// They are granted once, writable, and kept.
    persistent: bool,
    free: Vec<Page>,
    granted: usize,
}

impl Pool {
    /// No pages yet.
    #[must_use]
    pub fn new(guest: DomId, persistent: bool) -> Self {
        Self { guest, persistent, free: Vec::new(), granted: 0 }
    }

    /// Whose pages they are.
    #[must_use]
    pub fn guest(&self) -> DomId {
        self.guest
    }

    /// A page full of canaries for one request, which the backend need only read if `readonly`. One
    /// that was used before, mostly, where they are kept.
    pub fn take(&mut self, machine: &mut Machine, readonly: bool) -> Page {
        let grows = self.free.is_empty() || machine.rng.one_in(8);
        let page = if grows {
            self.granted += 1;
            Page::grant(machine, self.guest, readonly && !self.persistent)
        } else {
            self.free.swap_remove(machine.rng.index(self.free.len()))
        };
        machine.memory.frame(page.mfn).fill(CANARY);
        page
    }

    /// A request was answered: its page is kept, or the backend has let go of it.
    pub fn give_back(&mut self, machine: &mut Machine, page: Page) {
        if self.persistent {
            self.free.push(page);
        } else {
            self.granted -= 1;
            page.revoke(machine, self.guest);
        }
    }

    /// How many pages are granted, in use or not.
    #[must_use]
    pub fn granted(&self) -> usize {
        self.granted
    }

    /// Hands out what is kept, for the backend to let go of; pages in use are their requests'.
    pub fn drain(&mut self) -> impl Iterator<Item = Page> {
        self.granted = 0;
        self.free.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(5);

    fn used(machine: &mut Machine, pool: &mut Pool) -> Page {
        let page = pool.take(machine, true);
        pool.give_back(machine, page);
        page
    }

    #[test]
    fn persistent_pages_are_used_again_and_stay_granted_writable() {
        let mut machine = Machine::new(1, 8);
        let mut pool = Pool::new(GUEST, true);
        let page = used(&mut machine, &mut pool);
        assert!(machine.grants.map(&mut machine.memory, GUEST, page.gref, true).is_ok());
        let others: Vec<Page> = (0..20).map(|_| used(&mut machine, &mut pool)).collect();
        assert!(others.contains(&page), "though it is mapped");
        assert_eq!(machine.violations(), []);
        let granted = pool.granted();
        assert!((2..20).contains(&granted), "{granted}");
        assert_eq!(pool.drain().count(), granted);
    }

    #[test]
    fn other_pages_go_with_their_request() {
        let mut machine = Machine::new(1, 8);
        let mut pool = Pool::new(GUEST, false);
        used(&mut machine, &mut pool);
        assert_eq!((pool.granted(), machine.violations().len()), (0, 0));
        let page = pool.take(&mut machine, false);
        machine.grants.map(&mut machine.memory, GUEST, page.gref, true).unwrap();
        pool.give_back(&mut machine, page);
        assert_eq!(machine.violations()[0].1, Violation::StillMapped(GUEST, page.gref));
    }
}
