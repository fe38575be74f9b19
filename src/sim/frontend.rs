//! A frontend like Linux's blkfront 6.1 without persistent grants: the xenbus life of one virtual
//! disk in its guest, the interrupt handler in steps that others can come between, and a load.
//!
//! It acts when the world lets it: at its own times, or inside any access of the image to memory.

use core::time::Duration;
use std::collections::BTreeMap;

use super::front_ring::{FrontRing, STRIDE};
use super::machine::{DRIVER, Machine, Violation};
use super::requests::{Load, Request};
use super::shadow::{Shadow, Stamp};
use super::toolstack::Disk;
use crate::units::{DomId, GrantRef, Instant, Mfn, Port};

/// The slowest a guest is to look at xenstore after a change, in nanoseconds.
const NOTICE: u64 = 2_000_000;

/// The longest a guest thinks between two batches of requests, in nanoseconds.
const THINK: u64 = 300_000;

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
struct Link {
    ring: FrontRing,
    mfn: Mfn,
    gref: GrantRef,
    port: Port,
    /// The interrupt handler is between looking and asking for the next event.
    handling: Option<Instant>,
}

/// One virtual disk in its guest.
#[derive(Debug)]
pub struct Frontend {
    guest: DomId,
    target: String,
    path: String,
    backend: String,
    stage: Stage,
    link: Option<Link>,
    outstanding: BTreeMap<u64, Request>,
    load: Load,
    shadow: Shadow,
    promises: Vec<BTreeMap<u64, Stamp>>,
    answered: u64,
    /// Reopens after it has closed by itself.
    reopens: bool,
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
            guest: disk.guest,
            target: disk.target.clone(),
            path: front_path(disk.guest, disk.dev),
            backend: back_path(disk.guest, disk.dev),
            stage: Stage::Waiting,
            link: None,
            outstanding: BTreeMap::new(),
            load,
            shadow,
            promises: Vec::new(),
            answered: 0,
            reopens: false,
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

    /// Its guest.
    #[must_use]
    pub fn guest(&self) -> DomId {
        self.guest
    }

    /// The disk that it was promised.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// How many requests were answered, and how many are still in flight.
    #[must_use]
    pub fn answered(&self) -> (u64, usize) {
        (self.answered, self.outstanding.len())
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

    /// Adds requests to its load.
    pub fn do_more(&mut self, requests: u32) {
        self.load.requests += requests;
        self.submits.get_or_insert(Instant(0));
    }

    /// Closes the device from inside the guest once nothing is in flight, and opens it again if
    /// `reopens`, as a driver does that is unloaded or reloaded.
    pub fn close(&mut self, now: Instant, reopens: bool) {
        if self.stage == Stage::Connected {
            self.stage = Stage::Finishing;
            self.reopens = reopens;
            self.looks = Some(now);
        }
    }

    /// The guest is paused for good: rings, grants and ports stay as they are.
    pub fn vanish(&mut self) {
        self.stage = Stage::Vanished;
        for (_, request) in core::mem::take(&mut self.outstanding) {
            request.forget(&mut self.shadow);
        }
    }

    /// Promises of flushes that were answered since this was last asked, sector by sector, unless
    /// the sector was written again.
    pub fn take_promises(&mut self) -> Vec<(u64, Stamp)> {
        let promises = core::mem::take(&mut self.promises);
        let kept = |(sector, stamp): &(u64, Stamp)| {
            self.shadow.stamp(*sector) == Some(*stamp)
                && !self.outstanding.values().any(|request| request.writes(*sector))
        };
        promises.into_iter().flatten().filter(kept).collect()
    }

    /// When it acts next by itself.
    #[must_use]
    pub fn next_event(&self, machine: &Machine) -> Option<Instant> {
        let (event, handling) = match &self.link {
            Some(link) => (machine.ports.pending(self.guest, link.port), link.handling),
            None => (None, None),
        };
        let alive = !matches!(self.stage, Stage::Removed | Stage::Vanished);
        [event, handling, self.looks, self.submits].into_iter().flatten().min().filter(|_| alive)
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
        self.handle(machine);
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
        if matches!(self.stage, Stage::Removed | Stage::Vanished) {
            return;
        }
        match machine.rng.index(3) {
            0 => self.submit(machine),
            1 => self.handle(machine),
            _ => self.look(machine),
        }
    }

    /// Whether `base` is its ring.
    #[must_use]
    pub fn is_ring(&self, base: core::ptr::NonNull<u8>) -> bool {
        self.link.as_ref().is_some_and(|link| link.ring.frame().base() == base)
    }

    /// Whether an answer is overdue.
    #[must_use]
    pub fn is_late(&self, now: Instant) -> bool {
        self.outstanding.values().any(|request| request.is_late(now, self.load.patience))
    }
}

/// The data path.
impl Frontend {
    /// Publishes a few requests at once.
    fn submit(&mut self, machine: &mut Machine) {
        let Some(link) = self.link.as_mut().filter(|_| self.stage == Stage::Connected) else { return };
        for _ in 0..machine.rng.within(1..9) {
            let full = link.ring.room() == 0 || self.outstanding.len() >= self.load.depth;
            if full || self.load.requests == 0 {
                break;
            }
            let others = self.outstanding.values();
            let made = Request::make(machine, self.guest, &self.load, &mut self.shadow, others);
            let Some(request) = made else { continue };
            link.ring.push(&request.entry(machine));
            self.outstanding.insert(request.id(), request);
            self.load.requests -= 1;
        }
        if link.ring.publish() {
            machine.notify(self.guest, link.port);
        }
        self.think(machine);
    }

    /// Sets the time of the next requests; with a full ring an answer must come first.
    fn think(&mut self, machine: &mut Machine) {
        let more = self.load.requests > 0 && self.outstanding.len() < self.load.depth;
        if more && self.stage == Stage::Connected && self.submits.is_none() {
            self.submits = Some(machine.now + Duration::from_nanos(machine.rng.within(1..THINK)));
        }
    }

    /// The interrupt handler: takes the responses, and in a later step asks for the next event and
    /// looks once more. Without an event it does nothing, whatever is in the ring.
    fn handle(&mut self, machine: &mut Machine) {
        let Some(link) = &mut self.link else { return };
        if link.handling.is_some() {
            let more = link.ring.arm();
            link.handling = None;
            if !more {
                return;
            }
        } else if !machine.ports.take(self.guest, link.port) {
            return;
        }
        link.handling = Some(machine.now + Duration::from_nanos(machine.rng.within(1..5_000)));
        while let Some(link) = &mut self.link {
            match link.ring.pop() {
                Ok(Some(entry)) => self.take_response(machine, &entry),
                Ok(None) => break,
                Err(_) => {
                    machine.violated(Violation::RingOverrun(self.guest));
                    break;
                }
            }
        }
        if self.stage == Stage::Finishing {
            self.looks.get_or_insert(machine.now);
        }
        self.think(machine);
    }

    fn take_response(&mut self, machine: &mut Machine, entry: &[u8; STRIDE]) {
        let guest = self.guest;
        let id = u64::from_le_bytes(*entry.first_chunk().expect("an entry is longer than an id"));
        let answer = (entry[8], i16::from_le_bytes([entry[10], entry[11]]));
        if entry[9] != 0 || entry[12..16] != [0; 4] {
            machine.violated(Violation::Leak(guest));
        }
        let Some(request) = self.outstanding.remove(&id) else {
            machine.violated(Violation::UnknownAnswer { guest, id });
            return;
        };
        if request.is_late(machine.now, self.load.patience) {
            machine.violated(Violation::Late(guest));
        }
        let promised = request.answered(machine, guest, answer, self.load.may_fail, &mut self.shadow);
        self.promises.push(promised);
        self.answered += 1;
    }
}

/// The life of the device.
impl Frontend {
    /// Looks at xenstore, as blkfront's `blkback_changed` and the xenbus core do.
    fn look(&mut self, machine: &mut Machine) {
        if !machine.tree.exists(&self.path) {
            self.remove(machine);
            return;
        }
        let backend = machine.tree.text(&format!("{}/state", self.backend)).unwrap_or("").to_string();
        match (self.stage, backend.as_str()) {
            (Stage::Waiting, "2") => self.offer(machine),
            (Stage::Offered, "4") => self.connect(machine),
            (Stage::Finishing, _) if self.outstanding.is_empty() => self.enter(machine, Stage::Closing, 5),
            // blkfront 6.1 marks the disk dead, mounted or not, and skips state 5.
            (Stage::Offered | Stage::Connected | Stage::Finishing | Stage::Closing, "5" | "6") => {
                self.enter(machine, Stage::Closed, 6);
            }
            (Stage::Closed, "6") if !self.outstanding.is_empty() => {
                // The backend gave up what it had not taken; so does the guest.
                self.abandon(machine, true);
                self.look(machine);
            }
            (Stage::Closed, "6") if self.reopens => {
                self.unlink(machine, true);
                self.reopens = false;
                self.enter(machine, Stage::Waiting, 1);
            }
            (Stage::Waiting | Stage::Offered | Stage::Connected | Stage::Finishing, _)
            | (Stage::Closing | Stage::Closed | Stage::Removed | Stage::Vanished, _) => {}
        }
    }

    fn enter(&mut self, machine: &mut Machine, stage: Stage, state: u8) {
        self.stage = stage;
        machine.tree.write(&format!("{}/state", self.path), state);
    }

    /// Grants a ring and opens an event channel (`talk_to_blkback`).
    fn offer(&mut self, machine: &mut Machine) {
        let mfn = machine.memory.take();
        let gref = machine.grants.offer(self.guest, DRIVER, mfn, false);
        let port = machine.ports.open(self.guest, DRIVER).expect("a guest has ports");
        let ring = FrontRing::new(machine.memory.frame(mfn));
        self.link = Some(Link { ring, mfn, gref, port, handling: None });
        let nodes = [("ring-ref", gref.0.to_string()), ("event-channel", port.0.to_string())];
        let fixed = [("protocol", "x86_64-abi".to_string()), ("feature-persistent", "0".to_string())];
        for (node, value) in nodes.into_iter().chain(fixed) {
            machine.tree.write(&format!("{}/{node}", self.path), value);
        }
        self.enter(machine, Stage::Offered, 3);
    }

    /// Reads what the backend says of the disk (`blkfront_connect`).
    fn connect(&mut self, machine: &mut Machine) {
        let number = |node: &str| {
            let text = machine.tree.text(&format!("{}/{node}", self.backend))?;
            text.parse::<u64>().ok()
        };
        let told = (number("sectors"), number("sector-size"), number("info"));
        let (Some(sectors), Some(_), Some(_)) = told else {
            machine.violated(Violation::BadDisk(self.guest));
            return;
        };
        if sectors < self.load.first + self.load.sectors {
            machine.violated(Violation::BadDisk(self.guest));
            return;
        }
        self.enter(machine, Stage::Connected, 4);
        self.think(machine);
    }

    /// The toolstack removed the device. When it did so after the backend had closed, nothing may
    /// be mapped any more; when it forced its way, that is ours to put up with.
    fn remove(&mut self, machine: &mut Machine) {
        let state = machine.tree.text(&format!("{}/state", self.backend));
        let closed = state.is_none_or(|state| state == "6");
        self.abandon(machine, closed);
        self.unlink(machine, closed);
        self.stage = Stage::Removed;
    }

    fn abandon(&mut self, machine: &mut Machine, closed: bool) {
        for (_, request) in core::mem::take(&mut self.outstanding) {
            request.abandon(machine, self.guest, closed, &mut self.shadow);
        }
    }

    fn unlink(&mut self, machine: &mut Machine, unmapped: bool) {
        let Some(link) = self.link.take() else { return };
        machine.ports.close(self.guest, link.port);
        if machine.grants.revoke(self.guest, link.gref) {
            machine.memory.give_back(link.mfn);
        } else if unmapped {
            machine.violated(Violation::StillMapped(self.guest, link.gref));
        }
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
