//! Attacks of guests and disks on the whole core: whatever they do, nobody else is kept waiting,
//! and nothing of theirs stays behind.

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::rc::Rc;

use platter::domain::End;
use platter::limits;
use platter::sim::abi::ENTRY_BYTES;
use platter::sim::frontend::{Frontend, front_path};
use platter::sim::machine::Machine;
use platter::sim::nvme::{Faults, Settings};
use platter::sim::requests::Load;
use platter::sim::shadow::{Shadow, content};
use platter::sim::tables::Gpt;
use platter::sim::world::{State, World};
use platter::units::{DomId, GrantRef, Instant};

use crate::host::{DEV, SECTORS, add_nvme, attach, disk, partitioned, run, world};
use crate::journal::Journal;
use crate::rogue::{FLUSH, READ, Rogue};

const DONE: bool = false;

/// When a frontend that was attached at the start may show its ring: the backend is in InitWait.
const OFFER: Duration = Duration::from_millis(500);

/// When it is connected for sure.
const CONNECTED: Duration = Duration::from_millis(600);

/// A guest whose disk is attached, and then connected.
fn connected(world: &World, guest: u16, target: &str) -> Rogue {
    let (_, rogue) = Rogue::attach(world, guest, target);
    rogue.later(world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
    rogue
}

fn answered(world: &World, frontend: usize) -> (u64, usize) {
    world.state().frontends[frontend].answered()
}

fn shut_down(world: &World, wait: Duration) {
    let mut state = world.state();
    let at = state.machine.now + wait;
    state.at(at, |state| state.machine.tree.write("/local/domain/3/control/shutdown", "poweroff"));
}

/// From now on the controller answers nothing, and is not known to leave memory alone.
fn fail_for_good(faults: &mut Faults) {
    (faults.unanswered, faults.never_disabled) = (1, true);
}

#[test]
fn data_that_comes_with_a_flush_is_written_though_nothing_follows() {
    for seed in 0..10 {
        let mut world = world(seed);
        let rogue = connected(&world, 5, "/dev/nvme0n1");
        // What the disk must hold then is known to a guest that does nothing itself.
        let mut shadow = Shadow::default();
        shadow.written(100, 1, 7);
        let witness = Frontend::new(&disk(6, "/dev/nvme0n1"), Load::new(0, SECTORS, 0), shadow);
        world.state().frontends.push(witness);
        rogue.later(&world, CONNECTED, |rogue, state| {
            let (page, gref) = rogue.grant(&mut state.machine);
            page.write(512, &content(100, 7));
            rogue.put(0, FLUSH, 100, &[(gref, 1, 1)]);
            rogue.claim(&mut state.machine, 1);
        });
        run(&mut world, |_, _| DONE);
        assert_eq!((rogue.answers(), rogue.answer(0)), (1, (0, 0)), "seed {seed}");
    }
}

#[test]
fn a_guest_that_calls_without_end_does_not_keep_a_shutdown_awake() {
    let mut world = world(1);
    let rogue = connected(&world, 5, "/dev/nvme0n1");
    world.state().lent.controller(0).faults.unanswered = 1;
    rogue.later(&world, CONNECTED, |rogue, state| {
        let (_, gref) = rogue.grant(&mut state.machine);
        rogue.put(0, READ, 0, &[(gref, 0, 7)]);
        rogue.claim(&mut state.machine, 1);
    });
    shut_down(&world, 2 * CONNECTED);
    for call in 0..10 {
        rogue.later(&world, 3 * CONNECTED + call * OFFER, |rogue, state| {
            state.machine.notify(rogue.guest, rogue.port);
        });
    }
    assert_eq!(run(&mut world, |_, _| DONE), Some(End::Poweroff));
    assert_eq!(rogue.answers(), 1);
}

/// Asks for everything that a ring holds, in as many commands as there are segments.
fn ask_for_much(rogue: Rogue, machine: &mut Machine) {
    for place in 0..32 {
        let (_, gref) = rogue.grant(machine);
        rogue.put(place, READ, 0, &[(gref, 1, 1); 11]);
    }
    rogue.claim(machine, 32);
}

#[test]
fn a_controller_that_fails_for_good_keeps_neither_others_nor_the_shutdown() {
    for seed in 0..10 {
        let mut world = world(seed);
        add_nvme(&world, seed + 100);
        let rogue = connected(&world, 5, "/dev/nvme0n1");
        rogue.later(&world, CONNECTED, |rogue, state| {
            fail_for_good(&mut state.lent.controller(0).faults);
            ask_for_much(rogue, &mut state.machine);
        });
        let (_, calm) = attach(&world, 6, "/dev/nvme1n1", Load::new(0, SECTORS, 300));
        // Before it has failed, or after.
        shut_down(&world, Duration::from_secs(if seed.is_multiple_of(2) { 2 } else { 60 }));
        assert_eq!(run(&mut world, |_, _| DONE), Some(End::Poweroff), "seed {seed}");
        // What it held is answered too, once it is kept from memory.
        assert_eq!(rogue.answers(), 32, "seed {seed}");
        assert_eq!(answered(&world, calm), (300, 0), "seed {seed}");
    }
}

#[test]
fn a_controller_that_fails_while_it_is_flushed_does_not_keep_the_shutdown() {
    let mut world = world(1);
    add_nvme(&world, 2);
    shut_down(&world, CONNECTED);
    let before = world.state().machine.now + OFFER;
    world.state().at(before, |state| fail_for_good(&mut state.lent.controller(0).faults));
    assert_eq!(run(&mut world, |_, _| DONE), Some(End::Poweroff));
    assert!(world.state().lent.controller(1).flushes() > 0);
}

/// More guests than a controller takes commands.
const CROWD: u16 = limits::QUEUE_ENTRIES as u16 + 8;

#[test]
fn guests_that_are_more_than_a_controller_takes_commands_have_equal_shares() {
    for seed in 0..2 {
        let mut world = partitioned(seed, CROWD.into());
        {
            let mut state = world.state();
            state.machine.tree.quota.0 = usize::MAX;
            state.xenstored.watch_quota = usize::MAX;
        }
        let rogue = |n| connected(&world, 4 + n, &format!("/dev/nvme0n1p{n}"));
        let rogues: Rc<[Rogue]> = (1..=CROWD).map(rogue).collect();
        let all_are_connected = Duration::from_secs(20);
        for rogue in rogues.iter() {
            rogue.later(&world, all_are_connected, |rogue, state| ask_for_much(rogue, &mut state.machine));
        }
        // How many answers each has when one of them has all.
        let shares = Rc::new(Cell::new(None));
        for look in 0..1000 {
            let (shares, rogues) = (Rc::clone(&shares), Rc::clone(&rogues));
            let when = all_are_connected + look * Duration::from_millis(1);
            rogues[0].later(&world, when, move |_, _| {
                let answers = || rogues.iter().map(|rogue| rogue.answers());
                if shares.get().is_none() && answers().any(|answers| answers == 32) {
                    shares.set(answers().min());
                }
            });
        }
        run(&mut world, |_, _| DONE);
        let least = shares.get().expect("all are answered");
        assert!(least > 20, "seed {seed}: one has {least} when another has 32");
    }
}

#[test]
fn guests_that_fail_again_and_again_do_not_use_the_quota_up() {
    const ERRORS: &str = "/local/domain/3/error/backend/vbd";
    let mut world = world(1);
    let lives = 2 * limits::ERRORS as u16;
    run(&mut world, |world, act| {
        let guest = 5 + act as u16;
        if act > 0 {
            world.state().destroy(DomId(guest - 1));
        }
        if act < usize::from(lives) {
            let rogue = connected(world, guest, "/dev/nvme0n1");
            rogue.later(world, CONNECTED, |rogue, state| rogue.claim(&mut state.machine, 33));
        }
        act <= usize::from(lives)
    });
    let state = world.state();
    assert_eq!(state.machine.tree.children(ERRORS).len(), limits::ERRORS);
    let last = state.machine.tree.text(&format!("{ERRORS}/{}/{DEV}/error", 4 + lives));
    assert!(last.is_some_and(|reason| reason.contains("claims 33 requests")), "{last:?}");
}

/// Changes something of its frontend's directory every few milliseconds until `end`, and notes
/// the states of the backend.
fn toggle(rogue: Rogue, state: &mut State, end: Instant, seen: Rc<RefCell<Vec<String>>>) {
    let machine = &mut state.machine;
    match machine.rng.index(8) {
        0 | 1 => rogue.say(machine, "state", 1),
        2 | 3 => rogue.offer(machine),
        4 => rogue.say(machine, "ring-ref", "\u{1}".repeat(2048)),
        5 => rogue.say(machine, "state/deep/below", "x"),
        6 => rogue.say(machine, "event-channel", rogue.port.0 ^ 1),
        _ => {
            let any = machine.rng.index(10);
            rogue.say(machine, "state", any);
        }
    }
    let backend = rogue.backend(machine);
    if seen.borrow().last() != Some(&backend) {
        seen.borrow_mut().push(backend);
    }
    let next = machine.now + Duration::from_millis(4);
    if next < end {
        state.at(next, move |state| toggle(rogue, state, end, seen));
    }
}

#[test]
fn a_frontend_that_starts_again_at_full_speed_is_put_off_and_nobody_else() {
    for seed in 0..2 {
        let mut world = world(seed);
        let journal = Journal::new("cargo test --features sim --test it hostile".into());
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let load = Load { patience: Duration::from_millis(20), plain: true, ..Load::new(0, SECTORS, 300) };
        let (_, calm) = attach(&world, 6, "/dev/nvme0n2", load);
        let end = world.state().machine.now + Duration::from_secs(60);
        let seen = Rc::new(RefCell::new(Vec::new()));
        toggle(rogue, &mut world.state(), end, Rc::clone(&seen));
        run(&mut world, |_, _| DONE);
        assert_eq!(answered(&world, calm), (300, 0), "seed {seed}");
        // Offers wait longer each time, up to 0.8 s: a minute has 75, of at most four changes each.
        assert!((20..=300).contains(&seen.borrow().len()), "seed {seed}: {seen:?}");
        let lines = journal.count("vbd 5/");
        assert!((20..=300).contains(&lines), "seed {seed}: {lines}");
    }
}

/// What guest 6 says there, wherever its frontend has that node.
fn theirs(state: &State, node: &str) -> String {
    let names = [node.to_owned(), format!("{node}0"), format!("queue-0/{node}"), format!("queue-0/{node}0")];
    let text = |name: &String| state.machine.tree.text(&format!("{}/{name}", front_path(DomId(6), DEV)));
    names.iter().find_map(text).expect("its frontend has shown itself").to_owned()
}

#[test]
fn what_is_not_the_guests_is_not_taken() {
    for foreign in ["ring-ref", "event-channel"] {
        let mut world = world(1);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let (_, calm) = attach(&world, 6, "/dev/nvme0n2", Load::new(0, SECTORS, 300));
        rogue.later(&world, OFFER, move |rogue, state| {
            rogue.offer(&mut state.machine);
            // The numbers of a guest's grants and ports start alike: that of its own is gone.
            if foreign == "ring-ref" {
                state.machine.grants.revoke(rogue.guest, rogue.gref);
            } else {
                state.machine.ports.close(rogue.guest, rogue.port);
            }
            let number = theirs(state, foreign);
            rogue.say(&mut state.machine, foreign, number);
        });
        run(&mut world, |_, _| DONE);
        assert_eq!(rogue.backend(&world.state().machine), "6");
        assert_eq!(world.state().machine.grants.mapped_from(rogue.guest), 0);
        assert_eq!(answered(&world, calm), (300, 0));
    }
}

#[test]
fn a_device_is_forced_off_while_its_controller_is_reset() {
    for seed in 0..10 {
        let mut world = world(seed);
        let rogue = connected(&world, 5, "/dev/nvme0n1");
        let patience = Duration::from_secs(120);
        let load = Load { may_fail: true, patience, ..Load::new(0, SECTORS, 100) };
        let (_, calm) = attach(&world, 6, "/dev/nvme0n2", load);
        rogue.later(&world, CONNECTED, |rogue, state| {
            state.lent.controller(0).faults.unanswered = 1;
            ask_for_much(rogue, &mut state.machine);
        });
        // The controller has some of the commands, others wait for it; the reset comes 10 s later.
        rogue.later(&world, Duration::from_secs(20), |rogue, state| {
            assert!(state.machine.grants.mapped_from(rogue.guest) > 300);
            state.destroy(rogue.guest);
            state.lent.controller(0).faults.unanswered = 0;
        });
        run(&mut world, |_, _| DONE);
        assert_eq!(world.state().machine.grants.mapped_from(rogue.guest), 0, "seed {seed}");
        assert_eq!(answered(&world, calm), (100, 0), "seed {seed}");
    }
}

#[test]
fn a_storm_of_flushes_leaves_others_their_share() {
    for seed in 0..10 {
        let mut world = partitioned(seed, 3);
        let rogues = [1, 2].map(|n| connected(&world, 4 + n, &format!("/dev/nvme0n1p{n}")));
        let patience = Duration::from_millis(20);
        let one = Load { depth: 1, patience, ..Load::new(0, SECTORS / 4, 200) };
        let (_, calm) = attach(&world, 7, "/dev/nvme0n1p3", one);
        for rogue in rogues {
            (0..32).for_each(|place| rogue.put(place, FLUSH, u64::MAX, &[]));
            rogue.later(&world, CONNECTED, |rogue, state| storm(rogue, state, 32));
        }
        run(&mut world, |_, _| DONE);
        assert_eq!(answered(&world, calm), (200, 0), "seed {seed}");
        assert!(world.state().lent.controller(0).flushes() > 1000, "seed {seed}");
    }
}

/// Asks again for as much as was answered, and never sleeps.
fn storm(rogue: Rogue, state: &mut State, asked: u32) {
    rogue.claim(&mut state.machine, rogue.answers() + 32);
    if asked < 5_000 {
        let next = state.machine.now + Duration::from_micros(20);
        state.at(next, move |state| storm(rogue, state, asked + 1));
    }
}

#[test]
fn a_storm_of_nonsense_leaves_others_their_share() {
    for seed in 0..4 {
        let mut world = partitioned(seed, 2);
        let rogue = connected(&world, 5, "/dev/nvme0n1p1");
        let patience = Duration::from_millis(20);
        let one = Load { depth: 1, patience, ..Load::new(0, SECTORS / 4, 1000) };
        let (_, calm) = attach(&world, 7, "/dev/nvme0n1p2", one);
        // An operation that is unknown, and is so again when the answer is written over it.
        (0..32).for_each(|place| rogue.put_entry(place, &[77; ENTRY_BYTES]));
        rogue.later(&world, CONNECTED, |rogue, state| storm_every_turn(rogue, state, 0));
        run(&mut world, |_, _| DONE);
        assert_eq!(answered(&world, calm), (1000, 0), "seed {seed}");
        assert!(rogue.answers() > 10_000, "seed {seed}");
    }
}

/// Has asked for something whenever anybody looks.
fn storm_every_turn(rogue: Rogue, state: &mut State, asked: u32) {
    rogue.claim(&mut state.machine, rogue.answers() + 32);
    if asked < 20_000 {
        let next = state.machine.now + Duration::from_nanos(1);
        state.at(next, move |state| storm_every_turn(rogue, state, asked + 1));
    }
}

#[test]
fn requests_that_make_no_sense_are_errors_on_any_disk() {
    for seed in 0..4 {
        let mut world = world(seed);
        let settings = Settings::new(seed);
        {
            let mut state = world.state();
            let state = &mut *state;
            state.lent.add_nvme(&mut state.machine, settings);
        }
        // Blocks of 4096 bytes.
        let rogue = connected(&world, 5, "/dev/nvme1n2");
        rogue.later(&world, CONNECTED, |rogue, state| {
            let (_, gref) = rogue.grant(&mut state.machine);
            let (_, other) = rogue.grant(&mut state.machine);
            rogue.put(0, READ, 0, &[(gref, 0, 7); 11]);
            rogue.put(1, READ, 0, &[(gref, 0, 3), (gref, 4, 7)]);
            rogue.put(2, READ, 0, &[(gref, 0, 3), (other, 4, 7)]);
            rogue.put(3, READ, 0, &[(gref, 4, 7), (other, 0, 3)]);
            rogue.put(4, READ, 0, &[(gref, 3, 3)]);
            rogue.put(5, READ, u64::MAX - 7, &[(gref, 0, 7)]);
            rogue.put(6, READ, u64::MAX, &[(gref, 0, 7); 11]);
            rogue.put(7, READ, 1 << 63, &[(gref, 0, 7)]);
            rogue.put(8, READ, 0, &[(GrantRef(u32::MAX), 0, 7)]);
            rogue.put(9, READ, 0, &[(gref, 7, 0)]);
            rogue.put(10, READ, 0, &[(gref, 0, 8)]);
            rogue.put(11, READ, 0, &[]);
            rogue.put(12, 77, 0, &[(gref, 0, 7)]);
            rogue.claim(&mut state.machine, 13);
        });
        run(&mut world, |_, _| DONE);
        let mut statuses: Vec<_> = (0..rogue.answers()).map(|place| rogue.answer(place)).collect();
        statuses.sort_unstable();
        let statuses: Vec<_> = statuses.into_iter().map(|(_, status)| status).collect();
        assert_eq!(statuses, [0, 0, -1, 0, -1, -1, -1, -1, -1, -1, -1, -1, -2], "seed {seed}");
        assert_eq!(world.state().machine.grants.mapped_from(rogue.guest), 1, "the ring");
    }
}

#[test]
fn a_guest_that_changes_what_we_are_looking_at_hurts_nobody_else() {
    let part = Gpt::equal(512, SECTORS, 2).parts[0].clone();
    let (mut written, mut acts) = (0, 0);
    for seed in 0..20 {
        let mut world = partitioned(seed, 2);
        let time = Duration::from_secs(3);
        world.state().create_intruder(&disk(5, "/dev/nvme0n1p1"), part.blocks, time);
        let patience = Duration::from_millis(20);
        let load = Load { patience, depth: 4, ..Load::new(0, SECTORS / 4, 500) };
        let (_, calm) = attach(&world, 6, "/dev/nvme0n1p2", load);
        run(&mut world, |world, act| {
            world.state().destroy(DomId(5));
            act == 0
        });
        assert_eq!(answered(&world, calm), (500, 0), "seed {seed}");
        let mut state = world.state();
        acts += state.intruders[0].acts();
        assert_eq!(state.machine.grants.mapped_from(DomId(5)), 0, "seed {seed}");
        let its = |block: &u64| (part.first..part.first + part.blocks).contains(block);
        written += state.lent.controller(0).disk(0).written().filter(its).count();
    }
    assert!(acts > 20_000, "{acts}: it has changed little");
    assert!(written > 100_000, "{written}: it is served all the same");
}
