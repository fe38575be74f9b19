//! The frontend's end of a ring (xen/include/public/io/ring.h): requests go in, responses come out
//! of the same entries. Private indexes are kept here; of the shared page only the backend's own
//! `rsp_prod` and `req_event` are read.

use heapless::Vec;
use platter::hal::DmaPage;
use platter::mem::{full_barrier, read_barrier, write_barrier};
use platter::units::PAGE_SIZE;

use super::abi::{Abi, Response};

/// Pages of the largest ring: order 4.
pub(crate) const MOST_PAGES: usize = 16;
/// Offset of the first entry in the first page.
const ENTRIES: usize = 64;
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Where all of the header's indexes are.
pub(crate) const INDEXES: [usize; 4] = [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT];

/// More responses than there were requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overrun;

/// A ring that the backend shares.
pub(crate) struct Ring {
    pages: Vec<DmaPage, MOST_PAGES>,
    abi: Abi,
    entries: u32,
    /// The next request's index, and up to which they are published.
    req_prod: u32,
    published: u32,
    /// The next response's index.
    rsp_cons: u32,
}

impl Ring {
    /// A ring in zeroed pages whose indexes start at `start`, which is 0 (`SHARED_RING_INIT`) unless
    /// the backend can carry on from another.
    pub(crate) fn new(pages: Vec<DmaPage, MOST_PAGES>, abi: Abi, start: u32) -> Self {
        let room = (pages.len() * PAGE_SIZE - ENTRIES) / abi.stride();
        let first = &pages[0].page;
        first.write_u32(REQ_PROD, start);
        first.write_u32(REQ_EVENT, start.wrapping_add(1));
        first.write_u32(RSP_PROD, start);
        first.write_u32(RSP_EVENT, start.wrapping_add(1));
        // `__RING_SIZE`: the largest power of two that fits.
        let entries = 1 << room.ilog2();
        Self { pages, abi, entries, req_prod: start, published: start, rsp_cons: start }
    }

    /// Requests that fit at once.
    pub(crate) const fn entries(&self) -> u32 {
        self.entries
    }

    /// Which layout its entries have.
    pub(crate) const fn abi(&self) -> Abi {
        self.abi
    }

    /// Requests without a response.
    pub(crate) const fn in_flight(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Its pages, once the backend has let go of them.
    pub(crate) fn into_pages(self) -> Vec<DmaPage, MOST_PAGES> {
        self.pages
    }

    /// Writes a request's entry, which the backend does not see before [`Ring::publish`].
    pub(crate) fn put(&mut self, entry: &[u8; Abi::LARGEST]) {
        assert!(self.in_flight() < self.entries, "a check sends more than the ring takes");
        self.shove(entry);
    }

    /// Writes the next request's entry over whatever is there.
    pub(crate) fn shove(&mut self, entry: &[u8; Abi::LARGEST]) {
        self.scrawl(self.req_prod, entry);
        self.leave(1);
    }

    /// Writes an entry that nobody may write now: it is published, or not the next one.
    pub(crate) fn scrawl(&self, index: u32, entry: &[u8; Abi::LARGEST]) {
        let at = self.place(index);
        for (i, byte) in entry[..self.abi.stride()].iter().enumerate() {
            self.pages[(at + i) / PAGE_SIZE].page.write_u8((at + i) % PAGE_SIZE, *byte);
        }
    }

    /// Counts the next entries as requests, whatever they hold.
    pub(crate) const fn leave(&mut self, count: u32) {
        self.req_prod = self.req_prod.wrapping_add(count);
    }

    /// How many requests the backend has room for, whether anybody has read its responses or not.
    pub(crate) fn room(&self) -> u32 {
        let answered = self.pages[0].page.read_u32(RSP_PROD);
        self.entries.saturating_sub(self.req_prod.wrapping_sub(answered))
    }

    /// Counts every response as taken, unread.
    pub(crate) fn skip(&mut self) {
        self.rsp_cons = self.pages[0].page.read_u32(RSP_PROD);
    }

    /// Writes one of [`INDEXES`].
    pub(crate) fn set_index(&self, index: usize, value: u32) {
        self.pages[0].page.write_u32(index, value);
    }

    /// Shows the backend what was put, and says whether it wants an event
    /// (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    pub(crate) fn publish(&mut self) -> bool {
        let first = &self.pages[0].page;
        let (old, new) = (self.published, self.req_prod);
        // Entries are written before the index that publishes them.
        write_barrier();
        first.write_u32(REQ_PROD, new);
        // The backend sees the requests before we look whether it sleeps.
        full_barrier();
        self.published = new;
        let event = first.read_u32(REQ_EVENT);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    /// Claims that so many requests follow what is published, though nothing is there.
    pub(crate) fn claim(&self, ahead: u32) {
        self.set_index(REQ_PROD, self.published.wrapping_add(ahead));
    }

    /// Takes the next response, if there is one.
    ///
    /// # Errors
    /// The backend claims more responses than there were requests.
    pub(crate) fn take(&mut self) -> Result<Option<Response>, Overrun> {
        let claimed = self.pages[0].page.read_u32(RSP_PROD).wrapping_sub(self.rsp_cons);
        // The entry is read after the index that published it.
        read_barrier();
        if claimed > self.published.wrapping_sub(self.rsp_cons) {
            return Err(Overrun);
        }
        if claimed == 0 {
            return Ok(None);
        }
        let (at, mut entry) = (self.place(self.rsp_cons), [0; Response::SIZE]);
        for (i, byte) in entry.iter_mut().enumerate() {
            *byte = self.pages[(at + i) / PAGE_SIZE].page.read_u8((at + i) % PAGE_SIZE);
        }
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(Response::decode(&entry)))
    }

    /// Asks for an event at the `count`th response from here on (`RING_FINAL_CHECK_FOR_RESPONSES`,
    /// which asks for the first). Whether it is there has to be looked at afterwards.
    pub(crate) fn arm(&mut self, count: u32) {
        self.pages[0].page.write_u32(RSP_EVENT, self.rsp_cons.wrapping_add(count));
        // The backend sees what we ask for before we look at its index again.
        full_barrier();
    }

    fn place(&self, index: u32) -> usize {
        ENTRIES + (index & (self.entries - 1)) as usize * self.abi.stride()
    }
}
