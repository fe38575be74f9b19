//! A guest that keeps no rules, with what a frontend has: ring pages and data pages that are granted, a
//! port, a directory. What it does with them is the script's.

use platter::mem::frame::Frame;
use platter::sim::abi::{Abi, Entry};
use platter::sim::frontend::front_path;
use platter::sim::machine::{DRIVER, Machine};
use platter::sim::toolstack::Disk;
use platter::sim::world::State;
use platter::units::{DomId, GrantRef, PAGE_SIZE, Port};

use super::DEV;

/// Pages of its ring at most, and for data.
const RING_PAGES: usize = 2;
pub(super) const DATA_PAGES: usize = 4;

/// Where entries begin.
const HEADER: usize = 64;

/// A page, and its grant.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) frame: Frame,
    pub(super) gref: GrantRef,
}

pub(super) struct Rogue {
    pub(super) guest: DomId,
    pub(super) abi: Abi,
    ring: [Page; RING_PAGES],
    pub(super) data: [Page; DATA_PAGES],
    pub(super) port: Port,
    /// Pages of the ring that it shows.
    pages: usize,
    /// Keeps its grants.
    persistent: bool,
}

impl Rogue {
    /// A new guest with a disk. The first data page is for reading only.
    pub(super) fn new(state: &mut State, guest: DomId, shape: u8) -> Self {
        let mut page = |readonly| {
            let mfn = state.machine.memory.take();
            let gref = state.machine.grants.offer(guest, DRIVER, mfn, readonly);
            Page { frame: state.machine.memory.frame(mfn), gref }
        };
        let ring = [page(false), page(false)];
        let data = [page(true), page(false), page(false), page(false)];
        let port = state.machine.ports.open(guest, DRIVER).expect("a guest has ports");
        let abi = if shape & 1 == 0 { Abi::X64 } else { Abi::X32 };
        let (pages, persistent) = (1 + usize::from(shape >> 1 & 1), shape & 4 != 0);
        let rogue = Self { guest, abi, ring, data, port, pages, persistent };
        state.create_guest(guest);
        rogue.attach(state);
        rogue
    }

    /// `xl block-attach`.
    pub(super) fn attach(&self, state: &mut State) {
        let disk = Disk::new(self.guest, DEV, "/dev/nvme0n1p1");
        state.toolstack.attach(&mut state.machine, &disk);
    }

    /// Writes a node of its directory, if that is there.
    pub(super) fn say(&self, machine: &mut Machine, node: &str, value: impl ToString) {
        let path = front_path(self.guest, DEV);
        if machine.tree.exists(&path) {
            machine.tree.write(&format!("{path}/{node}"), value);
        }
    }

    /// Shows its ring as a frontend does that is ready.
    pub(super) fn offer(&self, machine: &mut Machine) {
        let protocol = if self.abi == Abi::X64 { "x86_64-abi" } else { "x86_32-abi" };
        self.say(machine, "protocol", protocol);
        self.say(machine, "ring-page-order", self.pages - 1);
        self.say(machine, "ring-ref0", self.ring[0].gref.0);
        self.say(machine, "ring-ref1", self.ring[1].gref.0);
        self.say(machine, "event-channel", self.port.0);
        self.say(machine, "feature-persistent", u32::from(self.persistent));
        self.say(machine, "state", 3);
    }

    /// Reads an index.
    pub(super) fn index(&self, at: usize) -> u32 {
        self.ring[0].frame.read_u32(at)
    }

    /// Writes an index.
    pub(super) fn set_index(&self, at: usize, value: u32) {
        self.ring[0].frame.write_u32(at, value);
    }

    /// Writes an entry at this free-running index.
    pub(super) fn put(&self, index: u32, entry: &Entry) {
        let entries = 32 * self.pages;
        let at = HEADER + index as usize % entries * self.abi.stride();
        for (i, byte) in entry[..self.abi.stride()].iter().enumerate() {
            let at = at + i;
            self.ring[at / PAGE_SIZE].frame.write(at % PAGE_SIZE, &[*byte]);
        }
    }
}
