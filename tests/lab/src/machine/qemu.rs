//! The emulated hardware: QEMU's command line and the life of its process.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::run::Run;
use super::{BLOCK_SIZE, Controller, Disk, Disks, Spec};
use crate::{paths, process};

/// No machine outlives this, even when the lab is killed.
const LIFETIME_SECONDS: u32 = 3 * 3600;

/// A running QEMU, ended on drop.
pub(super) struct Qemu {
    child: Mutex<Child>,
}

impl Qemu {
    /// Starts it. The machine's console and the agent's port are sockets in `sockets`.
    pub(super) fn start(spec: &Spec, run: &Run, sockets: &Path) -> Result<Self> {
        let mut command = Command::new("timeout");
        command.args(["--foreground", &LIFETIME_SECONDS.to_string(), "qemu-system-x86_64"]);
        base(&mut command, spec, run, sockets);
        for controller in &spec.controllers {
            nvme(&mut command, spec, controller, run)?;
        }
        fs::write(run.folder().join("qemu.command"), process::line(&command) + "\n")?;
        let log = File::create(run.qemu_log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Out of the terminal's reach: Ctrl-C is the lab's to handle, which ends the machine on its way out.
        command.process_group(0);
        let child = command.spawn().context("cannot start QEMU")?;
        Ok(Self { child: Mutex::new(child) })
    }

    /// # Errors
    /// QEMU has ended.
    pub(super) fn check_alive(&self) -> Result<()> {
        match self.child()?.try_wait()? {
            Some(status) => bail!("the emulated machine ended ({status})"),
            None => Ok(()),
        }
    }

    /// Ends it without a chance to do anything more.
    ///
    /// # Errors
    /// It cannot be killed.
    pub(super) fn kill(&self) -> Result<()> {
        let mut child = self.child()?;
        // `timeout` cannot hand this signal on; the two are a process group of their own.
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("QEMU's process id")?;
        kill_process_group(group, Signal::KILL)?;
        child.wait()?;
        Ok(())
    }

    fn child(&self) -> Result<std::sync::MutexGuard<'_, Child>> {
        self.child.lock().map_err(|_| anyhow::anyhow!("another thread failed while it held the machine"))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let Ok(mut child) = self.child() else { return };
        // `timeout` hands the signal on to QEMU; both are gone when it is.
        if let (Ok(None), Ok(pid)) = (child.try_wait(), i32::try_from(child.id())) {
            let sent = Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
            if sent {
                drop(child.wait());
            }
        }
    }
}

/// Processor, memory, IOMMU, Xen with dom0 as its module, console, agent's port, the shared folders.
///
/// Without xsave: with it, several PV domains corrupt each other's SIMD registers under emulation. Without smap: with
/// it, a PV dom0 crashes in its first seconds on Debian 12's QEMU 7.2.
fn base(command: &mut Command, spec: &Spec, run: &Run, sockets: &Path) {
    let machine = paths::machine();
    let file = |name: &str| machine.join(name).display().to_string();
    let xen = format!(
        "com1=115200,8n1 console=com1 dom0_mem=1024M,max:1024M dom0_max_vcpus=1 loglvl=all guest_loglvl=all \
         bootscrub=false {}",
        spec.xen_options
    );
    let dom0 = format!("console=hvc0 xenstore={}", spec.daemon.program());
    command.args([
        "-accel",
        "tcg",
        "-cpu",
        "max,-xsave,-smap,-x2apic",
        "-machine",
        "q35",
        "-smp",
        &spec.processors.to_string(),
        "-m",
        "4G",
    ]);
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-device", "intel-iommu,intremap=on"]);
    command.args(["-kernel", &file("xen"), "-append", &xen]);
    command.args(["-initrd", &format!("{} {dom0},{}", file("vmlinux"), file("control.cpio"))]);
    let socket = |id: &str| format!("socket,id={id},path={},server=on,wait=off", sockets.join(id).display());
    let log = run.machine_log().display().to_string();
    command.args(["-chardev", &format!("{},logfile={log}", socket("console")), "-serial", "chardev:console"]);
    command.args(["-chardev", &socket("agent"), "-device", "virtio-serial-pci"]);
    command.args(["-device", "virtserialport,chardev=agent,name=agent"]);
    for (tag, folder, more) in [("lab", machine, ",readonly=on"), ("share", run.share(), "")] {
        let path = folder.display();
        command.args(["-fsdev", &format!("local,id={tag},path={path},security_model=none{more}")]);
        command.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }
    command.args(["-trace", "pci_nvme_flush*", "-trace", "pci_nvme_mmio_shutdown_set"]);
}

/// One controller with its namespaces. The host's page cache is the disk's volatile cache, so a flush must reach
/// the file: never cache=unsafe.
fn nvme(command: &mut Command, spec: &Spec, controller: &Controller, run: &Run) -> Result<()> {
    let id = &controller.id;
    let place = format!("bus=pcie.0,addr={:x}", controller.slot);
    command.args(["-device", &format!("nvme,id={id},serial={},{place}", controller.serial)]);
    for namespace in 1..=Controller::NAMESPACES {
        let (drive, disk) = (format!("{id}n{namespace}"), spec.disk(run, controller, namespace));
        command.args(medium(&drive, &disk, &spec.disks)?);
        command.args(["-device", &format!("nvme-ns,drive={drive},bus={id},nsid={namespace}")]);
    }
    Ok(())
}

/// What QEMU calls `drive`: a disk's file, which is made when it is to be fresh, with its log if it has one.
fn medium(drive: &str, disk: &Disk, disks: &Disks) -> Result<[String; 2]> {
    let (path, log) = (disk.path().display(), disk.log());
    match disks {
        Disks::Fresh => disk.create()?,
        Disks::Kept(_) => {}
        Disks::Logged(_) => {
            File::create(&log)?;
            let (options, log) = ("discard=unmap,log-sector-size", log.display());
            let files = format!("file.driver=file,file.filename={path},log.driver=file,log.filename={log}");
            let node = format!("driver=blklogwrites,node-name={drive},{options}={BLOCK_SIZE},{files}");
            return Ok(["-blockdev".to_owned(), node]);
        }
    }
    Ok(["-drive".to_owned(), format!("file={path},if=none,id={drive},format=raw,cache=writeback")])
}
