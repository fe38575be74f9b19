//! What every simulated party stands on: time, chance, memory, grants, event channels, the
//! xenstore tree, and the record of what went wrong.

use core::fmt;
use core::ops::Range;

use super::grants::Grants;
use super::memory::Memory;
use super::ports::Ports;
use super::rng::Rng;
use super::tree::Tree;
use super::{Dma, DmaFault};
use crate::mem::frame::Frame;
use crate::units::{BusAddr, DomId, GrantHandle, GrantRef, Instant, PAGE_SIZE, Port};

/// The control domain, with the toolstack, xenstored and pciback.
pub const DOM0: DomId = DomId(0);

/// The driver domain: the one in which the image's core runs.
pub const DRIVER: DomId = DomId(3);

/// Something that must not happen, whatever the seed: the test fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A device touched memory that was not mapped for it, or not so, at that instant.
    Dma {
        /// Where.
        bus: BusAddr,
        /// How many bytes.
        len: usize,
        /// Whether it wrote.
        write: bool,
    },
    /// A mapping was undone that does not exist (any more), or not with the address it was given.
    BadUnmap(GrantHandle),
    /// A frontend took a grant back, as it may, and we still had it mapped.
    StillMapped(DomId, GrantRef),
    /// A port was closed or notified that is not open.
    BadPort(Port),
    /// Registers were used that are not mapped.
    BadRegister {
        /// Offset in the region.
        offset: usize,
    },
    /// A device found a command or register access against its specification.
    Device(String),
    /// Bytes in the xenstore ring that no daemon would accept.
    Store(&'static str),
    /// Bytes in a blkif response that nobody wrote there on purpose (XSA-216).
    Leak(DomId),
    /// A response to nothing: the second to the same request, or an invented one.
    UnknownAnswer {
        /// Whose ring.
        guest: DomId,
        /// Its id.
        id: u64,
    },
    /// A response with another operation, or an impossible status.
    WrongAnswer {
        /// Whose ring.
        guest: DomId,
        /// Operation and status that came.
        answer: (u8, i16),
    },
    /// More responses than requests.
    RingOverrun(DomId),
    /// A good request was answered with an error.
    Refused {
        /// Whose request.
        guest: DomId,
        /// Its operation.
        operation: u8,
    },
    /// A sector that was read is not what was written, or a byte outside the request changed.
    Corrupt {
        /// Whose request.
        guest: DomId,
        /// The first sector that is wrong.
        sector: u64,
    },
    /// A request was answered, or done, before one that a barrier puts before it.
    Overtaken {
        /// Whose ring.
        guest: DomId,
        /// The later one's id, or a sector of it.
        id: u64,
    },
    /// A connected backend did not say what blkfront insists on, or the disk is too small.
    BadDisk(DomId),
    /// A sector that was flushed is not on the disk.
    NotDurable {
        /// Whose.
        guest: DomId,
        /// Which.
        sector: u64,
    },
    /// A block was written that no guest wrote.
    Stray {
        /// The namespace, as in `target=`.
        target: String,
        /// The block.
        block: u64,
    },
    /// A block was read into a guest's page, or written from there, that is on no disk of the guest's.
    Trespass {
        /// Whose page.
        guest: DomId,
        /// The namespace, as in `target=`.
        target: String,
        /// The first block that was transferred.
        block: u64,
    },
    /// Everybody sleeps, and this guest waits for that many answers.
    LostWakeup {
        /// Who waits.
        guest: DomId,
        /// For how many answers.
        requests: usize,
    },
    /// An answer took longer than the guest's patience.
    Late(DomId),
    /// There are bytes in the store ring that its reader was never told of.
    StoreNotNotified,
    /// The image runs and runs and nothing comes of it.
    Livelock,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    /// Virtual time.
    pub now: Instant,
    /// The seed's sequence.
    pub rng: Rng,
    /// Frames and the IOMMU.
    pub memory: Memory,
    /// Grant tables of all domains.
    pub grants: Grants,
    /// Event channels of all domains.
    pub ports: Ports,
    /// Xenstore's contents.
    pub tree: Tree,
    violations: Vec<(Instant, Violation)>,
}

impl Machine {
    /// A machine just switched on.
    #[must_use]
    pub fn new(seed: u64, ports: u32) -> Self {
        Self {
            now: Instant(1_000_000_000),
            rng: Rng::new(seed),
            memory: Memory::default(),
            grants: Grants::default(),
            ports: Ports::new(ports),
            tree: Tree::default(),
            violations: Vec::new(),
        }
    }

    /// Records a violation.
    pub fn violated(&mut self, violation: Violation) {
        self.violations.push((self.now, violation));
    }

    /// What was violated, and when.
    #[must_use]
    pub fn violations(&self) -> &[(Instant, Violation)] {
        &self.violations
    }

    /// Makes the other end of `port` pending.
    pub fn notify(&mut self, owner: DomId, port: Port) {
        self.ports.send(owner, port, self.now, &mut self.rng);
    }
}

impl Machine {
    fn dma(&mut self, bus: BusAddr, len: usize, write: bool) -> Result<Vec<Piece>, DmaFault> {
        let pieces = pieces(bus, len);
        let reached = pieces.map(|(bus, range)| {
            let frame = self.memory.reach(bus, write)?;
            Some(Piece { frame, offset: bus.0 as usize % PAGE_SIZE, range })
        });
        let reached: Option<Vec<Piece>> = reached.collect();
        if reached.is_none() {
            self.violated(Violation::Dma { bus, len, write });
        }
        reached.ok_or(DmaFault)
    }
}

/// The part of an access that lies in one page.
struct Piece {
    frame: Frame,
    offset: usize,
    range: Range<usize>,
}

fn pieces(bus: BusAddr, len: usize) -> impl Iterator<Item = (BusAddr, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let start = bus.offset(done as u64);
        let room = PAGE_SIZE - start.0 as usize % PAGE_SIZE;
        let range = done..len.min(done + room);
        done = range.end;
        (!range.is_empty()).then_some((start, range))
    })
}

impl Dma for Machine {
    fn read(&mut self, bus: BusAddr, to: &mut [u8]) -> Result<(), DmaFault> {
        for piece in self.dma(bus, to.len(), false)? {
            piece.frame.read(piece.offset, &mut to[piece.range]);
        }
        Ok(())
    }

    fn write(&mut self, bus: BusAddr, from: &[u8]) -> Result<(), DmaFault> {
        for piece in self.dma(bus, from.len(), true)? {
            piece.frame.write(piece.offset, &from[piece.range]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dma_into_what_is_not_mapped_is_a_violation_and_changes_nothing() {
        let mut machine = Machine::new(1, 8);
        let mfn = machine.memory.take();
        machine.memory.expose(mfn, false);
        let at = super::super::memory::bus(mfn).offset(512);
        let mut sector = [0; 512];
        assert_eq!(machine.read(at, &mut sector), Ok(()));
        assert_eq!(machine.violations(), []);
        assert_eq!(machine.write(at, &[1; 512]), Err(DmaFault));
        assert_eq!(machine.read(at, &mut [0; 4096]), Err(DmaFault), "it ends in the next page");
        let (now, len) = (machine.now, 512);
        let expected = [
            (now, Violation::Dma { bus: at, len, write: true }),
            (now, Violation::Dma { bus: at, len: 4096, write: false }),
        ];
        assert_eq!(machine.violations(), expected);
        assert_eq!(machine.read(at, &mut sector), Ok(()));
        assert_eq!(sector, [0; 512]);
    }
}
