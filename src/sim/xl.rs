//! The commands of `xl`, as an administrator gives them: what the toolstack does to xenstore and,
//! at the same time, what happens to the guests. Neighbours: `toolstack`, which does the former.

use core::ops::Range;
use core::time::Duration;

use super::frontend::{Frontend, front_path};
use super::intruder::Intruder;
use super::requests::Load;
use super::shadow::Shadow;
use super::toolstack::{self, Disk, JobId, Outcome};
use super::world::State;
use crate::units::DomId;

impl State {
    /// A domain's number that no other has had.
    pub fn new_domain(&mut self) -> DomId {
        self.last_domain.0 += 1;
        self.last_domain
    }

    /// A new guest, without disks.
    pub fn create_guest(&mut self, guest: DomId) {
        toolstack::create_guest(&mut self.machine, guest);
    }

    /// `xl create` with disks: the guest does not run before all of them are offered, and when one
    /// is not, it never does.
    pub fn create(&mut self, guest: DomId, disks: Vec<Frontend>) {
        let places = self.prepare(disks);
        self.start(guest, places);
    }

    /// Frontends of a guest that does not run yet.
    fn prepare(&mut self, disks: Vec<Frontend>) -> Range<usize> {
        let first = self.frontends.len();
        for mut frontend in disks {
            frontend.pause(&mut self.machine, false);
            self.frontends.push(frontend);
        }
        first..self.frontends.len()
    }

    fn start(&mut self, guest: DomId, places: Range<usize>) {
        self.create_guest(guest);
        let disks = self.frontends[places].iter().map(Frontend::disk);
        let jobs: Vec<JobId> = disks.map(|disk| self.toolstack.attach(&mut self.machine, disk)).collect();
        self.after(&jobs.clone(), move |state| {
            if jobs.iter().all(|job| state.toolstack.outcome(*job) == Some(Outcome::Done)) {
                state.unpause(guest);
            } else {
                state.destroy(guest);
            }
        });
    }

    /// `xl block-attach`: the guest's driver finds the device and puts the load on it. `shadow` is
    /// what was written to the disk before. Returns the job and the place in [`State::frontends`].
    /// The device may be there already: then it is removed and made anew at once.
    pub fn attach(&mut self, disk: &Disk, load: Load, shadow: Shadow) -> (JobId, usize) {
        let is_there = self.machine.tree.exists(&front_path(disk.guest, disk.dev));
        for old in self.frontends.iter_mut().filter(|old| old.guest() == disk.guest && old.dev() == disk.dev)
        {
            if is_there {
                old.vanish();
            } else {
                old.unplug(&mut self.machine);
            }
        }
        let job = self.toolstack.attach(&mut self.machine, disk);
        self.frontends.push(Frontend::new(disk, load, shadow));
        (job, self.frontends.len() - 1)
    }

    /// `xl block-detach`, with or without `--force`.
    pub fn detach(&mut self, guest: DomId, dev: u32, force: bool) -> JobId {
        self.toolstack.detach(&mut self.machine, guest, dev, force)
    }

    /// `xl create` of a guest that keeps no rules, until so long after now, with a disk of so many sectors.
    pub fn create_intruder(&mut self, disk: &Disk, sectors: u64, time: Duration) -> JobId {
        self.create_guest(disk.guest);
        let job = self.toolstack.attach(&mut self.machine, disk);
        let until = self.machine.now + time;
        self.intruders.push(Intruder::new(&mut self.machine, disk, sectors, until));
        job
    }

    /// `xl destroy`.
    pub fn destroy(&mut self, guest: DomId) -> Vec<JobId> {
        alive(&mut self.frontends, guest).for_each(Frontend::vanish);
        let intruders = self.intruders.iter_mut().filter(|intruder| intruder.disk().guest == guest);
        intruders.for_each(Intruder::vanish);
        self.toolstack.destroy(&mut self.machine, guest)
    }

    /// `xl reboot`: the guest is destroyed, and created again as `new` with the same disks.
    pub fn reboot(&mut self, guest: DomId, new: DomId) {
        let disks = alive(&mut self.frontends, guest).map(|frontend| frontend.reborn(new)).collect();
        self.follow(guest, new, disks);
    }

    /// `xl save` and `xl restore`: the guest goes on as `new` where it was.
    pub fn migrate(&mut self, guest: DomId, new: DomId) {
        let machine = &mut self.machine;
        let disks =
            alive(&mut self.frontends, guest).map(|frontend| frontend.restored(machine, new)).collect();
        self.follow(guest, new, disks);
    }

    fn follow(&mut self, guest: DomId, new: DomId, disks: Vec<Frontend>) {
        let places = self.prepare(disks);
        let jobs = self.destroy(guest);
        self.after(&jobs, move |state| {
            // Until then the old one is a zombie, which may still write.
            if state.machine.grants.mapped_from(guest) == 0 {
                state.start(new, places);
            } else {
                state.frontends[places].iter_mut().for_each(Frontend::vanish);
            }
        });
    }

    /// `xl pause`; with `full` the guest has filled its rings just before.
    pub fn pause(&mut self, guest: DomId, full: bool) {
        alive(&mut self.frontends, guest).for_each(|frontend| frontend.pause(&mut self.machine, full));
    }

    /// `xl unpause`.
    pub fn unpause(&mut self, guest: DomId) {
        alive(&mut self.frontends, guest).for_each(|frontend| frontend.unpause(self.machine.now));
    }
}

/// The disks that a guest has now.
fn alive(frontends: &mut [Frontend], guest: DomId) -> impl Iterator<Item = &mut Frontend> {
    frontends.iter_mut().filter(move |frontend| frontend.guest() == guest && frontend.is_alive())
}
