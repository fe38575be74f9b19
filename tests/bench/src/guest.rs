//! A guest with one disk that asks for the same kind of request again and again.

use platter::mem::frame::Frame;
use platter::sim::abi::{Abi, Body, ENTRY_BYTES, Head, OKAY, READ, Segment, write_segment};
use platter::sim::frontend::front_path;
use platter::sim::machine::{DRIVER, Machine};
use platter::sim::pages::Page;
use platter::sim::toolstack::Disk;
use platter::units::{PAGE_SIZE, Port};

/// Where the indexes of a ring are, and where its entries begin.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const HEADER: usize = 64;

/// Entries of a ring of one page.
pub(crate) const ENTRIES: u32 = 32;

/// What it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Pages of a request, all of it.
    pub pages: u16,
    /// Whether its grants stay mapped.
    pub persistent: bool,
}

/// A guest.
pub(crate) struct Guest {
    disk: Disk,
    ring: Frame,
    ring_page: Page,
    port: Port,
    /// The entries of its requests, one for each place of the ring.
    entries: Vec<[u8; ENTRY_BYTES]>,
    asked: u32,
}

impl Guest {
    /// The guest of a disk whose directories the toolstack has just made.
    pub(crate) fn new(machine: &mut Machine, disk: &Disk, shape: Shape) -> Self {
        let guest = disk.guest;
        let ring_page = Page::grant(machine, guest, false);
        let ring = machine.memory.frame(ring_page.mfn);
        ring.write_u32(RSP_EVENT, 1);
        let port = machine.ports.open(guest, DRIVER).expect("a guest has ports");
        let entries = (0..ENTRIES).map(|place| entry(machine, disk, shape, place)).collect();
        Self { disk: disk.clone(), ring, ring_page, port, entries, asked: 0 }
    }

    /// Shows its ring, as a frontend does that is ready.
    pub(crate) fn offer(&self, machine: &mut Machine, persistent: bool) {
        let path = front_path(self.disk.guest, self.disk.dev);
        for (node, value) in [
            ("ring-ref", self.ring_page.gref.0.to_string()),
            ("event-channel", self.port.0.to_string()),
            ("protocol", "x86_64-abi".into()),
            ("feature-persistent", u32::from(persistent).to_string()),
            ("state", "3".into()),
        ] {
            machine.tree.write(&format!("{path}/{node}"), value);
        }
    }

    /// Asks for so many requests, and wants to hear when the last of them is answered.
    pub(crate) fn ask(&mut self, machine: &mut Machine, count: u32) {
        for _ in 0..count {
            let place = self.asked % ENTRIES;
            self.ring.write(HEADER + place as usize * Abi::X64.stride(), &self.entries[place as usize]);
            self.asked += 1;
        }
        self.ring.write_u32(RSP_EVENT, self.asked);
        self.ring.write_u32(REQ_PROD, self.asked);
        machine.notify(self.disk.guest, self.port);
    }

    /// Takes the answers.
    ///
    /// # Panics
    /// When one is missing, or one of the last is an error.
    pub(crate) fn take_answers(&self, machine: &mut Machine) {
        assert_eq!(self.ring.read_u32(RSP_PROD), self.asked, "all is answered");
        for place in 0..self.asked.min(ENTRIES) {
            let mut entry = [0; ENTRY_BYTES];
            self.ring.read(HEADER + place as usize * Abi::X64.stride(), &mut entry);
            assert_eq!(Abi::X64.response(&entry).status, OKAY);
        }
        machine.ports.take(self.disk.guest, self.port);
    }
}

/// A read of so many pages, from another place of the disk and into other pages for each place of the ring.
fn entry(machine: &mut Machine, disk: &Disk, shape: Shape, place: u32) -> [u8; ENTRY_BYTES] {
    let mut grant = || Page::grant(machine, disk.guest, false);
    let data: Vec<Segment> = (0..shape.pages).map(|_| (grant().gref.0, 0, 7)).collect();
    let table = grant();
    let mut entry = [0; ENTRY_BYTES];
    let sector = u64::from(place) * u64::from(shape.pages) * 8;
    let head = Head { operation: READ, id: place.into(), sector };
    if data.len() <= platter::sim::abi::SEGMENTS {
        Abi::X64.write(&mut entry, head, Body::Direct(&data));
        return entry;
    }
    let mut bytes = [0; PAGE_SIZE];
    for (place, segment) in bytes.chunks_exact_mut(8).zip(data) {
        write_segment(place, segment);
    }
    machine.memory.frame(table.mfn).write(0, &bytes);
    Abi::X64.write(&mut entry, head, Body::Indirect(shape.pages, &[table.gref.0]));
    entry
}
