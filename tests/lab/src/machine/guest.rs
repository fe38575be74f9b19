//! A Linux domain under the lab's control: a guest with disks, or a driver domain to compare with.

use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::agent::{self, Answer, poll};
use super::{BLOCK_SIZE, COMMAND_LIMIT, Controller, Machine};

/// Emulated Linux takes 5 to 20 s to boot when it is alone.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What makes a domain a guest.
const GUEST: &str = "memory=192\nramdisk=\"/lab/guest.cpio\"\n";

/// A Linux domain whose agent listens on its console.
pub(crate) struct Linux<'m> {
    machine: &'m Machine,
    name: String,
    terminal: String,
    last_id: AtomicU32,
}

impl<'m> Linux<'m> {
    /// Boots a guest: one virtual CPU, blkfront, e2fsprogs, fio.
    ///
    /// # Errors
    /// It cannot be created, or its agent does not answer.
    pub(crate) fn guest(machine: &'m Machine, name: &str) -> Result<Self> {
        Self::boot(machine, name, GUEST)
    }

    /// Boots a Linux storage driver domain (xen-blkback, `xl devd`) that owns `controller`.
    ///
    /// # Errors
    /// As [`Self::guest`].
    pub(crate) fn driver_domain(machine: &'m Machine, name: &str, controller: &Controller) -> Result<Self> {
        let pci = controller.pci();
        let config = format!("memory=384\nramdisk=\"/lab/control.cpio\"\ndriver_domain=1\npci=[\"{pci}\"]\n");
        Self::boot(machine, name, &config)
    }

    fn boot(machine: &'m Machine, name: &str, config: &str) -> Result<Self> {
        configure(machine, name, "console=hvc0", config)?;
        let from = machine.said(name).len();
        machine.dom0(&format!("xl create /share/{name}.cfg"))?;
        let terminal =
            machine.dom0(&format!("xenstore-read /local/domain/$(xl domid {name})/console/tty"))?;
        let guest = Self { machine, name: name.to_owned(), terminal, last_id: AtomicU32::new(0) };
        poll(&format!("{name}'s agent"), BOOT_LIMIT, || {
            machine.check_alive()?;
            Ok(machine.said(name).get(from..).is_some_and(|said| said.contains("@lab up")).then_some(()))
        })?;
        Ok(guest)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a shell script and gives what it printed.
    ///
    /// # Errors
    /// It ends with another code than 0, or not within the usual limit.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        self.run_within(COMMAND_LIMIT * 2, script)
    }

    /// [`Self::run`] with a limit of its own.
    pub(crate) fn run_within(&self, limit: Duration, script: &str) -> Result<String> {
        self.answer(script, limit)?.success(&self.name, script)
    }

    /// Runs a shell script, whatever it ends with.
    pub(crate) fn answer(&self, script: &str, limit: Duration) -> Result<Answer> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let line = agent::request(id, limit, script)?;
        let from = self.machine.said(&self.name).len();
        self.machine.dom0(&format!("echo '{line}' > {}", self.terminal))?;
        poll(&format!("in {}, `{script}`", self.name), limit + Duration::from_secs(30), || {
            self.machine.check_alive()?;
            agent::answer(self.machine.said(&self.name).get(from..).unwrap_or_default(), id)
        })
    }

    /// Attaches `target` of the domain `backend` as `vdev`, and waits for the guest's block device.
    ///
    /// # Errors
    /// `xl block-attach` fails, or no device appears.
    pub(crate) fn attach(&self, vdev: &str, backend: &str, target: &str) -> Result<()> {
        self.machine.dom0(&attach_command(&self.name, vdev, backend, target))?;
        self.run(&format!(
            "until [ -b /dev/{vdev} ] && [ $(cat /sys/block/{vdev}/size) != 0 ]; do sleep 0.1; done"
        ))
        .with_context(|| format!("{}: no /dev/{vdev}", self.name))?;
        Ok(())
    }

    /// Detaches `vdev` and waits until the guest has lost it.
    ///
    /// # Errors
    /// `xl block-detach` fails, or the device stays.
    pub(crate) fn detach(&self, vdev: &str) -> Result<()> {
        self.machine.dom0(&format!("xl block-detach {} {vdev}", self.name))?;
        self.run(&format!("while [ -b /dev/{vdev} ]; do sleep 0.1; done"))?;
        Ok(())
    }

    /// Writes `line`, again and again, to blocks of 512 bytes, past the guest's page cache, in one request if the
    /// kernel lets it.
    pub(crate) fn write_line(&self, device: &str, blocks: Range<u64>, line: &str) -> Result<()> {
        let (first, size) = (blocks.start, (blocks.end - blocks.start) * BLOCK_SIZE);
        self.run(&format!(
            "yes '{line}' | head -c {size} > /tmp/line && \
             dd if=/tmp/line of=/dev/{device} bs={size} count=1 seek={} oflag=direct,seek_bytes conv=notrunc",
            first * BLOCK_SIZE
        ))?;
        Ok(())
    }

    /// Reads blocks past the page cache and compares them with `line`, again and again.
    pub(crate) fn check_line(&self, device: &str, blocks: Range<u64>, line: &str) -> Result<()> {
        let (first, size) = (blocks.start, (blocks.end - blocks.start) * BLOCK_SIZE);
        self.run(&format!(
            "yes '{line}' | head -c {size} > /tmp/line && \
             dd if=/dev/{device} of=/tmp/read bs={size} count=1 skip={} iflag=direct,skip_bytes && cmp /tmp/line /tmp/read",
            first * BLOCK_SIZE
        ))?;
        Ok(())
    }

    /// The domain's number.
    pub(crate) fn id(&self) -> Result<u32> {
        self.machine.dom0(&format!("xl domid {}", self.name))?.parse().context("xl domid printed no number")
    }
}

/// Makes `/share/NAME.cfg`, an xl configuration of a guest with a shell on its console instead of the agent.
pub(crate) fn offer_guest(machine: &Machine, name: &str) -> Result<()> {
    configure(machine, name, &format!("console=hvc0 hostname={name} shell"), GUEST)
}

fn configure(machine: &Machine, name: &str, kernel_options: &str, config: &str) -> Result<()> {
    let common = "type=\"pv\"\nkernel=\"/lab/vmlinux\"\nvcpus=1\non_crash=\"preserve\"\n";
    let path = machine.run().share().join(format!("{name}.cfg"));
    fs::write(path, format!("name=\"{name}\"\n{common}extra=\"{kernel_options}\"\n{config}"))?;
    Ok(())
}

/// The line a user types to attach a disk.
pub(crate) fn attach_command(guest: &str, vdev: &str, backend: &str, target: &str) -> String {
    format!("xl block-attach {guest} 'format=raw,vdev={vdev},access=rw,backend={backend},target={target}'")
}
