//! platter is shut down or rebooted in the middle of I/O: in good order for the disks, and no guest loses its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{A_MOMENT, REGION, World, XVDB, region};
use crate::fio;
use crate::machine::{NAME, Platter, poll};
use crate::oracle::Expected;

/// `xl shutdown` is acknowledged, the device is flushed and shut down, the vbds' states stay, and the domain ends. A
/// guest that does not use its disk gets it again from the next platter.
pub(super) fn shut_down_in_mid_io(world: &World) -> Result<()> {
    ends_in_mid_io(world, "shutdown", |platter| {
        poll("the end of platter's domain", Duration::from_secs(60), || {
            Ok((!platter.exists()?).then_some(()))
        })?;
        world.platter()
    })
}

/// `xl reboot` does the same, and the next platter comes by itself.
pub(super) fn rebooted_in_mid_io(world: &World) -> Result<()> {
    ends_in_mid_io(world, "reboot", |platter| world.successor(platter, Duration::from_secs(60)))
}

fn ends_in_mid_io<'m>(
    world: &World<'m>,
    command: &str,
    next: impl FnOnce(&Platter<'m>) -> Result<Platter<'m>>,
) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let (first, second) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    alice.attach("xvdb", NAME, &second.target())?;
    alice.write_line("xvdb", 8..16, "before")?;
    // She never gets her last answers, and so ends with this story.
    let carol = world.carol(&[("xvdb", &first)], "destroy")?;
    fio::keep_verifying(&carol, "xvdb", REGION.0, REGION.1)?;

    world.step(&format!("xl {command} platter"));
    let (log, trace) = (platter.log().len(), world.machine().trace()?.len());
    watch_states(world, &platter, &[alice.id()?, carol.id()?])?;
    world.machine().dom0(&format!("xl {command} {NAME}"))?;
    let next = next(&platter)?;
    platter.wait_line(log, &["requested by the toolstack"], A_MOMENT)?;
    platter.wait_line(log, &["and 1 more are still attached"], A_MOMENT)?;
    ensure!(states_seen(world)? == "4", "the vbds' states became {}", states_seen(world)?);
    check_trace(&world.machine().trace()?[trace..])?;

    world.step("alice gets her disk again");
    world.machine().dom0(&format!("xl destroy {}", carol.name()))?;
    alice.detach("xvdb")?;
    alice.attach("xvdb", NAME, &second.target())?;
    ensure!(next.id() != platter.id(), "platter did not end");
    alice.check_line("xvdb", 8..16, "before")?;
    alice.detach("xvdb")?;
    world.step("the host reads both disks");
    region(&first).check()?;
    Expected::untouched(&second).line(8..16, "before").check()
}

/// Has dom0 note the states of these guests' disks, at both ends, until platter's domain has gone.
fn watch_states(world: &World, platter: &Platter, guests: &[u32]) -> Result<()> {
    let ends = |guest: &u32| {
        [
            format!("{}/state", platter.backend(*guest, XVDB)),
            format!("/local/domain/{guest}/device/vbd/{XVDB}/state"),
        ]
    };
    let nodes = guests.iter().flat_map(ends).collect::<Vec<_>>().join(" ");
    let script = format!(
        "rm -f /tmp/states; while seen=$(xenstore-read {nodes} 2>/dev/null); do \
         echo \"$seen\" >> /tmp/states; done < /dev/null > /dev/null 2>&1 &"
    );
    world.machine().dom0(&script).map(drop)
}

/// The different states that were noted.
fn states_seen(world: &World) -> Result<String> {
    world.machine().dom0("sort -u /tmp/states")
}

/// The last thing before the controller was shut down was a flush of each namespace.
fn check_trace(trace: &str) -> Result<()> {
    let shutdown = trace.find("pci_nvme_mmio_shutdown_set").context("the controller was not shut down")?;
    let flushes = trace[..shutdown].lines().rev().filter(|line| line.contains("pci_nvme_flush_ns"));
    let last = flushes.take(2).collect::<Vec<_>>().join(", ");
    ensure!(last.contains("nsid 0x1") && last.contains("nsid 0x2"), "flushed at last: {last}");
    Ok(())
}
