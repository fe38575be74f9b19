//! What a guest does to its disk by itself, or suffers: reloads and crashes of its driver, pauses,
//! suspends. Each is one that Linux or libxl knows.

use super::{Disk, Frontend, Sent, Stage};
use crate::sim::machine::Machine;
use crate::sim::requests::plan::Plan;
use crate::units::{DomId, Instant};

/// Batches of requests that a guest makes just before it is paused.
const RUSH: u32 = 32;

impl Frontend {
    /// Closes the device from inside the guest once nothing is in flight, and opens it again if
    /// `reopens`, as a driver does that is unloaded or reloaded.
    pub fn close(&mut self, now: Instant, reopens: bool) {
        if self.stage == Stage::Connected {
            self.stage = Stage::Finishing;
            self.reopens = reopens;
            self.looks = Some(now);
        }
    }

    /// A new kernel finds the device as the old one left it, which was in the middle of its work
    /// (`xenbus_reset_frontend` after kexec).
    pub fn kexec(&mut self, machine: &mut Machine) {
        if matches!(self.stage, Stage::Offered | Stage::Connected | Stage::Finishing) {
            self.forget();
            self.unlink(machine);
            self.reopens = true;
            self.enter(machine, Stage::Closing, 5);
        }
    }

    /// The driver starts from the beginning, and says so, without having closed.
    pub fn restart(&mut self, machine: &mut Machine) {
        if matches!(self.stage, Stage::Offered | Stage::Connected | Stage::Finishing) {
            self.forget();
            self.unlink(machine);
            self.reopens = false;
            self.enter(machine, Stage::Waiting, 1);
        }
    }

    /// Gives the device up at once, requests in flight and all, and opens it again if `reopens`.
    pub fn slam(&mut self, machine: &mut Machine, reopens: bool) {
        if matches!(self.stage, Stage::Offered | Stage::Connected | Stage::Finishing) {
            self.reopens = reopens;
            self.enter(machine, Stage::Closed, 6);
        }
    }

    /// Shows a new ring while the backend is connected, for all requests in flight to go into: a
    /// suspend that was cancelled, in a guest that does not know of such (`blkfront_resume`).
    pub fn renew(&mut self, machine: &mut Machine) {
        if self.stage == Stage::Connected {
            self.to_repeat = self.repeated(machine).into();
            self.unlink(machine);
            self.offer(machine);
        }
    }

    /// From now on it publishes its ring without waiting for InitWait.
    pub fn hurry(&mut self) {
        self.hasty = true;
    }

    /// The guest gets no processor any more. With `full` its rings are by then.
    pub fn pause(&mut self, machine: &mut Machine, full: bool) {
        if full {
            (0..RUSH).for_each(|_| self.submit(machine));
        }
        self.paused.get_or_insert(machine.now);
    }

    /// The guest goes on.
    pub fn unpause(&mut self, now: Instant) {
        if let Some(since) = self.paused.take() {
            self.outstanding.values_mut().for_each(|sent| sent.request.excuse(now.since(since)));
        }
    }

    /// The guest notices at last that the device is gone.
    pub fn unplug(&mut self, machine: &mut Machine) {
        if self.is_alive() {
            self.look(machine);
        }
    }

    /// The guest is no more, or this device is another's now: rings, grants and ports stay as they
    /// are.
    pub fn vanish(&mut self) {
        self.forget();
        self.stage = Stage::Vanished;
    }

    /// The same disk in another domain, which the guest was restored to: its requests in flight are
    /// made again there. This one is no more.
    #[must_use]
    pub fn restored(&mut self, machine: &mut Machine, guest: DomId) -> Self {
        let to_repeat = self.repeated(machine).into();
        Self { to_repeat, hasty: true, ..self.reborn(guest) }
    }

    /// The same disk in another domain, which the guest was started in again. This one is no more.
    #[must_use]
    pub fn reborn(&mut self, guest: DomId) -> Self {
        self.vanish();
        let disk = Disk { guest, ..self.disk.clone() };
        Self { wish: self.wish, ..Self::new(&disk, self.load.clone(), self.take_shadow()) }
    }

    /// What is in flight, to be made once more, in its order.
    fn repeated(&mut self, machine: &mut Machine) -> Vec<Plan> {
        let mut sent: Vec<Sent> = core::mem::take(&mut self.outstanding).into_values().collect();
        sent.sort_by_key(|sent| sent.serial);
        let mut plans = Vec::new();
        for Sent { request, .. } in sent {
            let (plan, pages) = request.into_parts();
            plans.push(plan.again(&mut machine.rng));
            self.left.extend(pages);
        }
        plans.extend(self.to_repeat.drain(..));
        plans
    }
}
