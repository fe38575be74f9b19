//! When to look at a controller that has commands in flight: an interrupt is only a hint, and a
//! lost one must not hang anybody.

use core::time::Duration;

use crate::units::Instant;

/// First look at the completion queue when interrupts are expected to tell.
const INTERRUPT_PATIENCE: Duration = Duration::from_millis(20);
/// The longest time between two looks.
const INTERRUPT_PATIENCE_LIMIT: Duration = Duration::from_secs(1);
/// Time between two looks when there are no interrupts.
const POLL: Duration = Duration::from_micros(200);
/// Time between two looks at the controller's health.
const HEALTH: Duration = Duration::from_secs(1);

/// The times of the next looks, while something is in flight.
#[derive(Debug)]
pub(super) struct Watch {
    shortest: Duration,
    longest: Duration,
    patience: Duration,
    poll_at: Instant,
    health_at: Instant,
}

impl Watch {
    /// For a controller with interrupts or without.
    pub(super) const fn new(interrupts: bool) -> Self {
        let (shortest, longest) =
            if interrupts { (INTERRUPT_PATIENCE, INTERRUPT_PATIENCE_LIMIT) } else { (POLL, POLL) };
        Self { shortest, longest, patience: shortest, poll_at: Instant(0), health_at: Instant(0) }
    }

    /// Something is in flight from now on.
    pub(super) fn start(&mut self, now: Instant) {
        self.health_at = now + HEALTH;
        self.progress(now);
    }

    /// Something was completed.
    pub(super) fn progress(&mut self, now: Instant) {
        self.patience = self.shortest;
        self.poll_at = now + self.patience;
    }

    /// The queue was looked at in vain: if that was due, the next time is twice as far off.
    pub(super) fn nothing(&mut self, now: Instant) {
        if now >= self.poll_at {
            self.patience = (self.patience * 2).min(self.longest);
            self.poll_at = now + self.patience;
        }
    }

    /// Whether a look at the controller's health is due, and then that it is being taken.
    pub(super) fn health_is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.health_at;
        if due {
            self.health_at = now + HEALTH;
        }
        due
    }

    /// The next look.
    pub(super) fn deadline(&self) -> Instant {
        self.poll_at.min(self.health_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(time: Instant) -> u64 {
        time.0 / 1_000_000
    }

    #[test]
    fn patience_grows_in_vain_and_shrinks_with_progress() {
        let mut watch = Watch::new(true);
        watch.start(Instant(0));
        let mut looks = std::vec::Vec::new();
        for _ in 0..8 {
            let now = watch.poll_at;
            looks.push(milliseconds(now));
            watch.nothing(now);
        }
        assert_eq!(looks, [20, 60, 140, 300, 620, 1260, 2260, 3260]);
        watch.progress(Instant(0) + Duration::from_secs(4));
        assert_eq!(milliseconds(watch.poll_at), 4020);
    }

    #[test]
    fn looking_early_changes_nothing() {
        let mut watch = Watch::new(true);
        watch.start(Instant(0));
        watch.nothing(Instant(1));
        assert_eq!(milliseconds(watch.deadline()), 20);
    }

    #[test]
    fn without_interrupts_it_polls_often_and_steadily() {
        let mut watch = Watch::new(false);
        watch.start(Instant(0));
        for look in 1..10 {
            assert_eq!(watch.deadline(), Instant(look * 200_000));
            watch.nothing(watch.deadline());
        }
    }

    #[test]
    fn health_is_looked_at_once_a_second_however_busy() {
        let mut watch = Watch::new(true);
        watch.start(Instant(0));
        let mut looks = 0;
        for millisecond in 0..10_500 {
            let now = Instant(millisecond * 1_000_000);
            watch.progress(now);
            looks += u32::from(watch.health_is_due(now));
        }
        assert_eq!(looks, 10);
    }
}
