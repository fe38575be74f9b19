//! Random requests, and commands that end in any order.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// What a request should be answered with if the disk does its part, by another way than the code's.
fn verdict(operation: u8, sector: u64, segments: &[(u32, u8, u8)], bad: &BTreeSet<u32>) -> i16 {
    if ![READ, WRITE, FLUSH, BARRIER].contains(&operation) {
        return UNSUPPORTED;
    }
    if segments.is_empty() {
        return if operation == FLUSH || operation == BARRIER { OKAY } else { ERROR };
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
        rig.machine.bad = [3, 7].into();
        let (mut next_id, mut owed) = (0_u64, BTreeMap::new());
        for _ in 0..400 {
            while owed.len() < 32 && chance.one_in(2) {
                let operation =
                    [READ, READ, WRITE, WRITE, READ, WRITE, FLUSH, BARRIER, 9][chance.below(9) as usize];
                let count = chance.below(12);
                let segment = |chance: &mut Chance| {
                    let first = chance.below(8) as u8;
                    let last = if chance.one_in(40) { chance.below(12) as u8 } else { 7.min(first + 3) };
                    (chance.below(60) as u32, first, last)
                };
                let segments: List<_> = (0..count).map(|_| segment(&mut chance)).collect();
                let sector = if chance.one_in(20) { u64::MAX - 3 } else { chance.below(1000) };
                rig.submit(operation, next_id, sector, &segments);
                owed.insert(next_id, (operation, verdict(operation, sector, &segments, &rig.machine.bad)));
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
            while let Some((operation, id, status)) = rig.front().response() {
                assert_eq!(owed.remove(&id), Some((operation, status)), "seed {seed} request {id}");
            }
        }
        rig.settle();
        while rig.requests.backlog() || rig.requests.in_flight() > 0 || rig.requests.arm() {
            rig.admit();
            rig.issue(SEGMENTS);
            while !rig.held.is_empty() {
                rig.complete(0, true);
            }
            rig.settle();
        }
        while let Some((_, id, _)) = rig.front().response() {
            owed.remove(&id).expect("owed");
        }
        assert!(owed.is_empty() && rig.mapped().is_empty() && next_id > 200, "seed {seed}: {owed:?}");
    }
}
