//! `nodes/`: xenstore, as far as a guest may write it.

use platter::hal::DeviceAccess;
use platter::wire::xenbus::{Job, Value, XenbusState, cut};

use super::Attack;
use super::siege::Siege;
use crate::terms::{Nodes, RingNodes, Terms};
use crate::verdict::Verdict;

/// What a backend reads of a frontend.
const NAMES: [&str; 12] = [
    "ring-ref",
    "ring-ref0",
    "ring-ref1",
    "ring-page-order",
    "num-ring-pages",
    "event-channel",
    "protocol",
    "feature-persistent",
    "multi-queue-num-queues",
    "queue-0/ring-ref",
    "queue-0/event-channel",
    "queue-1/ring-ref",
];
/// What those nodes should not hold, or not now.
const JUNK: [&str; 16] = [
    "",
    "0",
    "1",
    "-1",
    "7",
    "00",
    " 1",
    "1\n",
    "0x10",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "x86_64-abi",
    "arm-abi",
    "\u{e4}\u{1f4be}",
    "9",
];
/// Nodes and watches tried in one round: more than any quota allows.
const NODES: u32 = 2000;
const WATCHES: u32 = 256;
/// Of those, how many in one job.
const AT_ONCE: u32 = 16;

pub(super) const ATTACKS: &[Attack] = &[
    Attack::new("nodes/state-flaps", state_flaps),
    Attack::new("nodes/rewritten-while-connected", rewritten),
    Attack::new("nodes/junk-to-connect-by", junk_to_connect_by),
    Attack::new("nodes/terms-never-offered", terms_never_offered),
    Attack::new("nodes/ring-moves", ring_moves),
    Attack::new("nodes/backends-own", backends_own),
    Attack::new("nodes/thousands", thousands),
    Attack::new("nodes/watches", watches),
];

/// The state is anything, as fast as xenstore takes it.
fn state_flaps(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    while siege.has_time() {
        let number = siege.below(12);
        let job = Job::new(&siege.stage.frontend);
        siege.stage.host.job(match number {
            9 => job.write("state", "\u{e4}"),
            10 => job.write("state", long("9")),
            11 => job.write("state/x", "a directory now"),
            state => job.write("state", state),
        })?;
        siege.acted(1)?;
    }
    siege.stage.host.job(Job::new(&siege.stage.frontend).remove("state/x"))?;
    // From where a driver starts, so that closing is a change.
    siege.stage.show(XenbusState::Initialising)
}

/// Makes one of the nodes junk, or a directory, or removes it.
fn spoil(siege: &mut Siege) -> Verdict {
    let (name, junk, how) = (siege.one_of(&NAMES), siege.one_of(&JUNK), siege.below(8));
    let job = Job::new(&siege.stage.frontend);
    let job = match how {
        0 => job.remove(name),
        1 => job.write(&cut(format_args!("{name}/x")), "a directory now"),
        2 => job.write(name, long(junk)),
        _ => job.write(name, junk),
    };
    siege.stage.host.job(job).map(drop)
}

/// Removes whatever [`spoil`] made.
fn mend(siege: &mut Siege) -> Verdict {
    let mut nodes = Nodes::new(siege.stage.host, &siege.stage.frontend);
    NAMES.iter().try_for_each(|name| nodes.remove(format_args!("{name}")))?;
    nodes.done()
}

/// Nodes change under a connection, and the state is written again so that they are looked at.
fn rewritten(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    while siege.acted(1)? {
        spoil(siege)?;
        siege.stage.show(XenbusState::Connected)?;
    }
    mend(siege)
}

/// A connection is asked for by nodes that are junk.
fn junk_to_connect_by(siege: &mut Siege) -> Verdict {
    siege.stage.show(XenbusState::Initialising)?;
    siege.stage.wait_state(&[XenbusState::InitWait])?;
    NAMES.iter().try_for_each(|_| spoil(siege))?;
    siege.acted(1)?;
    siege.stage.show(XenbusState::Initialised)?;
    siege.await_end()?;
    mend(siege)
}

/// Orders, numbers of rings, references and ports that are not there or were not offered.
fn terms_never_offered(siege: &mut Siege) -> Verdict {
    let many = [0, 1, 3, 5, 17, 31, 32, 255, 65_536, u32::MAX];
    let maybe = |siege: &mut Siege| (siege.below(2) == 0).then(|| siege.one_of(&many));
    let terms = Terms {
        nodes: siege.one_of(&[RingNodes::Single, RingNodes::Numbered, RingNodes::BothSpellings]),
        queues: siege.one_of(&[1, 2]),
        said_order: maybe(siege),
        said_queues: maybe(siege),
        ring_ref: maybe(siege),
        event_channel: maybe(siege),
        protocol: siege.one_of(&[None, Some("x86_64-abi"), Some("x86_32-abi"), Some("arm-abi"), Some("")]),
        eager: siege.below(2) == 0,
        ..Terms::PLAIN
    };
    siege.stage.try_connect(terms)?;
    siege.acted(1).map(drop)
}

/// The ring is said to be another page while it is served.
fn ring_moves(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    let page = siege.stage.lend(DeviceAccess::Writes)?;
    let gref = siege.stage.gref(page);
    let job = Job::new(&siege.stage.frontend).write("ring-ref", gref);
    siege.stage.host.job(job)?;
    let state = siege.one_of(&[XenbusState::Initialised, XenbusState::Connected]);
    siege.stage.show(state)?;
    siege.acted(1)?;
    siege.await_end()
}

/// The backend's directory, which is not the guest's to write.
fn backends_own(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    loop {
        let job = Job::new(&siege.stage.backend)
            .write("state", 6)
            .write("params", "/dev/nvme0n1")
            .write("sectors", "99999999")
            .write("x", "")
            .remove("state")
            .remove("");
        let steps = job.steps.len() as u64;
        siege.stage.host.job(job)?;
        if !siege.acted(steps)? {
            return Ok(());
        }
    }
}

/// As many nodes as xenstore allows, in the frontend's directory, and away with them.
fn thousands(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    let mut number = 0;
    while number < NODES && siege.acted(AT_ONCE.into())? {
        let mut job = Job::new(&siege.stage.frontend);
        for _ in 0..AT_ONCE {
            job = job.write(&cut(format_args!("many/{number}")), "");
            number += 1;
        }
        siege.stage.host.job(job)?;
    }
    siege.stage.host.job(Job::new(&siege.stage.frontend).remove("many")).map(drop)
}

/// As many watches as xenstore allows, which all fire, and away with them.
fn watches(siege: &mut Siege) -> Verdict {
    siege.stage.connect(Terms::PLAIN)?;
    let mut number = 0;
    while number < WATCHES && siege.acted(1)? {
        let token = cut(number);
        let job = Job::new(&siege.stage.frontend).watch("many", &token).write("many", number);
        siege.stage.host.job(job)?;
        number += 1;
    }
    for number in 0..number {
        let token = cut(number);
        siege.stage.host.job(Job::new(&siege.stage.frontend).unwatch("many", &token))?;
    }
    siege.stage.host.job(Job::new(&siege.stage.frontend).remove("many")).map(drop)
}

/// A text again and again, up to the longest value that can be sent from here.
fn long(text: &str) -> Value {
    cut(core::fmt::from_fn(|f| (0..256).try_for_each(|_| f.write_str(text))))
}
