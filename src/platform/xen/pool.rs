//! The pool of our own pages: what memory there is beyond the image and the builder's structures.
//! Pages that came back hold the list of themselves, so any number of them can.

use super::paging::{image_start, shared_page};
use crate::units::PAGE_SIZE;

/// Free pages, by their number in our memory.
#[derive(Debug)]
pub(super) struct Pool {
    /// The first page never handed out, and the end of those.
    fresh: usize,
    end: usize,
    /// The last page that came back. Each of them holds the number of the one before; 0, which is
    /// a page of the image, for none.
    returned: usize,
    returned_count: usize,
}

impl Pool {
    /// A pool of the pages from `fresh` on to `end`.
    pub(super) const fn new(fresh: usize, end: usize) -> Self {
        Self { fresh, end, returned: 0, returned_count: 0 }
    }

    /// Pages that can be had.
    pub(super) const fn len(&self) -> usize {
        self.end - self.fresh + self.returned_count
    }

    /// The page after the last.
    pub(super) const fn end(&self) -> usize {
        self.end
    }

    /// Adds pages at the end.
    pub(super) const fn extend(&mut self, pages: usize) {
        self.end += pages;
    }

    /// Takes a page: its address.
    pub(super) fn take(&mut self) -> Option<usize> {
        let page = if self.returned != 0 {
            let page = self.returned;
            let before = shared_page(address_of(page)).read_u64(0) as usize;
            assert!(before < self.end, "a free page was written to");
            self.returned = before;
            self.returned_count -= 1;
            page
        } else if self.fresh < self.end {
            self.fresh += 1;
            self.fresh - 1
        } else {
            return None;
        };
        Some(address_of(page))
    }

    /// Takes the page at `address` back.
    pub(super) fn give_back(&mut self, address: usize) {
        shared_page(address).write_u64(0, self.returned as u64);
        self.returned = (address - image_start()) / PAGE_SIZE;
        self.returned_count += 1;
    }
}

fn address_of(page: usize) -> usize {
    image_start() + page * PAGE_SIZE
}
