//! The simulated world with a counter at its door. What happens behind the door is the world's, not the core's: the
//! counting of instructions stops in [`outside`] and goes on after it.

use core::ops::AddAssign;

use platter::hal::{
    Clock, DmaPage, Events, GrantCopy, GrantMap, GrantMapping, GrantedPage, Grants, HypervisorError, Memory,
    MmioRegion,
};
use platter::mem::private::PrivatePage;
use platter::sim::world::World;
use platter::units::{BusAddr, DomId, GrantRef, Instant, Pirq, Port};

/// How often the core asked for what.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Calls {
    /// What the platform makes a hypercall of, sleeps included.
    pub hypercalls: u64,
    /// Writes to a controller's registers.
    pub mmio_writes: u64,
    /// Calls of `hal`, these and all others.
    pub all: u64,
}

impl AddAssign for Calls {
    fn add_assign(&mut self, other: Self) {
        self.hypercalls += other.hypercalls;
        self.mmio_writes += other.mmio_writes;
        self.all += other.all;
    }
}

/// The world as the core sees it.
pub(crate) struct Outside<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) calls: Calls,
}

/// Where no instructions are counted.
#[inline(never)]
fn outside<T>(act: impl FnOnce() -> T) -> T {
    act()
}

impl Outside<'_> {
    fn hypercall<T>(&mut self, call: impl FnOnce(&mut World) -> T) -> T {
        outside(|| {
            self.calls.hypercalls += 1;
            self.calls.all += 1;
            call(self.world)
        })
    }

    fn call<T>(&mut self, call: impl FnOnce(&mut World) -> T) -> T {
        outside(|| {
            self.calls.all += 1;
            call(self.world)
        })
    }
}

impl Clock for Outside<'_> {
    fn now(&mut self) -> Instant {
        self.call(Clock::now)
    }
}

impl Events for Outside<'_> {
    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, HypervisorError> {
        self.hypercall(|world| world.bind_interdomain(peer, remote))
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, HypervisorError> {
        self.hypercall(|world| world.alloc_unbound(peer))
    }

    fn bind_pirq(&mut self, pirq: Pirq) -> Result<Port, HypervisorError> {
        self.hypercall(|world| world.bind_pirq(pirq))
    }

    fn close(&mut self, port: Port) {
        self.hypercall(|world| world.close(port));
    }

    fn notify(&mut self, port: Port) {
        self.hypercall(|world| world.notify(port));
    }

    fn next_pending(&mut self) -> Option<Port> {
        self.call(Events::next_pending)
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        self.hypercall(|world| world.wait(deadline));
    }
}

impl Grants for Outside<'_> {
    fn map(&mut self, batch: &mut [GrantMap]) {
        self.hypercall(|world| Grants::map(world, batch));
    }

    fn unmap(&mut self, batch: &[GrantMapping]) {
        self.hypercall(|world| world.unmap(batch));
    }

    fn copy(&mut self, batch: &mut [GrantCopy]) {
        self.hypercall(|world| world.copy(batch));
    }

    fn map_page(&mut self, dom: DomId, gref: GrantRef) -> Result<GrantedPage, HypervisorError> {
        self.hypercall(|world| world.map_page(dom, gref))
    }

    fn unmap_page(&mut self, page: GrantedPage) {
        self.hypercall(|world| world.unmap_page(page));
    }

    fn grant(&mut self, dom: DomId, page: &DmaPage) -> Result<GrantRef, HypervisorError> {
        self.call(|world| world.grant(dom, page))
    }
}

impl Memory for Outside<'_> {
    fn free_pages(&self) -> usize {
        outside(|| self.world.free_pages())
    }

    fn take_page(&mut self) -> Option<DmaPage> {
        self.call(Memory::take_page)
    }

    fn return_page(&mut self, page: DmaPage) {
        self.call(|world| world.return_page(page));
    }

    fn take_private(&mut self) -> Option<PrivatePage> {
        self.call(Memory::take_private)
    }

    fn return_private(&mut self, page: PrivatePage) {
        self.call(|world| world.return_private(page));
    }

    fn map_mmio(&mut self, bar: BusAddr, len: usize) -> Result<MmioRegion, HypervisorError> {
        self.hypercall(|world| world.map_mmio(bar, len))
    }

    fn unmap_mmio(&mut self, region: MmioRegion) {
        self.hypercall(|world| world.unmap_mmio(region));
    }

    fn read32(&mut self, region: MmioRegion, offset: usize) -> u32 {
        self.call(|world| world.read32(region, offset))
    }

    fn write32(&mut self, region: MmioRegion, offset: usize, value: u32) {
        self.call(|world| world.write32(region, offset, value));
        self.calls.mmio_writes += 1;
    }
}
