//! A slot: one accepted request, from its copy out of the ring to its one response. It holds all
//! that is needed to do the request again without looking at the ring.

use heapless::Vec;

use crate::hal::{DeviceAccess, GrantMap, GrantMapping};
use crate::limits::SEGMENTS;
use crate::units::{Block, PAGE_SIZE, SECTOR_SIZE, Span};
use crate::wire::blkif::{Head, Operation, Request, Segment, Segments, Status};

/// An accepted request.
#[derive(Debug)]
pub(super) struct Slot {
    /// What the response repeats.
    pub(super) head: Head,
    /// What to do.
    pub(super) op: Operation,
    /// How it went so far.
    pub(super) status: Status,
    /// The guest's pages.
    pub(super) segments: Segments,
    /// Those of the pages that are mapped.
    pub(super) mappings: Vec<GrantMapping, SEGMENTS>,
    /// Waits in the ring's queue for commands to be issued.
    pub(super) queued: bool,
    /// A flush comes first, and was not issued.
    pub(super) flush: bool,
    /// Where the data not yet issued belongs.
    pub(super) next: Block,
    /// The data.
    spans: Vec<Span, SEGMENTS>,
    /// How many spans were issued.
    issued: usize,
    /// Commands that the device has not completed. Each has a span at least, or is the flush.
    pub(super) parts: u32,
}

impl Slot {
    /// A slot that holds nothing.
    pub(super) const EMPTY: Self = Self {
        head: Head { operation: 0, id: 0 },
        op: Operation::Read,
        status: Status::Okay,
        segments: Segments::new(),
        mappings: Vec::new(),
        queued: false,
        flush: false,
        next: Block(0),
        spans: Vec::new(),
        issued: 0,
        parts: 0,
    };

    /// Takes a request on, whose data belongs at `first`.
    pub(super) fn accept(&mut self, head: Head, request: Request, first: Block) {
        self.head = head;
        self.op = request.op;
        self.status = Status::Okay;
        self.segments = request.segments;
        self.mappings.clear();
        self.queued = false;
        self.flush = match request.op {
            Operation::Read | Operation::Write => false,
            Operation::Flush => true,
        };
        self.next = first;
        self.spans.clear();
        self.issued = 0;
        self.parts = 0;
    }

    /// What the device will do to the guest's pages. Guests grant the data of a write for reading
    /// only, so asking for more would fail.
    pub(super) const fn access(&self) -> DeviceAccess {
        match self.op {
            Operation::Read => DeviceAccess::Writes,
            Operation::Write | Operation::Flush => DeviceAccess::Reads,
        }
    }

    /// Takes over what became of its grants, one result a segment. True when all are mapped; when
    /// not, those that are mapped are still to be given back.
    pub(super) fn mapped(&mut self, results: &[GrantMap]) -> bool {
        for (segment, grant) in self.segments.iter().zip(results) {
            match grant.result {
                Ok(mapping) => {
                    append(&mut self.mappings, mapping);
                    append_span(&mut self.spans, *segment, mapping);
                }
                Err(_) => self.status = Status::Error,
            }
        }
        self.status == Status::Okay
    }

    /// The data that was not issued.
    pub(super) fn rest(&self) -> &[Span] {
        &self.spans[self.issued..]
    }

    /// Some of the rest was issued as one command; returns its bytes.
    pub(super) fn issue(&mut self, spans: usize) -> u32 {
        let bytes = self.rest()[..spans].iter().map(|span| span.bytes).sum();
        self.issued += spans;
        self.parts += 1;
        bytes
    }

    /// Nothing more of it will be issued.
    pub(super) fn abandon(&mut self) {
        self.status = Status::Error;
        self.flush = false;
        self.issued = self.spans.len();
    }

    /// Whether everything was issued.
    pub(super) fn all_issued(&self) -> bool {
        !self.flush && self.issued == self.spans.len()
    }
}

/// Adds a segment's data, to the span before where it follows on in the same page: a command then
/// has fewer pieces, and pieces that meet inside a page are what controllers cannot express.
fn append_span(spans: &mut Vec<Span, SEGMENTS>, segment: Segment, mapping: GrantMapping) {
    let bus = mapping.bus.offset(segment.offset());
    let bytes = segment.sectors() * SECTOR_SIZE as u32;
    if let Some(last) = spans.last_mut()
        && last.bus.offset(u64::from(last.bytes)) == bus
        && !bus.0.is_multiple_of(PAGE_SIZE as u64)
    {
        last.bytes += bytes;
    } else {
        append(spans, Span { bus, bytes });
    }
}

fn append<T: core::fmt::Debug>(to: &mut Vec<T, SEGMENTS>, item: T) {
    to.push(item).expect("one for each segment at most");
}
