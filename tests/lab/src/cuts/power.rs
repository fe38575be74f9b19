//! Real power cuts: the machine is killed in the middle of its writers' work, and booted again with the same
//! disks. What the controller had not been given by then is gone.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::stage::{boot, make_disks, start};
use super::writer::{DATA, STEPS_LIMIT, Writer, last_said};
use crate::machine::{Disks, Linux, Machine, poll};
use crate::parallel::each_at_once;
use crate::progress::Step;
use crate::{interrupt, process};

/// The longest that the writers work before a cut, in milliseconds, from their first step on.
const WORK_LIMIT: u64 = 8000;
/// When a writer has not said anything until then, it hangs.
const FIRST_STEP_LIMIT: Duration = Duration::from_secs(120);
/// What a writer's tools may take to recover a disk.
const RECOVER_LIMIT: Duration = Duration::from_secs(300);

/// A writer's disk after a cut.
struct Left {
    /// Steps that the writer has said were synced.
    acknowledged: u64,
    /// The checksum of what it writes to.
    checksum: String,
}

/// Cuts the power so many times, and boots once more; gives the steps that were acknowledged in all.
///
/// # Errors
/// Something that was acknowledged is lost, the machine does not boot, or the user interrupts.
pub(super) fn run(step: &Step, folder: &Path, seed: u32, times: u32) -> Result<u64> {
    make_disks(folder)?;
    let mut rng = Rng::with_seed(seed.into());
    let mut left: Option<Vec<Left>> = None;
    for cut in 1..=times {
        let work = Duration::from_millis(rng.u64(0..WORK_LIMIT));
        let machine = boot(step, Disks::Kept(folder.to_owned()))?;
        live(&machine, step, left.as_deref(), Some(work)).map_err(|error| machine.explain(error))?;
        step.now(&format!("power cut {cut} of {times}"));
        let consoles = Writer::ALL.map(|writer| machine.run().console(writer.name()));
        machine.cut_power()?;
        let before = left.iter().flatten().map(|left| left.acknowledged).chain(std::iter::repeat(0));
        let ended = Writer::ALL.into_iter().zip(consoles).zip(before);
        let found = ended.map(|((writer, console), before)| {
            let said = String::from_utf8_lossy(&fs::read(console)?).replace('\r', "");
            look(writer, folder, last_said(&said).unwrap_or(before))
                .with_context(|| format!("power cut {cut}"))
        });
        left = Some(found.collect::<Result<_>>()?);
        interrupt::check()?;
    }
    let machine = boot(step, Disks::Kept(folder.to_owned()))?;
    live(&machine, step, left.as_deref(), None).map_err(|error| machine.explain(error))?;
    machine.end()?;
    Ok(left.iter().flatten().map(|left| left.acknowledged).sum())
}

/// Boots the writers, which recover what the last cut has left, and has them work for so long.
fn live(machine: &Machine, step: &Step, left: Option<&[Left]>, work: Option<Duration>) -> Result<()> {
    let writers = start(machine, step, None)?;
    step.now("the guests look at their disks");
    let of = |writer| Writer::ALL.iter().position(|other| *other == writer).and_then(|at| left?.get(at));
    each_at_once(&writers, |(writer, guest)| match of(*writer) {
        None => guest.run(&writer.prepare()).map(drop),
        Some(left) => recover(*writer, guest, left),
    })?;
    let Some(work) = work else { return Ok(()) };
    step.now(&format!("both guests write and sync, for {:.1} s", work.as_secs_f64()));
    each_at_once(&writers, |(writer, guest)| {
        let done = of(*writer).map_or(0, |left| left.acknowledged);
        guest.tell(&writer.work(done, STEPS_LIMIT), Duration::from_secs(3600))?;
        poll(&format!("{}'s next step", guest.name()), FIRST_STEP_LIMIT, || {
            machine.check_alive()?;
            Ok(last_said(&guest.said()).filter(|said| *said > done))
        })
        .map(drop)
    })?;
    thread::sleep(work);
    Ok(())
}

/// The guest finds on its disk what the host has found there.
fn recover(writer: Writer, guest: &Linux, left: &Left) -> Result<()> {
    let said = guest.run_within(RECOVER_LIMIT, &writer.recover(left.acknowledged))?;
    let same = writer == Writer::Files || said == left.checksum;
    ensure!(same, "{} reads other bytes than its disk has: {said}", guest.name());
    Ok(())
}

/// Looks at a disk from the host, where everything up to step `acknowledged` must be.
fn look(writer: Writer, folder: &Path, acknowledged: u64) -> Result<Left> {
    let disk = fs::read(writer.disk(folder).path())?;
    let scratch = tempfile::tempdir_in("/dev/shm")?;
    let lost = writer.check(&disk, acknowledged, scratch.path())?;
    ensure!(lost.is_none(), "{}: {}", writer.what(), lost.unwrap_or_default());
    let written = &disk[DATA][..super::raw::BYTES as usize];
    let checksum = String::from_utf8(process::pipe("md5sum", &[], written)?)?.trim_end().to_owned();
    Ok(Left { acknowledged, checksum })
}
