//! Requests whose segments are in a page of the guest's.

use super::*;
use crate::limits::INDIRECT_SLOTS;

fn full() -> Rig {
    Rig::with(Setup { full: true, volume: volume(512, 10_000), ..Setup::default() })
}

/// Pages for segments that are not in use.
fn free_pages(rig: &Rig) -> usize {
    rig.requests.means().segment_pages.len()
}

#[test]
fn requests_of_every_length_are_done_whole() {
    for count in [1, 2, 11, 12, 33, 34, 255, 256] {
        let mut rig = full();
        let segments = pages(count);
        rig.submit_indirect(WRITE, 77, 16, &segments);
        assert_eq!(rig.admit(), Admitted { requests: 1, copies: 1, maps: 0 });
        rig.issue(usize::MAX);
        let spans: List<_> = rig.held.iter().flat_map(|held| held.spans.clone()).collect();
        let expected: List<_> =
            segments.iter().map(|(gref, ..)| Span { bus: BusAddr(bus_of(*gref)), bytes: 4096 }).collect();
        assert_eq!(spans, expected, "{count} segments");
        let mut next = 16;
        for held in &rig.held {
            assert_eq!(held.work, Work::Write(Block(next)));
            next += held.spans.len() as u64 * 8;
        }
        rig.work();
        rig.settle();
        assert_eq!(rig.front().response(), Some((WRITE, 77, OKAY)), "with the operation within");
        assert_eq!(rig.requests.means().counters.write.sectors, u64::from(count) * 8);
        assert!(rig.mapped().is_empty());
        rig.close();
    }
}

#[test]
fn a_bad_segment_anywhere_fails_the_request_before_any_grant_is_asked_for() {
    let mut rig = full();
    for bad in [0, 1, 100, 254, 255] {
        for shape in [(1, 4), (1, 8)] {
            let mut segments = pages(256);
            (segments[bad].1, segments[bad].2) = if shape == (1, 4) { (5, 4) } else { shape };
            assert_eq!(rig.run_indirect(READ, 0, &segments), ERROR, "segment {bad}");
        }
    }
    assert!(rig.machine.asked.is_empty());
    assert_eq!(rig.requests.means().counters.read.errors, 10);
    assert_eq!(rig.run_indirect(READ, 0, &pages(256)), OKAY);
    rig.close();
}

#[test]
fn segments_are_those_that_were_copied_whatever_the_guest_writes_then() {
    let mut rig = full();
    let segments = pages(40);
    rig.submit_indirect(READ, 77, 0, &segments);
    rig.batch.start(GRANT_BATCH);
    assert_eq!(rig.try_admit(SLOTS), Ok(Admitted { requests: 1, copies: 1, maps: 0 }));
    let Batch { copies, maps, .. } = &mut rig.batch;
    rig.machine.copy(copies);
    let table = rig.machine.granted[&(GUEST.0, TABLE_GREF + 77)];
    table.fill(0xff);
    rig.requests.copied(rig.now, copies, maps);
    table.fill(0x03);
    rig.machine.map(maps);
    rig.requests.mapped(rig.now, maps);
    let asked: List<_> = rig.machine.asked.iter().map(|(gref, _)| *gref).collect();
    assert_eq!(asked, segments.iter().map(|(gref, ..)| *gref).collect::<List<_>>());
    rig.work();
    rig.settle();
    assert_eq!(rig.answer(), Some((77, OKAY)));
    rig.close();
}

#[test]
fn what_cannot_be_done_is_answered_and_gives_all_back() {
    let mut rig = full();
    assert_eq!(rig.run_indirect(READ, 10_000 - 12 * 8 + 1, &pages(12)), ERROR, "beyond the end");
    assert_eq!(rig.run_indirect(READ, u64::MAX, &pages(12)), ERROR);
    rig.front().submit(&indirect(Protocol::X86_64, READ, 77, 0, 12, 4711));
    assert_eq!(rig.end(READ), ERROR, "the page of segments is not granted");
    assert!(rig.machine.asked.is_empty());
    rig.machine.bad = [20].into();
    assert_eq!(rig.run_indirect(READ, 0, &pages(12)), ERROR, "a grant cannot be mapped");
    assert!(rig.mapped().is_empty() && rig.machine.asked.len() == 12);
    for (count, op) in [(0, READ), (257, READ), (u16::MAX, WRITE), (1, DISCARD), (1, 6)] {
        rig.front().submit(&indirect(Protocol::X86_64, op, 77, 0, count, TABLE_GREF));
        assert_eq!(rig.end(op), ERROR, "{count} segments, operation {op}");
    }
    assert_eq!(free_pages(&rig), INDIRECT_SLOTS);
    rig.close();
}

#[test]
fn a_device_without_pages_for_segments_takes_none() {
    let mut rig = Rig::new(volume(512, 1000), false);
    assert_eq!(rig.run_indirect(READ, 0, &pages(1)), UNSUPPORTED);
    assert_eq!(rig.run(READ, 0, &pages(1)), OKAY);
}

#[test]
fn a_request_waits_for_a_page_and_others_wait_behind_it() {
    let mut rig = full();
    let last = INDIRECT_SLOTS as u64;
    for id in 0..=last {
        rig.submit_indirect(READ, id, id * 8, &pages(1));
    }
    rig.submit(READ, last + 1, 8000, &pages(1));
    assert_eq!(usize::from(rig.admit().requests), INDIRECT_SLOTS);
    // What was taken off the ring is not read again.
    let taken = rig.front().req_prod.wrapping_sub(2);
    rig.front().claim(taken);
    rig.submit_indirect(WRITE, 99, 0, &[]);
    rig.submit(READ, last + 1, 8000, &pages(1));
    assert!(!rig.requests.backlog() && !rig.requests.arm(), "there is no page");
    assert_eq!(rig.admit().requests, 0);
    rig.issue(1);
    rig.complete(3, true);
    assert!(!rig.requests.backlog());
    rig.settle();
    assert_eq!(rig.answer(), Some((3, OKAY)));
    assert!(rig.requests.backlog());
    assert_eq!(rig.admit(), Admitted { requests: 2, copies: 1, maps: 1 });
    rig.issue(1);
    let works = rig.works();
    // The direct one has its segments first; both come from the ring in order.
    assert_eq!(works[works.len() - 2..], [Work::Read(Block(8000)), Work::Read(Block(last * 8))]);
    rig.work();
    rig.settle();
    assert_eq!((rig.requests.in_flight(), free_pages(&rig)), (0, INDIRECT_SLOTS));
    rig.close();
}

#[test]
fn a_request_waits_for_room_in_the_batch() {
    let mut rig = full();
    rig.submit_indirect(READ, 1, 0, &pages(150));
    rig.submit_indirect(READ, 2, 8, &pages(101));
    rig.submit(READ, 3, 16, &pages(1));
    assert_eq!(rig.admit_into(250), Admitted { requests: 1, copies: 1, maps: 0 });
    assert!(rig.requests.backlog(), "it needs no event");
    assert_eq!(rig.admit_into(100).requests, 0);
    assert!(rig.requests.backlog());
    // The last one takes what a direct request may need, besides what was promised.
    assert_eq!(rig.admit_into(101 + SEGMENTS - 1).requests, 1);
    assert_eq!(rig.admit_into(SEGMENTS).requests, 1);
    rig.work();
    rig.settle();
    assert_eq!(rig.requests.in_flight(), 0);
    rig.close();
}

#[test]
fn a_device_maps_no_more_than_its_share_and_waits_for_its_own_requests_alone() {
    let mut rig =
        Rig::with(Setup { full: true, volume: volume(512, 10_000), mappings: 256, ..Setup::default() });
    rig.submit(READ, 1, 0, &pages(11));
    rig.submit_indirect(READ, 2, 0, &pages(246));
    rig.submit(READ, 3, 0, &pages(1));
    assert_eq!((rig.admit().requests, rig.requests.held), (1, 11));
    assert!(!rig.requests.backlog() && !rig.requests.arm(), "nobody stays awake for it");
    rig.work();
    rig.settle();
    assert!(rig.requests.backlog(), "it is looked at when the other is answered");
    assert_eq!((rig.admit().requests, rig.requests.held), (1, 246));
    assert!(!rig.requests.backlog(), "any direct request may need more than is left");
    rig.work();
    rig.settle();
    assert_eq!((rig.admit().requests, rig.requests.held), (1, 1));
    rig.work();
    rig.settle();
    rig.close();
}

#[test]
fn a_request_that_waits_is_not_answered_at_the_end() {
    let mut rig = full();
    rig.submit_indirect(READ, 1, 0, &pages(256));
    assert_eq!(rig.admit_into(255).requests, 0);
    assert!(rig.requests.backlog());
    rig.requests.close();
    assert!(!rig.requests.backlog() && rig.requests.is_drained());
    assert_eq!(rig.admit().requests, 0);
    rig.publish();
    assert_eq!(rig.answer(), None);
    rig.close();
}

#[test]
fn a_device_counts_what_it_added_to_a_batch_and_not_what_was_there() {
    let mut rig = full();
    for id in [0, 2] {
        rig.submit(READ, id, 0, &[(1, 0, 7)]);
        rig.submit_indirect(READ, id + 1, 0, &pages(2));
    }
    rig.batch.start(GRANT_BATCH);
    let admitted = [2; 2].map(|limit| rig.try_admit(limit));
    assert_eq!(admitted, [Ok(Admitted { requests: 2, copies: 1, maps: 1 }); 2]);
}

#[test]
fn promises_of_several_requests_add_up() {
    let mut rig = full();
    for id in 0..4 {
        rig.submit_indirect(READ, id, 0, &pages(GRANT_BATCH as u32 / 2));
    }
    assert_eq!(rig.admit().requests, 2, "as many as there are maps in a batch");
    assert_eq!(rig.batch.maps.len(), GRANT_BATCH);
    assert_eq!(rig.admit().requests, 2);
    rig.work();
    // As many pages go back at once as a batch holds.
    rig.settle();
    assert_eq!(rig.requests.in_flight(), 2);
    rig.settle();
    rig.close();
}

#[test]
fn a_page_of_segments_gives_nothing_of_the_request_before_back() {
    let setup = || Setup { full: true, volume: volume(512, 10_000), ..Setup::default() };
    for persistent in [false, true] {
        let mut rig = Rig::with(Setup { persistent, ..setup() });
        assert_eq!(rig.run_indirect(READ, 0, &pages(256)), OKAY);
        // The same page comes next, and the copy into it fails.
        rig.front().submit(&indirect(Protocol::X86_64, READ, 77, 0, 256, 4711));
        assert_eq!(rig.end(READ), ERROR);
        rig.close();
    }
}
