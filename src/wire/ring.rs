//! The backend's end of a one-page ring (xen/include/public/io/ring.h): free-running 32-bit indexes
//! in a header that both ends write, entries after it. Ours are kept here and only ever written to
//! the page; the frontend's are claims, and are checked. [`super::blkif`] says what entries mean.

use core::fmt;

use crate::limits::RING_ENTRIES;
use crate::mem::{self, SharedPage};
use crate::wire::blkif::{self, ENTRY_BYTES, Entry, Head, RESPONSE_BYTES, Status};

// Offsets in the header.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const HEADER_BYTES: usize = 64;

const ENTRIES: u32 = RING_ENTRIES as u32;

const _: () = assert!(HEADER_BYTES + RING_ENTRIES * ENTRY_BYTES <= crate::units::PAGE_SIZE);

/// A frontend broke the ring's rules. There is no honest way on: its device is to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontendFault {
    /// It claims so many requests unanswered, more than the ring holds.
    Overrun(u32),
    /// It took back requests that were already taken.
    Rewound,
}

impl fmt::Display for FrontendFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overrun(claimed) => {
                write!(f, "its ring claims {claimed} requests where {RING_ENTRIES} fit")
            }
            Self::Rewound => f.write_str("its ring took back requests"),
        }
    }
}

/// The backend's end of a ring.
#[derive(Debug)]
pub struct BackRing {
    page: SharedPage,
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
    #[must_use]
    pub fn attach(page: SharedPage) -> Self {
        let start = page.read_u32(RSP_PROD);
        Self { page, req_cons: start, req_prod: start, rsp_prod: start, published: start, fault: None }
    }

    /// Gives the page back.
    #[must_use]
    pub fn detach(self) -> SharedPage {
        self.page
    }

    /// Takes the next request: its entry is copied out, and not looked at again.
    ///
    /// # Errors
    /// The frontend's index is impossible; so it is at every later call.
    pub fn pop(&mut self) -> Result<Option<Entry>, FrontendFault> {
        if self.req_cons == self.req_prod {
            self.look()?;
            if self.req_cons == self.req_prod {
                return Ok(None);
            }
        }
        let mut entry = [0; ENTRY_BYTES];
        self.page.read_bytes(place(self.req_cons), &mut entry);
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Writes a response, not yet published. It overwrites an entry that was taken.
    ///
    /// # Panics
    /// When no request is unanswered.
    pub fn push(&mut self, head: Head, status: Status) {
        assert!(self.rsp_prod != self.req_cons, "a response without a request");
        let bytes: [u8; RESPONSE_BYTES] = blkif::response(head, status);
        self.page.write_bytes(place(self.rsp_prod), &bytes);
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
        self.page.write_u32(RSP_PROD, new);
        self.published = new;
        // The index must be there before `rsp_event` is read: a frontend that has just armed it
        // looks at the index afterwards, so one of the two sees the other.
        mem::full_barrier();
        let event = self.page.read_u32(RSP_EVENT);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    /// Asks for an event at the next request; true when there already is one, so that the event
    /// may never come.
    #[must_use]
    pub fn arm(&self) -> bool {
        self.page.write_u32(REQ_EVENT, self.req_cons.wrapping_add(1));
        // `req_event` must be there before the producer is read: a frontend that has just moved it
        // looks at `req_event` afterwards, so one of the two sees the other.
        mem::full_barrier();
        self.page.read_u32(REQ_PROD) != self.req_cons
    }

    /// Reads the frontend's index. Unanswered are at least the requests that were taken, at most
    /// what the ring holds.
    fn look(&mut self) -> Result<(), FrontendFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let prod = self.page.read_u32(REQ_PROD);
        // The entries are read after the index that offers them.
        mem::read_barrier();
        let claimed = prod.wrapping_sub(self.rsp_prod);
        let taken = self.req_cons.wrapping_sub(self.rsp_prod);
        let fault = if claimed > ENTRIES {
            FrontendFault::Overrun(claimed)
        } else if claimed < taken {
            FrontendFault::Rewound
        } else {
            self.req_prod = prod;
            return Ok(());
        };
        self.fault = Some(fault);
        Err(fault)
    }
}

/// Where the entry of a free-running index lies in the page.
const fn place(index: u32) -> usize {
    HEADER_BYTES + (index % ENTRIES) as usize * ENTRY_BYTES
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::mem::frame::Frame;

    /// The frontend's end, as plain as can be.
    pub(crate) struct Front {
        pub(crate) frame: Frame,
        pub(crate) req_prod: u32,
        pub(crate) rsp_cons: u32,
    }

    impl Front {
        pub(crate) fn at(frame: Frame, start: u32) -> Self {
            frame.write_u32(REQ_PROD, start);
            frame.write_u32(REQ_EVENT, start.wrapping_add(1));
            frame.write_u32(RSP_PROD, start);
            frame.write_u32(RSP_EVENT, start.wrapping_add(1));
            Self { frame, req_prod: start, rsp_cons: start }
        }

        /// Writes a request and shows it; true when the backend asked for an event at it.
        pub(crate) fn submit(&mut self, entry: &Entry) -> bool {
            let old = self.req_prod;
            self.frame.write(place(old), entry);
            self.claim(old.wrapping_add(1));
            self.req_prod.wrapping_sub(self.frame.read_u32(REQ_EVENT)) < self.req_prod.wrapping_sub(old)
        }

        pub(crate) fn claim(&mut self, prod: u32) {
            self.req_prod = prod;
            self.frame.write_u32(REQ_PROD, prod);
        }

        /// Takes the next published response: operation, id, status.
        pub(crate) fn response(&mut self) -> Option<(u8, u64, i16)> {
            if self.rsp_cons == self.frame.read_u32(RSP_PROD) {
                return None;
            }
            let mut bytes = [0; RESPONSE_BYTES];
            self.frame.read(place(self.rsp_cons), &mut bytes);
            self.rsp_cons = self.rsp_cons.wrapping_add(1);
            let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            Some((bytes[8], id, i16::from_le_bytes([bytes[10], bytes[11]])))
        }
    }

    fn pair(start: u32) -> (Front, BackRing) {
        let frame = Frame::new();
        let front = Front::at(frame, start);
        (front, BackRing::attach(frame.shared()))
    }

    fn numbered(id: u64) -> Entry {
        blkif::tests::entry(0, id, 0, &[(1, 0, 0)])
    }

    #[test]
    fn requests_and_responses_go_round_the_wrap() {
        let (mut front, mut back) = pair(u32::MAX - 40);
        for id in 0..100 {
            front.submit(&numbered(id));
            let head = Head::parse(&back.pop().unwrap().unwrap());
            assert_eq!(head.id, id);
            assert_eq!(back.pop(), Ok(None));
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
            assert_eq!(Head::parse(&back.pop().unwrap().unwrap()).id, id);
        }
        assert_eq!(back.pop(), Ok(None));
    }

    #[test]
    fn any_impossible_producer_stops_the_ring_for_good() {
        for taken in 0..=32_u32 {
            for claim in (0..200_u32).chain([1 << 31, u32::MAX - 33, u32::MAX]) {
                let (mut front, mut back) = pair(u32::MAX - 5);
                let start = front.req_prod;
                front.claim(start.wrapping_add(taken));
                for _ in 0..taken {
                    assert!(back.pop().unwrap().is_some());
                }
                front.claim(start.wrapping_add(claim));
                if (taken..=32).contains(&claim) {
                    assert_eq!(back.pop().unwrap().is_some(), claim > taken);
                } else {
                    let fault = back.pop().unwrap_err();
                    assert_eq!(fault == FrontendFault::Rewound, claim < taken);
                    front.claim(start.wrapping_add(taken));
                    assert_eq!(back.pop(), Err(fault), "it stays stopped");
                }
            }
        }
    }

    #[test]
    fn an_event_is_wanted_when_the_published_pass_rsp_event() {
        for asked_at in 0..40_u32 {
            let (mut front, mut back) = pair(u32::MAX - 10);
            let start = front.rsp_cons;
            front.frame.write_u32(RSP_EVENT, start.wrapping_add(asked_at));
            front.claim(start.wrapping_add(20));
            for _ in 0..20 {
                let head = Head::parse(&back.pop().unwrap().unwrap());
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
        let _ = back.pop();
        assert!(!back.arm());
        assert!(front.submit(&numbered(2)), "the event that was asked for");
        assert!(!front.submit(&numbered(3)), "one event is enough");
    }

    #[test]
    #[should_panic(expected = "a response without a request")]
    fn nothing_is_answered_twice() {
        let (mut front, mut back) = pair(0);
        front.submit(&numbered(1));
        let head = Head::parse(&back.pop().unwrap().unwrap());
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

        #[test]
        fn an_entry_is_read_once_whatever_is_written_meanwhile() {
            let (mut front, mut back) = pair(0);
            front.submit(&numbered(1));
            let frame = front.frame;
            let reads = Rc::new(RefCell::new([0_u8; 4096]));
            let counted = Rc::clone(&reads);
            hook::set(Some(Box::new(move |_, offset| {
                counted.borrow_mut()[offset] += 1;
                if offset > place(0) {
                    frame.write(place(0), &numbered(2));
                }
            })));
            let entry = back.pop().unwrap().unwrap();
            hook::set(None);
            assert_eq!(Head::parse(&entry).operation, 0);
            let reads = reads.borrow();
            assert_eq!(reads[REQ_PROD], 1);
            assert!((place(0)..place(1)).step_by(8).all(|offset| reads[offset] == 1));
        }

        #[test]
        fn a_request_that_comes_while_arming_is_seen_or_announced() {
            for at in 0..2_u32 {
                let (mut front, mut back) = pair(0);
                front.submit(&numbered(1));
                let _ = back.pop();
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
