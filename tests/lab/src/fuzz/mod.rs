//! `cargo lab fuzz`: the targets of tests/fuzz under libFuzzer, two at a time.
//!
//! [`program`] builds them, [`lane`] runs one and reads what libFuzzer says. What they find goes to target/lab/fuzz.

mod lane;
mod program;

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

pub(crate) use self::lane::Effort;
use self::lane::{Lane, Stretch};
use crate::progress::Progress;
use crate::report::table;
use crate::{interrupt, paths, setup};

/// Processes at a time.
const LANES: usize = 2;

/// What became of a target.
pub(crate) struct Outcome {
    pub(crate) target: String,
    /// Inputs tried, and how many a second.
    executions: u64,
    per_second: u64,
    /// Edges of the program's flow that any input took.
    edges: u64,
    /// Inputs that are worth keeping, those in tests/fuzz/corpus and new ones.
    corpus: u64,
    /// What went wrong, and how to have it again.
    pub(crate) failure: Option<String>,
}

/// Fuzzes one target, or all of them, and prints a table; false when something was found.
///
/// # Errors
/// There is no such target, it cannot be built or started, or the user interrupts.
pub(crate) fn run(progress: &Progress, target: Option<&str>, effort: Effort) -> Result<bool> {
    let outcomes = fuzz(progress, &chosen(target)?, effort)?;
    let head = ["target", "executions", "exec/s", "edges", "corpus", "result"];
    let rows: Vec<Vec<String>> = outcomes.iter().map(Outcome::row).collect();
    progress.say(&table(&head, &rows));
    for outcome in &outcomes {
        if let Some(failure) = &outcome.failure {
            progress.say(&format!("FAILED {}\n{failure}", outcome.target));
        }
    }
    Ok(outcomes.iter().all(|outcome| outcome.failure.is_none()))
}

/// Runs a target on one input and prints what it says; false when it fails.
///
/// # Errors
/// As [`run`], or there is no such input.
pub(crate) fn replay(progress: &Progress, target: &str, input: &Path) -> Result<bool> {
    let targets = chosen(Some(target))?;
    ensure!(input.is_file(), "no file {}", input.display());
    let built = build(progress, &targets)?;
    lane::replay(&built[0], input)
}

/// The targets' names.
///
/// # Errors
/// Their folder cannot be read.
pub(crate) fn targets() -> Result<Vec<String>> {
    let folder = paths::fuzz_package().join("targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Fuzzes these targets, two at a time; one alone in two processes that share what they find.
///
/// # Errors
/// As [`run`]. A target that fails is no error.
pub(crate) fn fuzz(progress: &Progress, targets: &[String], effort: Effort) -> Result<Vec<Outcome>> {
    let programs = build(progress, targets)?;
    let times = if targets.len() == 1 { LANES } else { 1 };
    let lane = |(target, program): (&String, &PathBuf)| {
        (0..times)
            .map(|number| Lane::new(target, program, number, effort.shared_by(times)))
            .collect::<Vec<_>>()
    };
    let lanes = targets.iter().zip(&programs).flat_map(lane).collect();
    let stretches = in_lanes(progress, lanes)?;
    Ok(targets.iter().map(|target| Outcome::of(target, &stretches)).collect())
}

fn build(progress: &Progress, targets: &[String]) -> Result<Vec<PathBuf>> {
    let step = progress.task("fuzz");
    setup::ensure_compiler(&step)?;
    step.now(&format!("building {}", targets.join(", ")));
    program::build(targets)
}

fn chosen(target: Option<&str>) -> Result<Vec<String>> {
    let all = targets()?;
    let Some(target) = target else { return Ok(all) };
    ensure!(all.iter().any(|name| name == target), "no target {target}; there are {}", all.join(", "));
    Ok(vec![target.to_owned()])
}

fn in_lanes(progress: &Progress, lanes: Vec<Lane>) -> Result<Vec<Stretch>> {
    let (queue, done) = (Mutex::new(VecDeque::from(lanes)), Mutex::new(Vec::new()));
    let next = || queue.lock().ok()?.pop_front();
    let worker = || -> Result<()> {
        while let Some(lane) = next() {
            interrupt::check()?;
            let step = progress.task(&lane.target);
            step.now(&lane.doing());
            let stretch = lane.run()?;
            done.lock().map_err(|_| anyhow!("a thread panicked"))?.push(stretch);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..LANES).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    done.into_inner().map_err(|_| anyhow!("a thread panicked"))
}

impl Outcome {
    fn of(target: &str, stretches: &[Stretch]) -> Self {
        let own = || stretches.iter().filter(|stretch| stretch.target == target);
        Self {
            target: target.to_owned(),
            executions: own().map(|stretch| stretch.executions).sum(),
            per_second: own().map(|stretch| stretch.per_second).sum(),
            edges: own().map(|stretch| stretch.edges).max().unwrap_or(0),
            corpus: own().map(|stretch| stretch.corpus).max().unwrap_or(0),
            failure: own().find_map(|stretch| stretch.failure.clone()),
        }
    }

    fn row(&self) -> Vec<String> {
        let numbers = [self.executions, self.per_second, self.edges, self.corpus].map(|n| n.to_string());
        let result = if self.failure.is_none() { "ok" } else { "FAILED" };
        [vec![self.target.clone()], numbers.to_vec(), vec![result.to_owned()]].concat()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} inputs, {} a second, {} edges", self.executions, self.per_second, self.edges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_corpus() {
        let targets = targets().unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            let corpus = paths::fuzz_package().join("corpus").join(&target);
            assert!(fs::read_dir(&corpus).is_ok_and(|mut inputs| inputs.next().is_some()), "{target}");
        }
    }

    #[test]
    fn the_processes_of_a_target_are_summed_up() {
        let stretch = |target: &str, executions, edges, failure: Option<&str>| Stretch {
            target: target.into(),
            executions,
            per_second: executions / 10,
            edges,
            corpus: edges,
            failure: failure.map(str::to_owned),
        };
        let stretches = [
            stretch("ring", 100, 7, None),
            stretch("table", 1000, 9, None),
            stretch("ring", 200, 8, Some("a crash")),
        ];
        assert_eq!(Outcome::of("ring", &stretches).row(), ["ring", "300", "30", "8", "8", "FAILED"]);
        assert_eq!(Outcome::of("table", &stretches).row(), ["table", "1000", "100", "9", "9", "ok"]);
    }
}
