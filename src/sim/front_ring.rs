//! The frontend's end of a blkif ring (xen/include/public/io/ring.h) of one or more pages, whose
//! entries lie across their borders: it follows the rules to the letter, so that a backend which
//! does not is left waiting. [`super::abi`] says what an entry is.

use core::ptr::NonNull;

use super::abi::{Abi, ENTRY_BYTES, Entry};
use crate::mem::frame::Frame;
use crate::units::PAGE_SIZE;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// Where the indexes end and the entries begin.
pub const HEADER: usize = 64;

/// More responses than requests are in the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overrun;

/// A ring and the frontend's private indexes.
#[derive(Debug)]
pub struct FrontRing {
    frames: Vec<Frame>,
    abi: Abi,
    size: u32,
    req_prod: u32,
    published: u32,
    rsp_cons: u32,
}

impl FrontRing {
    /// Initialises zeroed pages, at least one, as a ring (`SHARED_RING_INIT`).
    #[must_use]
    pub fn new(frames: Vec<Frame>, abi: Abi) -> Self {
        frames[0].write_u32(REQ_EVENT, 1);
        frames[0].write_u32(RSP_EVENT, 1);
        let entries = (frames.len() * PAGE_SIZE - HEADER) / abi.stride();
        let size = 1 << entries.ilog2();
        Self { frames, abi, size, req_prod: 0, published: 0, rsp_cons: 0 }
    }

    /// The page with the indexes.
    fn header(&self) -> Frame {
        self.frames[0]
    }

    /// Which of its pages lies there.
    #[must_use]
    pub fn page(&self, base: NonNull<u8>) -> Option<usize> {
        self.frames.iter().position(|frame| frame.base() == base)
    }

    /// How its entries are laid out.
    #[must_use]
    pub fn abi(&self) -> Abi {
        self.abi
    }

    /// How many entries it has (`__RING_SIZE`).
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Entries free for requests.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.size - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request, which the backend does not see yet.
    pub fn push(&mut self, entry: &Entry) {
        for (i, bytes) in entry[..self.abi.stride()].chunks(4).enumerate() {
            let (frame, offset) = self.place(self.req_prod, i * 4);
            frame.write(offset, bytes);
        }
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Shows the backend what was pushed; true when it asked for an event
    /// (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        self.published = self.req_prod;
        self.header().write_u32(REQ_PROD, self.req_prod);
        let asked = self.req_prod.wrapping_sub(self.header().read_u32(REQ_EVENT));
        asked < self.req_prod.wrapping_sub(old)
    }

    /// Takes a response.
    ///
    /// # Errors
    /// The backend's index is impossible.
    pub fn pop(&mut self) -> Result<Option<Entry>, Overrun> {
        let ready = self.header().read_u32(RSP_PROD).wrapping_sub(self.rsp_cons);
        if ready > self.published.wrapping_sub(self.rsp_cons) {
            return Err(Overrun);
        }
        if ready == 0 {
            return Ok(None);
        }
        let mut entry = [0; ENTRY_BYTES];
        for (i, bytes) in entry[..self.abi.stride()].chunks_mut(4).enumerate() {
            let (frame, offset) = self.place(self.rsp_cons, i * 4);
            frame.read(offset, bytes);
        }
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Asks for an event at the next response; true when there is one already
    /// (`RING_FINAL_CHECK_FOR_RESPONSES`).
    pub fn arm(&mut self) -> bool {
        self.header().write_u32(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        self.header().read_u32(RSP_PROD) != self.rsp_cons
    }

    /// Where a byte of an entry lies.
    fn place(&self, index: u32, byte: usize) -> (Frame, usize) {
        let at = HEADER + (index % self.size) as usize * self.abi.stride() + byte;
        (self.frames[at / PAGE_SIZE], at % PAGE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> (Frame, FrontRing) {
        let frame = Frame::new();
        (frame, FrontRing::new(vec![frame], Abi::X64))
    }

    #[test]
    fn an_event_is_sent_only_when_asked_for() {
        let (frame, mut ring) = ring();
        ring.push(&[1; ENTRY_BYTES]);
        assert!(ring.publish(), "req_event is 1 at first");
        ring.push(&[2; ENTRY_BYTES]);
        assert!(!ring.publish(), "nobody asked again");
        frame.write_u32(REQ_EVENT, 4);
        ring.push(&[3; ENTRY_BYTES]);
        assert!(!ring.publish());
        ring.push(&[4; ENTRY_BYTES]);
        assert!(ring.publish());
    }

    #[test]
    fn responses_to_nothing_are_an_overrun() {
        let (frame, mut ring) = ring();
        ring.push(&[1; ENTRY_BYTES]);
        ring.publish();
        assert_eq!(ring.pop(), Ok(None));
        frame.write_u32(RSP_PROD, 1);
        assert!(ring.arm());
        assert!(matches!(ring.pop(), Ok(Some(_))));
        assert!(!ring.arm());
        frame.write_u32(RSP_PROD, 2);
        assert_eq!(ring.pop(), Err(Overrun));
        assert_eq!(ring.room(), 32);
    }

    #[test]
    fn sizes_are_those_of_the_header_in_both_layouts() {
        for (order, size) in [32, 64, 128, 256, 512].into_iter().enumerate() {
            for abi in [Abi::X64, Abi::X32] {
                let frames = (0..1 << order).map(|_| Frame::new()).collect();
                assert_eq!(FrontRing::new(frames, abi).size(), size);
            }
        }
    }

    #[test]
    fn an_entry_lies_across_the_border_of_two_pages() {
        let frames = [Frame::new(), Frame::new()];
        let mut ring = FrontRing::new(frames.to_vec(), Abi::X32);
        (0..38).for_each(|i| ring.push(&[i; ENTRY_BYTES]));
        // 64 + 37 * 108 = 4060: of the last one 36 bytes are before the border, and 72 after it.
        let (mut end, mut start) = ([0; 37], [0; 73]);
        frames[0].read(PAGE_SIZE - 37, &mut end);
        frames[1].read(0, &mut start);
        assert_eq!((end[0], end[1], end[36]), (36, 37, 37));
        assert_eq!((start[0], start[71], start[72]), (37, 37, 0));
        assert_eq!(ring.page(frames[1].base()), Some(1));
    }
}
