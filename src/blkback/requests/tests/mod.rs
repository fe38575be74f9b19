//! Frontends, a machine whose grants may fail, and a disk that does as it is told, around the
//! requests of one device.

mod direct;
mod discard;
mod indirect;
mod kept;
mod ordered;
mod rings;
mod storm;

use core::time::Duration;
use std::collections::BTreeSet;
use std::vec::Vec as List;

use heapless::Vec;

use super::*;
use crate::blkback::link::{Endpoint, Link};
use crate::blkback::means::Allowance;
use crate::blkback::testing::{Chance, Machine, bus_of};
use crate::hal::{DeviceAccess, Events, Grants, Memory};
use crate::limits::{GRANT_BATCH, MAPPINGS, SEGMENTS};
use crate::mem::frame::Frame;
use crate::units::{BusAddr, DomId, GrantRef};
use crate::volume::tests::volume;
use crate::wire::blkif::Protocol;
use crate::wire::blkif::tests::{discard, entry, indirect, segment_bytes};
use crate::wire::ring::FrontendFault;
use crate::wire::ring::tests::Front;

const READ: u8 = 0;
const WRITE: u8 = 1;
const BARRIER: u8 = 2;
const FLUSH: u8 = 3;
const DISCARD: u8 = 5;
const OKAY: i16 = 0;
const ERROR: i16 = -1;
const UNSUPPORTED: i16 = -2;

/// The guest that all requests are of.
const GUEST: DomId = DomId(5);

/// Pages of the guest that are looked into: of rings, then of segments.
const RING_GREF: u32 = 1_000_000;
const TABLE_GREF: u32 = 2_000_000;

/// What one command takes.
const COMMAND_TIME: Duration = Duration::from_micros(100);

/// A segment: the grant, its first and its last sector.
type Seg = (u32, u8, u8);

/// A command that the disk holds.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    slot: u8,
    work: Work,
    spans: List<Span>,
}

/// What a device is like; by default one ring of one page, and nothing is offered besides.
struct Setup {
    volume: Volume,
    read_only: bool,
    discards: bool,
    persistent: bool,
    /// Whether there is memory for everything.
    full: bool,
    rings: usize,
    /// Pages that may be mapped at once.
    mappings: usize,
}

impl Default for Setup {
    fn default() -> Self {
        let volume = volume(512, 1000);
        let (read_only, discards, persistent, full) = (false, false, false, false);
        Self { volume, read_only, discards, persistent, full, rings: 1, mappings: MAPPINGS }
    }
}

struct Rig {
    fronts: List<Front>,
    requests: Requests,
    machine: Machine,
    batch: Batch,
    held: List<Held>,
    /// A command takes a while.
    now: Instant,
}

/// What is there for a device that has everything, and for one that has little.
const MUCH_MEMORY: usize = 100_000;
const LITTLE_MEMORY: usize = 100;

impl Rig {
    fn new(volume: Volume, read_only: bool) -> Self {
        Self::with(Setup { volume, read_only, ..Setup::default() })
    }

    /// A device that has all there is.
    fn full() -> Self {
        Self::with(Setup { full: true, ..Setup::default() })
    }

    fn with(setup: Setup) -> Self {
        let Setup { volume, read_only, discards, persistent, full, rings, mappings } = setup;
        let mut machine = Machine::with(rings, if full { MUCH_MEMORY } else { LITTLE_MEMORY });
        let now = Instant(1 << 40);
        let allowance = Allowance { rings, keeps: persistent, mappings };
        let (page, means) = Means::take(&mut machine, allowance, now).unwrap();
        machine.return_private(page);
        let service = Service { guest: GUEST, volume, read_only, discards };
        let mut requests = Requests::new(service, means);
        requests.open(persistent);
        let fronts = (0..rings as u32).map(|ring| connect(&mut machine, &mut requests, ring)).collect();
        Self { fronts, requests, machine, batch: Batch::new(), held: List::new(), now }
    }

    fn front(&mut self) -> &mut Front {
        &mut self.fronts[0]
    }

    fn submit(&mut self, operation: u8, id: u64, sector: u64, segments: &[Seg]) {
        self.front().submit(&entry(operation, id, sector, segments));
    }

    /// Submits an indirect request, whose segments are in a page of their own for each id.
    fn submit_indirect(&mut self, operation: u8, id: u64, sector: u64, segments: &[Seg]) {
        let gref = TABLE_GREF + id as u32;
        let frame = *self.machine.granted.entry((GUEST.0, gref)).or_insert_with(Frame::new);
        for (i, segment) in segments.iter().enumerate() {
            frame.write(i * 8, &segment_bytes(*segment));
        }
        let count = u16::try_from(segments.len()).unwrap();
        self.front().submit(&indirect(Protocol::X86_64, operation, id, sector, count, gref));
    }

    fn admit(&mut self) -> Admitted {
        self.admit_into(GRANT_BATCH)
    }

    /// Takes all there is, with room for so many maps.
    fn admit_into(&mut self, room: usize) -> Admitted {
        self.batch.start(room);
        let admitted = self.try_admit(SLOTS).unwrap();
        self.call(admitted);
        admitted
    }

    fn try_admit(&mut self, limit: usize) -> Result<Admitted, FrontendFault> {
        self.requests.admit(self.now, limit, &mut self.batch)
    }

    /// The hypercalls of what was admitted.
    fn call(&mut self, admitted: Admitted) {
        let Batch { copies, maps, .. } = &mut self.batch;
        assert_eq!((copies.len(), maps.len()), (admitted.copies.into(), admitted.maps.into()));
        self.machine.copy(copies);
        let more = self.requests.copied(self.now, copies, maps);
        assert_eq!(maps.len(), usize::from(admitted.maps) + more);
        assert!(maps.iter().all(|map| map.dom == GUEST) && copies.iter().all(|copy| copy.dom == GUEST));
        self.machine.map(maps);
        self.requests.mapped(self.now, maps);
    }

    /// Issues everything there is, `most` spans a command.
    fn issue(&mut self, most: usize) {
        self.issue_some(usize::MAX, most);
    }

    fn issue_some(&mut self, commands: usize, most: usize) {
        let mut spans = Spans::new();
        for _ in 0..commands {
            let Some(Command { slot, work }) = self.requests.next_command(&mut spans) else { return };
            let taken = spans.as_slice().len().min(most);
            self.requests.issued(match work {
                Work::Read(_) | Work::Write(_) | Work::WriteThrough(_) => spans.issued(taken),
                Work::Flush => Issued::Flush,
                Work::Discard(_, blocks) => Issued::Blocks(blocks),
            });
            self.held.push(Held { slot, work, spans: List::from(&spans.as_slice()[..taken]) });
        }
    }

    /// The next command as it would be issued.
    fn next(&self) -> Option<Work> {
        self.requests.next_command(&mut Spans::new()).map(|command| command.work)
    }

    /// What the disk holds.
    fn works(&self) -> List<Work> {
        self.held.iter().map(|held| held.work).collect()
    }

    /// Every page that the disk may still reach is mapped.
    fn check_reach(&self) {
        let mapped: BTreeSet<_> = self.machine.reachable.values().map(|gref| bus_of(*gref)).collect();
        assert_eq!(self.machine.reachable.len(), self.requests.held + self.requests.kept());
        assert!(self.requests.held <= self.requests.means.mappings);
        for span in self.held.iter().flat_map(|held| &held.spans) {
            let page = span.bus.0 & !4095;
            assert!(mapped.contains(&page), "reach into an unmapped page");
            assert!(span.bytes > 0 && span.bus.0 - page + u64::from(span.bytes) <= 4096);
        }
    }

    fn complete(&mut self, at: usize, ok: bool) {
        let held = self.held.remove(at);
        self.now = self.now + COMMAND_TIME;
        self.requests.completed(held.slot, ok);
    }

    /// Issues and completes everything, in order.
    fn work(&mut self) {
        self.issue(SEGMENTS);
        while !self.held.is_empty() {
            self.check_reach();
            self.complete(0, true);
            self.issue(SEGMENTS);
        }
    }

    /// Unmaps, answers and publishes what is finished.
    fn settle(&mut self) {
        let mut unmaps = Vec::<_, GRANT_BATCH>::new();
        let waits = self.requests.reap(self.now, &mut unmaps);
        self.machine.unmap(&unmaps);
        self.check_reach();
        if waits {
            self.requests.answer(self.now);
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.requests.publish(|port| self.machine.notify(port));
    }

    /// The next response on the first ring: its id and status.
    fn answer(&mut self) -> Option<(u64, i16)> {
        self.front().response().map(|(_, id, status)| (id, status))
    }

    /// One request from end to end.
    fn run(&mut self, operation: u8, sector: u64, segments: &[Seg]) -> i16 {
        self.submit(operation, 77, sector, segments);
        self.end(operation)
    }

    fn run_indirect(&mut self, operation: u8, sector: u64, segments: &[Seg]) -> i16 {
        self.submit_indirect(operation, 77, sector, segments);
        self.end(operation)
    }

    /// What the only request ends with, which has the id 77.
    fn end(&mut self, operation: u8) -> i16 {
        self.admit();
        self.work();
        assert_eq!(self.answer(), None, "no answer before the pages are given back");
        self.settle();
        let (op, id, status) = self.front().response().expect("an answer");
        assert_eq!((op, id, self.answer()), (operation, 77, None));
        assert_eq!((self.requests.in_flight(), self.requests.held), (0, 0));
        status
    }

    /// Grants that are mapped for devices.
    fn mapped(&self) -> List<u32> {
        self.machine.reachable.values().copied().collect()
    }

    /// Ends the connection; nothing of it may be left.
    fn close(mut self) {
        assert_eq!(self.requests.in_flight(), 0);
        while let Some(kept) = self.requests.means_mut().keep.as_mut().and_then(|keep| keep.take_oldest()) {
            self.machine.unmap(&[kept]);
        }
        let mut means = self.requests.into_means();
        while let Some(link) = means.links.pop() {
            self.machine.close(link.port);
            link.close(&mut self.machine);
        }
        means.give_back(&mut self.machine);
        let Machine { reachable, mapped, bound, taken_pages, .. } = &self.machine;
        assert!(reachable.is_empty() && mapped.is_empty() && bound.is_empty() && *taken_pages == 0);
    }
}

/// Connects a ring of one page, whose indexes are about to wrap.
fn connect(machine: &mut Machine, requests: &mut Requests, ring: u32) -> Front {
    let frame = Frame::new();
    let front = Front::at(frame, u32::MAX - 50);
    machine.granted.insert((GUEST.0, RING_GREF + ring), frame);
    machine.open.push((GUEST.0, ring));
    let endpoint = Endpoint { pages: Vec::from_iter([GrantRef(RING_GREF + ring)]), port: Port(ring) };
    let link = Link::open(machine, GUEST, &endpoint, Protocol::X86_64, |machine, remote| {
        machine.bind_interdomain(GUEST, remote)
    });
    requests.means_mut().links.push(link.unwrap());
    front
}

/// So many whole pages, of every other grant so that no two follow on.
fn pages(count: u32) -> List<Seg> {
    (0..count).map(|i| (i * 2, 0, 7)).collect()
}
