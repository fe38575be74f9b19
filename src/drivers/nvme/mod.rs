//! NVMe: one controller, its admin queue and one I/O queue pair, as a state machine that never
//! waits. `reset` and `setup` bring the controller up, `queue`, `tags` and `prp` carry
//! commands, `watch` says when to look at it; formats are in `wire::nvme`.
//!
//! Interrupts are only a hint: each turn polls the completion queue, and while commands are in
//! flight a deadline does so if nothing else does. A controller that leaves a command unanswered,
//! or reports a fatal error, is reset, and what was in flight is given back as failed only when
//! CSTS.RDY has become clear: until then the controller may still write to the memory of those
//! commands. One that never clears it has failed, and its commands are *never* completed.
//!
//! A flush is always sent: without a volatile write cache the controller completes it at once
//! (Base 7.1). Not handled: controllers before NVMe 1.1, which cannot list their namespaces,
//! retries (the guest gets the error), namespaces that change while we serve them.

mod prp;
mod queue;
mod reset;
mod setup;
mod tags;
#[cfg(all(test, feature = "sim"))]
mod tests;
mod watch;

use core::time::Duration;

use heapless::Vec;
use log::{info, warn};

use super::{Completion, DeviceError, Namespace, Operation, Refusal, Status, Token};
use crate::hal::{DmaPage, Memory, MmioRegion};
use crate::limits::NAMESPACES;
use crate::units::{Block, Instant, Span};
use crate::wire::nvme::command::{CommandId, Submission, io};
use crate::wire::nvme::{CAP, CC, CC_CONFIGURATION, CC_ENABLE, CC_SHUT_DOWN, CSTS};
use crate::wire::nvme::{Capabilities, ControllerStatus, DOORBELLS};

use prp::{Prefix, PrpLists};
use queue::QueuePair;
use reset::{Next, Restarts};
use setup::Setup;
use tags::Tags;
use watch::Watch;

/// The number of our only I/O queue pair.
const IO_QUEUE: u16 = 1;

/// How long a command may stay unanswered: what Linux grants one (its `nvme_core.io_timeout`).
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two looks at a register that is expected to change, or at the admin queue.
const STEP_POLL: Duration = Duration::from_millis(1);

/// How long a shutdown may take: RTD3E, but within these bounds.
const SHUTDOWN_SHORTEST: Duration = Duration::from_secs(5);
const SHUTDOWN_LONGEST: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum State {
    /// As somebody else left it.
    Found,
    /// Being enabled, by whoever had it before: a reset now has undefined results (3.1.3.5).
    Settling { until: Instant },
    /// CC.EN is clear, CSTS.RDY is not yet: it may still access memory.
    Disabling { until: Instant, next: Next },
    /// CSTS.RDY is clear. What was in flight is being given back.
    Disabled { next: Next },
    /// CC.EN is set, CSTS.RDY is not yet.
    Enabling { until: Instant },
    /// An admin command is in flight.
    SettingUp { step: Setup, until: Instant },
    /// Takes commands.
    Ready,
    /// CC.SHN is set.
    ShuttingDown { until: Instant },
    /// Shut down.
    Stopped,
    /// Given up, disabled unless that was what failed.
    Failed(DeviceError),
}

/// What is counted, and said only the first time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Commands that ended with an error status.
    pub errors: u64,
    /// Completions of no command in flight: stale, invented or doubled.
    pub strays: u64,
    /// Resets, the one on arrival not counted.
    pub resets: u64,
}

/// One controller.
#[derive(Debug)]
pub struct Nvme {
    index: usize,
    registers: MmioRegion,
    interrupts: bool,
    capabilities: Capabilities,
    state: State,
    /// The time of the last turn.
    now: Instant,
    admin: QueuePair,
    /// The admin command in flight, or the last one.
    admin_command: CommandId,
    identify: DmaPage,
    io: QueuePair,
    prp_lists: PrpLists,
    tags: Tags,
    watch: Watch,
    restarts: Restarts,
    counters: Counters,
    /// The largest transfer of one command, in bytes.
    max_bytes: u32,
    volatile_cache: bool,
    shutdown_time: Duration,
    /// The fields from here on hold what the controller said, and are not asked for again.
    identified: bool,
    namespace_ids: Vec<u32, NAMESPACES>,
    namespaces: Vec<Result<Namespace, DeviceError>, NAMESPACES>,
}

impl Nvme {
    /// The `index`-th controller, behind these registers, whatever state it is in. Without
    /// `interrupts` its completion queue is polled while commands are in flight.
    ///
    /// # Errors
    /// Nothing answers there, or no memory is left.
    pub fn new(
        hal: &mut impl Memory,
        index: usize,
        registers: MmioRegion,
        interrupts: bool,
    ) -> Result<Self, DeviceError> {
        if registers.len < DOORBELLS || hal.read32(registers, CSTS) == u32::MAX {
            return Err(DeviceError::Gone);
        }
        let low = u64::from(hal.read32(registers, CAP));
        let capabilities = Capabilities(u64::from(hal.read32(registers, CAP + 4)) << 32 | low);
        let (entries, stride) = (capabilities.queue_entries(), capabilities.doorbell_stride());
        let [admin_sq, admin_cq, io_sq, io_cq, identify, lists @ ..] =
            take_pages::<{ 5 + prp::LIST_PAGES }>(hal)?;
        Ok(Self {
            index,
            registers,
            interrupts,
            capabilities,
            state: State::Found,
            now: Instant(0),
            admin: QueuePair::new(0, setup::ADMIN_ENTRIES, stride, admin_sq, admin_cq),
            admin_command: CommandId(0),
            identify,
            io: QueuePair::new(IO_QUEUE, entries, stride, io_sq, io_cq),
            prp_lists: PrpLists::new(lists),
            tags: Tags::new(entries),
            watch: Watch::new(interrupts),
            restarts: Restarts::default(),
            counters: Counters::default(),
            max_bytes: 0,
            volatile_cache: false,
            shutdown_time: SHUTDOWN_SHORTEST,
            identified: false,
            namespace_ids: Vec::new(),
            namespaces: Vec::new(),
        })
    }

    /// See [`super::Disk::turn`].
    pub fn turn<const N: usize>(
        &mut self,
        hal: &mut impl Memory,
        now: Instant,
        done: &mut Vec<Completion, N>,
    ) -> bool {
        self.now = now;
        match self.state {
            State::Found => self.arrive(hal),
            State::Settling { until } => self.settle(hal, until),
            State::Disabling { until, next } => self.await_disabled(hal, until, next),
            State::Disabled { next } => self.give_back(hal, next, done),
            State::Enabling { until } => self.await_enabled(hal, until),
            State::SettingUp { step, until } => self.await_setup(hal, step, until),
            State::Ready => self.serve(hal, done),
            State::ShuttingDown { until } => self.await_shutdown(hal, until),
            State::Stopped | State::Failed(_) => false,
        }
    }

    /// See [`super::Disk::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Found | State::Disabled { .. } => Some(self.now),
            State::Settling { .. }
            | State::Disabling { .. }
            | State::Enabling { .. }
            | State::SettingUp { .. }
            | State::ShuttingDown { .. } => Some(self.now + STEP_POLL),
            State::Ready if self.tags.is_empty() => None,
            State::Ready => Some(self.watch.deadline()),
            State::Stopped | State::Failed(_) => None,
        }
    }

    /// See [`super::Disk::status`].
    #[must_use]
    pub fn status(&self) -> Status {
        match self.state {
            State::Found
            | State::Settling { .. }
            | State::Disabling { .. }
            | State::Disabled { .. }
            | State::Enabling { .. }
            | State::SettingUp { .. } => Status::Starting,
            State::Ready => Status::Ready,
            State::ShuttingDown { .. } => Status::Stopping,
            State::Stopped => Status::Stopped,
            State::Failed(reason) => Status::Failed(reason),
        }
    }

    /// See [`super::Disk::namespaces`]: the n-th active namespace in the order of their ids, as
    /// Linux numbers them.
    pub fn namespaces(&self) -> &[Result<Namespace, DeviceError>] {
        &self.namespaces
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// See [`super::Disk::submit`]. The command's age counts from the last turn.
    ///
    /// # Errors
    /// It was not taken.
    pub fn submit(
        &mut self,
        token: Token,
        namespace: usize,
        operation: Operation,
        first: Block,
        spans: &[Span],
    ) -> Result<usize, Refusal> {
        self.is_taking()?;
        let (Some(Ok(format)), Some(&id)) =
            (self.namespaces.get(namespace), self.namespace_ids.get(namespace))
        else {
            return Err(Refusal::Inexpressible);
        };
        let prefix = match operation {
            Operation::Read | Operation::Write => {
                Prefix::longest(spans, format.block_size, self.max_bytes).ok_or(Refusal::Inexpressible)?
            }
            Operation::Flush => Prefix::NONE,
        };
        if self.tags.is_empty() {
            self.watch.start(self.now);
        }
        let (tag, command) = self.tags.enter(token, self.now).ok_or(Refusal::Full)?;
        let data = self.prp_lists.describe(tag, &spans[..prefix.spans]);
        let blocks = prefix.bytes >> format.block_size.trailing_zeros();
        self.io.push(match operation {
            Operation::Read => Submission::transfer(command, io::READ, id, first, blocks, data),
            Operation::Write => Submission::transfer(command, io::WRITE, id, first, blocks, data),
            Operation::Flush => Submission::flush(command, id),
        });
        Ok(prefix.spans)
    }

    /// See [`super::Disk::kick`].
    pub fn kick(&mut self, hal: &mut impl Memory) {
        if let State::Ready = self.state {
            self.io.ring(hal, self.registers);
        }
    }

    /// See [`super::Disk::shut_down`] (3.6.1). A controller that is not ready holds nothing of
    /// ours in its cache, and stops as it is.
    pub fn shut_down(&mut self, hal: &mut impl Memory) {
        match self.state {
            State::Ready => {
                hal.write32(self.registers, CC, CC_CONFIGURATION | CC_ENABLE | CC_SHUT_DOWN);
                self.state = State::ShuttingDown { until: self.now + self.shutdown_time };
            }
            State::Found
            | State::Settling { .. }
            | State::Disabling { .. }
            | State::Disabled { .. }
            | State::Enabling { .. }
            | State::SettingUp { .. } => self.state = State::Stopped,
            State::ShuttingDown { .. } | State::Stopped | State::Failed(_) => {}
        }
    }

    fn is_taking(&self) -> Result<(), Refusal> {
        match self.status() {
            Status::Ready => Ok(()),
            Status::Starting => Err(Refusal::NotReady),
            Status::Stopping | Status::Stopped | Status::Failed(_) => Err(Refusal::Dead),
        }
    }

    fn serve<const N: usize>(&mut self, hal: &mut impl Memory, done: &mut Vec<Completion, N>) -> bool {
        let progress = self.harvest(hal, done);
        if progress {
            self.watch.progress(self.now);
        }
        if self.tags.is_empty() {
            return progress;
        }
        self.watch.nothing(self.now);
        if self.watch.health_is_due(self.now)
            && let Some(fault) = self.fault(hal)
        {
            self.restart(hal, fault);
            return true;
        }
        progress
    }

    /// Takes completions while there is room for them.
    fn harvest<const N: usize>(&mut self, hal: &mut impl Memory, done: &mut Vec<Completion, N>) -> bool {
        let mut progress = false;
        for _ in 0..self.io.entries() {
            if done.is_full() {
                break;
            }
            let Some(entry) = self.io.next() else { break };
            progress = true;
            let Some(token) = self.tags.take(entry.id) else {
                self.count_stray(entry.id);
                continue;
            };
            let result = entry.result.map_err(DeviceError::Command);
            if let Err(error) = result {
                self.count_error(error);
            }
            // There is room.
            let _ = done.push(Completion { token, result });
        }
        self.io.acknowledge(hal, self.registers);
        progress
    }

    /// What is wrong with the controller, if something is.
    fn fault(&self, hal: &mut impl Memory) -> Option<DeviceError> {
        let late = |issued| self.now.since(issued) > COMMAND_TIMEOUT;
        let timeout = self.tags.oldest().is_some_and(late).then_some(DeviceError::Timeout);
        fault_of(self.controller_status(hal)).or(timeout)
    }

    fn count_error(&mut self, error: DeviceError) {
        self.counters.errors += 1;
        if self.counters.errors == 1 {
            warn!("nvme{}: {error}; more such errors are only counted", self.index);
        }
    }

    fn count_stray(&mut self, id: CommandId) {
        self.counters.strays += 1;
        if self.counters.strays == 1 {
            let id = id.0;
            warn!("nvme{}: it completed {id:#06x}, not in flight; more are only counted", self.index);
        }
    }

    fn await_shutdown(&mut self, hal: &mut impl Memory, until: Instant) -> bool {
        if self.controller_status(hal).is_shut_down() {
            info!("nvme{}: shut down", self.index);
        } else if self.now >= until {
            warn!("nvme{}: its shutdown did not end in time", self.index);
        } else {
            return false;
        }
        self.state = State::Stopped;
        true
    }

    fn controller_status(&self, hal: &mut impl Memory) -> ControllerStatus {
        ControllerStatus(hal.read32(self.registers, CSTS))
    }
}

/// What the controller itself says is wrong with it.
fn fault_of(status: ControllerStatus) -> Option<DeviceError> {
    if status.is_gone() { Some(DeviceError::Gone) } else { status.is_fatal().then_some(DeviceError::Fatal) }
}

/// Takes `N` pages, or none.
fn take_pages<const N: usize>(hal: &mut impl Memory) -> Result<[DmaPage; N], DeviceError> {
    let mut pages: Vec<DmaPage, N> = Vec::new();
    while let Some(page) = (!pages.is_full()).then(|| hal.take_page()).flatten() {
        // There is room.
        let _ = pages.push(page);
    }
    pages.into_array().map_err(|pages| {
        pages.into_iter().for_each(|page| hal.return_page(page));
        DeviceError::NoMemory
    })
}
