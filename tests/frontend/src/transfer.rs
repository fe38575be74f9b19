//! Reads and writes of any shape, and their proof: a shape is a list of pieces of pages. What one
//! way of asking wrote is read back by another, every sector that no piece covers must be as it was,
//! on the disk beside the request and in the pages.

use heapless::Vec;
use platter::hal::DeviceAccess;

use crate::pattern::{self, CANARY, Tag};
use crate::protocol::abi::{Body, Request, Segment};
use crate::protocol::{INDIRECT, INDIRECT_PAGES, OKAY, PAGE_SECTORS, READ, SEGMENTS_PER_PAGE, WRITE};
use crate::shelf::Buffer;
use crate::stage::Stage;
use crate::verdict::{Verdict, ensure, needs};

/// Pieces of the largest request that is tried.
pub(crate) const MOST: usize = 260;
/// Sectors before and after a request that must stay as they are.
const BESIDE: u64 = 8;

/// Sectors `first` to `last` of a page; pages have numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) page: usize,
    pub(crate) first: u8,
    pub(crate) last: u8,
}

/// A shape.
pub(crate) type Pieces = Vec<Piece, MOST>;
/// The pages that the numbers stand for.
pub(crate) type Pages = Vec<Buffer, MOST>;

/// How a request names its segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carrier {
    /// In itself.
    Direct,
    /// In pages of their own.
    Indirect,
}

/// A piece.
pub(crate) const fn piece(page: usize, first: u8, last: u8) -> Piece {
    Piece { page, first, last }
}

/// As many whole pages.
pub(crate) fn whole(count: usize) -> Pieces {
    (0..count).map(|page| piece(page, 0, PAGE_SECTORS - 1)).collect()
}

/// Sectors of a shape.
pub(crate) fn sectors(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.last - piece.first) + 1).sum()
}

/// The page and the sector in it of each sector of a shape, in the order of the disk.
fn places(pieces: &[Piece]) -> impl Iterator<Item = (usize, u8)> {
    pieces.iter().flat_map(|piece| (piece.first..=piece.last).map(|sector| (piece.page, sector)))
}

/// Every sector of pages: the page's number, the sector's, and the page.
fn each_sector(pages: &Pages) -> impl Iterator<Item = (usize, u8, Buffer)> {
    let pages = pages.iter().enumerate();
    pages.flat_map(|(page, buffer)| (0..PAGE_SECTORS).map(move |sector| (page, sector, *buffer)))
}

/// What is written from a sector of a page.
fn source(seed: u64, (page, sector): (usize, u8)) -> Tag {
    Tag::of(seed ^ 2, (page as u64) << 8 | u64::from(sector))
}

impl Stage<'_> {
    /// Finds that plain requests work, with proof.
    pub(crate) fn works(&mut self) -> Verdict {
        self.both_ways(Carrier::Direct, &whole(2))
    }

    /// Writes and reads a shape in the check's own area, with proof of both.
    #[inline(never)]
    pub(crate) fn both_ways(&mut self, carrier: Carrier, pieces: &[Piece]) -> Verdict {
        let at = self.area + BESIDE;
        self.write_lands(carrier, pieces, at)?;
        self.read_fills(carrier, pieces, at)
    }

    /// Writes a shape at `at`. What is beside it must stay: [`BESIDE`] sectors, or fewer where the
    /// disk ends.
    #[inline(never)]
    pub(crate) fn write_lands(&mut self, carrier: Carrier, pieces: &[Piece], at: u64) -> Verdict {
        self.needs_blocks(pieces)?;
        let (seed, count) = (self.seed, sectors(pieces));
        let (head, end) = (BESIDE.min(at), at + count);
        let tail = BESIDE.min(self.offer.sectors - end);
        let before = |sector| Tag::of(seed ^ 1, sector);
        self.paint(at - head, head + count + tail, before)?;
        let pages = self.lend_pages(pieces, DeviceAccess::Reads)?;
        self.fill_pages(&pages);
        let status = self.transfer(carrier, WRITE, at, pieces, &pages)?;
        ensure!(status == OKAY, "{carrier:?} write of {} segments: status {status}", pieces.len());
        self.check_pages(&pages)?;
        let mut written = places(pieces);
        self.verify(at - head, head, before)?;
        self.verify(at, count, |_| written.next().map_or(CANARY, |place| source(seed, place)))?;
        self.verify(end, tail, before)
    }

    /// Fills pages with what is to be written.
    pub(crate) fn fill_pages(&self, pages: &Pages) {
        for (page, sector, buffer) in each_sector(pages) {
            pattern::fill(self.page(buffer), sector, source(self.seed, (page, sector)));
        }
    }

    /// Finds that pages hold what was to be written.
    pub(crate) fn check_pages(&self, pages: &Pages) -> Verdict {
        for (page, sector, buffer) in each_sector(pages) {
            let kept = pattern::holds(self.page(buffer), sector, source(self.seed, (page, sector)));
            ensure!(kept, "a request changed a page that it was only to read");
        }
        Ok(())
    }

    /// Reads a shape from `at`.
    #[inline(never)]
    pub(crate) fn read_fills(&mut self, carrier: Carrier, pieces: &[Piece], at: u64) -> Verdict {
        self.needs_blocks(pieces)?;
        let (seed, count) = (self.seed, sectors(pieces));
        let content = |sector| Tag::of(seed ^ 3, sector);
        self.paint(at, count, content)?;
        let pages = self.lend_pages(pieces, DeviceAccess::Writes)?;
        let status = self.transfer(carrier, READ, at, pieces, &pages)?;
        ensure!(status == OKAY, "{carrier:?} read of {} segments: status {status}", pieces.len());
        for (page, sector, buffer) in each_sector(&pages) {
            self.check_place(buffer, (page, sector), pieces, |index| content(at + index))?;
        }
        Ok(())
    }

    /// A sector of a page holds what one of the disk's sectors that are read into it holds, or what
    /// was there before when there is none.
    fn check_place(
        &self,
        buffer: Buffer,
        place: (usize, u8),
        pieces: &[Piece],
        content: impl Fn(u64) -> Tag,
    ) -> Verdict {
        let is_here = |tag| pattern::holds(self.page(buffer), place.1, tag);
        let mut sources = (0u64..).zip(places(pieces)).filter(|(_, to)| *to == place).peekable();
        let (page, sector) = place;
        if sources.peek().is_none() {
            ensure!(
                is_here(CANARY),
                "a read touched sector {sector} of page {page}, which no segment covers"
            );
        } else {
            let right = sources.any(|(index, _)| is_here(content(index)));
            ensure!(right, "after a read, sector {sector} of page {page} does not hold what is on the disk");
        }
        Ok(())
    }

    /// One page for each number in a shape.
    #[inline(never)]
    pub(crate) fn lend_pages(&mut self, pieces: &[Piece], access: DeviceAccess) -> Verdict<Pages> {
        let count = pieces.iter().map(|piece| piece.page + 1).max().unwrap_or(0);
        let mut pages = Pages::new();
        for _ in 0..count {
            let buffer = self.lend(access)?;
            let _ = pages.push(buffer);
        }
        Ok(pages)
    }

    /// Sends a request of a shape and gives its status.
    #[inline(never)]
    pub(crate) fn transfer(
        &mut self,
        carrier: Carrier,
        op: u8,
        sector: u64,
        pieces: &[Piece],
        pages: &Pages,
    ) -> Verdict<i16> {
        let segments: Vec<Segment, MOST> =
            pieces.iter().map(|piece| self.segment(pages[piece.page], piece.first, piece.last)).collect();
        match carrier {
            Carrier::Direct => self.direct(op, sector, &segments),
            Carrier::Indirect => self.indirect(op, sector, &segments),
        }
    }

    /// Sends an indirect request and gives its status.
    pub(crate) fn indirect(&mut self, op: u8, sector: u64, segments: &[Segment]) -> Verdict<i16> {
        let pages = self.lend_segments(segments)?;
        let (id, count) = (self.fresh_id(), segments.len() as u16);
        self.ask(&Request { op: INDIRECT, id, sector, body: Body::Indirect { op, count, pages: &pages } })
    }

    /// Pages that hold segments, for an indirect request: their references.
    pub(crate) fn lend_segments(&mut self, segments: &[Segment]) -> Verdict<Vec<u32, INDIRECT_PAGES>> {
        let mut grefs = Vec::new();
        for chunk in segments.chunks(SEGMENTS_PER_PAGE) {
            let buffer = self.lend(DeviceAccess::Reads)?;
            for (i, segment) in chunk.iter().enumerate() {
                self.page(buffer).write_bytes(i * Segment::SIZE, &segment.encode());
            }
            let _ = grefs.push(self.gref(buffer));
        }
        Ok(grefs)
    }

    /// Skips a check whose segments are finer than the disk's blocks.
    fn needs_blocks(&self, pieces: &[Piece]) -> Verdict {
        let block = self.offer.block();
        let fits = |piece: &Piece| (u64::from(piece.last - piece.first) + 1).is_multiple_of(block);
        needs!(pieces.iter().all(fits), "sector-size is {}", self.offer.sector_size);
        Ok(())
    }
}
