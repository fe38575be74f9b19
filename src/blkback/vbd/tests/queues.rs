//! Frontends with several rings, and rings of several pages.

use super::*;
use crate::limits::QUEUES;

const RINGS: u32 = 4;
const PAGES: u32 = 2;

/// The page of a ring, as the guest grants it; its event channel has the number of the ring.
const fn gref(ring: u32, page: u32) -> u32 {
    100 + ring * PAGES + page
}

/// A world with memory and ports for everything, where the device is offered.
fn offered() -> World {
    let mut world = World::new();
    (world.machine.ports, world.machine.free_pages) = (QUEUES, 100_000);
    for ring in 0..RINGS {
        world.machine.open.push((5, ring));
        (0..PAGES).for_each(|page| _ = world.machine.granted.insert((5, gref(ring, page)), Frame::new()));
    }
    world.attach("nvme0n1", "w");
    world.run();
    assert_eq!(world.ours("multi-queue-max-queues"), "16");
    world
}

/// The frontend has said how it is to be served.
fn make_ready(world: &mut World) {
    for ring in 0..RINGS {
        for page in 0..PAGES {
            world.set(FRONT, &format!("queue-{ring}/ring-ref{page}"), &gref(ring, page).to_string());
        }
        world.set(FRONT, &format!("queue-{ring}/event-channel"), &ring.to_string());
    }
    for (node, value) in [
        ("multi-queue-num-queues", RINGS.to_string()),
        ("ring-page-order", PAGES.ilog2().to_string()),
        ("protocol", "x86_64-abi".to_string()),
        ("state", "3".to_string()),
    ] {
        world.set(FRONT, node, &value);
    }
}

#[test]
fn every_ring_is_connected_before_the_device_is() {
    let mut world = offered();
    make_ready(&mut world);
    world.run_until(200);
    assert_eq!(world.trace(), [(0, "2"), (200, "4")]);
    assert_eq!(world.machine.mapped.len(), (RINGS * PAGES) as usize);
    let bound: Vec<_> = world.vbd.ports().map(|port| world.machine.bound[&port.0]).collect();
    assert_eq!(bound, [(5, 0), (5, 1), (5, 2), (5, 3)]);
    assert_eq!(world.machine.reserved.len(), QUEUES - RINGS as usize);
    // Requests come from each of them.
    let requests = world.vbd.requests_mut().unwrap();
    for ring in 0..RINGS {
        let frames = (0..PAGES).map(|page| world.machine.granted[&(5, gref(ring, page))]).collect();
        let mut front = Front::new(frames, Protocol::X86_64, 0);
        front.submit(&entry(0, 1, 0, &[(7, 0, 8)]));
        assert_eq!(requests.admit(Instant(0), 1, &mut started()).map(|admitted| admitted.requests), Ok(1));
        let mut notified = vec![];
        requests.publish(|port| notified.push(world.machine.bound[&port.0]));
        assert_eq!((notified, front.response()), (vec![(5, ring)], Some((0, 1, -1))));
    }
    world.detach();
    world.set(FRONT, "state", "6");
    world.run_until(2000);
    world.assert_over();
}

#[test]
fn a_ring_that_cannot_be_connected_gives_the_others_back() {
    for ring in 0..RINGS {
        for (node, value) in
            [("ring-ref1", "77"), ("event-channel", "77"), ("ring-ref0", "none"), ("event-channel", "none")]
        {
            let mut world = offered();
            make_ready(&mut world);
            world.set(FRONT, &format!("queue-{ring}/{node}"), value);
            world.run_until(1000);
            assert_eq!(world.trace(), [(0, "2"), (200, "error"), (200, "5"), (200, "6")], "{ring} {node}");
            world.assert_disconnected();
            assert_eq!(world.machine.reserved.len(), QUEUES);
            world.detach();
            world.run_until(3000);
            world.assert_over();
        }
    }
}

#[test]
fn a_frontend_that_leaves_while_its_rings_are_connected_is_not_blamed() {
    for (state, end) in [("1", "2"), ("5", "6"), ("6", "6"), ("", "6")] {
        for ring in 0..RINGS as usize {
            let mut world = offered();
            make_ready(&mut world);
            world.now = world.now + DWELL;
            world.vbd.turn(world.now, &mut world.machine);
            while world.vbd.due() != Some(Errand::Task(Task::Join)) || world.vbd.ports().count() < ring {
                assert!(world.step());
            }
            if state.is_empty() {
                world.remove(FRONT);
            } else {
                world.set(FRONT, "state", state);
            }
            world.run_until(10_000);
            assert_eq!(world.ours("state"), end, "after {ring} rings");
            assert!(!world.nodes.contains_key(ERRORS));
            world.assert_disconnected();
        }
    }
}

#[test]
fn more_rings_than_were_offered_are_not_served() {
    for (ports, queues, served) in [(4, "4", true), (3, "4", false), (QUEUES, "17", false)] {
        let mut world = World::new();
        (world.machine.ports, world.machine.free_pages) = (ports, 100_000);
        for ring in 0..RINGS {
            world.machine.open.push((5, ring));
            (0..PAGES).for_each(|page| _ = world.machine.granted.insert((5, gref(ring, page)), Frame::new()));
        }
        world.attach("nvme0n1", "w");
        world.run();
        make_ready(&mut world);
        world.set(FRONT, "multi-queue-num-queues", queues);
        world.run_until(1000);
        assert_eq!(world.ours("state"), if served { "4" } else { "6" }, "{queues} of {ports}");
    }
}
