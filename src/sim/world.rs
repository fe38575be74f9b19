//! A whole world on virtual time, from one seed: the machine, xenstored, the toolstack, guests and
//! controllers, in which the image's core runs as it does on Xen. [`World`] is the core's `hal`.
//!
//! Nothing here waits. The others act when the core asks for the time or sleeps, and inside any of
//! its accesses to shared memory.

use core::cell::{RefCell, RefMut};
use core::ptr::NonNull;
use core::time::Duration;
use std::rc::Rc;

use super::frontend::Frontend;
use super::intruder::Intruder;
use super::lent::Lent;
use super::machine::{DOM0, DRIVER, Machine, Violation};
use super::memory::bus;
use super::toolstack::{self, JobId, Toolstack};
use super::xenstored::{self, Flavour, Xenstored};
use crate::hal::MmioRegion;
use crate::limits;
use crate::mem::{SharedPage, hook};
use crate::units::{BusAddr, DomId, Instant, Port};

/// The longest that the image puts off what somebody may wait for: a little more than its longest
/// pause after a failure of xenstore.
const LINGER: Duration = Duration::from_secs(7);

/// What looking at the clock, or at a register, takes at most, in nanoseconds.
const TICK: u64 = 1_000;

/// How long the image is without the processor at most, in nanoseconds.
const PREEMPTION: u64 = 50_000;

/// Turns without sleep after which nothing will come of it.
const RESTLESS: u32 = 100_000;

/// Turns in one run after which it will never end, sleep or no sleep.
const ENDLESS: u32 = 1_000_000;

/// Pages that a domain of 16 MiB leaves free.
const FREE_PAGES: usize = 3072;

/// What the image wants after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// Another turn at once.
    Again,
    /// Sleep until an event or the deadline.
    Sleep(Option<Instant>),
    /// It has shut down.
    Stop,
}

/// Everything but the image.
#[derive(Debug)]
pub struct State {
    /// Memory, grants, ports, time, chance, xenstore's contents.
    pub machine: Machine,
    /// The daemon at the image's xenstore ring.
    pub xenstored: Xenstored,
    /// libxl.
    pub toolstack: Toolstack,
    /// The controllers that the image owns.
    pub lent: Lent,
    /// The guests' virtual disks, in the order in which they were attached.
    pub frontends: Vec<Frontend>,
    /// Guests that keep no rules, each with its disk.
    pub intruders: Vec<Intruder>,
    /// Pages that the image may still take.
    pub free_pages: usize,
    /// The tree's generation that everybody was told of.
    spread_generation: u64,
    /// What the frontends have seen, and until when they do nothing if there is nothing new.
    calm: Option<((u64, u64), Option<Instant>)>,
    /// One mapping of data, or copy, in so many fails, for no fault of the image; 0 for none.
    pub failing_maps: u32,
    /// The same of mappings of rings' pages.
    pub failing_rings: u32,
    /// The deadline of the image's last sleep; none, when only an event could end it.
    pub slept_until: Option<Instant>,
    /// A guest whose mappings and copies do not fail.
    pub spared: Option<DomId>,
    /// The domain that was created last, of those whose numbers are not a test's choice.
    pub(super) last_domain: DomId,
    store: (BusAddr, Port),
    script: Vec<Cue>,
    follow_ups: Vec<FollowUp>,
}

/// Something that a test does to the world at a time.
struct Cue {
    at: Instant,
    act: Box<dyn FnOnce(&mut State)>,
}

impl core::fmt::Debug for Cue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Cue at {:?}", self.at)
    }
}

/// What is done when the toolstack is done with its jobs.
struct FollowUp {
    jobs: Vec<JobId>,
    act: Box<dyn FnOnce(&mut State)>,
}

impl core::fmt::Debug for FollowUp {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FollowUp of {:?}", self.jobs)
    }
}

impl State {
    fn new(seed: u64, flavour: Flavour) -> Self {
        let mut machine = Machine::new(seed, limits::PORTS as u32);
        machine.tree.quota.1 = flavour.quota();
        machine.tree.hides_missing = flavour == Flavour::Cxenstored;
        toolstack::create_driver_domain(&mut machine);
        let mfn = machine.memory.take();
        let ring = machine.memory.frame(mfn);
        xenstored::start_ring(ring, machine.rng.bits() as u32, machine.rng.bits() as u32);
        let open = machine.ports.open(DOM0, DRIVER).expect("the first port");
        let port = machine.ports.bind(DRIVER, DOM0, open, machine.now).expect("just opened");
        Self {
            xenstored: Xenstored::new(ring, open, flavour),
            machine,
            toolstack: Toolstack::default(),
            lent: Lent::default(),
            frontends: Vec::new(),
            intruders: Vec::new(),
            free_pages: FREE_PAGES,
            spread_generation: 0,
            calm: None,
            failing_maps: 0,
            failing_rings: 0,
            slept_until: None,
            spared: None,
            last_domain: DomId(99),
            store: (bus(mfn), port),
            script: Vec::new(),
            follow_ups: Vec::new(),
        }
    }

    /// Does something to the world when the time comes, in the middle of what the image does.
    pub fn at(&mut self, at: Instant, act: impl FnOnce(&mut Self) + 'static) {
        self.script.push(Cue { at, act: Box::new(act) });
    }

    /// Does something when all these jobs are over, however they ended.
    pub fn after(&mut self, jobs: &[JobId], act: impl FnOnce(&mut Self) + 'static) {
        self.follow_ups.push(FollowUp { jobs: jobs.to_vec(), act: Box::new(act) });
        self.follow_up();
    }

    fn follow_up(&mut self) {
        let toolstack = &self.toolstack;
        let over = |job: &JobId| toolstack.outcome(*job).is_some();
        let ready = self.follow_ups.extract_if(.., |next| next.jobs.iter().all(over));
        for next in ready.collect::<Vec<_>>() {
            (next.act)(self);
            self.calm = None;
        }
    }

    /// When anybody acts next.
    fn next_event(&mut self) -> Option<Instant> {
        let frontends = self.next_of_frontends();
        let devices = self.lent.next_event(&self.machine);
        let others = [self.xenstored.next_event(&self.machine), self.toolstack.next_event(), devices];
        let script = self.script.iter().map(|cue| cue.at);
        let intruders = self.intruders.iter().filter_map(Intruder::next_event);
        others.into_iter().flatten().chain(frontends).chain(script).chain(intruders).min()
    }

    /// Lets everybody act who is due.
    fn act(&mut self) {
        let now = self.machine.now;
        for cue in self.script.extract_if(.., |cue| cue.at <= now).collect::<Vec<_>>() {
            (cue.act)(self);
            self.calm = None;
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.xenstored.next_event(&self.machine)) {
            self.xenstored.step(&mut self.machine);
        }
        if due(self.toolstack.next_event()) {
            self.toolstack.step(&mut self.machine);
            self.follow_up();
        }
        if due(self.lent.next_event(&self.machine)) {
            self.lent.step(&mut self.machine);
            self.lent.check_transfers(&mut self.machine, &self.toolstack);
        }
        self.let_frontends_act();
        for intruder in self.intruders.iter_mut().filter(|intruder| due(intruder.next_event())) {
            intruder.step(&mut self.machine);
        }
        self.spread();
    }

    /// Lets the frontends act that are due. There can be hundreds of them, and mostly it is clear
    /// that none is.
    fn let_frontends_act(&mut self) {
        let now = self.machine.now;
        if self.next_of_frontends().is_none_or(|next| now < next) {
            return;
        }
        for frontend in &mut self.frontends {
            if frontend.next_event(&self.machine).is_some_and(|at| at <= now) {
                frontend.step(&mut self.machine);
            }
            self.lent.check_promises(&mut self.machine, frontend);
        }
        self.calm = None;
    }

    /// When the first of the frontends acts next.
    fn next_of_frontends(&mut self) -> Option<Instant> {
        let news = (self.machine.ports.events(), self.machine.tree.generation());
        match self.calm {
            Some((seen, until)) if seen == news => until,
            _ => {
                let next = self.frontends.iter().filter_map(|frontend| frontend.next_event(&self.machine));
                let until = next.min();
                self.calm = Some((news, until));
                until
            }
        }
    }

    /// Compares all disks with what the guests wrote: each sector holds what its guest knows, and
    /// no other was written. Violations are recorded.
    pub fn check_disks(&mut self) {
        self.lent.check_disks(&mut self.machine, &self.frontends, &self.intruders);
    }

    /// Lets everybody know of what has changed.
    fn spread(&mut self) {
        if self.spread_generation == self.machine.tree.generation() {
            return;
        }
        self.spread_generation = self.machine.tree.generation();
        self.calm = None;
        self.xenstored.watch(&mut self.machine);
        self.toolstack.notice(&mut self.machine);
        self.lent.notice(&mut self.machine);
        for frontend in &mut self.frontends {
            frontend.notice(&mut self.machine);
        }
    }

    /// Somebody acts just before the image reads or writes the page at `base`: the owner of a ring
    /// mostly around its indexes, where an order of accesses can be wrong. Sometimes another domain
    /// has the processor for a while, and everybody else goes on.
    fn interfere(&mut self, base: NonNull<u8>, offset: usize) {
        if self.intrude(base, offset) {
            return;
        }
        let rng = &mut self.machine.rng;
        let found = |(owner, frontend): (usize, &Frontend)| Some((owner, frontend.finds(base, offset)?));
        let owner = self.frontends.iter().enumerate().find_map(found);
        let guest = match owner {
            Some((owner, is_index)) if rng.one_in(if is_index { 4 } else { 200 }) => Some(owner),
            None if !self.frontends.is_empty() && rng.one_in(100) => Some(rng.index(self.frontends.len())),
            Some(_) | None => None,
        };
        if let Some(guest) = guest {
            let frontend = &mut self.frontends[guest];
            frontend.interfere(&mut self.machine);
            let next = frontend.next_event(&self.machine);
            self.calm = self.calm.map(|(news, until)| (news, until.into_iter().chain(next).min()));
            self.spread();
        } else if self.machine.rng.one_in(100) {
            self.pass(PREEMPTION);
        }
    }

    /// A guest that keeps no rules acts mostly when the image looks at what is its own; whether it was that.
    fn intrude(&mut self, base: NonNull<u8>, offset: usize) -> bool {
        let mut intruders = self.intruders.iter().enumerate();
        let found = intruders.find_map(|(at, intruder)| Some((at, intruder.finds(base, offset)?)));
        let Some((at, is_index)) = found else { return false };
        if self.machine.rng.one_in(if is_index { 4 } else { 16 }) {
            self.intruders[at].act(&mut self.machine);
            self.spread();
        }
        true
    }

    /// A little time passes, as it does while the image runs.
    pub(super) fn tick(&mut self) {
        self.pass(TICK);
    }

    fn pass(&mut self, most: u64) {
        self.machine.now = self.machine.now + Duration::from_nanos(self.machine.rng.within(1..most));
        self.act();
    }

    /// Time passes until the image has an event, or until the deadline. False when it would sleep
    /// for ever, or when all that is left is its own deadline in the far future.
    pub(super) fn sleep(&mut self, deadline: Option<Instant>) -> bool {
        self.slept_until = deadline;
        while self.machine.ports.any_pending(DRIVER, &mut self.machine.rng).is_none() {
            let next = self.next_event();
            if next.is_none() && self.is_over(deadline) {
                return false;
            }
            let until = next.into_iter().chain(deadline).min().unwrap_or(self.machine.now);
            self.machine.now = self.machine.now.max(until);
            if deadline.is_some_and(|deadline| deadline <= self.machine.now) {
                break;
            }
            self.act();
            self.check_patience();
            if !self.machine.violations().is_empty() {
                break;
            }
        }
        true
    }

    /// Nobody else will act any more: whether it ends well, as it must when the image sleeps.
    fn is_over(&mut self, deadline: Option<Instant>) -> bool {
        let waiting = self.frontends.iter().find(|frontend| frontend.answered().1 > 0);
        let waiting = waiting.map(|frontend| (frontend.guest(), frontend.answered().1));
        if let Some(deadline) = deadline {
            return waiting.is_none() && deadline.since(self.machine.now) > LINGER;
        }
        if let Some((guest, requests)) = waiting {
            self.machine.violated(Violation::LostWakeup { guest, requests });
        }
        if self.xenstored.is_unaware(&self.machine) {
            self.machine.violated(Violation::StoreNotNotified);
        }
        true
    }

    pub(super) fn read_register(&mut self, region: MmioRegion, offset: usize) -> u32 {
        self.tick();
        if offset + 4 > region.len || !self.lent.is_mapped(region.base) {
            self.machine.violated(Violation::BadRegister { offset });
            return u32::MAX;
        }
        self.lent.controller(region.base).read32(offset)
    }

    pub(super) fn write_register(&mut self, region: MmioRegion, offset: usize, value: u32) {
        if offset + 4 > region.len || !self.lent.is_mapped(region.base) {
            self.machine.violated(Violation::BadRegister { offset });
            return;
        }
        self.lent.controller(region.base).write32(offset, value, self.machine.now);
    }

    fn check_patience(&mut self) {
        let late = self.frontends.iter().find(|frontend| frontend.is_late(self.machine.now));
        if let Some(guest) = late.map(Frontend::guest) {
            self.machine.violated(Violation::Late(guest));
        }
    }
}

/// A world, and the image's way into it. One at a time on each thread: it owns the hook in `mem`.
#[derive(Debug)]
pub struct World {
    pub(super) state: Rc<RefCell<State>>,
}

impl World {
    /// The world that this seed stands for.
    #[must_use]
    pub fn new(seed: u64, flavour: Flavour) -> Self {
        let state = Rc::new(RefCell::new(State::new(seed, flavour)));
        let acts = Rc::downgrade(&state);
        hook::set(Some(Box::new(move |base, offset| {
            // Not while the world itself is at work: then the access is its own.
            if let Some(state) = acts.upgrade()
                && let Ok(mut state) = state.try_borrow_mut()
            {
                state.interfere(base, offset);
            }
        })));
        Self { state }
    }

    /// Everything but the image, to look at or to change between turns.
    #[must_use]
    pub fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// The xenstore page and port that Xen hands to the image (`start_info`).
    #[must_use]
    pub fn store(&self) -> (SharedPage, Port) {
        let state = self.state();
        let (at, port) = state.store;
        (state.machine.memory.frame(super::memory::mfn(at)).shared(), port)
    }

    /// Gives the image turn after turn, and sleep when it wants it, until there is nothing left to
    /// do for anybody.
    ///
    /// # Errors
    /// The first thing that must not happen, and when it did.
    pub fn run(&mut self, mut turn: impl FnMut(&mut Self) -> Pace) -> Result<(), (Instant, Violation)> {
        self.state().calm = None;
        let (mut turns, mut restless) = (0, 0);
        let mut over = false;
        while !over {
            match turn(self) {
                Pace::Again => restless += 1,
                Pace::Sleep(deadline) => {
                    restless = 0;
                    over = !self.state().sleep(deadline);
                }
                Pace::Stop => over = true,
            }
            turns += 1;
            if restless > RESTLESS || turns > ENDLESS {
                self.state().machine.violated(Violation::Livelock);
            }
            if let Some(violation) = self.state().machine.violations().first() {
                return Err(violation.clone());
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        hook::set(None);
    }
}
