//! A frontend like Linux's blkfront 6.1, and sometimes like others: the xenbus life of one virtual
//! disk in its guest, with rings and features as its seed picks them from what is offered, the
//! interrupt handlers in steps that others can come between, and a load.
//!
//! It acts when the world lets it: at its own times, or inside any access of the image to memory.
//! `life` is what it does with xenstore, `whims` what its guest does to it, `io` the data path.

mod io;
mod life;
mod whims;

use core::ptr::NonNull;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use super::deal::{Deal, Features, Wish};
use super::front_ring::{FrontRing, HEADER};
use super::machine::{DRIVER, Machine};
use super::pages::{Page, Pool};
use super::requests::plan::Plan;
use super::requests::{Load, Request};
use super::shadow::{Shadow, Stamp};
use super::toolstack::Disk;
use crate::units::{DomId, Instant, Port};

/// The slowest a guest is to look at xenstore after a change, in nanoseconds.
const NOTICE: u64 = 2_000_000;

/// Where the device is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Waits for the backend to be in InitWait.
    Waiting,
    /// Has published its ring, waits for the backend to be connected.
    Offered,
    /// Does I/O.
    Connected,
    /// Wants to close, and finishes what is in flight first.
    Finishing,
    /// Has asked the backend to close.
    Closing,
    /// Closed; the ring goes when the backend is closed too, or with the device.
    Closed,
    /// Its directory was removed, and it is no more.
    Removed,
    /// The guest was destroyed: it never acts again.
    Vanished,
}

/// Ring and event channel.
#[derive(Debug)]
struct Queue {
    ring: FrontRing,
    pages: Vec<Page>,
    port: Port,
    /// The interrupt handler is between looking and asking for the next event.
    handling: Option<Instant>,
}

/// A request that waits for its answer.
#[derive(Debug)]
struct Sent {
    request: Request,
    queue: usize,
    /// How many were sent before it.
    serial: u64,
}

/// One virtual disk in its guest.
#[derive(Debug)]
pub struct Frontend {
    disk: Disk,
    path: String,
    backend: String,
    stage: Stage,
    wish: Wish,
    deal: Option<Deal>,
    features: Features,
    queues: Vec<Queue>,
    pool: Pool,
    outstanding: BTreeMap<u64, Sent>,
    sent: u64,
    /// Requests to be made once more when it is connected again.
    to_repeat: VecDeque<Plan>,
    /// Pages of requests that were given up, and of rings; they come back when the backend lets go.
    left: Vec<Page>,
    load: Load,
    shadow: Shadow,
    promises: Vec<BTreeMap<u64, Stamp>>,
    answered: u64,
    /// The backend was closed when it looked last.
    backend_is_closed: bool,
    /// Reopens after it has closed by itself.
    reopens: bool,
    /// Publishes its ring without waiting for InitWait.
    hasty: bool,
    /// Since when its guest is paused.
    paused: Option<Instant>,
    seen: u64,
    looks: Option<Instant>,
    submits: Option<Instant>,
}

impl Frontend {
    /// The guest's end of a disk whose directories the toolstack has just made. `shadow` is what
    /// was written to that disk before.
    #[must_use]
    pub fn new(disk: &Disk, load: Load, shadow: Shadow) -> Self {
        Self {
            path: front_path(disk.guest, disk.dev),
            backend: back_path(disk.guest, disk.dev),
            disk: disk.clone(),
            stage: Stage::Waiting,
            wish: Wish::default(),
            deal: None,
            features: Features::default(),
            queues: Vec::new(),
            pool: Pool::new(disk.guest, false),
            outstanding: BTreeMap::new(),
            sent: 0,
            to_repeat: VecDeque::new(),
            left: Vec::new(),
            load,
            shadow,
            promises: Vec::new(),
            answered: 0,
            backend_is_closed: false,
            reopens: false,
            hasty: false,
            paused: None,
            seen: 0,
            looks: None,
            submits: None,
        }
    }

    /// Where it is in its life.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The disk as it was attached.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its guest.
    #[must_use]
    pub fn guest(&self) -> DomId {
        self.disk.guest
    }

    /// The disk that it was promised.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.disk.target
    }

    /// The toolstack's number for the device.
    #[must_use]
    pub fn dev(&self) -> u32 {
        self.disk.dev
    }

    /// Whether it has not been removed, nor its guest destroyed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !matches!(self.stage, Stage::Removed | Stage::Vanished)
    }

    /// What it insists on when it shows itself to the backend.
    pub fn insist(&mut self, wish: Wish) {
        self.wish = wish;
    }

    /// How it showed itself to the backend last.
    #[must_use]
    pub fn deal(&self) -> Option<Deal> {
        self.deal
    }

    /// What the backend served when it connected last.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// How many pages its rings have.
    #[must_use]
    pub fn rings(&self) -> usize {
        self.queues.iter().map(|queue| queue.pages.len()).sum()
    }

    /// How many pages a backend may keep mapped that has nothing to do: rings, and persistent grants.
    #[must_use]
    pub fn lasting_pages(&self) -> usize {
        self.rings() + if self.features.persistent { self.pool.granted() } else { 0 }
    }

    /// How long it waits for an answer from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.load.patience = patience;
    }

    /// Whether its guest does not run.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// How many requests were answered, and how many still wait for that.
    #[must_use]
    pub fn answered(&self) -> (u64, usize) {
        (self.answered, self.outstanding.len() + self.to_repeat.len())
    }

    /// What it knows about its disk.
    #[must_use]
    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    /// Forgets what it knows, for somebody else who uses the disk from here on.
    pub fn take_shadow(&mut self) -> Shadow {
        core::mem::take(&mut self.shadow)
    }

    /// What is left of its load.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Adds requests to its load.
    pub fn do_more(&mut self, requests: u32) {
        self.load.requests += requests;
        self.submits.get_or_insert(Instant(0));
    }

    /// Whether there are such as [`Frontend::take_promises`] takes.
    #[must_use]
    pub fn has_promises(&self) -> bool {
        !self.promises.is_empty()
    }

    /// Promises of flushes that were answered since this was last asked, sector by sector, unless
    /// the sector was written again.
    pub fn take_promises(&mut self) -> Vec<(u64, Stamp)> {
        let promises = core::mem::take(&mut self.promises);
        let kept = |(sector, stamp): &(u64, Stamp)| {
            self.shadow.stamp(*sector) == Some(*stamp) && !self.plans().any(|plan| plan.touches(*sector))
        };
        promises.into_iter().flatten().filter(kept).collect()
    }

    /// Barriers that wait for their answers, each with a request that came after it in its queue: a
    /// sector of each and its stamp. The second must not be on the disk before the first is safe.
    pub fn races(&self) -> impl Iterator<Item = ((u64, Stamp), (u64, Stamp))> {
        let sent = || self.outstanding.values().filter(|_| !self.load.may_fail);
        let barriers = sent().filter(|sent| sent.request.plan().is_barrier());
        barriers.flat_map(move |barrier| {
            let later = sent().filter(|sent| sent.queue == barrier.queue && sent.serial > barrier.serial);
            let samples =
                |later: &Sent| Some((barrier.request.plan().sample()?, later.request.plan().sample()?));
            later.filter_map(samples).collect::<Vec<_>>()
        })
    }

    /// When it acts next by itself.
    #[must_use]
    pub fn next_event(&self, machine: &Machine) -> Option<Instant> {
        let queues = self.queues.iter().flat_map(|queue| {
            [machine.ports.pending(self.guest(), queue.port), queue.handling].into_iter().flatten()
        });
        let others = [self.looks, self.submits].into_iter().flatten();
        queues.chain(others).min().filter(|_| self.acts())
    }

    /// Something may have changed in xenstore: it will look soon.
    pub fn notice(&mut self, machine: &mut Machine) {
        let since = core::mem::replace(&mut self.seen, machine.tree.generation());
        let changed = |directory: &str| machine.tree.changed_since(since, directory);
        if changed(&self.path) || changed(&self.backend) {
            let soon = machine.now + Duration::from_nanos(machine.rng.within(0..NOTICE));
            self.looks.get_or_insert(soon);
        }
    }

    /// Does what is due.
    pub fn step(&mut self, machine: &mut Machine) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= machine.now);
        let (looks, submits) = (due(self.looks), due(self.submits));
        for queue in 0..self.queues.len() {
            self.handle(machine, queue);
        }
        if looks {
            self.looks = None;
            self.look(machine);
        }
        if submits {
            self.submits = None;
            self.submit(machine);
        }
    }

    /// Does any one thing that it could do, due or not: the image is just looking at memory, and
    /// a guest on another processor does not wait for that.
    pub fn interfere(&mut self, machine: &mut Machine) {
        if !self.acts() {
            return;
        }
        match machine.rng.index(3) {
            0 => self.submit(machine),
            1 if !self.queues.is_empty() => {
                let queue = machine.rng.index(self.queues.len());
                self.handle(machine, queue);
            }
            _ => self.look(machine),
        }
    }

    /// Whether one of its rings has a page there, and if so, whether `offset` is among the indexes.
    #[must_use]
    pub fn finds(&self, base: NonNull<u8>, offset: usize) -> Option<bool> {
        let page = self.queues.iter().find_map(|queue| queue.ring.page(base))?;
        Some(page == 0 && offset < HEADER)
    }

    /// Whether an answer is overdue.
    #[must_use]
    pub fn is_late(&self, now: Instant) -> bool {
        self.paused.is_none()
            && self.outstanding.values().any(|sent| sent.request.is_late(now, self.load.patience))
    }

    /// What it has asked for, or will ask for once more.
    fn plans(&self) -> impl Iterator<Item = &Plan> {
        self.outstanding.values().map(|sent| sent.request.plan()).chain(&self.to_repeat)
    }

    fn acts(&self) -> bool {
        self.is_alive() && self.paused.is_none()
    }
}

/// A frontend's directory.
#[must_use]
pub fn front_path(guest: DomId, dev: u32) -> String {
    format!("/local/domain/{guest}/device/vbd/{dev}")
}

/// Its backend's directory.
#[must_use]
pub fn back_path(guest: DomId, dev: u32) -> String {
    format!("/local/domain/{DRIVER}/backend/vbd/{guest}/{dev}")
}
