//! `grants/`: pages that are not what a request says they are.

use platter::hal::DeviceAccess;
use platter::units::DomId;

use super::Attack;
use super::siege::Siege;
use crate::protocol::abi::{Body, Request, Segment};
use crate::protocol::{INDIRECT, READ, SEGMENTS, WRITE};
use crate::shelf::Buffer;
use crate::terms::Terms;
use crate::verdict::{Verdict, needs};

/// Distinct pages, more than any backend keeps mapped for a ring.
const MANY: u64 = 1500;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("grants/ended-in-flight", ended_in_flight),
    Attack::new("grants/absent", absent),
    Attack::new("grants/of-another-domain", of_another_domain),
    Attack::new("grants/read-only-for-reads", read_only),
    Attack::new("grants/ring-as-data", ring_as_data),
    Attack::new("grants/persistent-exhausted", |siege| persistent(siege, false)),
    Attack::new("grants/persistent-gone-bad", |siege| persistent(siege, true)),
];

/// Grants are taken back as soon as their requests are published; those that the backend has mapped
/// by then stay.
fn ended_in_flight(siege: &mut Siege) -> Verdict {
    let pages = siege.open(Terms::PLAIN, 32, DeviceAccess::Writes)?;
    siege.flood_and(
        |siege| {
            let (op, sector) = (siege.one_of(&[READ, WRITE]), siege.place());
            let segments = [siege.whole(&pages)];
            siege.direct(op, sector, &segments)
        },
        |siege| {
            let mut ended = 0;
            for page in &pages {
                if siege.stage.revoke(*page).is_ok() {
                    siege.stage.lend_again(*page, DeviceAccess::Writes)?;
                    ended += 1;
                }
            }
            Ok(ended)
        },
    )
}

/// Floods with requests for a page of each of these references.
fn flood_of(siege: &mut Siege, mut gref: impl FnMut(&mut Siege) -> u32) -> Verdict {
    siege.flood(|siege| {
        let (op, sector) = (siege.one_of(&[READ, WRITE]), siege.place());
        let segments: [_; SEGMENTS] =
            core::array::from_fn(|_| Segment { gref: gref(siege), first: 0, last: 7 });
        let count = 1 + siege.below(SEGMENTS as u64) as usize;
        siege.direct(op, sector, &segments[..count])
    })
}

/// References that were never granted, are the toolstack's, or are beyond every table; one good one
/// among them.
fn absent(siege: &mut Siege) -> Verdict {
    let good = siege.open(siege.widest(), 1, DeviceAccess::Writes)?[0];
    let good = siege.stage.gref(good);
    flood_of(siege, |siege| {
        let (low, any) = (siege.below(4096) as u32, siege.any() as u32);
        siege.one_of(&[good, low % 8, low, any, u32::MAX])
    })
}

/// Pages that somebody else was granted.
fn of_another_domain(siege: &mut Siege) -> Verdict {
    siege.stage.connect(siege.widest())?;
    let other = if siege.stage.backend_id == DomId(0) { DomId(1) } else { DomId(0) };
    let pages: heapless::Vec<Buffer, 8> =
        (0..8).map(|_| siege.stage.lend_to(other)).collect::<Verdict<_>>()?;
    flood_of(siege, |siege| siege.whole(&pages).gref)
}

/// Reads into pages that were granted to be read only.
fn read_only(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 8, DeviceAccess::Reads)?;
    siege.flood(|siege| {
        let (sector, segments) = (siege.place(), [siege.whole(&pages)]);
        siege.direct(READ, sector, &segments)
    })
}

/// The ring's own pages are written to the disk and read back into the ring, and stand for segments.
fn ring_as_data(siege: &mut Siege) -> Verdict {
    siege.stage.connect(siege.widest())?;
    let grefs = siege.stage.queue(0).grefs.clone();
    let entry = |siege: &mut Siege| {
        let (op, gref) = (siege.one_of(&[READ, WRITE]), siege.one_of(&grefs).0);
        // Few places, so that what comes back was a ring.
        let sector = siege.below(8) * 8;
        if siege.below(4) > 0 {
            return siege.direct(op, sector, &[Segment { gref, first: 0, last: 7 }]);
        }
        let (id, count) = (siege.stage.fresh_id(), 1 + siege.below(255) as u16);
        siege.encode(&Request {
            op: INDIRECT,
            id,
            sector,
            body: Body::Indirect { op, count, pages: &[gref] },
        })
    };
    // What the ring says of events means nothing by then.
    siege.flood_and(entry, |siege| {
        siege.call();
        Ok(0)
    })
}

/// More pages than are kept mapped; with `ends`, those that the backend did not keep become bad.
fn persistent(siege: &mut Siege, ends: bool) -> Verdict {
    needs!(siege.stage.offer.persistent, "the backend does not offer feature-persistent");
    siege.stage.connect(Terms::PERSISTENT)?;
    let pages: heapless::Vec<Buffer, { MANY as usize }> =
        (0..MANY).map(|_| siege.stage.lend(DeviceAccess::Writes)).collect::<Verdict<_>>()?;
    siege.flood_and(
        |siege| {
            let (op, sector) = (siege.one_of(&[READ, WRITE]), siege.place());
            let segments: [_; SEGMENTS] = core::array::from_fn(|_| siege.whole(&pages));
            siege.direct(op, sector, &segments)
        },
        |siege| {
            let page = siege.one_of(&pages);
            // One that the backend has mapped stays good.
            Ok(u64::from(ends && siege.stage.revoke(page).is_ok()))
        },
    )
}
