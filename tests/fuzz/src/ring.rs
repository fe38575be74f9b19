//! A ring whose frontend changes its indexes and entries at any moment, also between two accesses of
//! the backend: what is taken was claimed, once, and never more than fits; each entry is copied out
//! once; events are sent when they are asked for; nothing but responses and our own indexes is
//! written. The rules of ring.h are said here once more, by a model.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use platter::mem::frame::Frame;
use platter::mem::hook;
use platter::sim::abi::{Abi, Response};
use platter::units::PAGE_SIZE;
use platter::wire::blkif::{self, Head, Protocol, Status};
use platter::wire::ring::{BackRing, FrontendFault};

use crate::frames;
use crate::input::Input;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// Where the header's padding begins, and the entries.
const PADDING: usize = 16;
const ENTRIES: usize = 64;

/// Things done in one run.
const ACTS: usize = 256;

/// A layout and a size, where the indexes start, then what both ends do.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bench = Bench::new(input.byte(), input.word());
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0..3 => bench.pop(),
            3 => bench.push(Head { operation: input.byte(), id: input.long() }),
            4 => bench.publish(),
            5 => bench.arm(),
            6 => {
                let change = bench.change(&mut input);
                bench.peer.borrow_mut().apply(change);
            }
            _ => {
                let after = input.byte();
                let change = bench.change(&mut input);
                bench.peer.borrow_mut().pending = Some((after, change));
            }
        }
    }
    bench.end();
}

/// Something that the frontend writes.
#[derive(Clone, Copy)]
enum Change {
    /// One of the four indexes.
    Index(usize, u32),
    /// A byte of the entries.
    Byte(usize, u8),
}

/// The frontend's end: it acts inside the accesses of the other, and keeps record of them.
struct Peer {
    frames: Vec<Frame>,
    /// A change that comes after so many more accesses.
    pending: Option<(u8, Change)>,
    /// What was accessed since this was last cleared: bytes from the ring's start.
    accesses: Vec<usize>,
    /// What the other saw last of the indexes that are not its own.
    seen_prod: u32,
    seen_event: u32,
    /// Something was changed since this was last cleared.
    changed: bool,
}

impl Peer {
    fn apply(&mut self, change: Change) {
        self.changed = true;
        match change {
            Change::Index(at, value) => self.frames[0].write_u32(at, value),
            Change::Byte(at, value) => self.frames[at / PAGE_SIZE].write(at % PAGE_SIZE, &[value]),
        }
    }

    fn accessed(&mut self, base: NonNull<u8>, offset: usize) {
        match &mut self.pending {
            Some((0, change)) => {
                let change = *change;
                self.pending = None;
                self.apply(change);
            }
            Some((after, _)) => *after -= 1,
            None => {}
        }
        let page = self.frames.iter().position(|frame| frame.base() == base).expect("a page of the ring");
        self.accesses.push(page * PAGE_SIZE + offset);
        match (page, offset) {
            (0, REQ_PROD) => self.seen_prod = self.frames[0].read_u32(REQ_PROD),
            (0, RSP_EVENT) => self.seen_event = self.frames[0].read_u32(RSP_EVENT),
            _ => {}
        }
    }
}

/// The backend's end under test, and what it must do.
struct Bench {
    peer: Rc<RefCell<Peer>>,
    back: BackRing,
    abi: Abi,
    entries: u32,
    /// Free-running: what was claimed and found sound, taken, answered, and shown.
    claimed: u32,
    taken: u32,
    answered: u32,
    shown: u32,
    fault: Option<FrontendFault>,
}

impl Bench {
    fn new(shape: u8, start: u32) -> Self {
        let (protocol, abi) = match shape & 1 {
            0 => (Protocol::X86_64, Abi::X64),
            _ => (Protocol::X86_32, Abi::X32),
        };
        // Large rings are the exception, which saves clearing them.
        let order = [0, 0, 1, 0, 0, 2, 0, 4][usize::from(shape >> 1) % 8];
        let frames = frames::cleared(1 << order);
        for index in [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT] {
            frames[0].write_u32(index, start);
        }
        let back = BackRing::attach(frames.iter().map(|frame| frame.shared()).collect(), protocol);
        let peer = Rc::new(RefCell::new(Peer {
            frames,
            pending: None,
            accesses: Vec::new(),
            seen_prod: start,
            seen_event: start,
            changed: false,
        }));
        let hooked = Rc::clone(&peer);
        hook::set(Some(Box::new(move |base, offset| hooked.borrow_mut().accessed(base, offset))));
        let entries = 32 << order;
        Self {
            peer,
            back,
            abi,
            entries,
            claimed: start,
            taken: start,
            answered: start,
            shown: start,
            fault: None,
        }
    }

    /// Draws a change: mostly one that a frontend could make.
    fn change(&self, input: &mut Input<'_>) -> Change {
        match input.byte() % 8 {
            0..3 => Change::Index(REQ_PROD, self.taken.wrapping_add(input.byte().into())),
            3 => Change::Index(RSP_EVENT, self.answered.wrapping_add(input.byte().into())),
            4 => Change::Index(*input.choose(&[REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT]), input.word()),
            _ => {
                let bytes = self.entries as usize * self.abi.stride();
                Change::Byte(ENTRIES + usize::from(input.half()) % bytes, input.byte())
            }
        }
    }

    /// Begins an operation of the backend's.
    fn begin(&self) {
        let mut peer = self.peer.borrow_mut();
        peer.accesses.clear();
        peer.changed = false;
    }

    fn pop(&mut self) {
        self.begin();
        let mut entry = [0; blkif::ENTRY_BYTES];
        let taken = self.back.pop(&mut entry).map(|is_there| is_there.then_some(entry));
        let peer = self.peer.borrow();
        let looks = self.claimed == self.taken && self.fault.is_none();
        let header = peer.accesses.iter().filter(|at| **at < ENTRIES).count();
        assert_eq!(header, usize::from(looks), "the index is read once, and only when it is needed");
        if looks {
            self.fault = self.judge(peer.seen_prod);
            if self.fault.is_none() {
                self.claimed = peer.seen_prod;
            }
        }
        let expected = match self.fault {
            Some(fault) if self.claimed == self.taken => Err(fault),
            _ => Ok(self.claimed != self.taken),
        };
        assert_eq!(taken.map(|entry| entry.is_some()), expected);
        let Ok(Some(entry)) = taken else { return };
        let used = used_bytes(self.abi, &entry);
        let start = self.place(self.taken);
        let mut places: Vec<usize> = peer.accesses.iter().copied().filter(|at| *at >= ENTRIES).collect();
        let count = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), count, "each byte is read once");
        assert!(places.iter().all(|at| (start..start + used).contains(at)));
        assert!(entry[used..].iter().all(|byte| *byte == 0), "what means nothing is not read");
        if !peer.changed {
            let now: Vec<u8> = (start..start + used).map(|at| byte(&peer, at)).collect();
            assert_eq!(entry[..used], now);
        }
        self.taken = self.taken.wrapping_add(1);
    }

    /// What is wrong with a claim: nothing, if what was taken stays taken and all of it fits.
    fn judge(&self, prod: u32) -> Option<FrontendFault> {
        let claimed = u64::from(prod.wrapping_sub(self.answered));
        let fits = u64::from(self.entries);
        let taken = u64::from(self.taken.wrapping_sub(self.answered));
        if claimed > fits {
            return Some(FrontendFault::Overrun { claimed: claimed as u32, entries: self.entries });
        }
        (claimed < taken).then_some(FrontendFault::Rewound)
    }

    fn push(&mut self, head: Head) {
        if self.answered == self.taken {
            return;
        }
        let pending = self.peer.borrow_mut().pending.take();
        self.back.push(head, Status::Okay);
        let mut peer = self.peer.borrow_mut();
        let start = self.place(self.answered);
        let entry = core::array::from_fn(|i| if i < 16 { byte(&peer, start + i) } else { 0 });
        let expected = Response { id: head.id, operation: head.operation, status: 0, is_clean: true };
        assert_eq!(self.abi.response(&entry), expected);
        peer.pending = pending;
        self.answered = self.answered.wrapping_add(1);
    }

    fn publish(&mut self) {
        self.begin();
        let notifies = self.back.publish();
        let peer = self.peer.borrow();
        let news = self.answered.wrapping_sub(self.shown);
        let is_asked = (1..=news).any(|i| self.shown.wrapping_add(i) == peer.seen_event);
        assert_eq!(notifies, is_asked, "an event is sent exactly when the frontend waits for this answer");
        assert_eq!(peer.accesses.is_empty(), news == 0);
        if !peer.changed && news != 0 {
            assert_eq!(peer.frames[0].read_u32(RSP_PROD), self.answered);
        }
        self.shown = self.answered;
    }

    fn arm(&self) {
        self.begin();
        let is_there = self.back.arm();
        let peer = self.peer.borrow();
        assert_eq!(is_there, peer.seen_prod != self.taken);
        assert_eq!(peer.accesses, [REQ_EVENT, REQ_PROD], "armed first, then looked at again");
        if !peer.changed {
            assert_eq!(peer.frames[0].read_u32(REQ_EVENT), self.taken.wrapping_add(1));
        }
    }

    fn place(&self, index: u32) -> usize {
        ENTRIES + (index % self.entries) as usize * self.abi.stride()
    }

    fn end(self) {
        hook::set(None);
        assert!(self.taken.wrapping_sub(self.answered) <= self.entries);
        let peer = self.peer.borrow();
        let pages = self.back.detach();
        assert!(pages.iter().map(|page| page.base()).eq(peer.frames.iter().map(|frame| frame.base())));
        let slack = ENTRIES + self.entries as usize * self.abi.stride()..pages.len() * PAGE_SIZE;
        assert!((PADDING..ENTRIES).chain(slack).all(|at| byte(&peer, at) == 0), "written where nothing is");
    }
}

fn byte(peer: &Peer, at: usize) -> u8 {
    let mut byte = [0];
    peer.frames[at / PAGE_SIZE].read(at % PAGE_SIZE, &mut byte);
    byte[0]
}

/// The bytes of an entry that mean anything, by blkif.h's structures: the head, and as many segments as there can be, or
/// the first grant of those with the segments, or the sectors of a discard.
fn used_bytes(abi: Abi, entry: &[u8]) -> usize {
    let head = if abi == Abi::X64 { 24 } else { 20 };
    match entry[0] {
        5 | 6 => head + 8,
        _ => head + 8 * usize::from(entry[1].min(11)),
    }
}
