//! From whatever state a controller is found in, or has got into, to one that is enabled with an
//! admin queue of ours (Base 3.5.1); [`super::setup`] goes on from there.

use core::time::Duration;

use heapless::Vec;
use log::{error, warn};

use super::serve::is_late;
use super::{DeviceError, Nvme, State, fault_of};
use crate::drivers::Completion;
use crate::hal::Memory;
use crate::units::{BusAddr, Instant};
use crate::wire::nvme::{ACQ, AQA, ASQ, CC, CC_CONFIGURATION, CC_ENABLE, CC_SHUTDOWN_MASK, INTMS};

/// Restarts in a row before a controller is given up.
const RESTARTS: u32 = 5;

/// Restarts further apart than this are not in a row.
const CALM: Duration = Duration::from_secs(600);

/// What to do with a controller once it is quiet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    Enable,
    GiveUp(DeviceError),
    Stop,
}

/// The restarts in a row.
#[derive(Debug)]
pub(super) struct Restarts {
    left: u32,
    last: Instant,
}

impl Default for Restarts {
    fn default() -> Self {
        Self { left: RESTARTS, last: Instant(0) }
    }
}

impl Restarts {
    /// Takes one, if any is left.
    fn take(&mut self, now: Instant) -> bool {
        if now.since(self.last) > CALM {
            self.left = RESTARTS;
        }
        self.last = now;
        let some_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        some_left
    }
}

impl Nvme {
    /// The first look. Nothing is believed about who had the controller before, or how it ended.
    pub(super) fn arrive(&mut self, hal: &mut impl Memory) -> bool {
        let enabled = hal.read32(self.registers, CC) & CC_ENABLE != 0;
        let status = self.controller_status(hal);
        if enabled && !status.is_ready() && !status.is_fatal() {
            self.state = State::Settling { until: self.now + self.capabilities.ready_timeout() };
        } else {
            self.disable(hal, Next::Enable);
        }
        true
    }

    pub(super) fn settle(&mut self, hal: &mut impl Memory, until: Instant) -> bool {
        let status = self.controller_status(hal);
        let settled = status.is_ready() || status.is_fatal() || self.now >= until;
        if settled {
            self.disable(hal, Next::Enable);
        }
        settled
    }

    /// Resets the controller, to start it again if that was not tried too often already, nor is
    /// the first start: everybody else's service waits for that.
    pub(super) fn restart(&mut self, hal: &mut impl Memory, fault: DeviceError) {
        self.counters.resets += 1;
        warn!("nvme{}: {fault}; resetting it", self.index);
        let now = self.now;
        self.tags.take_back(|issued| is_late(issued, now));
        let again = self.has_served && self.restarts.take(now);
        self.disable(hal, if again { Next::Enable } else { Next::GiveUp(fault) });
    }

    /// Begins a controller reset (3.7.2).
    pub(super) fn disable(&mut self, hal: &mut impl Memory, next: Next) {
        self.clear_enable(hal);
        self.state = State::Disabling { until: self.now + self.capabilities.ready_timeout(), next };
    }

    pub(super) fn await_disabled(&mut self, hal: &mut impl Memory, until: Instant, next: Next) -> bool {
        let status = self.controller_status(hal);
        let enabled = hal.read32(self.registers, CC) & CC_ENABLE != 0;
        if !status.is_ready() && !enabled {
            self.become_quiet(next);
        } else if self.now >= until {
            // What is in flight is kept: nothing says that the controller will not touch it.
            let reason = if status.is_gone() { DeviceError::Gone } else { DeviceError::Stuck };
            error!("nvme{}: {reason}; it keeps what it has until it is isolated", self.index);
            self.state = State::Failed(reason);
        } else {
            // What is written to a controller that is off the bus for a moment is lost.
            if enabled && !status.is_gone() {
                self.clear_enable(hal);
            }
            return false;
        }
        true
    }

    fn clear_enable(&self, hal: &mut impl Memory) {
        let configuration = hal.read32(self.registers, CC);
        hal.write32(self.registers, CC, configuration & !(CC_ENABLE | CC_SHUTDOWN_MASK));
    }

    /// Ends what has failed, or all if the controller is not started again, then goes on.
    pub(super) fn give_back<const N: usize>(
        &mut self,
        hal: &mut impl Memory,
        next: Next,
        done: &mut Vec<Completion, N>,
    ) -> bool {
        if !matches!(next, Next::Enable) {
            self.tags.fail_all();
        }
        while !done.is_full() {
            let Some(token) = self.tags.take_failed() else {
                self.go_on(hal, next);
                break;
            };
            // There is room.
            let _ = done.push(Completion { token, result: Err(DeviceError::Reset) });
        }
        true
    }

    fn go_on(&mut self, hal: &mut impl Memory, next: Next) {
        match next {
            Next::Enable => self.enable(hal),
            Next::GiveUp(reason) => self.give_up(reason),
            Next::Stop => self.state = State::Stopped,
        }
    }

    pub(super) fn await_enabled(&mut self, hal: &mut impl Memory, until: Instant) -> bool {
        let status = self.controller_status(hal);
        if let Some(fault) = fault_of(status) {
            self.restart(hal, fault);
        } else if status.is_ready() {
            self.set_up(hal);
        } else if self.now >= until {
            self.restart(hal, DeviceError::Stuck);
        } else {
            return false;
        }
        true
    }

    fn enable(&mut self, hal: &mut impl Memory) {
        if let Err(reason) = self.capabilities.check(self.registers.len) {
            return self.give_up(DeviceError::Unsupported(reason));
        }
        self.admin.reset();
        self.io.reset();
        let last_entry = u32::from(self.admin.entries() - 1);
        hal.write32(self.registers, AQA, last_entry << 16 | last_entry);
        self.write_address(hal, ASQ, self.admin.submissions());
        self.write_address(hal, ACQ, self.admin.completions());
        if !self.interrupts {
            // Without MSI-X it would raise its pin, which others may share and nobody serves.
            hal.write32(self.registers, INTMS, u32::MAX);
        }
        self.is_quiet = false;
        hal.write32(self.registers, CC, CC_CONFIGURATION | CC_ENABLE);
        self.state = State::Enabling { until: self.now + self.capabilities.ready_timeout() };
    }

    fn write_address(&self, hal: &mut impl Memory, register: usize, bus: BusAddr) {
        // The registers may be written in halves (PCIe Transport 3.1).
        let low = bus.0 & u64::from(u32::MAX);
        hal.write32(self.registers, register, low as u32);
        hal.write32(self.registers, register + 4, (bus.0 >> 32) as u32);
    }

    fn give_up(&mut self, reason: DeviceError) {
        error!("nvme{}: {reason}; it is given up", self.index);
        self.state = State::Failed(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_in_a_row_are_bounded_and_calm_forgives_them() {
        let mut restarts = Restarts::default();
        let second = |n: u64| Instant(n * 1_000_000_000);
        let taken: std::vec::Vec<bool> = (0..7).map(|n| restarts.take(second(1000 + n))).collect();
        assert_eq!(taken, [true, true, true, true, true, false, false]);
        assert!(!restarts.take(second(1606)));
        assert!(restarts.take(second(2207)));
    }
}
