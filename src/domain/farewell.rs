//! The orderly end of the disks: what was taken is answered, caches are written out, and the
//! controllers are shut down as their standard says. The vbds' states stay as they are, so that no
//! guest loses its disk over it.

use super::disks::Disks;
use super::io::{Io, Vbds};
use crate::blkback::{Requests, Vbd};
use crate::drivers::{Disk, Status};
use crate::hal::Memory;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Farewell {
    /// Requests that were taken are being answered.
    Draining,
    /// The disks' caches are being written out.
    Flushing,
    /// The controllers are being shut down.
    Stopping,
}

impl Farewell {
    /// The next step, or nothing when all is done. Disks that fail on the way are left alone.
    pub(super) fn step(
        self,
        io: &mut Io,
        hal: &mut impl Memory,
        disks: &mut Disks,
        vbds: &mut Vbds,
    ) -> Option<Self> {
        io.close();
        // A controller that is being reset answers what it had, and has a cache to write out after.
        let is_starting = any(disks, |_, disk| disk.status() == Status::Starting);
        match self {
            Self::Draining => {
                vbds.iter_mut().flatten().filter_map(Vbd::requests_mut).for_each(Requests::close);
                let mut served = vbds.iter_mut().flatten().filter_map(Vbd::requests_mut);
                if is_starting
                    || served.any(|requests| is_waited_for(requests, disks))
                    || any(disks, |number, disk| io.is_reading(number, disk))
                {
                    return Some(self);
                }
                for (controller, disk) in disks.iter_mut().enumerate() {
                    disk.iter_mut().for_each(|disk| io.flush(hal, controller, disk));
                }
                Some(Self::Flushing)
            }
            Self::Flushing if is_starting || any(disks, |number, disk| io.is_flushing(number, disk)) => {
                Some(self)
            }
            Self::Flushing => {
                disks.iter_mut().flatten().for_each(|disk| disk.shut_down(hal));
                Some(Self::Stopping)
            }
            Self::Stopping => {
                let ended = |disk: &Disk| disk.status() == Status::Stopped || disk.has_failed();
                (!disks.iter().flatten().all(ended)).then_some(self)
            }
        }
    }
}

/// Says that guests are left behind: their requests will wait for ever.
pub(super) fn warn_of_attached(vbds: &Vbds) {
    let mut attached = vbds.iter().flatten().filter(|vbd| vbd.ports().next().is_some());
    let Some(first) = attached.next() else { return };
    match attached.count() {
        0 => log::warn!("vbd {} is still attached: its guest's disk hangs from now on", first.id()),
        more => log::warn!(
            "vbd {} and {more} more are still attached: disks of their guests hang from now on",
            first.id()
        ),
    }
}

fn any(disks: &Disks, mut is_so: impl FnMut(usize, &Disk) -> bool) -> bool {
    disks.iter().enumerate().any(|(number, disk)| disk.as_ref().is_some_and(|disk| is_so(number, disk)))
}

/// Whether a device has requests that will be answered. What a failed controller holds never is: Xen
/// takes its pages back when the domain has ended.
fn is_waited_for(requests: &Requests, disks: &Disks) -> bool {
    let has_failed = disks[requests.volume().disk.controller].as_ref().is_none_or(Disk::has_failed);
    requests.has_ended() || requests.in_flight() > 0 && !has_failed
}
