//! The traits at the seams: what the core asks of the world it runs in. `platform` answers with
//! Xen, `sim` with a simulated world; nothing else implements them.
//!
//! Every call returns at once, [`Events::wait`] excepted.

use crate::mem::SharedPage;
use crate::mem::private::PrivatePage;
use crate::units::{BusAddr, DomId, GrantHandle, GrantRef, Instant, Pirq, Port};

/// A hypercall failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HypervisorError {
    /// The operation's name in Xen's headers, such as `EVTCHNOP_bind_pirq`.
    pub op: &'static str,
    /// What it returned: a negative errno, or a negative `GNTST_*` status.
    pub code: i64,
}

impl core::fmt::Display for HypervisorError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} returned {}", self.op, self.code)
    }
}

/// Xen's system time.
pub trait Clock {
    /// The time now.
    fn now(&mut self) -> Instant;
}

/// Event channels, and sleep.
pub trait Events {
    /// Binds to the port `remote` that domain `peer` left open for us; the new local port is
    /// pending at once.
    ///
    /// # Errors
    /// The peer has no such port for us, or no port is left.
    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, HypervisorError>;

    /// A new port that `peer` may bind to.
    ///
    /// # Errors
    /// No port is left.
    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, HypervisorError>;

    /// A port that becomes pending at each interrupt of `pirq`.
    ///
    /// # Errors
    /// The interrupt is not ours.
    fn bind_pirq(&mut self, pirq: Pirq) -> Result<Port, HypervisorError>;

    /// Gives the port up; it is never reported pending again.
    fn close(&mut self, port: Port);

    /// Makes the peer's end pending.
    fn notify(&mut self, port: Port);

    /// Takes one pending port, if there is one; it can become pending again from here on.
    fn next_pending(&mut self) -> Option<Port>;

    /// Sleeps until a port is pending or the deadline has passed; may wake for no reason.
    fn wait(&mut self, deadline: Option<Instant>);
}

/// What the device does to a granted page. A guest grants the data of a write read-only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceAccess {
    /// The device only reads the page (BLKIF_OP_WRITE).
    Reads,
    /// The device writes the page (BLKIF_OP_READ).
    Writes,
}

/// A page of another domain that devices of ours can reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantMapping {
    /// Undoes the mapping.
    pub handle: GrantHandle,
    /// Where devices find the page; must be given back exactly so.
    pub bus: BusAddr,
}

/// One grant to map, and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct GrantMap {
    /// Whose grant.
    pub dom: DomId,
    /// Which.
    pub gref: GrantRef,
    /// What the device will do.
    pub access: DeviceAccess,
    /// The answer: the mapping, or the operation's `GNTST_*` status.
    pub result: Result<GrantMapping, HypervisorError>,
}

impl GrantMap {
    /// An operation still to be done.
    #[must_use]
    pub const fn new(dom: DomId, gref: GrantRef, access: DeviceAccess) -> Self {
        Self { dom, gref, access, result: Err(HypervisorError { op: "GNTTABOP_map_grant_ref", code: 0 }) }
    }
}

/// Bytes from the start of one granted page to be copied into a page of ours, and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct GrantCopy {
    /// Whose grant.
    pub dom: DomId,
    /// Which.
    pub gref: GrantRef,
    /// Where to in our memory; all of it lies in one page that [`Memory::take_page`] gave.
    pub to: BusAddr,
    /// How many.
    pub bytes: usize,
    /// The answer: done, or the operation's `GNTST_*` status.
    pub result: Result<(), HypervisorError>,
}

impl GrantCopy {
    /// An operation still to be done.
    #[must_use]
    pub const fn new(dom: DomId, gref: GrantRef, to: BusAddr, bytes: usize) -> Self {
        Self { dom, gref, to, bytes, result: Err(HypervisorError { op: "GNTTABOP_copy", code: 0 }) }
    }
}

/// A page of another domain that the CPU can reach: a page of a ring.
#[derive(Debug)]
pub struct GrantedPage {
    /// Its contents, which the other domain changes as it likes.
    pub page: SharedPage,
    /// Undoes the mapping.
    pub mapping: GrantMapping,
}

/// Grant tables (xen/include/public/grant_table.h).
pub trait Grants {
    /// Maps every grant of the batch for devices only, each with its own result.
    fn map(&mut self, batch: &mut [GrantMap]);

    /// Undoes mappings made by [`Grants::map`]. No device may use the pages any more.
    fn unmap(&mut self, batch: &[GrantMapping]);

    /// Copies from granted pages, each with its own result.
    fn copy(&mut self, batch: &mut [GrantCopy]);

    /// Maps one page readable and writable for the CPU.
    ///
    /// # Errors
    /// Not granted to us, not writable, or no room to map it.
    fn map_page(&mut self, dom: DomId, gref: GrantRef) -> Result<GrantedPage, HypervisorError>;

    /// Undoes [`Grants::map_page`].
    fn unmap_page(&mut self, page: GrantedPage);

    /// Grants a page of ours to `dom`, readable and writable, for as long as we live.
    ///
    /// # Errors
    /// The grant table is full.
    fn grant(&mut self, dom: DomId, page: &DmaPage) -> Result<GrantRef, HypervisorError>;
}

/// A zeroed page of our own memory that devices (or another domain) can reach too.
#[derive(Debug)]
pub struct DmaPage {
    /// Its contents.
    pub page: SharedPage,
    /// Where devices find it.
    pub bus: BusAddr,
}

/// Registers of a device, mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioRegion {
    /// The platform's name for it.
    pub base: usize,
    /// Its length in bytes.
    pub len: usize,
}

/// Our own pages and the devices' registers.
pub trait Memory {
    /// How many pages can be had.
    fn free_pages(&self) -> usize;

    /// A zeroed page, or nothing when memory is used up.
    fn take_page(&mut self) -> Option<DmaPage>;

    /// Gives a page back. No device may use it any more.
    fn return_page(&mut self, page: DmaPage);

    /// A page that is ours alone, or nothing when memory is used up.
    fn take_private(&mut self) -> Option<PrivatePage>;

    /// Gives such a page back.
    fn return_private(&mut self, page: PrivatePage);

    /// Maps `len` bytes of a device's registers, uncached; `bar` and `len` are page-aligned.
    ///
    /// # Errors
    /// The registers are not ours, or no room is left.
    fn map_mmio(&mut self, bar: BusAddr, len: usize) -> Result<MmioRegion, HypervisorError>;

    /// Undoes [`Memory::map_mmio`].
    fn unmap_mmio(&mut self, region: MmioRegion);

    /// Reads a 32-bit register. The offset is within the region and aligned.
    fn read32(&mut self, region: MmioRegion, offset: usize) -> u32;

    /// Writes a 32-bit register, after every write to memory before it.
    fn write32(&mut self, region: MmioRegion, offset: usize, value: u32);
}

/// All of it.
pub trait Hal: Clock + Events + Grants + Memory {}

impl<T: Clock + Events + Grants + Memory> Hal for T {}
