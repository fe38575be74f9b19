//! `ring/`: the shared page itself: its indexes, its entries, its events.

use platter::hal::DeviceAccess;

use super::Attack;
use super::siege::{Entry, Siege};
use crate::protocol::ring::INDEXES;
use crate::protocol::{READ, SEGMENTS, WRITE};
use crate::shelf::Buffer;
use crate::terms::Terms;
use crate::verdict::Verdict;

/// Events in a row between two looks at the clock.
const CALLS: u64 = 64;
/// Rewritings of indexes or entries while a ring is being worked on.
const TIMES: u64 = 16;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("ring/index-overruns", overruns),
    Attack::new("ring/index-runs-backwards", runs_backwards),
    Attack::new("ring/indexes-rewritten", indexes_rewritten),
    Attack::new("ring/entries-rewritten", entries_rewritten),
    Attack::new("ring/garbage", garbage),
    Attack::new("ring/stale-entries", stale_entries),
    Attack::new("ring/events-without-requests", events),
    Attack::new("ring/responses-never-consumed", never_consumed),
];

/// A read or a write of up to eleven pages somewhere on the disk.
fn honest(siege: &mut Siege, pages: &[Buffer]) -> Entry {
    let (op, sector) = (siege.one_of(&[READ, WRITE]), siege.place());
    let count = 1 + siege.below(SEGMENTS as u64) as usize;
    let segments: [_; SEGMENTS] = core::array::from_fn(|_| siege.whole(pages));
    siege.direct(op, sector, &segments[..count])
}

/// Claims more requests than the ring has entries.
fn overruns(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    let more = 1 + siege.below(1 << 31) as u32;
    let ring = &siege.stage.queue(0).ring;
    ring.claim(ring.entries() + more);
    siege.call();
    siege.acted(1)?;
    siege.await_end()
}

/// With requests in flight, claims fewer than were published.
fn runs_backwards(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    siege.fill(|siege| honest(siege, &pages));
    let entries = siege.stage.queue(0).ring.entries();
    let back = 1 + siege.below(entries.into()) as u32;
    siege.stage.queue(0).ring.claim(back.wrapping_neg());
    siege.call();
    siege.acted(1)?;
    siege.await_end()
}

/// Between any two pushes, indexes hold anything: those of the backend's and of events always, the
/// one that is checked now and then, because it ends the connection.
fn indexes_rewritten(siege: &mut Siege) -> Verdict {
    let [req_prod, others @ ..] = INDEXES;
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    let rewrite = |siege: &mut Siege, index| {
        let value = siege.any() as u32;
        siege.stage.queue(0).ring.set_index(index, value);
        siege.call();
    };
    siege.flood_and(
        |siege| honest(siege, &pages),
        |siege| {
            for _ in 0..TIMES {
                let index = siege.one_of(&others);
                rewrite(siege, index);
            }
            if siege.below(256) == 0 {
                rewrite(siege, req_prod);
            }
            Ok(TIMES)
        },
    )
}

/// Requests change into others, and into nonsense, after they were published.
fn entries_rewritten(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    let entries = u64::from(siege.stage.queue(0).ring.entries());
    siege.flood_and(
        |siege| honest(siege, &pages),
        |siege| {
            siege.call();
            for _ in 0..TIMES {
                let entry = if siege.below(2) == 0 { honest(siege, &pages) } else { siege.noise() };
                let index = siege.below(entries) as u32;
                siege.stage.queue(0).ring.scrawl(index, &entry);
            }
            Ok(TIMES)
        },
    )
}

/// Entries of chance alone, every other one with an operation that there is.
fn garbage(siege: &mut Siege) -> Verdict {
    siege.stage.connect(siege.widest())?;
    siege.flood(|siege| {
        let mut entry = siege.noise();
        if siege.below(2) == 0 {
            entry[0] = siege.below(7) as u8;
            entry[1] = siege.below(12) as u8;
        }
        entry
    })
}

/// What lies in the ring, old requests and responses, is published again and again.
fn stale_entries(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    siege.fill(|siege| honest(siege, &pages));
    loop {
        let ring = &mut siege.stage.queue(0).ring;
        let room = ring.room();
        ring.leave(room);
        siege.stage.publish(0);
        if !siege.acted(room.into())? {
            return Ok(());
        }
        siege.nap();
    }
}

/// Events, and nothing to do for them.
fn events(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    while siege.acted(CALLS)? {
        (0..CALLS).for_each(|_| siege.call());
    }
    Ok(())
}

/// Requests go on and on; no response is ever counted as read, and no event asked for.
fn never_consumed(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    loop {
        let count = siege.fill(|siege| honest(siege, &pages));
        if !siege.acted(count)? {
            return Ok(());
        }
        siege.nap();
    }
}
