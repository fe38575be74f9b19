//! The data path of a frontend: requests out, answers in, by the rules of the rings.

use core::time::Duration;

use super::{Frontend, Sent, Stage};
use crate::sim::abi::{Entry, OKAY, SEGMENTS};
use crate::sim::machine::{Machine, Violation};
use crate::sim::requests::Request;
use crate::sim::requests::plan::Plan;

/// The longest a guest thinks between two batches of requests, in nanoseconds.
const THINK: u64 = 300_000;

impl Frontend {
    /// Publishes a few requests at once, in one queue.
    pub(super) fn submit(&mut self, machine: &mut Machine) {
        let has_room = |queue: &usize| self.queues[*queue].ring.room() > 0;
        let queues: Vec<usize> = (0..self.queues.len()).filter(has_room).collect();
        if self.stage != Stage::Connected || queues.is_empty() {
            return;
        }
        let queue = queues[machine.rng.index(queues.len())];
        for _ in 0..machine.rng.within(1..9) {
            let full = self.queues[queue].ring.room() == 0 || self.outstanding.len() >= self.load.depth;
            if full || !self.has_more() {
                break;
            }
            if let Some(plan) = self.next_plan(machine) {
                self.send(machine, queue, plan);
            }
        }
        let Some(link) = self.queues.get_mut(queue) else { return };
        if link.ring.publish() {
            machine.notify(self.disk.guest, link.port);
        }
        self.think(machine);
    }

    fn has_more(&self) -> bool {
        self.load.requests > 0 || !self.to_repeat.is_empty()
    }

    /// What is to be made once more comes first, in pieces that the backend takes.
    fn next_plan(&mut self, machine: &mut Machine) -> Option<Plan> {
        if let Some(plan) = self.to_repeat.pop_front() {
            let mut pieces = plan.split(self.features.segments.max(SEGMENTS)).into_iter();
            let first = pieces.next();
            pieces.rev().for_each(|piece| self.to_repeat.push_front(piece));
            return first;
        }
        let others = self.outstanding.values().map(|sent| sent.request.plan());
        let plan = Plan::draw(&mut machine.rng, &self.load, self.features, &mut self.shadow, others);
        self.load.requests -= u32::from(plan.is_some());
        plan
    }

    fn send(&mut self, machine: &mut Machine, queue: usize, plan: Plan) {
        let mut request = Request::new(machine, &mut self.pool, self.features, plan);
        if request.plan().is_barrier() {
            let before = self.outstanding.values().filter(|sent| sent.queue == queue);
            request.promise(before.flat_map(|sent| sent.request.plan().written()));
        }
        let ring = &mut self.queues[queue].ring;
        ring.push(&request.entry(machine, ring.abi()));
        let serial = self.sent;
        self.sent += 1;
        self.outstanding.insert(request.id(), Sent { request, queue, serial });
    }

    /// Sets the time of the next requests; with full rings an answer must come first.
    pub(super) fn think(&mut self, machine: &mut Machine) {
        let has_room = self.queues.iter().any(|queue| queue.ring.room() > 0);
        let more = self.has_more() && has_room && self.outstanding.len() < self.load.depth;
        if more && self.stage == Stage::Connected && self.submits.is_none() {
            self.submits = Some(machine.now + Duration::from_nanos(machine.rng.within(1..THINK)));
        }
    }

    /// The interrupt handler: takes the responses, and in a later step asks for the next event and
    /// looks once more. Without an event it does nothing, whatever is in the ring.
    pub(super) fn handle(&mut self, machine: &mut Machine, queue: usize) {
        let link = &mut self.queues[queue];
        if link.handling.is_some() {
            let more = link.ring.arm();
            link.handling = None;
            if !more {
                return;
            }
        } else if !machine.ports.take(self.disk.guest, link.port) {
            return;
        }
        link.handling = Some(machine.now + Duration::from_nanos(machine.rng.within(1..5_000)));
        loop {
            match self.queues[queue].ring.pop() {
                Ok(Some(entry)) => self.take_response(machine, queue, &entry),
                Ok(None) => break,
                Err(_) => {
                    machine.violated(Violation::RingOverrun(self.disk.guest));
                    break;
                }
            }
        }
        if self.stage == Stage::Finishing {
            self.looks.get_or_insert(machine.now);
        }
        self.think(machine);
    }

    fn take_response(&mut self, machine: &mut Machine, queue: usize, entry: &Entry) {
        let guest = self.disk.guest;
        let answer = self.queues[queue].ring.abi().response(entry);
        if !answer.is_clean {
            machine.violated(Violation::Leak(guest));
        }
        let sent = self.outstanding.remove(&answer.id).filter(|sent| sent.queue == queue);
        let Some(sent) = sent else {
            machine.violated(Violation::UnknownAnswer { guest, id: answer.id });
            return;
        };
        if sent.request.is_late(machine.now, self.load.patience) {
            machine.violated(Violation::Late(guest));
        }
        if answer.status == OKAY && self.overtook(&sent) {
            machine.violated(Violation::Overtaken { guest, id: answer.id });
        }
        let Sent { request, .. } = sent;
        let may_fail = self.load.may_fail;
        let promised = request.answered(machine, &mut self.pool, answer, may_fail, &mut self.shadow);
        if !promised.is_empty() {
            self.promises.push(promised);
        }
        self.answered += 1;
    }

    /// Whether a request that was just answered should have waited for another: a barrier for what
    /// changes the disk and came before it in its queue, and such a request for a barrier.
    fn overtook(&self, answered: &Sent) -> bool {
        let before = self
            .outstanding
            .values()
            .filter(|sent| sent.queue == answered.queue && sent.serial < answered.serial);
        let mut waited_for = before.filter(|sent| {
            let (one, other) = (sent.request.plan(), answered.request.plan());
            (one.is_barrier() && other.changes()) || (other.is_barrier() && one.changes())
        });
        waited_for.next().is_some()
    }
}
