//! `negotiation/`: what is agreed through xenstore, and what must be refused there.

use crate::protocol::abi::Abi;
use crate::stage::Stage;
use crate::terms::{RingNodes, Terms};
use crate::transfer::{Carrier, whole};
use crate::verdict::{Check, Verdict, needs};

/// Rings asked for where all that are offered are wanted.
const MOST_QUEUES: u32 = 16;
/// A reference far beyond what any domain has granted, and a port nobody can have.
const NO_GREF: u32 = 0x7fff_fff0;
const NO_PORT: u32 = 0x7fff_fff0;
/// Times that a device is closed and connected again.
const TIMES: u32 = 20;

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::new("negotiation/single-ring", |stage| serves(stage, Terms::PLAIN)),
    Check::because(
        "negotiation/ring-page-order-0",
        "whoever reads ring-page-order finds it 0 and reads ring-ref0 (Linux, xenbus.c: read_per_ring_refs)",
        |stage| order(stage, 0),
    ),
    Check::new("negotiation/ring-page-order-1", |stage| order(stage, 1)),
    Check::new("negotiation/ring-page-order-2", |stage| order(stage, 2)),
    Check::new("negotiation/ring-page-order-3", |stage| order(stage, 3)),
    Check::new("negotiation/ring-page-order-4", |stage| order(stage, 4)),
    Check::because(
        "negotiation/ring-page-order-too-large",
        "blkif.h: the maximum value of ring-page-order is max-ring-page-order",
        order_too_large,
    ),
    Check::because(
        "negotiation/one-queue",
        "blkif.h: for one queue the usual keys are written as before",
        |stage| serves(stage, Terms { says_one_queue: true, ..Terms::PLAIN }),
    ),
    Check::new("negotiation/queues-2", |stage| queues(stage, 2)),
    Check::new("negotiation/queues-3", |stage| queues(stage, 3)),
    Check::new("negotiation/queues-4", |stage| queues(stage, 4)),
    Check::new("negotiation/queues-all", all_queues),
    Check::new("negotiation/queues-of-many-pages", queues_of_many_pages),
    Check::because(
        "negotiation/queues-too-many",
        "blkif.h: multi-queue-num-queues is no more than multi-queue-max-queues",
        queues_too_many,
    ),
    Check::new("negotiation/x86-64-abi", |stage| abi(stage, Abi::X64, Some("x86_64-abi"))),
    Check::new("negotiation/x86-32-abi", |stage| abi(stage, Abi::X32, Some("x86_32-abi"))),
    Check::because(
        "negotiation/protocol-absent",
        "Linux on x86 takes an absent protocol for x86_32-abi (xenbus.c: BLKIF_PROTOCOL_DEFAULT), blkif.h for native",
        |stage| abi(stage, Abi::X32, None),
    ),
    Check::because(
        "negotiation/protocol-unknown",
        "blkif.h: protocol is one of XEN_IO_PROTO_ABI_*",
        |stage| stage.refuses(Terms { protocol: Some("pdp11-abi"), ..Terms::PLAIN }),
    ),
    Check::new("negotiation/bad-ring-ref", |stage| {
        stage.refuses(Terms { ring_ref: Some(NO_GREF), ..Terms::PLAIN })
    }),
    Check::new("negotiation/bad-event-channel", |stage| {
        stage.refuses(Terms { event_channel: Some(NO_PORT), ..Terms::PLAIN })
    }),
    Check::new("negotiation/persistent", |stage| {
        stage.connect_persistent()?;
        stage.works()?;
        stage.fill_ring(0)
    }),
    Check::new("negotiation/reconnect", reconnect),
    Check::because(
        "negotiation/nothing-is-left-of-earlier-terms",
        "blkif.h: each connection is described by what its frontend publishes",
        terms_change,
    ),
];

fn serves(stage: &mut Stage, terms: Terms) -> Verdict {
    stage.connect(terms)?;
    stage.works()?;
    stage.fill_ring(0)
}

fn order(stage: &mut Stage, order: u32) -> Verdict {
    let most = stage.offer.max_order;
    needs!(most > 0 && order <= most, "max-ring-page-order is {most}");
    serves(stage, Terms::order(order))
}

fn order_too_large(stage: &mut Stage) -> Verdict {
    let most = stage.offer.max_order;
    needs!(most > 0, "max-ring-page-order is {most}");
    stage.refuses(Terms { said_order: Some(most + 1), ..Terms::order(most.min(4)) })
}

fn queues(stage: &mut Stage, count: u32) -> Verdict {
    let most = stage.offer.max_queues;
    needs!(count <= most, "multi-queue-max-queues is {most}");
    serve_all(stage, Terms::queues(count))
}

fn all_queues(stage: &mut Stage) -> Verdict {
    let count = stage.offer.max_queues.min(MOST_QUEUES);
    queues(stage, count.max(2))
}

fn queues_of_many_pages(stage: &mut Stage) -> Verdict {
    let (queues, order) = (stage.offer.max_queues.min(4), stage.offer.max_order.min(4));
    needs!(queues > 1 && order > 0, "several rings of several pages are not offered");
    serve_all(stage, Terms { queues, ..Terms::order(order) })
}

fn serve_all(stage: &mut Stage, terms: Terms) -> Verdict {
    stage.connect(terms)?;
    (0..terms.queues as usize).try_for_each(|queue| stage.fill_ring(queue))
}

fn queues_too_many(stage: &mut Stage) -> Verdict {
    let most = stage.offer.max_queues;
    needs!(most > 0, "multi-queue-max-queues is {most}");
    stage.refuses(Terms { said_queues: Some(most + 1), ..Terms::queues(2) })
}

/// Everything whose layout differs, over all entries of the longest ring.
fn abi(stage: &mut Stage, abi: Abi, protocol: Option<&'static str>) -> Verdict {
    let order = stage.offer.max_order.min(4);
    let nodes = if order > 0 { RingNodes::Numbered } else { RingNodes::Single };
    stage.connect(Terms { abi, protocol, order, nodes, ..Terms::PLAIN })?;
    stage.both_ways(Carrier::Direct, &whole(11))?;
    if stage.offer.max_segments >= 32 {
        stage.both_ways(Carrier::Indirect, &whole(32))?;
    }
    if stage.offer.discard {
        stage.discard_leaves_the_rest(8, 8, 0)?;
    }
    stage.fill_ring(0)
}

fn reconnect(stage: &mut Stage) -> Verdict {
    for _ in 0..TIMES {
        stage.connect(Terms::PLAIN)?;
        stage.close()?;
    }
    serves(stage, Terms::PLAIN)
}

fn terms_change(stage: &mut Stage) -> Verdict {
    let order = stage.offer.max_order.min(2);
    needs!(order > 0, "max-ring-page-order is {order}");
    for terms in [
        Terms::order(order),
        Terms { abi: Abi::X32, protocol: Some("x86_32-abi"), ..Terms::PLAIN },
        Terms { persistent: stage.offer.persistent, ..Terms::order(1) },
        Terms::PLAIN,
    ] {
        serves(stage, terms)?;
        stage.close()?;
    }
    Ok(())
}
