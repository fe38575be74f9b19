//! Xen's watchdog (sched.h, SCHEDOP_watchdog) over the event loop: a loop that stops turning is
//! ended by Xen, an idle domain is not woken for it.
//!
//! Arming costs a hypercall, so it is done at most once in [`REFRESH`] while there is work, and
//! undone only when the domain has been idle that long.

use core::time::Duration;

use super::hypercall::{Nr, op};
use crate::units::Instant;

/// How long the loop may take over one turn. A paused domain does not turn either.
const TIMEOUT_SECONDS: u32 = 30;
const REFRESH: Duration = Duration::from_secs(1);

const SCHEDOP_WATCHDOG: u64 = 6;

#[repr(C)]
struct WatchdogOp {
    id: u32,
    timeout: u32,
}

/// One watchdog timer.
#[derive(Default)]
pub(super) struct Watchdog {
    /// Xen's number for it while it is set, else 0.
    id: u32,
    /// When it was last set, while it is.
    armed: Option<Instant>,
}

impl Watchdog {
    /// The loop did something.
    pub(super) fn alive(&mut self, now: Instant) {
        if self.armed.is_none_or(|at| now.since(at) >= REFRESH) {
            self.arm(now);
        }
    }

    /// Whether it is off, as it is after an idle time.
    pub(super) const fn is_off(&self) -> bool {
        self.armed.is_none()
    }

    /// The loop wants to sleep until `deadline`: returns until when it may. An unbounded sleep is
    /// allowed once the watchdog is off, which it is after an idle time.
    pub(super) fn before_sleep(&mut self, now: Instant, deadline: Option<Instant>) -> Option<Instant> {
        let Some(armed) = self.armed else { return deadline };
        let refresh = armed + REFRESH;
        if deadline.is_some_and(|deadline| deadline <= refresh) {
            return deadline;
        }
        if now < refresh {
            return Some(refresh);
        }
        self.set(0);
        self.armed = None;
        deadline
    }

    fn arm(&mut self, now: Instant) {
        self.set(TIMEOUT_SECONDS);
        self.armed = Some(now);
    }

    fn set(&mut self, timeout: u32) {
        let mut watchdog = WatchdogOp { id: self.id, timeout };
        // SAFETY: the structure is SCHEDOP_watchdog's.
        let done = unsafe { op(Nr::SchedOp, SCHEDOP_WATCHDOG, &mut watchdog, "SCHEDOP_watchdog") };
        let answer = done.expect("a domain has two watchdog timers, and this is its only user");
        // A timer that is taken off is given up, and 0 asks for a new one: its number is the answer.
        if timeout == 0 {
            self.id = 0;
        } else if self.id == 0 {
            self.id = u32::try_from(answer).unwrap_or(0);
        }
    }
}
