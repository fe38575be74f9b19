//! A backend small enough to be plainly right, with one mistake on demand: what the simulated world
//! must not let pass is shown with it. It serves one guest, all of blkif, one request at a time.

mod disk;
mod link;

use core::time::Duration;
use std::collections::BTreeMap;

use platter::hal::{Clock, DeviceAccess, Events, GrantMap, GrantMapping, Grants};
use platter::sim::Dma;
use platter::sim::frontend::{back_path, front_path};
use platter::sim::machine::Violation;
use platter::sim::world::{Pace, World};
use platter::units::{BusAddr, DomId, GrantRef, Instant, Port};

use self::disk::Disk;
use self::link::{Link, Request, Segment, segment};

const SECTOR: usize = 512;

const READ: u8 = 0;
const WRITE: u8 = 1;
const BARRIER: u8 = 2;
const FLUSH: u8 = 3;
const DISCARD: u8 = 5;

/// All that a backend can offer.
const OFFER: [(&str, u32); 7] = [
    ("max-ring-page-order", 4),
    ("multi-queue-max-queues", 16),
    ("feature-persistent", 1),
    ("feature-max-indirect-segments", 256),
    ("feature-barrier", 1),
    ("feature-discard", 1),
    ("discard-secure", 1),
];

/// The one thing that is done wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mistake {
    None,
    ForgetsToLookAgain,
    NeverNotifies,
    AnswersTwice,
    AnswersWithAnotherOperation,
    AnswersWithTheOuterOperation,
    AnswersWithAnotherId,
    AnswersInAnotherQueue,
    AnswersUnknownOperations,
    LeavesBytesInTheAnswer,
    FailsARead,
    AnswersBeforeUnmapping,
    UnmapsBeforeTheDevice,
    UnmapsTwice,
    UnmapsAnotherAddress,
    MapsWritesWritable,
    KeepsPagesAfterClosing,
    MisplacesASector,
    OverwritesTheWholePage,
    DiscardsOneSectorMore,
    FlushesNothing,
    TakesBarriersForWrites,
    PutsBarriersOff,
    SkipsInitWait,
    NeverSleeps,
}

/// The backend of one device.
pub(crate) struct Toy {
    guest: DomId,
    dev: u32,
    mistake: Mistake,
    links: Vec<Link>,
    /// Pages that stay mapped, when grants are persistent.
    kept: Option<BTreeMap<u32, GrantMapping>>,
    dwells: Option<Instant>,
    disk: Disk,
}

impl Toy {
    pub(crate) fn new(guest: DomId, dev: u32, mistake: Mistake) -> Self {
        Self { guest, dev, mistake, links: Vec::new(), kept: None, dwells: None, disk: Disk::default() }
    }

    /// One turn of the loop.
    pub(crate) fn turn(&mut self, world: &mut World) -> Pace {
        let now = world.now();
        while world.next_pending().is_some() {}
        self.handshake(world, now);
        self.check_promises(world);
        let mut moved = false;
        for link in 0..self.links.len() {
            moved |= self.serve(world, link);
        }
        let called = || self.links.iter().fold(false, |called, link| link.arm(self.mistake) | called);
        if moved || called() || self.mistake == Mistake::NeverSleeps {
            return Pace::Again;
        }
        // There is no xenstore client here: changes are looked for now and then.
        let look = if self.is_over(world) { None } else { Some(now + Duration::from_millis(50)) };
        Pace::Sleep(look)
    }

    /// How many pages it keeps mapped.
    pub(crate) fn kept(&self) -> usize {
        self.kept.as_ref().map_or(0, BTreeMap::len)
    }

    fn state(&self, world: &World, path: &str) -> String {
        world.state().machine.tree.text(&format!("{path}/state")).unwrap_or("").to_string()
    }

    /// Whether it waits for requests alone, or for nothing.
    fn is_over(&self, world: &World) -> bool {
        ["4", "6"].contains(&self.state(world, &front_path(self.guest, self.dev)).as_str())
    }

    fn handshake(&mut self, world: &mut World, now: Instant) {
        let (front, back) = (front_path(self.guest, self.dev), back_path(self.guest, self.dev));
        let write = |world: &World, node: &str, value: &str| {
            world.state().machine.tree.write(&format!("{back}/{node}"), value);
        };
        let states = (self.state(world, &front), self.state(world, &back));
        match (states.0.as_str(), states.1.as_str()) {
            (_, "1") => {
                OFFER.iter().for_each(|(node, value)| write(world, node, &value.to_string()));
                write(world, "state", "2");
                self.dwells = Some(now + Duration::from_millis(200));
            }
            ("3", "2")
                if self.dwells.is_some_and(|dwells| dwells <= now)
                    || self.mistake == Mistake::SkipsInitWait =>
            {
                self.connect(world);
                for (node, value) in
                    [("sectors", "4096"), ("sector-size", "512"), ("info", "0"), ("state", "4")]
                {
                    write(world, node, value);
                }
            }
            ("5", "4") => {
                self.disconnect(world);
                write(world, "state", "6");
            }
            _ => {}
        }
    }

    fn text(&self, world: &World, node: &str) -> Option<String> {
        let path = format!("{}/{node}", front_path(self.guest, self.dev));
        world.state().machine.tree.text(&path).map(str::to_owned)
    }

    fn number(&self, world: &World, node: &str) -> Option<u32> {
        Some(self.text(world, node)?.parse().expect("a number"))
    }

    fn connect(&mut self, world: &mut World) {
        self.kept = (self.number(world, "feature-persistent") == Some(1)).then(BTreeMap::new);
        let queues = self.number(world, "multi-queue-num-queues").unwrap_or(1);
        let order = self.number(world, "ring-page-order");
        let wide = self.text(world, "protocol").as_deref() == Some("x86_64-abi");
        for queue in 0..queues {
            let directory = if queues > 1 { format!("queue-{queue}/") } else { String::new() };
            let names = match order {
                Some(order) => (0..1 << order).map(|page| format!("ring-ref{page}")).collect(),
                None => vec!["ring-ref".to_string()],
            };
            let number = |node: &str| self.number(world, &format!("{directory}{node}")).expect("published");
            let grefs: Vec<_> = names.iter().map(|name| GrantRef(number(name))).collect();
            let remote = Port(number("event-channel"));
            self.links.push(Link::connect(world, self.guest, &grefs, remote, wide));
        }
    }

    fn disconnect(&mut self, world: &mut World) {
        self.links.drain(..).for_each(|link| link.disconnect(world));
        let kept: Vec<_> = self.kept.take().unwrap_or_default().into_values().collect();
        if self.mistake != Mistake::KeepsPagesAfterClosing {
            world.unmap(&kept);
        }
    }

    /// Takes what is in a ring and answers it at once.
    fn serve(&mut self, world: &mut World, link: usize) -> bool {
        let started = self.links[link].taken();
        let mut put_off = Vec::new();
        while let Some(request) = self.links[link].take() {
            if request.operation == BARRIER && self.mistake == Mistake::PutsBarriersOff {
                put_off.push(request);
            } else {
                self.request(world, link, request);
            }
        }
        put_off.into_iter().for_each(|request| self.request(world, link, request));
        self.links.iter_mut().for_each(|link| link.publish(world, self.mistake));
        self.links[link].taken() != started
    }

    fn request(&mut self, world: &mut World, link: usize, mut request: Request) {
        self.read_descriptors(world, &mut request);
        let operation = request.operation;
        let is_barrier = operation == BARRIER && self.mistake != Mistake::TakesBarriersForWrites;
        if (operation == FLUSH && self.mistake != Mistake::FlushesNothing) || is_barrier {
            self.disk.flush();
        }
        let mappings = self.map(world, operation == READ, &request.segments);
        let early = self.mistake == Mistake::UnmapsBeforeTheDevice;
        let late = self.mistake == Mistake::AnswersBeforeUnmapping;
        if early {
            self.unmap(world, &mappings);
        }
        if [READ, WRITE, BARRIER, FLUSH].contains(&operation) {
            self.transfer(world, &request, &mappings);
        }
        let more = u64::from(self.mistake == Mistake::DiscardsOneSectorMore && operation == DISCARD);
        self.disk.discard(request.sector, request.discarded + more * 2);
        if is_barrier {
            self.disk.flush();
        }
        if !early && !late {
            self.unmap(world, &mappings);
        }
        self.answer(link, &request);
        if late {
            // The guest sees the answer, and takes its grants back, before this.
            self.links[link].publish(world, self.mistake);
            let soon = world.now() + Duration::from_millis(1);
            world.wait(Some(soon));
            self.unmap(world, &mappings);
        }
    }

    /// The segments that are in pages of their own.
    fn read_descriptors(&mut self, world: &mut World, request: &mut Request) {
        let (count, grefs) = &request.descriptors;
        let pages = grefs.iter().map(|gref| Segment { gref: *gref, first: 0, last: 7 }).collect::<Vec<_>>();
        let mappings = self.map(world, false, &pages);
        let mut bytes = vec![0; mappings.len() * 4096];
        for (page, mapping) in bytes.chunks_mut(4096).zip(&mappings) {
            let _ = world.state().machine.read(mapping.bus, page);
        }
        let segments = bytes.chunks_exact(8).take(*count).map_while(segment);
        request.segments.extend(segments);
        self.unmap(world, &mappings);
    }

    /// Pages that stay mapped are writable.
    fn map(&mut self, world: &mut World, written: bool, segments: &[Segment]) -> Vec<GrantMapping> {
        let writable = written || self.kept.is_some() || self.mistake == Mistake::MapsWritesWritable;
        let access = if writable { DeviceAccess::Writes } else { DeviceAccess::Reads };
        let one = |segment: &Segment| {
            let kept = self.kept.as_ref().and_then(|kept| kept.get(&segment.gref.0));
            kept.copied().or_else(|| {
                let mut op = [GrantMap::new(self.guest, segment.gref, access)];
                world.map(&mut op);
                let mapping = op[0].result.ok()?;
                self.kept.as_mut().map(|kept| kept.insert(segment.gref.0, mapping));
                Some(mapping)
            })
        };
        segments.iter().filter_map(one).collect()
    }

    fn unmap(&self, world: &mut World, mappings: &[GrantMapping]) {
        match self.mistake {
            _ if self.kept.is_some() => {}
            Mistake::UnmapsAnotherAddress => {
                let wrong = |mapping: &GrantMapping| GrantMapping { bus: mapping.bus.offset(8), ..*mapping };
                world.unmap(&mappings.iter().map(wrong).collect::<Vec<_>>());
            }
            Mistake::UnmapsTwice => {
                world.unmap(mappings);
                world.unmap(mappings);
            }
            _ => world.unmap(mappings),
        }
    }

    /// The device's part.
    fn transfer(&mut self, world: &World, request: &Request, mappings: &[GrantMapping]) {
        let machine = &mut world.state().machine;
        let shift = u64::from(self.mistake == Mistake::MisplacesASector && request.operation == WRITE);
        let mut sector = request.sector + shift;
        for (segment, mapping) in request.segments.iter().zip(mappings) {
            for at in segment.first..=segment.last {
                let bus: BusAddr = mapping.bus.offset((at * SECTOR) as u64);
                let mut bytes = self.disk.read(sector);
                // A fault is recorded where it happens; the device goes on.
                if request.operation == READ {
                    let _ = machine.write(bus, &bytes);
                } else {
                    let _ = machine.read(bus, &mut bytes);
                    self.disk.write(sector, bytes);
                }
                sector += 1;
            }
            let whole = self.mistake == Mistake::OverwritesTheWholePage && segment.first > 0;
            if request.operation == READ && whole {
                let _ = machine.write(mapping.bus, &[0; SECTOR]);
            }
        }
    }

    fn answer(&mut self, link: usize, request: &Request) {
        let is_known = [READ, WRITE, BARRIER, FLUSH, DISCARD].contains(&request.operation);
        let operation = match self.mistake {
            Mistake::AnswersWithAnotherOperation => request.operation ^ 1,
            Mistake::AnswersWithTheOuterOperation if request.is_indirect => 6,
            _ => request.operation,
        };
        let id = request.id ^ u64::from(self.mistake == Mistake::AnswersWithAnotherId);
        let status = match self.mistake {
            Mistake::FailsARead if request.operation == READ => -1,
            Mistake::AnswersUnknownOperations => 0,
            _ if is_known => 0,
            _ => -2,
        };
        let times = if self.mistake == Mistake::AnswersTwice { 2 } else { 1 };
        let elsewhere = usize::from(self.mistake == Mistake::AnswersInAnotherQueue);
        let link = (link + elsewhere) % self.links.len();
        (0..times).for_each(|_| self.links[link].answer(id, operation, status, self.mistake));
    }

    /// What flushes promised is looked for on the disk.
    fn check_promises(&self, world: &World) {
        let mut state = world.state();
        let promises: Vec<_> =
            state.frontends.iter_mut().flat_map(|frontend| frontend.take_promises()).collect();
        for (sector, stamp) in promises {
            if self.disk.read_safe(sector) != platter::sim::shadow::content(sector, stamp) {
                state.machine.violated(Violation::NotDurable { guest: self.guest, sector });
            }
        }
    }
}
