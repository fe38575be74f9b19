//! The whole core with controllers that misbehave: who notices, and for how long.

use core::time::Duration;

use platter::sim::frontend::{Frontend, Stage};
use platter::sim::nvme::Controller;
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::toolstack::Outcome;
use platter::sim::world::{State, World};
use platter::units::DomId;
use platter::wire::nvme::CSTS;

use crate::host::{SECTORS, add_nvme, assert_outcome, attach, disk, partitioned, run, world};

const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn without_any_interrupt_a_lone_request_waits_twenty_milliseconds_at_most() {
    for seed in 0..10 {
        let mut world = world(seed);
        world.state().lent.controller(0).faults.lost_interrupt = 1;
        let patience = 21 * MILLISECOND;
        let load = Load { depth: 1, patience, plain: true, ..Load::new(0, SECTORS, 100) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        run(&mut world, |_, _| false);
        assert_eq!(world.state().frontends[frontend].answered(), (100, 0), "seed {seed}");
    }
}

#[test]
fn without_any_interrupt_a_slow_disk_is_looked_at_within_a_second() {
    for seed in 0..10 {
        let mut world = world(seed);
        let slow = 6000 * MILLISECOND;
        // Once libxl is served: it would not wait for a disk that starts so slowly.
        let started = world.state().machine.now + 200 * MILLISECOND;
        world.state().at(started, move |state| {
            let controller = state.lent.controller(0);
            controller.faults.lost_interrupt = 1;
            controller.slow_down(MILLISECOND..slow);
        });
        let patience = slow + 1001 * MILLISECOND;
        let load = Load { depth: 1, patience, plain: true, ..Load::new(0, SECTORS, 100) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        run(&mut world, |_, _| false);
        assert_eq!(world.state().frontends[frontend].answered(), (100, 0), "seed {seed}");
    }
}

#[test]
fn fatal_errors_under_load_fail_no_request() {
    for seed in 0..20 {
        let mut world = world(seed);
        let disks = [(5, "/dev/nvme0n1"), (6, "/dev/nvme0n2")].map(|(guest, target)| {
            let load = Load { patience: Duration::from_secs(15), ..Load::new(0, SECTORS, 200) };
            attach(&world, guest, target, load).1
        });
        for time in [252, 258 + seed] {
            let at = world.state().machine.now + Duration::from_millis(time);
            world.state().at(at, |state| state.lent.controller(0).faults.fatal = true);
        }
        run(&mut world, |_, _| false);
        for frontend in disks {
            assert_eq!(world.state().frontends[frontend].answered(), (200, 0), "seed {seed}");
        }
    }
}

#[test]
fn a_forgotten_command_fails_its_own_request_and_no_other() {
    for seed in 0..10 {
        let mut world = world(seed);
        let latency = MILLISECOND..600 * MILLISECOND;
        world.state().lent.controller(0).slow_down(latency);
        world.state().lent.controller(0).faults.forgets = 1;
        let patience = Duration::from_secs(60);
        let unlucky = Load { may_fail: true, depth: 1, patience, plain: true, ..Load::new(0, 8, 1) };
        attach(&world, 5, "/dev/nvme0n1", unlucky);
        let later = world.state().machine.now + Duration::from_secs(6);
        // It is busy when the controller is reset.
        world.state().at(later, move |state| {
            assert_eq!(state.lent.controller(0).faults.forgets, 0);
            let other = disk(6, "/dev/nvme0n2");
            state.create_guest(other.guest);
            state.attach(&other, Load { patience, ..Load::new(8, SECTORS - 8, 4000) }, Shadow::default());
        });
        run(&mut world, |_, _| false);
        let answered = world.state().frontends.iter().map(Frontend::answered).collect::<Vec<_>>();
        assert_eq!(answered, [(1, 0), (4000, 0)], "seed {seed}");
    }
}

/// Asserts that the doors are open after so long.
fn ready_within(world: &World, patience: Duration) {
    let at = world.state().machine.now + patience;
    world.state().at(at, |state| {
        assert_eq!(state.machine.tree.text("/local/domain/3/data/ready"), Some("1"));
    });
}

/// Makes a controller slow as soon as it is so.
fn slow_down_when(state: &mut State, is_so: fn(&mut Controller) -> bool, latency: Duration) {
    if is_so(state.lent.controller(0)) {
        state.lent.controller(0).slow_down(latency..latency + MILLISECOND);
    } else {
        let soon = state.machine.now + MILLISECOND / 20;
        state.at(soon, move |state| slow_down_when(state, is_so, latency));
    }
}

#[test]
fn a_controller_that_takes_its_time_to_start_does_not_take_everybody_elses() {
    let mut world = world(1);
    add_nvme(&world, 2);
    let slow = Duration::from_secs(10);
    slow_down_when(&mut world.state(), |controller| controller.read32(CSTS) & 1 != 0, slow);
    ready_within(&world, Duration::from_secs(40));
    run(&mut world, |_, _| false);
}

#[test]
fn a_disk_that_takes_its_time_over_its_table_does_not_take_everybody_elses() {
    let mut world = partitioned(1, 4);
    add_nvme(&world, 2);
    let slow = Duration::from_secs(28);
    slow_down_when(&mut world.state(), |controller| !controller.reads(0).is_empty(), slow);
    ready_within(&world, Duration::from_secs(100));
    run(&mut world, |world, act| {
        if act == 0 {
            for (guest, target) in [(5, "/dev/nvme0n1p1"), (6, "/dev/nvme1n1")] {
                let state = &mut *world.state();
                state.create_guest(DomId(guest));
                state.attach(&disk(guest, target), Load::new(0, 4000, 50), Shadow::default());
            }
        }
        act == 0
    });
    let stages = world.state().frontends.iter().map(Frontend::stage).collect::<Vec<_>>();
    assert_eq!(stages, [Stage::Waiting, Stage::Connected]);
}

#[test]
fn a_controller_that_never_starts_holds_others_up_for_a_few_seconds() {
    for seed in 0..5 {
        let mut world = world(seed);
        add_nvme(&world, seed);
        world.state().lent.controller(0).faults.never_ready = true;
        // libxl gives up after ten seconds.
        let (job, frontend) = attach(&world, 5, "/dev/nvme1n1", Load::new(0, SECTORS, 50));
        run(&mut world, |_, _| false);
        assert_outcome(&world, job, Outcome::Done);
        assert_eq!(world.state().frontends[frontend].answered(), (50, 0), "seed {seed}");
    }
}
