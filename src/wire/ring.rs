//! The backend's end of a ring of up to 16 pages (xen/include/public/io/ring.h): free-running 32-bit
//! indexes in a header that both ends write, entries after it. Ours are kept here and only ever
//! written to the pages; the frontend's are claims, and are checked. [`super::blkif`] says what
//! entries mean, and how long they are; `index` has the arithmetic of indexes.

mod index;

use core::fmt;
use core::num::Wrapping;

use heapless::Vec;

use self::index::Claim;
use crate::limits::RING_PAGES;
use crate::mem::{self, SharedPage};
use crate::units::PAGE_SIZE;
use crate::wire::blkif::{self, Entry, Head, Protocol, Status};

// Offsets in the header.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const HEADER_BYTES: usize = 64;

/// A frontend broke the ring's rules. There is no honest way on: its device is to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontendFault {
    /// It claims more requests unanswered than the ring holds.
    Overrun {
        /// How many it claims.
        claimed: u32,
        /// How many fit.
        entries: u32,
    },
    /// It took back requests that were already taken.
    Rewound,
}

impl fmt::Display for FrontendFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overrun { claimed, entries } => {
                write!(f, "its ring claims {claimed} requests where {entries} fit")
            }
            Self::Rewound => f.write_str("its ring took back requests"),
        }
    }
}

/// The pages of a ring, in order: one at least, as many as a power of two.
pub type RingPages = Vec<SharedPage, RING_PAGES>;

/// The backend's end of a ring.
#[derive(Debug)]
pub struct BackRing {
    pages: RingPages,
    protocol: Protocol,
    entries: u32,
    /// Requests taken.
    req_cons: u32,
    /// What was last seen, and found sound, of the requests produced.
    req_prod: u32,
    /// Responses written.
    rsp_prod: u32,
    /// Responses the frontend was told of.
    published: u32,
    /// Once broken, a ring stays so whatever the frontend writes next.
    fault: Option<FrontendFault>,
}

impl BackRing {
    /// Starts where the frontend says the last response was: at zero, as a rule.
    ///
    /// # Panics
    /// When there are no pages.
    #[must_use]
    pub fn attach(pages: RingPages, protocol: Protocol) -> Self {
        let start = pages[0].read_u32(RSP_PROD);
        // `__RING_SIZE`: the largest power of two of entries that fit behind the header.
        let fit = (pages.len() * PAGE_SIZE - HEADER_BYTES) / protocol.entry_bytes();
        Self {
            pages,
            protocol,
            entries: 1 << fit.ilog2(),
            req_cons: start,
            req_prod: start,
            rsp_prod: start,
            published: start,
            fault: None,
        }
    }

    /// Gives the pages back.
    #[must_use]
    pub fn detach(self) -> RingPages {
        self.pages
    }

    /// The layout of its entries.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Takes the next request, if there is one: what its entry uses is copied out, each byte once, and not looked at
    /// again. The rest of `entry` stays as it is.
    ///
    /// # Errors
    /// The frontend's index is impossible; so it is at every later call.
    pub fn pop(&mut self, entry: &mut Entry) -> Result<bool, FrontendFault> {
        if self.req_cons == self.req_prod {
            self.look()?;
            if self.req_cons == self.req_prod {
                return Ok(false);
            }
        }
        let at = place(self.protocol, self.entries, self.req_cons);
        let (start, rest) = entry.split_at_mut(blkif::START_BYTES);
        self.read(at, start);
        let used = blkif::used_bytes(self.protocol, start);
        self.read(at + start.len(), &mut rest[..used - start.len()]);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(true)
    }

    /// Writes a response, not yet published. It overwrites an entry that was taken.
    ///
    /// # Panics
    /// When no request is unanswered.
    pub fn push(&mut self, head: Head, status: Status) {
        assert!(self.rsp_prod != self.req_cons, "a response without a request");
        let bytes = blkif::response(head, status);
        let at = place(self.protocol, self.entries, self.rsp_prod);
        self.write(at, &bytes);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Shows the frontend what was pushed since; true when it asked for an event at one of these.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.rsp_prod);
        if old == new {
            return false;
        }
        // The responses must be there before the index that offers them.
        mem::write_barrier();
        self.header().write_u32(RSP_PROD, new);
        self.published = new;
        // The index must be there before `rsp_event` is read: a frontend that has just armed it
        // looks at the index afterwards, so one of the two sees the other.
        mem::full_barrier();
        let event = self.header().read_u32(RSP_EVENT);
        index::reaches(Wrapping(old), Wrapping(new), Wrapping(event))
    }

    /// Asks for an event at the next request; true when there already is one, so that the event
    /// may never come.
    #[must_use]
    pub fn arm(&self) -> bool {
        self.header().write_u32(REQ_EVENT, self.req_cons.wrapping_add(1));
        // `req_event` must be there before the producer is read: a frontend that has just moved it
        // looks at `req_event` afterwards, so one of the two sees the other.
        mem::full_barrier();
        self.header().read_u32(REQ_PROD) != self.req_cons
    }

    /// Reads bytes of the ring, which lie in two pages at most.
    #[inline]
    fn read(&self, at: usize, to: &mut [u8]) {
        let (page, offset, length) = in_page(at, to.len());
        if length == to.len() {
            self.pages[page].read_bytes(offset, to);
        } else {
            self.read_across(page, to, length);
        }
    }

    /// Reads bytes of which so many end a page, and the others begin the next one.
    #[cold]
    fn read_across(&self, page: usize, to: &mut [u8], length: usize) {
        let (first, second) = to.split_at_mut(length);
        self.pages[page].read_bytes(PAGE_SIZE - length, first);
        self.pages[page + 1].read_bytes(0, second);
    }

    /// Writes bytes of the ring, which lie in two pages at most.
    #[inline]
    fn write(&self, at: usize, bytes: &[u8]) {
        let (page, offset, length) = in_page(at, bytes.len());
        if length == bytes.len() {
            self.pages[page].write_bytes(offset, bytes);
        } else {
            self.write_across(page, bytes, length);
        }
    }

    /// Writes bytes of which so many end a page, and the others begin the next one.
    #[cold]
    fn write_across(&self, page: usize, bytes: &[u8], length: usize) {
        let (first, second) = bytes.split_at(length);
        self.pages[page].write_bytes(PAGE_SIZE - length, first);
        self.pages[page + 1].write_bytes(0, second);
    }

    fn header(&self) -> &SharedPage {
        &self.pages[0]
    }

    /// Reads the frontend's index. Unanswered are at least the requests that were taken, at most
    /// what the ring holds.
    fn look(&mut self) -> Result<(), FrontendFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let prod = self.header().read_u32(REQ_PROD);
        // The entries are read after the index that offers them.
        mem::read_barrier();
        let [answered, taken, produced, entries] =
            [self.rsp_prod, self.req_cons, prod, self.entries].map(Wrapping);
        let fault = match index::judge(answered, taken, produced, entries) {
            Claim::Sound => {
                self.req_prod = prod;
                return Ok(());
            }
            Claim::Overrun => {
                let claimed = (produced - answered).0;
                FrontendFault::Overrun { claimed, entries: self.entries }
            }
            Claim::Rewound => FrontendFault::Rewound,
        };
        self.fault = Some(fault);
        Err(fault)
    }
}

/// Where the entry of a free-running index lies in a ring of so many entries, a power of two.
const fn place(protocol: Protocol, entries: u32, index: u32) -> usize {
    HEADER_BYTES + (index & (entries - 1)) as usize * protocol.entry_bytes()
}

/// The page in which bytes from `at` on lie, where there, and how many of them; the others begin the next page.
fn in_page(at: usize, bytes: usize) -> (usize, usize, usize) {
    let offset = at % PAGE_SIZE;
    (at / PAGE_SIZE, offset, bytes.min(PAGE_SIZE - offset))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::mem::frame::Frame;
    use crate::wire::blkif::ENTRY_BYTES;

    /// The frontend's end, as plain as can be.
    pub(crate) struct Front {
        pub(crate) frames: std::vec::Vec<Frame>,
        pub(crate) protocol: Protocol,
        entries: u32,
        pub(crate) req_prod: u32,
        pub(crate) rsp_cons: u32,
    }

    impl Front {
        /// A one-page ring of a 64-bit guest.
        pub(crate) fn at(frame: Frame, start: u32) -> Self {
            Self::new(std::vec![frame], Protocol::X86_64, start)
        }

        pub(crate) fn new(frames: std::vec::Vec<Frame>, protocol: Protocol, start: u32) -> Self {
            frames[0].write_u32(REQ_PROD, start);
            frames[0].write_u32(REQ_EVENT, start.wrapping_add(1));
            frames[0].write_u32(RSP_PROD, start);
            frames[0].write_u32(RSP_EVENT, start.wrapping_add(1));
            let entries = 32 * frames.len() as u32;
            Self { frames, protocol, entries, req_prod: start, rsp_cons: start }
        }

        pub(crate) fn back(&self) -> BackRing {
            BackRing::attach(self.frames.iter().map(|frame| frame.shared()).collect(), self.protocol)
        }

        pub(crate) fn header(&self) -> Frame {
            self.frames[0]
        }

        /// Writes a request and shows it; true when the backend asked for an event at it.
        pub(crate) fn submit(&mut self, entry: &Entry) -> bool {
            let old = self.req_prod;
            let at = place(self.protocol, self.entries, old);
            for (i, byte) in entry[..self.protocol.entry_bytes()].iter().enumerate() {
                self.frames[(at + i) / PAGE_SIZE].write((at + i) % PAGE_SIZE, &[*byte]);
            }
            self.claim(old.wrapping_add(1));
            let event = self.header().read_u32(REQ_EVENT);
            self.req_prod.wrapping_sub(event) < self.req_prod.wrapping_sub(old)
        }

        pub(crate) fn claim(&mut self, prod: u32) {
            self.req_prod = prod;
            self.header().write_u32(REQ_PROD, prod);
        }

        /// Takes the next published response: operation, id, status.
        pub(crate) fn response(&mut self) -> Option<(u8, u64, i16)> {
            if self.rsp_cons == self.header().read_u32(RSP_PROD) {
                return None;
            }
            let at = place(self.protocol, self.entries, self.rsp_cons);
            let mut bytes = [0; 12];
            for (i, byte) in bytes.iter_mut().enumerate() {
                let mut one = [0];
                self.frames[(at + i) / PAGE_SIZE].read((at + i) % PAGE_SIZE, &mut one);
                *byte = one[0];
            }
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
            let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            Some((bytes[8], id, i16::from_le_bytes([bytes[10], bytes[11]])))
        }
    }

    /// The next request, on zeroes.
    fn pop(back: &mut BackRing) -> Result<Option<Entry>, FrontendFault> {
        let mut entry = [0; ENTRY_BYTES];
        Ok(back.pop(&mut entry)?.then_some(entry))
    }

    fn pair(start: u32) -> (Front, BackRing) {
        let front = Front::at(Frame::new(), start);
        let back = front.back();
        (front, back)
    }

    fn numbered(id: u64) -> Entry {
        blkif::tests::entry(0, id, 0, &[(1, 0, 0)])
    }

    fn head(entry: &Entry) -> Head {
        Head::parse(Protocol::X86_64, entry)
    }

    #[test]
    fn rings_of_every_size_and_layout_carry_requests_across_their_pages() {
        for (order, protocol) in
            (0..5).flat_map(|order| [(order, Protocol::X86_64), (order, Protocol::X86_32)])
        {
            let frames = (0..1 << order).map(|_| Frame::new()).collect();
            let mut front = Front::new(frames, protocol, u32::MAX - 100);
            let mut back = front.back();
            let entries = 32 << order;
            for round in 0..3 {
                for id in 0..entries {
                    let segments: std::vec::Vec<_> =
                        (0..=id as u32 % 11).map(|i| (7 + i, 0, round as u8)).collect();
                    front.submit(&blkif::tests::entry_of(protocol, 1, id | round << 32, id, &segments));
                }
                for id in 0..entries {
                    let entry = pop(&mut back).unwrap().unwrap();
                    let segments: std::vec::Vec<_> =
                        (0..=id as u32 % 11).map(|i| (7 + i, 0, round as u8)).collect();
                    let sent = blkif::tests::entry_of(protocol, 1, id | round << 32, id, &segments);
                    let used = blkif::used_bytes(protocol, &sent[..blkif::START_BYTES]);
                    assert_eq!(entry[..used], sent[..used], "order {order}");
                    assert!(entry[used..].iter().all(|byte| *byte == 0), "order {order}");
                }
                assert_eq!(pop(&mut back), Ok(None));
                for id in 0..entries {
                    back.push(Head { operation: 1, id: id | round << 32 }, Status::Error);
                }
                assert!(back.publish());
                for id in 0..entries {
                    assert_eq!(front.response(), Some((1, id | round << 32, -1)), "order {order}");
                }
                front.header().write_u32(RSP_EVENT, front.rsp_cons.wrapping_add(1));
            }
            front.claim(front.rsp_cons.wrapping_add(entries as u32 + 1));
            let claimed = entries as u32 + 1;
            assert_eq!(pop(&mut back), Err(FrontendFault::Overrun { claimed, entries: entries as u32 }));
        }
    }

    #[test]
    fn bytes_anywhere_in_a_ring_are_in_one_page_or_two() {
        for bytes in [8, 12, 16, 104] {
            for at in 0..RING_PAGES * PAGE_SIZE {
                let (page, offset, length) = in_page(at, bytes);
                assert_eq!(page * PAGE_SIZE + offset, at);
                assert!(length > 0 && length <= bytes && offset + length <= PAGE_SIZE, "{bytes} at {at}");
                assert!(length == bytes || offset + length == PAGE_SIZE, "{bytes} at {at}");
            }
        }
    }

    #[test]
    fn requests_and_responses_go_round_the_wrap() {
        let (mut front, mut back) = pair(u32::MAX - 40);
        for id in 0..100 {
            front.submit(&numbered(id));
            let head = head(&pop(&mut back).unwrap().unwrap());
            assert_eq!(head.id, id);
            assert_eq!(pop(&mut back), Ok(None));
            back.push(head, Status::Okay);
            assert_eq!(front.response(), None, "not before it is published");
            let _ = back.publish();
            assert_eq!(front.response(), Some((0, id, 0)));
        }
    }

    #[test]
    fn a_full_ring_is_taken_and_no_more() {
        let (mut front, mut back) = pair(7);
        for id in 0..32 {
            front.submit(&numbered(id));
        }
        for id in 0..32 {
            assert_eq!(head(&pop(&mut back).unwrap().unwrap()).id, id);
        }
        assert_eq!(pop(&mut back), Ok(None));
    }

    #[test]
    fn any_impossible_producer_stops_the_ring_for_good() {
        for taken in 0..=32_u32 {
            for claim in (0..200_u32).chain([1 << 31, u32::MAX - 33, u32::MAX]) {
                let (mut front, mut back) = pair(u32::MAX - 5);
                let start = front.req_prod;
                front.claim(start.wrapping_add(taken));
                for _ in 0..taken {
                    assert!(pop(&mut back).unwrap().is_some());
                }
                front.claim(start.wrapping_add(claim));
                if (taken..=32).contains(&claim) {
                    assert_eq!(pop(&mut back).unwrap().is_some(), claim > taken);
                } else {
                    let fault = pop(&mut back).unwrap_err();
                    assert_eq!(fault == FrontendFault::Rewound, claim < taken);
                    front.claim(start.wrapping_add(taken));
                    assert_eq!(pop(&mut back), Err(fault), "it stays stopped");
                }
            }
        }
    }

    #[test]
    fn an_event_is_wanted_when_the_published_pass_rsp_event() {
        for asked_at in 0..40_u32 {
            let (mut front, mut back) = pair(u32::MAX - 10);
            let start = front.rsp_cons;
            front.header().write_u32(RSP_EVENT, start.wrapping_add(asked_at));
            front.claim(start.wrapping_add(20));
            for _ in 0..20 {
                let head = head(&pop(&mut back).unwrap().unwrap());
                back.push(head, Status::Okay);
            }
            assert_eq!(back.publish(), (1..=20).contains(&asked_at));
            assert!(!back.publish(), "nothing new");
        }
    }

    #[test]
    fn arming_asks_for_the_next_request_and_looks_again() {
        let (mut front, mut back) = pair(0);
        front.submit(&numbered(1));
        assert!(back.arm(), "there already is one");
        let _ = pop(&mut back);
        assert!(!back.arm());
        assert!(front.submit(&numbered(2)), "the event that was asked for");
        assert!(!front.submit(&numbered(3)), "one event is enough");
    }

    #[test]
    #[should_panic(expected = "a response without a request")]
    fn nothing_is_answered_twice() {
        let (mut front, mut back) = pair(0);
        front.submit(&numbered(1));
        let head = head(&pop(&mut back).unwrap().unwrap());
        back.push(head, Status::Okay);
        back.push(head, Status::Okay);
    }

    #[cfg(feature = "sim")]
    mod touched {
        use super::*;
        use crate::mem::hook;
        use std::boxed::Box;
        use std::cell::RefCell;
        use std::rc::Rc;

        const fn at(index: u32) -> usize {
            place(Protocol::X86_64, 32, index)
        }

        #[test]
        fn an_entry_is_read_once_whatever_is_written_meanwhile() {
            let (mut front, mut back) = pair(0);
            front.submit(&numbered(1));
            let frame = front.header();
            let reads = Rc::new(RefCell::new([0_u8; 4096]));
            let counted = Rc::clone(&reads);
            hook::set(Some(Box::new(move |_, offset| {
                counted.borrow_mut()[offset] += 1;
                if offset > at(0) {
                    frame.write(at(0), &numbered(2));
                }
            })));
            let entry = pop(&mut back).unwrap().unwrap();
            hook::set(None);
            assert_eq!(head(&entry).operation, 0);
            let reads = reads.borrow();
            assert_eq!(reads[REQ_PROD], 1);
            let used = at(0) + blkif::used_bytes(Protocol::X86_64, &numbered(1));
            assert!((at(0)..used).step_by(8).all(|offset| reads[offset] == 1));
            assert!((used..at(1)).all(|offset| reads[offset] == 0));
        }

        #[test]
        fn a_request_that_comes_while_arming_is_seen_or_announced() {
            for at in 0..2_u32 {
                let (mut front, mut back) = pair(0);
                front.submit(&numbered(1));
                let _ = pop(&mut back);
                let announced = Rc::new(RefCell::new(None));
                let answer = Rc::clone(&announced);
                let mut left = at;
                hook::set(Some(Box::new(move |_, _| {
                    if left == 0 && answer.borrow().is_none() {
                        *answer.borrow_mut() = Some(front.submit(&numbered(2)));
                    }
                    left = left.saturating_sub(1);
                })));
                let seen = back.arm();
                hook::set(None);
                let announced = announced.borrow().expect("it came");
                assert!(seen || announced, "lost when it comes at access {at}");
            }
        }
    }
}
