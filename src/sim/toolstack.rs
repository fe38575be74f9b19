//! What libxl does to a backend in another domain: attach, detach with and without force, and the
//! destruction of a guest. It reads a state some time after it changed, as a real one does.

use core::time::Duration;

use super::frontend::{back_path, front_path};
use super::machine::{DOM0, DRIVER, Machine};
use super::tree::Perms;
use crate::units::{DomId, Instant};

/// libxl's patience with each step (`LIBXL_INIT_TIMEOUT`, `LIBXL_DESTROY_TIMEOUT`).
const PATIENCE: Duration = Duration::from_secs(10);

/// The slowest it is to read a node that has changed, in nanoseconds.
const SAMPLING: u64 = 100_000_000;

/// What became of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As it should.
    Done,
    /// The backend's directory went away while libxl waited for a state.
    Gone,
    /// Ten seconds passed.
    TimedOut,
}

/// Which disk to attach, as in `xl block-attach`.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The guest.
    pub guest: DomId,
    /// The number of the virtual device, as 51728 for xvdb.
    pub dev: u32,
    /// `target=`.
    pub target: String,
    /// `access=ro`.
    pub readonly: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    WaitInitWait,
    WaitClosed,
    WaitRemoved,
    Over(Outcome),
}

#[derive(Debug)]
struct Job {
    guest: DomId,
    dev: u32,
    phase: Phase,
    until: Instant,
    looks: Option<Instant>,
    /// The guest goes too, once its last device is off.
    destroys: bool,
}

/// Names a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobId(usize);

/// The toolstack and its jobs.
#[derive(Debug, Default)]
pub struct Toolstack {
    jobs: Vec<Job>,
    seen: u64,
}

impl Toolstack {
    /// Writes the directories of a device, in one transaction, and waits for the backend.
    pub fn attach(&mut self, machine: &mut Machine, disk: &Disk) -> JobId {
        write_device(machine, disk);
        self.begin(machine, disk.guest, disk.dev, Phase::WaitInitWait)
    }

    /// Asks the backend to close and waits for it; with `force` without the guest.
    pub fn detach(&mut self, machine: &mut Machine, guest: DomId, dev: u32, force: bool) -> JobId {
        if force {
            machine.tree.remove(&front_path(guest, dev));
        }
        let state = format!("{}/state", back_path(guest, dev));
        let phase = match machine.tree.text(&state) {
            Some("6") => Phase::WaitClosed,
            Some(_) => {
                machine.tree.write(&state, 5);
                Phase::WaitClosed
            }
            None => Phase::Over(Outcome::Done),
        };
        if phase == Phase::WaitClosed {
            machine.tree.write(&format!("{}/online", back_path(guest, dev)), 0);
        } else {
            clean(machine, guest, dev);
        }
        self.begin(machine, guest, dev, phase)
    }

    /// Detaches all of a guest's devices by force; then the guest is no more. It is paused already.
    pub fn destroy(&mut self, machine: &mut Machine, guest: DomId) -> Vec<JobId> {
        let devices = machine.tree.children(&format!("/local/domain/{DRIVER}/backend/vbd/{guest}"));
        let devices: Vec<u32> = devices.iter().filter_map(|dev| dev.parse().ok()).collect();
        let jobs: Vec<JobId> = devices.iter().map(|dev| self.detach(machine, guest, *dev, true)).collect();
        for job in &jobs {
            self.jobs[job.0].destroys = true;
        }
        if jobs.is_empty() {
            bury(machine, guest);
        }
        jobs
    }

    /// What became of a job, if it is over.
    #[must_use]
    pub fn outcome(&self, job: JobId) -> Option<Outcome> {
        match self.jobs[job.0].phase {
            Phase::Over(outcome) => Some(outcome),
            Phase::WaitInitWait | Phase::WaitClosed | Phase::WaitRemoved => None,
        }
    }

    /// When it acts next.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        let waiting = self.jobs.iter().filter(|job| !matches!(job.phase, Phase::Over(_)));
        waiting.flat_map(|job| job.looks.into_iter().chain([job.until])).min()
    }

    /// Something may have changed in xenstore: it will look soon.
    pub fn notice(&mut self, machine: &mut Machine) {
        if self.seen != machine.tree.generation() {
            self.seen = machine.tree.generation();
            for job in &mut self.jobs {
                let soon = machine.now + Duration::from_nanos(machine.rng.within(0..SAMPLING));
                job.looks.get_or_insert(soon);
            }
        }
    }

    /// Looks at what is due.
    pub fn step(&mut self, machine: &mut Machine) {
        for i in 0..self.jobs.len() {
            let job = &mut self.jobs[i];
            let due = job.looks.is_some_and(|at| at <= machine.now);
            if due || job.until <= machine.now {
                job.looks = None;
                job.look(machine);
                self.bury_detached(machine, i);
            }
        }
    }

    fn begin(&mut self, machine: &Machine, guest: DomId, dev: u32, phase: Phase) -> JobId {
        let until = machine.now + PATIENCE;
        let looks = Some(machine.now);
        self.jobs.push(Job { guest, dev, phase, until, looks, destroys: false });
        JobId(self.jobs.len() - 1)
    }

    fn bury_detached(&mut self, machine: &mut Machine, job: usize) {
        let (guest, destroys) = (self.jobs[job].guest, self.jobs[job].destroys);
        let mut others = self.jobs.iter().filter(|job| job.guest == guest && job.destroys);
        if destroys && others.all(|job| matches!(job.phase, Phase::Over(_))) {
            bury(machine, guest);
        }
    }
}

impl Job {
    fn look(&mut self, machine: &mut Machine) {
        let backend = back_path(self.guest, self.dev);
        let state = machine.tree.text(&format!("{backend}/state")).unwrap_or("").to_string();
        let next = match (self.phase, state.as_str()) {
            (Phase::WaitInitWait, "2") => Phase::Over(Outcome::Done),
            (Phase::WaitClosed, "6") => Phase::WaitRemoved,
            (Phase::WaitInitWait | Phase::WaitClosed, "") => Phase::Over(Outcome::Gone),
            (Phase::WaitRemoved, _) if !machine.tree.exists(&backend) => Phase::Over(Outcome::Done),
            (Phase::WaitInitWait | Phase::WaitClosed | Phase::WaitRemoved, _)
                if self.until <= machine.now =>
            {
                Phase::Over(Outcome::TimedOut)
            }
            (Phase::WaitInitWait | Phase::WaitClosed | Phase::WaitRemoved | Phase::Over(_), _) => return,
        };
        if self.phase != Phase::WaitInitWait && matches!(next, Phase::Over(_)) {
            clean(machine, self.guest, self.dev);
        }
        self.phase = next;
        self.until = machine.now + PATIENCE;
    }
}

/// The nodes of both ends; what was there before goes in the same transaction.
fn write_device(machine: &mut Machine, disk: &Disk) {
    let Disk { guest, dev, .. } = *disk;
    let (front, back) = (front_path(guest, dev), back_path(guest, dev));
    let tree = &mut machine.tree;
    tree.remove(&front);
    tree.remove(&back);
    tree.write_for(&back, "", Perms { owner: DRIVER, reader: guest });
    let letter = char::from(b'a' + (dev / 16 % 16) as u8);
    for (node, value) in [
        ("frontend", front.as_str()),
        ("params", &disk.target),
        ("script", "/etc/xen/scripts/block"),
        ("frontend-id", &guest.to_string()),
        ("online", "1"),
        ("removable", "1"),
        ("bootable", "1"),
        ("state", "1"),
        ("dev", &format!("xvd{letter}")),
        ("type", "phy"),
        ("mode", if disk.readonly { "r" } else { "w" }),
        ("device-type", "disk"),
        ("discard-enable", if disk.readonly { "0" } else { "1" }),
        ("specification", "xen"),
    ] {
        tree.write(&format!("{back}/{node}"), value);
    }
    tree.write_for(&front, "", Perms { owner: guest, reader: DRIVER });
    for (node, value) in [
        ("backend", back.as_str()),
        ("backend-id", &DRIVER.to_string()),
        ("state", "1"),
        ("virtual-device", &dev.to_string()),
        ("device-type", "disk"),
        ("trusted", "1"),
    ] {
        tree.write(&format!("{front}/{node}"), value);
    }
}

/// What libxl removes when a device is off: both ends, and parents that are empty now.
fn clean(machine: &mut Machine, guest: DomId, dev: u32) {
    machine.tree.remove(&front_path(guest, dev));
    machine.tree.remove(&back_path(guest, dev));
    let top = format!("/local/domain/{DRIVER}/backend");
    for parent in [format!("{top}/vbd/{guest}"), format!("{top}/vbd"), top] {
        if machine.tree.children(&parent).is_empty() {
            machine.tree.remove(&parent);
        }
    }
}

fn bury(machine: &mut Machine, guest: DomId) {
    machine.tree.remove(&format!("/local/domain/{guest}"));
    machine.ports.bury(guest);
    machine.grants.bury(guest);
}

/// The directories that a guest has from its creation on.
pub fn create_guest(machine: &mut Machine, guest: DomId) {
    let home = format!("/local/domain/{guest}");
    machine.tree.write_for(&home, "", Perms { owner: DOM0, reader: guest });
    machine.tree.write(&format!("{home}/name"), format_args!("guest{guest}"));
    machine.tree.write(&format!("{home}/device"), "");
}

/// The directories that the driver domain has from its creation on.
pub fn create_driver_domain(machine: &mut Machine) {
    let home = format!("/local/domain/{DRIVER}");
    machine.tree.write_for(&home, "", Perms { owner: DOM0, reader: DRIVER });
    machine.tree.write(&format!("{home}/domid"), DRIVER);
    for (node, value) in [("name", "platter"), ("control/platform-feature-xs_reset_watches", "1")] {
        machine.tree.write(&format!("{home}/{node}"), value);
    }
    let own = Perms { owner: DRIVER, reader: DRIVER };
    let control =
        ["shutdown", "feature-poweroff", "feature-reboot", "sysrq"].map(|node| format!("control/{node}"));
    for node in control.iter().map(String::as_str).chain(["data", "error", "device"]) {
        machine.tree.write_for(&format!("{home}/{node}"), "", own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(5);
    const DEV: u32 = 51728;

    fn attached() -> (Machine, Toolstack, JobId, String) {
        let mut machine = Machine::new(1, 8);
        let mut toolstack = Toolstack::default();
        create_driver_domain(&mut machine);
        let disk = Disk { guest: GUEST, dev: DEV, target: "/dev/nvme0n1".into(), readonly: false };
        let job = toolstack.attach(&mut machine, &disk);
        (machine, toolstack, job, format!("{}/state", back_path(GUEST, DEV)))
    }

    fn later(machine: &mut Machine, toolstack: &mut Toolstack, wait: Duration) {
        toolstack.notice(machine);
        machine.now = machine.now + wait;
        toolstack.step(machine);
    }

    #[test]
    fn only_state_2_exactly_ends_an_attach_well() {
        let (mut machine, mut toolstack, job, state) = attached();
        machine.tree.write(&state, 4);
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        assert_eq!(toolstack.outcome(job), None);
        later(&mut machine, &mut toolstack, Duration::from_secs(10));
        assert_eq!(toolstack.outcome(job), Some(Outcome::TimedOut));
        let (mut machine, mut toolstack, job, state) = attached();
        machine.tree.write(&state, 2);
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        assert_eq!(toolstack.outcome(job), Some(Outcome::Done));
    }

    #[test]
    fn a_directory_that_goes_away_ends_an_attach_at_once() {
        let (mut machine, mut toolstack, job, _) = attached();
        machine.tree.remove(&back_path(GUEST, DEV));
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        assert_eq!(toolstack.outcome(job), Some(Outcome::Gone));
        assert!(machine.tree.exists(&front_path(GUEST, DEV)), "left for block-detach");
        let job = toolstack.detach(&mut machine, GUEST, DEV, false);
        assert_eq!(toolstack.outcome(job), Some(Outcome::Done));
        assert!(!machine.tree.exists(&front_path(GUEST, DEV)));
    }

    #[test]
    fn a_detach_must_read_6_and_then_see_the_directory_go() {
        let (mut machine, mut toolstack, _, state) = attached();
        let job = toolstack.detach(&mut machine, GUEST, DEV, false);
        assert_eq!(machine.tree.text(&state), Some("5"));
        machine.tree.write(&state, 6);
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        assert_eq!(toolstack.outcome(job), None);
        machine.tree.remove(&back_path(GUEST, DEV));
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        assert_eq!(toolstack.outcome(job), Some(Outcome::Done));
        assert!(!machine.tree.exists("/local/domain/3/backend"));
        let (mut machine, mut toolstack, _, _) = attached();
        let job = toolstack.detach(&mut machine, GUEST, DEV, false);
        machine.tree.remove(&back_path(GUEST, DEV));
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        assert_eq!(toolstack.outcome(job), Some(Outcome::Gone), "6 was never read");
    }

    #[test]
    fn a_destroyed_guest_is_gone_when_its_last_device_is() {
        let (mut machine, mut toolstack, _, state) = attached();
        machine.tree.write("/local/domain/5/name", "guest");
        let jobs = toolstack.destroy(&mut machine, GUEST);
        assert!(!machine.tree.exists(&front_path(GUEST, DEV)));
        machine.tree.write(&state, 6);
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        machine.tree.remove(&back_path(GUEST, DEV));
        assert!(machine.tree.exists("/local/domain/5"));
        later(&mut machine, &mut toolstack, Duration::from_secs(1));
        assert_eq!(toolstack.outcome(jobs[0]), Some(Outcome::Done));
        assert!(!machine.tree.exists("/local/domain/5"));
    }
}
