//! `cargo lab`: the emulated Xen machine that platter is shown and tested on.
//!
//! [`setup`] assembles the machine from Debian's packages, [`image`] builds what it boots, [`machine`] runs it.
//! [`scenarios`] are the stories told on it, judged by [`oracle`] and [`flushes`]; [`conformance`] compares platter with other
//! backends, [`bench`] measures them side by side, [`attacks`] what a guest notices of those that attack, [`cuts`] looks at disks whose power was cut.
//!
//! Without a machine, [`sim`] runs the image in simulated worlds, [`mutants`] shows that the host's tests find mistakes,
//! [`fuzz`] runs the targets of tests/fuzz, and [`count`] says how much code there is.

mod attacks;
mod bench;
mod conformance;
mod count;
mod cuts;
mod demo;
mod fio;
mod flushes;
mod fuzz;
mod image;
mod instructions;
mod interrupt;
mod machine;
mod mutants;
mod oracle;
mod parallel;
mod paths;
mod process;
mod programs;
mod progress;
mod report;
mod scenarios;
mod setup;
mod shell;
mod sim;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::fuzz::Effort;
use crate::machine::Daemon;
use crate::progress::Progress;

/// An emulated Xen machine: a real Xen 4.17 with a Linux control domain in QEMU, with platter owning its NVMe disk.
///
/// Needs Debian 12 on x86-64, no virtualisation, and about 4 GB of disk.
/// Everything it makes is in target/.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make the host and the emulated machine ready.
    ///
    /// Installs QEMU with apt when it is missing and tells apt of bookworm-backports (through sudo unless this is
    /// root), downloads Debian's Xen, kernels and tools, and assembles what the machine boots in target/lab/machine.
    /// Does nothing when all of it is there; `demo`, `test`, `conformance`, `bench`, `attacks` and `shell`
    /// do it by themselves.
    Setup,
    /// Build the release image into target/image.
    ///
    /// Makes `platter` (the stripped image), `platter.sym` (with symbols, to read an epitaph by), `platter.cfg` (an xl
    /// configuration to edit), `platter.service` (a systemd unit) and `platter-stat` (for dom0). Builds for x86_64-unknown-none when Rust has that target, else for the host's.
    Image,
    /// See platter do its job: two Linux guests write and verify on one emulated NVMe disk.
    ///
    /// Does all set-up, builds the image, boots Xen, shows platter's console as it happens, and ends with a table.
    Demo,
    /// Run all tests: the host's, the core's instruction counts, each fuzz target for a minute, then the scenarios on
    /// emulated machines, two at a time.
    ///
    /// Ends with `N passed, N failed`, and exits with 1 when something failed. Each run's logs are in
    /// target/lab/runs, whose folder a failure names.
    Test {
        /// Only tests whose name, fuzz targets whose `fuzz/target`, or scenarios whose `boot/story`, contains this.
        filter: Option<String>,
        /// The long lane too: long jobs, the bench in its quick form, everything on both daemons.
        #[arg(long)]
        all: bool,
    },
    /// Try blkif's rules on platter, a Linux driver domain, dom0's xen-blkback and QEMU's qdisk, side by side.
    ///
    /// Boots the conformance image of tests/frontend as a guest of each, on emulated machines, two at a time, and
    /// prints a table of all checks, the reason of each that did not pass, and counts. Exits with 1 when platter fails a check, when
    /// Linux's xen-blkback fails one that cites no source against it, when platter or Linux did not come to the end, or when
    /// qdisk did not begin.
    Conformance {
        /// Only checks whose name contains this.
        filter: Option<String>,
    },
    /// Run the image's core in simulated worlds: guests, controllers, Xen and xenstore, with faults, each from one seed.
    ///
    /// Needs no emulated machine. Spreads the seeds over the processors, says how it goes, and prints for each seed that
    /// fails what happened last and the command that replays it. Exits with 1 when one fails.
    Sim {
        /// How many seeds, from 0 on.
        #[arg(long, default_value_t = 5000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// This seed alone, with all that happens in its world.
        #[arg(long, value_name = "S", conflicts_with = "seeds")]
        seed: Option<u64>,
    },
    /// Cut the power: nothing that a guest was told is synced may be lost.
    ///
    /// Two Linux guests write and sync, one files on ext4, one a raw pattern, while QEMU logs every write and flush of
    /// their disks. From the logs, states that a power cut can leave are rebuilt and checked: a random moment, all
    /// that was flushed until then, and any part of what was not, also torn between blocks. Then the
    /// machine itself is killed ten times while they write, and booted again. Ends with counts; exits with 1 when
    /// something is lost, and names the command that shows it again. Takes about half an hour.
    Cuts(cuts::Arguments),
    /// Show that the host's tests find mistakes: each of tests/mutants.toml is made in a copy of the sources, and looked for.
    ///
    /// Prints for each the first test that failed. Takes some ten seconds each, but minutes for one that survives; exits with 1 then.
    Mutants {
        /// Only mutants whose name contains this.
        filter: Option<String>,
    },
    /// Count the image's lines of code, by room, and its unsafe ones, by file.
    ///
    /// Blank lines, comments, and what only tests have do not count.
    Count,
    /// Try inputs that a fuzzer makes up: ring entries, xenstore messages, tables, identify data, whole sessions.
    ///
    /// Runs each target of tests/fuzz under libFuzzer, from the inputs in tests/fuzz/corpus on, two at a time. What is
    /// new goes to target/lab/fuzz, and so does an input that fails, with the command that replays it. Ends with a
    /// table, and exits with 1 when something failed. Needs a C++ compiler, which it installs with apt when missing.
    Fuzz {
        /// Only this target; then in two processes that share what they find.
        target: Option<String>,
        /// How long each target is fuzzed.
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// How many inputs are tried instead, however long that takes.
        #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
        runs: Option<u64>,
        /// Run the target on this one input, and show what it says.
        #[arg(long, value_name = "FILE", requires = "target", conflicts_with_all = ["seconds", "runs"])]
        input: Option<PathBuf>,
    },
    /// Measure a guest's I/O while another guest attacks platter in every way that it can.
    ///
    /// Boots a machine of two processors, one of them the attacker's alone, and prints a table: the guest's requests a
    /// second and the time within which 99 of 100 are answered, alone, beside a guest that only uses its processor, beside
    /// one that only reads, and beside each attack of tests/frontend. Some fifteen minutes, in which the host must have nothing
    /// else to do: the reference is measured again at the end, and it is said when the two differ. Exits with 1 when the
    /// guest reads what it has not written or a block changed that nobody may write; the figures are no verdict.
    Attacks {
        /// Only attacks whose name contains this.
        filter: Option<String>,
    },
    /// Measure platter beside what it replaces: a Linux driver domain, dom0's xen-blkback, QEMU's qdisk.
    ///
    /// Boots a machine of two processors, one for all guests and one for all who serve, where each backend has a controller of its
    /// own, and has one guest and then four do the same fio jobs on each, in rounds that take turns until they are alike. Prints tables, and
    /// writes target/bench/report.html, with plots, and report.json, with every round. Only ratios mean anything: the
    /// machine is emulated, and the host must have nothing else to do. Takes 40 minutes.
    Bench {
        /// Only jobs whose name contains this.
        filter: Option<String>,
        /// Fewer jobs, one guest, no grants that are mapped for each request: five minutes.
        #[arg(long)]
        quick: bool,
    },
    /// Work at dom0's console with platter running.
    ///
    /// Two namespaces are ready to be attached, and two Linux guests to boot: `xl create /share/alice.cfg` and
    /// `bob.cfg`, with a shell on their consoles. Ctrl-\ ends the machine; Ctrl-] leaves `xl console`. Needs a
    /// terminal.
    Shell {
        /// Which xenstore daemon dom0 runs.
        #[arg(long, value_enum, default_value = "oxenstored")]
        xenstore: Xenstore,
    },
}

/// [`Daemon`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum Xenstore {
    /// Debian's default, written in OCaml.
    Oxenstored,
    /// The older one, written in C.
    Xenstored,
}

impl From<Xenstore> for Daemon {
    fn from(chosen: Xenstore) -> Self {
        match chosen {
            Xenstore::Oxenstored => Self::Oxenstored,
            Xenstore::Xenstored => Self::Xenstored,
        }
    }
}

/// What a shell reports for a program that Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command, &Progress::new()) {
        Ok(code) => code,
        // Whatever failed, failed because of it.
        Err(_) if interrupt::check().is_err() => {
            eprintln!("interrupted");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Action, progress: &Progress) -> Result<ExitCode> {
    interrupt::catch()?;
    match command {
        Action::Setup => {
            setup::ensure(progress)?;
            println!("ready: {}", paths::machine().display());
        }
        Action::Image => {
            let image = image::build(progress)?;
            println!("{}: {} bytes for {}", image.path.display(), image.size, image.target);
        }
        Action::Demo => demo::run(progress)?,
        Action::Test { filter, all } => {
            if !test::run(progress, filter.as_deref(), all)?.is_green() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Conformance { filter } => {
            if !conformance::run(progress, filter.as_deref())?.complaints().is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Sim { seeds, seed } => {
            if !seed.map_or_else(|| sim::many(progress, seeds), sim::one)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Cuts(arguments) => {
            if !cuts::run(progress, &arguments)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Mutants { filter } => {
            if !mutants::run::run(progress, filter.as_deref())? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Count => count::run()?,
        Action::Fuzz { target: Some(target), input: Some(input), .. } => {
            if !fuzz::replay(progress, &target, &input)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Fuzz { target, seconds, runs, .. } => {
            let effort = runs.map_or(Effort::Seconds(seconds), Effort::Runs);
            if !fuzz::run(progress, target.as_deref(), effort)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Action::Attacks { filter } => attacks::run(progress, filter.as_deref())?,
        Action::Bench { filter, quick } => bench::run(progress, quick, filter.as_deref())?,
        Action::Shell { xenstore } => shell::run(progress, xenstore.into())?,
    }
    Ok(ExitCode::SUCCESS)
}
