//! What the host itself must have: QEMU, `xz` and `zstd` for Debian's kernels, sfdisk and e2fsprogs for disks, and
//! apt's lists of the suites that packages come from. Installed with apt when missing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::debian;
use crate::process;
use crate::progress::Step;

/// Where the backports suite is named when apt does not have it.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/bookworm-backports.sources";
const BACKPORTS: &str = "Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

/// A package, a program in it, and an option with which that only says that it is there.
const NEEDED: [(&str, &str, &str); 5] = [
    ("qemu-system-x86", "qemu-system-x86_64", "--version"),
    ("xz-utils", "xz", "--version"),
    ("zstd", "zstd", "--version"),
    ("fdisk", "/usr/sbin/sfdisk", "--version"),
    ("e2fsprogs", "/usr/sbin/mke2fs", "-V"),
];

/// The same of what libFuzzer is compiled with.
const COMPILER: (&str, &str, &str) = ("g++", "c++", "--version");

/// And of what counts instructions.
const VALGRIND: (&str, &str, &str) = ("valgrind", "valgrind", "--version");

/// Installs a C++ compiler when there is none.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_compiler(step: &Step) -> Result<()> {
    ensure_one(step, COMPILER)
}

/// Installs valgrind when it is missing.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_valgrind(step: &Step) -> Result<()> {
    ensure_one(step, VALGRIND)
}

fn ensure_one(step: &Step, (package, program, option): (&str, &str, &str)) -> Result<()> {
    if runs(program, option) {
        return Ok(());
    }
    update_lists(step)?;
    as_root(step, &["apt-get", "--quiet", "--yes", "--no-install-recommends", "install", package])
}

/// Installs what is missing, through `sudo` unless this is root; apt's package lists are fetched when absent.
///
/// # Errors
/// No apt, no network, or no right to install: the error names the command to run by hand.
pub(crate) fn ensure(step: &Step) -> Result<()> {
    if !known("xen-utils-4.17") {
        update_lists(step)?;
        if !known("xen-utils-4.17") {
            bail!("apt knows no xen-utils-4.17: the lab takes Xen 4.17 from Debian 12 (bookworm)");
        }
    }
    if !known(debian::NEWER_KERNEL) {
        add_backports(step)?;
        update_lists(step)?;
    }
    let packages: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, program, option)| !runs(program, option))
        .map(|(package, ..)| *package)
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    let mut command = vec!["apt-get", "--quiet", "--yes", "--no-install-recommends", "--no-remove"];
    if qemu_is_backported() {
        // QEMU's parts must be of one version: bookworm's would remove the installed tools.
        add_backports(step)?;
        command.push("--target-release=bookworm-backports");
    }
    update_lists(step)?;
    command.push("install");
    command.extend(packages);
    as_root(step, &command)
}

/// Fetches apt's package lists.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn update_lists(step: &Step) -> Result<()> {
    as_root(step, &["apt-get", "--quiet", "update"])
}

/// Whether apt has a package, or one of a suite: `package/suite`, which it lets pass in silence when it has none.
fn known(package: &str) -> bool {
    let said = process::output(Command::new("apt-cache").args(["show", "--no-all-versions", package]));
    said.is_ok_and(|found| !found.is_empty())
}

fn runs(program: &str, argument: &str) -> bool {
    process::output(Command::new(program).arg(argument)).is_ok()
}

fn qemu_is_backported() -> bool {
    let mut query = Command::new("dpkg-query");
    query.args([
        "--show",
        "--showformat=${Version}\n",
        "qemu-utils",
        "qemu-system-common",
        "qemu-system-data",
    ]);
    // It fails when one of the packages is unknown, and still prints the others.
    query.output().is_ok_and(|result| String::from_utf8_lossy(&result.stdout).contains("~bpo12"))
}

fn add_backports(step: &Step) -> Result<()> {
    if !Path::new(BACKPORTS_FILE).exists() {
        let staged = tempfile::NamedTempFile::new()?;
        fs::write(staged.path(), BACKPORTS)?;
        let from = staged.path().to_str().context("the temporary folder's name is not UTF-8")?;
        as_root(step, &["install", "--mode=644", from, BACKPORTS_FILE])?;
    }
    Ok(())
}

fn as_root(step: &Step, command: &[&str]) -> Result<()> {
    let mut words = command.to_vec();
    if !rustix::process::geteuid().is_root() {
        words.insert(0, "sudo");
    }
    step.say(&format!("host: {}", words.join(" ")));
    let mut run = Command::new(words[0]);
    run.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    process::output(&mut run).with_context(|| format!("run this by hand: {}", words.join(" ")))?;
    Ok(())
}
