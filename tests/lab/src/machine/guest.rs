//! A Linux domain under the lab's control: a guest with disks, or a driver domain to compare with.

use std::fs;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::agent::{self, Answer, poll};
use super::{BLOCK_SIZE, COMMAND_LIMIT, Controller, Machine};

/// Emulated Linux takes 5 to 20 s to boot when it is alone.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// What a guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// Linux 6.1, Debian 12's own.
    Linux61,
    /// Linux 6.12, from its backports.
    Linux612,
    /// PV GRUB, which loads what the guest's first disk says.
    Grub,
}

impl System {
    fn config(self) -> &'static str {
        match self {
            Self::Linux61 => "kernel=\"/lab/vmlinux\"\nramdisk=\"/lab/guest.cpio\"\n",
            Self::Linux612 => "kernel=\"/lab/vmlinux-6.12\"\nramdisk=\"/lab/guest-6.12.cpio\"\n",
            Self::Grub => "kernel=\"/lab/grub\"\n",
        }
    }
}

/// What a test changes of a guest's configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner<'s> {
    pub(crate) system: System,
    pub(crate) vcpus: u32,
    /// MiB.
    pub(crate) memory: u32,
    /// Its disks from the start, as `disk=` has them.
    pub(crate) disks: &'s [String],
    /// What Xen does when it crashes.
    pub(crate) on_crash: &'s str,
}

impl Manner<'_> {
    /// Linux 6.1 on one processor, without disks; a crash keeps the domain, so that it is noticed.
    pub(crate) const fn usual() -> Self {
        Self { system: System::Linux61, vcpus: 1, memory: 192, disks: &[], on_crash: "preserve" }
    }
}

/// A Linux domain whose agent listens on its console.
pub(crate) struct Linux<'m> {
    machine: &'m Machine,
    name: String,
    /// Where dom0 writes to its console: another one in each of its domains.
    terminal: Mutex<String>,
    last_id: AtomicU32,
}

impl<'m> Linux<'m> {
    /// Boots a guest as [`Manner::usual`] has it: blkfront, e2fsprogs, fio.
    ///
    /// # Errors
    /// It cannot be created, or its agent does not answer.
    pub(crate) fn guest(machine: &'m Machine, name: &str) -> Result<Self> {
        Self::guest_with(machine, name, Manner::usual())
    }

    /// Boots a guest of this manner.
    ///
    /// # Errors
    /// As [`Self::guest`].
    pub(crate) fn guest_with(machine: &'m Machine, name: &str, manner: Manner) -> Result<Self> {
        Self::boot(machine, name, manner.system.config(), manner)
    }

    /// Boots a Linux storage driver domain (xen-blkback, `xl devd`) that owns `controller`.
    ///
    /// # Errors
    /// As [`Self::guest`].
    pub(crate) fn driver_domain(machine: &'m Machine, name: &str, controller: &Controller) -> Result<Self> {
        let pci = controller.pci();
        let system = "kernel=\"/lab/vmlinux\"\nramdisk=\"/lab/control.cpio\"\n";
        let config = format!("{system}driver_domain=1\npci=[\"{pci}\"]\n");
        Self::boot(machine, name, &config, Manner { memory: 384, ..Manner::usual() })
    }

    fn boot(machine: &'m Machine, name: &str, config: &str, manner: Manner) -> Result<Self> {
        configure(machine, name, "console=hvc0", config, manner)?;
        let from = machine.said(name).len();
        machine.dom0(&format!("xl create /share/{name}.cfg"))?;
        let (name, terminal) = (name.to_owned(), Mutex::new(String::new()));
        let guest = Self { machine, name, terminal, last_id: AtomicU32::new(0) };
        guest.wait_up(from)?;
        Ok(guest)
    }

    /// Waits until the guest has booted that says so after byte `from` of [`Self::said`].
    ///
    /// # Errors
    /// It does not within minutes.
    pub(crate) fn wait_up(&self, from: usize) -> Result<()> {
        poll(&format!("{}'s agent", self.name), BOOT_LIMIT, || {
            self.machine.check_alive()?;
            Ok(self.said().get(from..).is_some_and(|said| said.contains("@lab up")).then_some(()))
        })?;
        self.find_terminal()
    }

    /// Finds the console of the domain that now has the guest's name: after a restart, after `xl restore`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn find_terminal(&self) -> Result<()> {
        let script = format!("xenstore-read /local/domain/$(xl domid {})/console/tty", self.name);
        *self.terminal()? = self.machine.dom0(&script)?;
        Ok(())
    }

    fn terminal(&self) -> Result<std::sync::MutexGuard<'_, String>> {
        self.terminal.lock().map_err(|_| anyhow!("another thread failed while it held a terminal's name"))
    }

    /// What it said on its console so far, in all its domains.
    pub(crate) fn said(&self) -> String {
        self.machine.said(&self.name)
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
        let from = self.said().len();
        let id = self.tell(script, limit)?;
        poll(&format!("in {}, `{script}`", self.name), limit + Duration::from_secs(30), || {
            self.machine.check_alive()?;
            agent::answer(self.said().get(from..).unwrap_or_default(), id)
        })
    }

    /// Has a script run that may never answer, as one that ends the guest; gives its number.
    pub(crate) fn tell(&self, script: &str, limit: Duration) -> Result<u32> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let line = agent::request(id, limit, script)?;
        let terminal = self.terminal()?.clone();
        self.machine.dom0(&format!("echo '{line}' > {terminal}"))?;
        Ok(id)
    }

    /// Attaches `target` of the domain `backend` as `vdev`, and waits for the guest's block device.
    ///
    /// # Errors
    /// `xl block-attach` fails, or no device appears.
    pub(crate) fn attach(&self, vdev: &str, backend: &str, target: &str) -> Result<()> {
        self.machine.dom0(&attach_command(&self.name, vdev, backend, target))?;
        self.wait_disk(vdev)
    }

    /// Waits for a block device that has been attached.
    ///
    /// # Errors
    /// None appears.
    pub(crate) fn wait_disk(&self, vdev: &str) -> Result<()> {
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
    let (manner, options) = (Manner::usual(), format!("console=hvc0 hostname={name} shell"));
    configure(machine, name, &options, manner.system.config(), manner)
}

/// Writes the guest's configuration. The TSC is as on a host whose processor says that it is invariant, which the emulated one
/// does not: otherwise Xen would emulate every reading of it.
fn configure(
    machine: &Machine,
    name: &str,
    kernel_options: &str,
    config: &str,
    manner: Manner,
) -> Result<()> {
    let quoted: Vec<String> = manner.disks.iter().map(|disk| format!("\"{disk}\"")).collect();
    let Manner { vcpus, memory, on_crash, .. } = manner;
    let common = format!(
        "type=\"pv\"\nvcpus={vcpus}\nmemory={memory}\ntsc_mode=\"native\"\non_crash=\"{on_crash}\"\ndisk=[{}]\n",
        quoted.join(",")
    );
    let path = machine.run().share().join(format!("{name}.cfg"));
    fs::write(path, format!("name=\"{name}\"\n{common}extra=\"{kernel_options}\"\n{config}"))?;
    Ok(())
}

/// The line a user types to attach a disk.
pub(crate) fn attach_command(guest: &str, vdev: &str, backend: &str, target: &str) -> String {
    format!("xl block-attach {guest} '{}'", disk_spec(vdev, backend, target))
}

/// A disk as a guest's configuration has it.
pub(crate) fn disk_spec(vdev: &str, backend: &str, target: &str) -> String {
    format!("format=raw,vdev={vdev},access=rw,backend={backend},target={target}")
}
