//! Barriers: nothing overtakes them either way.

use super::*;

/// The disk's work of a barrier with data at a block.
fn through(block: u64) -> Work {
    Work::WriteThrough(Block(block))
}

#[test]
fn a_barrier_waits_flushes_and_writes_through_while_nothing_is_taken() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    rig.submit(WRITE, 2, 8, &[(3, 0, 7)]);
    rig.submit(BARRIER, 3, 16, &[(5, 0, 7)]);
    rig.submit(WRITE, 4, 24, &[(7, 0, 7)]);
    assert_eq!(rig.admit().requests, 3, "nothing behind the barrier");
    assert_eq!(rig.machine.asked[2], (5, DeviceAccess::Reads));
    rig.issue(SEGMENTS);
    assert_eq!(rig.works(), [Work::Read(Block(0)), Work::Write(Block(8))]);
    rig.complete(0, true);
    rig.complete(0, true);
    assert_eq!(rig.next(), None, "not before what came first is answered");
    rig.settle();
    assert_eq!((rig.answer(), rig.answer()), (Some((1, OKAY)), Some((2, OKAY))));
    rig.issue(SEGMENTS);
    assert_eq!(rig.works(), [Work::Flush]);
    rig.complete(0, true);
    rig.issue(SEGMENTS);
    assert_eq!(rig.works(), [through(16)]);
    assert!(!rig.requests.backlog() && !rig.requests.arm() && rig.admit().requests == 0);
    rig.complete(0, true);
    assert!(!rig.requests.backlog());
    rig.settle();
    assert_eq!(rig.front().response(), Some((BARRIER, 3, OKAY)));
    assert!(rig.requests.backlog(), "nobody else would tell");
    assert_eq!(rig.admit().requests, 1);
    rig.work();
    rig.settle();
    assert_eq!(rig.answer(), Some((4, OKAY)));
    let flush = &rig.requests.means().counters.flush;
    assert_eq!((flush.requests, flush.sectors), (1, 8));
    rig.close();
}

#[test]
fn a_barrier_without_data_is_a_flush_in_order() {
    let mut rig = Rig::new(volume(512, 1000), true);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    rig.submit(BARRIER, 2, u64::MAX, &[]);
    rig.submit(BARRIER, 3, u64::MAX, &[]);
    for (id, work) in [(1, Work::Read(Block(0))), (2, Work::Flush), (3, Work::Flush)] {
        rig.admit();
        rig.issue(SEGMENTS);
        assert_eq!(rig.works(), [work]);
        rig.complete(0, true);
        rig.settle();
        assert_eq!((rig.answer(), rig.answer()), (Some((id, OKAY)), None));
    }
    rig.close();
}

#[test]
fn a_barrier_without_its_flush_is_not_written() {
    let mut rig = Rig::new(volume(512, 1000), false);
    for steps in [1, 2] {
        rig.submit(BARRIER, 1, 0, &[(1, 0, 7)]);
        rig.submit(READ, 2, 0, &[(1, 0, 7)]);
        rig.admit();
        for step in 1..=steps {
            rig.issue(SEGMENTS);
            assert_eq!(rig.works().len(), 1);
            rig.complete(0, step != steps);
        }
        assert_eq!(rig.next(), None);
        rig.settle();
        assert_eq!((rig.answer(), rig.answer()), (Some((1, ERROR)), None));
        rig.admit();
        rig.work();
        rig.settle();
        assert_eq!(rig.answer(), Some((2, OKAY)));
    }
    rig.close();
}

#[test]
fn a_barrier_that_cannot_be_done_holds_nobody_up() {
    let mut rig = Rig::full();
    rig.machine.bad = [66].into();
    let ungranted = indirect(Protocol::X86_64, BARRIER, 7, 0, 12, 4711);
    let cases = [
        entry(BARRIER, 7, 0, &[(66, 0, 7)]),
        entry(BARRIER, 7, 0, &[(2, 0, 7), (66, 0, 7)]),
        entry(BARRIER, 7, 1000, &[(2, 0, 7)]),
        entry(BARRIER, 7, 0, &[(2, 5, 4)]),
        ungranted,
    ];
    for case in cases {
        rig.submit(READ, 1, 0, &[(1, 0, 7)]);
        rig.front().submit(&case);
        rig.submit(READ, 2, 0, &[(1, 0, 7)]);
        for _ in 0..3 {
            rig.admit();
            rig.work();
            rig.settle();
        }
        let mut answers: List<_> = core::iter::from_fn(|| rig.answer()).collect();
        answers.sort_unstable();
        assert_eq!(answers, [(1, OKAY), (2, OKAY), (7, ERROR)], "{case:?}");
    }
    rig.close();
}

#[test]
fn a_barrier_whose_data_the_disk_cannot_express_ends() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(BARRIER, 1, 0, &[(1, 0, 7)]);
    rig.submit(READ, 2, 0, &[(1, 0, 7)]);
    rig.admit();
    rig.issue(SEGMENTS);
    rig.complete(0, true);
    rig.requests.refused();
    rig.settle();
    assert_eq!(rig.answer(), Some((1, ERROR)));
    assert!(rig.requests.backlog());
    rig.admit();
    rig.work();
    rig.settle();
    assert_eq!(rig.answer(), Some((2, OKAY)));
    rig.close();
}

#[test]
fn a_barrier_holds_every_ring() {
    let mut rig = Rig::with(Setup { rings: 2, full: true, ..Setup::default() });
    rig.fronts[1].submit(&entry(READ, 1, 0, &[(1, 0, 7)]));
    rig.fronts[0].submit(&entry(READ, 2, 0, &[(3, 0, 7)]));
    rig.admit();
    rig.fronts[0].submit(&entry(BARRIER, 3, 8, &[(5, 0, 7)]));
    rig.fronts[1].submit(&entry(READ, 4, 0, &[(1, 0, 7)]));
    // The ring whose turn it is may come first.
    rig.admit();
    let before = rig.requests.in_flight();
    rig.fronts[1].submit(&entry(READ, 5, 0, &[(1, 0, 7)]));
    assert_eq!(rig.admit().requests, 0);
    rig.issue(SEGMENTS);
    assert_eq!(rig.works().len(), before - 1, "all but the barrier");
    while rig.held.len() > 1 {
        rig.complete(0, true);
        rig.settle();
        assert_eq!(rig.next(), None);
    }
    rig.complete(0, true);
    rig.settle();
    assert_eq!(rig.next(), Some(Work::Flush));
    rig.work();
    rig.settle();
    rig.admit();
    rig.work();
    rig.settle();
    rig.close();
}
