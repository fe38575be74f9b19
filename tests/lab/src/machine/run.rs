//! The folder of one run: its logs, its disks, and what dom0 sees as /share.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::{paths, process};

/// Older runs are removed beyond this many.
const RUNS_KEPT: usize = 20;

/// A run's folder, `target/lab/runs/TIME-NAME`.
pub(crate) struct Run {
    folder: PathBuf,
}

impl Run {
    /// Makes the folder and notes the versions of everything that runs in it.
    pub(crate) fn new(name: &str) -> Result<Self> {
        prune(&paths::runs())?;
        let seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_millis();
        let folder = paths::runs().join(format!("{seconds}-{name}"));
        // xenconsoled writes into share/console, which dom0 mounts over /var/log/xen.
        fs::create_dir_all(folder.join("share/console"))?;
        let mut qemu = std::process::Command::new("qemu-system-x86_64");
        let versions =
            process::output(qemu.arg("--version"))?.lines().next().unwrap_or_default().to_owned() + "\n";
        fs::write(
            folder.join("versions"),
            versions + &fs::read_to_string(paths::machine().join("versions"))?,
        )?;
        Ok(Self { folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What dom0 sees as /share.
    pub(crate) fn share(&self) -> PathBuf {
        self.folder.join("share")
    }

    /// Xen's and dom0's console.
    pub(crate) fn machine_log(&self) -> PathBuf {
        self.folder.join("xen-and-dom0.log")
    }

    /// QEMU's complaints and its trace.
    pub(crate) fn qemu_log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// A domain's console.
    pub(crate) fn console(&self, domain: &str) -> PathBuf {
        self.share().join(format!("console/guest-{domain}.log"))
    }
}

fn prune(runs: &Path) -> Result<()> {
    fs::create_dir_all(runs)?;
    let mut folders: Vec<PathBuf> =
        fs::read_dir(runs)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // Names start with the time in milliseconds, so they sort by age.
    folders.sort();
    for folder in folders.iter().rev().skip(RUNS_KEPT) {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}
