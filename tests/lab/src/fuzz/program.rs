//! Builds the targets as programs of libFuzzer, with the stable toolchain: LLVM's coverage counters are an option of
//! its code generator, and the fuzzer comes with a crate.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::image::HOSTED;
use crate::{paths, process};

/// A counter at each edge, which is what the fuzzer is led by. What comparisons compare could be traced too, but that
/// halves the speed, and the inputs in tests/fuzz/corpus have the numbers that matter.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "--cfg=fuzzing",
    "-Ccodegen-units=1",
];

/// Builds these targets; returns where they are.
///
/// # Errors
/// They do not compile.
pub(super) fn build(targets: &[String]) -> Result<Vec<PathBuf>> {
    let mut cargo = Command::new("cargo");
    // With a target triple the flags are not for build scripts.
    cargo.args(["build", "--quiet", "--profile", "fuzz", "--target", HOSTED]);
    cargo.args(["--package", "platter-fuzz", "--features", "libfuzzer"]);
    cargo.args(targets.iter().flat_map(|target| ["--bin", target]));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    process::output(cargo.current_dir(paths::workspace()))?;
    let folder = paths::target().join(HOSTED).join("fuzz");
    Ok(targets.iter().map(|target| folder.join(target)).collect())
}
