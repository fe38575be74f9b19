//! Where the lab finds the project and keeps its own things.

use std::env;
use std::path::{Path, PathBuf};

/// The workspace this program was built from.
pub(crate) fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).unwrap_or(package).to_owned()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    let chosen = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    workspace().join(chosen)
}

/// The image, its symbols and its xl configuration.
pub(crate) fn image() -> PathBuf {
    target().join("image")
}

/// The assembled machine: Xen, kernel, file systems; in dom0 this is /lab.
pub(crate) fn machine() -> PathBuf {
    target().join("lab/machine")
}

/// Downloaded packages.
pub(crate) fn cache() -> PathBuf {
    target().join("lab/cache")
}

/// The package of the fuzz targets, with the inputs that are kept.
pub(crate) fn fuzz_package() -> PathBuf {
    workspace().join("tests/fuzz")
}

/// What fuzzing finds: a folder a target.
pub(crate) fn fuzz() -> PathBuf {
    target().join("lab/fuzz")
}

/// Programs that cargo installs for the tests alone.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// One folder a run.
pub(crate) fn runs() -> PathBuf {
    target().join("lab/runs")
}

/// Copies of the sources with mistakes in them, and what is built of these.
pub(crate) fn mutants() -> PathBuf {
    target().join("mutants")
}

/// What `cargo lab cuts` records and cuts: disks, and their logs.
pub(crate) fn cuts() -> PathBuf {
    target().join("lab/cuts")
}

/// What `cargo lab bench` measured last.
pub(crate) fn bench() -> PathBuf {
    target().join("bench")
}
