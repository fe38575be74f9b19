//! How PCI functions come to the driver domain and leave it: libxl's `xl pci-attach` and
//! `pci-detach` (libxl 4.17, libxl_pci.c), and the xenbus side of pciback (Linux,
//! drivers/xen/xen-pciback/xenbus.c).

use core::time::Duration;

use super::lent::Lent;
use super::machine::{DOM0, DRIVER, Machine, Violation};
use super::toolstack::Outcome;
use super::tree::Perms;
use crate::mem::frame::Frame;
use crate::units::{GrantRef, Instant, Port};

const FRONT: &str = "/local/domain/3/device/pci/0";
const BACK: &str = "/local/domain/0/backend/pci/3/0";

/// The slowest anybody is to look at xenstore after a change, in nanoseconds.
const NOTICE: u64 = 5_000_000;

/// libxl's patience with each step (`libxl__wait_for_backend`).
const PATIENCE: Duration = Duration::from_secs(10);

/// What happens to a function before the driver domain hears that it is to leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// It is reset, and the IOMMU closed to it: what libxl does.
    Reset,
    /// It cannot be reset, which libxl only logs; the IOMMU is closed to it.
    CutOff,
    /// Nothing.
    Announced,
}

/// What the toolstack wants of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Want {
    Attached,
    Detached,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// For the one before to be done.
    WaitConnected,
    /// For this one to be done.
    WaitTaken,
    Over(Outcome),
}

#[derive(Debug)]
struct Job {
    number: usize,
    want: Want,
    phase: Phase,
    until: Instant,
}

/// Names a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciJobId(usize);

/// The shared page and its event channel.
#[derive(Debug)]
struct Link {
    page: Frame,
    port: Port,
}

/// The conversation.
#[derive(Debug, Default)]
pub struct Lending {
    link: Option<Link>,
    jobs: Vec<Job>,
    seen: u64,
    looks: Option<Instant>,
}

impl Lending {
    /// Writes the directories of a domain that is created with so many functions, and what pciback
    /// makes of them.
    pub(super) fn give(machine: &mut Machine, count: usize) {
        create(machine);
        for number in 0..count {
            lend(machine, number, number);
        }
        machine.tree.write(&format!("{BACK}/num_devs"), count);
        machine.tree.write(&format!("{BACK}/state"), 3);
    }

    /// What became of a job, if it is over.
    #[must_use]
    pub fn outcome(&self, job: PciJobId) -> Option<Outcome> {
        match self.jobs[job.0].phase {
            Phase::Over(outcome) => Some(outcome),
            Phase::WaitConnected | Phase::WaitTaken => None,
        }
    }

    /// What became of all jobs so far.
    pub fn outcomes(&self) -> impl Iterator<Item = Option<Outcome>> {
        (0..self.jobs.len()).map(|job| self.outcome(PciJobId(job)))
    }

    /// When anything of it acts next.
    pub(super) fn next_event(&self, machine: &Machine) -> Option<Instant> {
        let asked = self.link.as_ref().and_then(|link| machine.ports.pending(DOM0, link.port));
        let jobs = self.jobs.iter().filter(|job| !matches!(job.phase, Phase::Over(_)));
        jobs.map(|job| job.until).chain(asked).chain(self.looks).min()
    }

    /// Something may have changed in xenstore: all look soon.
    pub(super) fn notice(&mut self, machine: &mut Machine) {
        if self.seen != machine.tree.generation() {
            self.seen = machine.tree.generation();
            let soon = machine.now + Duration::from_nanos(machine.rng.within(0..NOTICE));
            self.looks.get_or_insert(soon);
        }
    }

    fn begin(&mut self, machine: &Machine, number: usize, want: Want) -> PciJobId {
        let until = machine.now + PATIENCE;
        self.jobs.push(Job { number, want, phase: Phase::WaitConnected, until });
        self.looks = Some(machine.now);
        PciJobId(self.jobs.len() - 1)
    }

    /// pciback's end of the shared page and port goes.
    fn disconnect(&mut self, machine: &mut Machine) {
        if let Some(link) = self.link.take() {
            machine.ports.close(DOM0, link.port);
        }
    }

    /// pciback attaches once the frontend has published its page.
    fn connect(&mut self, machine: &mut Machine) {
        let number = |node: &str| text(machine, &format!("{FRONT}/{node}")).parse::<u32>().ok();
        let granted =
            number("pci-op-ref").and_then(|gref| machine.grants.granted(DRIVER, GrantRef(gref), DOM0));
        let remote = number("event-channel");
        let bound = remote.map(|port| machine.ports.bind(DOM0, DRIVER, Port(port), machine.now));
        let (Some(mfn), Some(Ok(port))) = (granted, bound) else {
            machine.violated(Violation::Device("pcifront published no page, or no port".into()));
            return;
        };
        self.link = Some(Link { page: machine.memory.frame(mfn), port });
        machine.tree.write(&format!("{BACK}/state"), 4);
    }
}

impl Lent {
    /// `xl pci-attach` of a controller by its number.
    pub fn attach(&mut self, machine: &mut Machine, number: usize) -> PciJobId {
        self.slots[number].assigned = true;
        self.lending.begin(machine, number, Want::Attached)
    }

    /// `xl pci-detach` of a controller by its number.
    pub fn detach(&mut self, machine: &mut Machine, number: usize, manner: Manner) -> PciJobId {
        let slot = &mut self.slots[number];
        if manner == Manner::Reset {
            slot.controller.reset();
        }
        slot.assigned = manner == Manner::Announced;
        self.lending.begin(machine, number, Want::Detached)
    }

    /// Does what is due.
    pub(super) fn lend(&mut self, machine: &mut Machine) {
        if self.lending.looks.is_some_and(|at| at <= machine.now) {
            self.lending.looks = None;
            self.look(machine);
        }
        if let Some(link) = &self.lending.link
            && machine.ports.take(DOM0, link.port)
            && self.pciback.step(link.page)
        {
            machine.notify(DOM0, link.port);
        }
        // One at a time: libxl holds a lock.
        let next = self.lending.jobs.iter().position(|job| !matches!(job.phase, Phase::Over(_)));
        if let Some(job) = next {
            self.go_on(machine, job);
        }
    }

    /// pciback looks at both states.
    fn look(&mut self, machine: &mut Machine) {
        let state = |path: &str| text(machine, &format!("{path}/state"));
        let (front, back) = (state(FRONT), state(BACK));
        match (front.as_str(), back.as_str()) {
            ("", _) | (_, "") => {
                self.lending.disconnect(machine);
                self.take_back_all(machine);
            }
            (_, "1") => {
                self.reconfigure(machine);
                machine.tree.write(&format!("{BACK}/state"), 3);
            }
            ("3", "3") if self.lending.link.is_none() => self.lending.connect(machine),
            ("7", "7") => {
                self.reconfigure(machine);
                machine.tree.write(&format!("{BACK}/state"), 8);
            }
            ("4", "8") => machine.tree.write(&format!("{BACK}/state"), 4),
            ("6", state) if state != "6" => {
                self.lending.disconnect(machine);
                machine.tree.write(&format!("{BACK}/state"), 6);
            }
            _ => {}
        }
    }

    /// pciback lends what is new, and takes back what is to go.
    fn reconfigure(&mut self, machine: &mut Machine) {
        for n in 0..count(machine) {
            let number = number_of(machine, n);
            match text(machine, &format!("{BACK}/state-{n}")).as_str() {
                "1" => {
                    self.pciback.functions[number].lent = true;
                    lend(machine, n, number);
                }
                "5" => self.take_back(machine, number),
                _ => {}
            }
        }
    }

    fn take_back(&mut self, machine: &mut Machine, number: usize) {
        let (slot, function) = (&mut self.slots[number], &mut self.pciback.functions[number]);
        if function.lent && slot.mapped > 0 {
            machine.violated(Violation::Device("its registers are mapped when it is taken back".into()));
        }
        if function.lent && function.msix {
            machine.violated(Violation::Device("it has interrupts when it is taken back".into()));
        }
        function.take_back();
        slot.controller.reset();
    }

    fn take_back_all(&mut self, machine: &mut Machine) {
        for number in 0..self.slots.len() {
            if self.pciback.functions[number].lent {
                self.take_back(machine, number);
            }
        }
    }

    /// libxl looks at the backend's state.
    fn go_on(&mut self, machine: &mut Machine, job: usize) {
        let Job { number, want, phase, until } = self.lending.jobs[job];
        let exists = machine.tree.exists(BACK);
        let is_connected = text(machine, &format!("{BACK}/state")) == "4";
        let next = match (phase, want) {
            (Phase::WaitConnected, Want::Attached) if !exists => {
                create(machine);
                announce(machine, number, 1);
                Phase::Over(Outcome::Done)
            }
            (Phase::WaitConnected, Want::Attached) if is_connected => {
                announce(machine, number, 7);
                Phase::Over(Outcome::Done)
            }
            (Phase::WaitConnected, Want::Detached) if is_connected => {
                if let Some(n) = (0..count(machine)).find(|n| number_of(machine, *n) == number) {
                    machine.tree.write(&format!("{BACK}/state-{n}"), 5);
                    machine.tree.write(&format!("{BACK}/state"), 7);
                    Phase::WaitTaken
                } else {
                    Phase::Over(Outcome::Gone)
                }
            }
            (Phase::WaitTaken, _) if is_connected => {
                forget(machine, number);
                Phase::Over(Outcome::Done)
            }
            (Phase::WaitConnected | Phase::WaitTaken, _) if until <= machine.now => {
                Phase::Over(Outcome::TimedOut)
            }
            (Phase::WaitConnected | Phase::WaitTaken | Phase::Over(_), _) => return,
        };
        let job = &mut self.lending.jobs[job];
        (job.phase, job.until) = (next, machine.now + PATIENCE);
    }
}

fn text(machine: &Machine, path: &str) -> String {
    machine.tree.text(path).unwrap_or("").to_string()
}

/// How many functions the toolstack has written down.
fn count(machine: &Machine) -> usize {
    text(machine, &format!("{BACK}/num_devs")).parse().unwrap_or(0)
}

/// The number of the controller that the n-th of them is.
fn number_of(machine: &Machine, n: usize) -> usize {
    let address = text(machine, &format!("{BACK}/dev-{n}"));
    let bus = address.get(5..7).and_then(|bus| usize::from_str_radix(bus, 16).ok());
    bus.expect("written by us") - 1
}

/// The directories of both ends.
fn create(machine: &mut Machine) {
    let tree = &mut machine.tree;
    tree.write_for(BACK, "", Perms { owner: DOM0, reader: DRIVER });
    tree.write_for(FRONT, "", Perms { owner: DRIVER, reader: DOM0 });
    for (node, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
        tree.write(&format!("{FRONT}/{node}"), value);
    }
    for (node, value) in
        [("frontend", FRONT), ("frontend-id", "3"), ("online", "1"), ("root_num", "1"), ("root-0", "0000:00")]
    {
        tree.write(&format!("{BACK}/{node}"), value);
    }
}

/// The toolstack writes one more function down.
fn announce(machine: &mut Machine, number: usize, state: u32) {
    let n = count(machine);
    machine.tree.write(&format!("{BACK}/dev-{n}"), address(number));
    machine.tree.write(&format!("{BACK}/state-{n}"), 1);
    machine.tree.write(&format!("{BACK}/num_devs"), n + 1);
    machine.tree.write(&format!("{BACK}/state"), state);
}

/// pciback says where the n-th function is.
fn lend(machine: &mut Machine, n: usize, number: usize) {
    machine.tree.write(&format!("{BACK}/dev-{n}"), address(number));
    machine.tree.write(&format!("{BACK}/vdev-{n}"), format_args!("0000:00:{number:02x}.00"));
    machine.tree.write(&format!("{BACK}/state-{n}"), 3);
}

fn address(number: usize) -> String {
    format!("0000:{:02x}:00.0", number + 1)
}

/// The toolstack forgets a function that was taken back; those after it move up. With the last one
/// both directories go.
fn forget(machine: &mut Machine, number: usize) {
    let count = count(machine);
    let Some(gone) = (0..count).find(|n| number_of(machine, *n) == number) else { return };
    for n in gone..count {
        for node in ["dev", "vdev", "state"] {
            let next = machine.tree.text(&format!("{BACK}/{node}-{}", n + 1)).map(str::to_string);
            machine.tree.remove(&format!("{BACK}/{node}-{n}"));
            if let Some(next) = next {
                machine.tree.write(&format!("{BACK}/{node}-{n}"), next);
            }
        }
    }
    machine.tree.write(&format!("{BACK}/num_devs"), count - 1);
    if count == 1 {
        machine.tree.remove(FRONT);
        machine.tree.remove(BACK);
    }
}
