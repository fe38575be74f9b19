//! `cargo lab test`: the host's tests, the core's instructions, a minute of each fuzz target, then the scenarios on emulated machines, two at a
//! time.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};

use crate::fuzz::{self, Effort};
use crate::instructions::{self, Outcome};
use crate::machine::Machine;
use crate::progress::{Progress, Step};
use crate::scenarios::{self, BOOTS, Boot, Lane, Story, World};
use crate::{bench, cuts, image, interrupt, paths, process, setup};

/// Two cores are enough for two machines with one emulated processor each.
const MACHINES: usize = 2;
/// How long each target is fuzzed: for as long as a change that breaks something easy to find needs to be noticed.
const FUZZED: Effort = Effort::Seconds(60);
/// Trials, by room.
const TRIALS: [&[Trial]; 2] = [cuts::TRIALS, bench::TRIALS];

/// A test that boots machines of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trial {
    /// With the name of its room before it.
    pub(crate) name: &'static str,
    /// Only with `--all`.
    pub(crate) long: bool,
    pub(crate) tell: fn(&Progress, &Step) -> Result<()>,
}

/// What passed and what did not.
#[derive(Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    /// Whether nothing failed.
    pub(crate) fn is_green(&self) -> bool {
        self.failed.is_empty()
    }
}

/// Runs what `filter` matches, of the long lane too if `all`, and prints the result.
///
/// # Errors
/// Nothing matches, the machine or the image cannot be made, or the user interrupts. Failed tests are no error.
pub(crate) fn run(progress: &Progress, filter: Option<&str>, all: bool) -> Result<Tally> {
    let filter = filter.unwrap_or_default();
    let tally = Mutex::new(Tally::default());
    host_tests(progress, filter, &tally)?;
    counted(progress, filter, &tally)?;
    fuzzed(progress, filter, &tally)?;
    let jobs = select(filter, all);
    if !jobs.is_empty() {
        setup::ensure(progress)?;
        image::build(progress)?;
        image::build_frontend(progress)?;
        emulated(progress, jobs, &tally)?;
    }
    let tally = tally.into_inner().map_err(|_| anyhow!("a test thread panicked"))?;
    if tally.passed + tally.failed.len() == 0 {
        bail!("no test's name contains {filter:?}; `--all` adds the long ones");
    }
    for name in &tally.failed {
        progress.say(&format!("failed: {name}"));
    }
    progress.say(&format!("{} passed, {} failed", tally.passed, tally.failed.len()));
    Ok(tally)
}

/// What runs on emulated machines, one at a time.
#[derive(Debug)]
enum Job {
    /// Stories on one machine.
    Stories(Boot, Vec<Story>),
    /// Trials of one room, one after the other.
    Trials(Vec<Trial>),
}

/// The jobs to do: boots, each with the stories whose `boot/story` contains the filter, and so with trials.
fn select(filter: &str, all: bool) -> Vec<Job> {
    let matches = |boot: &str, story: &str| format!("{boot}/{story}").contains(filter);
    let stories = |boot: &Boot| {
        let stories = boot.stories.iter().filter(|story| matches(boot.name, story.name)).copied();
        Some(stories.collect::<Vec<_>>()).filter(|stories| !stories.is_empty())
    };
    let is_chosen = |trial: &&Trial| (all || !trial.long) && trial.name.contains(filter);
    let trials = TRIALS.iter().map(|room| room.iter().filter(is_chosen).copied().collect::<Vec<_>>());
    let trials = trials.filter(|chosen| !chosen.is_empty()).map(Job::Trials);
    let boots = BOOTS.iter().filter(|boot| all || boot.lane == Lane::Short);
    let boots = boots.filter_map(|boot| Some(Job::Stories(*boot, stories(boot)?)));
    // With `all` these take longest.
    trials.chain(boots).collect()
}

fn host_tests(progress: &Progress, filter: &str, tally: &Mutex<Tally>) -> Result<()> {
    let step = progress.task("host");
    let packages = [
        &["--package", "platter", "--features", "sim,stat"][..],
        &["--package", "platter-bench"],
        &["--package", "platter-frontend"],
        &["--package", "platter-fuzz"],
        &["--package", "platter-lab"],
    ];
    for package in packages {
        interrupt::check()?;
        step.now(&format!("cargo test {}", package.join(" ")));
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--no-fail-fast"]).args(package).args(["--", filter]);
        let output = cargo.current_dir(paths::workspace()).output()?;
        // Ctrl-C reaches cargo too: what it leaves undone is no failed test.
        interrupt::check()?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let (passed, mut failed) = host_results(&said);
        if !output.status.success() {
            progress.say(&format!("{}:\n{}", process::line(&cargo), process::tail(&said, 40)));
            if failed.is_empty() {
                failed.push(format!("cargo test {}", package.join(" ")));
            }
        }
        add(tally, passed, failed)?;
    }
    Ok(())
}

/// Holds the core's instructions to those that are recorded, if `bench/requests` contains the filter.
fn counted(progress: &Progress, filter: &str, tally: &Mutex<Tally>) -> Result<()> {
    const NAME: &str = "bench/requests";
    if !NAME.contains(filter) {
        return Ok(());
    }
    match instructions::count(progress)? {
        Outcome::Kept(figures) => {
            progress.say(&format!("ok     {NAME} ({figures} figures as recorded, or lower)"));
            add(tally, 1, Vec::new())
        }
        Outcome::Failed(why) => {
            progress.say(&format!("FAILED {NAME}\n{why}"));
            add(tally, 0, vec![NAME.to_owned()])
        }
    }
}

/// Fuzzes the targets whose `fuzz/target` contains the filter.
fn fuzzed(progress: &Progress, filter: &str, tally: &Mutex<Tally>) -> Result<()> {
    let mut targets = fuzz::targets()?;
    targets.retain(|target| format!("fuzz/{target}").contains(filter));
    if targets.is_empty() {
        return Ok(());
    }
    for outcome in fuzz::fuzz(progress, &targets, FUZZED)? {
        let name = format!("fuzz/{}", outcome.target);
        match &outcome.failure {
            None => {
                progress.say(&format!("ok     {name} ({outcome})"));
                add(tally, 1, Vec::new())?;
            }
            Some(failure) => {
                progress.say(&format!("FAILED {name}\n{failure}"));
                add(tally, 0, vec![name])?;
            }
        }
    }
    Ok(())
}

/// How many tests passed and which failed, from what `cargo test` printed.
fn host_results(said: &str) -> (usize, Vec<String>) {
    let results = said
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ")?.split_once(". ")?.1.split(' ').next());
    let passed = results.filter_map(|count| count.parse::<usize>().ok()).sum();
    let failed = said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    (passed, failed.map(str::to_owned).collect())
}

fn emulated(progress: &Progress, jobs: Vec<Job>, tally: &Mutex<Tally>) -> Result<()> {
    let queue = Mutex::new(VecDeque::from(jobs));
    let next = || queue.lock().ok()?.pop_front();
    let worker = || {
        while let Some(job) = next() {
            match job {
                Job::Stories(boot, stories) => tell_all(progress, &boot, &stories, tally)?,
                Job::Trials(trials) => try_all(progress, &trials, tally)?,
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..MACHINES).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a test thread panicked"))?)
    })
}

fn try_all(progress: &Progress, trials: &[Trial], tally: &Mutex<Tally>) -> Result<()> {
    for trial in trials {
        let name = trial.name;
        let step = progress.task(name);
        let start = Instant::now();
        let failed = match (trial.tell)(progress, &step) {
            Ok(()) => {
                step.say(&format!("ok     {name} ({:.0} s)", start.elapsed().as_secs_f64()));
                None
            }
            Err(error) => {
                interrupt::check()?;
                step.say(&format!("FAILED {name}\nat     {}\n{error:#}", step.doing()));
                Some(name.to_owned())
            }
        };
        add(tally, usize::from(failed.is_none()), failed.into_iter().collect())?;
    }
    Ok(())
}

/// Tells a boot's stories on one machine; after one that fails, the others get a fresh machine.
fn tell_all(progress: &Progress, boot: &Boot, stories: &[Story], tally: &Mutex<Tally>) -> Result<()> {
    let mut left = stories;
    while let Some((first, others)) = left.split_first() {
        let step = progress.task(boot.name);
        step.now(&format!("booting Xen and dom0 with {}", boot.daemon.program()));
        left = match scenarios::machine(boot) {
            Ok(machine) => tell_on(machine, &step, boot, left, tally)?,
            Err(error) => {
                interrupt::check()?;
                step.say(&format!("FAILED {}/{}\n{error:#}", boot.name, first.name));
                add(tally, 0, vec![format!("{}/{}", boot.name, first.name)])?;
                others
            }
        };
    }
    Ok(())
}

/// Tells stories on a machine up to the first that fails, and gives those after it.
fn tell_on<'s>(
    machine: Machine,
    step: &Step,
    boot: &Boot,
    stories: &'s [Story],
    tally: &Mutex<Tally>,
) -> Result<&'s [Story]> {
    let world = World::new(&machine, step);
    for (index, story) in stories.iter().enumerate() {
        let name = format!("{}/{}", boot.name, story.name);
        let start = Instant::now();
        world.story(story.name);
        if let Err(error) = (story.tell)(&world).and_then(|()| world.settle()) {
            interrupt::check()?;
            step.say(&format!("FAILED {name}\nat     {}\n{:#}", step.doing(), machine.explain(error)));
            add(tally, 0, vec![name])?;
            return Ok(&stories[index + 1..]);
        }
        step.say(&format!("ok     {name} ({:.0} s)", start.elapsed().as_secs_f64()));
        add(tally, 1, Vec::new())?;
    }
    machine.end()?;
    Ok(&[])
}

fn add(tally: &Mutex<Tally>, passed: usize, failed: Vec<String>) -> Result<()> {
    let mut tally = tally.lock().map_err(|_| anyhow!("a test thread panicked"))?;
    tally.passed += passed;
    tally.failed.extend(failed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tests_output_is_counted() {
        let said = "test a::b ... ok\ntest a::c ... FAILED\n\ntest result: FAILED. 3 passed; 1 failed; 0 ignored\n\
                    test result: ok. 4 passed; 0 failed\n";
        assert_eq!(host_results(said), (7, vec!["a::c".to_owned()]));
    }

    #[test]
    fn a_filter_selects_boots_and_stories() {
        let chosen = select("life/crash", false);
        assert_eq!(chosen.len(), 1);
        let Job::Stories(_, stories) = &chosen[0] else { panic!("{chosen:?}") };
        assert!(stories.iter().all(|story| story.name.starts_with("crash")));
        assert!(
            matches!(&select("cuts/", false)[..], [Job::Trials(trials)] if trials.len() < cuts::TRIALS.len())
        );
        assert!(select("beside-linux", false).is_empty());
        assert_eq!(select("beside-linux", true).len(), 1);
        assert!(select("", true).len() > select("", false).len());
    }
}
