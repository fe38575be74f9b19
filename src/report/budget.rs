//! How many lines each guest may cause. What a guest does to its devices is worth a line, but it may
//! do it over and over: so lines about a guest are logged under the target `guest/N`, and when the
//! guest has used its budget up they are counted only, until time has filled it again.

use core::time::Duration;

use heapless::Vec;

use crate::limits;
use crate::units::{DomId, Instant};

/// Lines in a row: a guest with many disks says some four a disk when it comes and when it goes.
const BURST: u32 = 256;

/// The time after which a guest has one line more.
const REFILL: Duration = Duration::from_secs(5);

/// What becomes of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// It is logged, after so many that were not.
    Say { dropped: u32 },
    /// It is counted.
    Drop,
}

/// What one guest has left.
#[derive(Clone, Copy, Debug)]
struct Budget {
    guest: DomId,
    lines: u32,
    /// Since when `lines` is right.
    since: Instant,
    dropped: u32,
}

/// The budgets of the guests that were heard of last.
#[derive(Debug)]
pub(super) struct Budgets(Vec<Budget, { limits::LOG_GUESTS }>);

impl Budgets {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// A line about this guest is to be logged now.
    pub(super) fn spend(&mut self, guest: DomId, now: Instant) -> Verdict {
        let budget = self.of(guest, now);
        let refills = now.since(budget.since).as_nanos() / REFILL.as_nanos();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        budget.lines = budget.lines.saturating_add(refills).min(BURST);
        budget.since = if budget.lines == BURST { now } else { budget.since + REFILL * refills };
        if budget.lines == 0 {
            budget.dropped = budget.dropped.saturating_add(1);
            return Verdict::Drop;
        }
        budget.lines -= 1;
        Verdict::Say { dropped: core::mem::take(&mut budget.dropped) }
    }

    /// The guest's budget, moved to the end; where there is no room, the guest that was not heard of
    /// for the longest time is forgotten.
    fn of(&mut self, guest: DomId, now: Instant) -> &mut Budget {
        let fresh = Budget { guest, lines: BURST, since: now, dropped: 0 };
        let known = self.0.iter().position(|budget| budget.guest == guest);
        let budget = known.map_or(fresh, |index| self.0.remove(index));
        if self.0.is_full() {
            self.0.remove(0);
        }
        let _ = self.0.push(budget);
        self.0.last_mut().expect("it was just pushed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAY: Verdict = Verdict::Say { dropped: 0 };

    fn second(seconds: u64) -> Instant {
        Instant(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn a_guest_that_has_used_its_lines_up_gets_one_now_and_then() {
        let mut budgets = Budgets::new();
        for _ in 0..BURST {
            assert_eq!(budgets.spend(DomId(5), second(1)), SAY);
        }
        for time in [1, 2, 5] {
            assert_eq!(budgets.spend(DomId(5), second(time)), Verdict::Drop);
        }
        assert_eq!(budgets.spend(DomId(5), second(6)), Verdict::Say { dropped: 3 });
        assert_eq!(budgets.spend(DomId(5), second(6)), Verdict::Drop);
        assert_eq!(budgets.spend(DomId(5), second(17)), Verdict::Say { dropped: 1 });
        assert_eq!(budgets.spend(DomId(5), second(17)), SAY);
        assert_eq!(budgets.spend(DomId(5), second(20)), Verdict::Drop);
    }

    #[test]
    fn others_are_not_affected() {
        let mut budgets = Budgets::new();
        while budgets.spend(DomId(5), second(1)) == SAY {}
        assert_eq!(budgets.spend(DomId(6), second(1)), SAY);
        assert_eq!(budgets.spend(DomId(5), second(1)), Verdict::Drop);
    }

    #[test]
    fn a_long_silence_fills_the_budget_and_no_more() {
        let mut budgets = Budgets::new();
        assert_eq!(budgets.spend(DomId(5), second(0)), SAY);
        let much_later = Instant(u64::MAX);
        for _ in 0..BURST {
            assert_eq!(budgets.spend(DomId(5), much_later), SAY);
        }
        assert_eq!(budgets.spend(DomId(5), much_later), Verdict::Drop);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_who_is_noisy() {
        let mut budgets = Budgets::new();
        while budgets.spend(DomId(5), second(1)) == SAY {}
        for guest in (6..).take(2 * limits::LOG_GUESTS) {
            assert_eq!(budgets.spend(DomId(guest), second(1)), SAY);
            assert_eq!(budgets.spend(DomId(5), second(1)), Verdict::Drop);
        }
    }
}
