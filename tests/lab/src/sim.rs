//! `cargo lab sim`: the image's core in simulated worlds, one a seed, as `tests/it/life` has them.

use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::programs::{self, INTEGRATION, USUAL};
use crate::progress::Progress;
use crate::{interrupt, paths, process};

/// The test that runs the worlds of the seeds in the environment, and names each before it begins.
const TEST: [&str; 3] = ["--exact", "life::some", "--nocapture"];

/// Seeds that a process runs: few enough that all processors are busy to the end.
const CHUNK: u64 = 50;

/// A world takes a fraction of a second: one that has not ended by then never will.
const LIMIT: Duration = Duration::from_secs(300);

/// Lines of a failed world that are shown.
const LINES: usize = 30;

/// Runs one seed's world and shows what happens in it; whether all is well.
///
/// # Errors
/// The tests cannot be built.
pub(crate) fn one(seed: u64) -> Result<bool> {
    Ok(command(&build()?, &seed.to_string()).arg("--quiet").status()?.success())
}

/// Runs so many worlds and prints how it went; whether all is well.
///
/// # Errors
/// The tests cannot be built, or the user interrupts.
pub(crate) fn many(progress: &Progress, seeds: u64) -> Result<bool> {
    let step = progress.task("sim");
    step.now("building the tests");
    let program = build()?;
    let run = Run { program, seeds, next: Mutex::new(0), done: AtomicU64::new(0), failed: Mutex::default() };
    let start = Instant::now();
    let rate = || run.done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| run.work(progress))).collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            thread::sleep(Duration::from_secs(2));
            step.now(&format!(
                "{} of {seeds} seeds, {:.0} a second",
                run.done.load(Ordering::Relaxed),
                rate()
            ));
        }
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    let failed = run.failed.into_inner().map_err(|_| anyhow!("a worker panicked"))?;
    let seconds = start.elapsed().as_secs_f64();
    progress.say(&format!("{seeds} seeds in {seconds:.0} s, {} failed", failed.len()));
    Ok(failed.is_empty())
}

fn build() -> Result<PathBuf> {
    let programs = programs::build(&paths::workspace(), &paths::target(), &[INTEGRATION], USUAL)?;
    programs.map_err(|why| anyhow!("the tests do not build:\n{why}"))?.pop().context("cargo built no tests")
}

/// The command that runs these seeds: `FIRST..END`, or one, which it shows.
fn command(program: &Path, seeds: &str) -> Command {
    let mut command = Command::new(program);
    command.args(TEST).current_dir(paths::workspace()).env("SEED", seeds);
    command
}

/// Many seeds under way.
struct Run {
    program: PathBuf,
    seeds: u64,
    /// The first seed that nobody has taken.
    next: Mutex<u64>,
    done: AtomicU64,
    failed: Mutex<Vec<u64>>,
}

impl Run {
    /// Takes chunks of seeds and runs them, until none is left.
    fn work(&self, progress: &Progress) -> Result<()> {
        while let Some(mut chunk) = self.take() {
            while !chunk.is_empty() {
                interrupt::check()?;
                match self.run(&chunk)? {
                    Ended::Well => chunk.start = chunk.end,
                    Ended::Badly(seed, said) => {
                        interrupt::check()?;
                        progress.say(&format!(
                            "{said}\nseed {seed} failed; replay with: cargo lab sim --seed {seed}"
                        ));
                        self.failed.lock().map_err(|_| anyhow!("a worker panicked"))?.push(seed);
                        chunk.start = seed + 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&self) -> Option<Range<u64>> {
        let mut next = self.next.lock().ok()?;
        let chunk = *next..self.seeds.min(*next + CHUNK);
        *next = chunk.end;
        Some(chunk).filter(|chunk| !chunk.is_empty())
    }

    /// Runs seeds in one process, up to the first that fails.
    fn run(&self, seeds: &Range<u64>) -> Result<Ended> {
        let mut command = command(&self.program, &format!("{}..{}", seeds.start, seeds.end));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stderr = child.stderr.take().context("no pipe from the child")?;
        let said = thread::spawn(move || {
            let mut said = String::new();
            // What is no text is no worse for it.
            let _ = stderr.read_to_string(&mut said);
            said
        });
        let last = self.follow(&mut child)?;
        // It has ended, or is stuck.
        let _ = child.kill();
        let is_well = child.wait()?.success();
        let said = said.join().map_err(|_| anyhow!("a reader panicked"))?;
        match last {
            Some(seed) if !is_well => {
                self.done.fetch_add(1, Ordering::Relaxed);
                Ok(Ended::Badly(seed, process::tail(&said, LINES)))
            }
            Some(seed) if seed + 1 == seeds.end => {
                self.done.fetch_add(1, Ordering::Relaxed);
                Ok(Ended::Well)
            }
            _ => bail!("{} ended before its seeds did:\n{said}", process::line(&command)),
        }
    }

    /// Counts seeds as a process names them, until it ends or one takes too long; the last one.
    fn follow(&self, child: &mut Child) -> Result<Option<u64>> {
        let stdout = child.stdout.take().context("no pipe from the child")?;
        let (sender, lines) = mpsc::channel();
        // Ends with the child.
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut last = None;
        loop {
            match lines.recv_timeout(LIMIT) {
                Ok(line) => {
                    if let Some(seed) = seed(&line) {
                        self.done.fetch_add(u64::from(last.is_some()), Ordering::Relaxed);
                        last = Some(seed);
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(last),
            }
        }
    }
}

/// How a process ended.
enum Ended {
    Well,
    /// With this seed, and these words.
    Badly(u64, String),
}

/// The seed that a line of a test says begins.
fn seed(line: &str) -> Option<u64> {
    // The first one stands behind the test's name.
    line.rsplit_once("seed ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_from_a_tests_lines() {
        assert_eq!(seed("test life::some ... seed 7"), Some(7));
        assert_eq!(seed("seed 8"), Some(8));
        assert_eq!(seed("ok"), None);
    }

    #[test]
    fn all_seeds_are_taken_once() {
        let failed = Mutex::default();
        let run =
            Run { program: PathBuf::new(), seeds: 120, next: Mutex::new(0), done: AtomicU64::new(0), failed };
        let taken: Vec<_> = std::iter::from_fn(|| run.take()).collect();
        assert_eq!(taken, [0..50, 50..100, 100..120]);
    }
}
