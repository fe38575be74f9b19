//! Who may have which blocks at the same time, and for how long.

use super::*;
use crate::blkback::Issued;
use crate::units::{Block, DomId};
use crate::volume::tests::disk;
use crate::volume::{DiskIndex, PartUuid, Partition};
use crate::wire::gpt::Label;

/// A world with two partitions on `nvme0n1`, at 100 and at 200.
fn world() -> World {
    let mut world = World::new();
    let whole = disk(0, volume(512, 1000)).volume.unwrap();
    for (number, first) in [(1, 100), (2, 200)] {
        let name = VolumeName { disk: DiskIndex { controller: 0, namespace: 0 }, partition: Some(number) };
        let range = whole.part(Block(first), Block(100));
        let partition = Partition { name, uuid: PartUuid::Mbr(1, number), label: Label::NONE, range };
        world.volumes.add_partition(partition).unwrap();
    }
    world
}

/// What another guest has that has attached this.
fn held(target: &str, mode: &str) -> Neighbour {
    let mut other = world();
    other.attach(target, mode);
    other.run();
    let mut neighbour = other.vbd.as_neighbour();
    let hold = neighbour.hold.as_mut().expect("it was offered");
    hold.id = DeviceId { guest: DomId(6), device: 51712 };
    neighbour
}

#[test]
fn blocks_are_one_writers_or_several_readers() {
    let targets = ["nvme0n1", "nvme0n1p1", "nvme0n1p2", "nvme0n2"];
    let overlap = |one: &str, other: &str| one.starts_with(other) || other.starts_with(one);
    for (theirs, their_mode) in targets.iter().flat_map(|target| [(*target, "r"), (*target, "w")]) {
        for (ours, our_mode) in targets.iter().flat_map(|target| [(*target, "r"), (*target, "w")]) {
            let mut world = world();
            world.others = vec![held("nvme0n2", "r"), held(theirs, their_mode)];
            world.others.rotate_right(usize::from(our_mode == "r"));
            world.attach(ours, our_mode);
            world.run();
            let disturbs_other = ours == "nvme0n2" && our_mode == "w";
            let disturbs = overlap(ours, theirs) && (our_mode == "w" || their_mode == "w");
            if disturbs || disturbs_other {
                assert_eq!(world.trace(), [(0, "error"), (0, "removed")], "{ours} {our_mode}, {theirs}");
                assert_eq!(world.vbd.hold(), None);
                let reason = &world.nodes[ERRORS];
                assert!(reason.starts_with(&format!("{ours} is in use for ")), "{reason}");
                assert!(
                    reason.ends_with(")") && reason.contains("by guest 6 (vbd 6/51712 nvme0n"),
                    "{reason}"
                );
            } else {
                assert_eq!(world.trace(), [(0, "2")], "{ours} {our_mode}, {theirs} {their_mode}");
            }
        }
    }
}

#[test]
fn the_reason_names_the_other_and_what_it_does() {
    let mut world = world();
    for (mode, purpose) in [("w", "writing"), ("r", "reading")] {
        world.others = vec![held("nvme0n1", mode)];
        world.attach("/dev/nvme0n1p1", "w");
        world.run();
        let expected = format!("nvme0n1p1 is in use for {purpose} by guest 6 (vbd 6/51712 nvme0n1)");
        assert_eq!(world.nodes[ERRORS], expected);
    }
}

#[test]
fn a_volume_is_held_until_the_device_is_closed_for_good() {
    let mut world = World::new();
    assert_eq!(world.vbd.hold(), None, "nothing is known yet");
    world.attach("nvme0n1", "w");
    while world.trace.is_empty() {
        let before = world.vbd.hold();
        assert!(world.step() && (before.is_none() || world.vbd.hold() == before));
    }
    assert!(world.vbd.hold().is_some_and(|hold| hold.writable));
    world.frontend_ready("8", "15");
    world.run_until(200);
    // The guest closes it, as when it reboots: it may open it again.
    world.set(FRONT, "state", "6");
    world.run_until(5_000);
    assert_eq!(world.ours("state"), "6");
    assert!(world.vbd.hold().is_some());
    world.set(FRONT, "state", "1");
    world.run();
    assert!(world.vbd.hold().is_some());
    world.detach();
    world.run();
    // As soon as libxl can see 6, others can have it.
    assert_eq!((world.ours("state"), world.exists()), ("6", true));
    assert_eq!(world.vbd.hold(), None);
}

#[test]
fn what_others_may_have_is_not_held_again_on_the_way_out() {
    let mut world = World::connected();
    world.detach();
    world.set(FRONT, "state", "6");
    world.run();
    world.now = world.vbd.deadline().expect("it lingers");
    // Its own removal is a change of its directory, which it looks at.
    while !world.vbd.is_finished() {
        assert_eq!(world.vbd.hold(), None);
        world.vbd.turn(world.now, &mut world.machine);
        assert_eq!(world.vbd.hold(), None);
        world.step();
    }
    world.assert_over();
}

#[test]
fn at_no_step_of_a_life_is_a_connection_without_its_volume() {
    for steps in 0..40 {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        let lived = live(&mut world, steps);
        let is_open = world.vbd.ports().next().is_some();
        assert!(!is_open || world.vbd.hold().is_some(), "after {steps} jobs");
        let shown = world.ours("state");
        assert!(!matches!(shown, "2" | "4" | "5") || world.vbd.hold().is_some(), "state {shown}");
        world.remove(HOME);
        world.remove(FRONT);
        world.run_until(world.millis() + 10_000);
        assert_eq!(world.vbd.hold(), None);
        if !lived {
            return;
        }
    }
}

#[test]
fn a_device_in_place_of_another_holds_what_it_is_now() {
    let mut world = World::connected();
    world.attach("nvme0n2", "r");
    world.run();
    let hold = world.vbd.hold().unwrap();
    assert_eq!((hold.name.to_string(), hold.writable), ("nvme0n2".into(), false));
}

#[test]
fn a_volume_is_held_while_requests_are_in_flight_though_the_directory_is_gone() {
    let mut world = World::connected();
    let mut front = Front::at(world.machine.granted[&(5, 8)], 0);
    front.submit(&entry(3, 1, 0, &[]));
    let requests = world.vbd.requests_mut().unwrap();
    assert_eq!(requests.admit(Instant(0), 1, &mut started()).unwrap().requests, 1);
    requests.issued(Issued::Flush);
    world.remove(HOME);
    world.remove(FRONT);
    world.run_until(world.millis() + 10_000);
    assert!(world.vbd.hold().is_some(), "the disk still works for it");
    let requests = world.vbd.requests_mut().unwrap();
    requests.completed(0, true);
    assert!(!requests.reap(Instant(0), &mut heapless::Vec::new()));
    world.run();
    assert_eq!(world.vbd.hold(), None);
}
