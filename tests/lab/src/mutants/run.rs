//! `cargo lab mutants`: has the host's tests find each mutant, and says which one did.

use std::fmt::{self, Display, Formatter};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Mutant, all, copy_with, target};
use crate::programs::{self, INTEGRATION, Settings, Tests, UNIT, UNOPTIMISED, USUAL};
use crate::progress::{Progress, Step};
use crate::{interrupt, report};

/// Worlds of each kind that the tests try: a mistake that matters shows in few.
const SEEDS: &str = "40";

/// Tests end one after the other, the longest after some minutes on a slow machine. When none has for so long, the
/// mutant hangs them.
const LIMIT: Duration = Duration::from_secs(900);

/// The copy that all mutants are made in, one after the other.
const COPY: &str = "tested";

/// All tests but those of `tidy`, which read the sources as texts.
const ALL: &[&str] = &["--skip", "tidy::"];

/// What became of a mutant.
#[derive(PartialEq, Eq, Debug)]
enum Fate {
    /// This test failed.
    Caught(String),
    /// The tests came to no end.
    Hung,
    /// The tests ended without a word, as by a signal.
    Crashed,
    Survived,
    DoesNotBuild(String),
}

impl Fate {
    fn is_good(&self) -> bool {
        matches!(self, Self::Caught(_) | Self::Hung | Self::Crashed)
    }
}

impl Display for Fate {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught(test) => out.write_str(test),
            Self::Hung => write!(out, "a test that does not end in {} s", LIMIT.as_secs()),
            Self::Crashed => out.write_str("tests that crash"),
            Self::Survived => out.write_str("SURVIVED"),
            Self::DoesNotBuild(_) => out.write_str("DOES NOT BUILD"),
        }
    }
}

/// Tries the mutants whose name contains `filter`, and prints a table; whether all were caught.
///
/// # Errors
/// No mutant has such a name, one cannot be applied, the sources fail their tests without any (which is tried when there
/// is no filter), or the user interrupts.
pub(crate) fn run(progress: &Progress, filter: Option<&str>) -> Result<bool> {
    let filter = filter.unwrap_or_default();
    let mutants: Vec<Mutant> = all()?.into_iter().filter(|mutant| mutant.name.contains(filter)).collect();
    if mutants.is_empty() {
        bail!("no mutant's name contains {filter:?}");
    }
    let step = progress.task("mutants");
    if filter.is_empty() {
        step.now("the sources as they are");
        let folder = copy_with(COPY, &[])?;
        let fate = run_tests(&folder, &[UNIT, INTEGRATION], USUAL, ALL)?;
        ensure!(fate == Fate::Survived, "without any mutant there is already: {fate}");
    }
    let mut rows = Vec::new();
    let mut bad = 0;
    for (number, mutant) in (1..).zip(&mutants) {
        let start = Instant::now();
        step.now(&format!("{number} of {}: {}", mutants.len(), mutant.name));
        let fate = try_one(&step, mutant)?;
        bad += usize::from(!fate.is_good());
        let seconds = start.elapsed().as_secs();
        if let Fate::DoesNotBuild(why) = &fate {
            step.say(why);
        }
        step.say(&format!("{}: {fate} ({seconds} s)", mutant.name));
        if fate == Fate::Survived {
            step.say(&format!("  what it would do: {}", mutant.why));
        }
        rows.push(vec![mutant.name.clone(), fate.to_string()]);
    }
    progress.say(&report::table(&["mutant", "caught by"], &rows));
    progress.say(&format!("{} mutants, {} caught, {bad} not", mutants.len(), mutants.len() - bad));
    Ok(bad == 0)
}

/// Builds one mutant's tests and runs them: first the one that is known to find it, then all.
fn try_one(step: &Step, mutant: &Mutant) -> Result<Fate> {
    let folder = copy_with(COPY, &[&mutant.name])?;
    let known = &mutant.caught_by;
    let (tests, settings) = holder(&folder, known);
    let fate = run_tests(&folder, &[tests], settings, &["--exact", known])?;
    if fate != Fate::Survived {
        return Ok(fate);
    }
    step.now(&format!("{}: not found by {known}, trying all tests", mutant.name));
    run_tests(&folder, &[UNIT, INTEGRATION], USUAL, ALL)
}

/// Which tests this is one of, and how they are built soonest: integration tests have modules that are files of theirs.
fn holder(folder: &Path, test: &str) -> (Tests, Settings) {
    let module = test.split("::").next().unwrap_or_default();
    let file = folder.join("tests/it").join(module);
    if file.is_dir() || file.with_extension("rs").is_file() {
        (INTEGRATION, USUAL)
    } else {
        (UNIT, UNOPTIMISED)
    }
}

/// Builds these tests and runs them with these arguments, to the first that fails.
fn run_tests(folder: &Path, tests: &[Tests], settings: Settings, arguments: &[&str]) -> Result<Fate> {
    let programs = match programs::build(folder, &target(), tests, settings)? {
        Ok(programs) => programs,
        Err(why) => return Ok(Fate::DoesNotBuild(why)),
    };
    for program in programs {
        if let Some(fate) = run_program(folder, &program, arguments, LIMIT)? {
            return Ok(fate);
        }
    }
    Ok(Fate::Survived)
}

/// Runs a test program to its first failure; none, when it has none.
fn run_program(folder: &Path, program: &Path, arguments: &[&str], limit: Duration) -> Result<Option<Fate>> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env("SEEDS", SEEDS);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let stdout = child.stdout.take().context("no pipe from the child")?;
    let (sender, lines) = mpsc::channel();
    // Ends with the child, which is killed below.
    thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let fate = loop {
        match lines.recv_timeout(limit) {
            Ok(line) => {
                if let Some(test) = failed(&line) {
                    break Some(Fate::Caught(test.to_owned()));
                }
            }
            Err(RecvTimeoutError::Timeout) => break Some(Fate::Hung),
            Err(RecvTimeoutError::Disconnected) => {
                break (!child.wait()?.success()).then_some(Fate::Crashed);
            }
        }
    };
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    interrupt::check()?;
    Ok(fate)
}

/// The test that a line of a test program calls failed.
fn failed(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;

    #[test]
    fn a_programs_end_is_seen() {
        let fate_within = |limit: u64, script: &str| {
            let limit = Duration::from_secs(limit);
            run_program(Path::new("."), Path::new("/bin/sh"), &["-c", script], limit).unwrap()
        };
        let fate = |script: &str| fate_within(900, script);
        assert_eq!(fate("echo 'test a::b ... ok'"), None);
        let caught = fate("echo 'test a::b ... ok'; echo 'test a::c ... FAILED'; exec sleep 1000");
        assert_eq!(caught, Some(Fate::Caught("a::c".to_owned())), "it is not waited for");
        assert_eq!(fate("kill -SEGV $$"), Some(Fate::Crashed));
        assert_eq!(fate_within(0, "exec sleep 1000"), Some(Fate::Hung));
    }

    #[test]
    fn a_tests_module_says_where_it_is() {
        let holder = |test| holder(&paths::workspace(), test).0;
        assert_eq!((holder("storms::x"), holder("life::part_1")), (INTEGRATION, INTEGRATION));
        assert_eq!(holder("wire::ring::tests::x"), UNIT);
    }
}
