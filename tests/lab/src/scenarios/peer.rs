//! platter beside what it replaces: a Linux driver domain with xen-blkback and `xl devd`, in the same run.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::World;
use crate::machine::{Controller, Linux, NAME, Settings};
use crate::{fio, report};

/// The Linux driver domain's name.
pub(super) const PEER: &str = "linux";
const JOB_SECONDS: u32 = 10;

/// The same guest and the same job against both; prints requests a second, the backend's CPU a thousand requests, and
/// how long it takes from `xl create` to the guest's disk. Only what cannot depend on the emulator's mood is judged.
pub(super) fn side_by_side(world: &World) -> Result<()> {
    let alice = world.alice()?;
    world.remove_platter()?;
    world.step("platter: from xl create to the guest's disk");
    let start = Instant::now();
    let platter = world.fresh_platter(Settings::usual())?;
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    let seconds = start.elapsed().as_secs_f64();
    world.step("platter: 4 KiB random reads at depth 32");
    let mut rows = vec![measure(world, "platter", platter.id(), alice, Some(seconds))?];
    alice.detach("xvdb")?;

    world.step("Linux: from xl create to the guest's disk");
    let start = Instant::now();
    let linux = Linux::driver_domain(world.machine(), PEER, &Controller::LINUX)?;
    alice.attach("xvdb", PEER, "/dev/nvme0n1")?;
    let seconds = start.elapsed().as_secs_f64();
    world.step("Linux: 4 KiB random reads at depth 32");
    rows.push(measure(world, "Linux, persistent grants", linux.id()?, alice, Some(seconds))?);
    alice.detach("xvdb")?;

    world.step("Linux without persistent grants");
    linux.run("echo 0 > /sys/module/xen_blkback/parameters/feature_persistent")?;
    alice.attach("xvdb", PEER, "/dev/nvme0n1")?;
    rows.push(measure(world, "Linux, grants mapped per request", linux.id()?, alice, None)?);
    alice.detach("xvdb")?;
    let head = ["4 KiB random reads, depth 32", "IOPS", "backend's CPU ms / 1000 requests", "s to /dev/xvdb"];
    world.say(&report::table(&head, &rows));
    Ok(())
}

fn measure(
    world: &World,
    name: &str,
    backend: u32,
    alice: &Linux,
    to_disk: Option<f64>,
) -> Result<Vec<String>> {
    let before = world.machine().cpu_time(backend)?;
    let outcome = fio::random_reads(alice, "xvdb", JOB_SECONDS)?;
    let used = world.machine().cpu_time(backend)? - before;
    ensure!(outcome.errors == 0 && outcome.requests > 0, "{name}: {outcome:?}");
    Ok(vec![
        name.to_owned(),
        format!("{:.0}", outcome.requests_per_second()),
        // ns for one are µs for a thousand.
        format!("{:.1}", (used / outcome.requests) as f64 / 1000.0),
        to_disk.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.1}")),
    ])
}
