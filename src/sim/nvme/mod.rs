//! A simulated NVMe controller at register level, strict about what a driver may do: what it may
//! not is recorded as a violation. `execute` runs commands, with the help of `identify` and `dataset`, [`disk`] keeps the data,
//! `settings` say what the controller is, and what goes wrong. Commands
//! complete in any order, after times that a seed decides, and until CSTS.RDY is clear a reset
//! controller still works on those it has.

mod dataset;
pub mod disk;
mod execute;
mod identify;
mod settings;
#[cfg(test)]
mod tests;

use core::ops::Range;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use disk::Disk;
use execute::Running;
pub use settings::{Faults, Found, Preferred, Settings, Shape};

use super::Dma;
use super::rng::Rng;
use crate::units::{BusAddr, Instant, PAGE_SIZE};
use crate::wire::nvme::{
    ACQ, AQA, ASQ, CAP, CC, CC_CONFIGURATION, CC_ENABLE, CC_SHUT_DOWN, CC_SHUTDOWN_MASK, CSTS, DOORBELLS,
    INTMS,
};

/// The longest that a change of CC.EN or CC.SHN takes, however slow commands are: less than CAP.TO promises.
const CHANGE: Duration = Duration::from_millis(1500);

const VS: usize = 0x08;
const VERSION: u32 = 0x0001_0400;

#[derive(Clone, Debug)]
struct SubmissionQueue {
    base: u64,
    entries: u16,
    head: u16,
    tail: u16,
}

#[derive(Clone, Debug)]
struct CompletionQueue {
    base: u64,
    entries: u16,
    head: u16,
    tail: u16,
    phase: bool,
    interrupts: bool,
}

impl CompletionQueue {
    fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Ready,
    Disabled,
    ShutDown,
}

/// Blocks of a namespace that were read or written, and the pieces of memory they went to or came from.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) namespace: usize,
    pub(super) blocks: Range<u64>,
    pub(super) pages: Vec<BusAddr>,
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    settings: Settings,
    /// What goes wrong from now on.
    pub faults: Faults,
    rng: Rng,
    configuration: u32,
    ready: bool,
    shutdown: u32,
    interrupt_mask: u32,
    reset_by_others: bool,
    admin_attributes: u32,
    admin_bases: [u64; 2],
    change: Option<(Instant, Change)>,
    submission_queues: BTreeMap<u16, SubmissionQueue>,
    completion_queues: BTreeMap<u16, CompletionQueue>,
    running: Vec<Running>,
    /// The queues and ids of commands that have ended, the last one first.
    ended: VecDeque<(u16, u16)>,
    disks: Vec<Disk>,
    violations: Vec<String>,
    flushes: u64,
    forced_writes: u64,
    /// Blocks that were read, by namespace.
    reads: Vec<Vec<u64>>,
    /// Blocks that were deallocated, by namespace.
    discards: Vec<Vec<Range<u64>>>,
    /// What was transferred and nobody has asked about.
    transfers: Vec<Transfer>,
}

impl Controller {
    /// A controller in the state that the settings say it is found in.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let disk = |shape: &Shape| Disk::new(1 << shape.block_shift, settings.volatile_cache);
        let mut controller = Self {
            rng: Rng::new(settings.seed),
            disks: settings.namespaces.iter().map(disk).collect(),
            settings,
            faults: Faults::default(),
            configuration: 0,
            ready: false,
            shutdown: 0,
            interrupt_mask: 0,
            reset_by_others: false,
            admin_attributes: 0,
            admin_bases: [0; 2],
            change: None,
            submission_queues: BTreeMap::new(),
            completion_queues: BTreeMap::new(),
            running: Vec::new(),
            ended: VecDeque::new(),
            violations: Vec::new(),
            flushes: 0,
            forced_writes: 0,
            reads: Vec::new(),
            discards: Vec::new(),
            transfers: Vec::new(),
        };
        controller.use_by_others();
        controller
    }

    /// The disk behind the namespace with this index.
    #[must_use]
    pub fn disk(&self, namespace: usize) -> &Disk {
        &self.disks[namespace]
    }

    /// The disks behind all namespaces.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The same as [`Controller::disk`], to change it.
    pub fn disk_mut(&mut self, namespace: usize) -> &mut Disk {
        &mut self.disks[namespace]
    }

    /// Commands take so long from now on.
    pub fn slow_down(&mut self, latency: Range<Duration>) {
        self.settings.latency = latency;
    }

    /// Flush commands that were executed.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// Writes with Force Unit Access that were executed.
    #[must_use]
    pub fn forced_writes(&self) -> u64 {
        self.forced_writes
    }

    /// The first blocks of all reads of a namespace, in order.
    #[must_use]
    pub fn reads(&self, namespace: usize) -> &[u64] {
        self.reads.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// What was transferred since this was asked last.
    pub(super) fn take_transfers(&mut self) -> Vec<Transfer> {
        core::mem::take(&mut self.transfers)
    }

    /// All ranges of a namespace that were deallocated, in order.
    #[must_use]
    pub fn discards(&self, namespace: usize) -> &[Range<u64>] {
        self.discards.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// What the driver did that it may not do. Faults of DMA are recorded by the memory.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Reads a register.
    pub fn read32(&mut self, offset: usize) -> u32 {
        let [low, high] = halves(self.capabilities());
        match offset {
            _ if self.faults.gone => u32::MAX,
            CAP => low,
            0x04 => high,
            VS => VERSION,
            CC => self.configuration,
            CSTS => self.status(),
            _ => {
                self.violation(format!("reads register {offset:#x}"));
                0
            }
        }
    }

    /// Writes a register.
    pub fn write32(&mut self, offset: usize, value: u32, now: Instant) {
        match offset {
            _ if self.faults.gone => {}
            INTMS if self.settings.msix => self.violation("writes INTMS with MSI-X enabled"),
            INTMS => self.interrupt_mask |= value,
            CC => self.configure(value, now),
            AQA | ASQ..DOORBELLS if self.configuration & CC_ENABLE != 0 => {
                self.violation("changes admin queues of an enabled controller");
            }
            AQA => self.admin_attributes = value,
            ASQ | ACQ => set_half(&mut self.admin_bases[usize::from(offset == ACQ)], 0, value),
            0x2c | 0x34 => set_half(&mut self.admin_bases[usize::from(offset == 0x34)], 32, value),
            DOORBELLS.. => self.doorbell(offset - DOORBELLS, value),
            _ => self.violation(format!("writes register {offset:#x}")),
        }
    }

    /// When [`Controller::step`] has something to do, if nothing else happens.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        if self.faults.gone {
            return None;
        }
        let change = self.change.map(|(at, _)| at);
        let running = self.running.iter().filter(|running| self.has_room(running));
        let running = running.filter_map(|running| running.due).min();
        let fetch = self.has_submissions().then_some(Instant(0));
        [change, running, fetch].into_iter().flatten().min()
    }

    /// Does what is due; returns whether it raises an interrupt.
    pub fn step(&mut self, now: Instant, dma: &mut impl Dma) -> bool {
        if self.faults.gone {
            return false;
        }
        self.fetch(now, dma);
        let interrupt = self.execute_due(now, dma);
        if let Some((at, change)) = self.change
            && now >= at
        {
            self.change = None;
            self.apply(change);
        }
        interrupt && self.interrupt_mask & 1 == 0
    }

    /// A function level reset, which the driver does not know of: it may go on ringing doorbells.
    pub fn reset(&mut self) {
        self.reset_by_others = true;
        self.configuration = 0;
        self.change = None;
        self.interrupt_mask = 0;
        self.apply(Change::Disabled);
    }

    fn use_by_others(&mut self) {
        let found = self.settings.found;
        if found == Found::Off {
            return;
        }
        self.admin_attributes = 0x001f_001f;
        self.admin_bases = [self.rng.bits() & !0xfff, self.rng.bits() & !0xfff];
        self.configuration = CC_CONFIGURATION;
        self.create_admin_queues();
        self.create_stale_queues();
        self.configuration |= if found == Found::Disabling { 0 } else { CC_ENABLE };
        self.ready = found != Found::Enabling;
        self.faults.fatal = found == Found::Fatal;
        let soon = Instant(self.rng.within(1..1_000_000_000));
        match found {
            Found::Enabling => self.change = Some((soon, Change::Ready)),
            Found::Disabling => self.change = Some((soon, Change::Disabled)),
            Found::ShutDown => {
                self.configuration |= CC_SHUT_DOWN;
                self.shutdown = 0b10;
            }
            Found::Off | Found::Enabled | Found::Fatal => {}
        }
    }

    fn create_stale_queues(&mut self) {
        let head = self.rng.index(64) as u16;
        let base = self.rng.bits() & !0xfff;
        self.submission_queues.insert(1, SubmissionQueue { base, entries: 64, head, tail: head });
        let queue = CompletionQueue { base, entries: 64, head, tail: head, phase: false, interrupts: true };
        self.completion_queues.insert(1, queue);
    }

    fn capabilities(&self) -> u64 {
        const CONTIGUOUS: u64 = 1 << 16;
        const TIMEOUT: u64 = 4 << 24;
        const NVM_COMMAND_SET: u64 = 1 << 37;
        let stride = u64::from(self.settings.doorbell_stride) << 32;
        u64::from(self.settings.queue_entries - 1) | CONTIGUOUS | TIMEOUT | stride | NVM_COMMAND_SET
    }

    fn status(&self) -> u32 {
        u32::from(self.ready) | u32::from(self.faults.fatal) << 1 | self.shutdown << 2
    }

    fn configure(&mut self, value: u32, now: Instant) {
        let was_enabled = self.configuration & CC_ENABLE != 0;
        let enables = value & CC_ENABLE != 0;
        self.configuration = value;
        let soon = now + self.delay().min(CHANGE);
        match (was_enabled, enables) {
            (false, true) => self.enable(value, soon),
            (true, false) => {
                let enabling = self.change.is_some_and(|(_, change)| change == Change::Ready);
                if enabling && !self.faults.fatal {
                    self.violation("disables a controller that is not ready yet");
                }
                self.change = (!self.faults.never_disabled).then_some((soon, Change::Disabled));
                self.hurry(now);
                if !self.ready {
                    self.change = None;
                    self.apply(Change::Disabled);
                }
            }
            (true, true) if value & CC_SHUTDOWN_MASK == CC_SHUT_DOWN => {
                if !self.running.is_empty() {
                    self.violation("shuts down with commands in flight");
                }
                self.shutdown = 0b01;
                self.change = Some((soon, Change::ShutDown));
            }
            (true, true) | (false, false) => {}
        }
    }

    fn enable(&mut self, value: u32, soon: Instant) {
        self.reset_by_others = false;
        if self.ready || self.change.is_some() {
            self.violation("enables a controller that is not disabled yet");
        }
        if value != CC_CONFIGURATION | CC_ENABLE {
            self.violation(format!("configures {value:#x}"));
        }
        if self.admin_bases.iter().any(|base| base % PAGE_SIZE as u64 != 0 || *base == 0) {
            self.violation("places an admin queue off a page");
        }
        self.change = (!self.faults.never_ready).then_some((soon, Change::Ready));
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Ready => {
                self.create_admin_queues();
                self.ready = true;
            }
            Change::Disabled => {
                self.submission_queues.clear();
                self.completion_queues.clear();
                self.running.clear();
                self.ended.clear();
                (self.ready, self.shutdown) = (false, 0);
                self.faults.fatal = self.faults.fatal_for_good;
            }
            Change::ShutDown => {
                self.disks.iter_mut().for_each(Disk::flush);
                self.shutdown = 0b10;
            }
        }
    }

    fn create_admin_queues(&mut self) {
        let [sq_size, cq_size] = halves16(self.admin_attributes).map(|size| size + 1);
        let [sq_base, cq_base] = self.admin_bases;
        self.create_submission_queue(0, sq_base, sq_size);
        self.create_completion_queue(0, cq_base, cq_size, true);
    }

    fn create_submission_queue(&mut self, number: u16, base: u64, entries: u16) {
        let queue = SubmissionQueue { base, entries, head: 0, tail: 0 };
        self.submission_queues.insert(number, queue);
    }

    fn create_completion_queue(&mut self, number: u16, base: u64, entries: u16, interrupts: bool) {
        let queue = CompletionQueue { base, entries, head: 0, tail: 0, phase: true, interrupts };
        self.completion_queues.insert(number, queue);
    }

    fn doorbell(&mut self, offset: usize, value: u32) {
        if self.reset_by_others {
            return;
        }
        let stride = 4 << self.settings.doorbell_stride;
        let number = u16::try_from(offset / stride / 2).unwrap_or(u16::MAX);
        let value = u16::try_from(value).unwrap_or(u16::MAX);
        let working = self.ready && self.configuration & CC_ENABLE != 0;
        let error = if !offset.is_multiple_of(stride) || !working {
            Err("rings a doorbell that is not there")
        } else if (offset / stride).is_multiple_of(2) {
            self.ring_tail(number, value)
        } else {
            self.ring_head(number, value)
        };
        if let Err(what) = error {
            self.violation(format!("{what}: queue {number}, value {value}"));
        }
    }

    fn ring_tail(&mut self, number: u16, tail: u16) -> Result<(), &'static str> {
        let queue = self.submission_queues.get_mut(&number).ok_or("submits to no queue")?;
        let n = queue.entries;
        if tail >= n {
            return Err("submits beyond the queue");
        }
        let waiting = (queue.tail + n - queue.head) % n;
        let new = (tail + n - queue.tail) % n;
        queue.tail = tail;
        if waiting + new >= n { Err("overruns the submission queue") } else { Ok(()) }
    }

    fn ring_head(&mut self, number: u16, head: u16) -> Result<(), &'static str> {
        let queue = self.completion_queues.get_mut(&number).ok_or("acknowledges to no queue")?;
        let n = queue.entries;
        if head >= n {
            return Err("acknowledges beyond the queue");
        }
        let posted = (queue.tail + n - queue.head) % n;
        let taken = (head + n - queue.head) % n;
        queue.head = head;
        if taken > posted { Err("acknowledges what was not posted") } else { Ok(()) }
    }

    fn has_submissions(&self) -> bool {
        self.ready && self.submission_queues.values().any(|queue| queue.head != queue.tail)
    }

    fn delay(&mut self) -> Duration {
        let Range { start, end } = self.settings.latency;
        let nanoseconds = |time: Duration| time.as_nanos() as u64;
        Duration::from_nanos(self.rng.within(nanoseconds(start)..nanoseconds(end)))
    }

    fn violation(&mut self, what: impl ToString) {
        self.violations.push(what.to_string());
    }
}

fn halves(value: u64) -> [u32; 2] {
    [(value & 0xffff_ffff) as u32, (value >> 32) as u32]
}

fn halves16(value: u32) -> [u16; 2] {
    [(value & 0xffff) as u16, (value >> 16) as u16]
}

fn set_half(value: &mut u64, shift: u32, half: u32) {
    *value = *value & !(0xffff_ffff << shift) | u64::from(half) << shift;
}
