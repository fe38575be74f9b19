//! `life/`: connecting, going away and dying, at any moment and without end.

use platter::hal::DeviceAccess;
use platter::platform::xen::crash;
use platter::wire::xenbus::{Job, XenbusState};

use super::Attack;
use super::siege::Siege;
use crate::protocol::{READ, WRITE};
use crate::terms::Terms;
use crate::verdict::Verdict;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("life/connects-and-closes", connects),
    Attack::new("life/slams", slams),
    Attack::new("life/starts-again", starts_again),
    Attack::last("life/removes-its-directory", removes_directory),
    Attack::last("life/crashes", crashes),
];

/// A connection, and its end, as fast as the backend lets it.
fn connects(siege: &mut Siege) -> Verdict {
    let terms = siege.one_of(&[Terms::PLAIN, Terms::BLUNT, Terms::PERSISTENT]);
    siege.stage.try_connect(terms)?;
    siege.acted(1).map(drop)
}

/// Connects, and has a full ring of reads and writes in flight.
fn in_flight(siege: &mut Siege) -> Verdict {
    let pages = siege.open(siege.widest(), 32, DeviceAccess::Writes)?;
    let count = siege.fill(|siege| {
        let (op, sector) = (siege.one_of(&[READ, WRITE]), siege.place());
        let segments = [siege.whole(&pages); 4];
        siege.direct(op, sector, &segments)
    });
    siege.call();
    siege.acted(count).map(drop)
}

/// Closed at once, with everything in flight.
fn slams(siege: &mut Siege) -> Verdict {
    in_flight(siege)?;
    siege.stage.show(XenbusState::Closed)?;
    siege.stage.host.limit = None;
    siege.stage.wait_state(&[XenbusState::Closed]).map(drop)
}

/// As a driver that is started over an old one: Initialising again, with everything in flight.
fn starts_again(siege: &mut Siege) -> Verdict {
    in_flight(siege)?;
    siege.stage.show(XenbusState::Initialising)?;
    siege.stage.wait_state(&[XenbusState::InitWait])?;
    siege.stage.take_back()?;
    in_flight(siege)
}

/// The whole directory goes, with everything in flight.
fn removes_directory(siege: &mut Siege) -> Verdict {
    in_flight(siege)?;
    siege.stage.host.job(Job::new(&siege.stage.frontend).remove(""))?;
    siege.acted(1)?;
    siege.await_end()
}

/// The domain dies, with everything in flight.
fn crashes(siege: &mut Siege) -> Verdict {
    in_flight(siege)?;
    crash()
}
