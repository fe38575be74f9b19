//! `operations/`: what each operation does, and what becomes of those that nobody knows.

use platter::hal::DeviceAccess;

use crate::pattern::Tag;
use crate::protocol::abi::{Body, Request};
use crate::protocol::{
    BARRIER, DISCARD, ERROR, FLUSH, NOT_SUPPORTED, OKAY, PACKET, PAGE_SECTORS, SECURE, WRITE,
};
use crate::stage::Stage;
use crate::terms::Terms;
use crate::transfer::{Carrier, sectors, whole};
use crate::verdict::{Check, Verdict, ensure, needs};

const UNKNOWN: &str =
    "BLKIF_RSP_EOPNOTSUPP is blkif.h's word for it, and what Linux answers (blkback.c: dispatch_other_io)";
const WHERE: &str = "what is beside a discarded region is not the discard's";

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::new("operations/flush", |stage| bare(stage, FLUSH)),
    Check::new("operations/flush-with-data", |stage| with_data(stage, FLUSH)),
    Check::new("operations/barrier", |stage| bare(stage, BARRIER)),
    Check::new("operations/barrier-with-data", |stage| with_data(stage, BARRIER)),
    Check::because(
        "operations/barrier-orders-writes",
        "blkif.h: writes issued before a barrier are completed before it, those after it are executed after it",
        barrier_orders_writes,
    ),
    Check::because("operations/discard", WHERE, |stage| discard(stage, 64, 64, 0)),
    Check::because("operations/discard-large", WHERE, |stage| discard(stage, 8, 4096, 0)),
    Check::because("operations/discard-one-block", WHERE, discard_one_block),
    Check::because("operations/discard-unaligned", WHERE, |stage| discard(stage, 13, 51, 0)),
    Check::because(
        "operations/discard-secure-flag",
        "blkif.h: BLKIF_DISCARD_SECURE is ignored if discard-secure=0",
        |stage| discard(stage, 64, 64, SECURE),
    ),
    Check::new("operations/discard-end-of-disk", discard_end_of_disk),
    Check::new("operations/discard-beyond-the-disk", discard_beyond),
    Check::because(
        "operations/discard-not-offered",
        "blkif.h: discards that cannot be done are answered with BLKIF_RSP_EOPNOTSUPP",
        discard_not_offered,
    ),
    Check::because("operations/packet", UNKNOWN, |stage| unknown(stage, &[PACKET])),
    Check::because("operations/unknown", UNKNOWN, |stage| {
        unknown(stage, &[7, 8, 15, 64, 127, 128, 200, 255])
    }),
];

fn needs_op(stage: &mut Stage, op: u8) -> Verdict {
    let offered = if op == FLUSH { stage.offer.flush } else { stage.offer.barrier };
    let name = if op == FLUSH { "feature-flush-cache" } else { "feature-barrier" };
    needs!(offered, "the backend does not offer {name}");
    stage.connect(Terms::PLAIN)
}

/// blkif.h lets a backend answer barriers and flushes so at any time.
fn okay(op: u8, status: i16) -> Verdict {
    needs!(status != NOT_SUPPORTED, "operation {op} is answered with BLKIF_RSP_EOPNOTSUPP");
    ensure!(status == OKAY, "operation {op}: status {status}");
    Ok(())
}

fn bare(stage: &mut Stage, op: u8) -> Verdict {
    needs_op(stage, op)?;
    let status = stage.direct(op, 0, &[])?;
    okay(op, status)?;
    stage.works()
}

fn with_data(stage: &mut Stage, op: u8) -> Verdict {
    needs_op(stage, op)?;
    let (pieces, at, seed) = (whole(3), stage.area + 8, stage.seed);
    let before = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at - 8, sectors(&pieces) + 16, before)?;
    let pages = stage.lend_pages(&pieces, DeviceAccess::Reads)?;
    let content = |sector: u64| Tag::of(seed ^ 5, sector);
    for (index, buffer) in (0u64..).zip(&pages) {
        stage.fill_page(*buffer, |sector| content(at + index * u64::from(PAGE_SECTORS) + sector));
    }
    let status = stage.transfer(Carrier::Direct, op, at, &pieces, &pages)?;
    okay(op, status)?;
    stage.verify(at - 8, 8, before)?;
    stage.verify(at, sectors(&pieces), content)?;
    stage.verify(at + sectors(&pieces), 8, before)
}

/// A write, a barrier and a write to one place, all three in flight: the last must win.
fn barrier_orders_writes(stage: &mut Stage) -> Verdict {
    needs_op(stage, BARRIER)?;
    let pages = stage.lend_pages(&whole(3), DeviceAccess::Reads)?;
    for round in 0..16 {
        let at = stage.area + round * u64::from(PAGE_SECTORS);
        let seed = stage.seed ^ round << 4;
        let content = |index: usize| move |sector| Tag::of(seed ^ index as u64, sector);
        for (index, op) in [WRITE, BARRIER, WRITE].into_iter().enumerate() {
            stage.fill_page(pages[index], |sector| content(index)(at + sector));
            let segments = [stage.segment(pages[index], 0, PAGE_SECTORS - 1)];
            let id = stage.fresh_id();
            stage.put(0, &Request::direct(op, id, at, &segments));
        }
        stage.publish(0);
        for _ in 0..3 {
            let response = stage.answer(0)?;
            okay(response.op, response.status)?;
        }
        stage.verify(at, PAGE_SECTORS.into(), content(2))?;
    }
    Ok(())
}

fn discard(stage: &mut Stage, offset: u64, count: u64, flag: u8) -> Verdict {
    needs!(stage.offer.discard, "the backend does not offer feature-discard");
    let block = stage.offer.block();
    let fits = offset.is_multiple_of(block) && count.is_multiple_of(block);
    needs!(fits, "sector-size is {}", stage.offer.sector_size);
    stage.connect(Terms::PLAIN)?;
    stage.discard_leaves_the_rest(offset, count, flag)?;
    stage.works()
}

fn discard_one_block(stage: &mut Stage) -> Verdict {
    let block = stage.offer.block();
    discard(stage, 8 + block, block, 0)
}

fn discard_end_of_disk(stage: &mut Stage) -> Verdict {
    needs!(stage.offer.discard, "the backend does not offer feature-discard");
    stage.connect(Terms::PLAIN)?;
    let (at, seed) = (stage.offer.sectors - 64, stage.seed);
    let before = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 64, before)?;
    let status = stage.discard(at + 32, 32, 0)?;
    ensure!(status == OKAY, "a discard of the disk's last sectors: status {status}");
    stage.verify(at, 32, before)?;
    stage.write_lands(Carrier::Direct, &whole(4), at + 32)
}

fn discard_beyond(stage: &mut Stage) -> Verdict {
    needs!(stage.offer.discard, "the backend does not offer feature-discard");
    stage.connect(Terms::PLAIN)?;
    let (end, seed) = (stage.offer.sectors, stage.seed);
    let before = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(end - 8, 8, before)?;
    for (at, count) in [(end, 8), (end - 8, 16), (end - 8, u64::MAX), (u64::MAX - 7, 8), (8, u64::MAX - 7)] {
        let status = stage.discard(at, count, 0)?;
        ensure!(status == ERROR, "a discard of {count} sectors at {at}, beyond the disk: status {status}");
    }
    stage.verify(end - 8, 8, before)?;
    stage.works()
}

fn discard_not_offered(stage: &mut Stage) -> Verdict {
    needs!(!stage.offer.discard, "feature-discard is offered");
    stage.connect(Terms::PLAIN)?;
    let at = stage.area;
    let status = stage.discard(at, 8, 0)?;
    ensure!(status == NOT_SUPPORTED, "a discard that is not offered: status {status}");
    stage.works()
}

fn unknown(stage: &mut Stage, ops: &[u8]) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let buffer = stage.lend(DeviceAccess::Writes)?;
    for op in ops {
        let (at, segments) = (stage.area, [stage.segment(buffer, 0, 0)]);
        let status = stage.direct(*op, at, &segments)?;
        ensure!(status == NOT_SUPPORTED, "operation {op}: status {status}");
        ensure!(stage.is_untouched(buffer), "operation {op} changed a page");
    }
    stage.works()
}

impl Stage<'_> {
    /// Asks for a discard and gives its status.
    pub(crate) fn discard(&mut self, sector: u64, sectors: u64, flag: u8) -> Verdict<i16> {
        let id = self.fresh_id();
        self.ask(&Request { op: DISCARD, id, sector, body: Body::Discard { flag, sectors } })
    }

    /// Discards a part of the check's area, and finds that what is beside it stays.
    pub(crate) fn discard_leaves_the_rest(&mut self, offset: u64, count: u64, flag: u8) -> Verdict {
        let (start, at, seed) = (self.area, self.area + offset, self.seed);
        let before = |sector| Tag::of(seed ^ 1, sector);
        self.paint(start, offset + count + 16, before)?;
        let status = self.discard(at, count, flag)?;
        ensure!(status == OKAY, "a discard of {count} sectors at {at}: status {status}");
        self.verify(start, offset, before)?;
        self.verify(at + count, 16, before)
    }
}
