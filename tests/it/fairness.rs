//! Guests that share a controller: who asks for the same has the same, and who asks for little does not wait for those
//! who ask for much.

use core::cell::RefCell;
use core::time::Duration;
use std::rc::Rc;

use platter::sim::world::{State, World};
use platter::units::{GrantRef, Instant};

use crate::host::{partitioned, run};
use crate::rogue::{READ, Rogue};

/// Guests, each with a partition.
const GUESTS: u16 = 16;

/// What the disk takes for each command: all guests together want more than it takes at a time.
const LATENCY: Duration = Duration::from_millis(5);

/// When all are connected, and how long they are at it.
const BEGIN: Duration = Duration::from_secs(5);
const LENGTH: Duration = Duration::from_secs(2);

/// How often a guest looks for answers.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// A guest that keeps so many requests under way.
struct Guest {
    rogue: Rogue,
    page: GrantRef,
    depth: u32,
    asked: u32,
    answered: u32,
    since: Instant,
    /// How long the requests took, where there is one at a time.
    took: Vec<Duration>,
}

impl Guest {
    fn look(&mut self, state: &mut State) {
        let answers = self.rogue.answers();
        if self.depth == 1 && answers > self.answered {
            self.took.push(state.machine.now.since(self.since));
        }
        self.answered = answers;
        if self.asked == answers + self.depth {
            return;
        }
        while self.asked < answers + self.depth {
            self.rogue.put(self.asked, READ, u64::from(self.asked % 1000) * 8, &[(self.page, 0, 7)]);
            self.asked += 1;
        }
        self.since = state.machine.now;
        self.rogue.claim(&mut state.machine, self.asked);
    }
}

/// Looks, and looks again until the end.
fn go_on(guest: Rc<RefCell<Guest>>, state: &mut State, end: Instant) {
    guest.borrow_mut().look(state);
    let next = state.machine.now + LOOK_EVERY;
    if next < end {
        state.at(next, move |state| go_on(guest, state, end));
    }
}

/// Lets guests with these depths work side by side.
fn side_by_side(seed: u64, depths: [u32; GUESTS as usize]) -> Vec<Rc<RefCell<Guest>>> {
    let mut world = partitioned(seed, GUESTS.into());
    world.state().lent.controller(0).slow_down(LATENCY..LATENCY + Duration::from_micros(1));
    let guests: Vec<_> = (0..GUESTS).zip(depths).map(|(n, depth)| guest(&world, n, depth)).collect();
    run(&mut world, |_, _| false);
    guests
}

fn guest(world: &World, number: u16, depth: u32) -> Rc<RefCell<Guest>> {
    let (_, rogue) = Rogue::attach(world, 5 + number, &format!("/dev/nvme0n1p{}", number + 1));
    let page = rogue.grant(&mut world.state().machine).1;
    rogue.later(world, Duration::from_millis(500), |rogue, state| rogue.offer(&mut state.machine));
    let since = Instant(0);
    let guest =
        Rc::new(RefCell::new(Guest { rogue, page, depth, asked: 0, answered: 0, since, took: Vec::new() }));
    let shared = Rc::clone(&guest);
    rogue.later(world, BEGIN, |_, state| {
        let end = state.machine.now + LENGTH;
        go_on(shared, state, end);
    });
    guest
}

#[test]
fn guests_that_ask_for_the_same_have_the_same() {
    for seed in 0..2 {
        let guests = side_by_side(seed, [32; GUESTS as usize]);
        let answered: Vec<u32> = guests.iter().map(|guest| guest.borrow().answered).collect();
        let (least, most) = (answered.iter().min().unwrap(), answered.iter().max().unwrap());
        assert!(*least > 500 && *most * 100 <= *least * 105, "seed {seed}: {answered:?}");
    }
}

#[test]
fn a_guest_that_asks_for_one_at_a_time_does_not_wait_for_those_that_ask_for_all() {
    for seed in 0..2 {
        let mut depths = [32; GUESTS as usize];
        depths[usize::from(GUESTS) - 1] = 1;
        let guests = side_by_side(seed, depths);
        let modest = guests.last().unwrap().borrow();
        let mut took = modest.took.clone();
        took.sort_unstable();
        assert!(took.len() > 100, "seed {seed}: {}", took.len());
        // Nineteen of twenty, as the world takes the processor away now and then.
        let most = took[took.len() * 19 / 20];
        assert!(most < LATENCY * 11 / 10, "seed {seed}: {most:?}");
    }
}
