//! What happens in a session: acts of the rogue guest, of the toolstack upon it, and faults.

use std::time::Duration;

use platter::sim::abi::{Body, Entry, Head, SEGMENT_BYTES, Segment, write_segment};
use platter::sim::frontend::back_path;
use platter::sim::machine::DRIVER;
use platter::sim::world::State;
use platter::wire::nvme::command::ErrorStatus;

use super::rogue::{DATA_PAGES, Rogue};
use super::{DEV, REQUESTS};
use crate::input::Input;

/// The first controller, which there is no other than.
const CONTROLLER: usize = 0;

/// Namespace not ready: the command may succeed the next time.
const BUSY: ErrorStatus = ErrorStatus { kind: 0, code: 0x82, do_not_retry: false };

/// One thing that happens.
pub(super) enum Act {
    /// Any bytes as the next request.
    Entry(Entry),
    /// A request as the protocol has it, and how many of the segments are in a page of their own.
    Request {
        operation: u8,
        sector: u64,
        segments: Vec<(u8, u8, u8)>,
        indirect: Option<u8>,
    },
    /// So many more requests are claimed, and an event is sent.
    Claim(u8),
    /// An index, and what it becomes.
    Index(usize, u32),
    /// A byte of a data page.
    Scribble(u8, u16, u8),
    /// The frontend is ready.
    Offer,
    /// A node of the frontend's.
    Node(&'static str, String),
    Notify,
    /// A data page is not granted any more.
    Revoke(u8),
    Detach {
        force: bool,
    },
    Attach,
    Destroy,
    Fault(u8),
    Heal,
    /// The honest guest asks for more.
    More,
}

/// What can happen only so often: a controller that needs too many resets is given up.
pub(super) struct Budget {
    resets: u8,
}

impl Default for Budget {
    fn default() -> Self {
        Self { resets: 2 }
    }
}

/// The time that passes before the next act: microseconds mostly, sometimes as long as timeouts are.
pub(super) fn pause(input: &mut Input<'_>) -> Duration {
    match input.byte() {
        units @ 0..0x80 => Duration::from_micros(u64::from(units) * 4),
        units @ 0x80..0xf8 => Duration::from_millis(u64::from(units - 0x7f) * 10),
        units => Duration::from_secs(u64::from(units - 0xf7) * 5),
    }
}

impl Act {
    pub(super) fn draw(input: &mut Input<'_>) -> Self {
        match input.byte() % 20 {
            0 => Self::Entry(input.array()),
            1..5 => Self::request(input),
            5..7 => Self::Claim(input.byte()),
            7 => Self::Index(4 * usize::from(input.byte() % 4), input.word()),
            8 => Self::Scribble(input.byte(), input.half(), input.byte()),
            9 => Self::Offer,
            10 | 11 => Self::node(input),
            12 => Self::Notify,
            13 => Self::Revoke(input.byte()),
            14 => Self::Detach { force: input.byte() & 1 != 0 },
            15 => Self::Attach,
            16 => Self::Destroy,
            17 => Self::Fault(input.byte()),
            18 => Self::Heal,
            _ => Self::More,
        }
    }

    fn request(input: &mut Input<'_>) -> Self {
        let operation = *input.choose(&[0, 1, 2, 3, 5, 0, 1, 4]);
        let sector = if input.byte() < 0xf0 { input.half().into() } else { input.long() };
        let shape = input.byte();
        let count = shape & 0xf;
        let segments = (0..count).map(|_| (input.byte(), input.byte(), input.byte())).collect();
        let indirect = (shape & 0x10 != 0).then(|| input.byte());
        Self::Request { operation, sector, segments, indirect }
    }

    fn node(input: &mut Input<'_>) -> Self {
        let names = [
            "state",
            "ring-ref",
            "ring-ref0",
            "ring-ref1",
            "event-channel",
            "protocol",
            "ring-page-order",
            "multi-queue-num-queues",
            "queue-0/ring-ref",
            "queue-0/event-channel",
            "feature-persistent",
            "state/below",
        ];
        let name = *input.choose(&names);
        let value = match input.byte() {
            number @ 0..0xc0 => (number % 12).to_string(),
            _ => input.text().to_owned(),
        };
        Self::Node(name, value)
    }
}

/// Lets an act happen.
pub(super) fn happen(act: Act, rogue: &mut Rogue, budget: &mut Budget, state: &mut State) {
    let machine = &mut state.machine;
    match act {
        Act::Entry(entry) => put(rogue, &entry),
        Act::Request { operation, sector, segments, indirect } => {
            let head = Head { operation, id: u64::from(rogue.index(0)), sector };
            request(rogue, head, &segments, indirect);
        }
        Act::Claim(more) => {
            rogue.set_index(0, rogue.index(0).wrapping_add(more.into()));
            machine.notify(rogue.guest, rogue.port);
        }
        Act::Index(at, value) => rogue.set_index(at, value),
        Act::Scribble(page, at, byte) => data(rogue, page).frame.write(usize::from(at) % 4096, &[byte]),
        Act::Offer => rogue.offer(machine),
        Act::Node(node, value) => rogue.say(machine, node, value),
        Act::Notify => machine.notify(rogue.guest, rogue.port),
        Act::Revoke(page) => _ = machine.grants.revoke(rogue.guest, data(rogue, page).gref),
        Act::Detach { force } if !state.toolstack.is_busy(rogue.guest) => {
            state.detach(rogue.guest, DEV, force);
        }
        Act::Attach if can_attach(rogue, state) => rogue.attach(state),
        Act::Destroy if !state.toolstack.is_busy(rogue.guest) => _ = state.destroy(rogue.guest),
        Act::Detach { .. } | Act::Attach | Act::Destroy => {}
        Act::Fault(fault) => fail(state, budget, fault),
        Act::Heal => heal(state),
        Act::More => state.frontends[0].do_more(REQUESTS),
    }
}

/// The guest is there, and its disk is not.
fn can_attach(rogue: &Rogue, state: &State) -> bool {
    let tree = &state.machine.tree;
    !state.toolstack.is_busy(rogue.guest)
        && tree.exists(&format!("/local/domain/{}", rogue.guest))
        && !tree.exists(&back_path(rogue.guest, DEV))
}

fn data(rogue: &Rogue, page: u8) -> super::rogue::Page {
    rogue.data[usize::from(page) % DATA_PAGES]
}

/// Writes what is the next request, and claims it; the event is another act.
fn put(rogue: &Rogue, entry: &Entry) {
    let index = rogue.index(0);
    rogue.put(index, entry);
    rogue.set_index(0, index.wrapping_add(1));
}

fn request(rogue: &Rogue, head: Head, segments: &[(u8, u8, u8)], indirect: Option<u8>) {
    let named = |(page, first, last): &(u8, u8, u8)| {
        // Mostly a page that there is, and sectors that it has.
        let gref = if *page < 0xf0 { data(rogue, *page).gref.0 } else { u32::from(*page) };
        let within = |sector: u8| if *page & 8 == 0 { sector % 8 } else { sector };
        (gref, within(*first), within(*last))
    };
    let segments: Vec<Segment> = segments.iter().map(named).collect();
    let mut entry = [0; 112];
    match indirect {
        None if head.operation == 5 => {
            let sectors = segments.first().map_or(1, |(gref, ..)| u64::from(*gref));
            rogue.abi.write(&mut entry, head, Body::Discard(0, sectors));
        }
        None => rogue.abi.write(&mut entry, head, Body::Direct(&segments[..segments.len().min(11)])),
        Some(page) => {
            let page = data(rogue, page);
            for (i, segment) in segments.iter().enumerate() {
                let mut bytes = [0; SEGMENT_BYTES];
                write_segment(&mut bytes, *segment);
                page.frame.write(i * SEGMENT_BYTES, &bytes);
            }
            let body = Body::Indirect(segments.len() as u16, &[page.gref.0]);
            rogue.abi.write(&mut entry, head, body);
        }
    }
    put(rogue, &entry);
}

/// Something goes wrong from now on.
fn fail(state: &mut State, budget: &mut Budget, fault: u8) {
    let owned = state.machine.tree.owned(DRIVER);
    let faults = &mut state.lent.controller(CONTROLLER).faults;
    match fault % 10 {
        0 => faults.error = 4,
        1 => (faults.error, faults.statuses) = (4, vec![BUSY]),
        2 => faults.lost_interrupt = 2,
        3 => faults.doubled = 4,
        4 => faults.invented = 4,
        5 => state.failing_maps = 4,
        6 => state.xenstored.conflicts = 3,
        7 => state.machine.tree.quota.0 = owned + 3,
        // Those that only a reset mends.
        _ if budget.resets == 0 => {}
        8 => (faults.fatal, budget.resets) = (true, budget.resets - 1),
        _ => (faults.forgets, budget.resets) = (2, budget.resets - 1),
    }
}

/// Everything works again.
pub(super) fn heal(state: &mut State) {
    let faults = &mut state.lent.controller(CONTROLLER).faults;
    (faults.error, faults.lost_interrupt, faults.doubled, faults.invented) = (0, 0, 0, 0);
    faults.statuses.clear();
    (state.failing_maps, state.xenstored.conflicts, state.machine.tree.quota.0) = (0, 0, 1000);
}
