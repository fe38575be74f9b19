//! The backends that the conformance image is tried on, each with a disk of its own.

use anyhow::Result;

use crate::machine::{Controller, Linux, Machine, NAME, Platter, Settings, disk_spec};

/// The Linux driver domain's name.
const DRIVER_DOMAIN: &str = "linux";
/// The image's disk.
const VDEV: &str = "xvda";

/// xen-blkback offers a queue a processor, and the emulated one is single: as with four, so that queues are tried on it.
const QUEUES: &str = "echo 4 > /sys/module/xen_blkback/parameters/max_queues";

/// Something that serves blkif.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The domain under test.
    Platter,
    /// xen-blkback in a driver domain with `xl devd`.
    DriverDomain,
    /// xen-blkback in the control domain.
    ControlDomain,
    /// QEMU's xen-block in the control domain.
    Qdisk,
}

impl Backend {
    /// All of them, as the table has them.
    pub(crate) const ALL: [Self; 4] = [Self::Platter, Self::DriverDomain, Self::ControlDomain, Self::Qdisk];

    /// What the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Platter => "platter",
            Self::DriverDomain => "Linux driver domain",
            Self::ControlDomain => "dom0",
            Self::Qdisk => "qdisk",
        }
    }

    /// The controller and the namespace of its disk.
    fn volume(self) -> (Controller, u32) {
        match self {
            Self::Platter => (Controller::PLATTER, 1),
            Self::DriverDomain | Self::ControlDomain => (Controller::LINUX, 1),
            Self::Qdisk => (Controller::LINUX, 2),
        }
    }

    /// What a machine for this backend alone has.
    pub(super) fn controllers(self) -> Vec<Controller> {
        vec![self.volume().0]
    }

    /// Makes it ready to serve its disk.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) fn start(self, machine: &Machine) -> Result<()> {
        match self {
            Self::Platter => Platter::create(machine, Settings::usual())?.wait_ready(),
            Self::DriverDomain => {
                let linux = Linux::driver_domain(machine, DRIVER_DOMAIN, &Controller::LINUX)?;
                linux.run(QUEUES).map(drop)
            }
            Self::ControlDomain => {
                machine.keep(&Controller::LINUX)?;
                machine.dom0(QUEUES).map(drop)
            }
            Self::Qdisk => {
                machine.keep(&Controller::LINUX)?;
                machine.unpack_qemu()
            }
        }
    }

    /// Its disk with the first contents again, as a guest's configuration has it. Nothing may be in flight there.
    ///
    /// # Errors
    /// The contents cannot be written.
    pub(super) fn fresh_disk(self, machine: &Machine) -> Result<String> {
        let (controller, namespace) = self.volume();
        let disk = machine.disk(&controller, namespace);
        disk.create()?;
        let target = disk.target();
        let from_dom0 =
            |kind: &str| format!("format=raw,vdev={VDEV},access=rw,backendtype={kind},target={target}");
        Ok(match self {
            Self::Platter => disk_spec(VDEV, NAME, &target),
            Self::DriverDomain => disk_spec(VDEV, DRIVER_DOMAIN, &target),
            Self::ControlDomain => from_dom0("phy"),
            Self::Qdisk => from_dom0("qdisk"),
        })
    }

    /// Gives the disk's controller back to whom it is passed through, for the next backend.
    ///
    /// # Errors
    /// The driver domain stays.
    pub(crate) fn stop(self, machine: &Machine) -> Result<()> {
        match self {
            Self::DriverDomain => machine.dom0(&format!("xl destroy {DRIVER_DOMAIN}")).map(drop),
            // One is its story's, the others leave no domain behind.
            Self::Platter | Self::ControlDomain | Self::Qdisk => Ok(()),
        }
    }
}
