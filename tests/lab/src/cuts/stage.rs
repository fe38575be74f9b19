//! The emulated machine with its two writers, on disks that outlive it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::writer::{SIZE, TABLE, Writer};
use crate::machine::{Controller, Daemon, Disks, Linux, Machine, NAME, Platter, Settings, Spec};
use crate::parallel::each_at_once;
use crate::progress::Step;

/// What the steps of a recording may take; they take about a third of a second each.
const WORK_LIMIT: Duration = Duration::from_secs(1200);

/// Makes a folder with a fresh disk for each writer and nothing else.
///
/// # Errors
/// It cannot be written, or sfdisk fails.
pub(super) fn make_disks(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    for writer in Writer::ALL {
        let disk = writer.disk(folder);
        File::create(disk.path())?.set_len(SIZE as u64)?;
        disk.partition(TABLE)?;
    }
    Ok(())
}

/// Boots the machine.
///
/// # Errors
/// As [`Machine::boot`].
pub(super) fn boot(step: &Step, disks: Disks) -> Result<Machine> {
    step.now("booting Xen and dom0");
    let controllers = vec![Controller::PLATTER];
    let daemon = Daemon::Oxenstored;
    Machine::boot(Spec {
        name: "cuts".to_owned(),
        daemon,
        controllers,
        disks,
        xen_options: "",
        processors: 1,
    })
}

/// Boots platter, or what is to boot in its place, and the writers, and attaches their disks.
///
/// # Errors
/// One of them does not come up.
pub(super) fn start<'m>(
    machine: &'m Machine,
    step: &Step,
    kernel: Option<&Path>,
) -> Result<Vec<(Writer, Linux<'m>)>> {
    step.now("starting platter");
    Platter::create(machine, Settings { kernel, options: "log=info", ..Settings::usual() })?.wait_ready()?;
    let start = |writer: Writer| {
        step.now(&format!("booting the guest {}", writer.name()));
        let guest = Linux::guest(machine, writer.name())?;
        let whole = writer.disk(Path::new("")).target();
        guest.attach("xvdb", NAME, &format!("{whole}p1"))?;
        guest.attach("xvdc", NAME, &format!("{whole}p2"))?;
        Ok((writer, guest))
    };
    Writer::ALL.into_iter().map(start).collect()
}

/// Has both writers do so many steps on fresh disks in `folder`, and keeps the log of each disk there.
///
/// # Errors
/// Something does not come up, or a guest cannot write.
pub(super) fn record(step: &Step, folder: &Path, kernel: Option<&Path>, steps: u64) -> Result<()> {
    make_disks(folder)?;
    let machine = boot(step, Disks::Logged(folder.to_owned()))?;
    let write = || {
        let writers = start(&machine, step, kernel)?;
        step.now(&format!("both guests write and sync, {steps} times"));
        each_at_once(&writers, |(writer, guest)| {
            guest.run(&writer.prepare())?;
            guest.run_within(WORK_LIMIT, &writer.work(0, steps)).map(drop)
        })
    };
    write().map_err(|error| machine.explain(error))?;
    // QEMU completes its logs when it ends.
    machine.end()
}
