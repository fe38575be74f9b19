//! A controller that is ready: its completions, what is issued again, and a look at its health now
//! and then. Neighbours: [`super::tags`] and [`super::watch`]; [`super::reset`] mends what is found.

use core::time::Duration;

use heapless::Vec;
use log::{info, warn};

use super::{COMMAND_TIMEOUT, DeviceError, Nvme, State, fault_of};
use crate::drivers::Completion;
use crate::hal::Memory;
use crate::units::Instant;
use crate::wire::nvme::command::{CommandId, CompletionEntry, ErrorStatus};

/// How long commands that have failed wait until they are issued again. What interrupted them has
/// some time to pass; but they hold their tags, which others could use.
const RETRY_DELAY: Duration = Duration::from_millis(10);

impl Nvme {
    /// The controller takes commands from now on, first of all those that it lost in a reset.
    pub(super) fn become_ready(&mut self, hal: &mut impl Memory) {
        if self.has_served {
            info!("nvme{}: ready after a reset", self.index);
        }
        self.has_served = true;
        self.state = State::Ready;
        self.watch.start(self.now);
        self.reissue(hal);
    }

    pub(super) fn serve<const N: usize>(
        &mut self,
        hal: &mut impl Memory,
        done: &mut Vec<Completion, N>,
    ) -> bool {
        let taken = self.harvest(hal, done);
        if taken > 0 {
            self.watch.progress(self.now);
        }
        let mut again = taken == self.io.entries() || done.is_full();
        if self.tags.is_empty() {
            return again;
        }
        self.watch.nothing(self.now);
        if self.retry_at.is_some_and(|at| self.now >= at) {
            self.reissue(hal);
            again = true;
        }
        // Without room left in `done`, what looks late may have been completed long ago.
        if !done.is_full()
            && self.watch.health_is_due(self.now)
            && let Some(fault) = self.fault(hal)
        {
            self.restart(hal, fault);
            return true;
        }
        again
    }

    /// Takes completions while there is room for them: how many there were.
    fn harvest<const N: usize>(&mut self, hal: &mut impl Memory, done: &mut Vec<Completion, N>) -> u16 {
        let mut taken = 0;
        for _ in 0..self.io.entries() {
            if done.is_full() {
                break;
            }
            let Some(entry) = self.io.next() else { break };
            taken += 1;
            // There is room.
            let _ = self.completion(entry).map(|completion| done.push(completion));
        }
        self.io.acknowledge(hal, self.registers);
        taken
    }

    /// Takes what the controller says of a command; none, when the command was not in flight or
    /// is to be tried again.
    fn completion(&mut self, entry: CompletionEntry) -> Option<Completion> {
        if entry.result.is_err_and(ErrorStatus::may_pass) && self.tags.retry(entry.id) {
            self.retry_at.get_or_insert(self.now + RETRY_DELAY);
            self.count_error(entry.result);
            return None;
        }
        let Some(token) = self.tags.take(entry.id) else {
            self.count_stray(entry.id);
            return None;
        };
        self.count_error(entry.result);
        Some(Completion { token, result: entry.result.map_err(DeviceError::Command) })
    }

    /// Issues what waits for it, in the order in which it was submitted. There is room in the
    /// queue, because each has kept its tag.
    fn reissue(&mut self, hal: &mut impl Memory) {
        self.retry_at = None;
        while let Some(submission) = self.tags.reissue(self.now) {
            self.counters.repeats += 1;
            self.io.push(submission);
        }
        self.io.ring(hal, self.registers);
    }

    /// What is wrong with the controller, if something is.
    fn fault(&self, hal: &mut impl Memory) -> Option<DeviceError> {
        let late = self.tags.oldest().is_some_and(|issued| is_late(issued, self.now));
        fault_of(self.controller_status(hal)).or(late.then_some(DeviceError::Timeout))
    }

    fn count_error(&mut self, result: Result<(), ErrorStatus>) {
        let Err(status) = result else { return };
        self.counters.errors += 1;
        if self.counters.errors == 1 {
            let error = DeviceError::Command(status);
            warn!("nvme{}: {error}; more such errors are only counted", self.index);
        }
    }

    pub(super) fn count_stray(&mut self, id: CommandId) {
        self.counters.strays += 1;
        if self.counters.strays == 1 {
            let id = id.0;
            warn!("nvme{}: it completed {id:#06x}, not in flight; more are only counted", self.index);
        }
    }
}

/// Whether a command issued then should have been answered by now.
pub(super) fn is_late(issued: Instant, now: Instant) -> bool {
    now.since(issued) > COMMAND_TIMEOUT
}
