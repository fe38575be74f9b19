//! The programs that `cargo test` would run, built to be run one test at a time: by [`super::sim`] and [`super::mutants`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{interrupt, process};

/// Cargo's words for a kind of tests.
pub(crate) type Tests = &'static [&'static str];
/// Those beside the code.
pub(crate) const UNIT: Tests = &["--lib"];
/// Those of `tests/it`.
pub(crate) const INTEGRATION: Tests = &["--test", "it"];

/// Cargo's settings, as environment variables.
pub(crate) type Settings = &'static [(&'static str, &'static str)];
/// For tests that take no time anyway: the compiler takes a quarter of its time.
pub(crate) const UNOPTIMISED: Settings =
    &[("CARGO_PROFILE_TEST_OPT_LEVEL", "0"), ("CARGO_PROFILE_TEST_DEBUG", "0")];
/// As `cargo test` builds them.
pub(crate) const USUAL: Settings = &[];

/// Builds these tests of the sources in `folder`; their programs, or what the compiler says.
///
/// # Errors
/// Cargo cannot be run, or the user interrupts.
pub(crate) fn build(
    folder: &Path,
    target: &Path,
    tests: &[Tests],
    settings: Settings,
) -> Result<Result<Vec<PathBuf>, String>> {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "test",
        "--quiet",
        "--no-run",
        "--message-format=json-render-diagnostics",
        "--features",
        "sim",
    ]);
    cargo.args(tests.concat()).current_dir(folder).env("CARGO_TARGET_DIR", target).stdin(Stdio::null());
    cargo.envs(settings.iter().copied());
    let output = cargo.output().with_context(|| format!("cannot run {}", process::line(&cargo)))?;
    interrupt::check()?;
    if !output.status.success() {
        return Ok(Err(process::tail(&String::from_utf8_lossy(&output.stderr), 40)));
    }
    Ok(Ok(programs(&String::from_utf8_lossy(&output.stdout))))
}

/// The programs among cargo's messages, one JSON object a line.
fn programs(messages: &str) -> Vec<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/it-1\"}\nnoise\n";
        assert_eq!(programs(messages), [PathBuf::from("/t/it-1")]);
    }
}
