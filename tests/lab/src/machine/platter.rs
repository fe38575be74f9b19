//! The domain under test: creates it as a user would, waits until it serves, reads its console.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::agent::{Answer, poll};
use super::{Controller, Machine};
use crate::image::STAT;
use crate::paths;

/// The domain's name, and so what `backend=` says.
pub(crate) const NAME: &str = "platter";

/// What a test changes of the image's own configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'s> {
    /// The domain's name.
    pub(crate) name: &'s str,
    /// What boots instead of the image in [`paths::image`].
    pub(crate) kernel: Option<&'s Path>,
    /// The controllers it owns.
    pub(crate) controllers: &'s [Controller],
    /// Its command line.
    pub(crate) options: &'s str,
    /// MiB.
    pub(crate) memory: u32,
    /// What Xen does when it crashes.
    pub(crate) on_crash: &'s str,
}

impl Settings<'_> {
    /// As a user starts it whose guests have disks whole; a crash keeps the domain, so that it is noticed.
    pub(crate) fn usual() -> Self {
        let options = "log=info opaque=nvme0n1,nvme0n2";
        let controllers = &[Controller::PLATTER];
        Self { name: NAME, kernel: None, controllers, options, memory: 16, on_crash: "preserve" }
    }

    /// What `xl create` is told: the image's own configuration, and what is changed of it.
    pub(crate) fn arguments(&self) -> String {
        let Self { name, controllers, options, memory, on_crash, .. } = self;
        let pci: Vec<String> =
            controllers.iter().map(|controller| format!("\"{}\"", controller.pci())).collect();
        format!(
            "/share/{name}.cfg 'name=\"{name}\"' 'pci=[{}]' 'extra=\"{options}\"' 'memory={memory}' 'on_crash=\"{on_crash}\"'",
            pci.join(",")
        )
    }
}

/// A platter domain.
#[derive(Clone, Copy)]
pub(crate) struct Platter<'m> {
    machine: &'m Machine,
    id: u32,
}

impl<'m> Platter<'m> {
    /// `xl create` with the image's own configuration and these settings. It may not serve yet.
    ///
    /// # Errors
    /// There is no image, or `xl` refuses it.
    pub(crate) fn create(machine: &'m Machine, settings: Settings) -> Result<Self> {
        let platter = Self::create_paused(machine, settings)?;
        machine.dom0(&format!("xl unpause {}", platter.id))?;
        Ok(platter)
    }

    /// `xl create -p`: it is there, but does not run.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn create_paused(machine: &'m Machine, settings: Settings) -> Result<Self> {
        let name = settings.name;
        share_image(machine, name, settings.kernel)?;
        machine.dom0(&format!("xl create -p {}", settings.arguments()))?;
        let id = machine.dom0(&format!("xl domid {name}"))?.parse().context("xl domid printed no number")?;
        Ok(Self::of_domain(machine, id))
    }

    /// The platter that is domain `id` already.
    pub(crate) fn of_domain(machine: &'m Machine, id: u32) -> Self {
        Self { machine, id }
    }

    /// The domain's number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The xenstore directory of a guest's device.
    pub(crate) fn backend(&self, guest: u32, device: u32) -> String {
        format!("/local/domain/{}/backend/vbd/{guest}/{device}", self.id)
    }

    /// Waits for the node that says platter serves.
    ///
    /// # Errors
    /// It does not within a minute.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        let ready = format!("/local/domain/{}/data/ready", self.id);
        let script = format!("until [ \"$(xenstore-read {ready} 2>/dev/null)\" = 1 ]; do sleep 0.1; done");
        self.machine.dom0(&script).map(drop).context("platter does not become ready")
    }

    /// Everything it said on its console so far, of all domains of this name in this run.
    pub(crate) fn log(&self) -> String {
        self.machine.said(NAME)
    }

    /// Waits for a console line with all of `words` after byte `from` of the log and gives the line.
    ///
    /// # Errors
    /// None comes within `limit`.
    pub(crate) fn wait_line(&self, from: usize, words: &[&str], limit: Duration) -> Result<String> {
        poll(&format!("platter's line with {words:?}"), limit, || {
            self.machine.check_alive()?;
            let log = self.log();
            let mut lines = log.get(from..).unwrap_or_default().lines();
            Ok(lines.find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned))
        })
    }

    /// Attaches without waiting for the guest, whatever comes of it.
    pub(crate) fn try_attach(&self, guest: &str, vdev: &str, target: &str) -> Result<Answer> {
        self.machine
            .dom0_answer(&super::guest::attach_command(guest, vdev, NAME, target), super::COMMAND_LIMIT)
    }

    /// CPU time it has used, in nanoseconds.
    pub(crate) fn cpu_time(&self) -> Result<u64> {
        self.machine.cpu_time(self.id)
    }

    /// Whether the domain still runs.
    pub(crate) fn exists(&self) -> Result<bool> {
        Ok(self.machine.dom0_answer(&format!("xl domname {}", self.id), super::COMMAND_LIMIT)?.code == 0)
    }
}

/// Copies the image and its configuration to where dom0 sees them, under the domain's name.
fn share_image(machine: &Machine, name: &str, kernel: Option<&Path>) -> Result<()> {
    let (image, share) = (paths::image(), machine.run().share());
    let missing = || format!("no image in {}: `cargo lab image` makes it", image.display());
    let kernel = kernel.map_or_else(|| image.join("platter"), Path::to_owned);
    for (from, to) in [(kernel, name), (image.join(STAT), STAT)] {
        fs::copy(from, share.join(to)).with_context(missing)?;
    }
    let configuration = fs::read_to_string(image.join("platter.cfg")).with_context(missing)?;
    let configuration = with_kernel(&configuration, &format!("/share/{name}"));
    fs::write(share.join(format!("{name}.cfg")), configuration)?;
    Ok(())
}

/// An xl configuration with another kernel.
fn with_kernel(configuration: &str, kernel: &str) -> String {
    let edit = |line: &str| match line.split_once('=') {
        Some((key, _)) if key.trim() == "kernel" => format!("kernel = \"{kernel}\"\n"),
        _ => format!("{line}\n"),
    };
    configuration.lines().map(edit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_changes() {
        let before = "# kernel = here\nkernel = \"/a/b\"\nextra = \"kernel=c\"\n";
        assert_eq!(with_kernel(before, "/d"), "# kernel = here\nkernel = \"/d\"\nextra = \"kernel=c\"\n");
    }
}
