//! The page and port shared with pciback: one operation at a time, with a deadline. Below it is
//! `wire::pciif`, above it the state machine in `mod.rs`.

use core::time::Duration;

use crate::hal::{DmaPage, Events, Hal};
use crate::units::{DomId, GrantRef, Instant, Port};
use crate::wire::pci::Address;
use crate::wire::pciif::{self, Operation, OperationError, Reply};

use super::Refusal;

/// How long pciback may take over one operation; Linux's pcifront waits as long.
const PATIENCE: Duration = Duration::from_secs(2);

/// Our end of the connection to pciback.
#[derive(Debug)]
pub(super) struct Link {
    page: DmaPage,
    /// The grant of the page, for the node `pci-op-ref`.
    pub(super) gref: GrantRef,
    /// Pending when pciback has answered.
    pub(super) port: Port,
    line: Line,
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    /// Ours.
    Free,
    /// pciback's, until then.
    Busy(Instant),
    /// Nobody's: pciback did not answer, or is gone.
    Dead,
}

/// What became of the operation that was posted last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Poll {
    /// None was posted.
    Idle,
    /// pciback still has time.
    Waiting,
    /// pciback has let the deadline pass, or is gone. The page is still its own.
    Silent,
    /// The answer, handed out once.
    Answered(Result<Reply, OperationError>),
}

impl Link {
    /// Makes a page and a port for the domain that runs pciback.
    ///
    /// # Errors
    /// Memory, grants or ports are used up.
    pub(super) fn new(hal: &mut impl Hal, backend: DomId) -> Result<Self, Refusal> {
        let page = hal.take_page().ok_or(Refusal::NoPage)?;
        let gref = hal.grant(backend, &page).map_err(Refusal::Hypervisor)?;
        let port = hal.alloc_unbound(backend).map_err(Refusal::Hypervisor)?;
        Ok(Self { page, gref, port, line: Line::Free })
    }

    /// Makes page and port ready for a pciback that comes again. The one before has closed its end of
    /// the port, which leaves ours open for its domain, and does not use the page any more.
    pub(super) fn renew(&mut self) {
        self.page.page.clear();
        self.line = Line::Free;
    }

    /// pciback is gone: it answers nothing from now on.
    pub(super) fn cut(&mut self) {
        self.line = Line::Dead;
    }

    /// Posts an operation; the one before it must have been answered.
    pub(super) fn post(&mut self, hal: &mut impl Events, now: Instant, at: Address, operation: Operation) {
        pciif::post(&self.page.page, at, operation);
        hal.notify(self.port);
        self.line = Line::Busy(now + PATIENCE);
    }

    /// Looks for the answer.
    pub(super) fn poll(&mut self, now: Instant) -> Poll {
        let deadline = match self.line {
            Line::Free => return Poll::Idle,
            Line::Busy(deadline) => deadline,
            Line::Dead => return Poll::Silent,
        };
        match pciif::reply(&self.page.page) {
            Some(reply) => {
                self.line = Line::Free;
                Poll::Answered(reply)
            }
            None if now < deadline => Poll::Waiting,
            None => {
                self.line = Line::Dead;
                Poll::Silent
            }
        }
    }

    /// Whether an operation can be posted.
    pub(super) fn is_free(&self) -> bool {
        self.line == Line::Free
    }

    /// When the operation that was posted is late.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.line {
            Line::Busy(deadline) => Some(deadline),
            Line::Free | Line::Dead => None,
        }
    }
}
