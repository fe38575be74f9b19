//! `cargo lab bench`: the same guests and the same jobs against platter and against what it replaces, on one machine, in
//! rounds that take turns. What the emulator makes of a second is nobody's business: only ratios are.
//!
//! [`job`] has the jobs, [`stage`] the machine and who is on it, [`series`] what rounds come to; [`trace`] counts hypercalls,
//! [`start`] times starts, [`results`] keeps all of it and makes the tables, [`page`] the report.

mod job;
mod page;
mod results;
mod series;
mod stage;
mod start;
mod trace;

use std::fs;

use anyhow::{Result, ensure};

use self::job::{JOBS, Job};
use self::results::{Cell, Results};
use self::stage::{CONTENDERS, Cast, Contender, GUESTS, Server, Stage};
use crate::machine::Machine;
use crate::progress::{Progress, Step};
use crate::test::Trial;
use crate::{image, interrupt, mutants, paths, setup};

/// The edit by which platter answers reads and writes at once.
const AT_ONCE: &str = "answered-without-the-disk";
/// How far the middle half of the rounds may be apart before there are more of them, as a part of the median.
const SPREAD: f64 = 0.1;

/// How many guests do a job at once.
const SCENES: [usize; 2] = [1, GUESTS.len()];

/// The one of `cargo lab test`: that all of it works. What it measures beside other machines means nothing.
pub(crate) const TRIALS: &[Trial] =
    &[Trial { name: "bench/quick", long: true, tell: |progress, _| run(progress, true, None) }];

/// How much is done.
struct Plan {
    seconds: u32,
    /// At least, and at most.
    rounds: [usize; 2],
    scenes: &'static [usize],
    starts: u32,
    contenders: Vec<Contender>,
    jobs: Vec<&'static Job>,
}

impl Plan {
    fn new(quick: bool, filter: &str) -> Result<Self> {
        let jobs: Vec<&Job> =
            JOBS.iter().filter(|job| (job.quick || !quick) && job.name.contains(filter)).collect();
        ensure!(
            !jobs.is_empty(),
            "no job's name contains {filter:?}: {}",
            JOBS.iter().map(|job| job.name).collect::<Vec<_>>().join(", ")
        );
        let all = CONTENDERS.iter().copied();
        Ok(if quick {
            let contenders = all
                .filter(|one| one.persistent && one.server != Server::Ceiling || one.server == Server::Qdisk);
            Self {
                seconds: 2,
                rounds: [2, 3],
                scenes: &SCENES[..1],
                starts: 1,
                contenders: contenders.collect(),
                jobs,
            }
        } else {
            Self { seconds: 2, rounds: [3, 4], scenes: &SCENES, starts: 3, contenders: all.collect(), jobs }
        })
    }

    /// Who does a job in a scene: the ceiling is one guest's.
    fn contenders(&self, guests: usize) -> impl Iterator<Item = Contender> {
        self.contenders.iter().copied().filter(move |one| guests == 1 || one.server != Server::Ceiling)
    }
}

/// Measures, prints the tables, and writes the report and the raw figures.
///
/// # Errors
/// Somebody does not come up, a request fails, no job has such a name, or the user interrupts.
pub(crate) fn run(progress: &Progress, quick: bool, filter: Option<&str>) -> Result<()> {
    let plan = Plan::new(quick, filter.unwrap_or_default())?;
    setup::ensure(progress)?;
    let image = image::build(progress)?;
    image::build_frontend(progress)?;
    let ceiling = if plan.contenders.iter().any(|one| one.server == Server::Ceiling) {
        Some(image::build_copy(progress, mutants::copy_with("bench", &[AT_ONCE])?, mutants::target())?.path)
    } else {
        None
    };
    let step = progress.task("bench");
    let machine = stage::boot(&step)?;
    let cast = Cast {
        contenders: &plan.contenders,
        guests: plan.scenes.iter().copied().max().unwrap_or(1),
        ceiling: ceiling.as_deref(),
    };
    let measured = || -> Result<Results> {
        let stage = Stage::set(&machine, &step, &cast)?;
        let mut results = Results::new(plan.seconds, image.size)?;
        measure(&stage, &step, &plan, &mut results)?;
        count(&stage, &step, &plan, &mut results)?;
        results.memory = stage.memory()?;
        step.now("attaching a disk");
        results.attach = Some(stage.attach(plan.starts)?);
        start(&machine, &step, &plan, stage, &mut results)?;
        Ok(results)
    };
    let results = measured().map_err(|error| machine.explain(error))?;
    drop(step);
    progress.say(&format!("\n{}", results.tables()));
    let folder = paths::bench();
    fs::create_dir_all(&folder)?;
    let (report, raw) = (folder.join("report.html"), folder.join("report.json"));
    fs::write(&raw, serde_json::to_string_pretty(&results)?)?;
    fs::write(&report, page::page(&results))?;
    progress.say(&format!("report: {}\nraw figures: {}", report.display(), raw.display()));
    machine.end()
}

/// Round after round, until the rounds of each job are alike or there were enough.
fn measure(stage: &Stage, step: &Step, plan: &Plan, results: &mut Results) -> Result<()> {
    let [least, most] = plan.rounds;
    for &guests in plan.scenes {
        for job in &plan.jobs {
            for contender in plan.contenders(guests) {
                results.cells.push(Cell::new(job.name, contender, guests));
            }
        }
    }
    for round in 0..most {
        for &guests in plan.scenes {
            for job in &plan.jobs {
                let mut cells: Vec<&mut Cell> = results.cells_of(job.name, guests).collect();
                if round >= least && cells.iter().all(|cell| cell.series.is_steady(SPREAD)) {
                    continue;
                }
                step.now(&format!("round {}, {guests} at once: {}", round + 1, job.name));
                for cell in &mut cells {
                    interrupt::check()?;
                    cell.series.0.push(stage.measure(cell.contender, job, guests, plan.seconds)?);
                }
            }
        }
    }
    Ok(())
}

fn count(stage: &Stage, step: &Step, plan: &Plan, results: &mut Results) -> Result<()> {
    for job in plan.jobs.iter().filter(|job| job.traced) {
        for contender in plan.contenders(1).filter(|one| one.server != Server::Ceiling) {
            interrupt::check()?;
            step.now(&format!("{}: hypercalls of {}", job.name, contender.name()));
            let hypercalls = trace::count(stage, contender, job)?;
            if let Some(cell) = results.cells_of(job.name, 1).find(|cell| cell.contender == contender) {
                cell.hypercalls = Some(hypercalls);
            }
        }
    }
    Ok(())
}

/// Ends everybody, and times starts.
fn start(machine: &Machine, step: &Step, plan: &Plan, stage: Stage, results: &mut Results) -> Result<()> {
    step.now("ending all domains");
    stage.end()?;
    results.starts = Some(start::measure(machine, step, plan.starts)?);
    Ok(())
}
