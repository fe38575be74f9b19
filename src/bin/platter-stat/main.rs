//! `platter-stat`: what platter's disks do, shown in dom0 as iostat shows a host's. It asks platter
//! through xenstore, by Xen's own programs `xenstore-list`, `-read` and `-write`, and platter answers:
//! the questions and answers are described in platter's `src/domain/statistics.rs`.
//!
//! `store` runs these programs, `platter` finds the domain and asks it, `sample` reads what it said,
//! `interval` makes rates of two samples, `report` shows them.

mod interval;
mod platter;
mod report;
mod sample;
mod store;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;

use self::interval::Interval;
use self::platter::{Device, Platter};
use self::sample::{OPERATIONS, Sample};

/// Shows what the disks that platter serves do.
///
/// The first report is about the time since each disk was attached, every further one about the interval before it. Run it
/// as root in dom0.
///
/// r, w, f and d are reads, writes, flushes and discards; a kB is 1024 bytes. await is how long a request took on average, in
/// milliseconds, from when platter took it off the guest's ring to its answer; aqu-sz how many there were at a time on
/// average, and now how many there are. errors counts requests that were answered with an error.
#[derive(Parser)]
#[command(name = "platter-stat", version)]
struct Arguments {
    /// Seconds between reports; without it there is one report.
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    interval: Option<u32>,
    /// How many reports; without it they go on.
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// The domain that platter runs in, by name or number.
    #[arg(long, default_value = "platter")]
    domain: String,
    /// Also show how many requests took how long, for each disk and operation.
    #[arg(long)]
    histogram: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the reports has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("platter-stat: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut platter = Platter::find(&arguments.domain)?;
    let (pause, count) = match arguments.interval {
        Some(seconds) => (Duration::from_secs(seconds.into()), arguments.count),
        None => (Duration::ZERO, Some(1)),
    };
    let mut next = Instant::now();
    let mut earlier = BTreeMap::new();
    for number in 1.. {
        let samples = take(&mut platter, arguments.histogram)?;
        let text = report::text(&intervals(&samples, &earlier), arguments.histogram)?;
        let mut output = std::io::stdout().lock();
        output.write_all(text.as_bytes())?;
        output.flush()?;
        if Some(number) == count {
            break;
        }
        earlier = samples;
        // Reports come at a steady rate, unless taking them needs longer than that.
        next = (next + pause).max(Instant::now());
        thread::sleep(next - Instant::now());
    }
    Ok(())
}

/// A sample of every device that is there.
fn take(platter: &mut Platter, histograms: bool) -> Result<BTreeMap<Device, Sample>> {
    let mut samples = BTreeMap::new();
    for device in platter.devices()? {
        let Some(mut sample) = platter.ask(&device)? else { continue };
        if histograms {
            for (operation, tally) in OPERATIONS.iter().zip(&mut sample.tallies) {
                tally.latencies = platter.ask_latencies(&device, operation)?.unwrap_or_default();
            }
        }
        samples.insert(device, sample);
    }
    Ok(samples)
}

/// What each device did since its earlier sample, or since it was attached.
fn intervals<'a>(
    samples: &'a BTreeMap<Device, Sample>,
    earlier: &BTreeMap<Device, Sample>,
) -> Vec<(&'a Device, Interval)> {
    let interval = |device| Interval::between(earlier.get(device), &samples[device]);
    samples.keys().map(|device| (device, interval(device))).collect()
}
