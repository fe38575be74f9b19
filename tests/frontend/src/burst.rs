//! Many requests at once: a ring is filled, the backend told once, and every request must be
//! answered once, in whatever order.

use heapless::Vec;
use platter::hal::DeviceAccess;

use crate::pattern::{self, Tag};
use crate::protocol::abi::Request;
use crate::protocol::{OKAY, PAGE_SECTORS, READ, WRITE};
use crate::shelf::Buffer;
use crate::stage::Stage;
use crate::verdict::{Verdict, ensure};

/// Requests of the largest burst: a ring of 16 pages.
pub(crate) const MOST: usize = 512;

/// Ids of requests without a response.
type Ids = Vec<u64, MOST>;

impl Stage<'_> {
    /// Fills a ring with writes and then with reads of a block each, with proof of all.
    #[inline(never)]
    pub(crate) fn fill_ring(&mut self, queue: usize) -> Verdict {
        let (seed, count) = (self.seed ^ (queue as u64) << 8, self.queue(queue).ring.entries());
        let (count, block) = (u64::from(count), self.offer.block());
        let (at, sectors) = (self.area, count * block);
        let content = |sector| Tag::of(seed ^ 4, sector);
        let pages = self.lend_burst(sectors)?;
        self.each_in_burst(&pages, sectors, |page, index, offset| {
            pattern::fill(page, index, content(at + offset));
        });
        self.burst(queue, WRITE, count, &pages)?;
        self.verify(at, sectors, content)?;
        pages.iter().for_each(|buffer| pattern::blank(self.page(*buffer)));
        self.burst(queue, READ, count, &pages)?;
        let mut right = true;
        self.each_in_burst(&pages, sectors, |page, index, offset| {
            right &= pattern::holds(page, index, content(at + offset));
        });
        ensure!(right, "{count} reads at once do not bring what is on the disk");
        Ok(())
    }

    /// Sends requests for a block each, one after the other from the check's area on, all at once,
    /// and waits until each is answered.
    #[inline(never)]
    pub(crate) fn burst(&mut self, queue: usize, op: u8, count: u64, pages: &[Buffer]) -> Verdict {
        let ids = self.put_burst(queue, op, count, pages);
        self.publish(queue);
        self.answer_burst(queue, op, ids)
    }

    /// Puts such requests and does not publish them yet.
    pub(crate) fn put_burst(&mut self, queue: usize, op: u8, count: u64, pages: &[Buffer]) -> Ids {
        let (block, at) = (self.offer.block(), self.area);
        let per_page = u64::from(PAGE_SECTORS) / block;
        let mut ids = Ids::new();
        for i in 0..count {
            let id = self.fresh_id();
            let first = i % per_page * block;
            let buffer = pages[(i / per_page) as usize % pages.len()];
            let segment = self.segment(buffer, first as u8, (first + block - 1) as u8);
            self.put(queue, &Request::direct(op, id, at + i * block, &[segment]));
            let _ = ids.push(id);
        }
        ids
    }

    /// Waits until each of these requests is answered.
    pub(crate) fn answer_burst(&mut self, queue: usize, op: u8, mut ids: Ids) -> Verdict {
        while !ids.is_empty() {
            let response = self.answer(queue)?;
            let known = ids.iter().position(|id| *id == response.id);
            ensure!(known.is_some(), "a response with id {:#x}, which no request has", response.id);
            known.map(|index| ids.swap_remove(index));
            let (answered, status) = (response.op, response.status);
            ensure!(answered == op, "a response with operation {answered} to operation {op}");
            ensure!(status == OKAY, "operation {op} in a burst: status {status}");
        }
        Ok(())
    }

    /// Pages for as many sectors, whole pages of them.
    pub(crate) fn lend_burst(&mut self, sectors: u64) -> Verdict<Vec<Buffer, MOST>> {
        let mut pages = Vec::new();
        for _ in 0..sectors.div_ceil(u64::from(PAGE_SECTORS)) {
            let buffer = self.lend(DeviceAccess::Writes)?;
            let _ = pages.push(buffer);
        }
        Ok(pages)
    }

    fn each_in_burst(
        &self,
        pages: &[Buffer],
        sectors: u64,
        mut visit: impl FnMut(&platter::mem::SharedPage, u8, u64),
    ) {
        let per_page = u64::from(PAGE_SECTORS);
        for offset in 0..sectors {
            let page = self.page(pages[(offset / per_page) as usize]);
            visit(page, (offset % per_page) as u8, offset);
        }
    }

    /// Reads a page's worth of the check's area on a ring by one request into a fresh page, and
    /// compares it with its tags: for data that went another way.
    pub(crate) fn read_page(&mut self, queue: usize, at: u64, tag: impl Fn(u64) -> Tag) -> Verdict {
        let buffer = self.lend(DeviceAccess::Writes)?;
        let segments = [self.segment(buffer, 0, PAGE_SECTORS - 1)];
        let id = self.fresh_id();
        let status = self.ask_on(queue, &Request::direct(READ, id, at, &segments))?;
        ensure!(status == OKAY, "a read on ring {queue}: status {status}");
        let right = self.page_holds(buffer, |sector| tag(at + sector));
        ensure!(right, "a read on ring {queue} does not bring what is on the disk");
        Ok(())
    }
}
