//! Several rings of one device.

use super::*;

fn rings(rings: usize) -> Rig {
    Rig::with(Setup { rings, full: true, ..Setup::default() })
}

/// The request `id` on a ring.
fn read_on(rig: &mut Rig, ring: usize, id: u64) -> bool {
    rig.fronts[ring].submit(&entry(READ, id, 0, &[(1, 0, 7)]))
}

#[test]
fn rings_take_turns_and_each_gets_its_own_answers() {
    let mut rig = rings(16);
    for ring in 0..16 {
        (0..4).for_each(|i| _ = read_on(&mut rig, ring, ring as u64 * 10 + i));
    }
    for turn in 0..4 {
        rig.batch.start(GRANT_BATCH);
        let admitted = rig.try_admit(16).unwrap();
        rig.call(admitted);
        rig.work();
        rig.settle();
        for ring in 0..16 {
            let answers: List<_> = core::iter::from_fn(|| rig.fronts[ring].response()).collect();
            assert_eq!(answers, [(READ, ring as u64 * 10 + turn, OKAY)], "ring {ring}");
        }
    }
    // Each was told of its first answer, for which alone it asked.
    let ports: List<_> = rig.requests.means().links.iter().map(|link| link.port.0).collect();
    assert_eq!(rig.machine.notified, ports);
    assert!((0..16).all(|ring| rig.requests.means().links[ring].port.0 == ports[ring]));
    rig.close();
}

#[test]
fn a_busy_ring_leaves_the_others_their_turns() {
    let mut rig = rings(3);
    (0..32).for_each(|id| _ = read_on(&mut rig, 0, id));
    (0..2).for_each(|id| _ = read_on(&mut rig, 2, 100 + id));
    rig.batch.start(GRANT_BATCH);
    let admitted = rig.try_admit(4).unwrap();
    rig.call(admitted);
    rig.work();
    rig.settle();
    let mut count = |ring: usize| core::iter::from_fn(|| rig.fronts[ring].response()).count();
    assert_eq!([count(0), count(1), count(2)], [2, 0, 2]);
}

#[test]
fn a_device_taken_to_the_last_slot_still_announces_the_next_request() {
    let mut rig = rings(3);
    for ring in 0..3 {
        (0..32).for_each(|id| _ = read_on(&mut rig, ring, id));
    }
    assert_eq!(usize::from(rig.admit().requests), SLOTS);
    assert!(!rig.requests.arm() && !rig.requests.backlog() && rig.admit().requests == 0);
    rig.issue(SEGMENTS);
    rig.complete(0, true);
    rig.settle();
    assert!(rig.requests.backlog(), "there is a slot");
    assert_eq!((rig.admit().requests, rig.requests.in_flight()), (1, SLOTS));
    while rig.requests.backlog() || rig.requests.in_flight() > 0 {
        rig.admit();
        rig.work();
        rig.settle();
    }
    assert!(!rig.requests.arm());
    let responses = |front: &mut Front| core::iter::from_fn(|| front.response()).count();
    assert!(rig.fronts.iter_mut().all(|front| responses(front) == 32));
    assert!((0..3).all(|ring| read_on(&mut rig, ring, 99)), "each ring tells");
    rig.admit();
    rig.work();
    rig.settle();
    rig.close();
}

#[test]
fn arming_looks_at_every_ring_again() {
    for ring in 0..3 {
        let mut rig = rings(3);
        rig.admit();
        read_on(&mut rig, ring, 1);
        assert!(rig.requests.arm(), "ring {ring}");
        assert_eq!(rig.admit().requests, 1);
        assert!(!rig.requests.arm());
    }
}

#[test]
fn one_broken_ring_fails_the_device_however_busy_the_others_are() {
    for broken in 0..3 {
        let mut rig = rings(3);
        for ring in 0..3 {
            (0..32).for_each(|id| _ = read_on(&mut rig, ring, id));
        }
        let prod = rig.fronts[broken].req_prod;
        rig.fronts[broken].claim(prod.wrapping_add(1));
        rig.batch.start(GRANT_BATCH);
        let fault = FrontendFault::Overrun { claimed: 33, entries: 32 };
        match rig.try_admit(8) {
            Ok(admitted) => {
                assert!(usize::from(admitted.requests) == broken, "those of the rings before it");
                rig.call(admitted);
                rig.batch.start(GRANT_BATCH);
                assert_eq!(rig.try_admit(8), Err(fault));
            }
            Err(said) => assert_eq!((said, broken), (fault, 0)),
        }
    }
}

#[test]
fn a_ring_that_was_not_looked_at_for_lack_of_room_waits_for_no_other_event() {
    let mut rig = Rig::new(volume(512, 1000), false);
    assert!(rig.admit().requests == 0 && !rig.requests.arm());
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    assert_eq!(rig.admit_into(SEGMENTS - 1).requests, 0);
    assert!(rig.requests.backlog(), "its event is used up");
    assert_eq!(rig.admit().requests, 1);
    rig.work();
    rig.settle();
    assert_eq!(rig.answer(), Some((1, OKAY)));
    rig.close();
}

#[test]
fn who_connects_again_is_served_whatever_became_of_the_connection_before() {
    let mut rig = rings(1);
    rig.requests.close();
    rig.requests.abandon();
    rig.requests.open(false);
    assert_eq!(rig.run(READ, 0, &[(1, 0, 7)]), OKAY);
    rig.close();
}

#[test]
fn of_what_is_abandoned_only_that_is_waited_for_which_the_disk_has() {
    let mut rig = rings(1);
    for id in 0..3 {
        rig.submit(READ, id, 8 * id, &[(1 + id as u32, 0, 7)]);
    }
    assert_eq!(rig.admit().requests, 3);
    rig.issue_some(1, 1);
    rig.requests.close();
    rig.requests.abandon();
    assert_eq!(rig.next(), None);
    rig.settle();
    assert_eq!((rig.requests.in_flight(), rig.requests.commands()), (1, 1));
    rig.work();
    rig.settle();
    assert!(rig.requests.is_drained());
    rig.close();
}
