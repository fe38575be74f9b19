//! A guest that keeps no rules: it changes what it shares with its backend whenever it likes, above all between
//! two of the backend's own accesses, and breaks what can be broken of rings, entries, descriptor pages, grants, events
//! and nodes. It starts again when its device was closed for that. What becomes of its disk is nobody's business; what
//! becomes of others is checked as always.

use core::ptr::NonNull;
use core::time::Duration;

use super::abi::{
    Abi, BARRIER, Body, DISCARD, ENTRY_BYTES, Entry, FLUSH, Head, INDIRECT, READ, SEGMENTS, Segment, WRITE,
    write_segment,
};
use super::front_ring::HEADER;
use super::frontend::{back_path, front_path};
use super::machine::{DRIVER, Machine};
use super::pages::Page;
use super::toolstack::Disk;
use crate::mem::frame::Frame;
use crate::units::{Instant, PAGE_SIZE, Port};

/// Where the indexes of a ring are.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// Entries of its ring, of one page.
const ENTRIES: u32 = 32;

/// Pages for data, and for the segments of indirect requests.
const DATA: usize = 12;
const TABLES: usize = 2;

/// The longest it does nothing by itself, in nanoseconds.
const PAUSE: u64 = 1_000_000;

/// A guest with one disk.
#[derive(Debug)]
pub struct Intruder {
    disk: Disk,
    sectors: u64,
    path: String,
    backend: String,
    ring: Page,
    port: Port,
    data: Vec<Page>,
    tables: Vec<Page>,
    /// The pages of these that the backend looks at.
    frames: Vec<Frame>,
    /// Requests that it has claimed, and answers as it saw them last.
    claimed: u32,
    answered: u32,
    next: Instant,
    until: Instant,
    acts: u64,
    is_gone: bool,
}

impl Intruder {
    /// The guest of a disk of so many sectors whose directories the toolstack has just made. It is at it until
    /// that time.
    ///
    /// # Panics
    /// When the guest has no event channels left.
    #[must_use]
    pub fn new(machine: &mut Machine, disk: &Disk, sectors: u64, until: Instant) -> Self {
        let guest = disk.guest;
        let mut grant = |readonly| Page::grant(machine, guest, readonly);
        let ring = grant(false);
        let data = (0..DATA).map(|i| grant(i % 4 == 3)).collect();
        let tables: Vec<Page> = (0..TABLES).map(|_| grant(true)).collect();
        let frames = [ring].iter().chain(&tables).map(|page| machine.memory.frame(page.mfn)).collect();
        Self {
            path: front_path(guest, disk.dev),
            backend: back_path(guest, disk.dev),
            port: machine.ports.open(guest, DRIVER).expect("a guest has ports"),
            disk: disk.clone(),
            sectors,
            ring,
            data,
            tables,
            frames,
            claimed: 0,
            answered: 0,
            next: machine.now,
            until,
            acts: 0,
            is_gone: false,
        }
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// What it did so far.
    #[must_use]
    pub fn acts(&self) -> u64 {
        self.acts
    }

    /// Whether the backend looks at one of its pages there, and if so, whether `offset` is one of an index.
    #[must_use]
    pub fn finds(&self, base: NonNull<u8>, offset: usize) -> Option<bool> {
        let page = self.frames.iter().position(|frame| frame.base() == base)?;
        Some(page == 0 && offset < HEADER)
    }

    /// When it acts next by itself.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        (!self.is_gone && self.next < self.until).then_some(self.next)
    }

    /// Its guest was destroyed.
    pub fn vanish(&mut self) {
        self.is_gone = true;
    }

    /// Does what is due: follows the backend as far as a device needs it to be connected, and then some mischief.
    pub fn step(&mut self, machine: &mut Machine) {
        self.next = machine.now + Duration::from_nanos(machine.rng.within(1..PAUSE));
        let state =
            |machine: &Machine, path: &str| machine.tree.text(&format!("{path}/state")).map(str::to_owned);
        let ours = state(machine, &self.path);
        match (state(machine, &self.backend).as_deref(), ours.as_deref()) {
            (Some("2"), Some(ours)) if ours != "3" => self.offer(machine),
            (Some("5" | "6"), Some("1")) | (_, None) => {}
            (Some("5" | "6"), _) => self.say(machine, "state", 1),
            // Until it is connected it keeps quiet, mostly: else it would hardly ever be.
            (Some("2"), _) if !machine.rng.one_in(2_000) => {}
            _ => self.act(machine),
        }
    }

    /// Does any one thing that it must not, or must, if it still is at it.
    pub fn act(&mut self, machine: &mut Machine) {
        if self.is_gone || machine.now >= self.until {
            return;
        }
        self.acts += 1;
        match machine.rng.index(10_000) {
            0 => self.say_anything(machine),
            1 => self.claim_anything(machine),
            2..250 => self.grant_anew(machine),
            250..1_000 => self.scribble(machine),
            1_000..2_000 => (0..4).for_each(|_| machine.notify(self.disk.guest, self.port)),
            2_000..4_000 => self.spoil(machine),
            4_000..5_000 => self.describe(machine),
            _ => self.ask(machine),
        }
    }

    /// Shows its ring, as a frontend does that is ready.
    fn offer(&mut self, machine: &mut Machine) {
        let protocol = ["x86_64-abi", "x86_32-abi"][machine.rng.index(2)];
        self.frames[0].fill(0);
        for node in ["multi-queue-num-queues", "ring-page-order"] {
            machine.tree.remove(&format!("{}/{node}", self.path));
        }
        (self.claimed, self.answered) = (0, 0);
        for (node, value) in [
            ("ring-ref", self.ring.gref.0.to_string()),
            ("event-channel", self.port.0.to_string()),
            ("protocol", protocol.into()),
            ("feature-persistent", machine.rng.index(2).to_string()),
            ("state", "3".into()),
        ] {
            self.say(machine, node, value);
        }
    }

    fn say(&self, machine: &mut Machine, node: &str, value: impl ToString) {
        if machine.tree.exists(&self.path) {
            machine.tree.write(&format!("{}/{node}", self.path), value);
        }
    }

    /// Writes a node that makes no sense, or none now.
    fn say_anything(&self, machine: &mut Machine) {
        const NODES: [&str; 6] =
            ["state", "ring-ref", "event-channel", "protocol", "multi-queue-num-queues", "ring-page-order"];
        let node = NODES[machine.rng.index(NODES.len())];
        let value = match machine.rng.index(4) {
            0 => "\u{1}".repeat(machine.rng.index(2048)),
            1 => machine.rng.bits().to_string(),
            _ => machine.rng.index(9).to_string(),
        };
        self.say(machine, node, value);
    }

    /// Claims as many requests as it happens to.
    fn claim_anything(&mut self, machine: &mut Machine) {
        let bits = machine.rng.bits() as u32;
        let distance = if machine.rng.one_in(2) { bits } else { bits % (4 * ENTRIES) };
        self.claim(machine, self.claimed.wrapping_sub(2 * ENTRIES).wrapping_add(distance));
    }

    fn claim(&mut self, machine: &mut Machine, claimed: u32) {
        self.claimed = claimed;
        self.frames[0].write_u32(REQ_PROD, claimed);
        machine.notify(self.disk.guest, self.port);
    }

    /// Takes a page back that is not in use, and grants it again, otherwise perhaps.
    fn grant_anew(&mut self, machine: &mut Machine) {
        let page = &mut self.data[machine.rng.index(DATA)];
        if machine.grants.revoke(self.disk.guest, page.gref) {
            let readonly = machine.rng.one_in(4);
            page.gref = machine.grants.offer(self.disk.guest, DRIVER, page.mfn, readonly);
        }
    }

    /// Writes to an index that is the backend's, or says when it wants an event.
    fn scribble(&self, machine: &mut Machine) {
        let index = [RSP_PROD, REQ_EVENT, REQ_EVENT, RSP_EVENT][machine.rng.index(4)];
        let near = self.claimed.wrapping_add(machine.rng.index(8) as u32);
        let value = if machine.rng.one_in(2) { machine.rng.bits() as u32 } else { near };
        self.frames[0].write_u32(index, value);
    }

    /// Changes a few bytes of an entry or of a descriptor page that the backend may be reading.
    fn spoil(&self, machine: &mut Machine) {
        let frame = self.frames[machine.rng.index(self.frames.len())];
        let at = HEADER + machine.rng.index(PAGE_SIZE - HEADER - 8);
        let mut bytes = [0; 8];
        machine.rng.fill(&mut bytes);
        frame.write(at, &bytes[..1 + machine.rng.index(8)]);
    }

    /// Fills a descriptor page with segments.
    fn describe(&self, machine: &mut Machine) {
        let mut bytes = [0; PAGE_SIZE];
        for place in bytes.chunks_exact_mut(8) {
            write_segment(place, self.segment(machine));
        }
        self.frames[1 + machine.rng.index(TABLES)].write(0, &bytes);
    }

    /// Mostly one that makes sense.
    fn segment(&self, machine: &mut Machine) -> Segment {
        let rng = &mut machine.rng;
        let gref = self.data[rng.index(DATA)].gref.0;
        match rng.index(100) {
            0 => (rng.bits() as u32, 0, 7),
            1 => (gref, rng.index(16) as u8, rng.index(16) as u8),
            2..20 => {
                let first = rng.index(8);
                (gref, first as u8, (first + rng.index(8 - first)) as u8)
            }
            _ => (gref, 0, 7),
        }
    }

    /// Makes a few requests, of which some make sense.
    fn ask(&mut self, machine: &mut Machine) {
        let answered = self.frames[0].read_u32(RSP_PROD);
        // Not when it was scribbled on.
        if self.claimed.wrapping_sub(answered) <= ENTRIES {
            self.answered = answered;
        }
        let waiting = self.claimed.wrapping_sub(self.answered);
        if waiting >= ENTRIES {
            return;
        }
        let count = machine.rng.within(1..u64::from(ENTRIES - waiting) + 1) as u32;
        for place in 0..count {
            let entry = self.entry(machine);
            let place = self.claimed.wrapping_add(place) % ENTRIES;
            self.frames[0].write(HEADER + place as usize * Abi::X64.stride(), &entry);
        }
        self.claim(machine, self.claimed.wrapping_add(count));
    }

    fn entry(&self, machine: &mut Machine) -> Entry {
        const OPERATIONS: [u8; 7] = [READ, READ, WRITE, WRITE, FLUSH, BARRIER, DISCARD];
        let mut entry = [0; ENTRY_BYTES];
        let operation = OPERATIONS[machine.rng.index(OPERATIONS.len())];
        let sector = machine.rng.within(0..self.sectors + 64);
        let sector = if machine.rng.one_in(50) { machine.rng.bits() } else { sector };
        let head = Head { operation, id: machine.rng.bits(), sector };
        let segments: Vec<Segment> =
            (0..machine.rng.index(SEGMENTS + 1)).map(|_| self.segment(machine)).collect();
        let pages: Vec<u32> = self.tables.iter().map(|page| page.gref.0).collect();
        let count = machine.rng.index(300) as u16;
        let body = match machine.rng.index(8) {
            _ if operation == DISCARD => Body::Discard(0, machine.rng.within(0..1 << 12)),
            0 => Body::Indirect(count, &pages),
            _ => Body::Direct(&segments),
        };
        Abi::X64.write(&mut entry, head, body);
        if machine.rng.one_in(50) {
            entry[0] = [INDIRECT, machine.rng.bits() as u8][machine.rng.index(2)];
        }
        entry
    }
}
