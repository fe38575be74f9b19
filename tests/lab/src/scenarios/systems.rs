//! The systems that guests run, and what their disk drivers can be asked for: each setting of Linux's blkfront, in two
//! kernels, on one and four processors, with what it must agree on with its backend.

use anyhow::{Context, Result, ensure};

use super::{MIB, REGION, World, XVDB};
use crate::fio;
use crate::machine::{Controller, Disk, Linux, Manner, NAME, System};
use crate::oracle::Expected;

/// MiB that fio writes on each processor.
const EACH: u32 = 4;

/// The Linux driver domain's name.
const PEER: &str = "linux";

/// What a frontend and its backend agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Pages of each ring, as a power of two.
    pub(super) order: u32,
    pub(super) queues: u32,
    pub(super) persistent: bool,
    /// Segments in a request; more than 11 go through indirect pages.
    pub(super) segments: u32,
    /// The frontend copies all data: its grants are persistent, or it does not trust its backend.
    pub(super) bounce: bool,
}

/// blkfront's parameters, and what must come of them with a backend that offers everything.
struct Case {
    parameters: &'static str,
    agreed: Agreed,
}

/// On four processors. blkfront keeps a grant for each segment of each ring entry, of which Xen gives a guest 32768,
/// and with persistent grants a page too: so not everything is at its largest in one case.
const FOUR_PROCESSORS: &[Case] = &[
    Case {
        parameters: "",
        agreed: Agreed { order: 0, queues: 4, persistent: true, segments: 32, bounce: true },
    },
    Case {
        parameters: "max_ring_page_order=4 max_indirect_segments=11",
        agreed: Agreed { order: 4, queues: 4, persistent: true, segments: 11, bounce: true },
    },
    Case {
        parameters: "max_queues=2 max_indirect_segments=256",
        agreed: Agreed { order: 0, queues: 2, persistent: true, segments: 256, bounce: true },
    },
    Case {
        parameters: "max_ring_page_order=1 max_queues=1 max_indirect_segments=256 feature_persistent=0",
        agreed: Agreed { order: 1, queues: 1, persistent: false, segments: 256, bounce: false },
    },
    Case {
        parameters: "max_ring_page_order=2 max_queues=3 max_indirect_segments=32 feature_persistent=0 trusted=0",
        agreed: Agreed { order: 2, queues: 3, persistent: false, segments: 32, bounce: true },
    },
];

/// On one processor there is one queue, whatever is allowed.
const ONE_PROCESSOR: &[Case] = &[
    Case {
        parameters: "",
        agreed: Agreed { order: 0, queues: 1, persistent: true, segments: 32, bounce: true },
    },
    Case {
        parameters: "max_ring_page_order=4 max_queues=4 max_indirect_segments=32 feature_persistent=0",
        agreed: Agreed { order: 4, queues: 1, persistent: false, segments: 32, bounce: false },
    },
];

/// Linux 6.1 on four processors.
pub(super) fn linux_6_1_with_each_setting(world: &World) -> Result<()> {
    world.platter()?;
    four_processors(world, System::Linux61, NAME, &world.fresh_disk(1)?)
}

/// Linux 6.12 on four processors.
pub(super) fn linux_6_12_with_each_setting(world: &World) -> Result<()> {
    world.platter()?;
    four_processors(world, System::Linux612, NAME, &world.fresh_disk(1)?)
}

/// Linux 6.1 on one processor.
pub(super) fn linux_on_one_processor(world: &World) -> Result<()> {
    world.platter()?;
    let (alice, disk) = (world.alice()?, world.fresh_disk(1)?);
    for case in ONE_PROCESSOR {
        verify(world, alice, NAME, &disk, 1, case)?;
    }
    load_driver(alice, "")
}

/// The same guests and settings with xen-blkback in a Linux driver domain: what is asked of platter is what Linux does.
pub(super) fn a_linux_driver_domain_agrees_to_the_same(world: &World) -> Result<()> {
    world.remove_platter()?;
    let linux = Linux::driver_domain(world.machine(), PEER, &Controller::LINUX)?;
    // By itself it offers a queue for each processor of its own.
    linux.run("echo 16 > /sys/module/xen_blkback/parameters/max_queues")?;
    let disk = world.machine().disk(&Controller::LINUX, 1);
    for system in [System::Linux61, System::Linux612] {
        disk.create()?;
        four_processors(world, system, PEER, &disk)?;
    }
    world.machine().dom0(&format!("xl destroy {PEER}")).map(drop)
}

fn four_processors(world: &World, system: System, backend: &str, disk: &Disk) -> Result<()> {
    let dave = world.dave(Manner { system, vcpus: 4, memory: 448, ..Manner::usual() })?;
    for case in FOUR_PROCESSORS {
        verify(world, &dave, backend, disk, 4, case)?;
    }
    world.machine().dom0(&format!("xl destroy {}", dave.name())).map(drop)
}

/// Loads blkfront with the case's parameters, and demands what it must agree on, that data is right, and that each
/// queue did its part.
fn verify(
    world: &World,
    guest: &Linux,
    backend: &str,
    disk: &Disk,
    processors: u32,
    case: &Case,
) -> Result<()> {
    world.step(&format!("blkfront with {:?}", case.parameters));
    load_driver(guest, case.parameters)?;
    guest.attach("xvdb", backend, &disk.target())?;
    let found = agreed(world, guest)?;
    ensure!(found == case.agreed, "{:?}: {found:?} instead of {:?}", case.parameters, case.agreed);
    fio::verify_on_all(guest, "xvdb", processors, REGION.0, EACH)?;
    let interrupts =
        guest.run("awk '/ blkif$/ { n = 0; for (i = 2; i < NF; i++) n += $i; print n }' /proc/interrupts")?;
    let busy = interrupts.lines().filter(|count| *count != "0").count();
    ensure!(
        busy == case.agreed.queues as usize,
        "{:?}: interrupts of each queue: {interrupts}",
        case.parameters
    );
    guest.detach("xvdb")?;
    let (first, blocks) = (u64::from(REGION.0) * MIB, u64::from(EACH * processors) * MIB);
    Expected::untouched(disk).anything(first..first + blocks).check()
}

/// Loads blkfront anew with these parameters. It may have no disk.
pub(super) fn load_driver(guest: &Linux, parameters: &str) -> Result<()> {
    guest.run(&format!("rmmod xen_blkfront && insmod /modules/xen-blkfront.ko {parameters}")).map(drop)
}

/// What xvdb's frontend said in xenstore, in its kernel's log, and to its kernel.
pub(super) fn agreed(world: &World, guest: &Linux) -> Result<Agreed> {
    let theirs = format!("/local/domain/{}/device/vbd/{XVDB}", guest.id()?);
    let node = |name: &str, absent: u32| -> Result<u32> {
        let said =
            world.machine().dom0(&format!("xenstore-read {theirs}/{name} 2>/dev/null || echo {absent}"))?;
        said.parse().with_context(|| format!("{name} is {said:?}"))
    };
    let line = guest.run("dmesg | grep 'blkfront: xvdb:' | tail -n 1")?;
    let segments = guest.run("cat /sys/block/xvdb/queue/max_segments")?;
    Ok(Agreed {
        order: node("ring-page-order", 0)?,
        queues: node("multi-queue-num-queues", 1)?,
        persistent: line.contains("persistent grants: enabled"),
        segments: segments.parse().with_context(|| format!("max_segments is {segments:?}"))?,
        bounce: line.contains("bounce buffer: enabled"),
    })
}
