//! Requests whose segments are in the ring, and what all requests have in common.

use super::*;
use crate::hal::{GrantMap, GrantMapping};
use crate::units::GrantHandle;

#[test]
fn reads_writes_and_flushes_reach_the_disk_as_asked() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 100, &[(1, 2, 7), (9, 0, 0)]);
    rig.submit(WRITE, 2, 999, &[(3, 7, 7)]);
    rig.submit(FLUSH, 3, u64::MAX, &[]);
    rig.admit();
    use DeviceAccess::{Reads, Writes};
    assert_eq!(rig.machine.asked, [(1, Writes), (9, Writes), (3, Reads)]);
    rig.issue(SEGMENTS);
    let span = |gref, offset, bytes| Span { bus: BusAddr(bus_of(gref) + offset), bytes };
    let expected = [
        (Work::Flush, List::new()),
        (Work::Read(Block(100)), [span(1, 1024, 3072), span(9, 0, 512)].to_vec()),
        (Work::Write(Block(999)), [span(3, 3584, 512)].to_vec()),
    ];
    let held: List<_> = rig.held.iter().map(|held| (held.work, held.spans.clone())).collect();
    assert_eq!(held, expected);
    for id in [2, 1, 3] {
        let at = rig.held.iter().position(|held| u64::from(held.slot) == id - 1).unwrap();
        rig.complete(at, true);
        rig.settle();
        assert_eq!(rig.answer(), Some((id, OKAY)));
    }
    let counters = &rig.requests.means().counters;
    assert_eq!((counters.read.requests, counters.read.sectors), (1, 7));
    assert_eq!((counters.write.requests, counters.write.sectors), (1, 1));
    assert_eq!((counters.flush.requests, counters.rejected), (1, 0));
}

#[test]
fn bad_requests_are_answered_and_touch_nothing() {
    let mut rig = Rig::new(volume(4096, 100), false);
    let full = [(1, 0, 7); 11];
    for (operation, sector, segments, status) in [
        (READ, 0, &[][..], ERROR),
        (WRITE, 0, &[], ERROR),
        (READ, 0, &[(1, 5, 4)], ERROR),
        (WRITE, 0, &[(1, 0, 7), (1, 0, 8)], ERROR),
        (READ, 800, &[(1, 0, 7)], ERROR),
        (READ, 720, &full, ERROR),
        (WRITE, u64::MAX - 7, &full, ERROR),
        (READ, 4, &[(1, 0, 7)], ERROR),
        (WRITE, 8, &[(1, 0, 6)], ERROR),
        (FLUSH, 800, &[(1, 0, 7)], ERROR),
        (BARRIER, 800, &[(1, 0, 7)], ERROR),
        (4, 0, &full, UNSUPPORTED),
        (DISCARD, 0, &[], UNSUPPORTED),
        (255, 0, &[], UNSUPPORTED),
    ] {
        assert_eq!(rig.run(operation, sector, segments), status, "{operation} {sector} {segments:?}");
    }
    assert!(rig.machine.asked.is_empty(), "no grant was asked for");
    assert_eq!(rig.requests.means().counters.rejected, 14);
    assert_eq!(rig.run(READ, 712, &full), OKAY, "the last that fits");
}

#[test]
fn a_read_only_device_is_not_written() {
    let mut rig = Rig::new(volume(512, 100), true);
    assert_eq!(rig.run(WRITE, 0, &[(1, 0, 0)]), ERROR);
    assert_eq!(rig.run(FLUSH, 0, &[(1, 0, 0)]), ERROR);
    assert!(rig.machine.asked.is_empty());
    assert_eq!(rig.run(FLUSH, 0, &[]), OKAY);
    assert_eq!(rig.run(READ, 0, &[(1, 0, 0)]), OKAY);
}

#[test]
fn one_bad_grant_fails_the_request_and_the_others_go_back() {
    let segments: List<_> = (0..11).map(|gref| (gref, 0, 7)).collect();
    for count in 1..=11 {
        for position in 0..count {
            let mut rig = Rig::new(volume(512, 1000), false);
            rig.machine.bad = [u32::try_from(position).unwrap()].into();
            rig.submit(READ, 1, 0, &segments[..count]);
            rig.submit(READ, 2, 0, &[(20, 0, 7)]);
            rig.admit();
            assert_eq!(rig.mapped().len(), count);
            rig.issue(SEGMENTS);
            assert_eq!(rig.held.len(), 1, "only the good request is issued");
            rig.settle();
            assert_eq!(rig.front().response(), Some((READ, 1, ERROR)));
            assert_eq!(rig.mapped(), [20]);
            rig.complete(0, true);
            rig.settle();
            assert_eq!(rig.front().response(), Some((READ, 2, OKAY)));
        }
    }
}

#[test]
fn spans_that_meet_inside_a_page_are_one() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 1), (1, 2, 3), (1, 4, 7), (2, 0, 3), (2, 4, 4), (2, 6, 7), (2, 0, 0)]);
    rig.admit();
    rig.issue(SEGMENTS);
    let spans: List<_> = rig.held[0].spans.iter().map(|span| (span.bus.0, span.bytes)).collect();
    let (one, two) = (bus_of(1), bus_of(2));
    assert_eq!(spans, [(one, 4096), (two, 2560), (two + 3072, 1024), (two, 512)]);
}

#[test]
fn a_request_is_issued_in_as_many_parts_as_the_disk_needs() {
    let mut rig = Rig::new(volume(1024, 1000), false);
    rig.submit(WRITE, 1, 200, &pages(11));
    rig.admit();
    rig.issue(4);
    let parts: List<_> = rig.held.iter().map(|held| (held.work, held.spans.len())).collect();
    let at = |block| Work::Write(Block(block));
    assert_eq!(parts, [(at(100), 4), (at(116), 4), (at(132), 3)]);
    for (at, ok) in [(1, true), (1, false), (0, true)] {
        rig.settle();
        assert_eq!(rig.front().response(), None, "parts are outstanding");
        rig.complete(at, ok);
    }
    rig.settle();
    assert_eq!(rig.front().response(), Some((WRITE, 1, ERROR)), "one part failed");
    let write = &rig.requests.means().counters.write;
    assert_eq!((write.requests, write.sectors, write.errors), (1, 0, 1));
    assert_eq!(write.took, 3 * COMMAND_TIME, "from the ring to the answer");
}

#[test]
fn parts_may_complete_before_the_rest_is_issued() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7), (3, 0, 7)]);
    rig.admit();
    rig.requests.issued(Issued::Data(Part { segments: 1, bytes: 4096 }));
    rig.requests.completed(0, true);
    rig.settle();
    assert_eq!(rig.front().response(), None);
    assert_eq!(rig.next(), Some(Work::Read(Block(8))));
    rig.requests.issued(Issued::Data(Part { segments: 2, bytes: 4096 }));
    assert_eq!(rig.next(), None);
    rig.requests.completed(0, true);
    rig.settle();
    assert_eq!(rig.front().response(), Some((READ, 1, OKAY)));
}

#[test]
fn what_the_disk_cannot_express_fails_after_what_was_issued() {
    for issued in [0, 1] {
        let mut rig = Rig::new(volume(512, 1000), false);
        rig.submit(READ, 1, 0, &[(1, 0, 7), (3, 0, 7)]);
        rig.admit();
        if issued == 1 {
            rig.requests.issued(Issued::Data(Part { segments: 1, bytes: 4096 }));
        }
        rig.requests.refused();
        assert_eq!(rig.next(), None);
        if issued == 1 {
            rig.settle();
            assert_eq!(rig.front().response(), None, "the disk still has a part");
            rig.requests.completed(0, true);
        }
        rig.settle();
        assert_eq!(rig.front().response(), Some((READ, 1, ERROR)));
        assert!(rig.mapped().is_empty());
    }
}

#[test]
fn data_that_comes_with_a_flush_is_written_after_it() {
    for ok in [true, false] {
        let mut rig = Rig::new(volume(512, 1000), false);
        rig.submit(FLUSH, 1, 50, &[(1, 0, 7)]);
        rig.admit();
        assert_eq!(rig.machine.asked, [(1, DeviceAccess::Reads)]);
        rig.issue(SEGMENTS);
        assert_eq!(rig.works(), [Work::Flush]);
        rig.complete(0, ok);
        rig.issue(SEGMENTS);
        if ok {
            assert_eq!(rig.works(), [Work::Write(Block(50))]);
            rig.settle();
            assert_eq!(rig.front().response(), None);
            rig.complete(0, true);
        }
        assert!(rig.held.is_empty(), "without the flush the data is not written");
        rig.settle();
        assert_eq!(rig.front().response(), Some((FLUSH, 1, if ok { OKAY } else { ERROR })));
    }
}

#[test]
fn a_frontend_that_never_stops_gets_its_share_only() {
    let mut rig = Rig::new(volume(512, 1000), false);
    // All entries are bad: each is answered at once, which makes room for the next claim.
    rig.front().header().write(64, &[0xff; 4096 - 64]);
    for _ in 0..100 {
        let prod = rig.front().req_prod;
        rig.front().claim(prod.wrapping_add(32));
        rig.batch.start(GRANT_BATCH);
        assert_eq!(rig.try_admit(10), Ok(Admitted { requests: 10, copies: 0, maps: 0 }));
        assert!(rig.requests.backlog());
        rig.front().claim(prod.wrapping_add(10));
    }
    assert_eq!(rig.requests.means().counters.rejected, 1000);
}

#[test]
fn nothing_is_taken_without_room_for_it() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    assert_eq!(rig.admit_into(SEGMENTS - 1).requests, 0);
    assert!(rig.requests.arm() && rig.requests.in_flight() == 0);
    assert_eq!(rig.admit_into(SEGMENTS), Admitted { requests: 1, copies: 0, maps: 1 });
    // Others have taken the room since.
    rig.submit(READ, 2, 0, &[(1, 0, 7)]);
    rig.batch.start(usize::MAX);
    let filler = GrantMap::new(DomId(1), GrantRef(1), DeviceAccess::Reads);
    rig.batch.maps.resize(GRANT_BATCH - SEGMENTS + 1, filler).unwrap();
    assert_eq!(rig.try_admit(SLOTS).unwrap().requests, 0);
    rig.batch.maps.truncate(GRANT_BATCH - SEGMENTS);
    assert_eq!(rig.try_admit(SLOTS).unwrap().requests, 1);
}

#[test]
fn an_event_without_room_is_not_lost() {
    let mut rig = Rig::new(volume(512, 1000), false);
    assert!(rig.admit().requests == 0 && !rig.requests.arm());
    assert!(rig.front().submit(&entry(READ, 1, 0, &[(1, 0, 7)])));
    assert_eq!(rig.admit_into(0).requests, 0);
    assert!(rig.requests.arm(), "it is seen again before anybody sleeps");
    assert_eq!(rig.admit().requests, 1);
}

#[test]
fn an_unmap_batch_is_filled_with_whole_requests() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &pages(11));
    rig.submit(READ, 2, 0, &pages(3));
    rig.admit();
    rig.issue(SEGMENTS);
    rig.complete(0, true);
    rig.complete(0, true);
    let mut unmaps = Vec::<_, GRANT_BATCH>::new();
    let filler = GrantMapping { handle: GrantHandle(0), bus: BusAddr(0) };
    unmaps.resize(GRANT_BATCH - 13, filler).unwrap();
    assert!(rig.requests.reap(rig.now, &mut unmaps));
    assert_eq!(unmaps.len(), GRANT_BATCH - 2);
    rig.requests.answer(rig.now);
    assert_eq!(rig.requests.in_flight(), 1);
    let mut unmaps = Vec::<_, GRANT_BATCH>::new();
    assert!(rig.requests.reap(rig.now, &mut unmaps));
    rig.requests.answer(rig.now);
    assert!((unmaps.len(), rig.requests.in_flight()) == (3, 0) && !rig.requests.reap(rig.now, &mut unmaps));
}

#[test]
fn a_broken_ring_says_so_after_the_results_of_what_it_gave_before() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    rig.admit();
    let prod = rig.front().req_prod;
    rig.front().claim(prod.wrapping_add(33));
    rig.batch.start(GRANT_BATCH);
    assert_eq!(rig.try_admit(SLOTS), Err(FrontendFault::Overrun { claimed: 34, entries: 32 }));
    rig.work();
    rig.settle();
    assert_eq!(rig.front().response(), Some((READ, 1, OKAY)));
    assert!(!rig.requests.is_drained(), "it is open");
    rig.requests.close();
    assert_eq!(rig.try_admit(SLOTS).map(|admitted| admitted.requests), Ok(0));
    assert!(!rig.requests.backlog() && !rig.requests.arm() && rig.requests.is_drained());
    rig.close();
}

#[test]
fn a_closed_device_is_drained_when_all_is_answered_and_asks_for_no_event() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    rig.admit();
    rig.requests.close();
    assert!(!rig.requests.is_drained() && !rig.requests.arm());
    assert!(!rig.front().submit(&entry(READ, 2, 0, &[(1, 0, 7)])), "nobody is to be called");
    rig.work();
    rig.settle();
    assert!(rig.requests.is_drained());
    rig.close();
}

/// A rig whose frontend breaks its ring while its first request is read.
#[cfg(feature = "sim")]
fn broken_while_read(operation: u8, segments: &[(u32, u8, u8)]) -> Rig {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(operation, 1, 0, segments);
    let frame = rig.front().header();
    let bad = rig.front().req_prod.wrapping_add(100);
    let hook = move |_, offset| {
        if offset >= 64 {
            frame.write_u32(0, bad);
        }
    };
    crate::mem::hook::set(Some(std::boxed::Box::new(hook)));
    rig.admit();
    crate::mem::hook::set(None);
    assert!(rig.requests.backlog(), "so that the fault is seen");
    assert!(rig.try_admit(SLOTS).is_err());
    rig
}

#[cfg(feature = "sim")]
#[test]
fn what_was_taken_before_the_ring_broke_is_not_lost() {
    for (operation, segments) in [(READ, &[(1, 0, 7)][..]), (FLUSH, &[])] {
        let mut rig = broken_while_read(operation, segments);
        assert_eq!(rig.mapped().len(), segments.len());
        rig.work();
        rig.settle();
        rig.close();
    }
}
