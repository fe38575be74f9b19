//! The attacks, a file a room: what a guest can do to a backend that serves it. `siege` plays each
//! for some seconds against the connection that it makes; nobody looks at what comes back. Nothing
//! here passes or fails: what must hold is that the backend serves everybody else meanwhile, and
//! that is seen from outside. Neighbours: `suite`, which chooses them; `stage` and `protocol`.

mod grants;
mod life;
mod neighbour;
mod nodes;
mod requests;
mod ring;
mod siege;

use crate::suite::Options;
use crate::verdict::Verdict;
use siege::Siege;

pub(crate) use siege::run;

/// One attack.
#[derive(Clone, Copy)]
pub(crate) struct Attack {
    /// `room/attack`.
    pub(crate) name: &'static str,
    /// Attacks one connection, which it makes, until that or the time is over. Played again as long
    /// as there is time.
    round: fn(&mut Siege) -> Verdict,
    /// The device or the domain does not survive it, so it is only played where it is named.
    last: bool,
}

impl Attack {
    const fn new(name: &'static str, round: fn(&mut Siege) -> Verdict) -> Self {
        Self { name, round, last: false }
    }

    const fn last(name: &'static str, round: fn(&mut Siege) -> Verdict) -> Self {
        Self { name, round, last: true }
    }
}

/// Every room, in the order in which they are played.
const ROOMS: &[&[Attack]] =
    &[neighbour::ATTACKS, ring::ATTACKS, requests::ATTACKS, grants::ATTACKS, nodes::ATTACKS, life::ATTACKS];

/// The attacks that the command line asks for, each with its number among all there are.
pub(crate) fn chosen<'o>(options: &'o Options<'_>) -> impl Iterator<Item = (u64, &'static Attack)> + 'o {
    let all = (1..).zip(ROOMS.iter().flat_map(|room| *room));
    all.filter(|(_, attack)| options.wants(attack.name) && (!attack.last || options.names(attack.name)))
}
