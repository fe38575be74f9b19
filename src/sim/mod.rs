//! The simulated world that host tests run the image's core in (feature `sim`, never part of the
//! image): memory, grants, event channels and xenstore with Xen's rules, the toolstack, guests with
//! frontends, and devices at register level, all on virtual time and from one seed. `world` joins
//! them, and is the `hal` of the core that runs in it.

pub mod abi;
pub mod deal;
pub mod front_ring;
pub mod frontend;
pub mod grants;
mod hal;
pub mod intruder;
pub mod lending;
pub mod lent;
pub mod machine;
pub mod memory;
pub mod nvme;
pub mod pages;
pub mod pciback;
pub mod ports;
pub mod requests;
pub mod rng;
pub mod shadow;
pub mod tables;
pub mod toolstack;
pub mod tree;
pub mod world;
pub mod xenstored;
mod xl;

use crate::units::BusAddr;

/// A device reached for memory that is not its to reach at this instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaFault;

/// Memory as a device sees it, behind the IOMMU. An implementation keeps record of the faults:
/// each of them is a failure of the driver, whatever the device does about it.
pub trait Dma {
    /// Reads memory from `bus` on; an access may lie in several pages.
    ///
    /// # Errors
    /// A page of it is not mapped for the device to read.
    fn read(&mut self, bus: BusAddr, to: &mut [u8]) -> Result<(), DmaFault>;

    /// Writes memory from `bus` on; an access may lie in several pages.
    ///
    /// # Errors
    /// A page of it is not mapped for the device to write.
    fn write(&mut self, bus: BusAddr, from: &[u8]) -> Result<(), DmaFault>;
}
