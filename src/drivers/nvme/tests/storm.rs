//! Lots of I/O in every shape, compared with a shadow of the disk.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::rig::{Reach, Rig};
use crate::drivers::nvme::Nvme;
use crate::drivers::{DeviceError, Operation, Refusal, Status, Token};
use crate::mem::frame::Frame;
use crate::sim::nvme::disk::Disk;
use crate::sim::nvme::{Found, Settings};
use crate::sim::rng::Rng;
use crate::units::{Block, BusAddr, PAGE_SIZE, SECTOR_SIZE, Span};

/// Blocks of 4 KiB that the storm is about; each request has a zone of its own while in flight.
const ZONES: u64 = 16;
const ZONE_BYTES: u64 = 1 << 20;

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Do(Operation),
    /// Gives up so many blocks.
    Discard(u64),
}

/// A request being carried out, by as many commands as it takes.
struct Request {
    namespace: usize,
    task: Task,
    first: u64,
    pages: Vec<(Frame, BusAddr)>,
    spans: Vec<Span>,
    /// Spans that were submitted.
    issued: usize,
    /// Blocks that were submitted to be given up.
    given_up: u64,
    /// Commands in flight.
    parts: usize,
    is_issued: bool,
    /// One of its commands has failed: it is done all over again.
    has_failed: bool,
}

impl Request {
    fn block_of(&self, spans: usize, block_size: u64) -> u64 {
        self.first + bytes(&self.spans[..spans]) / block_size
    }

    /// Submits what one command can do.
    fn submit_part(&mut self, nvme: &mut Nvme, token: Token, block_size: u64) -> Result<(), Refusal> {
        match self.task {
            Task::Do(operation) => {
                let first = Block(self.block_of(self.issued, block_size));
                let spans = &self.spans[self.issued..];
                self.issued += nvme.submit(token, self.namespace, operation, first, spans)?;
                self.is_issued = self.issued == self.spans.len();
            }
            Task::Discard(blocks) => {
                let (first, left) = (Block(self.first + self.given_up), Block(blocks - self.given_up));
                self.given_up += nvme.discard(token, self.namespace, first, left)?.0;
                self.is_issued = self.given_up == blocks;
            }
        }
        self.parts += 1;
        Ok(())
    }

    fn read_memory(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for span in &self.spans {
            let page = span.bus.0 / PAGE_SIZE as u64 * PAGE_SIZE as u64;
            let (frame, _) = self.pages.iter().find(|(_, bus)| bus.0 == page).unwrap();
            let mut piece = std::vec![0; span.bytes as usize];
            frame.read((span.bus.0 - page) as usize, &mut piece);
            data.append(&mut piece);
        }
        data
    }
}

fn bytes(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.bytes)).sum()
}

struct Storm {
    rig: Rig,
    rng: Rng,
    shadows: Vec<Disk>,
    /// By token; one for each zone at most.
    requests: BTreeMap<u32, Request>,
    flushes: u64,
    /// So often something happens that takes a reset.
    trouble: u32,
}

impl Storm {
    fn new(settings: Settings) -> Self {
        let shadow = |shape: &crate::sim::nvme::Shape| Disk::new(1 << shape.block_shift, false);
        let shadows = settings.namespaces.iter().map(shadow).collect();
        let rng = Rng::new(!settings.seed);
        Self { rig: Rig::ready(settings), rng, shadows, requests: BTreeMap::new(), flushes: 0, trouble: 0 }
    }

    fn run(&mut self, requests: usize) {
        let mut begun = 0;
        while begun < requests || !self.requests.is_empty() {
            while begun < requests && !self.rng.one_in(4) && self.begin() {
                begun += 1;
            }
            self.issue();
            self.make_trouble();
            if !self.requests.is_empty() {
                self.rig.wait();
                self.take_completions();
            }
        }
    }

    /// Begins a request in a zone that has none; false when there is none left.
    fn begin(&mut self) -> bool {
        let free: Vec<u32> = (0..ZONES as u32).filter(|zone| !self.requests.contains_key(zone)).collect();
        if free.is_empty() {
            return false;
        }
        let zone = free[self.rng.index(free.len())];
        let task = match self.rng.index(11) {
            0 => Task::Do(Operation::Flush),
            1 => Task::Do(Operation::WriteFua),
            2..5 => Task::Do(Operation::Write),
            5 => Task::Discard(0),
            _ => Task::Do(Operation::Read),
        };
        let namespace = self.rng.index(self.shadows.len());
        let block_size = self.block_size(namespace);
        let most = if self.rng.one_in(4) { 200 << 10 } else { 16 << 10 };
        let blocks = self.rng.within(1..most / block_size);
        let offset = self.rng.within(0..ZONE_BYTES / block_size - blocks);
        let first = u64::from(zone) * (ZONE_BYTES / block_size) + offset;
        let request = match task {
            Task::Do(Operation::Flush) => self.request(namespace, task, 0, 0),
            Task::Do(_) => self.request(namespace, task, first, blocks * block_size),
            Task::Discard(_) => self.request(namespace, Task::Discard(blocks), first, 0),
        };
        self.requests.insert(zone, request);
        true
    }

    fn block_size(&self, namespace: usize) -> u64 {
        self.rig.nvme.namespaces()[namespace].unwrap().block_size.into()
    }

    /// A request with data in freshly mapped pages, in spans of random shapes where blocks of the
    /// disk leave room for them.
    fn request(&mut self, namespace: usize, task: Task, first: u64, bytes: u64) -> Request {
        let (mut pages, mut spans) = (Vec::new(), Vec::new());
        let reach = if task == Task::Do(Operation::Read) { Reach::Writes } else { Reach::Reads };
        let whole = self.block_size(namespace) == PAGE_SIZE as u64;
        let mut left = bytes;
        while left > 0 {
            let (frame, Span { bus, .. }) = self.rig.guest_page(reach);
            let mut content = [0; PAGE_SIZE];
            self.rng.fill(&mut content);
            frame.write(0, &content);
            pages.push((frame, bus));
            let sectors = (PAGE_SIZE / SECTOR_SIZE) as u64;
            let ragged = !whole && self.rng.one_in(3);
            let start = if ragged { self.rng.within(0..sectors) } else { 0 };
            let end = if ragged { self.rng.within(start + 1..sectors + 1) } else { sectors };
            let length = ((end - start) * SECTOR_SIZE as u64).min(left);
            left -= length;
            let bus = bus.offset(start * SECTOR_SIZE as u64);
            spans.push(Span { bus, bytes: length as u32 });
        }
        Request {
            namespace,
            task,
            first,
            pages,
            spans,
            issued: 0,
            given_up: 0,
            parts: 0,
            is_issued: false,
            has_failed: false,
        }
    }

    /// Submits what the queue has room for, with one kick.
    fn issue(&mut self) {
        let tokens: Vec<u32> = self.requests.keys().copied().collect();
        'full: for token in tokens {
            let request = &self.requests[&token];
            let block_size = self.block_size(request.namespace);
            let request = self.requests.get_mut(&token).unwrap();
            while !request.is_issued {
                match request.submit_part(&mut self.rig.nvme, Token(token), block_size) {
                    Ok(()) => {}
                    Err(Refusal::Full | Refusal::NotReady) => break 'full,
                    Err(refusal) => panic!("{refusal:?}"),
                }
            }
        }
        self.rig.nvme.kick(&mut self.rig.machine);
    }

    fn take_completions(&mut self) {
        for completion in core::mem::take(&mut self.rig.done) {
            let token = completion.token.0;
            let failed = completion.result.is_err();
            if failed {
                assert_eq!((completion.result, self.is_troubled()), (Err(DeviceError::Reset), true));
            }
            let request = self.requests.get_mut(&token).expect("in flight");
            request.has_failed |= failed;
            request.parts -= 1;
            if request.parts > 0 {
                continue;
            }
            if request.has_failed {
                (request.issued, request.given_up) = (0, 0);
                (request.is_issued, request.has_failed) = (false, false);
            } else if request.is_issued {
                let request = self.requests.remove(&token).unwrap();
                self.finish(&request);
            }
        }
    }

    fn is_troubled(&self) -> bool {
        self.rig.nvme.counters().resets > 0
    }

    /// Now and then a fatal error, or a few commands that are forgotten.
    fn make_trouble(&mut self) {
        if self.trouble > 0 && self.rig.nvme.status() == Status::Ready && self.rng.one_in(8) {
            self.trouble -= 1;
            let faults = &mut self.rig.machine.controller.faults;
            if self.rng.one_in(2) {
                faults.fatal = true;
            } else {
                faults.forgets = self.rng.within(1..4) as u32;
            }
        }
    }

    fn finish(&mut self, request: &Request) {
        for (_, bus) in &request.pages {
            self.rig.machine.frames.unmap(*bus);
        }
        let shadow = &mut self.shadows[request.namespace];
        let blocks =
            bytes(&request.spans) / self.rig.nvme.namespaces()[request.namespace].unwrap().block_size as u64;
        match request.task {
            Task::Do(Operation::Read) => {
                assert!(request.read_memory() == shadow.read(request.first, blocks));
            }
            Task::Do(Operation::Write | Operation::WriteFua) => {
                shadow.write(request.first, &request.read_memory());
            }
            Task::Do(Operation::Flush) => self.flushes += 1,
            Task::Discard(blocks) => {
                let disk = self.rig.machine.controller.disk(request.namespace);
                for block in request.first..request.first + blocks {
                    let now = disk.read(block, 1);
                    assert!(now == shadow.read(block, 1) || now.iter().all(|byte| *byte == 0));
                    shadow.write(block, &now);
                }
            }
        }
    }

    /// Flushes both disks, cuts the power, and compares all of them.
    fn compare(mut self) {
        for namespace in 0..self.shadows.len() {
            let request = self.request(namespace, Task::Do(Operation::Flush), 0, 0);
            self.requests.insert(namespace as u32, request);
        }
        self.run(0);
        let flushes = self.rig.machine.controller.flushes();
        assert!(flushes == self.flushes || self.is_troubled() && flushes > self.flushes);
        for (namespace, shadow) in self.shadows.iter().enumerate() {
            let disk = self.rig.machine.controller.disk_mut(namespace);
            disk.cut_power(&mut self.rng);
            let blocks =
                ZONES * ZONE_BYTES / self.rig.nvme.namespaces()[namespace].unwrap().block_size as u64;
            assert!(disk.read(0, blocks) == shadow.read(0, blocks));
        }
        self.rig.check();
    }
}

fn storm(settings: Settings, requests: usize) {
    let mut storm = Storm::new(settings);
    storm.run(requests);
    storm.compare();
}

#[test]
fn what_is_written_is_read_whatever_the_shapes() {
    for seed in 0..3 {
        storm(Settings::new(seed), 600);
    }
}

#[test]
fn small_transfers_small_queues_and_wide_doorbells_change_nothing() {
    for (seed, mdts, queue_entries, doorbell_stride, discard) in
        [(10, 1, 2, 0, 3), (11, 2, 3, 1, 7), (12, 3, 9, 4, 50), (13, 0, 64, 2, 1)]
    {
        let deallocate_limit = Some(discard);
        let small =
            Settings { mdts, queue_entries, doorbell_stride, deallocate_limit, ..Settings::new(seed) };
        storm(small, 300);
    }
}

#[test]
fn polling_alone_suffices() {
    storm(Settings { msix: false, ..Settings::new(20) }, 300);
}

#[test]
fn interrupts_that_get_lost_lose_nothing() {
    let mut lossy = Storm::new(Settings::new(30));
    lossy.rig.machine.controller.faults.lost_interrupt = 3;
    lossy.run(300);
    lossy.compare();
}

#[test]
fn doubled_and_invented_completions_answer_nobody() {
    let mut lying = Storm::new(Settings::new(40));
    lying.rig.machine.controller.faults.doubled = 3;
    lying.rig.machine.controller.faults.invented = 3;
    lying.run(500);
    assert!(lying.rig.nvme.counters().strays > 100);
    lying.compare();
}

#[test]
fn resets_and_errors_that_pass_lose_and_change_nothing() {
    let (mut resets, mut repeats) = (0, 0);
    for seed in 0..200_u64 {
        let found = Found::ALL[seed as usize % Found::ALL.len()];
        let queue_entries = [64, 5][seed as usize % 2];
        let settings = Settings { found, queue_entries, ..Settings::new(seed) };
        let mut troubled = Storm::new(settings);
        troubled.trouble = 2;
        let faults = &mut troubled.rig.machine.controller.faults;
        (faults.error, faults.doubled, faults.lost_interrupt) = (50, 10, 10);
        troubled.run(60);
        let counters = troubled.rig.nvme.counters();
        (resets, repeats) = (resets + counters.resets, repeats + counters.repeats);
        troubled.compare();
    }
    assert!(resets > 80 && repeats > 700, "{resets}, {repeats}");
}

#[test]
fn disks_without_a_cache_keep_every_write() {
    storm(Settings { volatile_cache: false, ..Settings::new(50) }, 300);
}
