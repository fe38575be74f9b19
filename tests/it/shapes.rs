//! The wide parts of blkif, written by hand. Requests that make no sense: indirect ones whose counts, operations or
//! descriptors are wrong, discards beyond the end. Each is answered with an error, changes nothing,
//! and leaves nothing mapped. And so many of the largest that every budget was used up, were it not given back, or
//! that others, or the end, would wait for them.

use core::time::Duration;

use platter::domain::End;
use platter::limits;
use platter::sim::abi::{
    Abi, Body, DISCARD, ENTRY_BYTES, Entry, Head, INDIRECT, READ, Segment, WRITE, write_segment,
};
use platter::sim::frontend::back_path;
use platter::sim::nvme::Settings;
use platter::sim::requests::Load;
use platter::sim::world::{State, World};
use platter::units::{DomId, GrantRef, PAGE_SIZE};

use crate::host::{DEV, SECTORS, add_nvme, attach, partitioned, run, world};
use crate::rogue::Rogue;

/// When a frontend may show its ring, and when it is connected for sure.
const OFFER: Duration = Duration::from_millis(500);
const CONNECTED: Duration = Duration::from_millis(600);

fn entry(operation: u8, sector: u64, body: Body<'_>) -> Entry {
    let mut entry = [0; ENTRY_BYTES];
    Abi::X64.write(&mut entry, Head { operation, id: 0, sector }, body);
    entry
}

/// A page full of the same segment, granted.
fn descriptors(world: &World, rogue: Rogue, segment: Segment) -> u32 {
    let (page, gref) = rogue.grant(&mut world.state().machine);
    let mut bytes = [0; PAGE_SIZE];
    bytes.chunks_exact_mut(8).for_each(|place| write_segment(place, segment));
    page.write(0, &bytes);
    gref.0
}

/// Asks for all of it, and asserts that all of it is refused and others are served.
fn are_refused(mut world: World, rogue: Rogue, entries: Vec<Entry>) {
    let (_, calm) = attach(&world, 6, "/dev/nvme0n2", Load::new(0, SECTORS, 100));
    let count = entries.len() as u32;
    rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
    rogue.later(&world, CONNECTED, move |rogue, state| {
        (0..).zip(&entries).for_each(|(place, entry)| rogue.put_entry(place, entry));
        rogue.claim(&mut state.machine, count);
    });
    run(&mut world, |_, _| false);
    assert_eq!(rogue.answers(), count);
    let statuses: Vec<i16> = (0..count).map(|place| rogue.answer(place).1).collect();
    assert!(statuses.iter().all(|status| [-1, -2].contains(status)), "{statuses:?}");
    assert_eq!(world.state().machine.grants.mapped_from(rogue.guest), 1, "the ring");
    assert_eq!(world.state().frontends[calm].answered(), (100, 0));
}

#[test]
fn indirect_requests_that_make_no_sense_are_errors() {
    for seed in 0..4 {
        let world = world(seed);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let data = rogue.grant(&mut world.state().machine).1.0;
        let [good, reversed, outside, nobodys] = [(data, 0, 7), (data, 7, 0), (data, 0, 8), (u32::MAX, 0, 7)]
            .map(|segment| descriptors(&world, rogue, segment));
        let ask =
            |operation, sector, count, table| entry(operation, sector, Body::Indirect(count, &[table; 8]));
        let counts = [0, 257, 4096, 4097, u16::MAX].map(|count| ask(READ, 0, count, good));
        let operations = [DISCARD, INDIRECT, 77].map(|inner| ask(inner, 0, 1, good));
        let tables = [reversed, outside, nobodys, u32::MAX].map(|table| ask(WRITE, 0, 12, table));
        let places = [SECTORS - 8, u64::MAX - 8, u64::MAX].map(|sector| ask(WRITE, sector, 2, good));
        are_refused(world, rogue, [&counts[..], &operations, &tables, &places].concat());
    }
}

#[test]
fn discards_beyond_the_end_are_errors() {
    for seed in 0..4 {
        let world = world(seed);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let ranges =
            [(SECTORS, 1), (SECTORS - 1, 2), (0, u64::MAX), (1, u64::MAX), (u64::MAX, 1), (1 << 63, 1 << 63)];
        let flags = [0, 1, 0xff];
        let entries = flags.iter().flat_map(|flag| {
            ranges.iter().map(|(sector, count)| entry(DISCARD, *sector, Body::Discard(*flag, *count)))
        });
        let entries = entries.collect();
        are_refused(world, rogue, entries);
    }
}

/// Pages of the largest request.
const SEGMENTS: u16 = 256;

/// A page of segments of the largest request, each with the same sectors of a page of its own: Xen lets one be mapped
/// some hundred times at once.
fn segments(world: &World, rogue: Rogue, first: u8, last: u8) -> u32 {
    let mut state = world.state();
    let (page, table) = rogue.grant(&mut state.machine);
    for at in (0..).step_by(8).take(SEGMENTS.into()) {
        let mut segment = [0; 8];
        let gref = rogue.grant(&mut state.machine).1.0;
        write_segment(&mut segment, (gref, first, last));
        page.write(at, &segment);
    }
    table.0
}

/// Asks for the largest reads again as their answers come, so many in all.
fn ask_for_all(rogue: Rogue, state: &mut State, table: u32, asked: u32, all: u32) {
    let now = all.min(rogue.answers() + 16);
    for place in asked..now {
        rogue.put_entry(place, &entry(READ, 0, Body::Indirect(SEGMENTS, &[table; 8])));
    }
    rogue.claim(&mut state.machine, now);
    if now < all {
        let next = state.machine.now + Duration::from_millis(1);
        state.at(next, move |state| ask_for_all(rogue, state, table, now, all));
    }
}

/// How long the disk takes for each command while a guest wants too many.
const SLOW: Duration = Duration::from_secs(1);

#[test]
fn whoever_comes_next_finds_room_at_the_disk() {
    for seed in 0..4 {
        let mut world = world(seed);
        let [(_, greedy), (_, modest)] = [(5, "/dev/nvme0n1"), (6, "/dev/nvme0n2")]
            .map(|(guest, target)| Rogue::attach(&world, guest, target));
        // Sectors that no command can have two of.
        let table = segments(&world, greedy, 1, 1);
        for rogue in [greedy, modest] {
            rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
        }
        greedy.later(&world, CONNECTED, move |rogue, state| {
            state.lent.controller(0).slow_down(SLOW..SLOW + Duration::from_micros(1));
            rogue.put_entry(0, &entry(READ, 0, Body::Indirect(SEGMENTS, &[table; 8])));
            rogue.claim(&mut state.machine, 1);
        });
        modest.later(&world, CONNECTED + SLOW / 2, move |rogue, state| {
            let (_, gref) = rogue.grant(&mut state.machine);
            (0..11).for_each(|place| rogue.put(place, READ, 8, &[(gref, 0, 7)]));
            rogue.claim(&mut state.machine, 11);
        });
        modest.later(&world, CONNECTED + SLOW / 2 + SLOW + SLOW / 4, move |modest, _| {
            assert_eq!((modest.answers(), greedy.answers()), (11, 0), "seed {seed}");
        });
        run(&mut world, |_, _| false);
        assert_eq!((greedy.answers(), greedy.answer(0).1), (1, 0), "seed {seed}");
    }
}

#[test]
fn mappings_of_requests_that_ended_are_there_for_the_next() {
    let all = limits::MAPPINGS as u32 / u32::from(SEGMENTS) + 16;
    let mut world = world(1);
    let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
    let table = segments(&world, rogue, 0, 7);
    rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
    rogue.later(&world, CONNECTED, move |rogue, state| ask_for_all(rogue, state, table, 0, all));
    run(&mut world, |_, _| false);
    assert_eq!(rogue.answers(), all);
    assert_eq!(rogue.answer(all - 1).1, 0);
}

/// Guests whose largest requests would take all mappings, and one more.
const CROWD: u16 = (limits::MAPPINGS / (limits::INDIRECT_SLOTS * SEGMENTS as usize)) as u16 + 1;

/// When they have taken what they can.
const TAKEN: Duration = Duration::from_secs(5);

/// So many guests at a slow disk who ask for as many of the largest requests as they can have.
fn crowd(seed: u64, guests: u16) -> (World, Vec<Rogue>) {
    let world = partitioned(seed, guests.into());
    add_nvme(&world, seed + 1000);
    {
        let mut state = world.state();
        state.machine.tree.quota.0 = usize::MAX;
        state.free_pages = usize::from(CROWD) * limits::LATECOMERS;
    }
    let attach = |n| Rogue::attach(&world, 5 + n, &format!("/dev/nvme0n1p{}", n + 1)).1;
    let rogues: Vec<Rogue> = (0..guests).map(attach).collect();
    for rogue in &rogues {
        let table = segments(&world, *rogue, 0, 7);
        rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
        rogue.later(&world, 4 * CONNECTED, move |rogue, state| {
            state.lent.controller(0).slow_down(19 * SLOW..20 * SLOW);
            let read = entry(READ, 0, Body::Indirect(SEGMENTS, &[table; 8]));
            (0..16).for_each(|place| rogue.put_entry(place, &read));
            rogue.claim(&mut state.machine, 16);
        });
    }
    (world, rogues)
}

#[test]
fn whoever_waits_for_its_own_mappings_does_not_keep_the_domain_awake() {
    let (mut world, rogues) = crowd(1, 3);
    rogues[0].later(&world, TAKEN, |_, state| {
        let mapped = (0..3).map(|n| state.machine.grants.mapped_from(DomId(5 + n)));
        let all = limits::INDIRECT_SLOTS * usize::from(SEGMENTS);
        assert!(mapped.clone().all(|mapped| (1000..all).contains(&mapped)), "{mapped:?}");
    });
    // Turns without sleep are a violation when they do not end.
    run(&mut world, |_, _| false);
    assert!(rogues.iter().all(|rogue| (rogue.answers(), rogue.answer(15).1) == (16, 0)));
}

#[test]
fn guests_of_a_slow_disk_leave_those_of_another_their_mappings() {
    for plain in [true, false] {
        let (mut world, rogues) = crowd(0, CROWD);
        let patience = Duration::from_millis(500);
        let load = Load { plain, patience, ..Load::new(0, SECTORS, 0) };
        let (_, calm) = attach(&world, 60, "/dev/nvme1n1", load);
        rogues[0].later(&world, TAKEN, move |_, state| state.frontends[calm].do_more(2_000));
        run(&mut world, |_, _| false);
        assert_eq!(world.state().frontends[calm].answered(), (2_000, 0));
        assert!(rogues.iter().all(|rogue| rogue.answers() == 16));
    }
}

/// A guest that wants more given up than its disk, which gives up little with each command, can do in an hour.
fn discards_without_end() -> (World, Rogue) {
    let world = world(1);
    {
        let mut state = world.state();
        let state = &mut *state;
        let latency = Duration::from_millis(1)..Duration::from_millis(2);
        let settings = Settings { deallocate_limit: Some(8), latency, ..Settings::new(1) };
        state.lent.add_nvme(&mut state.machine, settings);
    }
    let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme1n1");
    rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
    rogue.later(&world, CONNECTED, |rogue, state| {
        (0..32).for_each(|place| rogue.put_entry(place, &entry(DISCARD, 0, Body::Discard(0, SECTORS))));
        rogue.claim(&mut state.machine, 32);
    });
    (world, rogue)
}

/// What becomes of a guest.
type Fate = fn(Rogue, &mut State);

#[test]
fn of_a_guest_that_goes_away_a_slow_disk_does_only_what_it_has() {
    let fates: [(Fate, bool); 4] = [
        (|rogue, state| _ = state.destroy(rogue.guest), true),
        (|rogue, state| _ = state.detach(rogue.guest, DEV, true), true),
        (|rogue, state| state.machine.tree.remove(&back_path(rogue.guest, DEV)), true),
        // It is still there, and so are its requests.
        (|_, _| (), false),
    ];
    for (fate, is_gone) in fates {
        let mut world = world(1);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        // Sectors that no command can have two of: the disk has an eighth of the commands at most.
        let table = segments(&world, rogue, 1, 1);
        rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
        rogue.later(&world, CONNECTED, move |rogue, state| {
            state.lent.controller(0).slow_down(SLOW..SLOW + Duration::from_micros(1));
            rogue.put_entry(0, &entry(READ, 0, Body::Indirect(SEGMENTS, &[table; 8])));
            rogue.claim(&mut state.machine, 1);
        });
        rogue.later(&world, CONNECTED + SLOW / 2, fate);
        rogue.later(&world, CONNECTED + 2 * SLOW, move |rogue, state| {
            let left = state.machine.grants.mapped_from(rogue.guest);
            assert_eq!(left, if is_gone { 0 } else { 1 + usize::from(SEGMENTS) });
        });
        run(&mut world, |_, _| false);
    }
}

#[test]
fn nothing_more_is_done_for_a_guest_that_closes_or_starts_again_and_then_goes_away() {
    let first: [Fate; 4] = [
        |_, _| (),
        |rogue, state| rogue.say(&mut state.machine, "state", 5),
        |rogue, state| rogue.say(&mut state.machine, "state", 1),
        // Its device closes for what its ring claims.
        |rogue, state| rogue.claim(&mut state.machine, 77),
    ];
    for fate in first {
        let mut world = world(1);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let table = segments(&world, rogue, 1, 1);
        rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
        rogue.later(&world, CONNECTED, move |rogue, state| {
            state.lent.controller(0).slow_down(SLOW..SLOW + Duration::from_micros(1));
            let read = entry(READ, 0, Body::Indirect(SEGMENTS, &[table; 8]));
            (0..16).for_each(|place| rogue.put_entry(place, &read));
            rogue.claim(&mut state.machine, 16);
        });
        rogue.later(&world, CONNECTED + SLOW / 4, fate);
        rogue.later(&world, CONNECTED + SLOW / 2, |rogue, state| _ = state.destroy(rogue.guest));
        rogue.later(&world, CONNECTED + 3 * SLOW, move |rogue, state| {
            assert_eq!(state.machine.grants.mapped_from(rogue.guest), 0);
        });
        run(&mut world, |_, _| false);
    }
}

#[test]
fn a_guest_that_goes_away_leaves_no_discard_behind() {
    let (mut world, rogue) = discards_without_end();
    rogue.later(&world, 2 * CONNECTED, |rogue, state| {
        assert!(!state.lent.controller(1).discards(0).is_empty());
        state.destroy(rogue.guest);
    });
    rogue.later(&world, 4 * CONNECTED, |rogue, state| {
        assert_eq!(state.machine.grants.mapped_from(rogue.guest), 0);
    });
    run(&mut world, |_, _| false);
}

#[test]
fn a_guest_whose_discards_have_no_end_does_not_keep_a_shutdown() {
    let (mut world, rogue) = discards_without_end();
    rogue.later(&world, 2 * CONNECTED, |_, state| {
        state.machine.tree.write("/local/domain/3/control/shutdown", "poweroff");
    });
    rogue.later(&world, 4 * CONNECTED, |_, _| panic!("it has not ended"));
    assert_eq!(run(&mut world, |_, _| false), Some(End::Poweroff));
    assert_eq!(rogue.answers(), 32);
}

/// A guest whose reads fail when their last page is to be mapped, so that the others are unmapped in the next turn.
#[derive(Clone, Copy)]
struct Failing {
    rogue: Rogue,
    page: GrantRef,
    asked: u32,
    /// What had been asked for a turn ago.
    before: u32,
}

impl Failing {
    fn new(world: &World, rogue: Rogue) -> Self {
        let page = rogue.grant(&mut world.state().machine).1;
        Self { rogue, page, asked: 0, before: 0 }
    }

    fn ask(&mut self, state: &mut State) {
        let mut segments = [(self.page, 0, 7); 11];
        segments[10].0 = GrantRef(u32::MAX);
        self.rogue.put(self.asked, READ, 0, &segments);
        self.asked += 1;
        self.rogue.claim(&mut state.machine, self.asked);
    }
}

/// The second and the third have reads fail in one turn, the first two in the next, and so on.
fn fail_in_turns(mut guests: [Failing; 3], state: &mut State, turns: u32) {
    let is_another = guests.iter().all(|guest| guest.rogue.answers() >= guest.before);
    if is_another {
        guests.iter_mut().for_each(|guest| guest.before = guest.asked);
        let first = usize::from(turns.is_multiple_of(2));
        guests[first..first + 2].iter_mut().for_each(|guest| guest.ask(state));
    }
    let turns = turns + u32::from(is_another);
    if turns < 10_000 {
        let next = state.machine.now + Duration::from_nanos(1);
        state.at(next, move |state| fail_in_turns(guests, state, turns));
    }
}

#[test]
fn an_answer_comes_though_others_have_pages_unmapped_in_every_turn() {
    for seed in 0..4 {
        let mut world = partitioned(seed, 4);
        let rogues = [1, 2, 3, 4].map(|n| Rogue::attach(&world, 4 + n, &format!("/dev/nvme0n1p{n}")).1);
        for rogue in rogues {
            rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
        }
        // The places of the first three are before that of the fourth.
        let [others @ .., last] = rogues;
        let others = others.map(|rogue| Failing::new(&world, rogue));
        let table = segments(&world, last, 0, 7);
        last.later(&world, CONNECTED, move |_, state| fail_in_turns(others, state, 0));
        last.later(&world, CONNECTED, move |rogue, state| {
            rogue.put_entry(0, &entry(READ, 0, Body::Indirect(SEGMENTS, &[table; 8])));
            rogue.claim(&mut state.machine, 1);
        });
        last.later(&world, CONNECTED + Duration::from_millis(4), move |rogue, _| {
            assert_eq!((rogue.answers(), others[0].rogue.answers() > 10), (1, true), "seed {seed}");
        });
        run(&mut world, |_, _| false);
        assert_eq!(last.answer(0).1, 0, "seed {seed}");
    }
}
