//! One process of libFuzzer: what it is told, and what it says.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{interrupt, paths, process};

/// An input that takes as long as this hangs, in seconds.
const TIMEOUT: u32 = 10;
/// A process that takes as much memory as this leaks, in MiB.
const MEMORY: u32 = 2048;
/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Lines of what a process said about a failure that are shown: the reason, and where it was.
const SHOWN: usize = 20;

/// How much is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effort {
    /// As much as so many seconds allow.
    Seconds(u64),
    /// So many inputs.
    Runs(u64),
}

impl Effort {
    /// What each of so many processes does of it.
    pub(super) fn shared_by(self, processes: usize) -> Self {
        match self {
            Self::Seconds(seconds) => Self::Seconds(seconds),
            Self::Runs(runs) => Self::Runs(runs.div_ceil(processes as u64)),
        }
    }
}

/// A process to be.
pub(super) struct Lane {
    pub(super) target: String,
    program: PathBuf,
    /// Which of the target's processes it is.
    number: usize,
    effort: Effort,
}

/// What a process did.
pub(super) struct Stretch {
    pub(super) target: String,
    pub(super) executions: u64,
    pub(super) per_second: u64,
    pub(super) edges: u64,
    pub(super) corpus: u64,
    pub(super) failure: Option<String>,
}

impl Lane {
    pub(super) fn new(target: &str, program: &Path, number: usize, effort: Effort) -> Self {
        Self { target: target.to_owned(), program: program.to_owned(), number, effort }
    }

    pub(super) fn doing(&self) -> String {
        match self.effort {
            Effort::Seconds(seconds) => format!("fuzzing for {seconds} s"),
            Effort::Runs(runs) => format!("fuzzing {runs} inputs"),
        }
    }

    /// Runs it to its end, and reads what it said.
    ///
    /// # Errors
    /// It cannot be started, or the user interrupts.
    pub(super) fn run(&self) -> Result<Stretch> {
        let folder = paths::fuzz().join(&self.target);
        let corpus = folder.join("corpus");
        fs::create_dir_all(&corpus)?;
        let log = folder.join(format!("log-{}", self.number));
        let mut command = Command::new(&self.program);
        command.args(match self.effort {
            Effort::Seconds(seconds) => ["-runs=-1".to_owned(), format!("-max_total_time={seconds}")],
            Effort::Runs(runs) => [format!("-runs={runs}"), "-max_total_time=0".to_owned()],
        });
        command.args([format!("-timeout={TIMEOUT}"), format!("-rss_limit_mb={MEMORY}")]);
        command.args(["-print_final_stats=1", "-reload=1"]);
        command.arg(format!("-artifact_prefix={}/", folder.display()));
        command
            .args([corpus, kept(&self.target)])
            .stderr(File::create(&log)?)
            .stdout(File::create("/dev/null")?);
        let start = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot run {}", process::line(&command)))?;
        let status = wait(child)?;
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok(self.stretch(status, &said, start.elapsed()))
    }

    fn stretch(&self, status: ExitStatus, said: &str, time: Duration) -> Stretch {
        let executions = number_after(said, "stat::number_of_executed_units:");
        Stretch {
            target: self.target.clone(),
            executions,
            per_second: (executions as f64 / time.as_secs_f64()) as u64,
            edges: number_after(said, " cov:"),
            corpus: number_after(said, " corp:"),
            failure: (!status.success()).then(|| self.explain(said)),
        }
    }

    /// What went wrong, from where that begins, and how to have it again.
    fn explain(&self, said: &str) -> String {
        let begins = |line: &&str| line.contains("panicked at") || line.contains("ERROR: libFuzzer");
        let mut lines: Vec<&str> = said.lines().skip_while(|line| !begins(line)).take(SHOWN).collect();
        if lines.is_empty() {
            lines.push(said);
        }
        let input =
            said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path);
        let replay =
            input.map(|input| format!("replay with: cargo lab fuzz {} --input {input}", self.target));
        lines.extend(replay.as_deref());
        lines.join("\n")
    }
}

/// Runs a program on one input, with what it says on the terminal; false when it fails.
///
/// # Errors
/// It cannot be started.
pub(super) fn replay(program: &Path, input: &Path) -> Result<bool> {
    let mut command = Command::new(program);
    let limits = [format!("-timeout={TIMEOUT}"), format!("-rss_limit_mb={MEMORY}")];
    let status = command.args(limits).arg(input).status();
    Ok(status.with_context(|| format!("cannot run {}", process::line(&command)))?.success())
}

/// The inputs of a target that are kept with the sources.
fn kept(target: &str) -> PathBuf {
    paths::fuzz_package().join("corpus").join(target)
}

/// Waits for a process; one that the user interrupts is ended.
fn wait(mut child: Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Err(error) = interrupt::check() {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// The number that follows this text where it is last.
fn number_after(said: &str, text: &str) -> u64 {
    let rest = said.rsplit_once(text).map_or("", |(_, rest)| rest).trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn stretch(code: i32, said: &str) -> Stretch {
        Lane::new("ring", Path::new("ring"), 0, Effort::Runs(1)).stretch(
            ExitStatus::from_raw(code),
            said,
            Duration::from_secs(10),
        )
    }

    #[test]
    fn what_libfuzzer_says_is_read() {
        let said = "#2 INITED cov: 4 ft: 5 corp: 1/1b exec/s: 0 rss: 27Mb\n\
                    #1048576\tpulse  cov: 150 ft: 209 corp: 85/10Kb lim: 4096 exec/s: 524288 rss: 27Mb\n\
                    stat::number_of_executed_units: 3569605\nstat::peak_rss_mb:              27\n";
        let done = stretch(0, said);
        let numbers = (done.executions, done.per_second, done.edges, done.corpus);
        assert_eq!((numbers, done.failure), ((3_569_605, 356_960, 150, 85), None));
    }

    #[test]
    fn a_crash_says_how_to_have_it_again() {
        let said = "#7 cov: 4\npanicked at x.rs:1\nartifact_prefix='/t/'; Test unit written to /t/crash-77\n";
        let failure = stretch(77 << 8, said).failure.unwrap();
        assert!(failure.starts_with("panicked at x.rs:1"), "{failure}");
        assert!(failure.ends_with("replay with: cargo lab fuzz ring --input /t/crash-77"), "{failure}");
    }

    #[test]
    fn two_processes_share_the_inputs_and_not_the_time() {
        assert_eq!(Effort::Runs(101).shared_by(2), Effort::Runs(51));
        assert_eq!(Effort::Seconds(60).shared_by(2), Effort::Seconds(60));
    }
}
