//! The data path of a frontend: requests out, answers in, by the rules of the ring.

use core::time::Duration;

use super::{Frontend, Stage};
use crate::sim::front_ring::STRIDE;
use crate::sim::machine::{Machine, Violation};
use crate::sim::requests::Request;

/// The longest a guest thinks between two batches of requests, in nanoseconds.
const THINK: u64 = 300_000;

impl Frontend {
    /// Publishes a few requests at once.
    pub(super) fn submit(&mut self, machine: &mut Machine) {
        let Some(link) = self.link.as_mut().filter(|_| self.stage == Stage::Connected) else { return };
        for _ in 0..machine.rng.within(1..9) {
            let full = link.ring.room() == 0 || self.outstanding.len() >= self.load.depth;
            if full || self.load.requests == 0 {
                break;
            }
            let others = self.outstanding.values();
            let made = Request::make(machine, self.disk.guest, &self.load, &mut self.shadow, others);
            let Some(request) = made else { continue };
            link.ring.push(&request.entry(machine));
            self.outstanding.insert(request.id(), request);
            self.load.requests -= 1;
        }
        if link.ring.publish() {
            machine.notify(self.disk.guest, link.port);
        }
        self.think(machine);
    }

    /// Sets the time of the next requests; with a full ring an answer must come first.
    pub(super) fn think(&mut self, machine: &mut Machine) {
        let more = self.load.requests > 0 && self.outstanding.len() < self.load.depth;
        if more && self.stage == Stage::Connected && self.submits.is_none() {
            self.submits = Some(machine.now + Duration::from_nanos(machine.rng.within(1..THINK)));
        }
    }

    /// The interrupt handler: takes the responses, and in a later step asks for the next event and
    /// looks once more. Without an event it does nothing, whatever is in the ring.
    pub(super) fn handle(&mut self, machine: &mut Machine) {
        let Some(link) = &mut self.link else { return };
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
        while let Some(link) = &mut self.link {
            match link.ring.pop() {
                Ok(Some(entry)) => self.take_response(machine, &entry),
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

    fn take_response(&mut self, machine: &mut Machine, entry: &[u8; STRIDE]) {
        let guest = self.disk.guest;
        let id = u64::from_le_bytes(*entry.first_chunk().expect("an entry is longer than an id"));
        let answer = (entry[8], i16::from_le_bytes([entry[10], entry[11]]));
        if entry[9] != 0 || entry[12..16] != [0; 4] {
            machine.violated(Violation::Leak(guest));
        }
        let Some(request) = self.outstanding.remove(&id) else {
            machine.violated(Violation::UnknownAnswer { guest, id });
            return;
        };
        if request.is_late(machine.now, self.load.patience) {
            machine.violated(Violation::Late(guest));
        }
        let promised = request.answered(machine, guest, answer, self.load.may_fail, &mut self.shadow);
        if !promised.is_empty() {
            self.promises.push(promised);
        }
        self.answered += 1;
    }
}
