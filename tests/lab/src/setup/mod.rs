//! `cargo lab setup`: from Debian's packages to an emulated machine, without root but for the host's own packages.
//!
//! [`host`] installs QEMU, [`debian`] downloads and unpacks, [`kernel`] and [`roots`] make what Xen boots,
//! [`boot_disk`] what a guest boots from.
//! A stamp with the recipe's hash lies beside the result; as long as it matches, nothing is done.

mod boot_disk;
mod cpio;
mod debian;
mod fio;
mod host;
mod kernel;
mod roots;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub(crate) use self::boot_disk::PARTITION as BOOT_PARTITION;
pub(crate) use self::host::{ensure_compiler, ensure_valgrind};
use crate::progress::Progress;
use crate::{paths, process};

/// Everything that decides what comes out, so that a change of it rebuilds.
const RECIPE: [&str; 8] = [
    include_str!("mod.rs"),
    include_str!("boot_disk.rs"),
    include_str!("cpio.rs"),
    include_str!("debian.rs"),
    include_str!("fio.rs"),
    include_str!("kernel.rs"),
    include_str!("roots.rs"),
    include_str!("../bin/domain-cpu-time.rs"),
];

/// Makes the host and the machine ready; quick when they are.
///
/// # Errors
/// A package cannot be installed, downloaded or unpacked.
pub(crate) fn ensure(progress: &Progress) -> Result<()> {
    let step = progress.task("setup");
    step.now("looking at the host");
    host::ensure(&step)?;
    let machine = paths::machine();
    let stamp = stamp();
    if fs::read_to_string(machine.join("stamp")).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    step.now("downloading Debian packages (about 130 MB the first time)");
    let files = download().or_else(|_| {
        // Lists that are older than the archive name files it no longer has.
        host::update_lists(&step)?;
        download()
    })?;
    fs::create_dir_all(&machine)?;
    let tree = tempfile::tempdir_in(&machine)?;
    step.now(&format!("unpacking {} packages", files.len()));
    debian::unpack(&files, tree.path())?;
    fio::replace_clients(tree.path())?;
    step.now("assembling Xen, kernel and file systems");
    assemble(tree.path(), &machine)?;
    fs::write(machine.join("versions"), debian::versions(&files))?;
    fs::write(machine.join("stamp"), stamp)?;
    Ok(())
}

/// Packages of the machine whose names start with one of these, with their versions.
///
/// # Errors
/// There is no machine yet.
pub(crate) fn versions(names: &[&str]) -> Result<Vec<String>> {
    let all = fs::read_to_string(paths::machine().join("versions"))?;
    let lines = all.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    Ok(lines.map(str::to_owned).collect())
}

fn download() -> Result<Vec<PathBuf>> {
    debian::download(&debian::packages()?, &paths::cache())
}

fn stamp() -> String {
    let mut hasher = DefaultHasher::new();
    RECIPE.hash(&mut hasher);
    roots::SCRIPTS.hash(&mut hasher);
    format!("{:016x}\n", hasher.finish())
}

fn assemble(tree: &Path, machine: &Path) -> Result<()> {
    let xen = one_file(&tree.join("boot"), "xen-4.17", ".gz")?;
    let unpacked = process::pipe("gzip", &["--decompress", "--stdout"], &fs::read(xen)?)?;
    fs::write(machine.join("xen"), unpacked)?;
    let older = one_kernel(tree, machine, "6.1.", "")?;
    let control = roots::control(tree, &older.modules, &cpu_time_helper()?)?;
    fs::write(machine.join("control.cpio"), control)?;
    fs::write(machine.join("qemu.cpio"), roots::qemu(tree)?)?;
    fs::write(machine.join("guest.cpio"), roots::guest(tree, &older.modules)?)?;
    let newer = one_kernel(tree, machine, "6.12.", "-6.12")?;
    fs::write(machine.join("guest-6.12.cpio"), roots::guest(tree, &newer.modules)?)?;
    fs::copy(tree.join("usr/lib/grub-xen/grub-x86_64-xen.bin"), machine.join("grub"))?;
    boot_disk::make(tree, machine, &older.bzimage)
}

/// A kernel of the unpacked packages.
struct Kernel {
    bzimage: PathBuf,
    modules: kernel::Modules,
}

/// Finds the kernel whose version starts so, and makes `vmlinux` with this suffix of it.
fn one_kernel(tree: &Path, machine: &Path, version: &str, suffix: &str) -> Result<Kernel> {
    let bzimage = one_file(&tree.join("boot"), &format!("vmlinuz-{version}"), "")?;
    fs::write(machine.join(format!("vmlinux{suffix}")), kernel::extract_vmlinux(&bzimage)?)?;
    let modules = kernel::Modules::find(&one_file(&tree.join("lib/modules"), version, "")?)?;
    Ok(Kernel { bzimage, modules })
}

fn one_file(folder: &Path, prefix: &str, suffix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    let matches = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(prefix) && name.ends_with(suffix)
    };
    let found = entries.filter_map(|entry| Some(entry.ok()?.path())).find(matches);
    found.with_context(|| format!("no {prefix}*{suffix} in {}", folder.display()))
}

/// Builds the dom0 helper without shared libraries, for whatever libc dom0 has.
fn cpu_time_helper() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["rustc", "--quiet", "--package", "platter-lab", "--bin", "domain-cpu-time"]);
    cargo.args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    process::output(cargo.current_dir(paths::workspace()))?;
    Ok(paths::target().join("debug/domain-cpu-time"))
}
