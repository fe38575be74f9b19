//! `cargo bench --package platter-bench` as a test: the core's instructions for a request, held to the figures in `tests/bench`. It needs
//! valgrind, and gungraun's program, which are installed when they are missing.

use std::process::Command;

use anyhow::Result;

use crate::progress::{Progress, Step};
use crate::{interrupt, paths, process, setup};

/// Gungraun's program, of the version that `tests/bench/Cargo.toml` has of its library.
const RUNNER: &str = "gungraun-runner";
const VERSION: &str = "0.20.0";

/// What it came to.
pub(crate) enum Outcome {
    /// So many figures are as recorded, or lower.
    Kept(usize),
    /// What it said of the others, or why it did not run.
    Failed(String),
}

/// Counts, and compares.
///
/// # Errors
/// What it needs cannot be installed, or the user interrupts.
pub(crate) fn count(progress: &Progress) -> Result<Outcome> {
    let step = progress.task("bench");
    setup::ensure_valgrind(&step)?;
    ensure_runner(&step)?;
    step.now("counting instructions: cargo bench");
    let mut cargo = Command::new("cargo");
    cargo.args(["bench", "--quiet", "--package", "platter-bench"]).current_dir(paths::workspace());
    let output = cargo.output()?;
    interrupt::check()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Ok(Outcome::Kept(figures(&said)));
    }
    Ok(Outcome::Failed(format!("{}:\n{}", process::line(&cargo), process::tail(&said, 40))))
}

/// Installs gungraun's program below the target folder, where `.cargo/config.toml` has it looked for.
fn ensure_runner(step: &Step) -> Result<()> {
    let root = paths::tools();
    let mut list = Command::new("cargo");
    list.args(["install", "--list", "--root"]).arg(&root);
    if process::output(&mut list)?.contains(&format!("{RUNNER} v{VERSION}")) {
        return Ok(());
    }
    step.now(&format!("building {RUNNER} {VERSION}, which takes some minutes once"));
    let mut install = Command::new("cargo");
    install.args(["install", "--quiet", "--locked", "--root"]).arg(&root);
    install.arg(format!("{RUNNER}@{VERSION}")).current_dir(paths::workspace());
    process::output(&mut install).map(drop)
}

/// How many figures there are in what gungraun says.
fn figures(said: &str) -> usize {
    said.lines().filter(|line| line.trim_start().starts_with("Instructions:")).count()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_program_is_of_the_librarys_version() {
        let manifest = fs::read_to_string(paths::workspace().join("tests/bench/Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("gungraun = \"={VERSION}\"")));
    }

    #[test]
    fn figures_are_counted() {
        let said = "core::a_case\n  Instructions:      81|N/A   (****)\n\nGungraun result: Ok. 1 without\n";
        assert_eq!(figures(said), 1);
    }
}
