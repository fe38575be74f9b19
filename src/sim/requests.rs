//! A guest's block requests: made by chance within a [`Load`], and judged when they are answered.

use core::time::Duration;
use std::collections::BTreeMap;

use super::front_ring::STRIDE;
use super::machine::{DRIVER, Machine, Violation};
use super::shadow::{Shadow, Stamp, content};
use crate::units::{DomId, GrantRef, Instant, Mfn, PAGE_SIZE, SECTOR_SIZE};

const READ: u8 = 0;
const WRITE: u8 = 1;
const FLUSH: u8 = 3;

const OKAY: i16 = 0;
const ERROR: i16 = -1;
const EOPNOTSUPP: i16 = -2;

const SEGMENTS: u64 = 11;
const SECTORS_PER_PAGE: u8 = 8;

/// What a page holds outside the bytes of a request: a read that changes one of them is found.
const CANARY: u8 = 0xc5;

/// What a guest does with its disk.
#[derive(Clone, Debug)]
pub struct Load {
    /// First sector it uses.
    pub first: u64,
    /// How many it uses from there.
    pub sectors: u64,
    /// Requests it makes in all.
    pub requests: u32,
    /// Requests it has in flight at most.
    pub depth: usize,
    /// How long it waits for an answer before that is a violation.
    pub patience: Duration,
    /// Whether it writes, too.
    pub writes: bool,
    /// Whether good requests may be answered with an error: the disk or Xen was told to fail.
    pub may_fail: bool,
}

impl Load {
    /// That many requests, a ring full of them in flight, within the given sectors.
    #[must_use]
    pub const fn new(first: u64, sectors: u64, requests: u32) -> Self {
        let patience = Duration::from_secs(5);
        Self { first, sectors, requests, depth: 32, patience, writes: true, may_fail: false }
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    mfn: Mfn,
    gref: GrantRef,
    first: u8,
    last: u8,
}

impl Segment {
    fn sectors(self) -> u64 {
        u64::from(self.last - self.first) + 1
    }

    fn offset(self) -> usize {
        usize::from(self.first) * SECTOR_SIZE
    }
}

/// A request of ours that is not answered yet.
#[derive(Debug)]
pub struct Request {
    id: u64,
    operation: u8,
    sector: u64,
    segments: Vec<Segment>,
    stamp: Stamp,
    since: Instant,
    /// A flush: what it makes durable.
    promised: BTreeMap<u64, Stamp>,
}

impl Request {
    /// A request by chance; none when there was no room beside the others in flight.
    pub fn make<'a>(
        machine: &mut Machine,
        guest: DomId,
        load: &Load,
        shadow: &mut Shadow,
        others: impl Iterator<Item = &'a Self> + Clone,
    ) -> Option<Self> {
        let operation =
            [READ, READ, READ, READ, WRITE, WRITE, WRITE, WRITE, WRITE, FLUSH][machine.rng.index(10)];
        let operation = if operation == WRITE && !load.writes { READ } else { operation };
        let shapes = if operation == FLUSH { Vec::new() } else { shapes(machine, load.sectors) };
        let count = shapes.iter().map(|shape| u64::from(shape.last - shape.first) + 1).sum();
        let sector = load.first + machine.rng.within(0..load.sectors - count + 1);
        if others.clone().any(|other| other.disturbs(operation, sector, count)) {
            return None;
        }
        let stamp = machine.rng.bits().max(1);
        let promised = if operation == FLUSH { shadow.take_volatile() } else { BTreeMap::new() };
        let segments = segments(machine, guest, &shapes, operation == WRITE);
        let (id, since) = (machine.rng.bits(), machine.now);
        let request = Self { id, operation, sector, segments, stamp, since, promised };
        request.write_content(machine);
        Some(request)
    }

    /// The id that the answer must carry.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The ring entry, with arbitrary bytes where the format does not say any.
    #[must_use]
    pub fn entry(&self, machine: &mut Machine) -> [u8; STRIDE] {
        let mut entry = [0; STRIDE];
        machine.rng.fill(&mut entry);
        entry[0] = self.operation;
        entry[1] = self.segments.len() as u8;
        entry[8..16].copy_from_slice(&self.id.to_le_bytes());
        entry[16..24].copy_from_slice(&self.sector.to_le_bytes());
        for (i, segment) in self.segments.iter().enumerate() {
            let at = 24 + i * 8;
            entry[at..at + 4].copy_from_slice(&segment.gref.0.to_le_bytes());
            entry[at + 4] = segment.first;
            entry[at + 5] = segment.last;
        }
        entry
    }

    /// Whether the guest has waited for longer than `patience`.
    #[must_use]
    pub fn is_late(&self, now: Instant, patience: Duration) -> bool {
        now.since(self.since) > patience
    }

    /// Whether it writes to the sector.
    #[must_use]
    pub fn writes(&self, sector: u64) -> bool {
        self.operation == WRITE && (self.sector..self.sector + self.count()).contains(&sector)
    }

    /// Judges the answer; what a flush promised is returned, to be looked for on the disk.
    pub fn answered(
        mut self,
        machine: &mut Machine,
        guest: DomId,
        answer: (u8, i16),
        may_fail: bool,
        shadow: &mut Shadow,
    ) -> BTreeMap<u64, Stamp> {
        self.revoke(machine, guest, true);
        let (operation, status) = answer;
        if operation != self.operation || ![OKAY, ERROR, EOPNOTSUPP].contains(&status) {
            machine.violated(Violation::WrongAnswer { guest, answer });
        } else if status != OKAY && !may_fail {
            machine.violated(Violation::Refused { guest, operation });
        }
        let promised = core::mem::take(&mut self.promised);
        match (self.operation, status) {
            (READ, OKAY) => self.check(machine, guest, shadow),
            (WRITE, OKAY) => shadow.written(self.sector, self.count(), self.stamp),
            (WRITE, _) => shadow.unsettled(self.sector, self.count()),
            (FLUSH, OKAY) => {
                self.release(machine, guest);
                return promised;
            }
            (FLUSH, _) => shadow.still_volatile(promised),
            _ => {}
        }
        self.release(machine, guest);
        BTreeMap::new()
    }

    /// The same request once more, in pages of its own: the guest was restored, or its ring is new.
    /// What this one promised goes over to the new one.
    #[must_use]
    pub fn again(&mut self, machine: &mut Machine, guest: DomId) -> Self {
        let shapes = self.segments.iter().map(|segment| Shape {
            first: segment.first,
            last: segment.last,
            same_page: false,
        });
        let segments = segments(machine, guest, &shapes.collect::<Vec<_>>(), self.operation == WRITE);
        let promised = core::mem::take(&mut self.promised);
        let request = Self { id: machine.rng.bits(), segments, since: machine.now, promised, ..*self };
        request.write_content(machine);
        request
    }

    /// The guest was paused for so long.
    pub fn excuse(&mut self, pause: Duration) {
        self.since = self.since + pause;
    }

    /// It will never be answered: what it did, or will still do, is not known.
    pub fn forget(&mut self, shadow: &mut Shadow) {
        match self.operation {
            WRITE => shadow.unsettled(self.sector, self.count()),
            FLUSH => shadow.still_volatile(core::mem::take(&mut self.promised)),
            _ => {}
        }
    }

    /// Takes the pages back of one that was given up; `unmapped` says that we must have let go.
    pub fn give_back(self, machine: &mut Machine, guest: DomId, unmapped: bool) {
        self.revoke(machine, guest, unmapped);
        self.release(machine, guest);
    }

    fn count(&self) -> u64 {
        self.segments.iter().map(|segment| segment.sectors()).sum()
    }

    /// Whether the result of a new request would depend on which of the two comes first.
    fn disturbs(&self, operation: u8, sector: u64, count: u64) -> bool {
        let overlap = sector < self.sector + self.count() && self.sector < sector + count;
        overlap && (operation == WRITE || self.operation == WRITE)
    }

    fn each_sector(&self, machine: &mut Machine, mut act: impl FnMut(&mut Machine, u64, Mfn, usize)) {
        let mut sector = self.sector;
        for segment in &self.segments {
            for i in 0..segment.sectors() {
                act(machine, sector, segment.mfn, segment.offset() + i as usize * SECTOR_SIZE);
                sector += 1;
            }
        }
    }

    fn write_content(&self, machine: &mut Machine) {
        if self.operation == WRITE {
            self.each_sector(machine, |machine, sector, mfn, offset| {
                machine.memory.frame(mfn).write(offset, &content(sector, self.stamp));
            });
        }
    }

    /// A read's pages: the sectors, and nothing else was touched.
    fn check(&self, machine: &mut Machine, guest: DomId, shadow: &Shadow) {
        let mut wrong = None;
        self.each_sector(machine, |machine, sector, mfn, offset| {
            let mut bytes = [0; SECTOR_SIZE];
            let frame = machine.memory.frame(mfn);
            frame.read(offset, &mut bytes);
            frame.write(offset, &[CANARY; SECTOR_SIZE]);
            if !shadow.accepts(sector, &bytes) {
                wrong.get_or_insert(sector);
            }
        });
        for segment in &self.segments {
            let mut page = [0; PAGE_SIZE];
            machine.memory.frame(segment.mfn).read(0, &mut page);
            if page != [CANARY; PAGE_SIZE] {
                wrong.get_or_insert(self.sector);
            }
        }
        if let Some(sector) = wrong {
            machine.violated(Violation::Corrupt { guest, sector });
        }
    }

    /// Takes the grants back, each once; those that stay mapped are a violation when `unmapped`.
    fn revoke(&self, machine: &mut Machine, guest: DomId, unmapped: bool) {
        for gref in self.pages().map(|segment| segment.gref) {
            if !machine.grants.revoke(guest, gref) && unmapped {
                machine.violated(Violation::StillMapped(guest, gref));
            }
        }
    }

    /// Gives the pages back that nobody has mapped.
    fn release(&self, machine: &mut Machine, guest: DomId) {
        for segment in self.pages() {
            if !machine.grants.is_mapped(guest, segment.gref) {
                machine.memory.give_back(segment.mfn);
            }
        }
    }

    fn pages(&self) -> impl Iterator<Item = Segment> {
        let mut last = None;
        self.segments.iter().copied().filter(move |segment| last.replace(segment.gref) != Some(segment.gref))
    }
}

/// Where in its page a segment lies, and whether that page is the segment's before it.
struct Shape {
    first: u8,
    last: u8,
    same_page: bool,
}

/// Whole pages half of the time, and any pieces of pages otherwise; at most `room` sectors.
fn shapes(machine: &mut Machine, room: u64) -> Vec<Shape> {
    let rng = &mut machine.rng;
    let whole = rng.one_in(2);
    let mut shapes: Vec<Shape> = Vec::new();
    let mut total = 0;
    for _ in 0..rng.within(1..SEGMENTS + 1) {
        let before = shapes.last().map(|shape| shape.last).filter(|last| *last < SECTORS_PER_PAGE - 1);
        let before = before.filter(|_| rng.one_in(4));
        let first = match before {
            _ if whole => 0,
            Some(last) => rng.within(u64::from(last) + 1..8) as u8,
            None => rng.within(0..8) as u8,
        };
        let last = if whole { SECTORS_PER_PAGE - 1 } else { rng.within(u64::from(first)..8) as u8 };
        total += u64::from(last - first) + 1;
        if total > room {
            break;
        }
        shapes.push(Shape { first, last, same_page: before.is_some() && !whole });
    }
    if shapes.is_empty() {
        shapes.push(Shape { first: 0, last: 0, same_page: false });
    }
    shapes
}

/// Pages for the shapes, each granted once; the data of a write is granted read-only.
fn segments(machine: &mut Machine, guest: DomId, shapes: &[Shape], readonly: bool) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for Shape { first, last, same_page } in shapes {
        let shared = segments.last().filter(|_| *same_page).map(|segment| (segment.mfn, segment.gref));
        let (mfn, gref) = shared.unwrap_or_else(|| {
            let mfn = machine.memory.take();
            machine.memory.frame(mfn).fill(CANARY);
            (mfn, machine.grants.offer(guest, DRIVER, mfn, readonly))
        });
        segments.push(Segment { mfn, gref, first: *first, last: *last });
    }
    segments
}
