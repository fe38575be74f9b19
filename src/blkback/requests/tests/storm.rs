//! Random requests of every kind, on several rings, and commands that end in any order.

use std::collections::BTreeMap;

use super::*;

/// One request, and what it should be answered with if the disk does its part, by another way than
/// the code's.
struct Asked {
    operation: u8,
    sector: u64,
    segments: List<Seg>,
    /// Of a discard, which has no segments.
    sectors: u64,
    is_indirect: bool,
}

impl Asked {
    fn any(chance: &mut Chance) -> Self {
        let operations = [READ, READ, READ, WRITE, WRITE, WRITE, FLUSH, BARRIER, DISCARD, 9];
        let operation = operations[chance.below(operations.len() as u64) as usize];
        let is_indirect = operation != DISCARD && chance.one_in(4);
        let count = chance.below(if is_indirect { 40 } else { 12 });
        let segments = (0..count).map(|_| Self::segment(chance)).collect();
        let sector = if chance.one_in(20) { u64::MAX - 3 } else { chance.below(1000) };
        Self { operation, sector, segments, sectors: chance.below(300), is_indirect }
    }

    fn segment(chance: &mut Chance) -> Seg {
        let first = chance.below(8) as u8;
        let last = if chance.one_in(100) { chance.below(12) as u8 } else { 7.min(first + 3) };
        (chance.below(200) as u32, first, last)
    }

    fn verdict(&self, bad: &BTreeSet<u32>) -> i16 {
        let known = [READ, WRITE, FLUSH, BARRIER].contains(&self.operation);
        if self.operation == DISCARD {
            let end = u128::from(self.sector) + u128::from(self.sectors);
            return if self.sectors == 0 || end <= 1000 { OKAY } else { ERROR };
        }
        if !known {
            return if self.is_indirect { ERROR } else { UNSUPPORTED };
        }
        let is_flush = self.operation == FLUSH || self.operation == BARRIER;
        if self.is_indirect && is_flush {
            return ERROR;
        }
        if self.segments.is_empty() {
            return if is_flush { OKAY } else { ERROR };
        }
        let mut end = u128::from(self.sector);
        for (gref, first, last) in &self.segments {
            if first > last || *last > 7 || bad.contains(gref) {
                return ERROR;
            }
            end += u128::from(last - first) + 1;
        }
        if end <= 1000 { OKAY } else { ERROR }
    }
}

impl Rig {
    /// Submits a request on some ring; an indirect one's segments are in a page of its own.
    fn ask(&mut self, ring: usize, id: u64, asked: &Asked) {
        let Asked { operation, sector, segments, sectors, is_indirect } = asked;
        self.fronts.swap(0, ring);
        if *operation == DISCARD {
            self.front().submit(&discard(Protocol::X86_64, id, *sector, *sectors));
        } else if *is_indirect {
            self.submit_indirect(*operation, id, *sector, segments);
        } else {
            self.submit(*operation, id, *sector, segments);
        }
        self.fronts.swap(0, ring);
    }

    /// Takes the answers that there are: each is owed on that ring.
    fn take_answers(&mut self, owed: &mut [BTreeMap<u64, (u8, i16)>]) {
        for (front, owed) in self.fronts.iter_mut().zip(owed) {
            while let Some((operation, id, status)) = front.response() {
                assert_eq!(owed.remove(&id), Some((operation, status)), "request {id}");
            }
        }
    }

    /// Does a few of the things that can be done.
    fn some(&mut self, chance: &mut Chance) {
        if chance.one_in(2) {
            self.admit_into(chance.below(200) as usize);
        }
        if chance.one_in(2) {
            self.issue_some(chance.below(20) as usize, 1 + chance.below(11) as usize);
        }
        self.check_reach();
        while !self.held.is_empty() && !chance.one_in(8) {
            let at = chance.below(self.held.len() as u64) as usize;
            self.complete(at, true);
        }
        if chance.one_in(2) {
            self.settle();
        }
    }
}

#[test]
fn every_request_is_answered_once_whatever_happens() {
    for seed in 0..40 {
        let mut chance = Chance(seed);
        let rings = 1 + chance.below(3) as usize;
        let persistent = chance.one_in(2);
        let mappings = 40 + chance.below(200) as usize;
        let setup = Setup { rings, persistent, mappings, ..Setup::default() };
        let mut rig = Rig::with(Setup { full: true, discards: true, ..setup });
        rig.machine.bad = [3, 7].into();
        let (mut next_id, mut owed) = (0_u64, List::from_iter((0..rings).map(|_| BTreeMap::new())));
        for _ in 0..300 {
            let ring = chance.below(rings as u64) as usize;
            while owed[ring].len() < 32 && !chance.one_in(4) {
                let asked = Asked::any(&mut chance);
                rig.ask(ring, next_id, &asked);
                owed[ring].insert(next_id, (asked.operation, asked.verdict(&rig.machine.bad)));
                next_id += 1;
            }
            rig.some(&mut chance);
            rig.take_answers(&mut owed);
        }
        while rig.requests.backlog() || rig.requests.in_flight() > 0 || rig.requests.arm() {
            rig.admit();
            rig.work();
            rig.settle();
        }
        rig.take_answers(&mut owed);
        assert!(owed.iter().all(BTreeMap::is_empty) && next_id > 100, "seed {seed}: {next_id} {owed:?}");
        assert_eq!(rig.mapped().len(), rig.requests.kept());
        rig.close();
    }
}
