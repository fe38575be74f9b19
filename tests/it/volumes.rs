//! Partitions and their names, opaque disks and exclusive writers, in the whole core: what is on a
//! disk decides what is served, and no guest decides what is on a disk's table.

use core::cell::RefCell;
use core::time::Duration;
use std::rc::Rc;

use platter::domain::End;
use platter::sim::frontend::{Frontend, Stage, back_path};
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::tables::{Gpt, Part, mbr};
use platter::sim::toolstack::{Disk, JobId, Outcome};
use platter::sim::world::{State, World};
use platter::units::DomId;

use crate::host::{DEV, SECTORS, add_nvme, assert_outcome, attach, disk, partitioned, run, run_with, world};
use crate::rogue::{Rogue, WRITE};

const DONE: bool = false;

/// When a frontend that was attached at the start may show its ring: the backend is in InitWait.
const OFFER: Duration = Duration::from_millis(500);

/// When a guest is at work that was attached at the start.
const SOON: Duration = Duration::from_millis(500);

fn reason(world: &World, guest: u16) -> String {
    let path = format!("/local/domain/3/error/backend/vbd/{guest}/{DEV}/error");
    world.state().machine.tree.text(&path).unwrap_or("served").to_owned()
}

/// A partition of 40000 blocks with a label.
fn part(first: u64, label: &str) -> Part {
    Part { label: label.into(), ..Part::new(first, 40_000) }
}

/// What a guest is refused that attaches this, or that it is served.
fn verdict(line: &str, prepare: impl Fn(&World), target: &str, readonly: bool) -> String {
    let mut world = world(1);
    prepare(&world);
    world.state().create_guest(DomId(5));
    let disk = Disk { readonly, ..disk(5, target) };
    let (job, _) = world.state().attach(&disk, Load::new(0, 64, 0), Shadow::default());
    run_with(&mut world, line, |_, _| DONE);
    let reason = reason(&world, 5);
    assert_outcome(&world, job, if reason == "served" { Outcome::Done } else { Outcome::Gone });
    reason
}

fn two_parts() -> Gpt {
    Gpt::new(512, SECTORS, vec![part(2048, "my data"), part(50_000, "root")])
}

#[test]
fn a_partition_is_served_by_each_of_its_names() {
    let table = two_parts();
    for (seed, name) in [
        "/dev/nvme0n2p2",
        "/dev/disk/by-id/nvme-Simulated_NVMe_SEED0_2-part2",
        "/dev/disk/by-partlabel/root",
        "PARTLABEL=root",
        &format!("PARTUUID={}", table.uuid(2)),
        &format!("/dev/disk/by-partuuid/{}", table.uuid(2).to_uppercase()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = world(0);
        world.state().lent.partition(0, 1, &table);
        let known = name.strip_prefix("/dev/").unwrap_or(name);
        world.state().lent.also_known(known, "nvme0n2", 50_000..90_000);
        // All of it, to the last sector.
        let (job, frontend) = attach(&world, 5, name, Load::new(40_000 - 300, 300, 200));
        run(&mut world, |_, _| DONE);
        assert_outcome(&world, job, Outcome::Done);
        assert_eq!(world.state().frontends[frontend].answered(), (200, 0), "{seed}: {name}");
        let node = format!("{}/sectors", back_path(DomId(5), DEV));
        assert_eq!(world.state().machine.tree.text(&node), Some("40000"));
    }
}

#[test]
fn guests_on_neighbouring_partitions_keep_to_themselves() {
    for seed in 0..8 {
        let mut world = partitioned(seed, 4);
        let size = Gpt::equal(512, SECTORS, 4).parts[0].blocks;
        let jobs = [1, 2, 3, 4].map(|n| {
            let target = format!("/dev/nvme0n1p{n}");
            // At both ends, by turns.
            let first = if n % 2 == 0 { 0 } else { size - 500 };
            attach(&world, 4 + n, &target, Load::new(first, 500, 150))
        });
        run(&mut world, |_, _| DONE);
        for (job, frontend) in jobs {
            assert_outcome(&world, job, Outcome::Done);
            assert_eq!(world.state().frontends[frontend].answered(), (150, 0), "seed {seed}");
        }
    }
}

#[test]
fn names_of_two_volumes_and_of_none_are_refused() {
    let tables = |world: &World| {
        let mut twin = two_parts();
        twin.disk = 0x77;
        twin.parts[1].label = "other".into();
        world.state().lent.partition(0, 0, &two_parts());
        world.state().lent.partition(0, 1, &twin);
    };
    for (target, expected) in [
        ("PARTLABEL=my data", "\"PARTLABEL=my data\" names both nvme0n1p1 and nvme0n2p1"),
        (
            "/dev/disk/by-id/nvme-Simulated_NVMe_SEED1-part1",
            "\"/dev/disk/by-id/nvme-Simulated_NVMe_SEED1-part1\" names both nvme0n1p1 and nvme0n2p1",
        ),
        ("PARTLABEL=none", "no volume named \"PARTLABEL=none\""),
        ("/dev/nvme0n1p3", "no volume named \"/dev/nvme0n1p3\""),
        ("/dev/disk/by-partlabel/other", "served"),
    ] {
        assert_eq!(verdict("", tables, target, false), expected);
    }
}

#[test]
fn a_damaged_table_is_read_from_its_backup() {
    for (seed, blocks) in [(0, &[1][..]), (1, &[2]), (2, &[33]), (3, &[1, 2, 3])] {
        let mut world = partitioned(seed, 2);
        for block in blocks {
            world.state().lent.controller(0).disk_mut(0).hold(*block, &[0x5a; 512]);
        }
        let (job, frontend) = attach(&world, 5, "/dev/nvme0n1p2", Load::new(0, 4000, 50));
        run(&mut world, |_, _| DONE);
        assert_outcome(&world, job, Outcome::Done);
        assert_eq!(world.state().frontends[frontend].answered(), (50, 0), "seed {seed}");
    }
}

#[test]
fn logical_partitions_are_served() {
    let records = [
        (0, &[(0x83, 64, 1000), (0x0f, 2048, 100_000)][..]),
        (2048, &[(0x83, 64, 5000), (0x05, 10_000, 20_000)]),
        (12_048, &[(0x83, 64, 8000)]),
    ];
    let mut world = world(1);
    for (at, slots) in records {
        world.state().lent.controller(0).disk_mut(0).hold(at, &mbr(512, 0xc0ff_ee00, slots));
    }
    world.state().lent.also_known("PARTUUID=c0ffee00-06", "nvme0n1", 12_112..20_112);
    let (job, frontend) = attach(&world, 5, "PARTUUID=c0ffee00-06", Load::new(0, 8000, 100));
    run(&mut world, |_, _| DONE);
    assert_outcome(&world, job, Outcome::Done);
    assert_eq!(world.state().frontends[frontend].answered(), (100, 0));
}

#[test]
fn a_whole_disk_is_written_only_when_it_is_opaque() {
    let blank = |_: &World| {};
    let refused = "the whole disk nvme0n1 is for reading only";
    let verdict = |line, readonly| verdict(line, blank, "/dev/nvme0n1", readonly);
    assert!(verdict("", false).starts_with(refused));
    assert!(verdict("opaque=nvme0n2", false).starts_with(refused));
    assert_eq!(verdict("", true), "served");
    for line in [
        "opaque=nvme0n1",
        "opaque=nvme9n9,/dev/nvme0n1",
        "opaque=/dev/disk/by-id/nvme-Simulated_NVMe_SEED1_1",
    ] {
        assert_eq!(verdict(line, false), "served", "{line}");
    }
}

#[test]
fn an_opaque_disk_is_never_read() {
    let mut world = partitioned(1, 2);
    run_with(&mut world, "opaque=nvme0n1", |_, _| DONE);
    assert_eq!(world.state().lent.controller(0).reads(0), [0; 0]);
    assert_eq!(world.state().lent.controller(0).reads(1), [0], "the other one was looked at");
    let mut world = partitioned(1, 2);
    let (job, _) = attach(&world, 5, "/dev/nvme0n1p1", Load::new(0, 8, 0));
    run_with(&mut world, "opaque=nvme0n1", |_, _| DONE);
    assert_outcome(&world, job, Outcome::Gone);
}

/// Blocks that a hostile guest writes: a table that says it is the disk's, in sectors from 0 on and
/// at the end.
fn hostile_table(rogue: Rogue, state: &mut State, table: &Gpt) {
    let blocks = table.build();
    let is_written = |at: u64| at < 8 || at >= table.blocks - 8;
    let chunks = [0, table.blocks - 8];
    for (place, first) in chunks.into_iter().enumerate() {
        let (page, gref) = rogue.grant(&mut state.machine);
        for (at, bytes) in blocks.iter().filter(|(at, _)| is_written(at.0)) {
            if let Some(offset) = at.0.checked_sub(first).filter(|offset| *offset < 8) {
                page.write(offset as usize * 512, bytes);
            }
        }
        rogue.put(place as u32, WRITE, first, &[(gref, 0, 7)]);
    }
    rogue.claim(&mut state.machine, 2);
}

/// Somebody who knows that such a table was written there, and does not mind what it holds.
fn expect_table(world: &World, guest: u16, target: &str, table: &Gpt) {
    let mut shadow = Shadow::default();
    shadow.unsettled(0, 8);
    shadow.unsettled(table.blocks - 8, 8);
    let witness = Frontend::new(&disk(guest, target), Load::new(0, 8, 0), shadow);
    world.state().frontends.push(witness);
}

#[test]
fn a_hostile_table_in_what_a_guest_was_given_changes_nothing() {
    for seed in 0..8 {
        let mut before = world(seed);
        before.state().lent.partition(0, 0, &two_parts());
        // Names that others have, in the guest's own partition and on its opaque disk.
        let inner = Gpt { blocks: 40_000, ..two_parts() };
        let inner = Gpt { parts: vec![part(40, "root")], ..inner };
        for (guest, target, table) in [(5, "/dev/nvme0n1p1", inner.clone()), (6, "/dev/nvme0n2", two_parts())]
        {
            let (_, rogue) = Rogue::attach(&before, guest, target);
            rogue.later(&before, OFFER, |rogue, state| rogue.offer(&mut state.machine));
            expect_table(&before, guest + 10, target, &table);
            rogue.later(&before, 2 * OFFER, move |rogue, state| hostile_table(rogue, state, &table));
            rogue.later(&before, 4 * OFFER, |rogue, _| assert_eq!(rogue.answers(), 2));
        }
        let (_, calm) = attach(&before, 7, "/dev/nvme0n1p2", Load::new(0, 4000, 100));
        assert_eq!(run(&mut before, shut_down), Some(End::Poweroff));

        let shadow = before.state().frontends[calm].take_shadow();
        let disks = before.state().lent.controller(0).disks().to_vec();
        drop(before);
        let mut after = world(seed + 100);
        after.state().lent.partition(0, 0, &two_parts());
        for (namespace, disk) in disks.into_iter().enumerate() {
            assert!(disk.read(if namespace == 0 { 2049 } else { 1 }, 1).starts_with(b"EFI PART"), "written");
            *after.state().lent.controller(0).disk_mut(namespace) = disk;
        }
        after.state().lent.also_known("PARTLABEL=root", "nvme0n1", 50_000..90_000);
        after.state().create_guest(DomId(7));
        let (job, calm) = after.state().attach(&disk(7, "PARTLABEL=root"), Load::new(0, 4000, 100), shadow);
        expect_table(&after, 15, "/dev/nvme0n1p1", &inner);
        expect_table(&after, 16, "/dev/nvme0n2", &two_parts());
        let (refused, _) = Rogue::attach(&after, 8, "/dev/nvme0n2p1");
        run(&mut after, |_, _| DONE);
        assert_outcome(&after, job, Outcome::Done);
        assert_outcome(&after, refused, Outcome::Gone);
        assert_eq!(after.state().frontends[calm].answered(), (100, 0), "seed {seed}");
    }
}

fn shut_down(world: &World, _: usize) -> bool {
    world.state().machine.tree.write("/local/domain/3/control/shutdown", "poweroff");
    true
}

#[test]
fn a_shutdown_does_not_wait_for_the_survey_nor_leave_it_behind() {
    for seed in 0..40 {
        let mut world = partitioned(seed, 4);
        let at = world.state().machine.now + Duration::from_micros(250 * seed);
        world.state().at(at, |state| {
            state.machine.tree.write("/local/domain/3/control/shutdown", "poweroff");
        });
        assert_eq!(run_with(&mut world, "", |_, _| DONE), Some(End::Poweroff), "seed {seed}");
    }
}

#[test]
fn a_disk_that_cannot_be_read_has_no_partitions_and_keeps_nobody() {
    let mut world = partitioned(1, 2);
    add_nvme(&world, 2);
    world.state().lent.controller(0).faults.error = 1;
    let (job, _) = attach(&world, 5, "/dev/nvme0n1p1", Load::new(0, 8, 0));
    let (calm, frontend) = attach(&world, 6, "/dev/nvme1n1", Load::new(0, 4000, 50));
    run(&mut world, |_, _| DONE);
    assert_outcome(&world, job, Outcome::Gone);
    assert_eq!(reason(&world, 5), "no volume named \"/dev/nvme0n1p1\"");
    assert_outcome(&world, calm, Outcome::Done);
    assert_eq!(world.state().frontends[frontend].answered(), (50, 0));
}

#[test]
fn what_one_guest_writes_is_refused_to_others_until_it_is_detached() {
    for seed in 0..8 {
        let mut world = partitioned(seed, 2);
        let (first, _) = attach(&world, 5, "/dev/nvme0n1p1", Load::new(0, 4000, 100));
        let shared = [6, 7].map(|guest| {
            world.state().create_guest(DomId(guest));
            let disk = Disk { readonly: true, ..disk(guest, "/dev/nvme0n1p2") };
            world.state().attach(&disk, Load::new(0, 8, 0), Shadow::default()).0
        });
        let (mut refused, mut second) = (Vec::new(), None);
        run(&mut world, |world, act| {
            let mut state = world.state();
            match act {
                0 => {
                    // Another guest, the same guest, all of the disk for reading, and what others read.
                    for (guest, dev, target, readonly) in [
                        (6, 51744, "/dev/nvme0n1p1", true),
                        (5, 51744, "/dev/nvme0n1p1", false),
                        (6, 51760, "nvme0n1", true),
                        (5, 51760, "/dev/nvme0n1p2", false),
                    ] {
                        let disk = Disk { dev, readonly, ..disk(guest, target) };
                        refused.push(state.attach(&disk, Load::new(0, 8, 0), Shadow::default()).0);
                    }
                }
                1 => drop(state.detach(DomId(5), DEV, false)),
                2 => {
                    let shadow = state.frontends[0].take_shadow();
                    state.create_guest(DomId(8));
                    let load = Load::new(0, 4000, 100);
                    second = Some(state.attach(&disk(8, "nvme0n1p1"), load, shadow).0);
                }
                _ => return DONE,
            }
            true
        });
        for job in refused {
            assert_outcome(&world, job, Outcome::Gone);
        }
        for job in [first, shared[0], shared[1], second.expect("attached")] {
            assert_outcome(&world, job, Outcome::Done);
        }
        let frontend = world.state().frontends.len() - 1;
        assert_eq!(world.state().frontends[frontend].answered(), (100, 0), "seed {seed}");
    }
}

/// Attaches the disk to the guest's next incarnation as soon as libxl is done with the last one.
fn attach_when_gone(state: &mut State, gone: JobId, lives: u16, attached: Rc<RefCell<Vec<JobId>>>) {
    let next = state.machine.now + Duration::from_millis(1);
    match state.toolstack.outcome(gone) {
        Some(outcome) => {
            assert_eq!(outcome, Outcome::Done);
            let guest = 5 + lives;
            let shadow = state.frontends.last_mut().expect("it was attached").take_shadow();
            state.create_guest(DomId(guest));
            let (job, _) = state.attach(&disk(guest, "/dev/nvme0n1p1"), Load::new(0, 4000, 1000), shadow);
            attached.borrow_mut().push(job);
            if lives < 4 {
                let middle = next + SOON + Duration::from_millis(state.machine.rng.within(0..100));
                state.at(middle, move |state| reboot(state, lives + 1, attached));
            }
        }
        None => state.at(next, move |state| attach_when_gone(state, gone, lives, attached)),
    }
}

fn reboot(state: &mut State, lives: u16, attached: Rc<RefCell<Vec<JobId>>>) {
    let gone = state.destroy(DomId(4 + lives))[0];
    attach_when_gone(state, gone, lives, attached);
}

#[test]
fn a_guest_that_reboots_does_not_race_with_itself() {
    for seed in 0..10 {
        let mut world = partitioned(seed, 2);
        let (job, _) = attach(&world, 5, "/dev/nvme0n1p1", Load::new(0, 4000, 1000));
        let attached = Rc::new(RefCell::new(vec![job]));
        let middle = world.state().machine.now + SOON;
        let jobs = Rc::clone(&attached);
        world.state().at(middle, move |state| reboot(state, 1, jobs));
        run(&mut world, |_, _| DONE);
        assert_eq!(attached.borrow().len(), 5, "seed {seed}");
        for job in attached.borrow().iter() {
            assert_outcome(&world, *job, Outcome::Done);
        }
        assert_eq!(world.state().frontends[4].stage(), Stage::Connected);
    }
}
