//! `xl pci-detach` and `pci-attach` of controllers while guests use them, and controllers that have
//! to be kept from memory, in simulated worlds under many seeds.

use core::time::Duration;

use platter::domain::End;
use platter::limits;
use platter::sim::frontend::Stage;
use platter::sim::lending::Manner;
use platter::sim::machine::DRIVER;
use platter::sim::nvme::{Faults, Settings, Shape};
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::tables::Gpt;
use platter::sim::toolstack::Outcome;
use platter::sim::world::{State, World};
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use crate::host::{DEV, SECTORS, add_nvme, assert_outcome, attach, disk, partitioned, run, run_with, world};
use crate::journal::Journal;

const DONE: bool = false;
const MANNERS: [Manner; 3] = [Manner::Reset, Manner::CutOff, Manner::Announced];

/// `xl pci-detach`.
fn pci_detach(state: &mut State, number: usize, manner: Manner) {
    state.lent.detach(&mut state.machine, number, manner);
}

/// `xl pci-attach`.
fn pci_attach(state: &mut State, number: usize) {
    state.lent.attach(&mut state.machine, number);
}

/// `xl block-attach` to a new guest.
fn block_attach(state: &mut State, guest: u16, target: &str, load: Load) {
    let disk = disk(guest, target);
    state.create_guest(disk.guest);
    state.attach(&disk, load, Shadow::default());
}

fn answered(world: &World, frontend: usize) -> (u64, usize) {
    world.state().frontends[frontend].answered()
}

/// What became of all `xl pci-detach` and `pci-attach` so far.
#[track_caller]
fn assert_pci(world: &World, outcomes: &[Outcome]) {
    let state = world.state();
    let found: Vec<_> = state.lent.lending.outcomes().collect();
    let expected: Vec<_> = outcomes.iter().copied().map(Some).collect();
    assert_eq!(found, expected);
}

/// The reason that was left for the administrator.
fn reason(world: &World, guest: u16) -> String {
    let path = format!("/local/domain/3/error/backend/vbd/{guest}/{DEV}/error");
    world.state().machine.tree.text(&path).unwrap_or_default().to_string()
}

/// A moment in the middle of what guests do.
fn middle(seed: u64) -> Duration {
    Duration::from_millis(320 + 3 * (seed % 16))
}

fn at(world: &World, after: Duration, act: impl FnOnce(&mut State) + 'static) {
    let when = world.state().machine.now + after;
    world.state().at(when, act);
}

#[test]
fn a_controller_is_detached_under_load_and_the_other_serves_on() {
    for seed in 0..9 {
        let mut world = world(seed);
        add_nvme(&world, seed + 1000);
        let manner = MANNERS[seed as usize % 3];
        // Only a controller that still works can answer what it had taken.
        let may_fail = manner != Manner::Announced;
        let load = Load { may_fail, ..Load::new(0, 20_000, u32::MAX) };
        let (_, victim) = attach(&world, 5, "/dev/nvme0n1", load);
        let (_, calm) = attach(&world, 6, "/dev/nvme1n1", Load::new(0, SECTORS, 300));
        at(&world, middle(seed), move |state| pci_detach(state, 0, manner));
        run(&mut world, |_, _| DONE);
        assert_pci(&world, &[Outcome::Done]);
        assert!(answered(&world, victim).0 > 0, "seed {seed}");
        assert_eq!(world.state().frontends[victim].stage(), Stage::Closed);
        assert_eq!(answered(&world, calm), (300, 0), "seed {seed}");
        assert!(reason(&world, 5).contains("its controller nvme0, pci 0000:00:00.0, was detached"));
        let state = world.state();
        assert_eq!(state.machine.grants.mapped_from(DomId(5)), 0, "seed {seed}");
        let ports = state.machine.ports.count(DRIVER);
        let kept = 2 * limits::QUEUES;
        assert_eq!(
            ports,
            3 + kept,
            "store, PCI, one NVMe; those of the guest and of the device that is closed"
        );
        assert_eq!(state.lent.mapped(), 1);
    }
}

#[test]
fn an_orderly_detach_flushes_and_shuts_down() {
    for seed in 0..6 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 50));
        let mut before = 0;
        run(&mut world, |world, act| {
            if act == 0 {
                let state = &mut *world.state();
                before = state.lent.controller(0).flushes();
                pci_detach(state, 0, Manner::Announced);
            }
            act == 0
        });
        let mut state = world.state();
        assert_eq!(state.lent.controller(0).flushes(), before + 2, "seed {seed}: one a namespace");
        assert!(!state.lent.is_mapped(0), "seed {seed}");
    }
}

#[test]
fn attaches_are_refused_meanwhile_and_served_again_after() {
    for seed in 0..9 {
        let mut world = world(seed);
        let manner = MANNERS[seed as usize % 3];
        run(&mut world, |world, act| {
            let state = &mut *world.state();
            match act {
                0 => pci_detach(state, 0, manner),
                1 => block_attach(state, 5, "/dev/nvme0n1", Load::new(0, 8, 1)),
                2 => pci_attach(state, 0),
                3 => block_attach(state, 6, "nvme0n2", Load::new(0, 4000, 100)),
                _ => return DONE,
            }
            true
        });
        assert_pci(&world, &[Outcome::Done; 2]);
        assert_eq!(world.state().frontends[0].stage(), Stage::Waiting);
        assert_eq!(reason(&world, 5), "\"/dev/nvme0n1\" cannot be used: its controller was detached");
        assert_eq!(answered(&world, 1), (100, 0), "seed {seed}");
    }
}

#[test]
fn devices_on_their_way_up_are_caught() {
    for seed in 0..40 {
        // A table is read on the way, or none.
        let (mut world, target) = match seed % 2 {
            0 => (world(seed), "/dev/nvme0n1"),
            _ => (partitioned(seed, 4), "/dev/nvme0n1p2"),
        };
        let load = Load { may_fail: true, ..Load::new(0, 4000, 10_000) };
        let (_, frontend) = attach(&world, 5, target, load);
        // From before platter is ready to after the frontend is connected.
        let after = Duration::from_millis(if seed < 20 { seed } else { 12 * (seed - 20) });
        at(&world, after, move |state| pci_detach(state, 0, MANNERS[seed as usize % 3]));
        run(&mut world, |_, _| DONE);
        assert_pci(&world, &[Outcome::Done]);
        let stage = world.state().frontends[frontend].stage();
        assert!(matches!(stage, Stage::Waiting | Stage::Closed), "seed {seed}: {stage:?}");
        assert_eq!(world.state().machine.grants.mapped_from(DomId(5)), 0, "seed {seed}");
        assert_ne!(reason(&world, 5), "", "seed {seed}");
    }
}

#[test]
fn a_controller_that_leaves_before_its_disks_were_looked_at_has_none() {
    // With this seed the first controller is ready first, and the second is when it is taken away.
    let mut world = partitioned(4, 4);
    add_nvme(&world, 2);
    at(&world, Duration::from_micros(1), wait_for_the_first_table);
    run(&mut world, |world, act| {
        if act == 0 {
            block_attach(&mut world.state(), 5, "/dev/nvme1n1", Load::new(0, 8, 1));
        }
        act == 0
    });
    assert_pci(&world, &[Outcome::Done]);
    assert_eq!(world.state().frontends[0].stage(), Stage::Waiting);
    assert_eq!(reason(&world, 5), "no volume named \"/dev/nvme1n1\"");
}

#[test]
fn a_controller_without_disks_in_the_place_of_one_with_a_table_delays_nobody() {
    let mut world = partitioned(1, 4);
    let journal = Journal::new("cargo test --features sim --test it hotplug".into());
    let shape = Shape { id: 1, blocks: SECTORS, block_shift: 9, metadata: 0 };
    for namespaces in [vec![shape], vec![]] {
        world.state().lent.plug_nvme(Settings { namespaces, ..Settings::new(2) });
    }
    world.state().lent.partition(1, 0, &Gpt::equal(512, SECTORS, 4));
    run(&mut world, |world, act| {
        let state = &mut *world.state();
        match act {
            0 => pci_detach(state, 0, Manner::Announced),
            1 => pci_attach(state, 2),
            2 => pci_attach(state, 1),
            3 => block_attach(state, 5, "/dev/nvme1n1p2", Load::new(0, 4000, 50)),
            _ => return DONE,
        }
        true
    });
    assert_eq!(answered(&world, 0), (50, 0));
    assert_eq!(journal.count("nvme0n1: its first block cannot be read"), 0, "it is gone");
}

/// While the table of the first controller is read, takes the second one away. The reading ends
/// while that one still writes its cache out.
fn wait_for_the_first_table(state: &mut State) {
    if state.lent.controller(0).reads(0).is_empty() {
        let soon = state.machine.now + Duration::from_micros(50);
        return state.at(soon, wait_for_the_first_table);
    }
    let latency = |millis| Duration::from_millis(millis)..Duration::from_millis(millis + 1);
    state.lent.controller(0).slow_down(latency(60));
    state.lent.controller(1).slow_down(latency(1000));
    pci_detach(state, 1, Manner::Announced);
}

#[test]
fn a_guest_reattaches_and_finds_what_it_wrote() {
    for seed in 0..6 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(100, 2000, 100));
        run(&mut world, |world, act| {
            let state = &mut *world.state();
            match act {
                0 => pci_detach(state, 0, Manner::Announced),
                1 => _ = state.detach(DomId(5), DEV, false),
                2 => pci_attach(state, 0),
                3 => {
                    let shadow = state.frontends[0].take_shadow();
                    state.attach(&disk(5, "/dev/nvme0n1"), Load::new(100, 2000, 100), shadow);
                }
                _ => return DONE,
            }
            true
        });
        assert_pci(&world, &[Outcome::Done; 2]);
        assert_eq!(answered(&world, 1), (100, 0), "seed {seed}");
    }
}

/// A guest opens its disk again just when the first controller is detached.
fn reopen_without_disk(state: &mut State, frontend: usize) {
    state.frontends[frontend].close(state.machine.now, true);
    pci_detach(state, 0, Manner::Announced);
}

#[test]
fn a_guest_that_opens_its_disk_again_has_it_when_the_controller_is_back() {
    for seed in 0..6 {
        let mut world = world(seed);
        let (_, guest) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 2000, 50));
        run(&mut world, |world, act| {
            let state = &mut *world.state();
            match act {
                0 => reopen_without_disk(state, guest),
                1 => {
                    assert_eq!(state.frontends[guest].stage(), Stage::Waiting, "seed {seed}");
                    pci_attach(state, 0);
                }
                2 => state.frontends[guest].do_more(50),
                _ => assert_eq!(state.frontends[guest].answered(), (100, 0), "seed {seed}"),
            }
            act < 3
        });
    }
}

#[test]
fn a_closed_device_is_not_given_another_disk_of_the_same_name() {
    for seed in 0..4 {
        let mut world = world(seed);
        let namespaces = [Shape { id: 1, blocks: SECTORS, block_shift: 9, metadata: 0 }].into();
        let another = Settings { namespaces, serial: "OTHER".into(), ..Settings::new(7) };
        world.state().lent.plug_nvme(another);
        let (_, guest) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 2000, 50));
        let mut whose_it_is = None;
        run(&mut world, |world, act| {
            let state = &mut *world.state();
            match act {
                0 => reopen_without_disk(state, guest),
                1 => pci_attach(state, 1),
                2 => {
                    state.create_guest(DomId(6));
                    let job = state.toolstack.attach(&mut state.machine, &disk(6, "/dev/nvme0n1"));
                    whose_it_is = Some(job);
                }
                _ => return DONE,
            }
            true
        });
        assert_eq!(world.state().frontends[guest].stage(), Stage::Waiting, "seed {seed}");
        assert_outcome(&world, whose_it_is.expect("it was attached"), Outcome::Done);
        assert_eq!(reason(&world, 5), "nvme0n1 is another disk than before; detach this device");
    }
}

#[test]
fn a_closed_device_is_offered_again_though_a_table_beside_its_disk_takes_too_long() {
    let mut world = world(0);
    world.state().lent.partition(0, 1, &Gpt::equal(512, SECTORS, 4));
    let (_, guest) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 2000, 50));
    run_with(&mut world, "opaque=nvme0n1", |world, act| {
        let state = &mut *world.state();
        match act {
            0 => reopen_without_disk(state, guest),
            1 => {
                pci_attach(state, 0);
                let before = state.lent.controller(0).reads(1).len();
                wait_for_a_read(state, before);
            }
            _ => {
                assert_eq!(state.frontends[guest].stage(), Stage::Connected);
                return DONE;
            }
        }
        true
    });
}

/// The controller takes very long from the next read of its second disk on, which is one of its table.
fn wait_for_a_read(state: &mut State, before: usize) {
    if state.lent.controller(0).reads(1).len() > before {
        state.lent.controller(0).slow_down(Duration::from_secs(20)..Duration::from_secs(21));
        let later = state.machine.now + Duration::from_secs(100);
        let fast = Duration::from_micros(5)..Duration::from_micros(50);
        state.at(later, move |state| state.lent.controller(0).slow_down(fast));
    } else {
        let next = state.machine.now + Duration::from_micros(1);
        state.at(next, move |state| wait_for_a_read(state, before));
    }
}

#[test]
fn a_controller_can_come_and_go_for_ever() {
    const ROUNDS: usize = 50;
    let mut world = partitioned(1, 4);
    add_nvme(&world, 2);
    let held = |world: &World| {
        let state = world.state();
        (state.machine.ports.count(DRIVER), state.free_pages, state.lent.mapped())
    };
    let mut before = None;
    run(&mut world, |world, act| {
        match act {
            // Nothing but the shared page is kept.
            0 => before = Some(held(world)),
            _ if act % 4 == 0 => assert_eq!(Some(held(world)), before, "round {}", act / 4),
            _ => {}
        }
        if act == 4 * ROUNDS {
            return DONE;
        }
        let state = &mut *world.state();
        // In every other round the last one goes too, and with it both directories.
        let both = (act / 4) % 2 == 1;
        match act % 4 {
            0 => pci_detach(state, 0, MANNERS[act / 4 % 3]),
            1 if both => pci_detach(state, 1, MANNERS[act / 4 % 3]),
            2 => pci_attach(state, 0),
            3 if both => pci_attach(state, 1),
            _ => {}
        }
        true
    });
    let state = world.state();
    assert!(state.lent.lending.outcomes().all(|outcome| outcome == Some(Outcome::Done)));
}

#[test]
fn the_first_controller_may_come_later() {
    for seed in 0..4 {
        let flavour = if seed % 2 == 0 { Flavour::Oxenstored } else { Flavour::Cxenstored };
        let mut world = World::new(seed, flavour);
        let shape = Shape { id: 1, blocks: SECTORS, block_shift: 9, metadata: 0 };
        let settings = Settings { namespaces: [shape].into(), ..Settings::new(seed) };
        world.state().lent.plug_nvme(settings);
        run(&mut world, |world, act| {
            let state = &mut *world.state();
            match act {
                0 => block_attach(state, 5, "/dev/nvme0n1", Load::new(0, 8, 1)),
                1 => pci_attach(state, 0),
                2 => block_attach(state, 6, "/dev/nvme0n1", Load::new(0, 4000, 50)),
                _ => return DONE,
            }
            true
        });
        assert_eq!(reason(&world, 5), "no PCI device was given to this domain");
        assert_eq!(answered(&world, 1), (50, 0), "seed {seed}");
    }
}

#[test]
fn what_is_not_there_cannot_be_detached_again() {
    let mut world = world(1);
    add_nvme(&world, 2);
    run(&mut world, |world, act| {
        if act < 2 {
            pci_detach(&mut world.state(), 0, Manner::Reset);
        }
        act < 2
    });
    assert_pci(&world, &[Outcome::Done, Outcome::Gone]);
}

/// A controller with commands that it neither answers nor forgets at a reset.
fn hang(state: &mut State) {
    let faults = &mut state.lent.controller(0).faults;
    (faults.unanswered, faults.never_disabled) = (1, true);
}

#[test]
fn a_controller_that_hangs_is_kept_from_memory_and_detached() {
    for seed in 0..4 {
        let mut world = world(seed);
        add_nvme(&world, seed);
        let load = Load { may_fail: true, ..Load::new(0, 4000, 5000) };
        attach(&world, 5, "/dev/nvme0n1", load);
        at(&world, middle(seed), hang);
        at(&world, middle(seed) * 2, |state| pci_detach(state, 0, Manner::Announced));
        run(&mut world, |_, _| DONE);
        assert_pci(&world, &[Outcome::Done]);
        let state = world.state();
        assert_eq!(state.machine.grants.mapped_from(DomId(5)), 0, "seed {seed}");
        assert_eq!(state.lent.mapped(), 1);
    }
}

#[test]
fn requests_of_a_controller_that_cannot_be_reset_are_answered_when_it_is_kept_from_memory() {
    for seed in 0..4 {
        let mut world = world(seed);
        let load = Load { may_fail: true, patience: Duration::from_secs(60), ..Load::new(0, 4000, 5000) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        at(&world, middle(seed), hang);
        let mut job = None;
        run(&mut world, |world, act| {
            if act == 0 {
                assert_eq!(answered(world, frontend), (5000, 0), "seed {seed}");
                job = Some(world.state().detach(DomId(5), DEV, false));
            }
            act == 0
        });
        assert_outcome(&world, job.unwrap(), Outcome::Done);
        assert_eq!(world.state().lent.pciback.functions[0].command(), 0b010, "off the bus");
        assert_eq!(world.state().machine.grants.mapped_from(DomId(5)), 0, "seed {seed}");
    }
}

#[test]
fn a_controller_that_hangs_while_its_tables_are_read_disturbs_no_other_and_keeps_nothing() {
    for seed in 0..6 {
        let mut world = partitioned(seed, 4);
        add_nvme(&world, seed + 1000);
        let free = world.state().free_pages;
        world.state().lent.partition(1, 0, &Gpt::equal(512, SECTORS, 4));
        hang(&mut world.state());
        // The other's table is being read when this one is kept from memory.
        world.state().lent.controller(1).slow_down(Duration::from_millis(5)..Duration::from_millis(10));
        run(&mut world, |world, act| {
            let state = &mut *world.state();
            match act {
                0 => block_attach(state, 5, "/dev/nvme1n1p2", Load::new(0, 4000, 50)),
                1 => _ = state.detach(DomId(5), DEV, false),
                2 => pci_detach(state, 0, Manner::Announced),
                3 => pci_detach(state, 1, Manner::Announced),
                _ => return DONE,
            }
            true
        });
        assert_eq!(answered(&world, 0), (50, 0), "seed {seed}");
        assert_pci(&world, &[Outcome::Done; 2]);
        assert_eq!(world.state().free_pages, free - 1, "all but the page shared with pciback");
    }
}

#[test]
fn what_a_controller_may_reach_is_not_given_back_when_pciback_is_silent() {
    for seed in 0..2 {
        let mut world = world(seed);
        let patience = Duration::from_secs(600);
        let load = Load { may_fail: true, patience, ..Load::new(0, 4000, 20_000) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        at(&world, middle(seed), |state| {
            hang(state);
            state.lent.pciback.silent = true;
        });
        at(&world, Duration::from_secs(60), move |state| {
            let (_, waiting) = state.frontends[frontend].answered();
            assert!(waiting > 0 && state.machine.grants.mapped_from(DomId(5)) > 1, "seed {seed}");
            state.destroy(DomId(5));
            state.machine.tree.write("/local/domain/3/control/shutdown", "poweroff");
        });
        assert_eq!(run(&mut world, |_, _| true), Some(End::Poweroff), "it ends all the same");
    }
}

#[test]
fn a_controller_comes_again_where_one_was_lost() {
    let mut world = world(1);
    let load = Load { may_fail: true, patience: Duration::from_secs(600), ..Load::new(0, 4000, 20_000) };
    attach(&world, 5, "/dev/nvme0n1", load);
    at(&world, middle(1), |state| {
        hang(state);
        state.lent.pciback.silent = true;
    });
    at(&world, Duration::from_secs(60), |state| _ = state.destroy(DomId(5)));
    // What was lost keeps its number.
    world.state().lent.also_known("nvme1n1", "nvme0n1", 0..SECTORS);
    run_with(&mut world, "opaque=nvme0n1,nvme1n1", |world, act| {
        let state = &mut *world.state();
        match act {
            0 => {
                // pciback disables them itself, as nobody can ask it to.
                state.lent.pciback.functions[0].msix = false;
                pci_detach(state, 0, Manner::Announced);
            }
            1 => {
                state.lent.controller(0).faults = Faults::default();
                state.lent.pciback.silent = false;
                pci_attach(state, 0);
            }
            2 => block_attach(state, 6, "/dev/nvme1n1", Load::new(8000, 4000, 50)),
            3 => _ = state.detach(DomId(6), DEV, false),
            4 => pci_detach(state, 0, Manner::Announced),
            5 => block_attach(state, 7, "/dev/nvme1n1", Load::new(0, 8, 1)),
            _ => return DONE,
        }
        true
    });
    assert_eq!(answered(&world, 1), (50, 0));
    assert_pci(&world, &[Outcome::Done; 3]);
    assert_eq!(world.state().lent.mapped(), 0);
    assert_eq!(reason(&world, 7), "\"/dev/nvme1n1\" cannot be used: its controller was detached");
}
