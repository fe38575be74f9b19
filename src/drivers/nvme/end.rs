//! How a controller is left: shut down in good order, or isolated when it does not stop by itself,
//! and its pages given back. Neighbour of [`super::reset`], which gives controllers up.

use core::time::Duration;

use log::{info, warn};

use super::reset::Next;
use super::{Nvme, State};
use crate::drivers::{DeviceError, Status};
use crate::hal::Memory;
use crate::units::Instant;
use crate::wire::nvme::{CC, CC_CONFIGURATION, CC_ENABLE, CC_SHUT_DOWN};

/// How long a shutdown may take: RTD3E, but within these bounds.
pub(super) const SHUTDOWN_SHORTEST: Duration = Duration::from_secs(5);
pub(super) const SHUTDOWN_LONGEST: Duration = Duration::from_secs(60);

impl Nvme {
    /// See [`crate::drivers::Disk::shut_down`] (3.6.1). A controller that is not ready holds
    /// nothing of ours in its cache, and is left as it is.
    pub fn shut_down(&mut self, hal: &mut impl Memory) {
        match self.state {
            State::Ready => {
                hal.write32(self.registers, CC, CC_CONFIGURATION | CC_ENABLE | CC_SHUT_DOWN);
                self.state = State::ShuttingDown { until: self.now + self.shutdown_time };
            }
            State::Quiet { .. } => self.state = State::Quiet { next: Next::Stop },
            State::Found
            | State::Settling { .. }
            | State::Disabling { .. }
            | State::Enabling { .. }
            | State::SettingUp { .. } => self.state = State::Stopped,
            State::ShuttingDown { .. } | State::Stopped | State::Failed(_) => {}
        }
    }

    pub(super) fn await_shutdown(&mut self, hal: &mut impl Memory, until: Instant) -> bool {
        if self.controller_status(hal).is_shut_down() {
            info!("nvme{}: shut down", self.index);
            self.become_quiet(Next::Stop);
        } else if self.now >= until {
            warn!("nvme{}: its shutdown did not end in time", self.index);
            self.state = State::Stopped;
        } else {
            return false;
        }
        true
    }

    /// See [`crate::drivers::Disk::must_be_isolated`].
    #[must_use]
    pub fn must_be_isolated(&self) -> bool {
        self.has_ended() && !self.is_quiet
    }

    /// See [`crate::drivers::Disk::isolated`].
    pub fn isolated(&mut self) {
        if self.must_be_isolated() {
            info!("nvme{}: isolated", self.index);
            self.become_quiet(match self.status() {
                // It has not failed, it is only not ours any more.
                Status::Failed(DeviceError::Withdrawn) => Next::Stop,
                Status::Failed(reason) => Next::GiveUp(reason),
                Status::Starting | Status::Ready | Status::Stopping | Status::Stopped => Next::Stop,
            });
        }
    }

    /// See [`crate::drivers::Disk::is_enabled`].
    #[must_use]
    pub fn is_enabled(&self, hal: &mut impl Memory) -> bool {
        let status = self.controller_status(hal);
        status.is_ready() && !status.is_gone()
    }

    /// See [`crate::drivers::Disk::abandon`].
    pub fn abandon(&mut self) {
        match self.state {
            State::Quiet { .. } => self.state = State::Quiet { next: Next::Stop },
            State::Stopped | State::Failed(_) => {}
            State::Found
            | State::Settling { .. }
            | State::Disabling { .. }
            | State::Enabling { .. }
            | State::SettingUp { .. }
            | State::Ready
            | State::ShuttingDown { .. } => self.state = State::Failed(DeviceError::Withdrawn),
        }
    }

    /// See [`crate::drivers::Disk::release`].
    ///
    /// # Panics
    /// It is in use, or it may still access the pages.
    pub fn release(self, hal: &mut impl Memory) {
        let is_over = self.has_ended() && self.is_quiet && self.tags.is_empty();
        assert!(is_over, "pages are given back when nobody uses them");
        hal.return_page(self.identify);
        self.admin.release(hal);
        self.io.release(hal);
        self.prp_lists.release(hal);
    }

    /// The controller does not access memory any more; `next` follows when what has failed was
    /// given back.
    pub(super) fn become_quiet(&mut self, next: Next) {
        self.is_quiet = true;
        self.state = State::Quiet { next };
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, State::Stopped | State::Failed(_))
    }
}
