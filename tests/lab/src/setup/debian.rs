//! Debian's packages without root: `apt-get download` into a cache, `dpkg-deb --extract` into a tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::fio;
use crate::process;

/// What the emulated machine runs. The libraries these need are found through their dependencies.
const PROGRAMS: [&str; 9] = [
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "busybox-static",
    "fio",
    "e2fsprogs",
    "grub-xen-host",
    "qemu-system-xen",
];

/// The newer kernel that guests run beside Debian 12's own: it comes from this suite, in the small build for guests.
pub(super) const NEWER_KERNEL: &str = "linux-image-cloud-amd64/bookworm-backports";

/// The packages to unpack: the programs, the two kernels, and every library below them.
///
/// # Errors
/// apt knows no such package: its lists are missing or of another release.
pub(super) fn packages() -> Result<Vec<String>> {
    let mut all: BTreeSet<String> = PROGRAMS.iter().map(|name| (*name).to_owned()).collect();
    let mut new: Vec<String> = all.iter().cloned().collect();
    while !new.is_empty() {
        let libraries = depends(&new)?.into_iter().filter(|name| is_library(name));
        new = libraries.filter(|name| all.insert(name.clone())).collect();
    }
    all.insert(kernel("linux-image-amd64")?);
    all.insert(kernel(NEWER_KERNEL)?);
    Ok(all.into_iter().collect())
}

/// The package that has the kernel which `newest` always depends on.
fn kernel(newest: &str) -> Result<String> {
    let mut names = depends(&[newest.to_owned()])?.into_iter();
    names.find(|name| name.starts_with("linux-image-")).with_context(|| {
        format!("{newest} depends on no kernel: run `apt-get update` on a Debian 12 machine")
    })
}

/// Brings the cache to exactly these packages, newest versions, and returns their files.
pub(super) fn download(packages: &[String], cache: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(cache)?;
    let files = file_names(packages)?;
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if !files.contains(&entry.file_name().to_string_lossy().into_owned()) {
            fs::remove_file(entry.path())?;
        }
    }
    // As root apt would drop to a user of its own, who cannot write here.
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--option=APT::Sandbox::User=root", "download"]).args(packages);
    process::output(command.current_dir(cache))?;
    Ok(files.iter().map(|file| cache.join(file)).collect())
}

/// What apt would call the packages' files. Asked in an empty folder, because apt does not list what is there.
fn file_names(packages: &[String]) -> Result<Vec<String>> {
    let empty = tempfile::tempdir()?;
    let mut command = Command::new("apt-get");
    command.args(["download", "--print-uris"]).args(packages);
    let said = process::output(command.current_dir(empty.path()))?;
    let files: Vec<String> = said.lines().filter_map(parse_uri).map(str::to_owned).collect();
    if files.len() != packages.len() {
        bail!("apt offers {} of these {} packages: {}", files.len(), packages.len(), packages.join(" "));
    }
    Ok(files)
}

/// Unpacks packages over each other into `tree`.
pub(super) fn unpack(files: &[PathBuf], tree: &Path) -> Result<()> {
    for file in files {
        process::output(Command::new("dpkg-deb").arg("--extract").arg(file).arg(tree))?;
    }
    Ok(())
}

/// Names and versions of package files, one a line.
pub(super) fn versions(files: &[PathBuf]) -> String {
    let name = |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().replace("%3a", ":");
    files.iter().map(|file| name(file).replacen('_', " ", 1) + "\n").collect()
}

fn is_library(package: &str) -> bool {
    (package.starts_with("lib") || package == "zlib1g") && !fio::CLIENTS.contains(&package)
}

fn depends(packages: &[String]) -> Result<BTreeSet<String>> {
    let said = process::output(Command::new("apt-cache").arg("depends").arg("--important").args(packages))?;
    Ok(parse_depends(&said))
}

/// The real packages in `apt-cache depends`: virtual ones stand in angle brackets, alternatives have a bar.
fn parse_depends(said: &str) -> BTreeSet<String> {
    let lines = said.lines().map(|line| line.trim().trim_start_matches('|'));
    let names = lines.filter_map(|line| line.strip_prefix("Depends: ").or(line.strip_prefix("PreDepends: ")));
    names.filter(|name| !name.starts_with('<')).map(str::to_owned).collect()
}

/// `'http://…' name_version_arch.deb 1234 SHA256:…` to the file's name.
fn parse_uri(line: &str) -> Option<&str> {
    line.strip_prefix('\'')?.split(' ').nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_leave_out_virtual_packages() {
        let said =
            "fio\n  Depends: libaio1\n |Depends: libc6\n  Depends: <libvirtual>\n  PreDepends: zlib1g\n";
        assert_eq!(parse_depends(said).into_iter().collect::<Vec<_>>(), ["libaio1", "libc6", "zlib1g"]);
    }

    #[test]
    fn uris_name_the_file() {
        let line =
            "'http://deb.debian.org/debian/pool/main/z/zlib1g_1.deb' zlib1g_1%3a1.2_amd64.deb 86716 SHA256:x";
        assert_eq!(parse_uri(line), Some("zlib1g_1%3a1.2_amd64.deb"));
        assert_eq!(parse_uri("Reading package lists..."), None);
    }

    #[test]
    fn versions_are_legible() {
        assert_eq!(versions(&["cache/zlib1g_1%3a1.2_amd64.deb".into()]), "zlib1g 1:1.2_amd64\n");
    }
}
