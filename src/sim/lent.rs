//! The PCI functions that the driver domain was given: each an NVMe controller behind its BAR, and
//! the xenbus side of pciback that lends them (Linux, drivers/xen/xen-pciback/xenbus.c).

use core::ops::Range;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::frontend::Frontend;
use super::machine::{DOM0, DRIVER, Machine, Violation};
use super::nvme::disk::Disk;
use super::nvme::{Controller, Settings};
use super::pciback::{Function, Pciback};
use super::shadow::content;
use super::tables::Gpt;
use super::tree::Perms;
use crate::mem::frame::Frame;
use crate::units::{BusAddr, GrantRef, Instant, Pirq, Port, SECTOR_SIZE};

const FRONT: &str = "/local/domain/3/device/pci/0";
const BACK: &str = "/local/domain/0/backend/pci/3/0";

/// The slowest pciback is to look at xenstore after a change, in nanoseconds.
const NOTICE: u64 = 5_000_000;

const FIRST_BAR: u64 = 0xfe80_0000;
const FIRST_PIRQ: u16 = 55;

/// Command register: the function may reach memory by itself.
const BUS_MASTER: u16 = 1 << 2;

/// A controller and its registers.
#[derive(Debug)]
struct Slot {
    controller: Controller,
    bar: BusAddr,
    pirq: Pirq,
    /// Violations of the controller that were passed on.
    reported: usize,
}

/// The shared page and its event channel.
#[derive(Debug)]
struct Link {
    page: Frame,
    port: Port,
}

/// All that was lent.
#[derive(Debug, Default)]
pub struct Lent {
    slots: Vec<Slot>,
    /// What a `target=` means that is not a whole disk: the disk, and the block where it starts.
    parts: BTreeMap<String, (String, u64)>,
    /// Answers to the image's configuration accesses.
    pub pciback: Pciback,
    link: Option<Link>,
    seen: u64,
    looks: Option<Instant>,
}

impl Lent {
    /// Lends one more controller, before the image starts; returns its number.
    pub fn add_nvme(&mut self, machine: &mut Machine, settings: Settings) -> usize {
        let number = self.slots.len();
        let bar = BusAddr(FIRST_BAR + ((number as u64) << 16));
        let pirq = FIRST_PIRQ + number as u16;
        self.pciback.functions.push(Function::nvme(bar.0, pirq));
        self.slots.push(Slot {
            controller: Controller::new(settings),
            bar,
            pirq: Pirq(pirq.into()),
            reported: 0,
        });
        self.write_nodes(machine);
        number
    }

    /// Lays a partition table on a disk, which holds it from the start.
    pub fn partition(&mut self, number: usize, namespace: usize, table: &Gpt) {
        let disk = self.controller(number).disk_mut(namespace);
        table.build().iter().for_each(|(block, bytes)| disk.hold(block.0, bytes));
        let node = format!("nvme{number}n{}", namespace + 1);
        for (part, number) in table.parts.iter().zip(1..) {
            self.also_known(&format!("{node}p{number}"), &node, part.first);
        }
    }

    /// What a guest has whose `target=` is this: a part of the disk from that block on.
    pub fn also_known(&mut self, target: &str, disk: &str, first: u64) {
        self.parts.insert(target.into(), (disk.into(), first));
    }

    /// The disks that held nothing from the start, as the image's command line lists them.
    #[must_use]
    pub fn blank_disks(&self) -> Vec<String> {
        self.disks().filter(|(_, disk)| disk.was_blank()).map(|(name, _)| name).collect()
    }

    /// A controller, to look at its disks or to make it fail.
    pub fn controller(&mut self, number: usize) -> &mut Controller {
        &mut self.slots[number].controller
    }

    /// Where a controller's registers lie.
    #[must_use]
    pub fn bar(&self, number: usize) -> BusAddr {
        self.slots[number].bar
    }

    /// The number of the controller whose registers lie there, if they are as many bytes.
    #[must_use]
    pub fn at(&self, bar: BusAddr, len: usize) -> Option<usize> {
        let functions = self.pciback.functions.iter();
        let fits = |(slot, function): (&Slot, &Function)| slot.bar == bar && len as u64 <= function.bar_len;
        self.slots.iter().zip(functions).position(fits)
    }

    /// When anything of it acts next.
    #[must_use]
    pub fn next_event(&self, machine: &Machine) -> Option<Instant> {
        let asked = self.link.as_ref().and_then(|link| machine.ports.pending(DOM0, link.port));
        let functions = self.pciback.functions.iter();
        let masters = self.slots.iter().zip(functions).filter(|(_, function)| is_master(function));
        let controllers = masters.filter_map(|(slot, _)| slot.controller.next_event());
        controllers.chain(asked).chain(self.looks).min()
    }

    /// Something may have changed in xenstore: pciback will look soon.
    pub fn notice(&mut self, machine: &mut Machine) {
        if self.seen != machine.tree.generation() && !self.slots.is_empty() {
            self.seen = machine.tree.generation();
            let soon = machine.now + Duration::from_nanos(machine.rng.within(0..NOTICE));
            self.looks.get_or_insert(soon);
        }
    }

    /// Does what is due.
    pub fn step(&mut self, machine: &mut Machine) {
        if self.looks.is_some_and(|at| at <= machine.now) {
            self.looks = None;
            self.look(machine);
        }
        if let Some(link) = &self.link
            && machine.ports.take(DOM0, link.port)
            && self.pciback.step(link.page)
        {
            machine.notify(DOM0, link.port);
        }
        for (slot, function) in self.slots.iter_mut().zip(&self.pciback.functions) {
            slot.step(machine, function);
        }
    }

    /// What flushes have promised to a guest must survive a power cut, if it has its disk here.
    pub fn check_promises(&self, machine: &mut Machine, frontend: &mut Frontend) {
        let Some((_, disk, first)) = self.extent(frontend.target()) else { return };
        for (sector, stamp) in frontend.take_promises() {
            let (block, range) = place(disk, first, sector);
            if disk.read_safe(block)[range] != content(sector, stamp) {
                machine.violated(Violation::NotDurable { guest: frontend.guest(), sector });
            }
        }
    }

    /// Compares all disks with what their guests know of them.
    pub fn check_disks(&self, machine: &mut Machine, frontends: &[Frontend]) {
        let mut touched = BTreeSet::new();
        for frontend in frontends {
            let Some((node, disk, first)) = self.extent(frontend.target()) else { continue };
            let wrong = |sector: &u64| {
                let (block, range) = place(disk, first, *sector);
                !frontend.shadow().accepts(*sector, &disk.read(block, 1)[range])
            };
            if let Some(sector) = frontend.shadow().touched().find(wrong) {
                machine.violated(Violation::Corrupt { guest: frontend.guest(), sector });
            }
            let blocks = frontend.shadow().touched().map(|sector| place(disk, first, sector).0);
            touched.extend(blocks.map(|block| (node.clone(), block)));
        }
        for (target, disk) in self.disks() {
            let stray = disk.written().find(|block| !touched.contains(&(target.clone(), *block)));
            if let Some(block) = stray {
                machine.violated(Violation::Stray { target, block });
            }
        }
    }

    /// The disk that a `target=` is on, and the block where it starts.
    fn extent(&self, target: &str) -> Option<(String, &Disk, u64)> {
        let name = target.strip_prefix("/dev/").unwrap_or(target);
        let (node, first) = match self.parts.get(name) {
            Some((node, first)) => (node.as_str(), *first),
            None => (name, 0),
        };
        self.disks().find(|(disk, _)| disk == node).map(|(node, disk)| (node, disk, first))
    }

    fn disks(&self) -> impl Iterator<Item = (String, &Disk)> {
        self.slots.iter().enumerate().flat_map(|(number, slot)| {
            let disks = slot.controller.disks().iter().enumerate();
            disks.map(move |(index, disk)| (format!("nvme{number}n{}", index + 1), disk))
        })
    }

    /// pciback attaches once the frontend has published its page.
    fn look(&mut self, machine: &mut Machine) {
        let text = |path: &str| machine.tree.text(path).unwrap_or("").to_string();
        let number = |node: &str| text(&format!("{FRONT}/{node}")).parse::<u32>().ok();
        let states = (text(&format!("{FRONT}/state")), text(&format!("{BACK}/state")));
        if (states.0.as_str(), states.1.as_str()) != ("3", "3") || self.link.is_some() {
            return;
        }
        let granted =
            number("pci-op-ref").and_then(|gref| machine.grants.granted(DRIVER, GrantRef(gref), DOM0));
        let bound =
            number("event-channel").map(|port| machine.ports.bind(DOM0, DRIVER, Port(port), machine.now));
        let (Some(mfn), Some(Ok(port))) = (granted, bound) else {
            machine.violated(Violation::Device("pcifront published no page, or no port".into()));
            return;
        };
        self.link = Some(Link { page: machine.memory.frame(mfn), port });
        machine.tree.write(&format!("{BACK}/state"), 4);
    }

    fn write_nodes(&self, machine: &mut Machine) {
        let tree = &mut machine.tree;
        tree.write_for(BACK, "", Perms { owner: DOM0, reader: DRIVER });
        tree.write_for(FRONT, "", Perms { owner: DRIVER, reader: DOM0 });
        for (node, value) in [("backend", BACK), ("backend-id", "0"), ("state", "1")] {
            tree.write(&format!("{FRONT}/{node}"), value);
        }
        let count = self.slots.len().to_string();
        for (node, value) in [
            ("frontend", FRONT),
            ("frontend-id", "3"),
            ("online", "1"),
            ("num_devs", &count),
            ("root_num", "1"),
            ("root-0", "0000:00"),
            ("state", "3"),
        ] {
            tree.write(&format!("{BACK}/{node}"), value);
        }
        for slot in 0..self.slots.len() {
            tree.write(&format!("{BACK}/dev-{slot}"), format_args!("0000:0{}:00.0", slot + 1));
            tree.write(&format!("{BACK}/vdev-{slot}"), format_args!("0000:00:{slot:02x}.0"));
        }
    }
}

impl Slot {
    fn step(&mut self, machine: &mut Machine, function: &Function) {
        let due = self.controller.next_event().is_some_and(|at| at <= machine.now);
        let now = machine.now;
        if due && is_master(function) && self.controller.step(now, machine) && function.msix {
            machine.ports.interrupt(self.pirq, now);
        }
        for violation in self.controller.violations().iter().skip(self.reported) {
            machine.violated(Violation::Device(violation.clone()));
        }
        self.reported = self.controller.violations().len();
    }
}

/// The block in which a sector lies of what starts at block `first`, and where in it.
fn place(disk: &Disk, first: u64, sector: u64) -> (u64, Range<usize>) {
    let sectors = (disk.block_size() / SECTOR_SIZE) as u64;
    let start = (sector % sectors) as usize * SECTOR_SIZE;
    (first + sector / sectors, start..start + SECTOR_SIZE)
}

fn is_master(function: &Function) -> bool {
    function.command() & BUS_MASTER != 0
}
