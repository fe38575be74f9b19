//! Newtypes for everything that would otherwise be a bare integer: a function that takes a
//! [`Port`] cannot be given a [`GrantRef`]. No behaviour beyond arithmetic that cannot overflow.

use core::fmt;
use core::ops::Add;
use core::time::Duration;

/// Bytes in a page: the unit of mapping, granting and DMA memory.
pub const PAGE_SIZE: usize = 4096;

/// Bytes in a blkif sector, whatever the disk's block size is (xen/include/public/io/blkif.h).
pub const SECTOR_SIZE: usize = 512;

/// A Xen domain id (`domid_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DomId(pub u16);

impl DomId {
    /// The domain that says it (xen.h, `DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
}

/// A reference into the granting domain's grant table (`grant_ref_t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantRef(pub u32);

/// Xen's name for one mapping of a grant (`grant_handle_t`), needed to undo it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantHandle(pub u32);

/// A local event channel port (`evtchn_port_t`), or the peer's where that is said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port(pub u32);

/// A physical interrupt as Xen numbers it for this domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pirq(pub u32);

/// A machine frame number: a machine address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mfn(pub u64);

/// An address as a device puts it on the bus. For a PV domain that is the machine address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BusAddr(pub u64);

impl BusAddr {
    /// This address, `bytes` further on.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// A place on a virtual disk, or a count, in units of [`SECTOR_SIZE`] bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sector(pub u64);

/// A logical block address on a disk, or a count, in units of the disk's own block size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Block(pub u64);

/// A piece of DMA-able memory inside one page: what a driver's command points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Where it starts.
    pub bus: BusAddr,
    /// Its length in bytes, a multiple of [`SECTOR_SIZE`]; start and end lie in the same page.
    pub bytes: u32,
}

/// How a disk gives up blocks whose contents nobody needs any more. Both are hints: what heeds
/// neither is legal too, but gives up less than it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Discard {
    /// Bytes that are given up together, a power of two, and whole blocks.
    pub granularity: u32,
    /// Bytes before the first such piece that is whole, less than the granularity.
    pub alignment: u32,
}

/// A point in Xen's system time: nanoseconds since the host started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(pub u64);

impl Instant {
    /// Time passed since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
