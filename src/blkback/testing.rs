//! What the tests of this folder share: a machine that keeps count of what is mapped, bound and
//! taken, and chance that a seed replays.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use crate::hal::{
    Clock, DeviceAccess, DmaPage, Events, GrantCopy, GrantMap, GrantMapping, GrantedPage, Grants,
    HypervisorError, Memory, MmioRegion,
};
use crate::mem::frame::Frame;
use crate::mem::private::PrivatePage;
use crate::units::{BusAddr, DomId, GrantHandle, GrantRef, Instant, PAGE_SIZE, Pirq, Port};

/// Grants and ports of guests, and our own pages; everything else is nothing that `blkback` asks for.
#[derive(Default)]
pub(crate) struct Machine {
    /// Pages that guests grant and that are looked into: of rings, and of segments.
    pub(crate) granted: BTreeMap<(u16, u32), Frame>,
    /// Grants that devices cannot be given. All others can.
    pub(crate) bad: BTreeSet<u32>,
    /// Grants that devices can reach, by handle.
    pub(crate) reachable: BTreeMap<u32, u32>,
    /// Grants that were asked for on behalf of devices, in order.
    pub(crate) asked: Vec<(u32, DeviceAccess)>,
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
    /// Pages of ours that devices reach, by address.
    own: BTreeMap<u64, Frame>,
    next: u32,
}

/// Where devices find a grant: pages of neighbouring grants are neighbours in memory.
pub(crate) fn bus_of(gref: u32) -> u64 {
    0x1000_0000 + u64::from(gref) * PAGE_SIZE as u64
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

    fn map(&mut self, batch: &mut [GrantMap]) {
        for op in batch {
            self.asked.push((op.gref.0, op.access));
            if self.bad.contains(&op.gref.0) {
                op.result = Err(HypervisorError { op: "GNTTABOP_map_grant_ref", code: -3 });
                continue;
            }
            let handle = self.fresh();
            self.reachable.insert(handle, op.gref.0);
            op.result = Ok(GrantMapping { handle: GrantHandle(handle), bus: BusAddr(bus_of(op.gref.0)) });
        }
    }

    fn unmap(&mut self, batch: &[GrantMapping]) {
        for mapping in batch {
            let gref = self.reachable.remove(&mapping.handle.0).expect("only what is mapped is unmapped");
            assert_eq!(mapping.bus.0, bus_of(gref), "a grant goes back with its own address");
        }
    }

    fn copy(&mut self, batch: &mut [GrantCopy]) {
        for op in batch {
            let refused = HypervisorError { op: "GNTTABOP_copy", code: -3 };
            let from = self.granted.get(&(op.dom.0, op.gref.0)).ok_or(refused);
            op.result = from.map(|from| {
                let mut bytes = std::vec![0; op.bytes];
                from.read(0, &mut bytes);
                let offset = op.to.0 % PAGE_SIZE as u64;
                self.own[&(op.to.0 - offset)].write(offset as usize, &bytes);
            });
        }
    }

    fn grant(&mut self, _: DomId, _: &DmaPage) -> Result<GrantRef, HypervisorError> {
        unreachable!()
    }
}

impl Memory for Machine {
    fn free_pages(&self) -> usize {
        self.free_pages
    }

    fn take_page(&mut self) -> Option<DmaPage> {
        self.free_pages = self.free_pages.checked_sub(1)?;
        self.taken_pages += 1;
        let bus = BusAddr(u64::from(self.fresh()) * PAGE_SIZE as u64);
        let frame = Frame::new();
        self.own.insert(bus.0, frame);
        Some(DmaPage { page: frame.shared(), bus })
    }

    fn return_page(&mut self, page: DmaPage) {
        self.own.remove(&page.bus.0).expect("only pages of ours are given back");
        self.free_pages += 1;
        self.taken_pages -= 1;
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
