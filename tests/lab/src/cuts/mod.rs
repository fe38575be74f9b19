//! `cargo lab cuts`: what was acknowledged before a flush outlives a power cut, at any moment of it.
//!
//! Two Linux guests, [`writer`], write on disks whose every write and flush QEMU logs ([`stage`]; the log's format and
//! order are in [`log`]). From the logs, [`state`] rebuilds what a disk can hold after a cut: anything
//! that a flush covers, and any part of what none does. [`states`] checks each such disk on the host, by [`files`] and
//! [`raw`]. [`power`] cuts the machine's power for real. Not covered: writes that are under way
//! at the moment of the cut and that QEMU has not completed, as their order is not known.

mod files;
mod log;
mod power;
mod raw;
mod stage;
mod state;
mod states;
mod writer;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use self::states::{Choice, Tally};
use self::writer::Writer;
use crate::progress::{Progress, Step};
use crate::test::Trial;
use crate::{image, mutants, paths, report, setup};

/// Steps of a recording.
const STEPS: u64 = 150;
const FEW_STEPS: u64 = 40;
/// States of each disk.
const STATES: u32 = 1000;
const FEW_STATES: u32 = 100;
/// Real power cuts.
const POWER_CUTS: u32 = 10;
/// Losses that are shown.
const SHOWN: usize = 5;

/// What to cut, and how often.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// States to rebuild and check of each of the two disks; 0 leaves this out.
    #[arg(long, value_name = "N", default_value_t = STATES)]
    states: u32,
    /// Chooses the states; one seed and one recording always give the same.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u32,
    /// Real power cuts; 0 leaves them out.
    #[arg(long, value_name = "N", default_value_t = POWER_CUTS)]
    power_cuts: u32,
    /// Check states of the last recording again, without a machine.
    #[arg(long)]
    replay: bool,
    /// Only the state of this number of each disk; the rebuilt disks are kept beside the recording.
    #[arg(long, value_name = "N", requires = "replay")]
    state: Option<u32>,
    /// Record with this mutant of tests/mutants.toml instead of platter, and fail when nothing is lost.
    #[arg(long, value_name = "NAME", conflicts_with = "replay")]
    mutant: Option<String>,
}

/// Does what the command line asks for; whether it came out as it should.
///
/// # Errors
/// The machine or the image cannot be made, the recording cannot be used, or the user interrupts.
pub(crate) fn run(progress: &Progress, arguments: &Arguments) -> Result<bool> {
    let Arguments { states, seed, power_cuts, .. } = *arguments;
    ensure!(
        states > 0 || arguments.state.is_some() || (power_cuts > 0 && !arguments.replay),
        "nothing to check: 0 states"
    );
    let step = progress.task("cuts");
    if arguments.replay {
        ensure!(recording().exists(), "there is no recording yet: `cargo lab cuts` makes one");
        let choice = arguments.state.map_or(Choice::Many(states), Choice::One);
        return Ok(verdict(&step, seed, choice)? == 0);
    }
    setup::ensure(progress)?;
    image::build(progress)?;
    if let Some(mutant) = &arguments.mutant {
        return lost_with(progress, &step, mutant, states, seed);
    }
    let lost = if states > 0 {
        stage::record(&step, &recording(), None, STEPS)?;
        verdict(&step, seed, Choice::Many(states))?
    } else {
        0
    };
    if power_cuts > 0 {
        cut_power(&step, seed, power_cuts)?;
    }
    Ok(lost == 0)
}

/// Those of `cargo lab test`. They share the recording's folder, so that only one may run at a time.
pub(crate) const TRIALS: &[Trial] = &[
    Trial {
        name: "cuts/nothing_synced_is_lost",
        long: false,
        tell: |_, step| nothing_is_lost(step, FEW_STEPS, FEW_STATES),
    },
    Trial {
        name: "cuts/nothing_synced_is_lost_in_a_thousand_states",
        long: true,
        tell: |_, step| nothing_is_lost(step, STEPS, STATES),
    },
    Trial {
        name: "cuts/the_power_fails_ten_times",
        long: true,
        tell: |_, step| cut_power(step, 1, POWER_CUTS),
    },
    Trial {
        name: "cuts/a_build_that_does_not_flush_is_found",
        long: true,
        tell: |progress, step| is_found(progress, step, "flush-answered-without-flushing"),
    },
    Trial {
        name: "cuts/a_build_that_flushes_too_early_is_found",
        long: true,
        tell: |progress, step| is_found(progress, step, "flush-before-its-writes"),
    },
];

fn nothing_is_lost(step: &Step, steps: u64, states: u32) -> Result<()> {
    stage::record(step, &recording(), None, steps)?;
    let lost = verdict(step, 1, Choice::Many(states))?;
    ensure!(lost == 0, "{lost} states have lost what was acknowledged");
    Ok(())
}

fn is_found(progress: &Progress, step: &Step, mutant: &str) -> Result<()> {
    ensure!(lost_with(progress, step, mutant, FEW_STATES, 1)?, "nothing is lost with {mutant}");
    Ok(())
}

/// Records with a mutant in platter's place; whether something is lost, as it should be.
fn lost_with(progress: &Progress, step: &Step, mutant: &str, states: u32, seed: u32) -> Result<bool> {
    let image = image::build_copy(progress, mutants::copy_with("cuts", &[mutant])?, mutants::target())?;
    stage::record(step, &recording(), Some(&image.path), FEW_STEPS)?;
    let lost = verdict(step, seed, Choice::Many(states))?;
    let seen = if lost > 0 { "was found" } else { "WAS NOT FOUND" };
    step.say(&format!("{mutant} {seen}: {lost} states have lost what was acknowledged"));
    Ok(lost > 0)
}

fn cut_power(step: &Step, seed: u32, times: u32) -> Result<()> {
    let steps = power::run(step, &paths::cuts().join("power"), seed, times)?;
    step.say(&format!("{times} power cuts: {steps} steps were acknowledged, none is lost"));
    Ok(())
}

/// Where the last recording is: each disk, and its log.
fn recording() -> PathBuf {
    paths::cuts().join("recording")
}

/// Checks states of the last recording and prints what came out; how many of them have a loss.
fn verdict(step: &Step, seed: u32, choice: Choice) -> Result<usize> {
    let folder = recording();
    let check = |writer| states::check(step, writer, &folder, seed, choice);
    let tallies = Writer::ALL.into_iter().map(check).collect::<Result<Vec<_>>>()?;
    let head = ["guest", "steps", "writes", "flushes", "states", "torn", "lost"];
    step.say(&report::table(&head, &tallies.iter().map(row).collect::<Vec<_>>()));
    for tally in &tallies {
        complain(step, tally, seed, &folder);
    }
    let sum = |of: fn(&Tally) -> usize| tallies.iter().map(of).sum::<usize>();
    let lost = sum(|tally| tally.lost.len());
    let (states, torn) = (sum(|tally| tally.states), sum(|tally| tally.torn));
    let (writes, flushes) = (sum(|tally| tally.writes), sum(|tally| tally.flushes));
    step.say(&format!(
        "{states} states, {torn} of them torn, of {writes} writes and {flushes} flushes: {lost} lost"
    ));
    Ok(lost)
}

fn row(tally: &Tally) -> Vec<String> {
    let numbers = [tally.writes, tally.flushes, tally.states, tally.torn, tally.lost.len()];
    let name = format!("{}, {}", tally.writer.name(), tally.writer.what());
    [name, tally.steps.to_string()].into_iter().chain(numbers.map(|number| number.to_string())).collect()
}

fn complain(step: &Step, tally: &Tally, seed: u32, folder: &Path) {
    for (number, what) in tally.lost.iter().take(SHOWN) {
        step.say(&format!("LOST   {}, state {number}: {what}", tally.writer.what()));
    }
    if let Some((number, _)) = tally.lost.first() {
        let folder = folder.display();
        step.say(&format!(
            "again: cargo lab cuts --replay --seed {seed} --state {number}    (from {folder})"
        ));
    }
}
