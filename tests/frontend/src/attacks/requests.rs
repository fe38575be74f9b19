//! `requests/`: well-formed rings of requests that make no sense, or that cost a backend much.

use platter::hal::DeviceAccess;

use super::Attack;
use super::siege::{Entry, Siege};
use crate::protocol::abi::{Body, Request, Segment};
use crate::protocol::{
    BARRIER, DISCARD, FLUSH, INDIRECT, INDIRECT_PAGES, PAGE_SECTORS, READ, SECURE, SEGMENTS,
    SEGMENTS_PER_PAGE, WRITE,
};
use crate::shelf::Buffer;
use crate::transfer::Pages;
use crate::verdict::{Verdict, needs};

/// Pages of segments that indirect requests share.
const DESCRIPTORS: usize = 16;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("requests/flushes", |siege| bare(siege, FLUSH)),
    Attack::new("requests/barriers", |siege| bare(siege, BARRIER)),
    Attack::new("requests/discards", discards),
    Attack::new("requests/beyond-the-end", beyond_the_end),
    Attack::new("requests/counts-that-lie", counts_that_lie),
    Attack::new("requests/splinters", splinters),
    Attack::new("requests/descriptors-rewritten", descriptors_rewritten),
];

/// An operation without data, with a write now and then for it to act on.
fn bare(siege: &mut Siege, op: u8) -> Verdict {
    let offer = siege.stage.offer;
    needs!(if op == FLUSH { offer.flush } else { offer.barrier }, "operation {op} is not offered");
    let pages = siege.open(siege.widest(), 8, DeviceAccess::Reads)?;
    siege.flood(|siege| {
        if siege.below(8) > 0 {
            return siege.direct(op, 0, &[]);
        }
        let (sector, segments) = (siege.place(), [siege.whole(&pages)]);
        siege.direct(WRITE, sector, &segments)
    })
}

/// Discards of the whole disk, of a sector, of what is beyond the end, of nothing.
fn discards(siege: &mut Siege) -> Verdict {
    needs!(siege.stage.offer.discard, "the backend does not offer feature-discard");
    let sectors = siege.stage.offer.sectors;
    siege.stage.connect(siege.widest())?;
    siege.flood(|siege| {
        let sector = siege.place();
        let (sector, count) =
            siege.one_of(&[(0, sectors), (sector, 1), (sector, sectors), (u64::MAX, 2), (sector, 0)]);
        let (id, flag) = (siege.stage.fresh_id(), siege.one_of(&[0, SECURE, 0xff]));
        siege.encode(&Request { op: DISCARD, id, sector, body: Body::Discard { flag, sectors: count } })
    })
}

/// Reads and writes that begin or end where the disk has ended.
fn beyond_the_end(siege: &mut Siege) -> Verdict {
    let end = siege.stage.offer.sectors;
    let pages = siege.open(siege.widest(), 8, DeviceAccess::Writes)?;
    siege.flood(|siege| {
        let ahead = siege.below(end);
        let places = [end - 1, end, end + ahead, 1 << 32, 1 << 55, u64::MAX - 7, u64::MAX];
        let (op, sector) = (siege.one_of(&[READ, WRITE]), siege.one_of(&places));
        let segments = [siege.whole(&pages); 2];
        siege.direct(op, sector, &segments)
    })
}

/// Counts that say more or other than is there, in requests of both kinds, and pieces of pages that
/// end before they begin.
fn counts_that_lie(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 8, DeviceAccess::Writes)?;
    siege.flood(|siege| {
        let (op, page, sector) = (siege.one_of(&[READ, WRITE]), siege.one_of(&pages), siege.place());
        let (first, last, id) = (siege.below(256) as u8, siege.below(256) as u8, siege.stage.fresh_id());
        let segments = [siege.stage.segment(page, first, last); SEGMENTS];
        let grefs = [siege.stage.gref(page); INDIRECT_PAGES];
        let body = if siege.below(2) == 0 {
            Body::Direct { count: siege.below(256) as u8, segments: &segments }
        } else {
            let op = siege.below(8) as u8;
            Body::Indirect { op, count: siege.below(1 << 16) as u16, pages: &grefs }
        };
        let op = if matches!(body, Body::Indirect { .. }) { INDIRECT } else { op };
        siege.encode(&Request { op, id, sector, body })
    })
}

/// A sector that no page-wise controller can join to what is before it, or after it.
fn splinter(siege: &mut Siege, pages: &[Buffer]) -> Segment {
    let page = siege.one_of(pages);
    let sector = 1 + siege.below(u64::from(PAGE_SECTORS) - 2) as u8;
    siege.stage.segment(page, sector, sector)
}

/// An indirect read of as many segments as there may be.
fn indirect(siege: &mut Siege, descriptors: &[Buffer]) -> Entry {
    let (most, sector, id) = (siege.stage.offer.max_segments, siege.place(), siege.stage.fresh_id());
    let count = (most as usize).min(INDIRECT_PAGES * SEGMENTS_PER_PAGE);
    let grefs: heapless::Vec<u32, INDIRECT_PAGES> =
        (0..count.div_ceil(SEGMENTS_PER_PAGE)).map(|_| siege.whole(descriptors).gref).collect();
    let body = Body::Indirect { op: READ, count: count as u16, pages: &grefs };
    siege.encode(&Request { op: INDIRECT, id, sector, body })
}

fn write_segment(siege: &Siege, descriptor: Buffer, index: usize, segment: Segment) {
    siege.stage.page(descriptor).write_bytes(index * Segment::SIZE, &segment.encode());
}

/// Connects, with pages for data and pages full of segments.
fn with_descriptors(siege: &mut Siege) -> Verdict<(Pages, Pages)> {
    needs!(siege.stage.offer.max_segments > 0, "the backend offers no indirect segments");
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    let descriptors = siege.lend(DESCRIPTORS, DeviceAccess::Writes)?;
    for descriptor in &descriptors {
        for index in 0..SEGMENTS_PER_PAGE {
            let segment = splinter(siege, &pages);
            write_segment(siege, *descriptor, index, segment);
        }
    }
    Ok((pages, descriptors))
}

/// Indirect requests of the most segments, each a sector in the middle of a page: a command each.
fn splinters(siege: &mut Siege) -> Verdict {
    let (_, descriptors) = with_descriptors(siege)?;
    siege.flood(|siege| indirect(siege, &descriptors))
}

/// Segments change into others, and into nonsense, while the requests that they belong to are read.
fn descriptors_rewritten(siege: &mut Siege) -> Verdict {
    let (pages, descriptors) = with_descriptors(siege)?;
    siege.flood_and(
        |siege| indirect(siege, &descriptors),
        |siege| {
            siege.call();
            for _ in 0..SEGMENTS_PER_PAGE {
                let nonsense = Segment { gref: siege.any() as u32, first: siege.below(256) as u8, last: 3 };
                let sense = splinter(siege, &pages);
                let segment = siege.one_of(&[nonsense, sense, sense, sense]);
                let index = siege.below(SEGMENTS_PER_PAGE as u64) as usize;
                let descriptor = siege.one_of(&descriptors);
                write_segment(siege, descriptor, index, segment);
            }
            Ok(SEGMENTS_PER_PAGE as u64)
        },
    )
}
