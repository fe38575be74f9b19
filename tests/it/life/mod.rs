//! Storms: whole lives of many guests under faults, each from one seed. Guests come, go, crash,
//! reboot and move while controllers, Xen and xenstore fail them; every byte they read is checked,
//! nobody waits for ever, one of them, whose disk is sound, never waits long, though its neighbour on the same
//! disk may keep no rules at all; and when they are gone, nothing of theirs is left.
//!
//! `SEEDS=N` runs so many seeds of each part, as `cargo test` does. `cargo lab sim` runs as many as one likes, and one
//! seed with all that happens in its world.

mod events;
mod script;

use core::time::Duration;
use std::sync::OnceLock;

use platter::sim::frontend::{Frontend, Stage, back_path};
use platter::sim::lending::Manner;
use platter::sim::machine::DOM0;
use platter::sim::nvme::{Settings, Shape};
use platter::sim::requests::Load;
use platter::sim::rng::Rng;
use platter::sim::shadow::Shadow;
use platter::sim::tables::Gpt;
use platter::sim::toolstack::Disk;
use platter::sim::world::World;
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use self::script::Cue;
use crate::console;
use crate::host::{note_frontends, run};
use crate::journal::{self, Journal, note};
use crate::left::{Footprint, nothing_is_left};

/// Namespaces of each controller for everybody. The first controller is the one that fails; the
/// other has one more, with a partition for the victim and one for its neighbour.
const NAMESPACES: [u32; 2] = [10, 4];
const FAULTY: usize = 0;

/// The guest that nothing happens to.
const VICTIM: DomId = DomId(4);

/// The guest that keeps no rules, if there is one.
const NEIGHBOUR: DomId = DomId(5);

/// The device of each of these two.
const DEV: u32 = 51712;

/// Blocks of a namespace, of 512 bytes.
const BLOCKS: u64 = 1 << 16;

/// How long the victim waits for an answer.
const PATIENCE: Duration = Duration::from_millis(50);

/// Requests of the victim with each event.
const BURST: u32 = 20;

/// Seeds of each part of the storm.
const SEEDS: u64 = 500;

/// A world with two controllers and no guest.
fn world(seed: u64) -> World {
    let flavour = if seed.is_multiple_of(2) { Flavour::Oxenstored } else { Flavour::Cxenstored };
    let world = World::new(seed, flavour);
    let mut state = world.state();
    for (controller, namespaces) in NAMESPACES.into_iter().enumerate() {
        let count = namespaces + u32::from(controller != FAULTY);
        let shape = |id| Shape { id, blocks: BLOCKS, block_shift: 9, metadata: 0 };
        let namespaces = (1..=count).map(shape).collect();
        let serial = format!("LIFE{controller}");
        let settings = Settings { namespaces, serial, ..Settings::new(seed) };
        let state = &mut *state;
        state.lent.add_nvme(&mut state.machine, settings);
    }
    state.lent.partition(1, shared_namespace(), &Gpt::equal(512, BLOCKS, 2));
    drop(state);
    world
}

/// The index of the namespace of the victim and its neighbour.
const fn shared_namespace() -> usize {
    NAMESPACES[1] as usize
}

/// The disk of one of these two: a partition.
fn shared(guest: DomId, partition: u32) -> Disk {
    Disk::new(guest, DEV, &format!("/dev/nvme1n{}p{partition}", shared_namespace() + 1))
}

/// What the image holds when no guest ever came.
fn fresh() -> &'static Footprint {
    static FRESH: OnceLock<Footprint> = OnceLock::new();
    FRESH.get_or_init(|| {
        let mut world = world(0);
        run(&mut world, |_, _| false);
        Footprint::of(&world)
    })
}

/// Everything from one seed.
fn storm(seed: u64) {
    let fresh = fresh();
    let _journal = Journal::new(format!("cargo lab sim --seed {seed}"));
    note(format_args!("the console takes {:?}", console::connect(seed)));
    let mut rng = Rng::new(seed);
    let mut world = world(seed);
    let script = script::script(&mut rng);
    let stalls = script.iter().any(|cue| cue.event.stalls());
    let breaks = script.iter().any(|cue| cue.event.breaks());
    begin(&world, &mut rng, script);
    let end = run(&mut world, |world, act| match act {
        // It is quiet: everybody who is attached is served.
        0 => {
            everybody_is_settled(world);
            world.state().frontends.iter_mut().for_each(|frontend| frontend.do_more(5));
            true
        }
        1 => {
            everybody_is_settled(world);
            end_all(world);
            true
        }
        2 if breaks => {
            // A controller that was given up is a new one when it is attached again.
            events::replug(&mut world.state(), Manner::Reset);
            true
        }
        _ => false,
    });
    if end.is_some() {
        ended_in_order(&world, breaks);
    } else {
        nothing_is_left(&world, fresh);
        assert!(stalls || world.state().toolstack.timed_out() == 0, "libxl lost its patience");
    }
    console::disconnect();
}

/// The victim is attached before anything happens, then the script runs.
fn begin(world: &World, rng: &mut Rng, script: Vec<Cue>) {
    let mut state = world.state();
    state.spared = Some(VICTIM);
    state.create_guest(VICTIM);
    let load = Load { patience: PATIENCE, ..Load::new(0, 2_000, BURST) };
    let (_, victim) = state.attach(&shared(VICTIM, 1), load, Shadow::default());
    let start = state.machine.now;
    let last = script.last().map_or(Duration::ZERO, |cue| cue.at);
    if rng.one_in(4) {
        let sectors = Gpt::equal(512, BLOCKS, 2).parts[1].blocks;
        state.create_intruder(&shared(NEIGHBOUR, 2), sectors, last);
    }
    for cue in script {
        state.at(start + cue.at, move |state| {
            state.frontends[victim].do_more(BURST);
            events::happen(state, cue);
        });
    }
    if rng.one_in(4) {
        let at = start + Duration::from_millis(rng.within(0..last.as_millis() as u64 + 1000));
        state.at(at, |state| {
            note("xl shutdown platter");
            // What is not taken any more waits for the next one who serves the disk.
            state.frontends.iter_mut().for_each(|frontend| frontend.set_patience(Duration::MAX));
            state.machine.tree.write("/local/domain/3/control/shutdown", "poweroff");
        });
    }
}

/// Both ends of every device agree on what it is: it serves, or it is closed, or it was refused.
fn everybody_is_settled(world: &World) {
    note_frontends(world);
    let state = world.state();
    for frontend in state.frontends.iter().filter(|frontend| frontend.is_alive()) {
        let backend = back_path(frontend.guest(), frontend.dev());
        let backend = state.machine.tree.text(&format!("{backend}/state"));
        let (guest, dev) = (frontend.guest(), frontend.dev());
        let reason =
            state.machine.tree.text(&format!("/local/domain/3/error/backend/vbd/{guest}/{dev}/error"));
        let settled = match (frontend.stage(), backend) {
            (Stage::Connected, backend) => backend == Some("4"),
            (Stage::Closed, backend) => backend.is_none_or(|state| state == "6"),
            // It opens a disk again that is not there any more.
            (Stage::Waiting, Some("6")) => reason.is_some_and(|reason| reason.contains("cannot be used")),
            (_, backend) => backend.is_none(),
        };
        assert!(settled, "{:?} is {:?}, its backend {backend:?}", frontend.disk(), frontend.stage());
        assert_eq!(frontend.answered().1, 0, "{:?}", frontend.disk());
    }
}

/// All guests go.
fn end_all(world: &World) {
    let mut state = world.state();
    let alive = state.frontends.iter().filter(|frontend| frontend.is_alive());
    let disks: Vec<Disk> = alive.map(Frontend::disk).cloned().collect();
    for disk in disks {
        if disk.guest == DOM0 {
            state.detach(DOM0, disk.dev, true);
        } else {
            state.destroy(disk.guest);
        }
    }
    state.destroy(NEIGHBOUR);
}

/// The domain has ended while guests had disks: theirs are as they were, with every byte safe.
fn ended_in_order(world: &World, breaks: bool) {
    let mut state = world.state();
    for controller in (0..NAMESPACES.len()).filter(|controller| *controller != FAULTY || !breaks) {
        assert!(state.lent.controller(controller).disks().iter().all(|disk| disk.is_safe()));
    }
    let victim = state.machine.tree.text(&format!("{}/state", back_path(VICTIM, DEV)));
    assert!(victim.is_none_or(|state| ["1", "2", "4"].contains(&state)), "{victim:?}");
    let victims = state.frontends.iter().filter(|frontend| frontend.guest() == VICTIM);
    let lasting = victims.map(Frontend::lasting_pages).sum();
    assert!(state.machine.grants.mapped_from(VICTIM) <= lasting, "what was taken is answered");
}

fn seeds(part: u64) {
    let count = std::env::var("SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    (0..count).map(|i| i * 4 + part).for_each(storm);
}

#[test]
fn part_1() {
    seeds(0);
}

#[test]
fn part_2() {
    seeds(1);
}

#[test]
fn part_3() {
    seeds(2);
}

#[test]
fn part_4() {
    seeds(3);
}

/// The seeds in `SEED`, named as they begin: `FIRST..END`, or one, whose journal is shown.
#[test]
fn some() {
    let Ok(text) = std::env::var("SEED") else { return };
    let number = |text: &str| text.parse().expect("SEED holds numbers");
    let Some((first, end)) = text.split_once("..") else {
        storm(number(&text));
        return journal::show();
    };
    for seed in number(first)..number(end) {
        println!("seed {seed}");
        storm(seed);
    }
}
