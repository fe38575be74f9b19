//! The simulated world as the core's `hal`: each hypercall with Xen's checks. What Xen would
//! refuse, or crash the domain for, is a violation.

use core::cell::RefCell;

use super::grants::{BAD_GNTREF, NO_SPACE};
use super::machine::{DRIVER, Machine, Violation};
use super::memory::{bus, mfn};
use super::world::World;
use crate::hal::{
    Clock, DeviceAccess, DmaPage, Events, GrantCopy, GrantMap, GrantMapping, GrantedPage, Grants,
    HypervisorError, Memory, MmioRegion,
};
use crate::mem::private::PrivatePage;
use crate::units::{BusAddr, DomId, GrantRef, Instant, PAGE_SIZE, Pirq, Port};

const MAP: &str = "GNTTABOP_map_grant_ref";
const COPY: &str = "GNTTABOP_copy";

thread_local! {
    /// Pages for the image alone that nobody has: they are never freed, so the next who wants one takes it.
    static PRIVATE: RefCell<Vec<PrivatePage>> = const { RefCell::new(Vec::new()) };
}

fn failed(op: &'static str) -> impl FnOnce(i64) -> HypervisorError {
    move |code| HypervisorError { op, code }
}

impl Clock for World {
    fn now(&mut self) -> Instant {
        let mut state = self.state();
        state.tick();
        state.machine.now
    }
}

impl Events for World {
    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, HypervisorError> {
        let machine = &mut self.state().machine;
        let bound = machine.ports.bind(DRIVER, peer, remote, machine.now);
        bound.map_err(failed("EVTCHNOP_bind_interdomain"))
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, HypervisorError> {
        let opened = self.state().machine.ports.open(DRIVER, peer);
        opened.map_err(failed("EVTCHNOP_alloc_unbound"))
    }

    fn bind_pirq(&mut self, pirq: Pirq) -> Result<Port, HypervisorError> {
        let bound = self.state().machine.ports.bind_pirq(DRIVER, pirq);
        bound.map_err(failed("EVTCHNOP_bind_pirq"))
    }

    fn close(&mut self, port: Port) {
        let machine = &mut self.state().machine;
        if !machine.ports.close(DRIVER, port) {
            machine.violated(Violation::BadPort(port));
        }
    }

    fn notify(&mut self, port: Port) {
        let machine = &mut self.state().machine;
        if machine.ports.is_open(DRIVER, port) {
            machine.notify(DRIVER, port);
        } else {
            machine.violated(Violation::BadPort(port));
        }
    }

    fn next_pending(&mut self) -> Option<Port> {
        let machine = &mut self.state().machine;
        let port = machine.ports.any_pending(DRIVER, &mut machine.rng)?;
        machine.ports.take(DRIVER, port);
        Some(port)
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        self.state().sleep(deadline);
    }
}

fn unmap(machine: &mut Machine, mapping: GrantMapping) {
    if machine.grants.unmap(&mut machine.memory, mapping.handle, mapping.bus).is_err() {
        machine.violated(Violation::BadUnmap(mapping.handle));
    }
}

impl World {
    fn map_one(&self, dom: DomId, gref: GrantRef, write: bool) -> Result<GrantMapping, HypervisorError> {
        let machine = &mut self.state().machine;
        let mapped = machine.grants.map(&mut machine.memory, dom, gref, write);
        mapped.map(|(handle, mfn)| GrantMapping { handle, bus: bus(mfn) }).map_err(failed(MAP))
    }

    fn is_map_to_fail(&self, dom: DomId) -> bool {
        let mut state = self.state();
        let rarity = if state.spared == Some(dom) { 0 } else { state.failing_maps };
        state.machine.rng.one_in(rarity)
    }
}

impl Grants for World {
    fn map(&mut self, batch: &mut [GrantMap]) {
        for op in batch {
            op.result = match self.is_map_to_fail(op.dom) {
                true => Err(failed(MAP)(NO_SPACE)),
                false => self.map_one(op.dom, op.gref, op.access == DeviceAccess::Writes),
            };
        }
    }

    fn unmap(&mut self, batch: &[GrantMapping]) {
        for mapping in batch {
            unmap(&mut self.state().machine, *mapping);
        }
    }

    fn copy(&mut self, batch: &mut [GrantCopy]) {
        for op in batch {
            let fails = self.is_map_to_fail(op.dom);
            let Machine { memory, grants, .. } = &self.state().machine;
            let from = grants.granted(op.dom, op.gref, DRIVER).filter(|_| !fails);
            op.result = from.ok_or(BAD_GNTREF).map_err(failed(COPY)).map(|from| {
                let mut bytes = vec![0; op.bytes];
                memory.frame(from).read(0, &mut bytes);
                memory.frame(mfn(op.to)).write((op.to.0 % PAGE_SIZE as u64) as usize, &bytes);
            });
        }
    }

    fn map_page(&mut self, dom: DomId, gref: GrantRef) -> Result<GrantedPage, HypervisorError> {
        let mut state = self.state();
        let rarity = if state.spared == Some(dom) { 0 } else { state.failing_rings };
        if state.machine.rng.one_in(rarity) {
            return Err(failed(MAP)(NO_SPACE));
        }
        drop(state);
        let mapping = self.map_one(dom, gref, true)?;
        let page = self.state().machine.memory.frame(mfn(mapping.bus)).shared();
        Ok(GrantedPage { page, mapping })
    }

    fn unmap_page(&mut self, page: GrantedPage) {
        unmap(&mut self.state().machine, page.mapping);
    }

    fn grant(&mut self, dom: DomId, page: &DmaPage) -> Result<GrantRef, HypervisorError> {
        Ok(self.state().machine.grants.offer(DRIVER, dom, mfn(page.bus), false))
    }
}

impl Memory for World {
    fn free_pages(&self) -> usize {
        self.state().free_pages
    }

    fn take_page(&mut self) -> Option<DmaPage> {
        let mut state = self.state();
        state.free_pages = state.free_pages.checked_sub(1)?;
        let mfn = state.machine.memory.take();
        state.machine.memory.expose(mfn, true);
        Some(DmaPage { page: state.machine.memory.frame(mfn).shared(), bus: bus(mfn) })
    }

    fn return_page(&mut self, page: DmaPage) {
        let mut state = self.state();
        state.free_pages += 1;
        state.machine.memory.give_back(mfn(page.bus));
    }

    fn take_private(&mut self) -> Option<PrivatePage> {
        let mut state = self.state();
        state.free_pages = state.free_pages.checked_sub(1)?;
        Some(PRIVATE.with_borrow_mut(Vec::pop).unwrap_or_else(PrivatePage::leaked))
    }

    fn return_private(&mut self, page: PrivatePage) {
        self.state().free_pages += 1;
        PRIVATE.with_borrow_mut(|pages| pages.push(page));
    }

    fn map_mmio(&mut self, bar: BusAddr, len: usize) -> Result<MmioRegion, HypervisorError> {
        let mapped = self.state().lent.map(bar, len);
        mapped.map(|base| MmioRegion { base, len }).ok_or(-1).map_err(failed("HYPERVISOR_mmu_update"))
    }

    fn unmap_mmio(&mut self, region: MmioRegion) {
        self.state().lent.unmap(region.base);
    }

    fn read32(&mut self, region: MmioRegion, offset: usize) -> u32 {
        self.state().read_register(region, offset)
    }

    fn write32(&mut self, region: MmioRegion, offset: usize, value: u32) {
        self.state().write_register(region, offset, value);
    }
}
