//! The table of kept pages, beside a plain model of it.

use std::vec;
use std::vec::Vec as List;

use super::*;
use crate::blkback::testing::{Chance, Machine, bus_of};

const START: Instant = Instant(1 << 40);

/// A table, and where its memory goes back to.
fn table() -> (Machine, Keep) {
    let mut machine = Machine::with(0, PAGES);
    let keep = Keep::take(&mut machine, 0x1234_5678_9abc_def1).unwrap();
    assert_eq!((machine.free_pages, machine.taken_pages), (0, PAGES));
    (machine, keep)
}

fn mapping(gref: u32) -> GrantMapping {
    GrantMapping { handle: GrantHandle(!gref), bus: BusAddr(bus_of(gref)) }
}

fn insert(keep: &mut Keep, gref: u32) -> Option<u16> {
    keep.insert(GrantRef(gref), mapping(gref), START)
}

/// Keeps a page that is not in use.
fn put(keep: &mut Keep, gref: u32) {
    let place = insert(keep, gref).unwrap();
    keep.release(place);
}

fn has(keep: &mut Keep, gref: u32) -> bool {
    let found = keep.find(GrantRef(gref), START);
    if let Some((place, bus)) = found {
        assert_eq!(bus.0, bus_of(gref));
        keep.release(place);
    }
    found.is_some()
}

#[test]
fn a_page_is_found_as_it_was_put_in() {
    let (mut machine, mut keep) = table();
    assert!(!has(&mut keep, 0), "an empty place is not grant 0");
    for gref in [0, 1, u32::MAX] {
        let place = insert(&mut keep, gref).unwrap();
        assert_eq!(insert(&mut keep, gref), None, "it is kept already");
        assert_eq!(keep.find(GrantRef(gref), START), Some((place, BusAddr(bus_of(gref)))));
        keep.release(place);
        keep.release(place);
    }
    assert_eq!(keep.len(), 3);
    assert_eq!([0; 3].map(|_| keep.take_oldest()), [0, 1, u32::MAX].map(|gref| Some(mapping(gref))));
    assert!(keep.take_oldest().is_none() && !has(&mut keep, 1) && keep.idle_at().is_none());
    keep.give_back(&mut machine);
    assert_eq!(machine.taken_pages, 0);
}

#[test]
fn too_little_memory_takes_none() {
    let mut machine = Machine::with(0, PAGES - 1);
    assert!(Keep::take(&mut machine, 1).is_none());
    assert_eq!(machine.taken_pages, 0);
}

#[test]
#[should_panic(expected = "a use is ended once")]
fn a_use_is_not_ended_twice() {
    let (_, mut keep) = table();
    let place = insert(&mut keep, 1).unwrap();
    keep.release(place);
    keep.release(place);
}

#[test]
fn grants_that_meet_in_a_chain_are_told_apart() {
    let (_, mut keep) = table();
    let chain = keep.chain(GrantRef(0));
    let same: List<u32> = (0..).filter(|gref| keep.chain(GrantRef(*gref)) == chain).take(5).collect();
    for removed in 0..5 {
        same.iter().for_each(|gref| put(&mut keep, *gref));
        // The first, one within, and the last of the chain.
        same.iter().filter(|gref| **gref != same[removed]).for_each(|gref| assert!(has(&mut keep, *gref)));
        assert_eq!(keep.take_oldest(), Some(mapping(same[removed])), "all others were used since");
        for gref in &same {
            assert_eq!(has(&mut keep, *gref), *gref != same[removed]);
        }
        while keep.take_oldest().is_some() {}
        assert_eq!(keep.len(), 0);
    }
}

#[test]
fn grants_spread_over_the_chains() {
    for seed in [0, 1, 7, 1 << 40, 0x1_0000_0001, u64::MAX] {
        let keep = Keep::take(&mut Machine::with(0, PAGES), seed).unwrap();
        assert!(keep.chain(GrantRef(u32::MAX)) < CHAINS);
        assert_eq!(keep.factor % 2, 1, "an even factor loses what tells grants apart");
    }
}

#[test]
fn a_full_table_makes_room_of_what_was_not_used_for_longest() {
    let (_, mut keep) = table();
    let mut unmaps = Vec::<_, KEPT>::new();
    for gref in 0..KEPT as u32 {
        keep.make_room(&mut unmaps);
        assert!(unmaps.is_empty(), "while there is a place");
        put(&mut keep, gref);
    }
    keep.make_room(&mut unmaps);
    assert!(unmaps.is_empty(), "a full table is enough for who needs no more");
    assert_eq!((insert(&mut keep, 5000), keep.len()), (None, KEPT));
    let (in_use, _) = keep.find(GrantRef(1), START).unwrap();
    assert!(has(&mut keep, 0), "used again, and over");
    keep.make_room(&mut unmaps);
    let evicted: List<_> = (2..2 + EVICTED as u32).map(mapping).collect();
    assert_eq!(unmaps[..], evicted);
    keep.make_room(&mut unmaps);
    assert_eq!((unmaps.len(), keep.len()), (EVICTED, KEPT - EVICTED), "there is room now");
    put(&mut keep, 5000);
    keep.release(in_use);
    assert!([0, 1, 5000, 2 + EVICTED as u32].into_iter().all(|gref| has(&mut keep, gref)));
    assert!(!has(&mut keep, 2));
}

#[test]
fn a_full_table_in_use_makes_no_room_and_a_full_batch_takes_none() {
    let (_, mut keep) = table();
    let places: List<_> = (0..KEPT as u32).map(|gref| insert(&mut keep, gref).unwrap()).collect();
    let mut unmaps = Vec::<_, 3>::new();
    assert_eq!(insert(&mut keep, 5000), None);
    keep.make_room(&mut unmaps);
    assert!(unmaps.is_empty() && keep.take_oldest().is_none());
    assert_eq!(keep.take_idle(START + IDLE * 9), None);
    places.into_iter().for_each(|place| keep.release(place));
    assert_eq!(insert(&mut keep, 5000), None);
    keep.make_room(&mut unmaps);
    assert_eq!((unmaps.len(), keep.len()), (3, KEPT - 3));
}

#[test]
fn an_idle_page_is_given_back_in_time_and_one_in_use_is_not() {
    let (_, mut keep) = table();
    let second = Duration::from_secs(1);
    put(&mut keep, 1);
    assert_eq!(keep.idle_at(), Some(START + IDLE));
    let place = insert(&mut keep, 2).unwrap();
    assert_eq!(keep.idle_at(), Some(START + IDLE));
    assert_eq!(keep.take_idle(Instant(START.0 + 1)), None);
    let (again, _) = keep.find(GrantRef(1), START + second).unwrap();
    keep.release(again);
    assert_eq!(keep.take_idle(START + IDLE), None, "it was used since");
    assert_eq!(keep.idle_at(), Some(START + second + IDLE));
    assert_eq!(keep.take_idle(START + second + IDLE), Some(mapping(1)));
    // The other is in use for very long: nobody is woken for it all the time.
    let late = START + IDLE * 5;
    assert_eq!(keep.take_idle(late), None);
    assert_eq!(keep.idle_at(), Some(late + IDLE));
    keep.release(place);
    assert_eq!(keep.take_idle(late + IDLE), Some(mapping(2)));
    assert_eq!((keep.take_idle(late + IDLE), keep.idle_at()), (None, None));
}

/// What the table should hold: grants in use with the number of uses, and the others in order.
#[derive(Default)]
struct Model {
    used: List<(u32, u16, u16)>,
    idle: List<u32>,
}

impl Model {
    fn len(&self) -> usize {
        self.used.len() + self.idle.len()
    }

    /// Uses a grant, which the table put at a place.
    fn use_it(&mut self, gref: u32, place: u16) {
        self.idle.retain(|idle| *idle != gref);
        match self.used.iter_mut().find(|used| used.0 == gref) {
            Some(used) => used.2 += 1,
            None => self.used.push((gref, place, 1)),
        }
    }

    fn release(&mut self, at: usize) -> u16 {
        let (gref, place, users) = &mut self.used[at];
        let (gref, place) = (*gref, *place);
        *users -= 1;
        if *users == 0 {
            self.used.remove(at);
            self.idle.push(gref);
        }
        place
    }
}

#[test]
fn the_table_does_what_a_list_would() {
    for seed in 0..8 {
        let (mut chance, mut model) = (Chance(seed), Model::default());
        let (mut machine, mut keep) = table();
        let mut is_short = false;
        // Few grants are found again often, many fill the table.
        let grants = if seed % 2 == 0 { 40 } else { 3 * KEPT as u64 };
        for _ in 0..12_000 {
            let gref = chance.below(grants) as u32;
            let is_kept = model.idle.contains(&gref) || model.used.iter().any(|used| used.0 == gref);
            match chance.below(8) {
                0..=3 => match keep.find(GrantRef(gref), START) {
                    Some((place, bus)) => {
                        assert!(is_kept && bus.0 == bus_of(gref), "seed {seed}");
                        model.use_it(gref, place);
                    }
                    None => {
                        assert!(!is_kept, "seed {seed}");
                        let place = insert(&mut keep, gref);
                        assert_eq!(place.is_some(), model.len() < KEPT);
                        is_short |= place.is_none();
                        place.into_iter().for_each(|place| model.use_it(gref, place));
                    }
                },
                4..=6 if !model.used.is_empty() => {
                    let at = chance.below(model.used.len() as u64) as usize;
                    keep.release(model.release(at));
                }
                7 if chance.one_in(20) => {
                    let oldest = if model.idle.is_empty() { None } else { Some(model.idle.remove(0)) };
                    assert_eq!(keep.take_oldest(), oldest.map(mapping), "seed {seed}");
                }
                _ => {
                    let mut unmaps = Vec::<_, KEPT>::new();
                    let room = if is_short { EVICTED.min(model.idle.len()) } else { 0 };
                    is_short = false;
                    keep.make_room(&mut unmaps);
                    let evicted: List<_> = model.idle.drain(..room).map(mapping).collect();
                    assert_eq!(unmaps[..], evicted, "seed {seed}");
                }
            }
            assert_eq!(keep.len(), model.len());
        }
        while !model.used.is_empty() {
            keep.release(model.release(0));
        }
        let left: List<_> = core::iter::from_fn(|| keep.take_oldest()).collect();
        assert_eq!(left, model.idle.iter().map(|gref| mapping(*gref)).collect::<List<_>>());
        assert_ne!(left, vec![]);
        keep.give_back(&mut machine);
    }
}

#[test]
fn every_short_story_of_grants_in_one_chain_is_what_a_list_would_tell() {
    const LENGTH: u32 = 6;
    let (_, mut keep) = table();
    let chain = keep.chain(GrantRef(0));
    let grants: List<u32> = (0..).filter(|gref| keep.chain(GrantRef(*gref)) == chain).take(3).collect();
    // Each can be used and released, and the oldest taken.
    let events = 2 * grants.len() + 1;
    for story in 0..events.pow(LENGTH) {
        let mut model = Model::default();
        for event in (0..LENGTH).map(|step| story / events.pow(step) % events) {
            let gref = grants[event / 2 % grants.len()];
            let used = model.used.iter().position(|used| used.0 == gref);
            if event == events - 1 {
                let oldest = if model.idle.is_empty() { None } else { Some(model.idle.remove(0)) };
                assert_eq!(keep.take_oldest(), oldest.map(mapping), "story {story}");
            } else if event % 2 == 0 {
                let found = keep.find(GrantRef(gref), START).map(|(place, _)| place);
                assert_eq!(found.is_some(), used.is_some() || model.idle.contains(&gref), "story {story}");
                let place = found.or_else(|| insert(&mut keep, gref)).expect("there is room for three");
                model.use_it(gref, place);
            } else if let Some(at) = used {
                keep.release(model.release(at));
            }
            assert_eq!(keep.len(), model.len(), "story {story}");
        }
        while !model.used.is_empty() {
            keep.release(model.release(0));
        }
        for gref in model.idle {
            assert_eq!(keep.take_oldest(), Some(mapping(gref)), "story {story}");
        }
    }
}
