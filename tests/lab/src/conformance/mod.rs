//! `cargo lab conformance`: the conformance image (`tests/frontend`) on platter and on the backends that it stands
//! beside, each on a fresh machine with a fresh disk.
//!
//! [`backend`] brings each of them up, [`console`] reads what the image prints, [`verdict`] puts it side by side and
//! judges it.

mod backend;
mod console;
mod verdict;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

pub(crate) use self::backend::Backend;
use self::console::Transcript;
pub(crate) use self::verdict::{Column, Ending, Verdict};
use crate::machine::{Daemon, Disks, Frontend, Machine, Spec};
use crate::progress::Progress;
use crate::{image, interrupt, setup};

/// The domain the image runs as.
const DOMAIN: &str = "frontend";
/// A check waits for seconds at a time, and connects twenty times at most; one that says nothing for this long hangs.
const SILENCE: Duration = Duration::from_secs(240);
/// What all checks may take on one backend.
const RUN_LIMIT: Duration = Duration::from_secs(1200);
/// How often a run under way is said to go on, and the domain is asked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Two machines at a time: which backends' machines follow each other.
const LANES: [[Backend; 2]; 2] =
    [[Backend::Platter, Backend::Qdisk], [Backend::DriverDomain, Backend::ControlDomain]];

/// Tries all backends and prints the table, the reasons and the counts.
///
/// # Errors
/// The machine or an image cannot be made, no check has such a name, or the user interrupts. A backend that fails is none.
pub(crate) fn run(progress: &Progress, filter: Option<&str>) -> Result<Verdict> {
    let filter = filter.unwrap_or_default();
    let none = || format!("no check's name contains {filter:?}");
    // It becomes a word of the image's command line.
    ensure!(filter.chars().all(|c| c.is_ascii_alphanumeric() || "/-".contains(c)), none());
    setup::ensure(progress)?;
    image::build(progress)?;
    image::build_frontend(progress)?;
    let mut columns = thread::scope(|scope| {
        let lane =
            |lane: [Backend; 2]| scope.spawn(move || lane.map(|backend| alone(progress, backend, filter)));
        let lanes = LANES.map(lane);
        let joined = lanes.into_iter().map(|lane| lane.join().map_err(|_| anyhow!("a thread panicked")));
        joined.collect::<Result<Vec<_>>>()
    })?
    .into_flattened();
    interrupt::check()?;
    ensure!(columns.iter().any(|column| column.transcript.announced != Some(0)), none());
    columns.sort_by_key(|column| Backend::ALL.iter().position(|backend| *backend == column.backend));
    let verdict = Verdict::new(columns);
    // What decides how the other backends behave; a run's folder names all the rest.
    let versions = setup::versions(&["linux-image", "qemu-system-xen", "xen-hypervisor"])?;
    progress.say(&format!("\n{}\n\n{verdict}", versions.join(", ")));
    Ok(verdict)
}

/// One backend on a machine of its own; whatever goes wrong is its column's ending.
fn alone(progress: &Progress, backend: Backend, filter: &str) -> Column {
    let step = progress.task(backend.name());
    let tried = || -> Result<Column> {
        step.now("booting Xen and dom0");
        let name = format!("conformance-{}", backend.name().replace(' ', "-"));
        let controllers = backend.controllers();
        let machine = Machine::boot(Spec {
            name,
            daemon: Daemon::Oxenstored,
            controllers,
            disks: Disks::Fresh,
            xen_options: "",
            processors: 1,
        })?;
        step.now("starting the backend");
        let column =
            backend.start(&machine).and_then(|()| on(&machine, backend, filter, &|doing| step.now(doing)));
        let column = column.map_err(|error| machine.explain(error))?;
        let logs = machine.run().folder().display();
        step.say(&format!("{}: {}; logs: {logs}", backend.name(), column.ending));
        machine.end()?;
        Ok(column)
    };
    tried().unwrap_or_else(|error| Column {
        backend,
        transcript: Transcript::default(),
        ending: Ending::Untried(format!("{error:#}")),
    })
}

/// Runs the checks whose name contains `filter` on a backend that has been started.
///
/// # Errors
/// The machine fails, the image cannot be created, or the user interrupts.
pub(crate) fn on(machine: &Machine, backend: Backend, filter: &str, say: &dyn Fn(&str)) -> Result<Column> {
    let disk = backend.fresh_disk(machine)?;
    // An empty `only=` leaves nothing out.
    let image = Frontend::create(machine, DOMAIN, &disk, &format!("only={filter}"))?;
    let (transcript, ending) = follow(image, say)?;
    Ok(Column { backend, transcript, ending })
}

/// Reads what the image says until its domain has gone, and ends one that hangs.
fn follow(image: Frontend, say: &dyn Fn(&str)) -> Result<(Transcript, Ending)> {
    let start = Instant::now();
    let (mut known, mut news, mut next_look) = (Transcript::default(), start, start);
    loop {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(500));
        let transcript = Transcript::read(&image.said());
        if transcript != known {
            (known, news) = (transcript, Instant::now());
        }
        if news.elapsed() > SILENCE || start.elapsed() > RUN_LIMIT {
            image.destroy()?;
            return Ok((known, Ending::Hung));
        }
        if known.end.is_none() && Instant::now() < next_look {
            continue;
        }
        if !image.exists()? {
            // Its last words are in the log by now.
            let transcript = Transcript::read(&image.said());
            let ending = match &transcript.refused {
                Some(why) => Ending::Untried(why.clone()),
                None if transcript.is_whole() => Ending::Whole,
                None => Ending::Died,
            };
            return Ok((transcript, ending));
        }
        if Instant::now() >= next_look {
            say(&known.progress());
            next_look = Instant::now() + LOOK_EVERY;
        }
    }
}
