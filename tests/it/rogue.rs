//! A guest that keeps no rules: it has the ring page, the grants, the event channel and the
//! xenstore directory of a frontend, and a test decides what it does with them, and when.

use core::time::Duration;

use platter::mem::frame::Frame;
use platter::sim::abi::Entry;
use platter::sim::frontend::{back_path, front_path};
use platter::sim::machine::{DRIVER, Machine};
use platter::sim::toolstack::{Disk, JobId};
use platter::sim::world::{State, World};
use platter::units::{DomId, GrantRef, Port};

use crate::host::{DEV, disk};

pub(crate) const READ: u8 = 0;
pub(crate) const WRITE: u8 = 1;
pub(crate) const FLUSH: u8 = 3;

/// Bytes of a ring's indexes, and of an entry.
const HEADER: usize = 64;
const STRIDE: usize = 112;

/// The indexes of a ring.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;

/// The guest's end of its disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rogue {
    pub(crate) guest: DomId,
    pub(crate) ring: Frame,
    pub(crate) gref: GrantRef,
    pub(crate) port: Port,
}

impl Rogue {
    /// Attaches a disk to a new guest. It has a ring, which it shows to nobody.
    pub(crate) fn attach(world: &World, guest: u16, target: &str) -> (JobId, Self) {
        Self::attach_as(world, &disk(guest, target))
    }

    /// The same with a disk of any kind.
    pub(crate) fn attach_as(world: &World, disk: &Disk) -> (JobId, Self) {
        let mut state = world.state();
        let state = &mut *state;
        state.create_guest(disk.guest);
        let job = state.toolstack.attach(&mut state.machine, disk);
        let mfn = state.machine.memory.take();
        let gref = state.machine.grants.offer(disk.guest, DRIVER, mfn, false);
        let port = state.machine.ports.open(disk.guest, DRIVER).expect("a guest has ports");
        let ring = state.machine.memory.frame(mfn);
        ring.write_u32(RSP_EVENT, 1);
        (job, Self { guest: disk.guest, ring, gref, port })
    }

    /// Does something to the world, so long after now.
    pub(crate) fn later(self, world: &World, wait: Duration, act: impl FnOnce(Self, &mut State) + 'static) {
        let mut state = world.state();
        let at = state.machine.now + wait;
        state.at(at, move |state| act(self, state));
    }

    /// Writes a node of its directory.
    pub(crate) fn say(self, machine: &mut Machine, node: &str, value: impl ToString) {
        machine.tree.write(&format!("{}/{node}", front_path(self.guest, DEV)), value);
    }

    /// Shows its ring as a frontend does that is ready.
    pub(crate) fn offer(self, machine: &mut Machine) {
        self.say(machine, "ring-ref", self.gref.0);
        self.say(machine, "event-channel", self.port.0);
        self.say(machine, "protocol", "x86_64-abi");
        self.say(machine, "state", 3);
    }

    /// The state of the backend.
    pub(crate) fn backend(self, machine: &Machine) -> String {
        machine.tree.text(&format!("{}/state", back_path(self.guest, DEV))).unwrap_or("").into()
    }

    /// Grants a page for a request's data.
    pub(crate) fn grant(self, machine: &mut Machine) -> (Frame, GrantRef) {
        let mfn = machine.memory.take();
        (machine.memory.frame(mfn), machine.grants.offer(self.guest, DRIVER, mfn, false))
    }

    /// Writes the `place`-th request since the ring was new, whose id is its place. A segment is a
    /// grant with its first and its last sector.
    pub(crate) fn put(self, place: u32, operation: u8, sector: u64, segments: &[(GrantRef, u8, u8)]) {
        let mut entry = [0; STRIDE];
        entry[0] = operation;
        entry[1] = segments.len() as u8;
        entry[8..16].copy_from_slice(&u64::from(place).to_le_bytes());
        entry[16..24].copy_from_slice(&sector.to_le_bytes());
        for (i, (gref, first, last)) in segments.iter().enumerate() {
            let at = 24 + i * 8;
            entry[at..at + 4].copy_from_slice(&gref.0.to_le_bytes());
            entry[at + 4..at + 6].copy_from_slice(&[*first, *last]);
        }
        self.ring.write(HEADER + (place % 32) as usize * STRIDE, &entry);
    }

    /// Writes any bytes as the `place`-th request.
    pub(crate) fn put_entry(self, place: u32, entry: &Entry) {
        self.ring.write(HEADER + (place % 32) as usize * STRIDE, entry);
    }

    /// Claims so many requests in all, and sends an event.
    pub(crate) fn claim(self, machine: &mut Machine, requests: u32) {
        self.ring.write_u32(REQ_PROD, requests);
        machine.notify(self.guest, self.port);
    }

    /// How many answers there are.
    pub(crate) fn answers(self) -> u32 {
        self.ring.read_u32(RSP_PROD)
    }

    /// The id and the status of the `place`-th answer.
    pub(crate) fn answer(self, place: u32) -> (u64, i16) {
        let mut entry = [0; STRIDE];
        self.ring.read(HEADER + (place % 32) as usize * STRIDE, &mut entry);
        let id = entry.first_chunk().expect("an entry is longer than an id");
        (u64::from_le_bytes(*id), i16::from_le_bytes([entry[10], entry[11]]))
    }
}
