//! The whole core in simulated worlds under many seeds: guests that act inside its every access to
//! memory, controllers that complete in any order, a store that splits messages at any byte.

use core::cell::RefCell;
use core::time::Duration;
use std::rc::Rc;

use platter::domain::End;
use platter::limits;
use platter::sim::deal::Wish;
use platter::sim::frontend::{Stage, back_path, front_path};
use platter::sim::machine::DRIVER;
use platter::sim::requests::Load;
use platter::sim::tables::Gpt;
use platter::sim::toolstack::Outcome;
use platter::sim::tree::Perms;
use platter::sim::world::World;
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use crate::host::{DEV, SECTORS, add_nvme, assert_outcome, attach, disk, run, world};

const DONE: bool = false;

fn answered(world: &World, frontend: usize) -> (u64, usize) {
    world.state().frontends[frontend].answered()
}

/// Nothing of a guest's is left in our hands.
#[track_caller]
fn assert_let_go(world: &World, guest: u16) {
    let state = world.state();
    assert_eq!(state.machine.grants.mapped_from(DomId(guest)), 0);
    assert!(!state.machine.tree.exists(&back_path(DomId(guest), DEV)));
    let front = front_path(DomId(guest), DEV);
    assert_eq!(state.xenstored.watched().find(|path| path.starts_with(&front)), None);
    assert_eq!(state.xenstored.open_transactions(), 0);
}

#[test]
fn two_guests_read_and_write_at_once_and_detach() {
    for seed in 0..16 {
        let mut world = world(seed);
        let guests = [(5, "/dev/nvme0n1"), (6, "nvme0n2")];
        let disks = guests.map(|(guest, target)| attach(&world, guest, target, Load::new(0, SECTORS, 300)));
        let mut detached = Vec::new();
        run(&mut world, |world, act| {
            if act > 0 {
                return DONE;
            }
            for (job, frontend) in disks {
                assert_outcome(world, job, Outcome::Done);
                assert_eq!(answered(world, frontend), (300, 0), "seed {seed}");
            }
            detached = guests.map(|(guest, _)| world.state().detach(DomId(guest), DEV, false)).to_vec();
            true
        });
        for (job, (guest, _)) in detached.into_iter().zip(guests) {
            assert_outcome(&world, job, Outcome::Done);
            assert_let_go(&world, guest);
        }
        assert_eq!(world.state().machine.ports.count(DRIVER), 3, "store, PCI, NVMe");
    }
}

#[test]
fn a_disk_is_detached_under_load() {
    for seed in 0..16 {
        let mut world = world(seed);
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 20_000, u32::MAX));
        let middle = world.state().machine.now + Duration::from_millis(320 + 3 * (seed % 16));
        world.state().at(middle, |state| _ = state.detach(DomId(5), DEV, false));
        run(&mut world, |_, _| DONE);
        assert!(answered(&world, frontend).0 > 0, "seed {seed}");
        assert_eq!(world.state().frontends[frontend].stage(), Stage::Removed);
        assert_let_go(&world, 5);
    }
}

#[test]
fn an_image_with_nothing_to_do_does_not_wake_up() {
    let mut world = world(1);
    let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, SECTORS, 50));
    // Pages that are kept are given back one day.
    world.state().frontends[frontend].insist(Wish { persistent: Some(false), ..Wish::default() });
    run(&mut world, |world, _| {
        assert_eq!(world.state().slept_until, None);
        DONE
    });
}

#[test]
fn a_refused_attach_fails_at_once_and_says_why() {
    for seed in 0..10 {
        let mut world = world(seed);
        let (job, frontend) = attach(&world, 5, "/dev/nvme7n1", Load::new(0, 8, 1));
        run(&mut world, |_, _| DONE);
        assert_outcome(&world, job, Outcome::Gone);
        assert_eq!(world.state().frontends[frontend].stage(), Stage::Waiting);
        let state = world.state();
        let reason = state.machine.tree.text(&format!("/local/domain/3/error/backend/vbd/5/{DEV}/error"));
        assert!(reason.is_some_and(|reason| reason.contains("nvme7n1")), "{reason:?}");
    }
}

/// `format=qcow2` makes libxl write the device to `backend/qdisk`, and not even wait for anybody.
#[test]
fn devices_for_other_backends_are_refused_at_once() {
    for seed in 0..10 {
        let mut world = world(seed);
        let home = |node: &str| format!("/local/domain/3/{node}");
        let devices = ["qdisk/5/51728", "qdisk/5/51744", "vif/6/0"];
        for device in devices {
            let mut state = world.state();
            let directory = home(&format!("backend/{device}"));
            let guest = if device.starts_with('q') { DomId(5) } else { DomId(6) };
            state.machine.tree.write_for(&directory, "", Perms { owner: DRIVER, reader: guest });
            state.machine.tree.write(&format!("{directory}/state"), 1);
        }
        let (job, frontend) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 50));
        run(&mut world, |_, _| DONE);
        let state = world.state();
        for device in devices {
            assert!(!state.machine.tree.exists(&home(&format!("backend/{device}"))), "seed {seed}: {device}");
            let reason = state.machine.tree.text(&home(&format!("error/backend/{device}/error")));
            assert!(reason.is_some_and(|reason| reason.starts_with("only disks")), "{device}: {reason:?}");
        }
        drop(state);
        assert_outcome(&world, job, Outcome::Done);
        assert_eq!(answered(&world, frontend), (50, 0), "seed {seed}");
    }
}

#[test]
fn a_device_that_another_backend_serves_is_left_alone() {
    for state in [2, 4, 6] {
        let mut world = world(1);
        let directory = "/local/domain/3/backend/vif/6/0";
        let perms = Perms { owner: DRIVER, reader: DomId(6) };
        world.state().machine.tree.write_for(directory, "", perms);
        world.state().machine.tree.write(&format!("{directory}/state"), state);
        run(&mut world, |_, _| DONE);
        let tree = &world.state().machine.tree;
        assert!(tree.exists(directory) && !tree.exists("/local/domain/3/error/backend/vif"), "{state}");
    }
}

#[test]
fn reasons_for_a_crowd_do_not_use_the_quota_up() {
    let mut world = world(1);
    for guest in 5..45 {
        let directory = format!("/local/domain/3/backend/qdisk/{guest}/51728");
        let mut state = world.state();
        let perms = Perms { owner: DRIVER, reader: DomId(guest) };
        state.machine.tree.write_for(&directory, "", perms);
        state.machine.tree.write(&format!("{directory}/state"), 1);
    }
    run(&mut world, |_, _| DONE);
    let tree = &world.state().machine.tree;
    assert!(!tree.exists("/local/domain/3/backend/qdisk/44/51728"), "refused");
    assert_eq!(tree.children("/local/domain/3/error/backend/qdisk").len(), limits::ERRORS);
}

#[test]
fn a_disk_is_attached_again_and_holds_what_was_written() {
    for seed in 0..10 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(100, 2000, 150));
        run(&mut world, |world, act| {
            let mut state = world.state();
            match act {
                0 => drop(state.detach(DomId(5), DEV, false)),
                1 => {
                    let shadow = state.frontends[0].take_shadow();
                    state.attach(&disk(5, "/dev/nvme0n1"), Load::new(100, 2000, 150), shadow);
                }
                _ => return DONE,
            }
            true
        });
        assert_eq!(answered(&world, 1), (150, 0), "seed {seed}");
    }
}

#[test]
fn a_driver_that_is_reloaded_connects_again() {
    for seed in 0..10 {
        let mut world = world(seed);
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 100));
        run(&mut world, |world, act| {
            let mut state = world.state();
            if act == 0 {
                state.frontends[frontend].do_more(100);
                let now = state.machine.now;
                state.frontends[frontend].close(now, true);
            }
            act == 0
        });
        assert_eq!(answered(&world, frontend), (200, 0), "seed {seed}");
    }
}

#[test]
fn guests_that_are_destroyed_or_forced_off_in_the_middle_leave_nothing_behind() {
    for seed in 0..16 {
        let mut world = world(seed);
        let (_, victim) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 20_000, u32::MAX));
        let (_, calm) = attach(&world, 6, "/dev/nvme0n2", Load::new(0, SECTORS, 400));
        let middle = world.state().machine.now + Duration::from_millis(320 + 3 * (seed % 16));
        let jobs = Rc::new(RefCell::new(Vec::new()));
        let asked = Rc::clone(&jobs);
        world.state().at(middle, move |state| {
            // With either xenstored, as that is of the same parity.
            *asked.borrow_mut() = if seed / 2 % 2 == 0 {
                state.destroy(DomId(5))
            } else {
                vec![state.detach(DomId(5), DEV, true)]
            };
        });
        run(&mut world, |_, _| DONE);
        jobs.borrow().iter().for_each(|job| assert_outcome(&world, *job, Outcome::Done));
        assert_let_go(&world, 5);
        assert!(answered(&world, victim).0 > 0, "seed {seed}");
        assert_eq!(answered(&world, calm), (400, 0), "seed {seed}");
    }
}

#[test]
fn a_disk_that_fails_and_a_hypervisor_out_of_room_are_errors_and_no_more() {
    for seed in 0..20 {
        let mut world = world(seed);
        let load = Load { may_fail: true, patience: Duration::from_secs(120), ..Load::new(0, 4000, 400) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        let soon = world.state().machine.now + Duration::from_millis(200);
        world.state().at(soon, |state| {
            let faults = &mut state.lent.controller(0).faults;
            (faults.error, faults.lost_interrupt, faults.doubled, faults.invented) = (20, 5, 20, 10);
            state.failing_maps = 50;
        });
        run(&mut world, |_, _| DONE);
        assert_eq!(answered(&world, frontend), (400, 0), "seed {seed}");
    }
}

#[test]
fn a_controller_that_forgets_commands_is_reset_and_serves_again() {
    for seed in 0..5 {
        let mut world = world(seed);
        let load = Load { may_fail: true, patience: Duration::from_secs(120), ..Load::new(0, 4000, 200) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        world.state().lent.controller(0).faults.unanswered = 20;
        let later = world.state().machine.now + Duration::from_secs(1);
        world.state().at(later, |state| state.lent.controller(0).faults.unanswered = 0);
        run(&mut world, |_, _| DONE);
        assert_eq!(answered(&world, frontend), (200, 0), "seed {seed}");
        assert!(world.state().machine.now.since(later) > Duration::from_secs(20), "a command was lost");
    }
}

#[test]
fn many_guests_share_two_controllers() {
    let mut world = world(1);
    add_nvme(&world, 2);
    for (controller, namespace) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        world.state().lent.partition(controller, namespace, &Gpt::equal(512, SECTORS, 4));
    }
    let disks: Vec<_> = (0..16)
        .map(|i| {
            let target = format!("/dev/nvme{}n{}p{}", i % 2, i / 2 % 2 + 1, i / 4 + 1);
            attach(&world, 5 + i, &target, Load::new(0, 10_000, 100))
        })
        .collect();
    run(&mut world, |_, _| DONE);
    for (job, frontend) in disks {
        assert_outcome(&world, job, Outcome::Done);
        assert_eq!(answered(&world, frontend), (100, 0));
    }
}

#[test]
fn a_store_in_uproar_is_survived() {
    for seed in 0..10 {
        let mut world = world(seed);
        world.state().xenstored.conflicts = 3;
        let (job, frontend) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 50));
        for i in 1..200 {
            let at = world.state().machine.now + Duration::from_millis(i * 5);
            world.state().at(at, move |state| {
                state.machine.tree.write("/local/domain/3/backend/vbd/storm", i);
            });
        }
        run(&mut world, |_, _| DONE);
        assert_outcome(&world, job, Outcome::Done);
        assert_eq!(answered(&world, frontend), (50, 0), "seed {seed}");
    }
}

#[test]
fn ready_is_said_as_soon_as_xenstore_has_room_for_it() {
    for flavour in [Flavour::Oxenstored, Flavour::Cxenstored] {
        let mut world = World::new(1, flavour);
        let owned = world.state().machine.tree.owned(DRIVER);
        world.state().machine.tree.quota.0 = owned;
        let later = world.state().machine.now + Duration::from_secs(20);
        world.state().at(later, |state| state.machine.tree.quota.0 = 1000);
        run(&mut world, |_, _| DONE);
        let state = world.state();
        assert_eq!(state.machine.tree.text("/local/domain/3/data/ready"), Some("1"));
        assert!(state.machine.now.since(later) < Duration::from_secs(7));
    }
}

#[test]
fn a_shutdown_is_acknowledged_and_done() {
    let mut world = world(3);
    attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 100));
    let mut flushes = 0;
    let end = run(&mut world, |world, _| {
        flushes = world.state().lent.controller(0).flushes();
        world.state().machine.tree.write("/local/domain/3/control/shutdown", "poweroff");
        true
    });
    assert_eq!(end, Some(End::Poweroff));
    assert_eq!(world.state().machine.tree.text("/local/domain/3/control/shutdown"), Some(""));
    assert_eq!(world.state().lent.controller(0).flushes() - flushes, 2, "one of each namespace");
}
