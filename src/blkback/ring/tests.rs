//! A frontend, grants that may fail and a disk that does as it is told, around one ring.

use std::collections::BTreeMap;
use std::vec::Vec as List;

use super::*;
use crate::blkback::slots::PAGES;
use crate::blkback::testing::{Chance, Machine};
use crate::hal::{DeviceAccess, HypervisorError};
use crate::mem::frame::Frame;
use crate::units::{BusAddr, GrantHandle};
use crate::volume::tests::volume;
use crate::wire::blkif::tests::entry;
use crate::wire::ring::tests::Front;

const READ: u8 = 0;
const WRITE: u8 = 1;
const FLUSH: u8 = 3;
const OKAY: i16 = 0;
const ERROR: i16 = -1;
const UNSUPPORTED: i16 = -2;

/// A command that the disk holds.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    slot: u8,
    op: Operation,
    first: u64,
    spans: List<Span>,
}

struct Rig {
    front: Front,
    ring: Ring,
    /// Grants that cannot be mapped.
    bad: List<u32>,
    /// Mapped now: handle to grant.
    mapped: BTreeMap<u32, u32>,
    handles: u32,
    access: List<DeviceAccess>,
    held: List<Held>,
}

/// Where grant `gref` is mapped: pages of neighbouring grants are neighbours in memory.
fn bus_of(gref: u32) -> u64 {
    0x10_0000 + u64::from(gref) * 4096
}

impl Rig {
    fn new(volume: Volume, read_only: bool) -> Self {
        let frame = Frame::new();
        let front = Front::at(frame, u32::MAX - 50);
        let mut machine = Machine::with(0, PAGES);
        let slots = Slots::take(&mut machine).unwrap();
        let ring = Ring::attach(frame.shared(), DomId(5), volume, read_only, slots);
        Self {
            front,
            ring,
            bad: List::new(),
            mapped: BTreeMap::new(),
            handles: 0,
            access: List::new(),
            held: List::new(),
        }
    }

    fn submit(&mut self, operation: u8, id: u64, sector: u64, segments: &[(u32, u8, u8)]) {
        self.front.submit(&entry(operation, id, sector, segments));
    }

    fn admit(&mut self) {
        let mut batch = Vec::new();
        let added = self.ring.admit(RING_ENTRIES, &mut batch).unwrap();
        assert_eq!(added, batch.len());
        for grant in &mut batch {
            assert_eq!(grant.dom, DomId(5));
            self.access.push(grant.access);
            if self.bad.contains(&grant.gref.0) {
                grant.result = Err(HypervisorError { op: "GNTTABOP_map_grant_ref", code: -3 });
                continue;
            }
            self.handles += 1;
            self.mapped.insert(self.handles, grant.gref.0);
            let (handle, bus) = (GrantHandle(self.handles), BusAddr(bus_of(grant.gref.0)));
            grant.result = Ok(GrantMapping { handle, bus });
        }
        self.ring.mapped(&batch);
    }

    /// Issues everything there is, `most` spans a command.
    fn issue(&mut self, most: usize) {
        self.issue_some(usize::MAX, most);
    }

    fn issue_some(&mut self, commands: usize, most: usize) {
        for _ in 0..commands {
            let Some(command) = self.ring.next_command() else { return };
            let spans = List::from(&command.spans[..command.spans.len().min(most)]);
            let held = Held { slot: command.slot, op: command.op, first: command.first.0, spans };
            self.ring.issued(held.spans.len());
            self.held.push(held);
        }
    }

    /// Every page that the disk may still reach is mapped.
    fn check_reach(&self) {
        for span in self.held.iter().flat_map(|held| &held.spans) {
            let page = span.bus.0 & !4095;
            assert!(self.mapped.values().any(|gref| bus_of(*gref) == page), "reach into an unmapped page");
            assert!(span.bytes > 0 && span.bus.0 - page + u64::from(span.bytes) <= 4096);
        }
    }

    fn complete(&mut self, at: usize, ok: bool) {
        let held = self.held.remove(at);
        self.ring.completed(held.slot, ok);
    }

    /// Unmaps, answers and publishes what is finished.
    fn settle(&mut self) {
        let mut unmaps = Vec::new();
        if self.ring.reap(&mut unmaps) {
            for mapping in &unmaps {
                assert!(self.mapped.remove(&mapping.handle.0).is_some(), "unmapped what is not mapped");
            }
            self.check_reach();
            self.ring.answer();
        }
        let _ = self.ring.publish();
    }

    /// One request from end to end.
    fn run(&mut self, operation: u8, sector: u64, segments: &[(u32, u8, u8)]) -> i16 {
        self.submit(operation, 77, sector, segments);
        self.admit();
        self.issue(SEGMENTS);
        while !self.held.is_empty() {
            self.check_reach();
            self.complete(0, true);
            self.issue(SEGMENTS);
        }
        assert_eq!(self.front.response(), None, "no answer before the pages are given back");
        self.settle();
        let (op, id, status) = self.front.response().expect("an answer");
        assert_eq!((op, id, self.front.response()), (operation, 77, None));
        assert!(self.mapped.is_empty() && self.ring.in_flight() == 0);
        status
    }
}

#[test]
fn reads_writes_and_flushes_reach_the_disk_as_asked() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 100, &[(1, 2, 7), (9, 0, 0)]);
    rig.submit(WRITE, 2, 999, &[(3, 7, 7)]);
    rig.submit(FLUSH, 3, u64::MAX, &[]);
    rig.admit();
    use DeviceAccess::{Reads, Writes};
    assert_eq!(rig.access, [Writes, Writes, Reads]);
    rig.issue(SEGMENTS);
    let span = |gref, offset, bytes| Span { bus: BusAddr(bus_of(gref) + offset), bytes };
    let expected = [
        (Operation::Flush, 0, List::new()),
        (Operation::Read, 100, [span(1, 1024, 3072), span(9, 0, 512)].to_vec()),
        (Operation::Write, 999, [span(3, 3584, 512)].to_vec()),
    ];
    let held: List<_> = rig.held.iter().map(|held| (held.op, held.first, held.spans.clone())).collect();
    assert_eq!(held, expected);
    for id in [2, 1, 3] {
        let at = rig.held.iter().position(|held| u64::from(held.slot) == id - 1).unwrap();
        rig.complete(at, true);
        rig.settle();
        assert_eq!(rig.front.response().map(|(_, id, status)| (id, status)), Some((id, OKAY)));
    }
    let counters = rig.ring.counters();
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
        (2, 0, &full, UNSUPPORTED),
        (5, 0, &[], UNSUPPORTED),
        (6, 0, &full, UNSUPPORTED),
        (255, 0, &[], UNSUPPORTED),
    ] {
        assert_eq!(rig.run(operation, sector, segments), status, "{operation} {sector} {segments:?}");
    }
    assert!(rig.access.is_empty(), "no grant was asked for");
    assert_eq!(rig.ring.counters().rejected, 14);
    assert_eq!(rig.run(READ, 712, &full), OKAY, "the last that fits");
}

#[test]
fn a_read_only_device_is_not_written() {
    let mut rig = Rig::new(volume(512, 100), true);
    assert_eq!(rig.run(WRITE, 0, &[(1, 0, 0)]), ERROR);
    assert_eq!(rig.run(FLUSH, 0, &[(1, 0, 0)]), ERROR);
    assert!(rig.access.is_empty());
    assert_eq!(rig.run(FLUSH, 0, &[]), OKAY);
    assert_eq!(rig.run(READ, 0, &[(1, 0, 0)]), OKAY);
}

#[test]
fn one_bad_grant_fails_the_request_and_the_others_go_back() {
    let segments: List<_> = (0..11).map(|gref| (gref, 0, 7)).collect();
    for count in 1..=11 {
        for position in 0..count {
            let mut rig = Rig::new(volume(512, 1000), false);
            rig.bad = [u32::try_from(position).unwrap()].to_vec();
            rig.submit(READ, 1, 0, &segments[..count]);
            rig.submit(READ, 2, 0, &[(20, 0, 7)]);
            rig.admit();
            assert_eq!(rig.mapped.len(), count);
            rig.issue(SEGMENTS);
            assert_eq!(rig.held.len(), 1, "only the good request is issued");
            rig.settle();
            assert_eq!(rig.front.response(), Some((READ, 1, ERROR)));
            assert_eq!(rig.mapped.values().copied().collect::<List<_>>(), [20]);
            rig.complete(0, true);
            rig.settle();
            assert_eq!(rig.front.response(), Some((READ, 2, OKAY)));
        }
    }
}

#[test]
fn spans_that_meet_inside_a_page_are_one() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 1), (1, 2, 3), (1, 4, 7), (2, 0, 3), (2, 4, 4), (2, 6, 7), (2, 0, 0)]);
    rig.admit();
    let spans: List<_> = rig.ring.next_command().unwrap().spans.iter().map(|s| (s.bus.0, s.bytes)).collect();
    let (one, two) = (bus_of(1), bus_of(2));
    assert_eq!(spans, [(one, 4096), (two, 2560), (two + 3072, 1024), (two, 512)]);
}

#[test]
fn a_request_is_issued_in_as_many_parts_as_the_disk_needs() {
    let mut rig = Rig::new(volume(1024, 1000), false);
    let segments: List<_> = (0..11).map(|gref| (gref * 2, 0, 7)).collect();
    rig.submit(WRITE, 1, 200, &segments);
    rig.admit();
    rig.issue(4);
    let parts: List<_> = rig.held.iter().map(|held| (held.first, held.spans.len())).collect();
    assert_eq!(parts, [(100, 4), (116, 4), (132, 3)]);
    for (at, ok) in [(1, true), (1, false), (0, true)] {
        rig.settle();
        assert_eq!(rig.front.response(), None, "parts are outstanding");
        rig.complete(at, ok);
    }
    rig.settle();
    assert_eq!(rig.front.response(), Some((WRITE, 1, ERROR)), "one part failed");
    assert_eq!(rig.ring.counters().write, Tally { requests: 1, sectors: 0, errors: 1 });
}

#[test]
fn parts_may_complete_before_the_rest_is_issued() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7), (3, 0, 7)]);
    rig.admit();
    rig.ring.issued(1);
    rig.ring.completed(0, true);
    rig.settle();
    assert_eq!(rig.front.response(), None);
    assert_eq!(rig.ring.next_command().unwrap().first, Block(8));
    rig.ring.issued(1);
    assert_eq!(rig.ring.next_command(), None);
    rig.ring.completed(0, true);
    rig.settle();
    assert_eq!(rig.front.response(), Some((READ, 1, OKAY)));
}

#[test]
fn what_the_disk_cannot_express_fails_after_what_was_issued() {
    for issued in [0, 1] {
        let mut rig = Rig::new(volume(512, 1000), false);
        rig.submit(READ, 1, 0, &[(1, 0, 7), (3, 0, 7)]);
        rig.admit();
        if issued == 1 {
            rig.ring.issued(1);
        }
        rig.ring.refused();
        assert_eq!(rig.ring.next_command(), None);
        if issued == 1 {
            rig.settle();
            assert_eq!(rig.front.response(), None, "the disk still has a part");
            rig.ring.completed(0, true);
        }
        rig.settle();
        assert_eq!(rig.front.response(), Some((READ, 1, ERROR)));
        assert!(rig.mapped.is_empty());
    }
}

#[test]
fn data_that_comes_with_a_flush_is_written_after_it() {
    for ok in [true, false] {
        let mut rig = Rig::new(volume(512, 1000), false);
        rig.submit(FLUSH, 1, 50, &[(1, 0, 7)]);
        rig.admit();
        assert_eq!(rig.access, [DeviceAccess::Reads]);
        rig.issue(SEGMENTS);
        assert_eq!(rig.held.iter().map(|held| held.op).collect::<List<_>>(), [Operation::Flush]);
        rig.complete(0, ok);
        rig.issue(SEGMENTS);
        if ok {
            assert_eq!((rig.held.len(), rig.held[0].op, rig.held[0].first), (1, Operation::Write, 50));
            rig.settle();
            assert_eq!(rig.front.response(), None);
            rig.complete(0, true);
        }
        assert!(rig.held.is_empty(), "without the flush the data is not written");
        rig.settle();
        assert_eq!(rig.front.response(), Some((FLUSH, 1, if ok { OKAY } else { ERROR })));
    }
}

#[test]
fn a_frontend_that_never_stops_gets_its_share_only() {
    let mut rig = Rig::new(volume(512, 1000), false);
    // All entries are bad: each is answered at once, which makes room for the next claim.
    rig.front.frame.write(64, &[0xff; 4096 - 64]);
    let mut batch = Vec::new();
    for _ in 0..100 {
        rig.front.claim(rig.front.req_prod.wrapping_add(32));
        assert_eq!(rig.ring.admit(10, &mut batch), Ok(0));
        assert!(rig.ring.backlog());
        rig.front.claim(rig.front.req_prod.wrapping_sub(22));
    }
    assert_eq!(rig.ring.counters().rejected, 1000);
}

#[test]
fn nothing_is_taken_without_room_for_it() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    let mut batch = Vec::new();
    let filler = GrantMap::new(DomId(1), crate::units::GrantRef(1), DeviceAccess::Reads);
    batch.resize(GRANT_BATCH - SEGMENTS + 1, filler).unwrap();
    assert_eq!(rig.ring.admit(RING_ENTRIES, &mut batch), Ok(0));
    assert!(rig.ring.arm() && rig.ring.in_flight() == 0);
    batch.truncate(GRANT_BATCH - SEGMENTS);
    assert_eq!(rig.ring.admit(RING_ENTRIES, &mut batch), Ok(1));
}

#[test]
fn a_ring_taken_to_the_last_slot_still_announces_the_next_request() {
    let mut rig = Rig::new(volume(512, 1000), false);
    for id in 0..32 {
        rig.submit(READ, id, 0, &[(1, 0, 7)]);
    }
    rig.admit();
    assert!(!rig.ring.arm() && rig.ring.in_flight() == 32);
    rig.issue(SEGMENTS);
    rig.complete(0, true);
    rig.settle();
    assert!(rig.front.response().is_some());
    assert!(!rig.ring.backlog());
    assert!(rig.front.submit(&entry(READ, 32, 0, &[(1, 0, 7)])), "nobody else would tell");
    rig.admit();
    assert_eq!(rig.ring.in_flight(), 32);
}

#[test]
fn an_unmap_batch_is_filled_with_whole_requests() {
    let mut rig = Rig::new(volume(512, 1000), false);
    let segments: List<_> = (0..11).map(|gref| (gref, 0, 7)).collect();
    rig.submit(READ, 1, 0, &segments);
    rig.submit(READ, 2, 0, &segments[..3]);
    rig.admit();
    rig.issue(SEGMENTS);
    rig.complete(0, true);
    rig.complete(0, true);
    let mut unmaps = Vec::new();
    let filler = GrantMapping { handle: GrantHandle(0), bus: BusAddr(0) };
    unmaps.resize(GRANT_BATCH - 13, filler).unwrap();
    assert!(rig.ring.reap(&mut unmaps));
    assert_eq!(unmaps.len(), GRANT_BATCH - 2);
    rig.ring.answer();
    assert_eq!(rig.ring.in_flight(), 1);
    let mut unmaps = Vec::new();
    assert!(rig.ring.reap(&mut unmaps));
    rig.ring.answer();
    assert!((unmaps.len(), rig.ring.in_flight()) == (3, 0) && !rig.ring.reap(&mut unmaps));
}

#[test]
fn a_broken_ring_says_so_after_the_results_of_what_it_gave_before() {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(READ, 1, 0, &[(1, 0, 7)]);
    rig.admit();
    rig.front.claim(rig.front.req_prod.wrapping_add(33));
    let mut batch = Vec::new();
    assert_eq!(rig.ring.admit(RING_ENTRIES, &mut batch), Err(FrontendFault::Overrun(34)));
    rig.issue(SEGMENTS);
    rig.complete(0, true);
    rig.settle();
    assert_eq!(rig.front.response(), Some((READ, 1, OKAY)));
    rig.ring.close();
    assert_eq!(rig.ring.admit(RING_ENTRIES, &mut batch), Ok(0));
    assert!(!rig.ring.backlog() && !rig.ring.arm());
}

/// A rig whose frontend breaks its ring while its first request is read.
#[cfg(feature = "sim")]
fn broken_while_read(operation: u8, segments: &[(u32, u8, u8)]) -> Rig {
    let mut rig = Rig::new(volume(512, 1000), false);
    rig.submit(operation, 1, 0, segments);
    let frame = rig.front.frame;
    let bad = rig.front.req_prod.wrapping_add(100);
    let hook = move |_, offset| {
        if offset >= 64 {
            frame.write_u32(0, bad);
        }
    };
    crate::mem::hook::set(Some(std::boxed::Box::new(hook)));
    rig.admit();
    crate::mem::hook::set(None);
    assert!(rig.ring.backlog(), "so that the fault is seen");
    assert!(rig.ring.admit(RING_ENTRIES, &mut Vec::new()).is_err());
    rig
}

#[cfg(feature = "sim")]
#[test]
fn what_was_taken_before_the_ring_broke_is_not_lost() {
    for (operation, segments) in [(READ, &[(1, 0, 7)][..]), (FLUSH, &[])] {
        let mut rig = broken_while_read(operation, segments);
        assert_eq!(rig.mapped.len(), segments.len());
        rig.issue(SEGMENTS);
        rig.complete(0, true);
        rig.settle();
        assert!(rig.mapped.is_empty());
        assert_eq!(rig.ring.in_flight(), 0);
    }
}

/// What a request should be answered with if the disk does its part, by another way than the code's.
fn verdict(operation: u8, sector: u64, segments: &[(u32, u8, u8)], bad: &[u32]) -> i16 {
    if ![READ, WRITE, FLUSH].contains(&operation) {
        return UNSUPPORTED;
    }
    if segments.is_empty() {
        return if operation == FLUSH { OKAY } else { ERROR };
    }
    let mut end = u128::from(sector);
    for (gref, first, last) in segments {
        if first > last || *last > 7 || bad.contains(gref) {
            return ERROR;
        }
        end += u128::from(last - first) + 1;
    }
    if end <= 1000 { OKAY } else { ERROR }
}

#[test]
fn every_request_is_answered_once_whatever_happens() {
    for seed in 0..40 {
        let mut chance = Chance(seed);
        let mut rig = Rig::new(volume(512, 1000), false);
        rig.bad = [3, 7].to_vec();
        let (mut next_id, mut owed) = (0_u64, BTreeMap::new());
        for _ in 0..400 {
            while owed.len() < 32 && chance.one_in(2) {
                let operation = [READ, READ, WRITE, WRITE, FLUSH, 2, 9][chance.below(7) as usize];
                let count = chance.below(12);
                let segment = |chance: &mut Chance| {
                    let first = chance.below(8) as u8;
                    let last = if chance.one_in(40) { chance.below(12) as u8 } else { 7.min(first + 3) };
                    (chance.below(60) as u32, first, last)
                };
                let segments: List<_> = (0..count).map(|_| segment(&mut chance)).collect();
                let sector = if chance.one_in(20) { u64::MAX - 3 } else { chance.below(1000) };
                rig.submit(operation, next_id, sector, &segments);
                owed.insert(next_id, (operation, verdict(operation, sector, &segments, &rig.bad)));
                next_id += 1;
            }
            if chance.one_in(2) {
                rig.admit();
            }
            if chance.one_in(2) {
                rig.issue_some(chance.below(20) as usize, 1 + chance.below(11) as usize);
            }
            rig.check_reach();
            while !rig.held.is_empty() && !chance.one_in(3) {
                let at = chance.below(rig.held.len() as u64) as usize;
                rig.complete(at, true);
            }
            if chance.one_in(2) {
                rig.settle();
            }
            while let Some((operation, id, status)) = rig.front.response() {
                assert_eq!(owed.remove(&id), Some((operation, status)), "seed {seed} request {id}");
            }
        }
        rig.settle();
        while rig.ring.backlog() || rig.ring.in_flight() > 0 || rig.ring.arm() {
            rig.admit();
            rig.issue(SEGMENTS);
            while !rig.held.is_empty() {
                rig.complete(0, true);
            }
            rig.settle();
        }
        while let Some((_, id, _)) = rig.front.response() {
            owed.remove(&id).expect("owed");
        }
        assert!(owed.is_empty() && rig.mapped.is_empty() && next_id > 300, "seed {seed}: {owed:?}");
    }
}
