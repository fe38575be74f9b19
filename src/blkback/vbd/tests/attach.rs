//! Attaching, connecting, and connecting again.

use super::*;

#[test]
fn attach_offers_dwells_and_connects() {
    let mut world = World::new();
    world.attach("/dev/nvme0n2", "w");
    world.run();
    assert_eq!(world.trace(), [(0, "2")]);
    assert_eq!(world.ours("sectors"), "8000");
    assert_eq!((world.ours("sector-size"), world.ours("physical-sector-size")), ("4096", "-"));
    assert_eq!((world.ours("info"), world.ours("feature-flush-cache")), ("0", "1"));
    // A frontend that is faster than libxl reads must not be seen before libxl has read 2.
    world.frontend_ready("8", "15");
    world.run_until(199);
    assert_eq!(world.trace(), [(0, "2")]);
    assert!(world.machine.mapped.is_empty());
    world.run_until(200);
    assert_eq!(world.trace(), [(0, "2"), (200, "4")]);
    assert_eq!(world.machine.mapped.len(), 1);
    assert_eq!(world.machine.bound.values().copied().collect::<Vec<_>>(), [(5, 15)]);
    assert_eq!(world.vbd.requests_mut().unwrap().volume().sectors().0, 8000);
    assert_eq!(world.vbd.to_string(), "vbd 5/51728 nvme0n2");
    assert_eq!(world.vbd.volume().map(|name| name.to_string()), Some("nvme0n2".to_string()));
    world.run_until(60_000);
    assert_eq!(world.trace().len(), 2);
}

#[test]
fn a_slow_frontend_is_waited_for() {
    let mut world = World::new();
    world.attach("nvme0n1", "r");
    world.run_until(5000);
    assert_eq!((world.trace(), world.vbd.deadline()), (vec![(0, "2")], None));
    assert_eq!(world.ours("info"), "4");
    world.frontend_ready("8", "15");
    // Some frontends go straight to Connected.
    world.set(FRONT, "state", "4");
    world.run();
    assert_eq!(world.trace(), [(0, "2"), (5000, "4")]);
}

#[test]
fn a_refused_attach_says_why_and_then_goes() {
    let long = "x".repeat(300);
    for (target, node, value, reason) in [
        ("/dev/nvme0n9", "dev", "xvdb", "no volume named \"/dev/nvme0n9\""),
        ("\n", "dev", "xvdb", "no volume named \"\\n\""),
        ("nvme0n1", "frontend-id", "6", "its frontend-id is not the guest it is for"),
        (&long, "dev", "xvdb", "its target is too long"),
    ] {
        let mut world = World::new();
        world.attach(target, "w");
        world.set(HOME, node, value);
        world.run();
        assert_eq!(world.trace(), [(0, "error"), (0, "removed")]);
        assert_eq!(world.nodes[ERRORS], reason);
        world.assert_over();
    }
}

#[test]
fn a_refusal_is_said_once_however_many_events_there_are() {
    let mut world = World::new();
    world.attach("/dev/nvme0n9", "w");
    world.vbd.turn(world.now, &mut world.machine);
    while world.trace.is_empty() {
        assert!(world.step(), "it is refused");
    }
    world.vbd.notice();
    world.run();
    assert_eq!(world.trace(), [(0, "error"), (0, "removed")]);
}

#[test]
fn one_device_too_many_is_refused() {
    let mut world = World::new();
    world.vbd = Vbd::barred(world.vbd.id());
    world.attach("nvme0n1", "w");
    world.run();
    assert_eq!(world.trace(), [(0, "error"), (0, "removed")]);
    assert_eq!(world.nodes[ERRORS], "512 devices are attached, the most this build serves");
    world.assert_over();
}

#[test]
fn no_disk_at_all_is_a_reason() {
    let mut world = World::new();
    world.volumes = Volumes::new();
    world.volumes.explain_nothing("no PCI device was given to this domain");
    world.attach("/dev/nvme0n1", "w");
    world.run();
    assert_eq!(world.nodes[ERRORS], "no PCI device was given to this domain");
    world.assert_over();
}

#[test]
fn a_frontend_that_closes_may_come_back() {
    for closing in [true, false] {
        let mut world = World::connected();
        if closing {
            world.set(FRONT, "state", "5");
            world.run();
            assert_eq!(world.trace(), [(200, "5"), (200, "6")]);
        }
        world.set(FRONT, "state", "6");
        world.run_until(10_000);
        assert_eq!(world.ours("state"), "6");
        world.assert_disconnected();
        world.trace.clear();
        world.set(FRONT, "state", "1");
        world.run();
        world.frontend_ready("9", "16");
        world.run_until(11_000);
        assert_eq!(world.trace(), [(10_000, "2"), (10_400, "4")]);
        assert_eq!(world.machine.bound.values().copied().collect::<Vec<_>>(), [(5, 16)]);
        assert_eq!(world.watches.len(), 1);
        world.detach();
        world.set(FRONT, "state", "6");
        world.run_until(12_000);
        world.assert_over();
    }
}

#[test]
fn what_was_read_before_and_after_a_frontend_started_again_is_not_taken_together() {
    // Our directory, the frontend's, and its ring are looked at one after the other.
    for looks in 0..3 {
        let mut world = World::new();
        world.attach("/dev/nvme0n1", "w");
        world.run_until(199);
        world.frontend_ready("8", "15");
        world.now = Instant(1_200_000_000);
        world.vbd.turn(world.now, &mut world.machine);
        (0..looks).for_each(|_| assert!(world.step()));
        world.frontend_ready("9", "16");
        world.nodes.insert(format!("{FRONT}/protocol"), "x86_32-abi".to_string());
        world.run_until(1000);
        let connects = world.trace.iter().filter(|(_, state)| state == "4").count();
        let connection = world.vbd.connection.as_ref().unwrap();
        assert_eq!((connects, connection.terms.protocol), (1, Protocol::X86_32), "{looks}");
        assert_eq!(world.machine.bound.values().copied().collect::<Vec<_>>(), [(5, 16)], "{looks}");
    }
}

#[test]
fn a_frontend_that_starts_again_unannounced_is_connected_anew() {
    // Restarted, or resumed with another ring; each with what it leaves as it was. One that was
    // resumed may say that it is connected before we look.
    for (state, ring, port) in [("1", "8", "15"), ("3", "9", "15"), ("3", "8", "16"), ("4", "9", "15")] {
        let mut world = World::connected();
        world.frontend_ready(ring, port);
        world.set(FRONT, "state", state);
        world.run();
        assert_eq!(world.trace(), [(200, "2")]);
        world.assert_disconnected();
        world.frontend_ready(ring, port);
        world.run_until(1000);
        assert_eq!(world.trace(), [(200, "2"), (600, "4")]);
    }
    for (state, ring) in [("3", "8"), ("4", "8"), ("4", "none"), ("2", "9")] {
        let mut world = World::connected();
        world.frontend_ready(ring, "15");
        world.set(FRONT, "state", state);
        world.run_until(1000);
        assert_eq!(world.trace(), [], "nothing new in state {state}");
    }
}

#[test]
fn a_guest_that_keeps_starting_again_is_slowed_down() {
    let mut world = World::connected();
    let (mut waits, mut offered) = (vec![], world.now);
    for _ in 0..8 {
        world.set(FRONT, "state", "1");
        world.run();
        world.frontend_ready("8", "15");
        let start = world.millis();
        offered = world.now;
        while world.ours("state") != "4" {
            let until = world.vbd.deadline().unwrap();
            world.now = until;
            world.run();
        }
        waits.push(world.millis() - start);
    }
    assert_eq!(waits, [400, 800, 800, 800, 800, 800, 800, 800]);
    world.now = offered + DWELL_MEMORY;
    world.set(FRONT, "state", "1");
    world.run();
    assert_eq!(world.vbd.deadline(), Some(world.now + DWELL), "forgiven");
}

#[test]
fn a_new_attach_is_noticed_though_the_directory_never_went() {
    // At every step of a life the device is attached again, to the same volume or another.
    for (target, sectors) in [("nvme0n1", "1000"), ("nvme0n2", "8000")] {
        for steps in 0..40 {
            let mut world = World::new();
            world.attach("nvme0n1", "w");
            let lived = live(&mut world, steps);
            world.trace.clear();
            world.attach(target, "w");
            let start = world.millis();
            world.run();
            world.frontend_ready("9", "16");
            world.run_until(start + 10_000);
            assert_eq!(world.trace(), [(start, "2"), (start + 200, "4")], "after {steps} jobs");
            assert_eq!(world.ours("sectors"), sectors);
            let served = world.vbd.requests_mut().unwrap().volume().sectors();
            assert_eq!(served.0.to_string(), sectors);
            let counted = world.vbd.counters().unwrap().since;
            assert_eq!(world.now.since(counted), Duration::from_secs(10), "since it was attached");
            assert_eq!(world.machine.bound.values().copied().collect::<Vec<_>>(), [(5, 16)]);
            assert_eq!((world.machine.mapped.len(), world.watches.len()), (1, 1));
            if !lived {
                break;
            }
            assert!(steps < 39, "a life has fewer jobs");
        }
    }
}

#[test]
fn an_attach_that_overtakes_a_refusal_is_served() {
    let mut world = World::new();
    world.attach("nvme0n9", "w");
    while world.trace.is_empty() {
        assert!(world.step());
    }
    assert_eq!(world.trace(), [(0, "error")]);
    // Another one that is refused has its own reason.
    world.attach("nvme0n8", "w");
    while world.trace.len() == 1 {
        assert!(world.step());
    }
    assert_eq!(world.trace(), [(0, "error"); 2]);
    assert_eq!(world.nodes[ERRORS], "no volume named \"nvme0n8\"");
    world.attach("nvme0n1", "w");
    world.run();
    assert_eq!(world.trace(), [(0, "error"), (0, "error"), (0, "2")]);
}

#[test]
fn no_step_waits_for_events_of_our_own_writes() {
    let mut world = World { echo: false, ..World::new() }.connect();
    world.frontend_ready("9", "16");
    world.run_until(1000);
    assert_eq!(world.trace(), [(200, "2"), (600, "4")]);
    world.detach();
    world.set(FRONT, "state", "6");
    world.run_until(3000);
    world.assert_over();
}

#[test]
fn a_read_only_attach_is_not_written() {
    for (mode, status) in [("r", -1), ("w", 0)] {
        let mut world = World::new();
        world.attach("nvme0n1", mode);
        world.frontend_ready("8", "15");
        world.run_until(200);
        let mut front = Front::at(world.machine.granted[&(5, 8)], 0);
        front.submit(&entry(1, 1, 0, &[(7, 0, 0)]));
        let requests = world.vbd.requests_mut().unwrap();
        let admitted = requests.admit(Instant(0), 1, &mut started()).unwrap();
        let mut notified = false;
        requests.publish(|_| notified = true);
        assert_eq!(world.vbd.in_flight(), usize::from(status == 0));
        assert_eq!((admitted.maps, notified), (u16::from(status == 0), status != 0));
        assert_eq!(front.response().map(|(_, _, status)| status), (status != 0).then_some(status));
    }
}

#[test]
fn a_notice_while_looking_is_not_lost() {
    let mut world = World::new();
    world.attach("nvme0n1", "w");
    world.run_until(300);
    world.vbd.notice();
    assert!(world.step(), "our directory");
    let job = world.vbd.next_job(world.now).unwrap();
    assert_eq!(job.base.as_str(), FRONT);
    let (result, answers) = world.apply(&job);
    // The frontend is ready just after its directory was read.
    world.frontend_ready("8", "15");
    world.done(result, &answers);
    world.run();
    assert_eq!(world.ours("state"), "4");
}

#[test]
fn failures_of_xenstore_are_retried_with_growing_pauses() {
    // A quota is a reason to refuse a device only where its nodes and its watch are made.
    for error in [StoreError::Again, StoreError::Other, StoreError::Denied, StoreError::Quota] {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        world.errors = vec![error; 9];
        world.run();
        assert_eq!((world.jobs, world.vbd.deadline()), (1, Some(world.now + RETRY_FIRST)));
        let start = world.now;
        world.now = world.now + RETRY_FIRST;
        assert!(world.step(), "it is due");
        world.run_until(60_000);
        assert_eq!(world.trace()[0], (100 + 200 + 400 + 800 + 1600 + 3200 + 6400 * 3, "2"), "{start:?}");
        world.frontend_ready("8", "15");
        world.errors = vec![error];
        world.run_until(60_100);
        assert_eq!(world.ours("state"), "4", "the pause is short again");
    }
}

/// Leaves a world too little of something.
type UseUp = fn(&mut World);

#[test]
fn a_budget_that_is_used_up_refuses_the_attach_and_says_how_to_raise_it() {
    let cases: [(UseUp, &str, [&str; 2]); 4] = [
        (
            |world| world.machine.free_pages = PLAIN - 1,
            "memory: 24 KiB are needed for each device and 20 KiB are left; \
             raise memory= in platter's configuration",
            ["error", "removed"],
        ),
        (
            |world| world.machine.ports = 0,
            "event channels: none is left (EVTCHNOP_alloc_unbound returned -28); \
             raise max_event_channels= in platter's configuration",
            ["error", "removed"],
        ),
        (
            |world| world.watch_error = Some(StoreError::Quota),
            "xenstore watches: this domain's quota is used up; raise quota-maxwatch in oxenstored.conf, \
             or with C xenstored run xenstore-control quota set watches N",
            ["error", "removed"],
        ),
        (
            |world| world.most_nodes = world.nodes.len(),
            "xenstore nodes: this domain's quota is used up; raise quota-maxentity in oxenstored.conf, \
             or with C xenstored run xenstore-control quota set nodes N",
            // The reason is a node too: it finds room when the device's own are gone.
            ["removed", "error"],
        ),
    ];
    for (use_up, reason, trace) in cases {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        use_up(&mut world);
        world.run();
        assert_eq!(world.trace(), trace.map(|what| (0, what)));
        assert_eq!(world.nodes[ERRORS], reason);
        world.assert_over();
    }
}

#[test]
fn a_reason_that_finds_no_room_keeps_no_device() {
    let mut world = World::new();
    world.attach("nvme0n1", "w");
    while world.vbd.due() != Some(Errand::Task(Task::Offer)) {
        assert!(world.step());
    }
    // Whoever took the rest of the quota also takes what the device gives back.
    world.most_nodes = 0;
    world.run();
    assert_eq!(world.trace(), [(0, "removed")]);
    world.assert_over();
}

/// A device that was refused for want of nodes, with no node for the reason either.
fn refused_without_a_node() -> World {
    let mut world = World::new();
    world.attach("nvme0n1", "w");
    world.most_nodes = world.nodes.len();
    while world.vbd.due() != Some(Errand::Task(Task::RemoveRefused)) {
        assert!(world.step());
    }
    assert_eq!(world.trace(), []);
    world
}

#[test]
fn a_reason_that_waits_for_room_keeps_no_device_that_is_removed() {
    let mut world = refused_without_a_node();
    world.remove(HOME);
    world.remove(FRONT);
    world.run();
    world.assert_over();
}

#[test]
fn a_reason_that_waits_for_room_is_none_when_the_device_is_served_after_all() {
    // Looked at again, and attached anew.
    for anew in [false, true] {
        let mut world = refused_without_a_node();
        world.most_nodes = usize::MAX;
        if anew {
            world.attach("nvme0n1", "w")
        } else {
            world.vbd.notice()
        }
        world.run();
        assert_eq!(world.trace().last(), Some(&(0, "2")));
        world.detach();
        world.run_until(5000);
        world.assert_over();
    }
}

#[test]
fn what_was_reserved_when_it_was_offered_serves_every_connection() {
    let mut world = World::connected();
    assert_eq!((world.machine.taken_pages, world.machine.reserved.len()), (PLAIN, 0));
    // Others take what is left; starting again needs nothing of it.
    assert_eq!((world.machine.ports, world.machine.free_pages), (1, 0));
    for port in ["16", "15", "17", "16"] {
        world.set(FRONT, "state", "1");
        world.run();
        assert_eq!((world.machine.taken_pages, world.machine.reserved.len()), (PLAIN, 1));
        world.frontend_ready("9", port);
        let until = world.millis() + 10_000;
        world.run_until(until);
        let bound = usize::from(port != "17");
        assert_eq!((world.machine.bound.len(), world.machine.reserved.len()), (bound, 1 - bound));
        if bound == 0 {
            assert_eq!(world.ours("state"), "6", "a port that is not there for us");
        }
    }
    world.detach();
    world.set(FRONT, "state", "6");
    let until = world.millis() + 2000;
    world.run_until(until);
    world.assert_over();
}

#[test]
fn a_device_refused_for_want_of_nodes_is_detached_at_any_time() {
    for jobs in 0..8 {
        let mut world = World::new();
        world.attach("nvme0n1", "w");
        world.most_nodes = world.nodes.len();
        (0..jobs).for_each(|_| _ = world.step());
        if world.exists() {
            world.detach();
        }
        world.run_until(5_000);
        world.assert_over();
    }
}

#[test]
fn who_is_told_of_a_devices_ports_learns_of_each_change() {
    let mut world = World::new();
    world.attach("nvme0n1", "w");
    world.run();
    let mut seen = vec![world.vbd.changes()];
    for state in ["3", "1", "3"] {
        world.frontend_ready("8", "15");
        world.set(FRONT, "state", state);
        world.run_until(world.millis() + 1000);
        assert_eq!(world.vbd.ports().count(), usize::from(state == "3"));
        seen.push(world.vbd.changes());
    }
    assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
}

#[test]
fn a_frontend_that_closed_may_be_ready_again_without_starting_again() {
    for ring in ["8", "9"] {
        let mut world = World::connected();
        world.set(FRONT, "state", "6");
        world.run_until(1000);
        assert_eq!(world.ours("state"), "6");
        // mini-os and GRUB say where their ring is and that they are connected, whatever was before.
        world.frontend_ready(ring, "15");
        world.set(FRONT, "state", "4");
        world.run_until(3000);
        assert_eq!(world.ours("state"), "4", "ring {ring}");
    }
}

#[test]
fn a_frontend_that_was_given_up_must_say_something_new() {
    let mut world = World::connected();
    world.vbd.fault(FrontendFault::Rewound);
    world.run_until(1000);
    assert_eq!(world.ours("state"), "6");
    world.set(FRONT, "state", "4");
    world.run_until(3000);
    assert_eq!(world.ours("state"), "6", "the same ring would break again");
    world.frontend_ready("9", "15");
    world.run_until(5000);
    assert_eq!(world.ours("state"), "4");
}
