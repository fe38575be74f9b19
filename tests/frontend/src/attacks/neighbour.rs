//! `neighbour/`: guests that do nothing wrong, to hold what attacks cost against.

use platter::hal::DeviceAccess;

use super::Attack;
use super::siege::Siege;
use crate::protocol::READ;
use crate::terms::Terms;
use crate::verdict::Verdict;

/// Turns of an empty loop between two looks at the clock.
const SPIN: u64 = 10_000;

pub(super) const ATTACKS: &[Attack] =
    &[Attack::new("neighbour/only-computes", computes), Attack::new("neighbour/reads-at-full-rate", reads)];

/// Is connected, and has the processor work, as every attack does. An act is some thousand turns.
fn computes(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    while siege.acted(1)? {
        (0..SPIN).for_each(|turn| _ = core::hint::black_box(turn));
    }
    Ok(())
}

/// Reads of a page each, the ring always full.
fn reads(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    siege.flood(|siege| {
        let (sector, segments) = (siege.place(), [siege.whole(&pages)]);
        siege.direct(READ, sector, &segments)
    })
}
