//! What libxl does to a backend in another domain: attach, detach with and without force, and the
//! destruction of a guest. It reads a state some time after it changed, as a real one does.

mod nodes;
#[cfg(test)]
mod tests;

use core::time::Duration;

use nodes::{bury, clean, write_device};
pub use nodes::{create_driver_domain, create_guest};

use super::frontend::{back_path, front_path};
use super::machine::{DRIVER, Machine};
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
    /// `devtype=cdrom`.
    pub cdrom: bool,
}

impl Disk {
    /// A disk that its guest may read and write.
    #[must_use]
    pub fn new(guest: DomId, dev: u32, target: &str) -> Self {
        Self { guest, dev, target: target.into(), readonly: false, cdrom: false }
    }
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
    /// All disks that were ever attached.
    disks: Vec<Disk>,
    seen: u64,
}

impl Toolstack {
    /// Writes the directories of a device, in one transaction, and waits for the backend.
    pub fn attach(&mut self, machine: &mut Machine, disk: &Disk) -> JobId {
        write_device(machine, disk);
        self.disks.push(disk.clone());
        self.begin(machine, disk.guest, disk.dev, Phase::WaitInitWait)
    }

    /// Writes the directories of a device that needs QEMU, as of `format=qcow2`, and waits for nobody.
    pub fn attach_qdisk(&mut self, machine: &mut Machine, disk: &Disk) {
        nodes::write_qdisk(machine, disk);
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

    /// The targets of all disks that a guest has, or had: what was taken from it may still be at work.
    pub fn targets(&self, guest: DomId) -> impl Iterator<Item = &str> {
        self.disks.iter().filter(move |disk| disk.guest == guest).map(|disk| disk.target.as_str())
    }

    /// What became of a job, if it is over.
    #[must_use]
    pub fn outcome(&self, job: JobId) -> Option<Outcome> {
        match self.jobs[job.0].phase {
            Phase::Over(outcome) => Some(outcome),
            Phase::WaitInitWait | Phase::WaitClosed | Phase::WaitRemoved => None,
        }
    }

    /// Jobs that ended because nobody answered.
    #[must_use]
    pub fn timed_out(&self) -> usize {
        self.jobs.iter().filter(|job| job.phase == Phase::Over(Outcome::TimedOut)).count()
    }

    /// Whether it is at work on a guest's devices.
    #[must_use]
    pub fn is_busy(&self, guest: DomId) -> bool {
        self.jobs.iter().any(|job| job.guest == guest && !job.is_over())
    }

    /// When it acts next.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        let waiting = self.jobs.iter().filter(|job| !job.is_over());
        waiting.flat_map(|job| job.looks.into_iter().chain([job.until])).min()
    }

    /// Something may have changed in xenstore: it will look soon.
    pub fn notice(&mut self, machine: &mut Machine) {
        if self.seen != machine.tree.generation() {
            self.seen = machine.tree.generation();
            for job in self.jobs.iter_mut().filter(|job| !job.is_over()) {
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
        if destroys && others.all(Job::is_over) {
            bury(machine, guest);
        }
    }
}

impl Job {
    const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

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
