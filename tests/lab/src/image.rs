//! `cargo lab image`: the release image, stripped, with its symbols, its xl configuration, its systemd unit and
//! `platter-stat` beside it. And the image of the conformance suite, which only the lab boots.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::progress::Progress;
use crate::{paths, process};

/// The better target: no SSE and so no FPU state to switch, no red zone, a core built for it.
const FREESTANDING: &str = "x86_64-unknown-none";
/// What every Rust of this kind of machine can build for.
pub(crate) const HOSTED: &str = "x86_64-unknown-linux-gnu";

/// The program for dom0 that shows statistics.
pub(crate) const STAT: &str = "platter-stat";

/// The systemd unit that starts it before the guests.
pub(crate) const UNIT: &str = include_str!("../../../boot/platter.service");

/// Sources, and where cargo puts what it makes of them.
struct Tree {
    sources: PathBuf,
    target: PathBuf,
}

impl Tree {
    /// The workspace's own.
    fn own() -> Self {
        Self { sources: paths::workspace(), target: paths::target() }
    }
}

/// A built image.
pub(crate) struct Image {
    /// The stripped ELF.
    pub(crate) path: PathBuf,
    /// Bytes of it.
    pub(crate) size: u64,
    /// Which target it was built for.
    pub(crate) target: &'static str,
}

/// Builds the image into `target/image`: `platter`, `platter.sym` with symbols, `platter.cfg`, `platter.service`, and
/// `platter-stat` for dom0.
///
/// # Errors
/// It does not compile, or `strip` is missing.
pub(crate) fn build(progress: &Progress) -> Result<Image> {
    let tree = Tree::own();
    let image = build_image(progress, &tree, "platter", "platter")?;
    let step = progress.task("image");
    step.now("building platter-stat");
    // In a folder of its own: for other flags cargo would build anew what both have in common, each time.
    let tree = Tree { target: tree.target.join("stat"), ..tree };
    // Without shared libraries, for whatever libc dom0 has.
    let flags = [&remap(&tree)?[..], &["-Ctarget-feature=+crt-static".to_owned()]].concat();
    let built = compile(&tree, "platter", STAT, "stat", HOSTED, &flags)?;
    let folder = paths::image();
    strip(&built, &folder.join(STAT))?;
    fs::write(folder.join("platter.cfg"), include_str!("../../../boot/platter.cfg"))?;
    fs::write(folder.join("platter.service"), UNIT)?;
    Ok(image)
}

/// Builds the conformance suite's image as `target/image/frontend`, with its symbols beside it.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_frontend(progress: &Progress) -> Result<Image> {
    build_image(progress, &Tree::own(), "platter-frontend", "frontend")
}

/// Builds the image of a copy of the sources, and nothing beside it, into `image` of the folder `target`.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_copy(progress: &Progress, sources: PathBuf, target: PathBuf) -> Result<Image> {
    build_image(progress, &Tree { sources, target }, "platter", "platter")
}

/// Builds a package's image, its binary of the same name, for the better target, and installs it as `name`.
fn build_image(progress: &Progress, tree: &Tree, package: &str, name: &str) -> Result<Image> {
    let step = progress.task("image");
    let target = if has_core(&sysroot()?, FREESTANDING) { FREESTANDING } else { HOSTED };
    step.now(&format!("building {package} for {target}"));
    let built = compile(tree, package, package, "image", target, &remap(tree)?)?;
    let folder = tree.target.join("image");
    fs::create_dir_all(&folder)?;
    let path = folder.join(name);
    fs::copy(&built, folder.join(format!("{name}.sym")))
        .with_context(|| format!("no {}", built.display()))?;
    strip(&built, &path)?;
    let size = fs::metadata(&path)?.len();
    Ok(Image { path, size, target })
}

/// Builds a program; returns where it is.
fn compile(
    tree: &Tree,
    package: &str,
    program: &str,
    feature: &str,
    target: &str,
    flags: &[String],
) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release", "--package", package]);
    cargo.args(["--bin", program, "--features", feature, "--target", target]);
    // Takes the place of RUSTFLAGS, so that no setting of this machine gets into the image.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    process::output(cargo.current_dir(&tree.sources).env("CARGO_TARGET_DIR", &tree.target))?;
    Ok(tree.target.join(target).join("release").join(program))
}

fn sysroot() -> Result<PathBuf> {
    let said = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(said.trim_end()))
}

fn has_core(sysroot: &Path, target: &str) -> bool {
    let entries =
        fs::read_dir(sysroot.join("lib/rustlib").join(target).join("lib")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Paths of this machine become names, so that one commit gives one image wherever it is built.
fn remap(tree: &Tree) -> Result<[String; 3]> {
    let home = || Some(Path::new(&env::var_os("HOME")?).join(".cargo"));
    let cargo =
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("neither CARGO_HOME nor HOME")?;
    let rule = |path: &Path, name: &str| format!("--remap-path-prefix={}={name}", path.display());
    Ok([rule(&tree.sources, "platter"), rule(&cargo, "cargo"), rule(&sysroot()?, "rust")])
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    process::output(Command::new("strip").arg("--strip-all").arg("-o").arg(to).arg(from)).map(drop)
}
