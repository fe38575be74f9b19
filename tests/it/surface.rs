//! The wide parts of blkif, each pushed to its limit on purpose: rings that wrap, many queues, more
//! persistent pages than are kept, disconnects and failures in the middle of it. What a backend does
//! not offer is not used: then these are storms like the others.

use core::time::Duration;

use platter::sim::deal::Wish;
use platter::sim::requests::Load;
use platter::sim::world::World;
use platter::units::DomId;

use crate::host::{DEV, attach, run, world};
use crate::left::{Footprint, nothing_is_left};

/// Sectors that the guest uses: room for many requests at once.
const USED: u64 = 200_000;

/// A frontend that insists on something, and its load.
fn insisting(world: &World, wish: Wish, load: Load) -> usize {
    let (_, frontend) = attach(world, 5, "/dev/nvme0n1", load);
    world.state().frontends[frontend].insist(wish);
    frontend
}

/// Lets the load be done and the device be detached: everything is answered, and nothing is left.
fn serve(world: &mut World, frontend: usize) {
    let fresh = {
        let mut empty = self::world(0);
        run(&mut empty, |_, _| false);
        Footprint::of(&empty)
    };
    run(world, |world, act| {
        if act == 0 {
            let frontend = &world.state().frontends[frontend];
            assert_eq!((frontend.answered().1, frontend.load().requests), (0, 0));
        }
        world.state().detach(DomId(5), DEV, false);
        act == 0
    });
    nothing_is_left(world, &fresh);
}

#[test]
fn the_largest_ring_is_filled_and_wraps() {
    for protocol in [Some("x86_64-abi"), Some("x86_32-abi"), None] {
        for seed in 0..2 {
            let mut world = world(seed);
            let wish = Wish { order: Some(4), queues: Some(1), protocol: Some(protocol), ..Wish::default() };
            let patience = Duration::from_secs(30);
            let load = Load { depth: 512, patience, ..Load::new(0, USED, 1500) };
            let frontend = insisting(&world, wish, load);
            serve(&mut world, frontend);
        }
    }
}

#[test]
fn every_queue_is_served() {
    for seed in 0..4 {
        let mut world = world(seed);
        let wish = Wish { queues: Some(16), ..Wish::default() };
        let frontend = insisting(&world, wish, Load { depth: 100, ..Load::new(0, USED, 1000) });
        serve(&mut world, frontend);
    }
}

#[test]
fn more_pages_than_are_kept_come_and_go() {
    for seed in 0..2 {
        let mut world = world(seed);
        let wish = Wish { order: Some(4), persistent: Some(true), ..Wish::default() };
        let patience = Duration::from_secs(30);
        let load = Load { depth: 400, patience, ..Load::new(0, USED, 3000) };
        let frontend = insisting(&world, wish, load);
        serve(&mut world, frontend);
    }
}

#[test]
fn a_disk_goes_in_the_middle_with_pages_kept() {
    for seed in 0..8 {
        let mut world = world(seed);
        let wish = Wish { order: Some(2), persistent: Some(true), ..Wish::default() };
        let load = Load { depth: 128, ..Load::new(0, USED, u32::MAX) };
        let frontend = insisting(&world, wish, load);
        let middle = world.state().machine.now + Duration::from_millis(260 + 3 * seed);
        world.state().at(middle, |state| _ = state.detach(DomId(5), DEV, false));
        run(&mut world, |_, _| false);
        assert!(world.state().frontends[frontend].answered().0 > 0, "seed {seed}");
        assert_eq!(world.state().machine.grants.mapped_from(DomId(5)), 0, "seed {seed}");
    }
}

#[test]
fn pages_that_cannot_be_mapped_fail_their_request_and_are_all_given_back() {
    for (seed, persistent) in (0..8).map(|seed| (seed, seed % 4 < 2)) {
        let mut world = world(seed);
        let wish = Wish { persistent: Some(persistent), ..Wish::default() };
        let frontend = insisting(&world, wish, Load { may_fail: true, ..Load::new(0, USED, 600) });
        world.state().failing_maps = 10;
        serve(&mut world, frontend);
    }
}
