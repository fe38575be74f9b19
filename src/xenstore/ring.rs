//! The byte ring shared with the store daemon. Our own two indexes are kept here and only ever
//! written to the page; the daemon's two are claims, checked at each look. What the bytes mean is
//! `connection`'s business.

use super::Broken;
use crate::mem::{SharedPage, read_barrier, write_barrier};
use crate::wire::xs::{REQ, REQ_CONS, REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD};

/// Our end of the ring.
#[derive(Debug)]
pub(super) struct Ring {
    page: SharedPage,
    req_prod: u32,
    rsp_cons: u32,
    moved: bool,
}

impl Ring {
    /// Carries on where the page says we are: whoever ran in this domain before us (a boot loader)
    /// may have used the ring.
    pub(super) fn new(page: SharedPage) -> Self {
        let (req_prod, rsp_cons) = (page.read_u32(REQ_PROD), page.read_u32(RSP_CONS));
        Self { page, req_prod, rsp_cons, moved: false }
    }

    /// Sends as many of the bytes as there is room for, and says how many.
    ///
    /// # Errors
    /// The daemon's index cannot be.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let room = RING_SIZE - distance(self.page.read_u32(REQ_CONS), self.req_prod)?;
        let bytes = &bytes[..bytes.len().min(room)];
        if bytes.is_empty() {
            return Ok(0);
        }
        // Between reading req_cons and overwriting what it gave free.
        read_barrier();
        let at = place(self.req_prod);
        let (first, rest) = bytes.split_at(bytes.len().min(RING_SIZE - at));
        self.page.write_bytes(REQ + at, first);
        self.page.write_bytes(REQ, rest);
        self.req_prod = self.req_prod.wrapping_add(bytes.len() as u32);
        // Between the bytes and the index that publishes them.
        write_barrier();
        self.page.write_u32(REQ_PROD, self.req_prod);
        self.moved = true;
        Ok(bytes.len())
    }

    /// Fills as much of `to` as there are bytes for, and says how much.
    ///
    /// # Errors
    /// The daemon's index cannot be.
    pub(super) fn receive(&mut self, to: &mut [u8]) -> Result<usize, Broken> {
        let count = distance(self.rsp_cons, self.page.read_u32(RSP_PROD))?.min(to.len());
        if count == 0 {
            return Ok(0);
        }
        // Between reading rsp_prod and the bytes that it published.
        read_barrier();
        let at = place(self.rsp_cons);
        let (first, rest) = to[..count].split_at_mut(count.min(RING_SIZE - at));
        self.page.read_bytes(RSP + at, first);
        self.page.read_bytes(RSP, rest);
        self.rsp_cons = self.rsp_cons.wrapping_add(count as u32);
        // Between reading the bytes and letting the daemon overwrite them.
        write_barrier();
        self.page.write_u32(RSP_CONS, self.rsp_cons);
        self.moved = true;
        Ok(count)
    }

    /// Whether all that was sent was taken, and nothing has arrived.
    pub(super) fn is_quiet(&self) -> bool {
        self.page.read_u32(REQ_CONS) == self.req_prod && self.page.read_u32(RSP_PROD) == self.rsp_cons
    }

    /// Whether bytes went either way since this was last asked, so that the daemon, which may wait
    /// for requests or for room, must be told.
    pub(super) fn take_moved(&mut self) -> bool {
        core::mem::take(&mut self.moved)
    }
}

/// Bytes between a consumer and its producer, at most the ring's size.
fn distance(cons: u32, prod: u32) -> Result<usize, Broken> {
    let bytes = prod.wrapping_sub(cons) as usize;
    if bytes <= RING_SIZE { Ok(bytes) } else { Err(Broken::RingIndex) }
}

/// Where an index that runs freely points to in its ring.
const fn place(index: u32) -> usize {
    index as usize % RING_SIZE
}
