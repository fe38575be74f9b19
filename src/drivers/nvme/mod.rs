//! NVMe: one controller, its admin queue and one I/O queue pair, as a state machine that never
//! waits. `reset` and `setup` bring the controller up, `serve` takes its completions, `queue`,
//! `tags` and `prp` carry commands, `discard` makes those that give up blocks, `watch` says when to
//! look at it, `end` is how it is left; formats are in `wire::nvme`.
//!
//! Interrupts are only a hint: each turn polls the completion queue, and while commands are in
//! flight a deadline does so if nothing else does. A command that fails is issued again a few times
//! where that may help. A controller that leaves a command unanswered, or reports a fatal error, is
//! reset: the commands that were late are given back as failed, but only when CSTS.RDY has become
//! clear, because until then the controller may still write to their memory; the others are issued
//! again. From one that never clears it nothing is given back before it is isolated.
//!
//! A flush is always sent: without a volatile write cache the controller completes it at once
//! (Base 7.1). It covers writes that were completed before it was submitted, so those that are
//! issued again with it do not matter to it. Not handled: controllers before NVMe 1.1, which cannot
//! list their namespaces, namespaces that change while we serve them. Blocks that are given up are
//! not erased: NVMe has no command that erases a part of a namespace.

mod discard;
mod end;
mod prp;
mod queue;
mod reset;
mod serve;
mod setup;
mod tags;
#[cfg(all(test, feature = "sim"))]
mod tests;
mod watch;

use core::time::Duration;

use heapless::Vec;

use super::{Completion, DeviceError, Namespace, Operation, Refusal, Status, Token};
use crate::hal::{DmaPage, Memory, MmioRegion};
use crate::limits::NAMESPACES;
use crate::units::{Block, Instant, Span};
use crate::wire::nvme::command::{CommandId, Submission, io};
use crate::wire::nvme::identify::Identity;
use crate::wire::nvme::{CAP, CSTS, Capabilities, ControllerStatus, DOORBELLS};

use prp::{Prefix, PrpLists};
use queue::QueuePair;
use reset::{Next, Restarts};
use setup::Setup;
use tags::{Tag, Tags};
use watch::Watch;

/// The number of our only I/O queue pair.
const IO_QUEUE: u16 = 1;

/// How long a command may stay unanswered: what Linux grants one (its `nvme_core.io_timeout`).
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two looks at a register that is expected to change, or at the admin queue.
const STEP_POLL: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
enum State {
    /// As somebody else left it.
    Found,
    /// Being enabled, by whoever had it before: a reset now has undefined results (3.1.3.5).
    Settling { until: Instant },
    /// CC.EN is clear, CSTS.RDY is not yet: it may still access memory.
    Disabling { until: Instant, next: Next },
    /// It does not access memory. What has failed is being given back.
    Quiet { next: Next },
    /// CC.EN is set, CSTS.RDY is not yet.
    Enabling { until: Instant },
    /// An admin command is in flight.
    SettingUp { step: Setup, until: Instant },
    /// Takes commands.
    Ready,
    /// CC.SHN is set.
    ShuttingDown { until: Instant },
    /// Left: shut down, unless it was not ready.
    Stopped,
    /// Given up.
    Failed(DeviceError),
}

/// What is counted, and said only the first time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    /// Completions with an error status.
    pub errors: u64,
    /// Commands issued again, after such an error or a reset.
    pub repeats: u64,
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
    /// It was ready before.
    has_served: bool,
    /// It does not access memory, neither that of commands nor that of its queues.
    is_quiet: bool,
    /// The time of the last turn.
    now: Instant,
    admin: QueuePair,
    /// The admin command in flight, or the last one.
    admin_command: CommandId,
    identify: DmaPage,
    io: QueuePair,
    prp_lists: PrpLists,
    tags: Tags,
    /// When commands that have failed are issued again.
    retry_at: Option<Instant>,
    watch: Watch,
    restarts: Restarts,
    counters: Counters,
    /// The largest transfer of one command, in bytes.
    max_bytes: u32,
    /// The most blocks that one command gives up; none, when it has no such command.
    discard_limit: Option<u32>,
    /// Blocks at most that are written all or none when the power fails.
    atomic_blocks: u32,
    volatile_cache: bool,
    shutdown_time: Duration,
    /// The fields from here on hold what the controller said, and are not asked for again.
    identified: bool,
    identity: Identity,
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
            has_served: false,
            is_quiet: false,
            now: Instant(0),
            admin: QueuePair::new(0, setup::ADMIN_ENTRIES, stride, admin_sq, admin_cq),
            admin_command: CommandId(0),
            identify,
            io: QueuePair::new(IO_QUEUE, entries, stride, io_sq, io_cq),
            prp_lists: PrpLists::new(lists),
            tags: Tags::new(entries),
            retry_at: None,
            watch: Watch::new(interrupts),
            restarts: Restarts::default(),
            counters: Counters::default(),
            max_bytes: 0,
            discard_limit: None,
            atomic_blocks: 1,
            volatile_cache: false,
            shutdown_time: end::SHUTDOWN_SHORTEST,
            identified: false,
            identity: Identity::NONE,
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
            State::Quiet { next } => self.give_back(hal, next, done),
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
            State::Found | State::Quiet { .. } => Some(self.now),
            State::Settling { .. }
            | State::Disabling { .. }
            | State::Enabling { .. }
            | State::SettingUp { .. }
            | State::ShuttingDown { .. } => Some(self.now + STEP_POLL),
            State::Ready if self.tags.is_empty() => None,
            State::Ready => self.retry_at.into_iter().chain([self.watch.deadline()]).min(),
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
            | State::Quiet { next: Next::Enable | Next::GiveUp(_) }
            | State::Enabling { .. }
            | State::SettingUp { .. } => Status::Starting,
            State::Ready => Status::Ready,
            State::ShuttingDown { .. } | State::Quiet { next: Next::Stop } => Status::Stopping,
            State::Stopped => Status::Stopped,
            State::Failed(reason) => Status::Failed(reason),
        }
    }

    /// See [`super::Disk::namespaces`]: the n-th active namespace in the order of their ids, as
    /// Linux numbers them.
    pub fn namespaces(&self) -> &[Result<Namespace, DeviceError>] {
        &self.namespaces
    }

    /// See [`super::Disk::identity`].
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
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
        let &Namespace { id, block_size, volatile_cache, .. } = self.disk_to_ask(namespace)?;
        let prefix = match operation {
            Operation::Read | Operation::Write | Operation::WriteFua => {
                Prefix::longest(spans, block_size, self.max_bytes).ok_or(Refusal::Inexpressible)?
            }
            Operation::Flush => Prefix::NONE,
        };
        let (tag, command) = self.enter(token)?;
        let data = self.prp_lists.describe(tag, &spans[..prefix.spans]);
        let blocks = prefix.bytes >> block_size.trailing_zeros();
        let transfer = |opcode| Submission::transfer(command, opcode, id, first, blocks, data);
        let submission = match operation {
            Operation::Read => transfer(io::READ),
            // Without a volatile cache every write is safe when it ends.
            Operation::WriteFua if volatile_cache => transfer(io::WRITE).with_force_unit_access(),
            Operation::Write | Operation::WriteFua => transfer(io::WRITE),
            Operation::Flush => Submission::flush(command, id),
        };
        self.issue(tag, submission);
        Ok(prefix.spans)
    }

    /// See [`super::Disk::kick`].
    pub fn kick(&mut self, hal: &mut impl Memory) {
        if let State::Ready = self.state {
            self.io.ring(hal, self.registers);
        }
    }

    /// See [`super::Disk::room`].
    pub fn room(&self) -> Option<usize> {
        matches!(self.state, State::Ready).then(|| self.tags.room())
    }

    /// The disk with this index, if it takes commands now.
    fn disk_to_ask(&self, namespace: usize) -> Result<&Namespace, Refusal> {
        self.is_taking()?;
        let disk = self.namespaces.get(namespace).and_then(|disk| disk.as_ref().ok());
        disk.ok_or(Refusal::Inexpressible)
    }

    /// Enters a command, if there is room. [`Nvme::issue`] is due next.
    #[inline]
    fn enter(&mut self, token: Token) -> Result<(Tag, CommandId), Refusal> {
        if self.tags.is_empty() {
            self.watch.start(self.now);
        }
        self.tags.enter(token, self.now).ok_or(Refusal::Full)
    }

    /// Gives the command that was entered at this tag to the controller, with the next kick.
    fn issue(&mut self, tag: Tag, submission: Submission) {
        self.tags.keep(tag, submission);
        self.io.push(submission);
    }

    fn is_taking(&self) -> Result<(), Refusal> {
        match self.status() {
            Status::Ready => Ok(()),
            Status::Starting => Err(Refusal::NotReady),
            Status::Stopping | Status::Stopped | Status::Failed(_) => Err(Refusal::Dead),
        }
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
