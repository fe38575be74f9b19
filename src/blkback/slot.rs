//! A slot: one accepted request, from its copy out of the ring to its one response. It holds all
//! that is needed to do the request again without looking at the ring.

use core::ops::Range;

use crate::hal::{DeviceAccess, DmaPage};
use crate::limits::{INDIRECT_SEGMENTS, SEGMENTS};
use crate::mem::SharedPage;
use crate::units::{Block, BusAddr, GrantHandle, GrantRef, Instant, PAGE_SIZE, SECTOR_SIZE, Sector, Span};
use crate::wire::blkif::{Head, Operation, Reject, SEGMENT_BYTES, Segment, Segments, Status};

/// How a guest's page is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Grant {
    /// It is to be mapped, or could not be.
    Asked(GrantRef),
    /// Mapped for this request.
    Mapped(GrantHandle),
    /// Kept, at this place of the table.
    Kept(u16),
}

/// A segment of an accepted request: a run of sectors inside one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Piece {
    pub(super) grant: Grant,
    /// The page as devices see it, once it is mapped; in the lowest bits the first and last sector.
    place: u64,
}

impl Piece {
    const NONE: Self = Self { grant: Grant::Asked(GrantRef(0)), place: 0 };

    fn new(segment: Segment) -> Self {
        let place = u64::from(segment.first) | u64::from(segment.last) << 3;
        Self { grant: Grant::Asked(segment.gref), place }
    }

    /// The page was found or mapped.
    pub(super) const fn at(self, grant: Grant, page: BusAddr) -> Self {
        Self { grant, place: self.place & 0x3f | page.0 }
    }

    /// The page as devices see it.
    pub(super) const fn page(self) -> BusAddr {
        BusAddr(self.place & !(PAGE_SIZE as u64 - 1))
    }

    fn span(self) -> Span {
        let (first, last) = (self.place & 7, self.place >> 3 & 7);
        let sector = SECTOR_SIZE as u64;
        Span { bus: self.page().offset(first * sector), bytes: ((last + 1 - first) * sector) as u32 }
    }

    const fn to_words(self) -> [u64; 2] {
        let (kind, number) = match self.grant {
            Grant::Asked(gref) => (0, gref.0),
            Grant::Mapped(handle) => (1, handle.0),
            Grant::Kept(place) => (2, place as u32),
        };
        [kind << 32 | number as u64, self.place]
    }

    const fn from_words([grant, place]: [u64; 2]) -> Self {
        let number = grant as u32;
        let grant = match grant >> 32 {
            0 => Grant::Asked(GrantRef(number)),
            1 => Grant::Mapped(GrantHandle(number)),
            _ => Grant::Kept(number as u16),
        };
        Self { grant, place }
    }
}

const PIECE_BYTES: usize = 16;

/// Where the segments of an indirect request are copied to: the second half of the page that its
/// pieces are then written to from the start on, each after its segment was read.
const COPIED: usize = PAGE_SIZE - INDIRECT_SEGMENTS * SEGMENT_BYTES;

const _: () = assert!(INDIRECT_SEGMENTS * PIECE_BYTES <= PAGE_SIZE);

/// An accepted request.
#[derive(Debug)]
pub(super) struct Slot {
    /// What the response repeats: its id and, below, its operation.
    id: u64,
    operation: u8,
    /// Which ring it came from.
    pub(super) ring: u8,
    /// What to do.
    pub(super) op: Operation,
    /// How it went so far.
    pub(super) status: Status,
    /// Waits in the queue for commands to be issued.
    pub(super) queued: bool,
    /// A flush comes first, and was not issued.
    pub(super) flush: bool,
    /// Commands that the device has not completed.
    pub(super) parts: u16,
    /// How many pieces there are, and how many of them were issued.
    count: u16,
    issued: u16,
    /// When it was taken off the ring.
    pub(super) taken: Instant,
    /// Its place on the virtual disk, while its segments are not known.
    pub(super) sector: Sector,
    /// Its length.
    pub(super) sectors: u64,
    /// What comes next on the disk, and what of a discard is not issued.
    pub(super) next: Block,
    pub(super) left: Block,
    /// The pieces of a direct request.
    direct: [Piece; SEGMENTS],
    /// Those of an indirect one: as many pairs of words.
    pub(super) page: Option<DmaPage>,
}

impl Slot {
    /// A slot that holds nothing.
    pub(super) const EMPTY: Self = Self {
        id: 0,
        operation: 0,
        ring: 0,
        op: Operation::Read,
        status: Status::Okay,
        queued: false,
        flush: false,
        parts: 0,
        count: 0,
        issued: 0,
        taken: Instant(0),
        sector: Sector(0),
        sectors: 0,
        next: Block(0),
        left: Block(0),
        direct: [Piece::NONE; SEGMENTS],
        page: None,
    };

    /// Takes a request on that has no pieces yet.
    pub(super) fn accept(&mut self, head: Head, ring: u8, op: Operation, now: Instant) {
        debug_assert!(self.page.is_none(), "a free slot has no page");
        let flush = matches!(op, Operation::Flush | Operation::Barrier);
        (self.id, self.operation) = (head.id, head.operation);
        (self.ring, self.op, self.status) = (ring, op, Status::Okay);
        (self.queued, self.flush) = (false, flush);
        (self.parts, self.count, self.issued) = (0, 0, 0);
        (self.taken, self.sector, self.sectors) = (now, Sector(0), 0);
        (self.next, self.left) = (Block(0), Block(0));
    }

    /// What the response repeats.
    pub(super) const fn head(&self) -> Head {
        Head { operation: self.operation, id: self.id }
    }

    /// The segments of a direct request.
    pub(super) fn hold(&mut self, segments: Segments<'_>) {
        for (piece, segment) in self.direct.iter_mut().zip(segments.iter()) {
            *piece = Piece::new(segment);
            self.count += 1;
        }
        self.sectors = segments.sectors();
    }

    /// Makes room for the segments of an indirect request; returns where they are to be copied to.
    pub(super) fn make_room(&mut self, count: usize, page: DmaPage) -> BusAddr {
        self.count = count as u16;
        self.page.insert(page).bus.offset(COPIED as u64)
    }

    /// Makes pieces of the segments that were copied.
    ///
    /// # Errors
    /// One makes no sense; there are no pieces then.
    pub(super) fn hold_copied(&mut self) -> Result<(), Reject> {
        let count = core::mem::take(&mut self.count);
        let page = &self.page.as_ref().expect("there is room for copied segments").page;
        for i in 0..usize::from(count) {
            let segment = Segment::parse(page.read_u64(COPIED + i * SEGMENT_BYTES).to_le_bytes())?;
            self.sectors += segment.sectors();
            write_piece(page, i, Piece::new(segment));
        }
        self.count = count;
        Ok(())
    }

    /// Its segments could not be copied: what the page holds is another request's.
    pub(super) const fn without_pieces(&mut self) {
        self.count = 0;
    }

    /// How many pieces there are.
    pub(super) const fn pieces(&self) -> usize {
        self.count as usize
    }

    /// A piece.
    pub(super) fn piece(&self, i: usize) -> Piece {
        match &self.page {
            None => self.direct[i],
            Some(page) => Piece::from_words([0, 8].map(|word| page.page.read_u64(i * PIECE_BYTES + word))),
        }
    }

    /// Changes a piece.
    pub(super) fn set_piece(&mut self, i: usize, piece: Piece) {
        match &self.page {
            None => self.direct[i] = piece,
            Some(page) => write_piece(&page.page, i, piece),
        }
    }

    /// What the device will do to the guest's pages. Guests grant the data of a write for reading
    /// only, so asking for more would fail.
    pub(super) const fn access(&self) -> DeviceAccess {
        match self.op {
            Operation::Read => DeviceAccess::Writes,
            Operation::Write | Operation::Flush | Operation::Barrier | Operation::Discard => {
                DeviceAccess::Reads
            }
        }
    }

    /// The data that was not issued: spans, and how many pieces were issued once the span is.
    pub(super) fn rest(&self) -> impl Iterator<Item = (Span, u16)> {
        let mut at = self.issued;
        core::iter::from_fn(move || {
            let pieces = self.run(at..self.count)?;
            at = pieces.1;
            Some(pieces)
        })
    }

    /// The first piece of a range with those that follow on in the same page: a command then has
    /// fewer spans, and spans that meet inside a page are what controllers cannot express.
    fn run(&self, range: Range<u16>) -> Option<(Span, u16)> {
        let mut rest = range.map(|i| (self.piece(i.into()).span(), i + 1));
        let (mut span, mut end) = rest.next()?;
        for (next, after) in rest {
            let follows = span.bus.offset(u64::from(span.bytes)) == next.bus;
            if !follows || next.bus.0.is_multiple_of(PAGE_SIZE as u64) {
                break;
            }
            span.bytes += next.bytes;
            end = after;
        }
        Some((span, end))
    }

    /// So many pieces were issued, with those that were before.
    ///
    /// # Panics
    /// When there are no more of them than before, or not so many.
    pub(super) fn issue(&mut self, pieces: u16) {
        assert!(pieces > self.issued && pieces <= self.count, "what is issued is a part of what is left");
        self.issued = pieces;
    }

    /// Nothing more of it will be issued.
    pub(super) fn abandon(&mut self) {
        self.status = Status::Error;
        self.flush = false;
        self.issued = self.count;
        self.left = Block(0);
    }

    /// Whether everything was issued.
    pub(super) const fn all_issued(&self) -> bool {
        !self.flush && self.issued == self.count && self.left.0 == 0
    }
}

fn write_piece(page: &SharedPage, i: usize, piece: Piece) {
    for (word, value) in [0, 8].into_iter().zip(piece.to_words()) {
        page.write_u64(i * PIECE_BYTES + word, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::frame::Frame;
    use crate::wire::blkif::tests::segment_bytes;
    use std::vec::Vec;

    const HEAD: Head = Head { operation: 0, id: 7 };

    /// A slot with so many segments in a page, of which the table is given.
    fn indirect(table: &[(u32, u8, u8)]) -> (Slot, Result<(), Reject>) {
        let frame = Frame::new();
        // What another request left there.
        frame.fill(0xff);
        let mut slot = Slot::EMPTY;
        slot.accept(HEAD, 3, Operation::Write, Instant(0));
        let to = slot.make_room(table.len(), DmaPage { page: frame.shared(), bus: BusAddr(0x7000) });
        let at = usize::try_from(to.0 - 0x7000).unwrap();
        for (i, segment) in table.iter().enumerate() {
            frame.write(at + i * SEGMENT_BYTES, &segment_bytes(*segment));
        }
        let held = slot.hold_copied();
        (slot, held)
    }

    fn shape(i: u32) -> (u32, u8, u8) {
        let first = (i % 8) as u8;
        (u32::MAX - i, first, first.max((i / 8 % 8) as u8))
    }

    #[test]
    fn copied_segments_become_pieces_in_the_same_page() {
        for count in [1, 2, 127, 128, 129, 255, 256] {
            let table: Vec<_> = (0..count).map(shape).collect();
            let (mut slot, held) = indirect(&table);
            assert_eq!((held, slot.pieces()), (Ok(()), table.len()));
            let mut sectors = 0;
            for (i, (gref, first, last)) in table.iter().enumerate() {
                let piece = slot.piece(i);
                assert_eq!(piece.grant, Grant::Asked(GrantRef(*gref)), "{i} of {count}");
                slot.set_piece(
                    i,
                    piece.at(Grant::Kept(i as u16), BusAddr(0x1_0000_0000 + i as u64 * 0x2000)),
                );
                let bytes = (u32::from(last - first) + 1) * 512;
                let bus = BusAddr(0x1_0000_0000 + i as u64 * 0x2000 + u64::from(*first) * 512);
                assert_eq!(slot.piece(i).span(), Span { bus, bytes });
                sectors += u64::from(bytes / 512);
            }
            assert_eq!(slot.sectors, sectors);
            assert_eq!(slot.rest().count(), table.len());
        }
    }

    #[test]
    fn a_bad_segment_leaves_no_pieces() {
        for at in [0, 1, 128, 255] {
            for bad in [(1, 7, 6), (1, 0, 8), (1, 0, 255), (1, 255, 255)] {
                let mut table: Vec<_> = (0..256).map(shape).collect();
                table[at] = bad;
                let (slot, held) = indirect(&table);
                assert_eq!((held, slot.pieces()), (Err(Reject::Segment), 0), "segment {at}");
                assert!(slot.page.is_some(), "the page is still to be given back");
            }
        }
    }

    #[test]
    fn a_piece_is_written_and_read_back() {
        let segment = Segment { gref: GrantRef(1), first: 3, last: 6 };
        let grants = [
            Grant::Asked(GrantRef(u32::MAX)),
            Grant::Mapped(GrantHandle(u32::MAX)),
            Grant::Mapped(GrantHandle(0)),
            Grant::Kept(u16::MAX),
        ];
        for grant in grants {
            for page in [0x1000, !4095] {
                let piece = Piece::new(segment).at(grant, BusAddr(page));
                assert_eq!(Piece::from_words(piece.to_words()), piece);
                assert_eq!((piece.grant, piece.page()), (grant, BusAddr(page)));
                assert_eq!(piece.span(), Span { bus: BusAddr(page + 3 * 512), bytes: 2048 });
                // Mapped elsewhere, it is the same run of sectors.
                let moved = piece.at(grant, BusAddr(0x5000));
                assert_eq!(moved.span(), Span { bus: BusAddr(0x5600), bytes: 2048 });
            }
        }
    }

    #[test]
    fn a_request_is_issued_run_by_run() {
        let table = [(1, 0, 1), (1, 2, 7), (2, 0, 7), (4, 0, 3), (4, 4, 7), (4, 0, 0)];
        let (mut slot, held) = indirect(&table);
        assert_eq!(held, Ok(()));
        for (i, (gref, ..)) in table.iter().enumerate() {
            slot.set_piece(i, slot.piece(i).at(Grant::Kept(0), BusAddr(u64::from(*gref) * 4096)));
        }
        let span = |bus, bytes| Span { bus: BusAddr(bus), bytes };
        let runs =
            [(span(4096, 4096), 2), (span(8192, 4096), 3), (span(16384, 4096), 5), (span(16384, 512), 6)];
        assert_eq!(slot.rest().collect::<Vec<_>>(), runs);
        slot.issue(runs[1].1);
        assert!(!slot.all_issued());
        assert_eq!(slot.rest().collect::<Vec<_>>(), runs[2..]);
        slot.issue(runs[3].1);
        assert!(slot.all_issued());
        assert_eq!(slot.rest().next(), None);
    }

    #[test]
    fn every_few_pieces_are_issued_whole_in_order_and_in_as_few_runs_as_can_be() {
        // Quarters of two pages that are neighbours.
        let places = (0..4).flat_map(|first| (first..4).map(move |last| (first * 2, last * 2 + 1)));
        let shapes: Vec<_> = places.flat_map(|place| [(1, place), (2, place)]).collect();
        let sectors = |span: Span| (span.bus.0..span.bus.0 + u64::from(span.bytes)).step_by(SECTOR_SIZE);
        for request in 0..shapes.len().pow(4) {
            let shape = |i| shapes[request / shapes.len().pow(i) % shapes.len()];
            let request: [(u64, (u8, u8)); 4] = [0, 1, 2, 3].map(shape);
            let mut slot = Slot::EMPTY;
            slot.accept(HEAD, 0, Operation::Read, Instant(0));
            let places = request.map(|(_, (first, last))| segment_bytes((0, first, last)));
            slot.hold(Segments::parse(&places).unwrap());
            for (i, (page, _)) in request.iter().enumerate() {
                slot.set_piece(i, slot.piece(i).at(Grant::Kept(0), BusAddr(page * 4096)));
            }
            let runs: Vec<Span> = slot.rest().map(|(span, _)| span).collect();
            let asked = request.iter().flat_map(|(page, (first, last))| {
                (u64::from(*first)..=u64::from(*last)).map(move |sector| page * 4096 + sector * 512)
            });
            assert!(runs.iter().copied().flat_map(sectors).eq(asked), "{request:?}");
            assert!(runs.iter().all(|run| run.bus.0 % 4096 + u64::from(run.bytes) <= 4096), "{runs:?}");
            let meet = |pair: &[Span]| pair[0].bus.offset(pair[0].bytes.into()) == pair[1].bus;
            let are_one = |pair: &[Span]| meet(pair) && !pair[1].bus.0.is_multiple_of(4096);
            assert!(!runs.windows(2).any(are_one), "{runs:?}");
        }
    }

    #[test]
    fn a_slot_keeps_nothing_of_the_request_before() {
        let mut slot = Slot::EMPTY;
        slot.accept(HEAD, 3, Operation::Barrier, Instant(1));
        slot.hold(Segments::parse(&[segment_bytes((1, 0, 7)); SEGMENTS]).unwrap());
        assert!(slot.flush && slot.sectors == 88);
        slot.left = Block(9);
        slot.abandon();
        assert!(slot.all_issued() && slot.status == Status::Error);
        slot.accept(HEAD, 2, Operation::Read, Instant(2));
        assert_eq!((slot.status, slot.pieces(), slot.sectors, slot.flush), (Status::Okay, 0, 0, false));
        assert!(slot.all_issued() && slot.ring == 2 && slot.taken == Instant(2));
    }
}
