//! A guest with one disk that asks for the same kind of request again and again, on each of its rings in turn.

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
    /// Rings that the guest has.
    pub queues: u32,
}

/// A guest.
pub(crate) struct Guest {
    disk: Disk,
    rings: Vec<Ring>,
    /// The ring that the next request goes to.
    next: usize,
}

struct Ring {
    frame: Frame,
    page: Page,
    port: Port,
    /// The entries of its requests, one for each place of the ring.
    entries: Vec<[u8; ENTRY_BYTES]>,
    asked: u32,
    /// How many of them the backend was told of.
    shown: u32,
}

impl Guest {
    /// The guest of a disk whose directories the toolstack has just made.
    pub(crate) fn new(machine: &mut Machine, disk: &Disk, shape: Shape) -> Self {
        let rings = (0..shape.queues).map(|ring| Ring::new(machine, disk, shape, ring)).collect();
        Self { disk: disk.clone(), rings, next: 0 }
    }

    /// Shows its rings, as a frontend does that is ready.
    pub(crate) fn offer(&self, machine: &mut Machine, persistent: bool) {
        let path = front_path(self.disk.guest, self.disk.dev);
        let mut write = |node: &str, value: String| machine.tree.write(&format!("{path}/{node}"), value);
        for (number, ring) in self.rings.iter().enumerate() {
            let queue = if self.rings.len() == 1 { String::new() } else { format!("queue-{number}/") };
            write(&format!("{queue}ring-ref"), ring.page.gref.0.to_string());
            write(&format!("{queue}event-channel"), ring.port.0.to_string());
        }
        if self.rings.len() > 1 {
            write("multi-queue-num-queues", self.rings.len().to_string());
        }
        write("protocol", "x86_64-abi".into());
        write("feature-persistent", u32::from(persistent).to_string());
        write("state", "3".into());
    }

    /// Asks for so many requests, and wants to hear when the last of each ring is answered.
    pub(crate) fn ask(&mut self, machine: &mut Machine, count: u32) {
        for _ in 0..count {
            let ring = &mut self.rings[self.next];
            let place = ring.asked % ENTRIES;
            ring.frame.write(HEADER + place as usize * Abi::X64.stride(), &ring.entries[place as usize]);
            ring.asked += 1;
            self.next = (self.next + 1) % self.rings.len();
        }
        for ring in self.rings.iter_mut().filter(|ring| ring.shown != ring.asked) {
            ring.frame.write_u32(RSP_EVENT, ring.asked);
            ring.frame.write_u32(REQ_PROD, ring.asked);
            ring.shown = ring.asked;
            machine.notify(self.disk.guest, ring.port);
        }
    }

    /// Takes the answers.
    ///
    /// # Panics
    /// When one is missing, or one of the last is an error.
    pub(crate) fn take_answers(&self, machine: &mut Machine) {
        for ring in &self.rings {
            assert_eq!(ring.frame.read_u32(RSP_PROD), ring.asked, "all is answered");
            for place in 0..ring.asked.min(ENTRIES) {
                let mut entry = [0; ENTRY_BYTES];
                ring.frame.read(HEADER + place as usize * Abi::X64.stride(), &mut entry);
                assert_eq!(Abi::X64.response(&entry).status, OKAY);
            }
            machine.ports.take(self.disk.guest, ring.port);
        }
    }
}

impl Ring {
    fn new(machine: &mut Machine, disk: &Disk, shape: Shape, ring: u32) -> Self {
        let page = Page::grant(machine, disk.guest, false);
        let frame = machine.memory.frame(page.mfn);
        frame.write_u32(RSP_EVENT, 1);
        let port = machine.ports.open(disk.guest, DRIVER).expect("a guest has ports");
        let places = ring * ENTRIES..(ring + 1) * ENTRIES;
        let entries = places.map(|place| entry(machine, disk, shape, place)).collect();
        Self { frame, page, port, entries, asked: 0, shown: 0 }
    }
}

/// A read of so many pages, from another place of the disk and into other pages for each place of the rings.
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
