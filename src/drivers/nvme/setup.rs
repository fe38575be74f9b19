//! What an enabled controller is asked: what it and its namespaces are, and for one pair of I/O
//! queues. One admin command at a time, polled for; neighbour of [`super::reset`].

use log::{info, warn};

use super::end::{SHUTDOWN_LONGEST, SHUTDOWN_SHORTEST};
use super::reset::Next;
use super::{COMMAND_TIMEOUT, DeviceError, Nvme, State, fault_of, prp};
use crate::drivers::Namespace;
use crate::hal::Memory;
use crate::limits::NAMESPACES;
use crate::units::Instant;
use crate::wire::nvme::command::{CommandId, Identify, Submission};
use crate::wire::nvme::identify::{
    COMMAND_SET_BYTES, CONTROLLER_BYTES, Controller, Format, Identity, LIST_ENTRIES, NAMESPACE_BYTES,
    NamespaceList, deallocate_limit,
};

/// Entries of the admin queues, as other systems have them; one command is in flight there.
pub(super) const ADMIN_ENTRIES: u16 = 32;

/// The admin command in flight. What is asked from [`Setup::QueueCount`] on, each start needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Setup {
    NamespaceList,
    Controller,
    CommandSet,
    /// The namespace with this index.
    Namespace(usize),
    QueueCount,
    CompletionQueue,
    SubmissionQueue,
}

impl Nvme {
    /// Begins: after a restart what the controller is does not have to be asked again.
    pub(super) fn set_up(&mut self, hal: &mut impl Memory) {
        let first = if self.identified { Setup::QueueCount } else { Setup::NamespaceList };
        // All of it may take as long as one command: the first start of everybody waits for it.
        self.ask(hal, first, self.now + COMMAND_TIMEOUT);
    }

    pub(super) fn await_setup(&mut self, hal: &mut impl Memory, step: Setup, until: Instant) -> bool {
        let entry = self.admin.next();
        self.admin.acknowledge(hal, self.registers);
        let Some(entry) = entry.filter(|entry| entry.id == self.admin_command) else {
            // Completions of nothing do not put the end of the wait off.
            entry.iter().for_each(|stray| self.count_stray(stray.id));
            let late = (self.now >= until).then_some(DeviceError::Timeout);
            let fault = fault_of(self.controller_status(hal)).or(late);
            if let Some(fault) = fault {
                self.restart(hal, fault);
            }
            return entry.is_some() || fault.is_some();
        };
        match self.answered(step, entry.result.map_err(DeviceError::Command)) {
            Ok(Some(next)) => self.ask(hal, next, until),
            Ok(None) => self.become_ready(hal),
            Err(reason) => {
                warn!("nvme{}: {step:?}: {reason}", self.index);
                self.disable(hal, Next::GiveUp(reason));
            }
        }
        true
    }

    fn ask(&mut self, hal: &mut impl Memory, step: Setup, until: Instant) {
        // Never 0xffff, which is reserved (3.3.3.1).
        let id = CommandId((self.admin_command.0 + 1) & 0x7fff);
        let (queue, entries) = (super::IO_QUEUE, self.io.entries());
        let to = self.identify.bus;
        let submission = match step {
            Setup::NamespaceList => Submission::identify(id, Identify::ActiveNamespaces, to),
            Setup::Controller => Submission::identify(id, Identify::Controller, to),
            Setup::CommandSet => Submission::identify(id, Identify::CommandSet, to),
            Setup::Namespace(index) => {
                Submission::identify(id, Identify::Namespace(self.namespace_ids[index]), to)
            }
            Setup::QueueCount => Submission::one_queue_pair(id),
            Setup::CompletionQueue => Submission::create_completion_queue(
                id,
                queue,
                entries,
                self.io.completions(),
                self.interrupts,
            ),
            Setup::SubmissionQueue => {
                Submission::create_submission_queue(id, queue, entries, self.io.submissions())
            }
        };
        self.admin_command = id;
        self.admin.push(submission);
        self.admin.ring(hal, self.registers);
        self.state = State::SettingUp { step, until };
    }

    /// Takes the answer of a step; returns the next step, or nothing when that was the last.
    fn answered(
        &mut self,
        step: Setup,
        result: Result<(), DeviceError>,
    ) -> Result<Option<Setup>, DeviceError> {
        match step {
            Setup::NamespaceList => {
                result?;
                self.take_list()?;
                Ok(Some(Setup::Controller))
            }
            Setup::Controller => {
                result?;
                let next = self.take_controller();
                Ok(Some(next))
            }
            Setup::CommandSet => {
                // One that does not know the question has no limit to tell.
                if result.is_ok() {
                    self.take_command_set();
                }
                Ok(Some(self.namespace_step(0)))
            }
            Setup::Namespace(index) => {
                self.take_namespace(index, result);
                Ok(Some(self.namespace_step(index + 1)))
            }
            Setup::QueueCount => result.map(|()| Some(Setup::CompletionQueue)),
            Setup::CompletionQueue => result.map(|()| Some(Setup::SubmissionQueue)),
            Setup::SubmissionQueue => result.map(|()| None),
        }
    }

    fn namespace_step(&mut self, index: usize) -> Setup {
        self.identified = index == self.namespace_ids.len();
        if self.identified { Setup::QueueCount } else { Setup::Namespace(index) }
    }

    fn take_list(&mut self) -> Result<(), DeviceError> {
        let page = &self.identify.page;
        let entries = (0..LIST_ENTRIES).map(|i| page.read_u32(i * 4));
        let list = NamespaceList::parse(entries).map_err(DeviceError::Unsupported)?;
        if list.count > NAMESPACES {
            warn!("nvme{}: of {} namespaces the first {NAMESPACES} are served", self.index, list.count);
        }
        self.namespace_ids = list.ids;
        self.namespaces.clear();
        Ok(())
    }

    /// Returns the next step.
    fn take_controller(&mut self) -> Setup {
        let mut data = [0; CONTROLLER_BYTES];
        self.identify.page.read_bytes(0, &mut data);
        let controller = Controller::parse(&data);
        let (count, index) = (self.namespace_ids.len(), self.index);
        let plural = if count == 1 { "" } else { "s" };
        let Identity { model, serial } = controller.identity;
        let firmware = controller.firmware;
        info!(
            "nvme{index}: model \"{model}\", serial \"{serial}\", firmware \"{firmware}\", {count} namespace{plural}"
        );
        self.max_bytes = controller.max_transfer.unwrap_or(u32::MAX).min(prp::MAX_BYTES);
        self.identity = controller.identity;
        self.volatile_cache = controller.volatile_cache;
        self.atomic_blocks = controller.atomic_blocks;
        self.discard_limit = controller.deallocates.then_some(u32::MAX);
        self.shutdown_time = controller.shutdown.clamp(SHUTDOWN_SHORTEST, SHUTDOWN_LONGEST);
        // All that is wanted of it is a limit of deallocations. It matters: QEMU's controller ignores
        // a longer range, and says nothing.
        let asks = controller.deallocates && controller.has_command_set;
        if asks { Setup::CommandSet } else { self.namespace_step(0) }
    }

    fn take_command_set(&mut self) {
        let mut data = [0; COMMAND_SET_BYTES];
        self.identify.page.read_bytes(0, &mut data);
        self.discard_limit = Some(deallocate_limit(&data));
    }

    fn take_namespace(&mut self, index: usize, result: Result<(), DeviceError>) {
        let mut data = [0; NAMESPACE_BYTES];
        self.identify.page.read_bytes(0, &mut data);
        let format =
            result.and_then(|()| Format::parse(&data, self.atomic_blocks).map_err(DeviceError::Unusable));
        let (controller, number) = (self.index, index + 1);
        match format {
            Ok(Format { blocks, block_size, .. }) => {
                let mebibytes = (blocks.0 * u64::from(block_size)) >> 20;
                let blocks = blocks.0;
                info!("nvme{controller}n{number}: {blocks} blocks of {block_size} bytes, {mebibytes} MiB");
            }
            Err(reason) => warn!("nvme{controller}n{number}: not served: {reason}"),
        }
        let namespace = format.map(|format| Namespace {
            id: self.namespace_ids[index],
            blocks: format.blocks,
            block_size: format.block_size,
            physical_block_size: format.physical_block_size,
            volatile_cache: self.volatile_cache,
            discard: self.discard_limit.map(|_| format.discard),
        });
        // There is one for each id, and room for as many.
        let _ = self.namespaces.push(namespace);
    }
}
