//! What was done for one virtual disk, counted as its requests are answered. The ring counts; the
//! counters are the device's, so they go on when a frontend connects again. `domain` shows them to
//! dom0 when it asks.
//!
//! Everything here only grows: whoever wants a rate takes two looks and subtracts. How many requests
//! were in flight on average between them needs no counting of its own: it is the time that requests
//! took, [`Tally::took`], divided by the time that passed (Little's law).

use core::time::Duration;

use crate::units::Instant;
use crate::wire::blkif::Operation;

/// Latencies are counted in this many ranges: the last begins at 8.4 seconds.
pub const LATENCY_RANGES: usize = 24;

/// How many requests took how long: the entry `i` counts those of at least 2^i and less than 2^(i+1)
/// microseconds. The first also counts what was faster, the last all that was slower.
pub type Latencies = [u64; LATENCY_RANGES];

/// What was done of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Requests answered, also with an error.
    pub requests: u64,
    /// Sectors of 512 bytes moved or discarded by those that succeeded.
    pub sectors: u64,
    /// Requests among them that were answered with an error.
    pub errors: u64,
    /// The sum of the times they took, each from when it was taken off the ring to its answer.
    pub took: Duration,
    /// The same times by their length.
    pub latencies: Latencies,
}

impl Tally {
    const NONE: Self =
        Self { requests: 0, sectors: 0, errors: 0, took: Duration::ZERO, latencies: [0; LATENCY_RANGES] };

    fn answered(&mut self, okay: bool, sectors: u64, latency: Duration) {
        self.requests += 1;
        if okay {
            self.sectors = self.sectors.saturating_add(sectors);
        } else {
            self.errors += 1;
        }
        self.took = self.took.saturating_add(latency);
        self.latencies[range(latency)] += 1;
    }
}

/// What was done for one virtual disk since it was attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counters {
    /// When that was.
    pub since: Instant,
    /// Reads.
    pub read: Tally,
    /// Writes.
    pub write: Tally,
    /// Flushes, with the data that came with them. Linux's xen-blkback counts them so, and barriers
    /// among them (`blkback.c`, `st_f_req`): what either costs is the flush.
    pub flush: Tally,
    /// Discards.
    pub discard: Tally,
    /// Requests that were answered at once for what they asked; they are not counted as any operation.
    pub rejected: u64,
}

impl Counters {
    /// Nothing yet.
    #[must_use]
    pub const fn new(since: Instant) -> Self {
        let none = Tally::NONE;
        Self { since, read: none, write: none, flush: none, discard: none, rejected: 0 }
    }

    /// A request that was taken has been answered: with success or not, with so many sectors of
    /// 512 bytes asked for, so long after it was taken off the ring.
    pub fn answered(&mut self, op: Operation, okay: bool, sectors: u64, latency: Duration) {
        let tally = match op {
            Operation::Read => &mut self.read,
            Operation::Write => &mut self.write,
            Operation::Flush | Operation::Barrier => &mut self.flush,
            Operation::Discard => &mut self.discard,
        };
        tally.answered(okay, sectors, latency);
    }

    /// A request was answered at once, because of what it asked.
    pub fn rejected(&mut self) {
        self.rejected += 1;
    }
}

/// Where a latency is counted.
fn range(latency: Duration) -> usize {
    let power = latency.as_micros().checked_ilog2().unwrap_or(0);
    (power as usize).min(LATENCY_RANGES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_a_tally() {
        let mut counters = Counters::new(Instant(0));
        let took = Duration::from_micros(100);
        counters.answered(Operation::Read, true, 8, took);
        counters.answered(Operation::Read, true, 16, took * 2);
        counters.answered(Operation::Write, false, 8, took);
        counters.answered(Operation::Flush, true, 0, took);
        counters.rejected();
        let Counters { since: _, read, write, flush, discard, rejected } = counters;
        assert_eq!((read.requests, read.sectors, read.errors, read.took), (2, 24, 0, took * 3));
        assert_eq!((write.requests, write.sectors, write.errors, write.took), (1, 0, 1, took));
        assert_eq!((flush.requests, flush.sectors, flush.errors), (1, 0, 0));
        assert_eq!((discard, rejected), (Tally::NONE, 1));
        assert_eq!((read.latencies[6], read.latencies[7], write.latencies[6]), (1, 1, 1));
    }

    #[test]
    fn ranges_double_and_the_ends_are_open() {
        let at = |nanos| range(Duration::from_nanos(nanos));
        assert_eq!([0, 999, 1000, 1999].map(at), [0; 4]);
        assert_eq!([2000, 3999, 4000].map(at), [1, 1, 2]);
        let last_begins = 1000 << (LATENCY_RANGES - 1);
        assert_eq!([last_begins - 1, last_begins].map(at), [LATENCY_RANGES - 2, LATENCY_RANGES - 1]);
        assert_eq!(range(Duration::MAX), LATENCY_RANGES - 1);
    }

    #[test]
    fn no_sum_overflows() {
        let mut counters = Counters::new(Instant(0));
        for _ in 0..2 {
            counters.answered(Operation::Write, true, u64::MAX, Duration::MAX);
        }
        assert_eq!((counters.write.sectors, counters.write.took), (u64::MAX, Duration::MAX));
    }
}
