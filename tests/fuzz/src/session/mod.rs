//! The whole image in a simulated world, where a guest does what the input says with its ring, its
//! grants, its events and its nodes, and the controller, Xen and xenstore fail as it says. Beside it an
//! honest guest reads and writes: all of its requests are answered, with the right bytes. The other
//! guest's writes stay in its partition. When both are gone, the image holds what it held before.

mod rogue;
mod script;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use platter::domain::{Domain, Tables, Turn};
use platter::hal::Clock;
use platter::options::Options;
use platter::sim::machine::{DRIVER, Violation};
use platter::sim::nvme::{Settings, Shape};
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::tables::Gpt;
use platter::sim::toolstack::Disk;
use platter::sim::world::{Pace, World};
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use self::rogue::Rogue;
use self::script::{Act, Budget};
use crate::input::Input;
use crate::output;

const DEV: u32 = 51728;
const ROGUE: DomId = DomId(5);
const HONEST: DomId = DomId(6);

/// Blocks of both disks. The first has two partitions, of which nobody has the second.
const BLOCKS: u64 = 1 << 16;

/// What the image says of itself, if xenstore lets it when it starts.
const DATA: &str = "/local/domain/3/data";

/// What the honest guest asks for.
const REQUESTS: u32 = 20;

/// How long it waits: a controller that loses commands takes its time.
const PATIENCE: Duration = Duration::from_secs(600);

/// When the backend is ready for a frontend, and when they are connected for sure.
const OFFERED: Duration = Duration::from_millis(500);
const CONNECTED: Duration = Duration::from_millis(600);

/// Acts of one run.
const ACTS: usize = 64;

/// A seed for everybody's chance, then what happens and when.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    output::log(true);
    let fresh = fresh();
    let mut input = Input::new(data);
    let seed = u64::from(input.half());
    let mut world = world(seed);
    begin(&world, &mut input);
    live(&mut world, |world, act| {
        match act {
            0 => everybody_is_answered(world),
            _ => assert_eq!(&Footprint::of(world), fresh, "something is left"),
        }
        act == 0
    });
    check_disks(&world);
    output::take_log();
}

/// A world with one controller and no guest.
fn world(seed: u64) -> World {
    let flavour = if seed.is_multiple_of(2) { Flavour::Oxenstored } else { Flavour::Cxenstored };
    let world = World::new(seed, flavour);
    let shape = |id| Shape { id, blocks: BLOCKS, block_shift: 9, metadata: 0 };
    let settings = Settings { namespaces: [shape(1), shape(2)].into(), ..Settings::new(seed) };
    let mut state = world.state();
    let all = &mut *state;
    all.lent.add_nvme(&mut all.machine, settings);
    all.lent.partition(0, 0, &table());
    drop(state);
    world
}

fn table() -> Gpt {
    Gpt::equal(512, BLOCKS, 2)
}

/// Attaches both guests' disks, and lays out all that happens.
fn begin(world: &World, input: &mut Input<'_>) {
    let mut guard = world.state();
    let state = &mut *guard;
    state.create_guest(HONEST);
    let load = Load { patience: PATIENCE, may_fail: true, ..Load::new(0, BLOCKS, REQUESTS) };
    state.attach(&Disk::new(HONEST, DEV, "/dev/nvme0n2"), load, Shadow::default());
    let shape = input.byte();
    let rogue = Rc::new(RefCell::new(Rogue::new(state, ROGUE, shape)));
    let budget = Rc::new(RefCell::new(Budget::default()));
    let mut at = state.machine.now;
    if shape & 8 == 0 {
        // It connects as others do, before it does anything else.
        let rogue = Rc::clone(&rogue);
        state.at(at + OFFERED, move |state| rogue.borrow().offer(&mut state.machine));
        at = at + CONNECTED;
    }
    for _ in 0..ACTS {
        if input.is_empty() {
            break;
        }
        at = at + script::pause(input);
        let (act, rogue, budget) = (Act::draw(input), Rc::clone(&rogue), Rc::clone(&budget));
        state.at(at, move |state| {
            script::happen(act, &mut rogue.borrow_mut(), &mut budget.borrow_mut(), state)
        });
    }
    state.at(at, script::heal);
}

/// Boots the image and lets it run until nobody has anything left to do, then asks whether to end all
/// guests and go on.
fn live(world: &mut World, next: impl Fn(&World, usize) -> bool) {
    let opaque = format!("opaque={}", world.state().lent.blank_disks().join(","));
    let (page, port) = world.store();
    let started = world.now();
    let mut tables = Box::new(Tables::new());
    let mut domain = Domain::new(&mut tables, Options::parse(opaque.as_bytes()), page, port, started);
    for act in 0.. {
        let result = world.run(|world| match domain.turn(world) {
            Turn::Again => Pace::Again,
            Turn::Sleep(deadline) => Pace::Sleep(deadline),
            Turn::End(_) => panic!("nobody has shut it down"),
        });
        assert_eq!(result, Ok(()));
        if !next(world, act) {
            return;
        }
        let mut state = world.state();
        for guest in [ROGUE, HONEST] {
            state.destroy(guest);
        }
    }
}

/// Everything that the honest guest asked for was done or refused.
fn everybody_is_answered(world: &World) {
    let state = world.state();
    let honest = &state.frontends[0];
    assert_eq!(honest.answered().1, 0, "{honest:?}");
}

/// The disks hold what the honest guest wrote, and else nothing but what the other wrote to its
/// partition.
fn check_disks(world: &World) {
    let mut state = world.state();
    state.check_disks();
    let is_rogues =
        |violation: &Violation| matches!(violation, Violation::Stray { target, .. } if target == "nvme0n1");
    let found = state.machine.violations().iter().find(|(_, violation)| !is_rogues(violation));
    assert_eq!(found, None);
    let part = &table().parts[0];
    let range = part.first..part.first + part.blocks;
    let disks = state.lent.controller(0);
    let mut written = disks.disk(0).written();
    assert!(written.all(|block| range.contains(&block)), "a write outside of the partition");
}

/// All that the image holds of others' or could run out of.
#[derive(PartialEq, Eq, Debug)]
struct Footprint {
    mapped: usize,
    ports: usize,
    transactions: usize,
    free_pages: usize,
    watches: Vec<String>,
    nodes: Vec<String>,
}

impl Footprint {
    fn of(world: &World) -> Self {
        let state = world.state();
        let mut watches: Vec<String> = state.xenstored.watched().map(str::to_owned).collect();
        watches.sort();
        // Reasons stay for the administrator, and what it says of itself has nothing to do with guests.
        let is_lasting = |path: &&str| path.contains("/error/backend") || path.starts_with(DATA);
        let nodes = state.machine.tree.paths_owned(DRIVER).filter(|path| !is_lasting(path));
        Self {
            mapped: state.machine.grants.mapped(),
            ports: state.machine.ports.count(DRIVER),
            transactions: state.xenstored.open_transactions(),
            free_pages: state.free_pages,
            watches,
            nodes: nodes.map(str::to_owned).collect(),
        }
    }
}

/// What the image holds where no guest ever came.
fn fresh() -> &'static Footprint {
    static FRESH: OnceLock<Footprint> = OnceLock::new();
    FRESH.get_or_init(|| {
        let mut world = world(0);
        live(&mut world, |_, _| false);
        Footprint::of(&world)
    })
}
