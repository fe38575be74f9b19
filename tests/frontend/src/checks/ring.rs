//! `ring/`: indexes, events and ids.

use core::time::Duration;

use platter::hal::{DeviceAccess, Events as _};

use crate::pattern::Tag;
use crate::protocol::abi::{Abi, Request};
use crate::protocol::{OKAY, READ, SEGMENTS, WRITE};
use crate::stage::Stage;
use crate::terms::Terms;
use crate::verdict::{Check, End, Verdict, ensure};

/// Where indexes start so that they soon wrap: both ring sizes of one page divide it.
const BEFORE_WRAP: u32 = 0xffff_ffc0;

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::new("ring/entries-wrap", entries_wrap),
    Check::new("ring/full", |stage| {
        stage.connect(Terms::PLAIN)?;
        (0..4).try_for_each(|_| stage.fill_ring(0))
    }),
    Check::because(
        "ring/one-event-for-many",
        "ring.h: RING_PUSH_RESPONSES_AND_CHECK_NOTIFY sends an event when rsp_prod passes rsp_event",
        one_event_for_many,
    ),
    Check::because(
        "ring/no-event-is-lost",
        "ring.h: RING_FINAL_CHECK_FOR_REQUESTS arms req_event and looks once more",
        no_event_is_lost,
    ),
    Check::because("ring/ids-are-echoed", "blkif.h: id is copied from the request", ids_are_echoed),
    Check::because("ring/same-ids", "blkif.h: id is a private value of the guest", same_ids),
    Check::new("ring/unused-bytes-are-ignored", unused_bytes),
    Check::new("ring/events-without-requests", events_without_requests),
    Check::new("ring/reads-and-writes-mixed", mixed),
];

/// What may leave a backend unable to serve anybody after: QEMU's, which starts at index 0, then takes
/// billions of requests for published and works through them, and now and then closes only when it has.
pub(crate) const LAST: &[Check] = &[
    Check::new("ring/overrun-ends-only-the-connection", overrun),
    Check::because(
        "ring/indexes-wrap",
        "ring.h: indexes are free-running and compared by their difference; BACK_RING_ATTACH starts at rsp_prod",
        indexes_wrap,
    ),
];

fn entries_wrap(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let (seed, at) = (stage.seed, stage.area);
    let content = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 8, content)?;
    let times = stage.queue(0).ring.entries() * 3 + 5;
    (0..times).try_for_each(|_| stage.read_page(0, at, content))
}

fn indexes_wrap(stage: &mut Stage) -> Verdict {
    let cannot = || End::skip(format_args!("the backend starts at index 0 and not at the ring's rsp_prod"));
    if !stage.try_connect(Terms { start: BEFORE_WRAP, ..Terms::PLAIN })? {
        return Err(cannot());
    }
    let (id, sector, port) = (stage.fresh_id(), stage.area, stage.queue(0).port);
    let pages = stage.lend_burst(8)?;
    let segments = [stage.segment(pages[0], 0, 7)];
    stage.put(0, &Request::direct(READ, id, sector, &segments));
    stage.queue(0).ring.publish();
    // Whatever req_event says: a backend that starts elsewhere has not armed it here.
    stage.host.xen.notify(port);
    let deadline = stage.host.deadline();
    while stage.host.wait_event(port, deadline) {
        match stage.take(0) {
            Ok(None) => {}
            Ok(Some(response)) if response.id == id && response.status == OKAY => {
                return (0..4).try_for_each(|_| stage.fill_ring(0));
            }
            Ok(Some(_)) | Err(_) => break,
        }
    }
    Err(cannot())
}

/// The event of the last response is asked for, and no other.
fn one_event_for_many(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let pages = stage.lend_burst(8)?;
    for _ in 0..8 {
        let count = stage.queue(0).ring.entries();
        stage.queue(0).ring.arm(count);
        let ids = stage.put_burst(0, READ, u64::from(count), &pages);
        stage.publish(0);
        let (port, deadline) = (stage.queue(0).port, stage.host.deadline());
        let mut there = 0;
        while there < count && stage.host.wait_event(port, deadline) {
            while let Some(response) = stage.take(0)? {
                ensure!(
                    ids.contains(&response.id) && response.status == OKAY,
                    "a wrong response: {response:?}"
                );
                there += 1;
            }
        }
        ensure!(there == count, "no event came with the last of {count} responses");
    }
    Ok(())
}

/// Requests one at a time, each after the backend had time to go to sleep or in the middle of it.
fn no_event_is_lost(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let pages = stage.lend_burst(8)?;
    for round in 0..400u64 {
        if round % 8 == 0 {
            stage.host.nap(Duration::from_micros(round * 20));
        }
        stage.burst(0, READ, 1 + round % 3, &pages)?;
    }
    Ok(())
}

fn ids_are_echoed(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let buffer = stage.lend(DeviceAccess::Writes)?;
    let (segments, sector) = ([stage.segment(buffer, 0, 7)], stage.area);
    for id in [0, 1, u64::MAX, 1 << 63, 0xffff_ffff, 1 << 32, 0x0123_4567_89ab_cdef] {
        let status = stage.ask(&Request::direct(READ, id, sector, &segments))?;
        ensure!(status == OKAY, "a request with id {id:#x}: status {status}");
    }
    Ok(())
}

fn same_ids(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let buffer = stage.lend(DeviceAccess::Writes)?;
    let (segments, sector) = ([stage.segment(buffer, 0, 7)], stage.area);
    let count = stage.queue(0).ring.entries();
    for _ in 0..count {
        stage.put(0, &Request::direct(READ, 7, sector, &segments));
    }
    stage.publish(0);
    for _ in 0..count {
        let response = stage.answer(0)?;
        ensure!(response.id == 7 && response.status == OKAY, "a wrong response: {response:?}");
    }
    Ok(())
}

/// What a request does not use of its entry holds what was there before.
fn unused_bytes(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let (seed, at) = (stage.seed, stage.area);
    let content = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 8, content)?;
    let pages = stage.lend_burst(8)?;
    let (id, segments) = (stage.fresh_id(), [stage.segment(pages[0], 0, 7)]);
    let request = Request::direct(READ, id, at, &segments);
    let mut entry = request.encode(Abi::X64);
    // The handle and padding before the id, the padding of the segment, and ten segments.
    entry[2..8].fill(0xa5);
    entry[30..].fill(0xa5);
    stage.queue(0).ring.put(&entry);
    stage.publish(0);
    let response = stage.answer(0)?;
    ensure!(response.id == id && response.status == OKAY, "a wrong response: {response:?}");
    let right = stage.page_holds(pages[0], |sector| content(at + sector));
    ensure!(right, "a read does not bring what is on the disk");
    Ok(())
}

fn events_without_requests(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let port = stage.queue(0).port;
    for _ in 0..100 {
        stage.host.xen.notify(port);
        stage.host.nap(Duration::from_millis(1));
        ensure!(stage.take(0)?.is_none(), "a response to nothing");
    }
    stage.works()
}

/// Reads of one place and writes to another, all in flight together.
fn mixed(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let (seed, at) = (stage.seed, stage.area);
    let content = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 8 * SEGMENTS as u64, content)?;
    let (from, to) = (stage.lend_burst(8 * 11)?, stage.lend_burst(8 * 11)?);
    let source = |index: u64| move |sector| Tag::of(seed ^ 2, index * 8 + sector);
    for (index, buffer) in (0u64..).zip(&from) {
        stage.fill_page(*buffer, source(index));
    }
    for index in 0..SEGMENTS {
        for (op, buffer, place) in [(READ, to[index], at), (WRITE, from[index], at + 8 * SEGMENTS as u64)] {
            let (id, segments) = (stage.fresh_id(), [stage.segment(buffer, 0, 7)]);
            let sector = place + 8 * index as u64;
            stage.put(0, &Request::direct(op, id, sector, &segments));
        }
    }
    stage.publish(0);
    for _ in 0..2 * SEGMENTS {
        let response = stage.answer(0)?;
        ensure!(response.status == OKAY, "a wrong response: {response:?}");
    }
    for (index, buffer) in (0u64..).zip(&to) {
        let right = stage.page_holds(*buffer, |sector| content(at + index * 8 + sector));
        ensure!(right, "a read among writes does not bring what is on the disk");
    }
    let second = at + 8 * SEGMENTS as u64;
    stage.verify(second, 8 * SEGMENTS as u64, |sector| source(0)(sector - second))
}

/// More requests are claimed than a ring holds. Nothing is said of what becomes of that connection,
/// but closing it and making another must work.
fn overrun(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let port = stage.queue(0).port;
    let ring = &stage.queue(0).ring;
    ring.claim(ring.entries() * 2);
    stage.host.xen.notify(port);
    stage.host.nap(Duration::from_millis(50));
    stage.close()?;
    stage.connect(Terms::PLAIN)?;
    stage.works()
}
