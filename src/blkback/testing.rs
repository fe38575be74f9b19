//! What the tests of this folder share: a machine that keeps count of what is mapped and bound,
//! and chance that a seed replays.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::hal::{
    Clock, DmaPage, Events, GrantMap, GrantMapping, GrantedPage, Grants, HypervisorError, Memory, MmioRegion,
};
use crate::mem::frame::Frame;
use crate::mem::private::PrivatePage;
use crate::units::{BusAddr, DomId, GrantHandle, GrantRef, Instant, Pirq, Port};

/// Grants and ports of guests; everything else is nothing that `blkback` asks for itself.
#[derive(Default)]
pub(crate) struct Machine {
    /// Ring pages that guests grant.
    pub(crate) granted: BTreeMap<(u16, u32), Frame>,
    /// Ports that guests left open for us.
    pub(crate) open: Vec<(u16, u32)>,
    /// Pages that are mapped, by handle.
    pub(crate) mapped: BTreeMap<u32, Frame>,
    /// Ports that are bound, and to what.
    pub(crate) bound: BTreeMap<u32, (u16, u32)>,
    /// Ports that are reserved.
    pub(crate) reserved: BTreeSet<u32>,
    /// Ports that there are, bound or reserved.
    pub(crate) ports: usize,
    /// Pages that may be taken.
    pub(crate) free_pages: usize,
    /// Pages that were taken and not given back.
    pub(crate) taken_pages: usize,
    /// Ports notified, in order.
    pub(crate) notified: Vec<u32>,
    next: u32,
}

impl Machine {
    /// So many ports and free pages.
    pub(crate) fn with(ports: usize, free_pages: usize) -> Self {
        Self { ports, free_pages, ..Self::default() }
    }

    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn fresh_port(&mut self, op: &'static str) -> Result<Port, HypervisorError> {
        let is_left = self.bound.len() + self.reserved.len() < self.ports;
        is_left.then(|| Port(self.fresh())).ok_or(HypervisorError { op, code: -28 })
    }
}

impl Clock for Machine {
    fn now(&mut self) -> Instant {
        unreachable!("time is an argument")
    }
}

impl Events for Machine {
    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, HypervisorError> {
        let end = (peer.0, remote.0);
        if !self.open.contains(&end) {
            return Err(HypervisorError { op: "EVTCHNOP_bind_interdomain", code: -22 });
        }
        let port = self.fresh_port("EVTCHNOP_bind_interdomain")?;
        self.bound.insert(port.0, end);
        Ok(port)
    }

    fn close(&mut self, port: Port) {
        let closed = self.bound.remove(&port.0).is_some() || self.reserved.remove(&port.0);
        assert!(closed, "only open ports are closed");
    }

    fn notify(&mut self, port: Port) {
        assert!(self.bound.contains_key(&port.0), "only bound ports are notified");
        self.notified.push(port.0);
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, HypervisorError> {
        assert_eq!(peer, DomId::SELF);
        let port = self.fresh_port("EVTCHNOP_alloc_unbound")?;
        self.reserved.insert(port.0);
        Ok(port)
    }

    fn bind_pirq(&mut self, _: Pirq) -> Result<Port, HypervisorError> {
        unreachable!()
    }

    fn next_pending(&mut self) -> Option<Port> {
        unreachable!()
    }

    fn wait(&mut self, _: Option<Instant>) {
        unreachable!()
    }
}

impl Grants for Machine {
    fn map_page(&mut self, dom: DomId, gref: GrantRef) -> Result<GrantedPage, HypervisorError> {
        let refused = HypervisorError { op: "GNTTABOP_map_grant_ref", code: -3 };
        let frame = *self.granted.get(&(dom.0, gref.0)).ok_or(refused)?;
        let handle = self.fresh();
        self.mapped.insert(handle, frame);
        let mapping = GrantMapping { handle: GrantHandle(handle), bus: BusAddr(0x1000) };
        Ok(GrantedPage { page: frame.shared(), mapping })
    }

    fn unmap_page(&mut self, page: GrantedPage) {
        let frame = self.mapped.remove(&page.mapping.handle.0).expect("only mapped pages are unmapped");
        assert_eq!(frame.base(), page.page.base(), "a page goes back with its own mapping");
    }

    fn map(&mut self, _: &mut [GrantMap]) {
        unreachable!()
    }

    fn unmap(&mut self, _: &[GrantMapping]) {
        unreachable!()
    }

    fn grant(&mut self, _: DomId, _: &DmaPage) -> Result<GrantRef, HypervisorError> {
        unreachable!()
    }
}

impl Memory for Machine {
    fn take_page(&mut self) -> Option<DmaPage> {
        unreachable!()
    }

    fn return_page(&mut self, _: DmaPage) {
        unreachable!()
    }

    fn take_private(&mut self) -> Option<PrivatePage> {
        self.free_pages = self.free_pages.checked_sub(1)?;
        self.taken_pages += 1;
        Some(PrivatePage::leaked())
    }

    fn return_private(&mut self, _: PrivatePage) {
        self.free_pages += 1;
        self.taken_pages -= 1;
    }

    fn map_mmio(&mut self, _: BusAddr, _: usize) -> Result<MmioRegion, HypervisorError> {
        unreachable!()
    }

    fn unmap_mmio(&mut self, _: MmioRegion) {
        unreachable!("the registers stay mapped")
    }

    fn read32(&mut self, _: MmioRegion, _: usize) -> u32 {
        unreachable!()
    }

    fn write32(&mut self, _: MmioRegion, _: usize, _: u32) {
        unreachable!()
    }
}

/// A small generator (splitmix64).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}
