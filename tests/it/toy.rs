//! A backend small enough to be plainly right, with one mistake on demand: what the simulated world
//! must not let pass is shown with it. Its disk is host memory; it serves one guest.

use core::time::Duration;
use std::collections::BTreeMap;

use platter::hal::{Clock, DeviceAccess, Events, GrantMap, GrantMapping, GrantedPage, Grants};
use platter::mem::full_barrier;
use platter::sim::Dma;
use platter::sim::frontend::{back_path, front_path};
use platter::sim::machine::Violation;
use platter::sim::world::{Pace, World};
use platter::units::{BusAddr, DomId, GrantRef, Instant, Port};

const ENTRIES: usize = 64;
const STRIDE: usize = 112;
const SECTOR: usize = 512;

/// The one thing that is done wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mistake {
    None,
    ForgetsToLookAgain,
    NeverNotifies,
    AnswersTwice,
    AnswersWithAnotherOperation,
    AnswersWithAnotherId,
    LeavesBytesInTheAnswer,
    FailsARead,
    AnswersBeforeUnmapping,
    UnmapsBeforeTheDevice,
    UnmapsTwice,
    UnmapsAnotherAddress,
    MapsWritesWritable,
    MisplacesASector,
    OverwritesTheWholePage,
    FlushesNothing,
    SkipsInitWait,
    NeverSleeps,
}

struct Connected {
    page: GrantedPage,
    port: Port,
    req_cons: u32,
    rsp_prod: u32,
}

/// The backend of one device.
pub(crate) struct Toy {
    guest: DomId,
    dev: u32,
    mistake: Mistake,
    link: Option<Connected>,
    dwells: Option<Instant>,
    cache: BTreeMap<u64, [u8; SECTOR]>,
    dirty: BTreeMap<u64, [u8; SECTOR]>,
    durable: BTreeMap<u64, [u8; SECTOR]>,
}

struct Segment {
    gref: GrantRef,
    offset: usize,
    len: usize,
}

impl Toy {
    pub(crate) fn new(guest: DomId, dev: u32, mistake: Mistake) -> Self {
        let (cache, dirty, durable) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { guest, dev, mistake, link: None, dwells: None, cache, dirty, durable }
    }

    /// One turn of the loop.
    pub(crate) fn turn(&mut self, world: &mut World) -> Pace {
        let now = world.now();
        while world.next_pending().is_some() {}
        self.handshake(world, now);
        self.check_promises(world);
        let moved = self.serve(world);
        if moved || self.arm() || self.mistake == Mistake::NeverSleeps {
            return Pace::Again;
        }
        // There is no xenstore client here: changes are looked for now and then.
        let look = if self.link.is_none() { Some(now + Duration::from_millis(50)) } else { None };
        Pace::Sleep(look)
    }

    fn state(&self, world: &World, path: &str) -> String {
        world.state().machine.tree.text(&format!("{path}/state")).unwrap_or("").to_string()
    }

    fn handshake(&mut self, world: &mut World, now: Instant) {
        let (front, back) = (front_path(self.guest, self.dev), back_path(self.guest, self.dev));
        let write = |world: &World, node: &str, value: &str| {
            world.state().machine.tree.write(&format!("{back}/{node}"), value);
        };
        let states = (self.state(world, &front), self.state(world, &back));
        match (states.0.as_str(), states.1.as_str()) {
            (_, "1") => {
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
            _ => {}
        }
    }

    fn connect(&mut self, world: &mut World) {
        let number = |node: &str| -> u32 {
            let path = format!("{}/{node}", front_path(self.guest, self.dev));
            world.state().machine.tree.text(&path).expect("published").parse().expect("a number")
        };
        let (gref, remote) = (GrantRef(number("ring-ref")), Port(number("event-channel")));
        let page = world.map_page(self.guest, gref).expect("granted");
        let port = world.bind_interdomain(self.guest, remote).expect("open");
        self.link = Some(Connected { page, port, req_cons: 0, rsp_prod: 0 });
    }

    /// Takes what is in the ring and answers it at once.
    fn serve(&mut self, world: &mut World) -> bool {
        let Some(mut link) = self.link.take() else { return false };
        let (started, old) = (link.req_cons, link.rsp_prod);
        while link.page.page.read_u32(0) != link.req_cons {
            let mut entry = [0; STRIDE];
            link.page.page.read_bytes(ENTRIES + link.req_cons as usize % 32 * STRIDE, &mut entry);
            link.req_cons = link.req_cons.wrapping_add(1);
            self.request(world, &mut link, &entry);
        }
        full_barrier();
        link.page.page.write_u32(8, link.rsp_prod);
        full_barrier();
        let asked = link.rsp_prod.wrapping_sub(link.page.page.read_u32(12));
        if asked < link.rsp_prod.wrapping_sub(old) && self.mistake != Mistake::NeverNotifies {
            world.notify(link.port);
        }
        let moved = link.req_cons != started;
        self.link = Some(link);
        moved
    }

    fn arm(&self) -> bool {
        let Some(link) = &self.link else { return false };
        link.page.page.write_u32(4, link.req_cons.wrapping_add(1));
        full_barrier();
        self.mistake != Mistake::ForgetsToLookAgain && link.page.page.read_u32(0) != link.req_cons
    }

    fn request(&mut self, world: &mut World, link: &mut Connected, entry: &[u8; STRIDE]) {
        let (operation, count) = (entry[0], usize::from(entry[1]).min(11));
        let id = u64::from_le_bytes(*entry[8..].first_chunk().expect("8 bytes"));
        let sector = u64::from_le_bytes(*entry[16..].first_chunk().expect("8 bytes"));
        let segments: Vec<Segment> = (0..count).map_while(|i| segment(&entry[24 + i * 8..])).collect();
        if operation == 3 && self.mistake != Mistake::FlushesNothing {
            self.durable.extend(core::mem::take(&mut self.dirty));
        }
        let mappings = self.map(world, operation, &segments);
        let early = self.mistake == Mistake::UnmapsBeforeTheDevice;
        let late = self.mistake == Mistake::AnswersBeforeUnmapping;
        if early {
            world.unmap(&mappings);
        }
        self.transfer(world, operation, sector, &segments, &mappings);
        if !early && !late {
            self.unmap(world, &mappings);
        }
        self.answer(link, id, operation);
        if late {
            // The guest sees the answer, and takes its grants back, before this.
            link.page.page.write_u32(8, link.rsp_prod);
            world.notify(link.port);
            let soon = world.now() + Duration::from_millis(1);
            world.wait(Some(soon));
            world.unmap(&mappings);
        }
    }

    fn map(&self, world: &mut World, operation: u8, segments: &[Segment]) -> Vec<GrantMapping> {
        let writable = operation == 0 || self.mistake == Mistake::MapsWritesWritable;
        let access = if writable { DeviceAccess::Writes } else { DeviceAccess::Reads };
        let mut batch: Vec<GrantMap> =
            segments.iter().map(|segment| GrantMap::new(self.guest, segment.gref, access)).collect();
        world.map(&mut batch);
        batch.iter().filter_map(|op| op.result.ok()).collect()
    }

    fn unmap(&self, world: &mut World, mappings: &[GrantMapping]) {
        match self.mistake {
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
    fn transfer(
        &mut self,
        world: &World,
        operation: u8,
        first: u64,
        segments: &[Segment],
        mappings: &[GrantMapping],
    ) {
        let machine = &mut world.state().machine;
        let shift = u64::from(self.mistake == Mistake::MisplacesASector && operation == 1);
        let mut sector = first + shift;
        for (segment, mapping) in segments.iter().zip(mappings) {
            for at in (0..segment.len).step_by(SECTOR) {
                let bus: BusAddr = mapping.bus.offset((segment.offset + at) as u64);
                let mut bytes = self.cache.get(&sector).copied().unwrap_or([0; SECTOR]);
                // A fault is recorded where it happens; the device goes on.
                let _ = match operation {
                    0 => machine.write(bus, &bytes),
                    _ => machine.read(bus, &mut bytes),
                };
                if operation == 1 {
                    self.cache.insert(sector, bytes);
                    self.dirty.insert(sector, bytes);
                }
                sector += 1;
            }
            if operation == 0 && self.mistake == Mistake::OverwritesTheWholePage && segment.offset > 0 {
                let _ = machine.write(mapping.bus, &[0; SECTOR]);
            }
        }
    }

    fn answer(&self, link: &mut Connected, id: u64, operation: u8) {
        let operation = match self.mistake {
            Mistake::AnswersWithAnotherOperation => operation ^ 1,
            _ => operation,
        };
        let id = if self.mistake == Mistake::AnswersWithAnotherId { id ^ 1 } else { id };
        let failed = self.mistake == Mistake::FailsARead && operation == 0;
        let times = if self.mistake == Mistake::AnswersTwice { 2 } else { 1 };
        for _ in 0..times {
            let at = ENTRIES + link.rsp_prod as usize % 32 * STRIDE;
            let tail = if self.mistake == Mistake::LeavesBytesInTheAnswer { 0x55 } else { 0 };
            link.page.page.write_u64(at, id);
            link.page.page.write_u8(at + 8, operation);
            link.page.page.write_u8(at + 9, 0);
            link.page.page.write_u16(at + 10, if failed { u16::MAX } else { 0 });
            link.page.page.write_u32(at + 12, tail);
            link.rsp_prod = link.rsp_prod.wrapping_add(1);
        }
    }

    /// What flushes promised is looked for on the disk.
    fn check_promises(&self, world: &World) {
        let mut state = world.state();
        let promises: Vec<_> =
            state.frontends.iter_mut().flat_map(|frontend| frontend.take_promises()).collect();
        for (sector, stamp) in promises {
            let content = platter::sim::shadow::content(sector, stamp);
            if self.durable.get(&sector).copied().unwrap_or([0; SECTOR]) != content {
                state.machine.violated(Violation::NotDurable { guest: self.guest, sector });
            }
        }
    }
}

/// None for nonsense, as a backend meets that mistakes its own answers for requests.
fn segment(bytes: &[u8]) -> Option<Segment> {
    let gref = GrantRef(u32::from_le_bytes(*bytes.first_chunk()?));
    let (first, last) = (usize::from(bytes[4]), usize::from(bytes[5]));
    let good = first <= last && last < 8;
    good.then(|| Segment { gref, offset: first * SECTOR, len: (last + 1 - first) * SECTOR })
}
