//! Many devices, up to the last that is served, and the budgets that refuse the next one when it is
//! attached: each says what is used up and which setting raises it, and leaves nothing behind.

use platter::limits;
use platter::sim::machine::DRIVER;
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::tables::Gpt;
use platter::sim::toolstack::{Disk, JobId, Outcome};
use platter::sim::world::{State, World};
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use crate::host::{DEV, SECTORS, add_nvme, assert_outcome, attach, run, world};

const GUESTS: u16 = 64;
const DISKS: u16 = limits::VBDS as u16 / GUESTS;
const FIRST_GUEST: u16 = 5;

/// Partitions of a namespace.
const PARTITIONS: u16 = 128;

/// Guests that get their disks at once.
const WAVE: u16 = 1;

/// Nodes of a device: 15 that the toolstack writes, and 12 of ours.
const NODES: usize = 27;

/// Pages that a device takes at most, rounded up.
const PAGES: usize = 40;

/// Attaches that are refused one after the other.
const REFUSALS: usize = 200;

/// `backend`, `vbd`, the guest, the device and `error`, below `error`.
const ERROR_NODES: usize = 5;

/// Disk `disk` of a guest: xvda, xvdb and so on, on a partition of its own.
fn disk(guest: u16, disk: u16) -> (Disk, Load) {
    let number = guest * DISKS + disk;
    let (place, partition) = (number / PARTITIONS, number % PARTITIONS + 1);
    let target = format!("/dev/nvme{}n{}p{partition}", place / 2, place % 2 + 1);
    let (guest, dev) = (DomId(FIRST_GUEST + guest), 51712 + 16 * u32::from(disk));
    (Disk::new(guest, dev, &target), Load::new(0, 2048, 4))
}

/// What a domain has that could be left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Possessions {
    ports: usize,
    pages: usize,
    watches: usize,
    nodes: usize,
}

fn possessions(world: &World) -> Possessions {
    let state = world.state();
    Possessions {
        ports: state.machine.ports.count(DRIVER),
        pages: state.free_pages,
        watches: state.xenstored.watched().count(),
        nodes: state.machine.tree.owned(DRIVER),
    }
}

/// Why a guest's xvdb was refused.
fn error(world: &World, guest: u16) -> String {
    let path = format!("/local/domain/{DRIVER}/error/backend/vbd/{guest}/{DEV}/error");
    world.state().machine.tree.text(&path).unwrap_or_default().to_string()
}

/// Leaves xenstore room for a part of what a device needs.
fn use_up_nodes(state: &mut State) {
    state.machine.tree.quota.0 = state.machine.tree.owned(DRIVER) + 16;
}

/// A world in which xenstore sets no limits, with two controllers and a partition for every device.
fn wide_world(seed: u64) -> World {
    let world = world(seed);
    add_nvme(&world, seed + 1);
    let mut state = world.state();
    for place in 0..limits::VBDS / usize::from(PARTITIONS) {
        let table = Gpt::equal(512, SECTORS, PARTITIONS.into());
        state.lent.partition(place / 2, place % 2, &table);
    }
    state.machine.tree.quota.0 = usize::MAX;
    state.xenstored.watch_quota = usize::MAX;
    // So much memory that each has everything.
    state.free_pages = limits::VBDS * PAGES;
    drop(state);
    world
}

fn attach_guest(world: &World, guest: u16) -> Vec<JobId> {
    let mut state = world.state();
    state.create_guest(DomId(FIRST_GUEST + guest));
    let disks = (0..DISKS).map(|number| disk(guest, number));
    disks.map(|(disk, load)| state.attach(&disk, load, Shadow::default()).0).collect()
}

fn detach_guest(world: &World, guest: u16) -> Vec<JobId> {
    let disks = (0..DISKS).map(|number| disk(guest, number).0);
    disks.map(|disk| world.state().detach(disk.guest, disk.dev, false)).collect()
}

#[test]
fn as_many_devices_as_there_can_be_come_work_and_go() {
    const WAVES: usize = GUESTS as usize / WAVE as usize;
    const WORKED: usize = WAVES + 1;
    const REFUSED: usize = WORKED + 1;
    let mut world = wide_world(1);
    let (mut jobs, mut before) = (Vec::new(), None);
    run(&mut world, |world, act| {
        let outcome = if act == REFUSED { Outcome::Gone } else { Outcome::Done };
        jobs.drain(..).for_each(|job| assert_outcome(world, job, outcome));
        match act {
            0..WAVES => {
                before.get_or_insert_with(|| possessions(world));
                let first = act as u16 * WAVE;
                jobs = (first..first + WAVE).flat_map(|guest| attach_guest(world, guest)).collect();
            }
            WAVES => world.state().frontends.iter_mut().for_each(|frontend| frontend.do_more(4)),
            WORKED => {
                let state = world.state();
                let worked = |(answered, waiting)| answered == 8 && waiting == 0;
                assert!(state.frontends.iter().all(|frontend| worked(frontend.answered())));
                assert_eq!(state.frontends.len(), limits::VBDS);
                drop(state);
                jobs = vec![attach(world, 1000, "/dev/nvme0n1", Load::new(0, 8, 1)).0];
            }
            REFUSED => {
                assert_eq!(error(world, 1000), "512 devices are attached, the most this build serves");
                jobs = (0..GUESTS).flat_map(|guest| detach_guest(world, guest)).collect();
            }
            _ => {
                let after = possessions(world);
                assert_eq!(Some(Possessions { nodes: after.nodes - ERROR_NODES, ..after }), before);
                return false;
            }
        }
        true
    });
}

/// Leaves a world too little of something.
type UseUp = fn(&mut State);

/// Each budget, used up for one more device, and what the refusal says of it.
#[test]
fn what_is_used_up_refuses_the_attach_and_leaves_nothing_behind() {
    let cases: [(Flavour, UseUp, &str); 6] = [
        (Flavour::Oxenstored, |state| state.free_pages = 3, "memory: 24 KiB are needed"),
        (Flavour::Oxenstored, |state| state.machine.ports.limit = 4, "event channels: none is left"),
        (Flavour::Oxenstored, |state| state.xenstored.watch_quota = 4, "raise quota-maxwatch in"),
        (Flavour::Cxenstored, |state| state.xenstored.watch_quota = 4, "quota set watches N"),
        (Flavour::Oxenstored, use_up_nodes, "raise quota-maxentity in"),
        (Flavour::Cxenstored, use_up_nodes, "quota set nodes N"),
    ];
    for (flavour, use_up, reason) in cases {
        let mut world = World::new(1, flavour);
        add_nvme(&world, 1);
        let (mut job, mut first) = (None, None);
        run(&mut world, |world, act| {
            if act == 0 {
                use_up(&mut world.state());
            } else {
                assert_outcome(world, job.expect("attached before"), Outcome::Gone);
                assert!(error(world, FIRST_GUEST).contains(reason), "{}", error(world, FIRST_GUEST));
                world.state().detach(DomId(FIRST_GUEST), DEV, false);
                // The reason itself stays, and is the same each time.
                assert_eq!(possessions(world), *first.get_or_insert_with(|| possessions(world)));
            }
            job = Some(attach(world, FIRST_GUEST, "/dev/nvme0n1", Load::new(0, 8, 1)).0);
            act < REFUSALS
        });
    }
}

/// At stock quotas it is the nodes that end first, with either daemon.
#[test]
fn stock_quotas_refuse_the_first_device_too_many_and_serve_the_others() {
    for flavour in [Flavour::Oxenstored, Flavour::Cxenstored] {
        let mut world = World::new(1, flavour);
        add_nvme(&world, 1);
        world.state().lent.partition(0, 0, &Gpt::equal(512, SECTORS, 64));
        let (mut jobs, mut served) = (Vec::new(), 0);
        run(&mut world, |world, _| {
            let done = |job: &JobId| world.state().toolstack.outcome(*job) == Some(Outcome::Done);
            served = jobs.iter().filter(|job| done(job)).count();
            if served < jobs.len() {
                return false;
            }
            let guest = FIRST_GUEST + jobs.len() as u16;
            let target = format!("/dev/nvme0n1p{}", jobs.len() + 1);
            jobs.push(attach(world, guest, &target, Load::new(0, 64, 4)).0);
            true
        });
        assert_eq!(served, 36, "{flavour:?}");
        let job = *jobs.last().expect("one was refused");
        assert_outcome(&world, job, Outcome::Gone);
        // What is left is less than a device's nodes; it may be too little for the reason, too, which then is in the log
        // alone.
        assert!(possessions(&world).nodes + NODES > 1000, "{flavour:?}");
    }
}
