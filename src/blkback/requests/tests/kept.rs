//! Pages that stay mapped between requests.

use super::*;
use crate::limits::KEPT;
use std::vec;

fn persistent() -> Rig {
    Rig::with(Setup { full: true, persistent: true, ..Setup::default() })
}

fn kept(rig: &Rig) -> usize {
    rig.requests.kept()
}

#[test]
fn a_page_is_mapped_once_for_reads_and_writes() {
    let mut rig = persistent();
    assert_eq!(rig.run(WRITE, 0, &[(1, 0, 7), (5, 0, 7)]), OKAY);
    let both = vec![(1, DeviceAccess::Writes), (5, DeviceAccess::Writes)];
    assert_eq!(rig.machine.asked, both);
    assert_eq!((rig.mapped(), kept(&rig)), (vec![1, 5], 2));
    rig.submit(READ, 1, 8, &[(5, 2, 3), (1, 0, 0)]);
    assert_eq!(rig.admit(), Admitted { requests: 1, copies: 0, maps: 0 });
    rig.issue(SEGMENTS);
    let span = |gref, offset, bytes| Span { bus: BusAddr(bus_of(gref) + offset), bytes };
    assert_eq!(rig.held[0].spans, [span(5, 1024, 1024), span(1, 0, 512)]);
    rig.work();
    rig.settle();
    assert_eq!(rig.answer(), Some((1, OKAY)));
    assert_eq!(rig.machine.asked, both);
    assert_eq!(rig.run_indirect(WRITE, 0, &[(1, 0, 7), (5, 0, 7), (9, 0, 7)]), OKAY);
    assert_eq!((rig.machine.asked.len(), rig.mapped()), (3, vec![1, 5, 9]));
    rig.close();
}

#[test]
fn nothing_is_kept_unless_the_frontend_wants_it() {
    let mut rig = persistent();
    rig.requests.open(false);
    assert_eq!(rig.run(WRITE, 0, &[(1, 0, 7)]), OKAY);
    assert_eq!((rig.machine.asked.clone(), kept(&rig)), (vec![(1, DeviceAccess::Reads)], 0));
    assert!(rig.mapped().is_empty());
    // Nor where there is no table.
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.requests.open(true);
    assert_eq!(rig.run(WRITE, 0, &[(1, 0, 7)]), OKAY);
    assert_eq!((rig.machine.asked.clone(), rig.mapped()), (vec![(1, DeviceAccess::Reads)], vec![]));
}

#[test]
fn a_page_named_twice_at_first_is_kept_once() {
    for apart in [false, true] {
        let mut rig = persistent();
        rig.submit(READ, 1, 0, &[(1, 0, 3), (1, 4, 7)]);
        if apart {
            rig.submit(READ, 2, 0, &[(1, 0, 3)]);
        }
        rig.admit();
        assert_eq!((rig.mapped().len(), kept(&rig)), (if apart { 3 } else { 2 }, 1));
        rig.work();
        rig.settle();
        assert_eq!((rig.mapped(), kept(&rig), rig.requests.held), (vec![1], 1, 0));
        rig.close();
    }
}

#[test]
fn only_a_request_with_pages_to_be_given_back_waits_and_those_behind_it() {
    let mut rig = persistent();
    assert_eq!(rig.run(READ, 0, &[(1, 0, 7)]), OKAY);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    rig.submit(READ, 2, 0, &[(2, 0, 3), (2, 4, 7)]);
    rig.admit();
    rig.submit(READ, 3, 0, &[(1, 0, 7)]);
    rig.admit();
    rig.work();
    let mut unmaps = Vec::<_, GRANT_BATCH>::new();
    assert!(rig.requests.reap(rig.now, &mut unmaps));
    rig.publish();
    assert_eq!((unmaps.len(), rig.answer(), rig.answer()), (1, Some((1, OKAY)), None));
    rig.machine.unmap(&unmaps);
    rig.requests.answer(rig.now);
    rig.publish();
    assert_eq!([(); 3].map(|()| rig.answer()), [Some((2, OKAY)), Some((3, OKAY)), None]);
    rig.close();
}

#[test]
fn a_bad_grant_leaves_the_others_kept_and_unused() {
    for bad in 0..4 {
        let mut rig = persistent();
        assert_eq!(rig.run(READ, 0, &[(0, 0, 7)]), OKAY);
        rig.machine.bad = [bad].into();
        let status = rig.run(READ, 0, &[(0, 0, 7), (1, 0, 7), (2, 0, 7), (1, 0, 7), (3, 0, 7)]);
        assert_eq!(status, if bad == 0 { OKAY } else { ERROR }, "0 is mapped already");
        let expected: List<u32> = (0..4).filter(|gref| *gref != bad || bad == 0).collect();
        assert_eq!(rig.mapped(), expected);
        rig.close();
    }
}

#[test]
fn a_full_table_makes_room_of_pages_that_are_not_in_use() {
    let mut rig = persistent();
    rig.submit(READ, 1, 0, &[(0, 0, 7)]);
    rig.admit();
    rig.issue(SEGMENTS);
    let mut most = 0;
    for round in 0..2 * KEPT as u32 / 8 {
        let segments: List<Seg> = (0..8).map(|i| (1 + round * 8 + i, 0, 7)).collect();
        rig.submit(READ, 2, 0, &segments);
        rig.admit();
        rig.issue(SEGMENTS);
        rig.complete(1, true);
        rig.settle();
        assert_eq!(rig.answer(), Some((2, OKAY)));
        most = most.max(kept(&rig));
        assert_eq!(rig.mapped().len(), kept(&rig));
        assert!(rig.mapped().contains(&0), "what is in use stays");
    }
    assert!(most > KEPT - 8 && kept(&rig) > KEPT / 2);
    // Those used last are there.
    let before = rig.machine.asked.len();
    rig.submit(READ, 3, 0, &[(2 * KEPT as u32, 0, 7)]);
    rig.admit();
    assert_eq!(rig.machine.asked.len(), before);
    rig.work();
    rig.settle();
    rig.close();
}
