//! `segments/`: how many segments a request has, their shapes, and those that are none.

use platter::hal::DeviceAccess;

use crate::pattern::Tag;
use crate::protocol::abi::{Body, Request, Segment};
use crate::protocol::{
    BARRIER, DISCARD, ERROR, FLUSH, INDIRECT, NOT_SUPPORTED, OKAY, PAGE_SECTORS, READ, SEGMENTS, WRITE,
};
use crate::stage::Stage;
use crate::terms::Terms;
use crate::transfer::{self, Carrier, Piece, Pieces, piece, whole};
use crate::verdict::{Check, Verdict, ensure, needs};

const INNER: &str = "blkif.h: indirect_op is BLKIF_OP_READ or BLKIF_OP_WRITE";
const NOTHING: &str =
    "Linux takes requests without segments for flushes alone (blkback.c: dispatch_rw_block_io)";
const READ_ONLY: &str =
    "grant_table.h: a page granted with GTF_readonly cannot be mapped or copied to for writing";

/// Shapes of segments in a row.
const UNALIGNED: [Piece; 6] =
    [piece(0, 3, 6), piece(1, 1, 2), piece(2, 5, 7), piece(3, 0, 0), piece(4, 7, 7), piece(5, 2, 5)];
const MEETING: [Piece; 8] = [
    piece(0, 0, 2),
    piece(0, 3, 7),
    piece(1, 0, 4),
    piece(1, 5, 5),
    piece(1, 6, 7),
    piece(2, 1, 3),
    piece(2, 4, 6),
    piece(3, 0, 7),
];
const BACKWARDS: [Piece; 6] =
    [piece(2, 4, 7), piece(2, 0, 3), piece(1, 6, 7), piece(1, 0, 5), piece(0, 7, 7), piece(0, 0, 6)];

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::new("segments/direct-1", |stage| direct(stage, &whole(1))),
    Check::new("segments/direct-11", |stage| direct(stage, &whole(SEGMENTS))),
    Check::because("segments/direct-0", NOTHING, |stage| miscounted(stage, 0)),
    Check::new("segments/direct-12", |stage| miscounted(stage, 12)),
    Check::new("segments/direct-255", |stage| miscounted(stage, 255)),
    Check::new("segments/every-first-and-last", every_pair),
    Check::new("segments/unaligned", |stage| direct(stage, &UNALIGNED)),
    Check::new("segments/meeting-inside-pages", |stage| direct(stage, &MEETING)),
    Check::new("segments/backwards", |stage| direct(stage, &BACKWARDS)),
    Check::new("segments/one-page-many-times", |stage| direct(stage, &[piece(0, 0, 7); SEGMENTS])),
    Check::new("segments/one-sector-many-times", |stage| direct(stage, &[piece(0, 3, 3); SEGMENTS])),
    Check::new("segments/first-after-last", |stage| malformed(stage, Carrier::Direct, 5, 4)),
    Check::new("segments/last-beyond-the-page", |stage| malformed(stage, Carrier::Direct, 0, 8)),
    Check::new("segments/last-255", |stage| malformed(stage, Carrier::Direct, 0, 255)),
    Check::new("segments/indirect-1", |stage| indirect(stage, &whole(1))),
    Check::new("segments/indirect-11", |stage| indirect(stage, &whole(11))),
    Check::new("segments/indirect-12", |stage| indirect(stage, &whole(12))),
    Check::new("segments/indirect-32", |stage| indirect(stage, &whole(32))),
    Check::new("segments/indirect-255", |stage| indirect(stage, &whole(255))),
    Check::new("segments/indirect-256", |stage| indirect(stage, &whole(256))),
    Check::new("segments/indirect-too-many", indirect_too_many),
    Check::new("segments/indirect-0", |stage| indirect_miscounted(stage, 0)),
    Check::new("segments/indirect-65535", |stage| indirect_miscounted(stage, u16::MAX)),
    Check::new("segments/indirect-unaligned", |stage| indirect(stage, &repeated(&UNALIGNED, 4))),
    Check::new("segments/indirect-meeting-inside-pages", |stage| indirect(stage, &repeated(&MEETING, 4))),
    Check::new("segments/indirect-one-page-many-times", |stage| indirect(stage, &[piece(0, 0, 7); 32])),
    Check::new("segments/indirect-first-after-last", |stage| malformed(stage, Carrier::Indirect, 5, 4)),
    Check::new("segments/indirect-last-beyond-the-page", |stage| malformed(stage, Carrier::Indirect, 0, 8)),
    Check::because("segments/indirect-of-other-operations", INNER, other_inner_operations),
    Check::new("segments/indirect-bad-page", indirect_bad_page),
    Check::new("segments/bad-grant", |stage| bad_grant(stage, Carrier::Direct)),
    Check::new("segments/indirect-bad-grant", |stage| bad_grant(stage, Carrier::Indirect)),
    Check::new("segments/no-such-grant", no_such_grant),
    Check::because("segments/read-into-a-read-only-grant", READ_ONLY, read_only_grant),
    Check::new("segments/write-from-a-writable-grant", writable_grant),
];

fn direct(stage: &mut Stage, pieces: &[Piece]) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    stage.both_ways(Carrier::Direct, pieces)
}

fn needs_indirect(stage: &mut Stage, count: usize) -> Verdict {
    let most = stage.offer.max_segments;
    needs!(count <= most as usize, "feature-max-indirect-segments is {most}");
    stage.connect(Terms::PLAIN)
}

fn indirect(stage: &mut Stage, pieces: &[Piece]) -> Verdict {
    needs_indirect(stage, pieces.len())?;
    stage.both_ways(Carrier::Indirect, pieces)
}

/// A shape again and again, each time in pages of its own.
fn repeated(pieces: &[Piece], times: usize) -> Pieces {
    let pages = pieces.iter().map(|piece| piece.page + 1).max().unwrap_or(0);
    let moved = |time: usize| pieces.iter().map(move |p| piece(p.page + time * pages, p.first, p.last));
    (0..times).flat_map(moved).collect()
}

/// A request that makes no sense has its own response, and no other consequence.
fn ensure_refused(what: &str, status: i16) -> Verdict {
    ensure!(matches!(status, ERROR | NOT_SUPPORTED), "{what}: status {status}, not an error");
    Ok(())
}

fn miscounted(stage: &mut Stage, count: u8) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let buffer = stage.lend(DeviceAccess::Writes)?;
    let segments = [stage.segment(buffer, 0, 0); SEGMENTS];
    for op in [READ, WRITE] {
        let (id, sector) = (stage.fresh_id(), stage.area);
        let status =
            stage.ask(&Request { op, id, sector, body: Body::Direct { count, segments: &segments } })?;
        ensure_refused("a request with an impossible number of segments", status)?;
        ensure!(stage.is_untouched(buffer), "a refused request changed a page");
    }
    stage.works()
}

fn every_pair(stage: &mut Stage) -> Verdict {
    let pairs = (0..PAGE_SECTORS).flat_map(|first| (first..PAGE_SECTORS).map(move |last| (first, last)));
    let all: Pieces = pairs.enumerate().map(|(i, (first, last))| piece(i % SEGMENTS, first, last)).collect();
    stage.connect(Terms::PLAIN)?;
    all.chunks(SEGMENTS).try_for_each(|pieces| stage.both_ways(Carrier::Direct, pieces))
}

/// The second of three segments names sectors that are none.
fn malformed(stage: &mut Stage, carrier: Carrier, first: u8, last: u8) -> Verdict {
    if carrier == Carrier::Indirect {
        needs_indirect(stage, 3)?;
    } else {
        stage.connect(Terms::PLAIN)?;
    }
    let pages = stage.lend_pages(&whole(3), DeviceAccess::Writes)?;
    stage.fill_pages(&pages);
    stage.disk_stays(|stage, at| {
        let mut segments: heapless::Vec<Segment, 3> =
            pages.iter().map(|page| stage.segment(*page, 0, 7)).collect();
        segments[1] = stage.segment(pages[1], first, last);
        stage.carry(carrier, WRITE, at, &segments)
    })?;
    stage.check_pages(&pages)?;
    stage.works()
}

fn indirect_too_many(stage: &mut Stage) -> Verdict {
    let count = stage.offer.max_segments as usize + 1;
    needs!(count > 1, "feature-max-indirect-segments is 0");
    needs!(count <= transfer::MOST, "feature-max-indirect-segments is more than is tried");
    stage.connect(Terms::PLAIN)?;
    let pages = stage.lend_pages(&whole(count), DeviceAccess::Reads)?;
    stage.disk_stays(|stage, at| stage.transfer(Carrier::Indirect, WRITE, at, &whole(count), &pages))?;
    stage.works()
}

fn indirect_miscounted(stage: &mut Stage, count: u16) -> Verdict {
    needs_indirect(stage, 1)?;
    let buffer = stage.lend(DeviceAccess::Reads)?;
    let segment = stage.segment(buffer, 0, 7);
    stage.disk_stays(|stage, sector| {
        let pages = stage.lend_segments(&[segment; 8])?;
        let (id, body) = (stage.fresh_id(), Body::Indirect { op: WRITE, count, pages: &pages });
        stage.ask(&Request { op: INDIRECT, id, sector, body })
    })?;
    stage.works()
}

fn other_inner_operations(stage: &mut Stage) -> Verdict {
    needs_indirect(stage, 1)?;
    let buffer = stage.lend(DeviceAccess::Writes)?;
    let segment = stage.segment(buffer, 0, 7);
    for op in [BARRIER, FLUSH, DISCARD, INDIRECT, 7, 255] {
        stage.disk_stays(|stage, at| stage.indirect(op, at, &[segment]))?;
        ensure!(stage.is_untouched(buffer), "a refused request changed a page");
    }
    stage.works()
}

fn indirect_bad_page(stage: &mut Stage) -> Verdict {
    needs_indirect(stage, 1)?;
    let bad = stage.lend(DeviceAccess::Writes)?;
    stage.revoke(bad)?;
    stage.disk_stays(|stage, sector| {
        let pages = [stage.gref(bad)];
        let (id, body) = (stage.fresh_id(), Body::Indirect { op: WRITE, count: 8, pages: &pages });
        stage.ask(&Request { op: INDIRECT, id, sector, body })
    })?;
    stage.works()
}

/// The second of three pages is not granted any more.
fn bad_grant(stage: &mut Stage, carrier: Carrier) -> Verdict {
    if carrier == Carrier::Indirect {
        needs_indirect(stage, 3)?;
    } else {
        stage.connect(Terms::PLAIN)?;
    }
    let pages = stage.lend_pages(&whole(3), DeviceAccess::Writes)?;
    stage.revoke(pages[1])?;
    stage.disk_stays(|stage, at| stage.transfer(carrier, WRITE, at, &whole(3), &pages))?;
    let at = stage.area;
    let status = stage.transfer(carrier, READ, at, &whole(3), &pages)?;
    ensure_refused("a read into a page that is not granted", status)?;
    ensure!(stage.is_untouched(pages[1]), "a read changed a page that is not granted");
    stage.works()
}

fn no_such_grant(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    for gref in [0x1_0000, 0x7fff_ffff, 0xffff_fff0, u32::MAX] {
        let segments = [Segment { gref, first: 0, last: 7 }];
        for op in [READ, WRITE] {
            stage.disk_stays(|stage, at| stage.direct(op, at, &segments))?;
        }
    }
    stage.works()
}

fn read_only_grant(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let pages = stage.lend_pages(&whole(1), DeviceAccess::Reads)?;
    let at = stage.area;
    let status = stage.transfer(Carrier::Direct, READ, at, &whole(1), &pages)?;
    ensure_refused("a read into a page that is granted to be read only", status)?;
    ensure!(stage.is_untouched(pages[0]), "a read changed a page that is granted to be read only");
    stage.works()
}

fn writable_grant(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let pages = stage.lend_pages(&whole(2), DeviceAccess::Writes)?;
    stage.fill_pages(&pages);
    let at = stage.area;
    let status = stage.transfer(Carrier::Direct, WRITE, at, &whole(2), &pages)?;
    ensure!(status == OKAY, "a write from pages that are writable: status {status}");
    stage.check_pages(&pages)
}

impl Stage<'_> {
    /// Sends a request with these segments, whatever they are, and gives its status.
    pub(crate) fn carry(&mut self, carrier: Carrier, op: u8, at: u64, segments: &[Segment]) -> Verdict<i16> {
        match carrier {
            Carrier::Direct => self.direct(op, at, segments),
            Carrier::Indirect => self.indirect(op, at, segments),
        }
    }

    /// Sends a request that must be refused, at a place where it would be seen on the disk.
    pub(crate) fn disk_stays(&mut self, send: impl FnOnce(&mut Self, u64) -> Verdict<i16>) -> Verdict {
        let (at, count, seed) = (self.area, 40, self.seed);
        let before = |sector| Tag::of(seed ^ 7, sector);
        self.paint(at, count, before)?;
        let status = send(self, at + 8)?;
        ensure_refused("a request that makes no sense", status)?;
        self.verify(at, count, before)
    }
}
