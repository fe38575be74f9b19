//! The machine with everybody who is measured: backends, each with a controller of its own, and guests that have a disk of
//! each. Guests share one processor and backends, dom0 among them, the other.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::job::Job;
use super::series::{Median, Sample};
use crate::fio::{self, Measure};
use crate::machine::{
    Controller, DISK_SIZE, Daemon, Disks, Linux, Machine, Manner, NAME, Platter, Settings, Spec, disk_spec,
};
use crate::parallel::each_at_once;
use crate::progress::Step;

/// The Linux driver domain's name.
pub(super) const DRIVER_DOMAIN: &str = "linux";
/// The platter that answers without its disk.
const CEILING: &str = "ceiling";
/// Those who use the disks.
pub(super) const GUESTS: [&str; 4] = ["alice", "bob", "carol", "dave"];
/// The processor of all guests, and that of all who serve.
const GUESTS_PROCESSOR: u32 = 0;
const SERVERS_PROCESSOR: u32 = 1;
/// libxl needs some 12 s to take a dead domain's controller back.
const END_LIMIT: Duration = Duration::from_secs(180);
/// MiB of a partition: a disk has two for each guest.
const PARTITION: u64 = (DISK_SIZE >> 20) / (GUESTS.len() as u64 * 2) - 1;

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Server {
    Platter,
    DriverDomain,
    ControlDomain,
    Qdisk,
    /// platter, when it answers reads and writes at once: what a frontend and Xen can do at most.
    Ceiling,
}

/// A server, and whether guests let their pages stay mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Contender {
    pub(super) server: Server,
    pub(super) persistent: bool,
}

/// All of them, as tables have them. qdisk copies, and takes no persistent grants.
pub(super) const CONTENDERS: &[Contender] = &[
    Contender { server: Server::Platter, persistent: true },
    Contender { server: Server::DriverDomain, persistent: true },
    Contender { server: Server::ControlDomain, persistent: true },
    Contender { server: Server::Qdisk, persistent: false },
    Contender { server: Server::Platter, persistent: false },
    Contender { server: Server::DriverDomain, persistent: false },
    Contender { server: Server::ControlDomain, persistent: false },
    Contender { server: Server::Ceiling, persistent: true },
];

impl Contender {
    pub(super) fn name(self) -> String {
        let server = match self.server {
            Server::Platter => "platter",
            Server::DriverDomain => "Linux driver domain",
            Server::ControlDomain => "dom0 blkback",
            Server::Qdisk => return "qdisk".to_owned(),
            Server::Ceiling => return "ceiling".to_owned(),
        };
        if self.persistent { server.to_owned() } else { format!("{server}, mapping") }
    }

    /// The platter that this one is held against: the one with the same grants where there is one.
    pub(super) fn opponent(self) -> Self {
        Self { server: Server::Platter, persistent: self.persistent || self.server == Server::Qdisk }
    }

    /// What every guest calls its disk.
    fn vdev(self) -> String {
        let number = CONTENDERS.iter().position(|other| *other == self).unwrap_or_default();
        format!("xvd{}", char::from(b'b' + number as u8))
    }

    /// The disk of the guest with this number, as its configuration has it.
    fn disk(self, guest: usize) -> String {
        let partition = 2 * guest + if self.persistent { 1 } else { 2 };
        let vdev = self.vdev();
        let from_dom0 = |kind: &str, namespace: u32| {
            format!(
                "format=raw,vdev={vdev},access=rw,backendtype={kind},target=/dev/nvme0n{namespace}p{partition}"
            )
        };
        let target = format!("/dev/nvme0n1p{partition}");
        match self.server {
            Server::Platter => disk_spec(&vdev, NAME, &target),
            Server::DriverDomain => disk_spec(&vdev, DRIVER_DOMAIN, &target),
            Server::Ceiling => disk_spec(&vdev, CEILING, &target),
            Server::ControlDomain => from_dom0("phy", 1),
            Server::Qdisk => from_dom0("qdisk", 2),
        }
    }
}

/// Seconds of CPU time that platter takes for an attach.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Attach {
    /// Until the toolstack has its disk offered.
    pub(super) offer: Median,
    /// From when the frontend looks at it until platter's state is Connected.
    pub(super) connect: Median,
    /// The same until the guest has its disk: it reads some of it first.
    pub(super) settle: Median,
}

/// Who is there.
pub(super) struct Cast<'c> {
    pub(super) contenders: &'c [Contender],
    pub(super) guests: usize,
    /// The image that answers at once, when it is among them.
    pub(super) ceiling: Option<&'c Path>,
}

/// Boots the machine, with a partition for each guest on every disk.
///
/// # Errors
/// It does not come up.
pub(super) fn boot(step: &Step) -> Result<Machine> {
    step.now("booting Xen and dom0");
    let controllers = vec![Controller::PLATTER, Controller::LINUX, Controller::CONTROL, Controller::UNUSED];
    let machine = Machine::boot(Spec {
        name: "bench".to_owned(),
        daemon: Daemon::Oxenstored,
        controllers: controllers.clone(),
        disks: Disks::Fresh,
        xen_options: "",
        processors: 2,
    })?;
    let table = "label: gpt\n".to_owned() + &format!("size={PARTITION}MiB\n").repeat(GUESTS.len() * 2);
    for controller in &controllers {
        for namespace in [1, 2] {
            machine.disk(controller, namespace).partition(&table)?;
        }
    }
    machine.pin("Domain-0", SERVERS_PROCESSOR)?;
    Ok(machine)
}

/// Everybody, ready to be measured.
pub(super) struct Stage<'m> {
    pub(super) machine: &'m Machine,
    pub(super) guests: Vec<Linux<'m>>,
    pub(super) linux: Linux<'m>,
    domains: Vec<(Server, u32)>,
    /// Nanoseconds of CPU time a second that each server's domain uses while guests do nothing but answer the lab.
    idle: Vec<(Server, f64)>,
}

impl<'m> Stage<'m> {
    /// Brings all of them up.
    ///
    /// # Errors
    /// Somebody does not come up.
    pub(super) fn set(machine: &'m Machine, step: &Step, cast: &Cast) -> Result<Self> {
        step.now("starting platter");
        let settings = Settings { options: "log=info", ..Settings::usual() };
        let platter = Platter::create(machine, settings)?;
        platter.wait_ready()?;
        machine.pin(NAME, SERVERS_PROCESSOR)?;
        let mut domains =
            vec![(Server::Platter, platter.id()), (Server::ControlDomain, 0), (Server::Qdisk, 0)];
        if let Some(kernel) = cast.ceiling {
            step.now("starting the platter that answers at once");
            let controllers = &[Controller::UNUSED];
            let ceiling = Platter::create(
                machine,
                Settings { name: CEILING, kernel: Some(kernel), controllers, ..settings },
            )?;
            ceiling.wait_ready()?;
            machine.pin(CEILING, SERVERS_PROCESSOR)?;
            domains.push((Server::Ceiling, ceiling.id()));
        }
        step.now("starting the Linux driver domain");
        let linux = Linux::driver_domain(machine, DRIVER_DOMAIN, &Controller::LINUX)?;
        machine.pin(DRIVER_DOMAIN, SERVERS_PROCESSOR)?;
        domains.push((Server::DriverDomain, linux.id()?));
        step.now("dom0 takes its controller");
        machine.keep(&Controller::CONTROL)?;
        machine.unpack_qemu()?;
        let mut guests = Vec::new();
        for (number, name) in GUESTS.iter().enumerate().take(cast.guests) {
            step.now(&format!("booting {name} with {} disks", cast.contenders.len()));
            guests.push(boot_guest(machine, name, number, cast.contenders)?);
        }
        let mut stage = Self { machine, guests, linux, domains, idle: Vec::new() };
        step.now("measuring them idle");
        for (server, _) in stage.domains.clone() {
            let idle = stage.idle_cost(server)?;
            stage.idle.push((server, idle));
        }
        Ok(stage)
    }

    /// The domain that serves.
    pub(super) fn domain(&self, server: Server) -> Result<u32> {
        let found = self.domains.iter().find(|(known, _)| *known == server);
        found.map(|(_, domain)| *domain).with_context(|| format!("nobody is {server:?}"))
    }

    /// Nanoseconds of CPU time a second without requests.
    fn idle_cost(&self, server: Server) -> Result<f64> {
        const SECONDS: u32 = 3;
        let domain = self.domain(server)?;
        let before = self.machine.cpu_time(domain)?;
        each_at_once(&self.guests, |guest| {
            guest.run(&format!("sleep {SECONDS}"))?;
            guest.run("true").map(drop)
        })?;
        Ok((self.machine.cpu_time(domain)? - before) as f64 / f64::from(SECONDS))
    }

    /// A job on the first `guests` at once, for some seconds.
    ///
    /// # Errors
    /// A request failed, or nothing was done.
    pub(super) fn measure(
        &self,
        contender: Contender,
        job: &Job,
        guests: usize,
        seconds: u32,
    ) -> Result<Sample> {
        let domain = self.domain(contender.server)?;
        let before = self.machine.cpu_time(domain)?;
        let measures = self.run(contender, job, guests, seconds)?;
        let used = (self.machine.cpu_time(domain)? - before) as f64;
        let idle = self.idle.iter().find(|(server, _)| *server == contender.server);
        let without = idle.map_or(0.0, |(_, idle)| idle * f64::from(seconds));
        let sum = |of: fn(&Measure) -> f64| measures.iter().map(of).sum::<f64>();
        let requests = sum(|measure| measure.outcome.requests as f64);
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Sample {
            iops: sum(|measure| measure.outcome.requests_per_second()),
            megabytes_per_second: sum(|measure| measure.outcome.megabytes_per_second()),
            mean_ms: measures.iter().map(|one| milliseconds(one.mean)).sum::<f64>() / measures.len() as f64,
            p99_ms: measures.iter().map(|one| milliseconds(one.p99)).fold(0.0, f64::max),
            cpu_us: (used - without).max(0.0) / requests / 1e3,
        })
    }

    /// What those who serve take of memory.
    ///
    /// # Errors
    /// Nobody says.
    pub(super) fn memory(&self) -> Result<Vec<(&'static str, String)>> {
        let of = |name: &str| self.machine.dom0(&format!("xl list {name} | awk 'NR == 2 {{ print $3 }}'"));
        let used = self.linux.run(
            "awk '/^MemTotal/ { all = $2 } /^MemAvailable/ { print int((all - $2) / 1024) }' /proc/meminfo",
        )?;
        let qemu = self.machine.dom0(
            "cat /proc/[0-9]*/status 2>/dev/null | awk '/^Name/ { qemu = $2 ~ /^xen-qemu|^qemu/ } qemu && /^VmRSS/ { print int($2 / 1024) }' | head -n 1",
        )?;
        Ok(vec![
            ("platter", format!("{} MiB in all", of(NAME)?)),
            (
                "the Linux driver domain",
                format!("{} MiB given, {used} MiB not available", of(DRIVER_DOMAIN)?),
            ),
            ("qdisk", format!("{qemu} MiB resident in dom0, a process a guest")),
        ])
    }

    /// What an attach takes of platter, each time: the guest's driver is held back until the disk is offered.
    ///
    /// # Errors
    /// The disk does not come or go.
    pub(super) fn attach(&self, times: u32) -> Result<Attach> {
        let (contender, guest) = (CONTENDERS[0], &self.guests[0]);
        let (vdev, platter) = (contender.vdev(), self.domain(Server::Platter)?);
        let used = || self.machine.cpu_time(platter);
        // The first line is the watch itself, the second the next state.
        let watch = format!(
            "rm -f /tmp/states; d=/local/domain/{platter}/backend/vbd/{}; \
             for v in $(xenstore-list $d); do [ $(xenstore-read $d/$v/state) = 2 ] && offered=$d/$v/state; done; \
             {{ xenstore-watch -n 2 $offered | domain-cpu-time {platter} each-line >/tmp/states; }} >/dev/null 2>&1 </dev/null & \
             until [ -s /tmp/states ]; do usleep 10000; done",
            guest.id()?
        );
        let bind = "for d in /sys/bus/xen/devices/vbd-*; do \
                    [ -e $d/driver ] || echo ${d##*/} > /sys/bus/xen/drivers/vbd/bind; done";
        let seconds = |from: u64, to: u64| (to - from) as f64 / 1e9;
        let [mut offers, mut connects, mut settles] = [const { Vec::new() }; 3];
        for _ in 0..times {
            guest.detach(&vdev)?;
            guest.run("echo 0 > /sys/bus/xen/drivers_autoprobe")?;
            let before = used()?;
            self.machine.dom0(&format!("xl block-attach {} '{}'", guest.name(), contender.disk(0)))?;
            let offered = used()?;
            self.machine.dom0(&watch)?;
            guest.run(bind)?;
            guest.wait_disk(&vdev)?;
            let settled = used()?;
            let connected = self
                .machine
                .dom0("until [ $(wc -l </tmp/states) = 2 ]; do usleep 10000; done; tail -n 1 /tmp/states")?;
            let connected = connected.parse().context("domain-cpu-time printed no number")?;
            offers.push(seconds(before, offered));
            connects.push(seconds(offered, connected));
            settles.push(seconds(offered, settled));
            guest.run("echo 1 > /sys/bus/xen/drivers_autoprobe")?;
        }
        let [offer, connect, settle] =
            [offers, connects, settles].map(|values| Median::of(values.into_iter()));
        Ok(Attach { offer, connect, settle })
    }

    /// Ends all domains but dom0, and waits until their controllers are free.
    ///
    /// # Errors
    /// One stays.
    pub(super) fn end(self) -> Result<()> {
        let script = "for d in $(xl list | awk 'NR > 2 { print $1 }'); do xl destroy $d; done; \
                      while [ $(xl list | wc -l) -gt 2 ]; do sleep 0.5; done";
        self.machine.dom0_answer(script, END_LIMIT)?.success("dom0", script).map(drop)
    }

    /// What the job came to in each guest.
    ///
    /// # Errors
    /// As [`Self::measure`].
    pub(super) fn run(
        &self,
        contender: Contender,
        job: &Job,
        guests: usize,
        seconds: u32,
    ) -> Result<Vec<Measure>> {
        let vdev = contender.vdev();
        let measures =
            each_at_once(&self.guests[..guests], |guest| fio::timed(guest, &vdev, job.options, seconds))?;
        for measure in &measures {
            let Measure { outcome, .. } = measure;
            ensure!(
                outcome.errors == 0 && outcome.requests > 0,
                "{} on {}: {outcome:?}",
                job.name,
                contender.name()
            );
        }
        Ok(measures)
    }
}

/// Boots a guest, and attaches its disks: those of qdisk from the start, since QEMU is started with the guest.
fn boot_guest<'m>(
    machine: &'m Machine,
    name: &str,
    number: usize,
    contenders: &[Contender],
) -> Result<Linux<'m>> {
    let is_first = |contender: &&Contender| contender.server == Server::Qdisk;
    let first: Vec<String> =
        contenders.iter().filter(is_first).map(|contender| contender.disk(number)).collect();
    let guest = Linux::guest_with(machine, name, Manner { disks: &first, ..Manner::usual() })?;
    machine.pin(name, GUESTS_PROCESSOR)?;
    for contender in contenders.iter().filter(|contender| number == 0 || contender.server != Server::Ceiling)
    {
        if !is_first(&contender) {
            let persistent = u8::from(contender.persistent);
            guest.run(&format!(
                "echo {persistent} > /sys/module/xen_blkfront/parameters/feature_persistent"
            ))?;
            machine.dom0(&format!("xl block-attach {name} '{}'", contender.disk(number)))?;
        }
        guest.wait_disk(&contender.vdev())?;
    }
    Ok(guest)
}
