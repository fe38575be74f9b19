//! `shapes/`: what known frontends ask for, in the way they ask it. Each is a sketch of the requests
//! that a driver's source makes, not the driver.

use core::time::Duration;

use platter::hal::{DeviceAccess, Events as _};
use platter::wire::xenbus::XenbusState;

use crate::pattern::{self, Tag};
use crate::protocol::abi::{Abi, Request};
use crate::protocol::{BARRIER, FLUSH, OKAY, READ, SEGMENTS};
use crate::stage::Stage;
use crate::terms::{RingNodes, Terms};
use crate::transfer::{Carrier, Pages, Pieces, piece, whole};
use crate::verdict::{Check, Verdict, ensure, needs};

const SKIPS: &str = "blkif.h, state diagrams: a frontend may become ready without waiting for InitWait";

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::because("shapes/mini-os", SKIPS, |stage| blunt(stage, Terms::BLUNT)),
    Check::because("shapes/grub", SKIPS, grub),
    Check::new("shapes/ovmf", ovmf),
    Check::new("shapes/netbsd", netbsd),
    Check::new("shapes/freebsd", freebsd),
    Check::new("shapes/windows", windows),
    Check::new("shapes/linux", linux),
    Check::new("shapes/linux-32-bit", linux_32_bit),
    Check::new("shapes/linux-untrusting", untrusting),
];

/// Leaves by Closed alone, without Closing before it.
fn grub(stage: &mut Stage) -> Verdict {
    let terms = Terms { eager: true, ..Terms::PLAIN };
    stage.connect(terms)?;
    stage.works()?;
    stage.show(XenbusState::Closed)?;
    stage.wait_state(&[XenbusState::Closed])?;
    stage.take_back()?;
    blunt(stage, terms)
}

/// One request at a time, of up to eleven pages, whose response is polled for; then the device is
/// closed and the operating system connects.
fn blunt(stage: &mut Stage, terms: Terms) -> Verdict {
    stage.connect(terms)?;
    let (seed, at) = (stage.seed, stage.area);
    let content = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 8 * SEGMENTS as u64, content)?;
    let pages = stage.lend_pages(&whole(SEGMENTS), DeviceAccess::Writes)?;
    for round in 0..20 {
        polled_read(stage, at, &pages, 1 + round % SEGMENTS)?;
    }
    for (index, buffer) in (0u64..).zip(&pages) {
        let right = stage.page_holds(*buffer, |sector| content(at + index * 8 + sector));
        ensure!(right, "a polled read does not bring what is on the disk");
    }
    stage.close()?;
    stage.connect(Terms::PLAIN)?;
    stage.verify(at, 8 * SEGMENTS as u64, content)
}

fn polled_read(stage: &mut Stage, at: u64, pages: &Pages, count: usize) -> Verdict {
    let segments: heapless::Vec<_, SEGMENTS> =
        pages.iter().take(count).map(|page| stage.segment(*page, 0, 7)).collect();
    let id = stage.fresh_id();
    stage.put(0, &Request::direct(READ, id, at, &segments));
    let (port, deadline) = (stage.queue(0).port, stage.host.deadline());
    stage.queue(0).ring.publish();
    // mini-os sends an event for every request.
    stage.host.xen.notify(port);
    loop {
        if let Some(response) = stage.take(0)? {
            ensure!(response.id == id && response.status == OKAY, "a wrong response: {response:?}");
            return Ok(());
        }
        ensure!(stage.host.now() < deadline, "no response within the time allowed");
        stage.host.nap(Duration::from_micros(200));
    }
}

/// Writes, then whatever flushes the backend offers; then the device is closed and reads happen on
/// the next connection.
fn ovmf(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::BLUNT)?;
    let (seed, at) = (stage.seed, stage.area);
    let content = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 200, content)?;
    for (op, offered) in [(BARRIER, stage.offer.barrier), (FLUSH, stage.offer.flush)] {
        if offered {
            let status = stage.direct(op, 0, &[])?;
            ensure!(status == OKAY, "operation {op} without data: status {status}");
        }
    }
    stage.close()?;
    stage.connect(Terms::PLAIN)?;
    stage.verify(at, 200, content)
}

/// Transfers of 64 KiB that start anywhere in a page, so that they touch 17: indirect only if the
/// backend takes that many. Each grant is to be free when the response has come.
fn netbsd(stage: &mut Stage) -> Verdict {
    let most = stage.offer.max_segments;
    needs!(most >= 17, "feature-max-indirect-segments is {most}, so NetBSD sends direct requests only");
    needs!(stage.offer.block() == 1, "sector-size is {}", stage.offer.sector_size);
    stage.connect(Terms::PLAIN)?;
    let mut pieces = whole(17);
    pieces[0] = piece(0, 3, 7);
    pieces[16] = piece(16, 0, 2);
    stage.both_ways(Carrier::Indirect, &pieces)?;
    let (pages, at) = (stage.lend_pages(&pieces, DeviceAccess::Writes)?, stage.area);
    let status = stage.transfer(Carrier::Indirect, READ, at, &pieces, &pages)?;
    ensure!(status == OKAY, "a read of 17 segments: status {status}");
    let used = pages.iter().filter(|buffer| stage.is_in_use(**buffer)).count();
    ensure!(used == 0, "{used} grants are in use after the response, which NetBSD takes for an error");
    Ok(())
}

/// Both spellings of the ring's size.
fn freebsd(stage: &mut Stage) -> Verdict {
    let order = stage.offer.max_order.min(4);
    needs!(order > 0, "max-ring-page-order is {order}");
    stage.connect(Terms { nodes: RingNodes::BothSpellings, ..Terms::order(order) })?;
    stage.both_ways(Carrier::Direct, &whole(SEGMENTS))?;
    stage.fill_ring(0)
}

/// Buffers that begin and end anywhere in a page, long lists of them, several rings.
fn windows(stage: &mut Stage) -> Verdict {
    needs!(stage.offer.block() == 1, "sector-size is {}", stage.offer.sector_size);
    let (queues, order) = (stage.offer.max_queues.clamp(1, 4), stage.offer.max_order.min(4));
    let nodes = if order > 0 { RingNodes::Numbered } else { RingNodes::Single };
    stage.connect(Terms { queues, nodes, order, ..Terms::PLAIN })?;
    let ragged: Pieces =
        (0..22).map(|i| piece(i / 2, (i % 2 * 4) as u8, (i % 2 * 4 + i % 4) as u8)).collect();
    ragged.chunks(SEGMENTS).try_for_each(|pieces| stage.both_ways(Carrier::Direct, pieces))?;
    if stage.offer.max_segments >= 22 {
        stage.both_ways(Carrier::Indirect, &ragged)?;
    }
    (0..queues as usize).try_for_each(|queue| stage.fill_ring(queue))
}

/// Grants that stay, on several rings, of requests with 32 segments and of the pages that list them.
fn linux(stage: &mut Stage) -> Verdict {
    needs!(stage.offer.persistent, "the backend does not offer feature-persistent");
    let queues = stage.offer.max_queues.clamp(1, 4);
    stage.connect(Terms { queues, ..Terms::PERSISTENT })?;
    let count = if stage.offer.max_segments >= 32 { 32 } else { SEGMENTS };
    let carrier = if count == 32 { Carrier::Indirect } else { Carrier::Direct };
    (0..3).try_for_each(|_| stage.both_ways(carrier, &whole(count)))?;
    (0..queues as usize).try_for_each(|queue| stage.fill_ring(queue))
}

fn linux_32_bit(stage: &mut Stage) -> Verdict {
    let persistent = stage.offer.persistent;
    stage.connect(Terms { abi: Abi::X32, protocol: Some("x86_32-abi"), persistent, ..Terms::PLAIN })?;
    stage.both_ways(Carrier::Direct, &whole(SEGMENTS))?;
    stage.fill_ring(0)
}

/// With `trusted=0` each request has pages of its own, granted for it alone.
fn untrusting(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let (seed, at) = (stage.seed, stage.area);
    let content = |sector| Tag::of(seed ^ 1, sector);
    stage.paint(at, 8 * SEGMENTS as u64, content)?;
    let pages = stage.lend_pages(&whole(SEGMENTS), DeviceAccess::Writes)?;
    for _ in 0..100 {
        pages.iter().for_each(|buffer| pattern::blank(stage.page(*buffer)));
        let status = stage.transfer(Carrier::Direct, READ, at, &whole(SEGMENTS), &pages)?;
        ensure!(status == OKAY, "a read into pages granted for it: status {status}");
        for (index, buffer) in (0u64..).zip(&pages) {
            let right = stage.page_holds(*buffer, |sector| content(at + index * 8 + sector));
            ensure!(right, "a read does not bring what is on the disk");
            stage.lend_again(*buffer, DeviceAccess::Writes)?;
        }
    }
    Ok(())
}
