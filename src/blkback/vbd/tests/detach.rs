//! Closing, whoever wants it, and what is left.

use super::*;
use crate::blkback::{Issued, Part};
use crate::hal::Grants;

/// The controller of the disk that is attached.
const CONTROLLER: usize = 0;

#[test]
fn detach_waits_for_the_frontend_and_lingers() {
    let mut world = World::connected();
    world.detach();
    world.run_until(3000);
    assert_eq!((world.trace(), world.machine.mapped.len()), (vec![], 1), "still serving");
    world.set(FRONT, "state", "6");
    world.run();
    assert_eq!(world.trace(), [(3000, "6")]);
    world.assert_disconnected();
    world.run_until(3999);
    assert!(world.exists(), "libxl has to read 6 first");
    world.run_until(4000);
    assert_eq!(world.trace(), [(3000, "6"), (4000, "removed")]);
    world.assert_over();
}

#[test]
fn detach_without_a_driver_in_the_guest_closes_at_once() {
    for wait in [0, 500] {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        world.run_until(wait);
        world.detach();
        world.run();
        assert_eq!(world.trace(), [(0, "2"), (wait, "6")]);
        world.run_until(wait + 1000);
        world.assert_over();
    }
}

#[test]
fn forced_detach_and_destroy_need_no_frontend() {
    for (online_late, dead_late) in [(0, 0), (400, 0), (0, 400), (5000, 0)] {
        let mut world = World::connected();
        if dead_late == 0 {
            world.remove(FRONT);
        }
        world.run_until(200 + online_late);
        world.detach();
        world.run_until(200 + online_late + dead_late);
        world.remove(FRONT);
        world.run_until(200 + online_late + dead_late + 1000);
        assert!(world.trace()[0].1 == "6" && world.trace().len() == 2, "{:?}", world.trace());
        world.assert_over();
    }
}

#[test]
fn a_directory_that_goes_at_any_step_is_never_made_again() {
    // It goes between two jobs, or when the next job is already on its way.
    for on_its_way in [false, true] {
        for steps in 0..40 {
            let mut world = World::new();
            world.attach("nvme0n1", "w");
            let lived = live(&mut world, steps);
            world.trace.clear();
            let job = if on_its_way { world.vbd.next_job(world.now) } else { None };
            world.remove(HOME);
            world.remove(FRONT);
            if let Some(job) = job {
                let (result, answers) = world.apply(&job);
                world.done(result, &answers);
            }
            world.run_until(world.millis() + 10_000);
            assert_eq!(world.trace(), [], "after {steps} jobs");
            world.assert_over();
            if !lived {
                break;
            }
            assert!(steps < 39, "a life has fewer jobs");
        }
    }
}

#[test]
fn a_write_that_did_not_hold_leads_to_another_look() {
    let mut world = World::new();
    world.attach("nvme0n1", "w");
    while world.vbd.due() != Some(Errand::Task(Task::Offer)) {
        assert!(world.step());
    }
    // The events of this detach are late.
    for (node, value) in [("state", "5"), ("online", "0")] {
        world.nodes.insert(format!("{HOME}/{node}"), value.to_string());
    }
    world.run_until(1000);
    assert_eq!(world.trace(), [(0, "6"), (1000, "removed")]);
    world.assert_over();
}

#[test]
fn a_new_device_is_not_removed_in_the_place_of_the_old() {
    let mut world = World::connected();
    world.detach();
    world.set(FRONT, "state", "6");
    world.run();
    world.now = world.vbd.deadline().unwrap();
    world.vbd.turn(world.now, &mut world.machine);
    let job = world.vbd.next_job(world.now).unwrap();
    world.attach("nvme0n2", "w");
    let (result, answers) = world.apply(&job);
    assert_eq!(result, Err(StoreError::Gone));
    world.done(result, &answers);
    world.run();
    assert_eq!((world.ours("state"), world.ours("sectors")), ("2", "8000"));
}

#[test]
fn a_frontend_that_cannot_be_served_learns_it() {
    for (node, value, reason) in [
        ("protocol", "arm-abi", "its frontend uses an unknown protocol"),
        ("multi-queue-num-queues", "0", "its frontend wants none or more queues than were offered"),
        ("ring-page-order", "5", "its frontend made a ring of more pages than were offered"),
        ("ring-ref", "", "its frontend gave no valid ring-ref"),
        ("ring-ref", "77", "cannot map its ring-ref 77: GNTTABOP_map_grant_ref returned -3"),
        ("event-channel", "77", "cannot bind its event-channel 77: EVTCHNOP_bind_interdomain returned -22"),
    ] {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        world.run_until(300);
        world.frontend_ready("8", "15");
        world.set(FRONT, node, value);
        world.run_until(20_000);
        assert_eq!(world.trace(), [(0, "2"), (300, "error"), (300, "5"), (300, "6")]);
        assert_eq!(world.nodes[ERRORS], reason);
        world.assert_disconnected();
        world.detach();
        world.run_until(22_000);
        world.assert_over();
    }
}

#[test]
fn a_broken_ring_closes_its_device() {
    for closing in [false, true] {
        let mut world = World::connected();
        if closing {
            world.detach();
            world.run();
        }
        world.vbd.fault(FrontendFault::Overrun { claimed: 99, entries: 32 });
        assert!(!world.vbd.requests_mut().unwrap().backlog(), "it stops at once");
        world.run();
        let expected = [(200, "error"), (200, "5"), (200, "6")];
        let expected: Vec<_> = expected.into_iter().filter(|(_, what)| !(closing && *what == "5")).collect();
        assert_eq!(world.trace(), expected);
        assert_eq!(world.nodes[ERRORS], "its ring claims 99 requests where 32 fit");
        world.assert_disconnected();
    }
}

#[test]
fn a_directory_that_goes_while_a_broken_ring_closes_is_not_made_again() {
    let mut world = World::connected();
    world.vbd.fault(FrontendFault::Rewound);
    world.remove(HOME);
    world.run();
    assert_eq!(world.trace(), [(200, "error")]);
    world.assert_over();
}

#[test]
fn what_is_in_flight_is_finished_before_anything_is_given_up() {
    let mut world = World::connected();
    let frame = world.machine.granted[&(5, 8)];
    let mut front = Front::at(frame, 0);
    front.submit(&entry(3, 1, 0, &[]));
    let requests = world.vbd.requests_mut().unwrap();
    let admitted = requests.admit(Instant(0), 1, &mut started()).unwrap();
    assert_eq!((admitted.requests, admitted.maps), (1, 0));
    requests.issued(Issued::Flush);
    world.remove(FRONT);
    world.detach();
    world.run_until(5000);
    assert_eq!((world.trace(), world.machine.mapped.len(), world.machine.bound.len()), (vec![], 1, 1));
    let requests = world.vbd.requests_mut().unwrap();
    assert!(!requests.backlog() && !requests.arm(), "no more is taken");
    requests.completed(0, true);
    world.run();
    assert_eq!(world.machine.mapped.len(), 1, "not before it is answered");
    let requests = world.vbd.requests_mut().unwrap();
    assert!(!requests.reap(Instant(0), &mut heapless::Vec::new()));
    world.run();
    assert_eq!((front.response(), world.machine.notified.len()), (Some((3, 1, 0)), 1));
    assert_eq!(world.trace(), [(5000, "6")]);
    world.run_until(6000);
    world.assert_over();
}

#[test]
fn directories_left_over_are_brought_to_an_end() {
    let closed = vec![(0, "error"), (0, "5"), (0, "6")];
    for (state, online, theirs, trace) in [
        ("2", "1", "1", vec![(0, "2")]),
        ("5", "0", "1", vec![(0, "6"), (1000, "removed")]),
        ("5", "1", "4", vec![(0, "6")]),
        ("5", "1", "1", vec![(0, "6"), (0, "2")]),
        ("6", "0", "6", vec![(1000, "removed")]),
        ("6", "1", "6", vec![(0, "2"), (200, "6")]),
        ("4", "1", "4", closed.clone()),
        ("3", "1", "4", closed.clone()),
        ("", "1", "4", closed),
    ] {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        world.set(HOME, "state", state);
        world.set(HOME, "online", online);
        world.set(FRONT, "state", theirs);
        world.run_until(60_000);
        assert_eq!(world.trace(), trace, "found at {state:?}");
        assert_eq!(world.exists(), online == "1");
    }
}

#[test]
fn a_device_can_fail_to_be_written_at_any_step() {
    for steps in 0..40 {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        let lived = live(&mut world, steps);
        world.errors = vec![StoreError::Again];
        live(&mut world, usize::MAX);
        world.assert_over();
        if !lived {
            return;
        }
    }
    panic!("a life has fewer jobs");
}

#[test]
fn a_device_whose_controller_goes_closes_without_its_frontend() {
    let mut world = World::connected();
    world.vbd.withdraw(CONTROLLER + 1, "another one went");
    world.run_until(300);
    assert_eq!(world.trace(), []);
    world.vbd.withdraw(CONTROLLER, "its controller went");
    world.run_until(300);
    assert_eq!(world.trace(), [(300, "error"), (300, "5"), (300, "6")]);
    world.assert_disconnected();
    world.set(FRONT, "state", "6");
    world.run_until(5000);
    assert_eq!(world.ours("state"), "6", "until the toolstack detaches it");
    world.detach();
    world.run_until(6000);
    world.assert_over();
}

/// A device that was connected when its controller went, 0.3 seconds later.
fn without_controller() -> World {
    let mut world = World::connected();
    world.volumes.remove_controller(CONTROLLER, "its controller went");
    world.vbd.withdraw(CONTROLLER, "its controller went");
    world.run_until(300);
    world
}

#[test]
fn a_device_that_cannot_be_offered_again_stays_closed_until_it_can() {
    let mut world = without_controller();
    world.trace.clear();
    // Meanwhile its guest was paused, and does not know.
    for _ in 0..3 {
        world.set(FRONT, "state", "1");
        world.run_until(world.millis() + 1000);
    }
    assert_eq!((world.trace(), world.ours("state")), (vec![(700, "error")], "6"));
    assert!(world.nodes[ERRORS].contains("cannot be used"), "{}", world.nodes[ERRORS]);
    world.volumes.add_disk(disk(0, volume(512, 1000)));
    world.vbd.notice_volumes();
    world.run_until(world.millis() + 1000);
    assert_eq!(world.ours("state"), "2");
    world.trace.clear();
    world.vbd.notice_volumes();
    assert!(!world.step(), "one that is offered has its volume");
}

#[test]
fn a_guest_that_keeps_starting_again_without_its_disk_is_slowed_down() {
    let mut world = without_controller();
    let before = world.jobs;
    for millis in 300..10_300 {
        world.set(FRONT, "state", "1");
        world.vbd.notice_frontend();
        world.run_until(millis);
    }
    // Each time both directories, and ours again, are read: after 0.4 s and then every 0.8 s.
    assert!(world.jobs - before <= 3 * 14, "{}", world.jobs - before);
    // What it says in the pause is not forgotten.
    world.set(FRONT, "state", "1");
    world.volumes.add_disk(disk(0, volume(512, 1000)));
    world.run_until(11_100);
    assert_eq!(world.ours("state"), "2");
}

#[test]
fn a_device_that_finds_no_nodes_to_be_offered_again_closes_and_stays() {
    // Its frontend closes before, or starts again unannounced.
    for (closes, trace) in [(true, vec!["6"]), (false, vec!["5", "6"])] {
        let mut world = World::connected();
        // There is less room than before, so what was offered does not fit any more.
        world.nodes.remove(&format!("{HOME}/info"));
        world.most_nodes = world.nodes.len();
        if closes {
            world.set(FRONT, "state", "6");
            world.run();
        }
        world.set(FRONT, "state", "1");
        world.run();
        assert_eq!(world.trace().into_iter().map(|(_, what)| what).collect::<Vec<_>>(), trace);
        world.most_nodes = usize::MAX;
        world.set(FRONT, "state", "1");
        world.run_until(2000);
        assert_eq!(world.ours("state"), "2", "there is room again");
    }
}

#[test]
fn a_look_that_was_on_its_way_does_not_offer_again_what_closes() {
    let mut world = World::new();
    world.attach("nvme0n1", "w");
    world.run();
    world.vbd.notice();
    let job = world.vbd.next_job(world.now).unwrap();
    world.vbd.withdraw(CONTROLLER, "its controller went");
    world.vbd.turn(world.now, &mut world.machine);
    let (result, answers) = world.apply(&job);
    world.done(result, &answers);
    world.run();
    assert_eq!(world.trace()[..3], [(0, "2"), (0, "error"), (0, "5")]);
}

#[test]
fn a_device_whose_controller_goes_before_it_is_offered_is_refused() {
    for again in [false, true] {
        let mut world = if again { World::connected() } else { World::new() };
        if again {
            world.set(FRONT, "state", "1");
        } else {
            world.attach("nvme0n1", "w");
        }
        while world.vbd.due() != Some(Errand::Task(Task::Offer)) {
            world.vbd.turn(world.now, &mut world.machine);
            assert!(world.step());
        }
        world.vbd.withdraw(CONTROLLER, "its controller went");
        world.run();
        // One that was offered before closes: the toolstack does not wait for it any more.
        let trace: Vec<_> = world.trace().into_iter().map(|(_, what)| what).take(2).collect();
        assert_eq!(trace, ["error", if again { "5" } else { "removed" }]);
    }
}

#[test]
fn pages_that_stay_mapped_go_back_when_they_are_idle_and_at_the_end() {
    for idle in [true, false] {
        let mut world = World::new();
        world.machine.free_pages = 100_000;
        world.attach("nvme0n1", "w");
        world.run();
        world.set(FRONT, "feature-persistent", "1");
        world.frontend_ready("8", "15");
        world.run_until(200);
        let mut front = Front::at(world.machine.granted[&(5, 8)], 0);
        front.submit(&entry(0, 1, 0, &[(7, 0, 7)]));
        let (requests, mut batch) = (world.vbd.requests_mut().unwrap(), started());
        assert_eq!(requests.admit(world.now, 1, &mut batch).unwrap().maps, 1);
        world.machine.map(&mut batch.maps);
        requests.mapped(world.now, &batch.maps);
        requests.issued(Issued::Data(Part { segments: 1, bytes: 4096 }));
        requests.completed(0, true);
        assert!(!requests.reap(world.now, &mut heapless::Vec::new()));
        assert_eq!(world.machine.reachable.len(), 1, "it stays mapped");
        if idle {
            world.run_until(60_200);
        } else {
            world.remove(HOME);
            world.remove(FRONT);
            world.run();
        }
        assert!(world.machine.reachable.is_empty());
    }
}

#[test]
fn a_reason_that_finds_no_room_keeps_no_device_that_closes() {
    let mut world = World::connected();
    world.most_nodes = world.nodes.len();
    world.vbd.fault(FrontendFault::Rewound);
    world.run();
    assert_eq!(world.trace(), [(200, "5"), (200, "6")]);
    world.detach();
    world.set(FRONT, "state", "6");
    world.run_until(5000);
    world.assert_over();
}

#[test]
fn a_controller_that_goes_at_any_step_leaves_nothing_connected() {
    // It goes between two jobs, or while one is on its way.
    for on_its_way in [false, true] {
        for steps in 0..40 {
            let mut world = World::new();
            world.attach("nvme0n1", "w");
            if !live(&mut world, steps) {
                break;
            }
            let job = if on_its_way { world.vbd.next_job(world.now) } else { None };
            world.volumes = Volumes::new();
            world.vbd.withdraw(CONTROLLER, "its controller went");
            if let Some(job) = job {
                let (result, answers) = world.apply(&job);
                world.done(result, &answers);
            }
            world.run();
            world.frontend_ready("8", "15");
            world.run_until(world.millis() + 10_000);
            assert!(!world.exists() || world.ours("state") == "6", "step {steps}: {:?}", world.vbd.state);
            world.assert_disconnected();
        }
    }
}

#[test]
fn a_device_that_is_detached_while_its_frontend_opens_it_again_closes() {
    // libxl has seen state 6, so all that it writes is that the device is to go.
    for when in [0, 100, 500, 1_000] {
        let mut world = World::connected();
        world.set(FRONT, "state", "6");
        world.run();
        assert_eq!(world.ours("state"), "6");
        world.set(FRONT, "state", "1");
        world.run();
        world.frontend_ready("9", "16");
        world.run_until(200 + when);
        world.set(HOME, "online", "0");
        world.run_until(5_000);
        world.assert_over();
    }
}
