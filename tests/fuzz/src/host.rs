//! What a state machine of the core asks of the world, as little as it takes: pages, ports, mappings,
//! and a [`Device`] behind registers. It keeps count of what is held, and is strict about giving back.

use std::cell::RefCell;

use platter::hal::{
    Clock, DmaPage, Events, GrantCopy, GrantMap, GrantMapping, GrantedPage, Grants, HypervisorError, Memory,
    MmioRegion,
};
use platter::mem::frame::Frame;
use platter::mem::private::PrivatePage;
use platter::units::{BusAddr, DomId, GrantHandle, GrantRef, Instant, PAGE_SIZE, Pirq, Port};

use crate::frames;

/// Pages that can be taken, and bus addresses of the first. No two are neighbours.
const PAGES: usize = 16;
const FIRST: u64 = 0x1_2345_6000;
const STEP: u64 = 2 * PAGE_SIZE as u64;

/// Ports that there are.
const PORTS: u32 = 24;

/// What is behind the registers.
pub(crate) trait Device {
    fn read32(&mut self, offset: usize) -> u32;
    fn write32(&mut self, offset: usize, value: u32);
}

/// Nothing is there.
impl Device for () {
    fn read32(&mut self, _: usize) -> u32 {
        unreachable!("registers are nobody's business here")
    }

    fn write32(&mut self, _: usize, _: u32) {
        unreachable!("registers are nobody's business here")
    }
}

/// The machine.
pub(crate) struct Host<D> {
    pub(crate) device: D,
    pages: Vec<Frame>,
    taken: [bool; PAGES],
    /// Which ports are open.
    ports: [bool; PORTS as usize],
    /// Handles of pages that are mapped.
    mapped: Vec<u32>,
    handles: u32,
    /// Private pages that are with the core.
    private: usize,
}

thread_local! {
    /// Private pages that nobody has: they are never freed.
    static PRIVATE: RefCell<Vec<PrivatePage>> = const { RefCell::new(Vec::new()) };
}

/// The page with this bus address.
fn page_at(bus: BusAddr) -> Option<usize> {
    let index = bus.0.checked_sub(FIRST)? / STEP;
    usize::try_from(index).ok().filter(|index| *index < PAGES && bus.0 == FIRST + index_bytes(*index))
}

const fn index_bytes(index: usize) -> u64 {
    index as u64 * STEP
}

impl<D> Host<D> {
    pub(crate) fn new(device: D) -> Self {
        Self {
            device,
            pages: frames::shared(PAGES),
            taken: [false; PAGES],
            ports: [false; PORTS as usize],
            mapped: Vec::new(),
            handles: 0,
            private: 0,
        }
    }

    /// The page of the core's that devices find there, while it is one.
    pub(crate) fn page(&self, bus: BusAddr) -> Option<Frame> {
        page_at(bus).filter(|index| self.taken[*index]).map(|index| self.pages[index])
    }

    /// The page that was taken first, of those the core has.
    pub(crate) fn granted(&self) -> Option<Frame> {
        self.taken.iter().position(|taken| *taken).map(|index| self.pages[index])
    }

    /// Whether nothing is held by the core: no page, no port, no mapping.
    pub(crate) fn is_clear(&self) -> bool {
        !self.taken.contains(&true)
            && !self.ports.contains(&true)
            && self.mapped.is_empty()
            && self.private == 0
    }

    /// How many pages of guests are mapped, and how many ports are open.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.mapped.len(), self.ports.iter().filter(|is_open| **is_open).count())
    }

    fn open(&mut self, op: &'static str) -> Result<Port, HypervisorError> {
        let free = self.ports.iter().position(|is_open| !is_open);
        let port = free.ok_or(HypervisorError { op, code: -28 })?;
        self.ports[port] = true;
        Ok(Port(port as u32))
    }
}

impl<D> Clock for Host<D> {
    fn now(&mut self) -> Instant {
        unreachable!("time is an argument")
    }
}

impl<D> Events for Host<D> {
    /// Guests left every other port open.
    fn bind_interdomain(&mut self, _: DomId, remote: Port) -> Result<Port, HypervisorError> {
        let op = "EVTCHNOP_bind_interdomain";
        if remote.0.is_multiple_of(2) { self.open(op) } else { Err(HypervisorError { op, code: -22 }) }
    }

    fn alloc_unbound(&mut self, _: DomId) -> Result<Port, HypervisorError> {
        self.open("EVTCHNOP_alloc_unbound")
    }

    fn bind_pirq(&mut self, _: Pirq) -> Result<Port, HypervisorError> {
        unreachable!("interrupts are bound by others")
    }

    fn close(&mut self, port: Port) {
        let was_open = core::mem::take(&mut self.ports[port.0 as usize]);
        assert!(was_open, "only open ports are closed");
    }

    fn notify(&mut self, port: Port) {
        assert!(self.ports[port.0 as usize], "only open ports are notified");
    }

    fn next_pending(&mut self) -> Option<Port> {
        unreachable!("events are told by hand")
    }

    fn wait(&mut self, _: Option<Instant>) {
        unreachable!("nothing waits")
    }
}

impl<D> Grants for Host<D> {
    fn map(&mut self, _: &mut [GrantMap]) {
        unreachable!("there are no requests")
    }

    fn unmap(&mut self, batch: &[GrantMapping]) {
        assert!(batch.is_empty(), "there are no requests");
    }

    fn copy(&mut self, _: &mut [GrantCopy]) {
        unreachable!("there are no requests")
    }

    /// Guests granted three of four references.
    fn map_page(&mut self, _: DomId, gref: GrantRef) -> Result<GrantedPage, HypervisorError> {
        if gref.0 % 4 == 3 {
            return Err(HypervisorError { op: "GNTTABOP_map_grant_ref", code: -3 });
        }
        self.handles += 1;
        self.mapped.push(self.handles);
        let page = self.pages[gref.0 as usize % PAGES].shared();
        Ok(GrantedPage { page, mapping: GrantMapping { handle: GrantHandle(self.handles), bus: BusAddr(0) } })
    }

    fn unmap_page(&mut self, page: GrantedPage) {
        let handle = page.mapping.handle.0;
        let place = self.mapped.iter().position(|mapped| *mapped == handle);
        self.mapped.swap_remove(place.expect("only mapped pages are unmapped"));
    }

    fn grant(&mut self, _: DomId, page: &DmaPage) -> Result<GrantRef, HypervisorError> {
        let page = page_at(page.bus).filter(|index| self.taken[*index]);
        Ok(GrantRef(page.expect("a page of ours is granted") as u32))
    }
}

impl<D: Device> Memory for Host<D> {
    /// Plenty: who has what is decided elsewhere.
    fn free_pages(&self) -> usize {
        1 << 16
    }

    fn take_page(&mut self) -> Option<DmaPage> {
        let free = self.taken.iter().position(|taken| !taken)?;
        self.taken[free] = true;
        self.pages[free].fill(0);
        Some(DmaPage { page: self.pages[free].shared(), bus: BusAddr(FIRST + index_bytes(free)) })
    }

    fn return_page(&mut self, page: DmaPage) {
        let index = page_at(page.bus).expect("a page of ours");
        assert_eq!(page.page.base(), self.pages[index].base());
        assert!(core::mem::take(&mut self.taken[index]), "pages are given back once");
    }

    fn take_private(&mut self) -> Option<PrivatePage> {
        self.private += 1;
        Some(PRIVATE.with_borrow_mut(Vec::pop).unwrap_or_else(PrivatePage::leaked))
    }

    fn return_private(&mut self, page: PrivatePage) {
        self.private -= 1;
        PRIVATE.with_borrow_mut(|spare| spare.push(page));
    }

    fn map_mmio(&mut self, _: BusAddr, _: usize) -> Result<MmioRegion, HypervisorError> {
        unreachable!("registers are mapped")
    }

    fn unmap_mmio(&mut self, _: MmioRegion) {
        unreachable!("registers stay mapped")
    }

    fn read32(&mut self, region: MmioRegion, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= region.len, "outside the registers");
        self.device.read32(offset)
    }

    fn write32(&mut self, region: MmioRegion, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4) && offset + 4 <= region.len, "outside the registers");
        self.device.write32(offset, value);
    }
}
