//! The image in a simulated world: builds the world, lets the core run in it, and says how it went.

use platter::domain::{Domain, End, Tables, Turn};
use platter::hal::Clock as _;
use platter::options::Options;
use platter::sim::frontend::Frontend;
use platter::sim::nvme::{Settings, Shape};
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::tables::Gpt;
use platter::sim::toolstack::{Disk, JobId, Outcome};
use platter::sim::world::{Pace, World};
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use crate::console;
use crate::journal::{self, note};

/// xvdb, the device that every guest gets.
pub(crate) const DEV: u32 = 51728;

/// Sectors of each namespace.
pub(crate) const SECTORS: u64 = 1 << 21;

/// A world with one NVMe controller of two namespaces of 512-byte blocks, and no guests.
pub(crate) fn world(seed: u64) -> World {
    let flavour = if seed.is_multiple_of(2) { Flavour::Oxenstored } else { Flavour::Cxenstored };
    let world = World::new(seed, flavour);
    add_nvme(&world, seed);
    world
}

/// One more such controller.
pub(crate) fn add_nvme(world: &World, seed: u64) {
    let shape = |id| Shape { id, blocks: SECTORS, block_shift: 9, metadata: 0 };
    let serial = format!("SEED{seed}");
    let settings = Settings { namespaces: [shape(1), shape(2)].into(), serial, ..Settings::new(seed) };
    let mut state = world.state();
    let state = &mut *state;
    state.lent.add_nvme(&mut state.machine, settings);
}

/// A world whose `nvme0n1` has so many partitions of equal size.
pub(crate) fn partitioned(seed: u64, count: u64) -> World {
    let world = world(seed);
    world.state().lent.partition(0, 0, &Gpt::equal(512, SECTORS, count));
    world
}

/// Attaches a disk to a new guest, which then makes its load's requests; returns the job and the
/// frontend's number.
pub(crate) fn attach(world: &World, guest: u16, target: &str, load: Load) -> (JobId, usize) {
    let disk = disk(guest, target);
    let mut state = world.state();
    state.create_guest(disk.guest);
    state.attach(&disk, load, Shadow::default())
}

/// xvdb of a guest.
pub(crate) fn disk(guest: u16, target: &str) -> Disk {
    Disk::new(DomId(guest), DEV, target)
}

/// Boots the image, with every disk opaque that has no partition table, and lets it run until nobody
/// has anything left to do; then `next` may change the world, again and again until it says false.
pub(crate) fn run(world: &mut World, next: impl FnMut(&World, usize) -> bool) -> Option<End> {
    let opaque = world.state().lent.blank_disks().join(",");
    run_with(world, &format!("opaque={opaque}"), next)
}

/// The same, with this command line.
pub(crate) fn run_with(
    world: &mut World,
    line: &str,
    mut next: impl FnMut(&World, usize) -> bool,
) -> Option<End> {
    let options = Options::parse(line.as_bytes());
    let mut tables = Box::new(Tables::new());
    let (page, port) = world.store();
    let started = world.now();
    let mut domain = Domain::new(&mut tables, options, page, port, started);
    let mut end = None;
    for act in 0.. {
        let result = world.run(|world| {
            journal::set_now(world.state().machine.now);
            let turn = domain.turn(world);
            console::drain();
            match turn {
                Turn::Again => Pace::Again,
                Turn::Sleep(deadline) => Pace::Sleep(deadline),
                Turn::End(how) => {
                    end = Some(how);
                    Pace::Stop
                }
            }
        });
        if let Err((at, violation)) = result {
            note_frontends(world);
            panic!("{violation}, at {at:?}");
        }
        if end.is_some() || !next(world, act) {
            break;
        }
    }
    let mut state = world.state();
    if end.is_some() {
        // Nobody learns what was done last.
        state.frontends.iter_mut().for_each(Frontend::vanish);
    }
    state.check_disks();
    assert_eq!(state.machine.violations().first(), None);
    end
}

/// Where the guests are with their disks.
pub(crate) fn note_frontends(world: &World) {
    for frontend in world.state().frontends.iter().filter(|frontend| frontend.is_alive()) {
        let (disk, (answered, waiting)) = (frontend.disk(), frontend.answered());
        note(format_args!(
            "{}/{} {} is {:?}: {answered} answers, {waiting} to come",
            disk.guest,
            disk.dev,
            disk.target,
            frontend.stage()
        ));
    }
}

/// Asserts what became of a job.
#[track_caller]
pub(crate) fn assert_outcome(world: &World, job: JobId, outcome: Outcome) {
    assert_eq!(world.state().toolstack.outcome(job), Some(outcome));
}
