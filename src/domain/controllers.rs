//! The controllers: joins PCI functions with the disks behind them and with the devices served from
//! these. They come and go while we run; each has a number, the one in `nvme0n1`, which is free
//! again when nothing is left of it.
//!
//! Nothing that a controller may still reach is ever given back: one that does not stop by itself is
//! kept from memory through pciback first. Where that fails too, its number and pages stay taken.

use core::time::Duration;

use super::io::Vbds;
use super::ports::Owner;
use super::{Domain, Tables};
use crate::blkback::Vbd;
use crate::drivers::nvme::Nvme;
use crate::drivers::pci::{DeviceKind, Event, Found};
use crate::drivers::{Disk, Status};
use crate::hal::{Hal, HypervisorError, MmioRegion};
use crate::limits;
use crate::units::{Instant, Port};
use crate::wire::pci::Address;

/// How long a controller that leaves may take over what was asked of it before. The toolstack waits
/// for 10 s, for the devices to close and pciback to take it too.
const PATIENCE: Duration = Duration::from_secs(3);

/// By their numbers.
pub(super) type Controllers = [Option<Controller>; limits::CONTROLLERS];

/// What a disk's controller is to Xen and to the toolstack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Controller {
    address: Address,
    registers: MmioRegion,
    port: Option<Port>,
    stage: Stage,
    isolation: Isolation,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It is ours.
    Serving,
    /// The toolstack wants it back.
    Leaving {
        /// When it is abandoned, unless it was.
        until: Option<Instant>,
        /// Its disks were asked to write their caches out.
        flushed: bool,
    },
    /// The toolstack has it back, and nobody knows what it does to our memory.
    Lost,
}

/// Whether it is kept from memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Isolation {
    None,
    Asked,
    Failed,
}

impl Controller {
    /// When it is abandoned.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Leaving { until, .. } => until,
            Stage::Serving | Stage::Lost => None,
        }
    }
}

impl Domain<'_> {
    /// Does for controllers what can be done now.
    pub(super) fn controllers_turn(&mut self, hal: &mut impl Hal, now: Instant) -> bool {
        let mut progress = false;
        if let Some(port) = self.pci.port() {
            self.tables.ports.set(port, Some(Owner::Pci));
        }
        if let Some(event) = self.pci.turn(hal, now) {
            progress = true;
            match event {
                Event::Found(found) => {
                    if let Err(error) = self.add_controller(hal, &found) {
                        log::error!("pci {}: {error}", found.address);
                    }
                }
                Event::Leaves(address) => self.want_back(hal, now, address),
                Event::Isolated(address, done) => self.isolated(address, done),
            }
        }
        for number in 0..self.tables.disks.len() {
            progress |= self.controller_turn(hal, now, number);
        }
        progress
    }

    /// A function becomes a controller with the lowest number that is free.
    fn add_controller(&mut self, hal: &mut impl Hal, found: &Found) -> Result<(), HypervisorError> {
        let address = found.address;
        let Some(number) = self.controllers.iter().position(Option::is_none) else {
            log::error!("pci {address}: not used: {} controllers at most", limits::CONTROLLERS);
            return Ok(());
        };
        let registers = hal.map_mmio(found.bar, found.bar_len.min(limits::REGISTERS))?;
        let port = found.pirq.map(|pirq| hal.bind_pirq(pirq)).and_then(|port| {
            port.inspect_err(|error| {
                log::warn!("pci {address}: no interrupt: {error}; completions are polled");
            })
            .ok()
        });
        let disk = match found.kind {
            DeviceKind::Nvme => Nvme::new(hal, number, registers, port.is_some()).map(Disk::Nvme),
        };
        let controller =
            Controller { address, registers, port, stage: Stage::Serving, isolation: Isolation::None };
        match disk {
            Ok(disk) => {
                if let Some(port) = port {
                    self.tables.ports.set(port, Some(Owner::Disk));
                }
                self.tables.disks.put(number, disk);
                self.controllers[number] = Some(controller);
            }
            Err(error) => {
                log::error!("pci {address}: {error}");
                self.let_go(hal, &controller);
            }
        }
        Ok(())
    }

    /// The toolstack wants a function back: what is served from it closes, with what was asked of it
    /// before answered if it still can be.
    fn want_back(&mut self, hal: &mut impl Hal, now: Instant, address: Address) {
        let is_it =
            |controller: &Controller| controller.address == address && controller.stage != Stage::Lost;
        let Some(number) = self.controllers.iter().position(|entry| entry.as_ref().is_some_and(is_it)) else {
            return self.pci.release(address);
        };
        log::info!("nvme{number}: pci {address} is being detached");
        self.tables.volumes.remove_controller(number, "its controller was detached");
        self.survey.skip(number);
        for index in 0..self.tables.vbds.len() {
            if let Some(vbd) = &mut self.tables.vbds[index] {
                vbd.withdraw(
                    number,
                    format_args!("its controller nvme{number}, pci {address}, was detached"),
                );
                vbd.turn(now, hal);
                self.settle_vbd(index);
            }
        }
        if let Some(disk) = &mut self.tables.disks[number]
            && !disk.is_enabled(hal)
        {
            disk.abandon();
        }
        if let Some(controller) = &mut self.controllers[number] {
            controller.stage = Stage::Leaving { until: Some(now + PATIENCE), flushed: false };
        }
    }

    /// What became of an attempt to keep a controller from memory.
    fn isolated(&mut self, address: Address, done: bool) {
        for number in 0..self.tables.disks.len() {
            let (Some(controller), Some(disk)) =
                (&mut self.controllers[number], &mut self.tables.disks[number])
            else {
                continue;
            };
            if controller.address != address || controller.isolation != Isolation::Asked {
                continue;
            }
            if done {
                controller.isolation = Isolation::None;
                disk.isolated();
            } else {
                log::error!(
                    "nvme{number}: pciback does not keep pci {address} from memory: what it may reach stays"
                );
                controller.isolation = Isolation::Failed;
            }
        }
    }

    fn controller_turn(&mut self, hal: &mut impl Hal, now: Instant, number: usize) -> bool {
        let (Some(controller), Some(disk)) = (&mut self.controllers[number], &mut self.tables.disks[number])
        else {
            return false;
        };
        if disk.must_be_isolated() && controller.isolation == Isolation::None {
            controller.isolation = Isolation::Asked;
            self.pci.isolate(controller.address);
            return true;
        }
        match controller.stage {
            Stage::Leaving { until: Some(until), flushed } if now >= until => {
                disk.abandon();
                controller.stage = Stage::Leaving { until: None, flushed };
                true
            }
            Stage::Leaving { until: _, flushed } => self.leave(hal, number, flushed),
            Stage::Serving | Stage::Lost => false,
        }
    }

    /// The next step of a controller that leaves.
    fn leave(&mut self, hal: &mut impl Hal, number: usize, flushed: bool) -> bool {
        let Tables { disks, vbds, io, .. } = &mut *self.tables;
        let (Some(controller), Some(disk)) = (&mut self.controllers[number], &mut disks[number]) else {
            return false;
        };
        match disk.status() {
            Status::Stopped | Status::Failed(_) if controller.isolation == Isolation::Failed => {
                controller.stage = Stage::Lost;
                // Only its memory is still in question: nobody looks at its registers any more.
                let lost = *controller;
                self.let_go(hal, &lost);
                self.pci.release(lost.address);
            }
            Status::Stopped | Status::Failed(_) if disk.must_be_isolated() => return false,
            _ if is_used(vbds, number) || io.is_reading(number, disk) || io.is_flushing(number, disk) => {
                return false;
            }
            Status::Stopped | Status::Failed(_) => self.remove(hal, number),
            Status::Stopping => return false,
            Status::Ready if !flushed => {
                io.flush(hal, number, disk);
                if let Stage::Leaving { flushed, .. } = &mut controller.stage {
                    *flushed = true;
                }
            }
            Status::Ready | Status::Starting => disk.shut_down(hal),
        }
        true
    }

    /// Nothing is left of a controller, and its number is free.
    fn remove(&mut self, hal: &mut impl Hal, number: usize) {
        let (Some(controller), Some(disk)) =
            (self.controllers[number].take(), self.tables.disks[number].take())
        else {
            return;
        };
        disk.release(hal);
        self.survey.forget(hal, &mut self.tables.io, number);
        self.let_go(hal, &controller);
        self.pci.release(controller.address);
        log::info!("nvme{number}: pci {} is let go", controller.address);
    }

    fn let_go(&mut self, hal: &mut impl Hal, controller: &Controller) {
        if let Some(port) = controller.port {
            hal.close(port);
            self.tables.ports.set(port, None);
        }
        hal.unmap_mmio(controller.registers);
    }
}

/// Whether any device is still connected to a disk of this controller.
fn is_used(vbds: &mut Vbds, number: usize) -> bool {
    let mut served = vbds.iter_mut().flatten().filter_map(Vbd::requests_mut);
    served.any(|requests| requests.volume().disk.controller == number)
}
