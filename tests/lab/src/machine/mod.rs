//! The emulated Xen machine: QEMU with Xen and a Linux control domain, whose agent runs commands for us.
//!
//! [`qemu`] is the hardware, [`run`] the folder with its logs, [`agent`] the protocol with the agents,
//! [`guest`] a Linux guest, [`frontend`] one that checks or attacks, [`platter`] the domain under test, [`disk`] what the NVMe controllers keep,
//! [`holdings`] what a domain has of the hypervisor's and xenstore's.

mod agent;
mod disk;
mod frontend;
mod guest;
mod holdings;
mod platter;
mod qemu;
mod run;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

pub(crate) use self::agent::{Answer, poll};
pub(crate) use self::disk::{BLOCK_SIZE, DISK_SIZE, Disk, fill};
pub(crate) use self::frontend::Frontend;
pub(crate) use self::guest::{Linux, Manner, System, attach_command, disk_spec, offer_guest};
pub(crate) use self::holdings::{Holdings, zombies};
pub(crate) use self::platter::{NAME, Platter, Settings};
pub(crate) use self::run::Run;

/// Emulation is slow, and two machines share the host: limits are far above what is usually seen.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// What one command in dom0 may take unless more is asked for.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Which xenstore daemon dom0 runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Daemon {
    /// Debian's default, written in OCaml.
    Oxenstored,
    /// The older one, written in C.
    Xenstored,
}

impl Daemon {
    /// Its program's name.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Oxenstored => "oxenstored",
            Self::Xenstored => "xenstored",
        }
    }
}

/// An emulated NVMe controller with two namespaces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Controller {
    /// QEMU's name for it, which also names the disks' files.
    id: &'static str,
    /// Its serial number.
    serial: &'static str,
    /// PCI slot on bus 0.
    slot: u8,
}

impl Controller {
    /// Namespaces of each controller.
    const NAMESPACES: u32 = 2;
    /// The one platter gets.
    pub(crate) const PLATTER: Self = Self { id: "nv0", serial: "PLATTER0", slot: 5 };
    /// The one the Linux driver domain gets.
    pub(crate) const LINUX: Self = Self { id: "nv1", serial: "LINUX0", slot: 6 };
    /// One that dom0 keeps for itself.
    pub(crate) const CONTROL: Self = Self { id: "nv2", serial: "CONTROL0", slot: 7 };
    /// One whose disks nobody reads or writes.
    pub(crate) const UNUSED: Self = Self { id: "nv3", serial: "UNUSED0", slot: 8 };

    /// As `xl` names it.
    pub(crate) fn pci(&self) -> String {
        format!("0000:00:{:02x}.0", self.slot)
    }

    /// The disk of a namespace, counted from 1, among others in a folder.
    pub(crate) fn disk(&self, folder: &Path, namespace: u32) -> Disk {
        Disk::new(folder.join(format!("{}n{namespace}.raw", self.id)), namespace)
    }
}

/// Where the controllers' disks come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disks {
    /// Fresh ones in the run's folder, with a known pattern; a machine that ends well removes them.
    Fresh,
    /// Those of this folder, as they are; they stay.
    Kept(PathBuf),
    /// The same, and QEMU logs every write, discard and flush of each in [`Disk::log`].
    Logged(PathBuf),
}

/// What machine to boot.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// Names the run's folder.
    pub(crate) name: String,
    pub(crate) daemon: Daemon,
    pub(crate) controllers: Vec<Controller>,
    pub(crate) disks: Disks,
    /// More of Xen's command line.
    pub(crate) xen_options: &'static str,
    /// One as a rule: what Xen's debug keys print is whole then before dom0 goes on.
    pub(crate) processors: u32,
}

impl Spec {
    fn disk(&self, run: &Run, controller: &Controller, namespace: u32) -> Disk {
        let folder = match &self.disks {
            Disks::Fresh => run.folder(),
            Disks::Kept(folder) | Disks::Logged(folder) => folder,
        };
        controller.disk(folder, namespace)
    }
}

/// A machine that runs; it ends on drop.
pub(crate) struct Machine {
    // Declared first, so dropped first: sockets and folder go after the process that uses them.
    qemu: qemu::Qemu,
    agent: Mutex<Agent>,
    sockets: tempfile::TempDir,
    run: Run,
    spec: Spec,
}

struct Agent {
    port: UnixStream,
    last_id: u32,
}

impl Machine {
    /// Boots Xen and the control domain and waits for its agent; the controllers are set aside for passthrough.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) fn boot(spec: Spec) -> Result<Self> {
        let run = Run::new(&spec.name)?;
        let sockets = tempfile::tempdir()?;
        let qemu = qemu::Qemu::start(&spec, &run, sockets.path())?;
        let path = sockets.path().join("agent");
        let port = poll("QEMU's agent socket", COMMAND_LIMIT, || {
            qemu.check_alive().with_context(|| fs::read_to_string(run.qemu_log()).unwrap_or_default())?;
            Ok(UnixStream::connect(&path).ok())
        })?;
        port.set_read_timeout(Some(Duration::from_millis(100)))?;
        let machine = Self { qemu, agent: Mutex::new(Agent { port, last_id: 0 }), sockets, run, spec };
        machine.wait_for_agent().context("booting Xen and dom0").map_err(|error| machine.explain(error))?;
        for controller in &machine.spec.controllers {
            machine.dom0(&format!("xl pci-assignable-add {}", controller.pci()))?;
        }
        Ok(machine)
    }

    /// Ends the machine and removes fresh disks; the logs stay. Dropping a machine keeps its disks, to look into.
    ///
    /// # Errors
    /// A disk cannot be removed.
    pub(crate) fn end(self) -> Result<()> {
        let Self { qemu, run, spec, .. } = self;
        drop(qemu);
        if spec.disks != Disks::Fresh {
            return Ok(());
        }
        for controller in &spec.controllers {
            for namespace in 1..=Controller::NAMESPACES {
                fs::remove_file(spec.disk(&run, controller, namespace).path())?;
            }
        }
        Ok(())
    }

    /// Cuts the power: everything in the machine stops where it is. What its disks were given by then is in their files.
    ///
    /// # Errors
    /// The process cannot be killed, or does not end.
    pub(crate) fn cut_power(self) -> Result<()> {
        self.qemu.kill()?;
        let mut agent = self.agent()?;
        // A thread of QEMU's may still be in the middle of a write; its sockets close after that.
        poll("the end of QEMU", COMMAND_LIMIT, || match agent.port.read(&mut [0; 65536]) {
            Ok(0) => Ok(Some(())),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(Some(())),
            _ => Ok(None),
        })
    }

    /// Runs a shell script in dom0 and gives what it printed.
    ///
    /// # Errors
    /// It ends with another code than 0, or not within [`COMMAND_LIMIT`].
    pub(crate) fn dom0(&self, script: &str) -> Result<String> {
        self.dom0_answer(script, COMMAND_LIMIT)?.success("dom0", script)
    }

    /// Runs a shell script in dom0, whatever it ends with.
    pub(crate) fn dom0_answer(&self, script: &str, limit: Duration) -> Result<Answer> {
        let mut agent = self.agent()?;
        agent.last_id += 1;
        let id = agent.last_id;
        let line = agent::request(id, limit, script)? + "\n";
        agent.port.write_all(line.as_bytes()).context("writing to dom0's agent")?;
        let mut said = String::new();
        poll(&format!("in dom0, `{script}`"), limit + Duration::from_secs(30), || {
            self.receive(&mut agent.port, &mut said)?;
            agent::answer(&said, id)
        })
    }

    fn agent(&self) -> Result<MutexGuard<'_, Agent>> {
        self.agent.lock().map_err(|_| anyhow!("another thread failed while it held dom0's agent"))
    }

    fn wait_for_agent(&self) -> Result<()> {
        let mut agent = self.agent()?;
        let mut said = String::new();
        poll("dom0's agent", BOOT_LIMIT, || {
            self.receive(&mut agent.port, &mut said)?;
            Ok(said.contains("@lab up").then_some(()))
        })
    }

    fn receive(&self, port: &mut UnixStream, said: &mut String) -> Result<()> {
        let mut buffer = [0_u8; 65536];
        match port.read(&mut buffer) {
            Ok(0) => bail!("the emulated machine has gone"),
            Ok(count) => said.push_str(&String::from_utf8_lossy(&buffer[..count])),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.check_alive()?
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading from dom0's agent"),
        }
        Ok(())
    }

    /// # Errors
    /// The machine has ended.
    pub(crate) fn check_alive(&self) -> Result<()> {
        self.qemu.check_alive()
    }

    /// A disk of one of its controllers; namespaces count from 1.
    pub(crate) fn disk(&self, controller: &Controller, namespace: u32) -> Disk {
        self.spec.disk(&self.run, controller, namespace)
    }

    pub(crate) fn run(&self) -> &Run {
        &self.run
    }

    /// dom0 takes a controller back from passthrough, and drives it itself.
    ///
    /// # Errors
    /// Its disks do not appear.
    pub(crate) fn keep(&self, controller: &Controller) -> Result<()> {
        let pci = controller.pci();
        let modules = "while read -r module; do insmod $module; done < /modules/disk";
        let device = "until [ -b /dev/nvme0n2 ]; do sleep 0.1; done";
        self.dom0(&format!(
            "if [ ! -b /dev/nvme0n1 ]; then xl pci-assignable-remove {pci} && {modules}; fi && {device}"
        ))
        .map(drop)
    }

    /// Gives dom0 a QEMU that serves disks.
    ///
    /// # Errors
    /// It cannot be unpacked.
    pub(crate) fn unpack_qemu(&self) -> Result<()> {
        // Files that are there already are left alone, and that is said.
        self.dom0("cd / && cpio -id < /lab/qemu.cpio 2>/dev/null").map(drop)
    }

    /// Has a domain's processors be one of the machine's.
    pub(crate) fn pin(&self, domain: &str, processor: u32) -> Result<()> {
        self.dom0(&format!("xl vcpu-pin {domain} all {processor}")).map(drop)
    }

    /// CPU time a domain has used, in nanoseconds.
    pub(crate) fn cpu_time(&self, domain: u32) -> Result<u64> {
        self.dom0(&format!("domain-cpu-time {domain}"))?.parse().context("domain-cpu-time printed no number")
    }

    /// What Xen's debug key prints. Xen does it before the one processor returns to dom0.
    pub(crate) fn xen_dump(&self, key: char) -> Result<String> {
        self.dom0(&format!("xl dmesg -c >/dev/null; xl debug-keys {key}; xl dmesg"))
    }

    pub(crate) fn daemon(&self) -> Daemon {
        self.spec.daemon
    }

    /// The socket of Xen's and dom0's console.
    pub(crate) fn console_socket(&self) -> PathBuf {
        self.sockets.path().join("console")
    }

    /// What a domain, or all of one name, said on its console so far. A later text starts with an earlier one.
    pub(crate) fn said(&self, domain: &str) -> String {
        let bytes = fs::read(self.run.console(domain)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// What QEMU traced so far.
    pub(crate) fn trace(&self) -> Result<String> {
        fs::read_to_string(self.run.qemu_log()).context("no QEMU log")
    }

    /// Adds the last lines of the machine's logs to an error, and the folder that has all of them.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut said = format!("{error:#}\n");
        let mut logs = vec![(self.run.machine_log(), 8), (self.run.qemu_log(), 4)];
        let consoles = fs::read_dir(self.run.share().join("console")).into_iter().flatten().flatten();
        let of_domains = consoles.filter(|entry| entry.file_name().to_string_lossy().starts_with("guest-"));
        logs.extend(of_domains.map(|entry| (entry.path(), 10)));
        for (path, count) in logs {
            let text =
                fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            let visible: Vec<&str> = text.lines().filter(|line| !line.starts_with("@lab")).collect();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            said += &format!("--- the end of {name}\n{}\n", crate::process::tail(&visible.join("\n"), count));
        }
        anyhow!("{said}--- all logs: {}", self.run.folder().display())
    }
}
