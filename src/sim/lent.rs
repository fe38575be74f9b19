//! The PCI functions that the driver domain is given: each an NVMe controller behind its BAR, which
//! reaches memory while its bus mastering and the IOMMU let it. `lending` is how they are given.

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};

use super::frontend::Frontend;
use super::intruder::Intruder;
use super::lending::Lending;
use super::machine::{Machine, Violation};
use super::nvme::disk::Disk;
use super::nvme::{Controller, Settings, Transfer};
use super::pciback::{Function, Pciback};
use super::shadow::{Stamp, content};
use super::tables::Gpt;
use super::toolstack::Toolstack;
use crate::units::{BusAddr, DomId, Instant, Pirq, SECTOR_SIZE};

const FIRST_BAR: u64 = 0xfe80_0000;
const FIRST_PIRQ: u16 = 55;

/// Command register: the function may reach memory by itself.
const BUS_MASTER: u16 = 1 << 2;

/// A controller and its registers.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) controller: Controller,
    bar: BusAddr,
    pirq: Pirq,
    /// Whether the IOMMU lets it reach the driver domain's memory, which may map its registers.
    pub(super) assigned: bool,
    /// How often its registers are mapped.
    pub(super) mapped: usize,
    /// Violations of the controller that were passed on.
    reported: usize,
}

/// Blocks of a disk, which is a controller's by its number, and a namespace's there by its index.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Extent {
    disk: (usize, usize),
    blocks: Range<u64>,
}

/// All that is lent.
#[derive(Debug, Default)]
pub struct Lent {
    pub(super) slots: Vec<Slot>,
    /// What a `target=` means that is not a whole disk by its own name.
    parts: BTreeMap<String, Extent>,
    /// Answers to the image's configuration accesses.
    pub pciback: Pciback,
    /// Its conversation with the image, and the toolstack's with both.
    pub lending: Lending,
}

impl Lent {
    /// Lends one more controller, before the image starts; returns its number.
    pub fn add_nvme(&mut self, machine: &mut Machine, settings: Settings) -> usize {
        let number = self.plug_nvme(settings);
        self.pciback.functions[number].lent = true;
        self.slots[number].assigned = true;
        Lending::give(machine, self.slots.len());
        number
    }

    /// A controller that is not lent before it is attached; returns its number.
    pub fn plug_nvme(&mut self, settings: Settings) -> usize {
        let number = self.slots.len();
        let bar = BusAddr(FIRST_BAR + ((number as u64) << 16));
        let pirq = FIRST_PIRQ + number as u16;
        let mut function = Function::nvme(bar.0, pirq);
        function.take_back();
        self.pciback.functions.push(function);
        self.slots.push(Slot {
            controller: Controller::new(settings),
            bar,
            pirq: Pirq(pirq.into()),
            assigned: false,
            mapped: 0,
            reported: 0,
        });
        number
    }

    /// Lays a partition table on a disk, which holds it from the start.
    pub fn partition(&mut self, number: usize, namespace: usize, table: &Gpt) {
        let disk = self.controller(number).disk_mut(namespace);
        table.build().iter().for_each(|(block, bytes)| disk.hold(block.0, bytes));
        let node = format!("nvme{number}n{}", namespace + 1);
        for (part, number) in table.parts.iter().zip(1..) {
            self.also_known(&format!("{node}p{number}"), &node, part.first..part.first + part.blocks);
        }
    }

    /// What a guest has whose `target=` is this: these blocks of the disk.
    ///
    /// # Panics
    /// When there is no such disk.
    pub fn also_known(&mut self, target: &str, disk: &str, blocks: Range<u64>) {
        let whole = self.extent(disk).expect("a disk");
        self.parts.insert(target.into(), Extent { blocks, ..whole });
    }

    /// The disks that held nothing from the start, as the image's command line lists them.
    #[must_use]
    pub fn blank_disks(&self) -> Vec<String> {
        self.disks().filter(|(_, disk)| disk.was_blank()).map(|(disk, _)| name(disk)).collect()
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

    /// Maps the registers that lie there, if the domain may and they are as many bytes; returns the
    /// number of their controller.
    pub fn map(&mut self, bar: BusAddr, len: usize) -> Option<usize> {
        let functions = self.pciback.functions.iter();
        let fits = |(slot, function): (&Slot, &Function)| {
            slot.assigned && slot.bar == bar && len as u64 <= function.bar_len
        };
        let number = self.slots.iter().zip(functions).position(fits)?;
        self.slots[number].mapped += 1;
        Some(number)
    }

    /// Registers are not mapped any more.
    pub fn unmap(&mut self, number: usize) {
        self.slots[number].mapped -= 1;
    }

    /// Whether a controller's registers are mapped.
    #[must_use]
    pub fn is_mapped(&self, number: usize) -> bool {
        self.slots[number].mapped > 0
    }

    /// How many controllers' registers are mapped.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.slots.iter().map(|slot| slot.mapped).sum()
    }

    /// When anything of it acts next.
    #[must_use]
    pub fn next_event(&self, machine: &Machine) -> Option<Instant> {
        let slots = self.slots.iter().zip(&self.pciback.functions);
        let masters = slots.filter(|(slot, function)| slot.is_master(function));
        let controllers = masters.filter_map(|(slot, _)| slot.controller.next_event());
        controllers.chain(self.lending.next_event(machine)).min()
    }

    /// Something may have changed in xenstore: pciback will look soon.
    pub fn notice(&mut self, machine: &mut Machine) {
        if !self.slots.is_empty() {
            self.lending.notice(machine);
        }
    }

    /// Does what is due.
    pub fn step(&mut self, machine: &mut Machine) {
        self.lend(machine);
        for (slot, function) in self.slots.iter_mut().zip(&self.pciback.functions) {
            slot.step(machine, function);
        }
    }

    /// What a guest relies on, if it has its disk here: flushes and barriers make safe what they
    /// promise, and nothing is written before a barrier that came first.
    pub fn check_promises(&self, machine: &mut Machine, frontend: &mut Frontend) {
        if !frontend.has_promises() && frontend.races().next().is_none() {
            return;
        }
        let Some(extent) = self.extent(frontend.target()) else { return };
        let (disk, first) = (self.disk(&extent), extent.blocks.start);
        let guest = frontend.guest();
        let safe = |(sector, stamp): (u64, Stamp)| {
            let (block, range) = place(disk, first, sector);
            disk.read_safe(block)[range] == content(sector, stamp)
        };
        for (sector, _) in frontend.take_promises().into_iter().filter(|promise| !safe(*promise)) {
            machine.violated(Violation::NotDurable { guest, sector });
        }
        for (barrier, (sector, stamp)) in frontend.races() {
            let (block, range) = place(disk, first, sector);
            let is_there = disk.read(block, 1)[range] == content(sector, stamp);
            if is_there && !safe(barrier) {
                machine.violated(Violation::Overtaken { guest, id: sector });
            }
        }
    }

    /// What the controllers have just read into guests' pages, or written from there, is on disks that those
    /// guests were given. Pages of the image's own may hold any block.
    pub fn check_transfers(&mut self, machine: &mut Machine, toolstack: &Toolstack) {
        for number in 0..self.slots.len() {
            for Transfer { namespace, blocks, pages } in self.slots[number].controller.take_transfers() {
                let moved = Extent { disk: (number, namespace), blocks };
                let mut guests: Vec<DomId> =
                    pages.iter().filter_map(|page| machine.grants.owner(*page)).collect();
                guests.dedup();
                let given = |guest: DomId| toolstack.targets(guest).filter_map(|target| self.extent(target));
                let lacks = |guest: &DomId| !given(*guest).any(|extent| extent.covers(&moved));
                if let Some(guest) = guests.into_iter().find(lacks) {
                    let (target, block) = (name(moved.disk), moved.blocks.start);
                    machine.violated(Violation::Trespass { guest, target, block });
                }
            }
        }
    }

    /// Compares all disks with what their guests know of them.
    pub fn check_disks(&self, machine: &mut Machine, frontends: &[Frontend], intruders: &[Intruder]) {
        let targets = intruders.iter().map(|intruder| &intruder.disk().target);
        let lawless: Vec<Extent> = targets.filter_map(|target| self.extent(target)).collect();
        let mut touched = BTreeSet::new();
        for frontend in frontends {
            let Some(extent) = self.extent(frontend.target()) else { continue };
            let (disk, first) = (self.disk(&extent), extent.blocks.start);
            let wrong = |sector: &u64| {
                let (block, range) = place(disk, first, *sector);
                !frontend.shadow().accepts(*sector, &disk.read(block, 1)[range])
            };
            if let Some(sector) = frontend.shadow().touched().find(wrong) {
                machine.violated(Violation::Corrupt { guest: frontend.guest(), sector });
            }
            let blocks = frontend.shadow().touched().map(|sector| place(disk, first, sector).0);
            touched.extend(blocks.map(|block| (extent.disk, block)));
        }
        for (number, disk) in self.disks() {
            let is_lawless = |block: u64| {
                let written = Extent { disk: number, blocks: block..block + 1 };
                lawless.iter().any(|extent| extent.covers(&written))
            };
            let is_known = |block: u64| touched.contains(&(number, block)) || is_lawless(block);
            let stray = disk.written().find(|block| !is_known(*block));
            if let Some(block) = stray {
                machine.violated(Violation::Stray { target: name(number), block });
            }
        }
    }

    /// What a `target=` means, if it is anything.
    fn extent(&self, target: &str) -> Option<Extent> {
        let target = target.strip_prefix("/dev/").unwrap_or(target);
        if let Some(part) = self.parts.get(target) {
            return Some(part.clone());
        }
        let (controller, namespace) = target.strip_prefix("nvme")?.split_once('n')?;
        let disk = (controller.parse().ok()?, namespace.parse::<usize>().ok()?.checked_sub(1)?);
        let is_there = self.disks().any(|(known, _)| known == disk);
        is_there.then_some(Extent { disk, blocks: 0..u64::MAX })
    }

    fn disk(&self, extent: &Extent) -> &Disk {
        let (number, namespace) = extent.disk;
        self.slots[number].controller.disk(namespace)
    }

    fn disks(&self) -> impl Iterator<Item = ((usize, usize), &Disk)> {
        self.slots.iter().enumerate().flat_map(|(number, slot)| {
            let disks = slot.controller.disks().iter().enumerate();
            disks.map(move |(namespace, disk)| ((number, namespace), disk))
        })
    }
}

impl Extent {
    fn covers(&self, other: &Self) -> bool {
        let (ours, others) = (&self.blocks, &other.blocks);
        self.disk == other.disk && ours.start <= others.start && others.end <= ours.end
    }
}

impl Slot {
    /// Whether it can use memory; what it tries while it cannot is put off.
    fn is_master(&self, function: &Function) -> bool {
        self.assigned && function.command() & BUS_MASTER != 0
    }

    fn step(&mut self, machine: &mut Machine, function: &Function) {
        let due = self.controller.next_event().is_some_and(|at| at <= machine.now);
        let now = machine.now;
        if due && self.is_master(function) && self.controller.step(now, machine) && function.msix {
            machine.ports.interrupt(self.pirq, now);
        }
        for violation in self.controller.violations().iter().skip(self.reported) {
            machine.violated(Violation::Device(violation.clone()));
        }
        self.reported = self.controller.violations().len();
    }
}

/// What a disk is called in `target=`.
fn name((number, namespace): (usize, usize)) -> String {
    format!("nvme{number}n{}", namespace + 1)
}

/// The block in which a sector lies of what starts at block `first`, and where in it.
fn place(disk: &Disk, first: u64, sector: u64) -> (u64, Range<usize>) {
    let sectors = (disk.block_size() / SECTOR_SIZE) as u64;
    let start = (sector % sectors) as usize * SECTOR_SIZE;
    (first + sector / sectors, start..start + SECTOR_SIZE)
}
