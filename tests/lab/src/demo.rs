//! `cargo lab demo`: the main job, shown as it happens: platter owns an NVMe disk with two namespaces, two Linux guests
//! write and verify on them at the same time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::fio::{self, Outcome};
use crate::machine::{Controller, Daemon, Disks, Linux, Machine, NAME, Platter, Settings, Spec};
use crate::progress::{Progress, Step};
use crate::{image, report, setup};

/// MiB each guest writes and reads back.
const SIZE: u32 = 64;
/// How often the guests' work, the longest step, is said to go on.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Runs it and prints the table.
///
/// # Errors
/// Something does not come up, or a guest reads what it has not written.
pub(crate) fn run(progress: &Progress) -> Result<()> {
    setup::ensure(progress)?;
    let image = image::build(progress)?;
    let step = progress.task("demo");
    step.now("booting Xen and dom0");
    let controllers = vec![Controller::PLATTER];
    let machine = Machine::boot(Spec {
        name: "demo".to_owned(),
        daemon: Daemon::Oxenstored,
        controllers,
        disks: Disks::Fresh,
        xen_options: "",
        processors: 1,
    })?;
    let shown = show(&machine, &step).map_err(|error| machine.explain(error))?;
    drop(step);
    let head = ["guest", "volume", "requests", "MB/s", "errors", "verified"];
    println!("\n{}", report::table(&head, &shown.rows));
    println!("platter's memory:   {} MiB", shown.memory);
    println!("image:              {} bytes, {}", image.size, image.target);
    println!("ready:              {}, {:.1} s after xl create", shown.ready, shown.ready_after.as_secs_f64());
    println!("logs:               {}", machine.run().folder().display());
    machine.end()
}

struct Shown {
    rows: Vec<Vec<String>>,
    memory: String,
    ready: String,
    ready_after: Duration,
}

fn show(machine: &Machine, step: &Step) -> Result<Shown> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| follow(machine, step, &over));
        let shown = act(machine, step);
        over.store(true, Ordering::Relaxed);
        shown
    })
}

fn act(machine: &Machine, step: &Step) -> Result<Shown> {
    step.now("starting platter");
    let start = Instant::now();
    let platter = Platter::create(machine, Settings::usual())?;
    platter.wait_ready()?;
    let ready_after = start.elapsed();
    let ready = platter.wait_line(0, &["ready in"], Duration::from_secs(20))?;
    let memory = machine.dom0(&format!("xl list {} | awk 'NR == 2 {{ print $3 }}'", platter.id()))?;
    let mut guests = Vec::new();
    for (name, namespace) in [("alice", 1), ("bob", 2)] {
        step.now(&format!("booting the guest {name}"));
        let target = machine.disk(&Controller::PLATTER, namespace).target();
        let guest = Linux::guest(machine, name)?;
        step.now(&format!("attaching {target} to {name}"));
        guest.attach("xvdb", NAME, &target)?;
        guests.push((guest, target));
    }
    step.now(&format!("both guests write {SIZE} MiB in requests of 512 bytes to 256 KiB, and verify it"));
    let outcomes = verify(&guests, step)?;
    step.now("detaching");
    let mut rows = Vec::new();
    for ((guest, target), outcome) in guests.iter().zip(outcomes) {
        guest.detach("xvdb")?;
        rows.push(row(guest.name(), target, &outcome));
    }
    let ready = ready.split_once("ready in ").context("the ready line has changed")?.1.to_owned();
    Ok(Shown { rows, memory, ready, ready_after })
}

fn verify(guests: &[(Linux, String)], step: &Step) -> Result<Vec<Outcome>> {
    thread::scope(|scope| {
        let jobs: Vec<_> =
            guests.iter().map(|(guest, _)| scope.spawn(|| fio::verify(guest, "xvdb", 16, SIZE))).collect();
        let start = Instant::now();
        let mut next = REPORT_EVERY;
        while !jobs.iter().all(|job| job.is_finished()) {
            thread::sleep(Duration::from_millis(100));
            if start.elapsed() >= next {
                step.now(&format!("both guests write and verify {SIZE} MiB: {} s so far", next.as_secs()));
                next += REPORT_EVERY;
            }
        }
        jobs.into_iter().map(|job| job.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
    })
}

fn row(guest: &str, target: &str, outcome: &Outcome) -> Vec<String> {
    vec![
        guest.to_owned(),
        target.to_owned(),
        outcome.requests.to_string(),
        format!("{:.1}", outcome.megabytes_per_second()),
        outcome.errors.to_string(),
        format!("{SIZE} MiB"),
    ]
}

/// Prints platter's console as it grows.
fn follow(machine: &Machine, step: &Step, over: &AtomicBool) {
    let mut shown = 0;
    loop {
        let last_look = over.load(Ordering::Relaxed);
        let log = machine.said(NAME);
        let complete = log.rfind('\n').map_or(0, |end| end + 1);
        for line in log.get(shown..complete).unwrap_or_default().lines() {
            step.say(&format!("{NAME} | {line}"));
        }
        shown = complete;
        if last_look {
            return;
        }
        thread::sleep(Duration::from_millis(200));
    }
}
