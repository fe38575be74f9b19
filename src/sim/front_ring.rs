//! The frontend's end of a one-page blkif ring (xen/include/public/io/ring.h), 64-bit layout:
//! it follows the rules to the letter, so that a backend which does not is left waiting.

use crate::mem::frame::Frame;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// Where the indexes end and the entries begin.
pub const HEADER: usize = 64;

/// Entries of the ring.
pub const SIZE: u32 = 32;

/// Bytes of an entry, request or response.
pub const STRIDE: usize = 112;

/// More responses than requests are in the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overrun;

/// A ring and the frontend's private indexes.
#[derive(Debug)]
pub struct FrontRing {
    frame: Frame,
    req_prod: u32,
    published: u32,
    rsp_cons: u32,
}

impl FrontRing {
    /// Initialises a zeroed page as a ring (`SHARED_RING_INIT`).
    #[must_use]
    pub fn new(frame: Frame) -> Self {
        frame.write_u32(REQ_EVENT, 1);
        frame.write_u32(RSP_EVENT, 1);
        Self { frame, req_prod: 0, published: 0, rsp_cons: 0 }
    }

    /// The page.
    #[must_use]
    pub fn frame(&self) -> Frame {
        self.frame
    }

    /// Entries free for requests.
    #[must_use]
    pub fn room(&self) -> u32 {
        SIZE - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request, which the backend does not see yet.
    pub fn push(&mut self, entry: &[u8; STRIDE]) {
        self.frame.write(place(self.req_prod), entry);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Shows the backend what was pushed; true when it asked for an event
    /// (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    pub fn publish(&mut self) -> bool {
        let old = self.published;
        self.published = self.req_prod;
        self.frame.write_u32(REQ_PROD, self.req_prod);
        let asked = self.req_prod.wrapping_sub(self.frame.read_u32(REQ_EVENT));
        asked < self.req_prod.wrapping_sub(old)
    }

    /// Takes a response.
    ///
    /// # Errors
    /// The backend's index is impossible.
    pub fn pop(&mut self) -> Result<Option<[u8; STRIDE]>, Overrun> {
        let ready = self.frame.read_u32(RSP_PROD).wrapping_sub(self.rsp_cons);
        if ready > self.published.wrapping_sub(self.rsp_cons) {
            return Err(Overrun);
        }
        if ready == 0 {
            return Ok(None);
        }
        let mut entry = [0; STRIDE];
        self.frame.read(place(self.rsp_cons), &mut entry);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Asks for an event at the next response; true when there is one already
    /// (`RING_FINAL_CHECK_FOR_RESPONSES`).
    pub fn arm(&mut self) -> bool {
        self.frame.write_u32(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        self.frame.read_u32(RSP_PROD) != self.rsp_cons
    }
}

fn place(index: u32) -> usize {
    HEADER + (index % SIZE) as usize * STRIDE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_sent_only_when_asked_for() {
        let frame = Frame::new();
        let mut ring = FrontRing::new(frame);
        ring.push(&[1; STRIDE]);
        assert!(ring.publish(), "req_event is 1 at first");
        ring.push(&[2; STRIDE]);
        assert!(!ring.publish(), "nobody asked again");
        frame.write_u32(REQ_EVENT, 4);
        ring.push(&[3; STRIDE]);
        assert!(!ring.publish());
        ring.push(&[4; STRIDE]);
        assert!(ring.publish());
    }

    #[test]
    fn responses_to_nothing_are_an_overrun() {
        let frame = Frame::new();
        let mut ring = FrontRing::new(frame);
        ring.push(&[1; STRIDE]);
        ring.publish();
        assert_eq!(ring.pop(), Ok(None));
        frame.write_u32(RSP_PROD, 1);
        assert!(ring.arm());
        assert!(matches!(ring.pop(), Ok(Some(_))));
        assert!(!ring.arm());
        frame.write_u32(RSP_PROD, 2);
        assert_eq!(ring.pop(), Err(Overrun));
        assert_eq!(ring.room(), SIZE);
    }
}
