//! The driver on a simulated controller, with memory behind an IOMMU and virtual time.

use std::collections::BTreeMap;
use std::vec::Vec;

use crate::drivers::nvme::Nvme;
use crate::drivers::{Completion, DeviceError, Operation, Refusal, Status, Token};
use crate::hal::{DmaPage, HypervisorError, Memory, MmioRegion};
use crate::mem::frame::Frame;
use crate::mem::private::PrivatePage;
use crate::sim::nvme::{Controller, Settings};
use crate::sim::{Dma, DmaFault};
use crate::units::{Block, BusAddr, Instant, PAGE_SIZE, Span};

/// What the device may do to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    Reads,
    Writes,
    Both,
}

/// The frames that devices can reach, by bus address.
#[derive(Default)]
pub(super) struct Frames {
    mapped: BTreeMap<u64, (Frame, Reach)>,
    taken: u64,
    /// Frames to use again, at another address: they are never freed.
    spare: Vec<Frame>,
    /// Accesses that were not allowed.
    pub(super) faults: Vec<BusAddr>,
}

impl Frames {
    /// A frame and a new bus address for it; no two are neighbours on the bus.
    pub(super) fn take(&mut self) -> (Frame, BusAddr) {
        self.taken += 2;
        let frame = self.spare.pop().unwrap_or_else(Frame::new);
        (frame, BusAddr(0x1_2345_6000 + self.taken * PAGE_SIZE as u64))
    }

    pub(super) fn map(&mut self, bus: BusAddr, frame: Frame, reach: Reach) {
        assert!(self.mapped.insert(bus.0, (frame, reach)).is_none(), "mapped twice");
    }

    pub(super) fn unmap(&mut self, bus: BusAddr) {
        let (frame, _) = self.mapped.remove(&bus.0).expect("mapped");
        self.spare.push(frame);
    }

    pub(super) fn count(&self) -> usize {
        self.mapped.len()
    }

    fn reach(&mut self, bus: BusAddr, len: usize, not: Reach) -> Result<(Frame, usize), DmaFault> {
        let offset = (bus.0 % PAGE_SIZE as u64) as usize;
        assert!(offset + len <= PAGE_SIZE, "the controller accesses page by page");
        match self.mapped.get(&(bus.0 - offset as u64)) {
            Some((frame, reach)) if *reach != not => Ok((*frame, offset)),
            _ => {
                self.faults.push(bus);
                Err(DmaFault)
            }
        }
    }
}

impl Dma for Frames {
    fn read(&mut self, bus: BusAddr, to: &mut [u8]) -> Result<(), DmaFault> {
        let (frame, offset) = self.reach(bus, to.len(), Reach::Writes)?;
        frame.read(offset, to);
        Ok(())
    }

    fn write(&mut self, bus: BusAddr, from: &[u8]) -> Result<(), DmaFault> {
        let (frame, offset) = self.reach(bus, from.len(), Reach::Reads)?;
        frame.write(offset, from);
        Ok(())
    }
}

/// A controller and memory: what the driver sees as its `Memory`.
pub(super) struct Machine {
    pub(super) controller: Controller,
    pub(super) frames: Frames,
    pub(super) now: Instant,
    /// Pages that the driver may still take.
    pub(super) pages_left: usize,
}

impl Memory for Machine {
    fn free_pages(&self) -> usize {
        unreachable!("nobody asks")
    }

    fn take_page(&mut self) -> Option<DmaPage> {
        self.pages_left = self.pages_left.checked_sub(1)?;
        let (frame, bus) = self.frames.take();
        frame.fill(0);
        self.frames.map(bus, frame, Reach::Both);
        Some(DmaPage { page: frame.shared(), bus })
    }

    fn return_page(&mut self, page: DmaPage) {
        self.frames.unmap(page.bus);
    }

    fn take_private(&mut self) -> Option<PrivatePage> {
        unreachable!("controllers share their pages with devices")
    }

    fn return_private(&mut self, _: PrivatePage) {
        unreachable!("nothing private was taken")
    }

    fn map_mmio(&mut self, _: BusAddr, _: usize) -> Result<MmioRegion, HypervisorError> {
        unreachable!("the driver is given its registers")
    }

    fn unmap_mmio(&mut self, _: MmioRegion) {
        unreachable!("the registers stay mapped")
    }

    fn read32(&mut self, region: MmioRegion, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < region.len);
        self.controller.read32(offset)
    }

    fn write32(&mut self, region: MmioRegion, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4) && offset < region.len);
        self.controller.write32(offset, value, self.now);
    }
}

/// The driver in that machine.
pub(super) struct Rig {
    pub(super) machine: Machine,
    pub(super) nvme: Nvme,
    /// What was completed and not looked at.
    pub(super) done: Vec<Completion>,
    waits: u32,
}

impl Rig {
    /// A driver that was just given the controller.
    pub(super) fn found(settings: Settings) -> Self {
        let interrupts = settings.msix;
        let mut machine = machine(&settings);
        let region = MmioRegion { base: 0, len: settings.register_bytes() };
        let nvme = Nvme::new(&mut machine, 0, region, interrupts).unwrap();
        let mut rig = Self::new(machine, nvme);
        rig.turn();
        rig
    }

    /// This driver in this machine.
    pub(super) fn new(machine: Machine, nvme: Nvme) -> Self {
        Self { machine, nvme, done: Vec::new(), waits: 0 }
    }

    /// A driver that is ready.
    pub(super) fn ready(settings: Settings) -> Self {
        let mut rig = Self::found(settings);
        rig.run_while(|rig| rig.nvme.status() == Status::Starting);
        assert_eq!(rig.nvme.status(), Status::Ready);
        rig
    }

    /// Runs as long as the condition holds.
    pub(super) fn run_while(&mut self, condition: impl Fn(&Self) -> bool) {
        while condition(self) {
            self.wait();
        }
    }

    /// Sleeps until there is an interrupt or a deadline, as the event loop does, then turns.
    pub(super) fn wait(&mut self) {
        self.waits += 1;
        assert!(self.waits < 300_000, "it goes on for ever");
        let deadline = self.nvme.deadline();
        loop {
            let next = self.machine.controller.next_event().into_iter().chain(deadline).min();
            let next = next.expect("something is awaited that never happens");
            self.machine.now = self.machine.now.max(next);
            let Machine { controller, frames, now, .. } = &mut self.machine;
            let interrupt = controller.step(*now, frames);
            if interrupt || deadline.is_some_and(|deadline| *now >= deadline) {
                return self.turn();
            }
        }
    }

    /// Turns until nothing happens any more, with little room for completions at a time.
    pub(super) fn turn(&mut self) {
        for _ in 0..1000 {
            let mut done: heapless::Vec<Completion, 5> = heapless::Vec::new();
            let now = self.machine.now;
            let progress = self.nvme.turn(&mut self.machine, now, &mut done);
            self.done.extend(done);
            if !progress {
                return;
            }
        }
        panic!("there is progress for ever");
    }

    /// Submits and kicks.
    pub(super) fn submit(
        &mut self,
        token: u32,
        operation: Operation,
        first: u64,
        spans: &[Span],
    ) -> Result<usize, Refusal> {
        let taken = self.nvme.submit(Token(token), 0, operation, Block(first), spans)?;
        self.nvme.kick(&mut self.machine);
        Ok(taken)
    }

    /// Gives blocks up, as many as one command does, and kicks.
    pub(super) fn discard(&mut self, token: u32, first: u64, blocks: u64) -> Result<u64, Refusal> {
        let taken = self.nvme.discard(Token(token), 0, Block(first), Block(blocks))?;
        self.nvme.kick(&mut self.machine);
        Ok(taken.0)
    }

    /// A page of a guest's that the device may reach.
    pub(super) fn guest_page(&mut self, reach: Reach) -> (Frame, Span) {
        let (frame, bus) = self.machine.frames.take();
        self.machine.frames.map(bus, frame, reach);
        (frame, Span { bus, bytes: PAGE_SIZE as u32 })
    }

    /// Runs until the next completion, and takes it.
    pub(super) fn completion(&mut self) -> (u32, Result<(), DeviceError>) {
        self.run_while(|rig| rig.done.is_empty());
        let Completion { token, result } = self.done.remove(0);
        (token.0, result)
    }

    /// Everybody behaved.
    pub(super) fn check(&self) {
        assert_eq!(self.machine.controller.violations(), [""; 0]);
        assert_eq!(self.machine.frames.faults, []);
    }
}

/// A machine with this controller.
pub(super) fn machine(settings: &Settings) -> Machine {
    Machine {
        controller: Controller::new(settings.clone()),
        frames: Frames::default(),
        now: Instant(1_000_000_000),
        pages_left: 100,
    }
}
