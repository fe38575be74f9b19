//! `grants/`: what a backend keeps of what it was granted, and when it lets go.

use platter::hal::DeviceAccess;

use crate::pattern::{self, Tag};
use crate::protocol::{OKAY, READ, WRITE};
use crate::stage::Stage;
use crate::terms::Terms;
use crate::transfer::{Carrier, piece, whole};
use crate::verdict::{Check, Verdict, ensure, needs};

/// Distinct pages, more than any backend keeps mapped for a ring.
const MANY: u64 = 1500;

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::because(
        "grants/free-after-each-response",
        "blkif.h: without feature-persistent of both ends, a backend maps grants for a request only",
        |stage| free_after(stage, Carrier::Direct, 11),
    ),
    Check::because(
        "grants/indirect-free-after-each-response",
        "blkif.h: without feature-persistent of both ends, a backend maps grants for a request only",
        |stage| free_after(stage, Carrier::Indirect, 32),
    ),
    Check::because(
        "grants/free-after-an-error",
        "a request that failed leaves nothing behind",
        free_after_error,
    ),
    Check::because(
        "grants/free-after-closed",
        "blkif.h, state diagrams: a frontend frees its memory when the backend is Closed",
        free_after_closed,
    ),
    Check::new("grants/persistent-reused", reused),
    Check::new("grants/persistent-more-than-are-kept", more_than_are_kept),
    Check::new("grants/persistent-indirect", persistent_indirect),
    Check::new("grants/persistent-bad-grant", persistent_bad_grant),
];

fn free_after(stage: &mut Stage, carrier: Carrier, count: usize) -> Verdict {
    let most = stage.offer.max_segments;
    needs!(carrier == Carrier::Direct || most as usize >= count, "feature-max-indirect-segments is {most}");
    stage.connect(Terms::PLAIN)?;
    let pages = stage.lend_pages(&whole(count), DeviceAccess::Writes)?;
    let at = stage.area;
    for round in 0..50 {
        let op = if round % 2 == 0 { READ } else { WRITE };
        let status = stage.transfer(carrier, op, at, &whole(count), &pages)?;
        ensure!(status == OKAY, "operation {op}: status {status}");
        let used = pages.iter().filter(|buffer| stage.is_in_use(**buffer)).count();
        ensure!(used == 0, "{used} of {count} grants are in use after the response");
    }
    Ok(())
}

fn free_after_error(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let pages = stage.lend_pages(&whole(3), DeviceAccess::Writes)?;
    stage.revoke(pages[2])?;
    let (at, end) = (stage.area, stage.offer.sectors);
    for place in [at, end] {
        let status = stage.transfer(Carrier::Direct, READ, place, &whole(3), &pages)?;
        ensure!(status != OKAY, "a request that cannot be done is answered as done");
        let used = pages.iter().filter(|buffer| stage.is_in_use(**buffer)).count();
        ensure!(used == 0, "{used} grants are in use after a request that failed");
    }
    Ok(())
}

/// `Stage::close` takes every grant back and fails where one is in use: here after a full ring.
fn free_after_closed(stage: &mut Stage) -> Verdict {
    let persistent = stage.offer.persistent;
    let (order, queues) = (stage.offer.max_order.min(2), stage.offer.max_queues.clamp(1, 2));
    needs!(order > 0 && persistent, "neither several ring pages nor feature-persistent are offered");
    stage.connect(Terms { persistent, queues, ..Terms::order(order) })?;
    (0..queues as usize).try_for_each(|queue| stage.fill_ring(queue))?;
    stage.close()?;
    stage.connect(Terms::PLAIN)?;
    stage.works()
}

/// The same eleven references again and again, with other data each time.
fn reused(stage: &mut Stage) -> Verdict {
    stage.connect_persistent()?;
    let (seed, at, block) = (stage.seed, stage.area, stage.offer.block() as u8);
    let pieces: heapless::Vec<_, 11> = (0..11).map(|page| piece(page, 0, block - 1)).collect();
    let pages = stage.lend_pages(&pieces, DeviceAccess::Writes)?;
    for round in 0..1000u64 {
        let content =
            |page: usize, sector: u8| Tag::of(seed ^ round << 8, (page as u64) << 8 | u64::from(sector));
        let sectors = || (0..11).flat_map(|page| (0..block).map(move |sector| (page, sector)));
        sectors().for_each(|(p, s)| pattern::fill(stage.page(pages[p]), s, content(p, s)));
        let status = stage.transfer(Carrier::Direct, WRITE, at, &pieces, &pages)?;
        ensure!(status == OKAY, "write {round} with the same grants: status {status}");
        sectors().for_each(|(p, s)| pattern::fill(stage.page(pages[p]), s, pattern::CANARY));
        let status = stage.transfer(Carrier::Direct, READ, at, &pieces, &pages)?;
        ensure!(status == OKAY, "read {round} with the same grants: status {status}");
        let right = sectors().all(|(p, s)| pattern::holds(stage.page(pages[p]), s, content(p, s)));
        ensure!(right, "read {round} with the same grants does not bring what write {round} wrote");
    }
    Ok(())
}

fn more_than_are_kept(stage: &mut Stage) -> Verdict {
    stage.connect_persistent()?;
    let (seed, at) = (stage.seed, stage.area);
    let content = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 8, content)?;
    let first = stage.lend_burst(8)?;
    for _ in 0..MANY / 10 {
        (0..10).try_for_each(|_| stage.read_page(0, at, content))?;
        stage.burst(0, READ, 1, &first)?;
    }
    stage.fill_ring(0)
}

fn persistent_indirect(stage: &mut Stage) -> Verdict {
    let most = stage.offer.max_segments;
    needs!(most >= 32, "feature-max-indirect-segments is {most}");
    stage.connect_persistent()?;
    let count = most.min(256) as usize;
    stage.both_ways(Carrier::Indirect, &whole(32))?;
    stage.both_ways(Carrier::Indirect, &whole(count))?;
    stage.both_ways(Carrier::Indirect, &[piece(0, 0, 7); 32])
}

/// A reference that is bad for one request is good for none, and others stay as they are.
fn persistent_bad_grant(stage: &mut Stage) -> Verdict {
    stage.connect_persistent()?;
    let pages = stage.lend_pages(&whole(3), DeviceAccess::Writes)?;
    stage.revoke(pages[1])?;
    let at = stage.area;
    for op in [READ, WRITE, READ] {
        let status = stage.transfer(Carrier::Direct, op, at, &whole(3), &pages)?;
        ensure!(status != OKAY, "operation {op} with a page that is not granted is answered as done");
    }
    ensure!(stage.is_untouched(pages[1]), "a read changed a page that is not granted");
    stage.works()
}
