//! What one device did between two samples, as rates.

use std::array;

use crate::sample::{Sample, Tally};

/// What was done of one operation.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Rates {
    /// Requests a second.
    pub(crate) requests: f64,
    /// Units of 1024 bytes a second.
    pub(crate) kilobytes: f64,
    /// How long a request took on average, in milliseconds; 0 when there was none.
    pub(crate) wait: f64,
    /// How many requests took at least 2^i and less than 2^(i+1) microseconds.
    pub(crate) latencies: Vec<u64>,
}

/// What one device did.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Interval {
    /// What it is served from.
    pub(crate) volume: String,
    /// By operation, as [`Sample::tallies`].
    pub(crate) rates: [Rates; 4],
    /// Requests in flight at a time on average. Each counts when it is answered, with all of its time.
    pub(crate) queue: f64,
    /// Requests in flight at its end.
    pub(crate) in_flight: u64,
    /// Requests answered with an error.
    pub(crate) errors: u64,
}

impl Interval {
    /// What was done between the samples; since counting began, without an earlier one or with one of
    /// another device that had the same name.
    pub(crate) fn between(earlier: Option<&Sample>, later: &Sample) -> Self {
        let start = Sample { time: later.since, since: later.since, ..Sample::default() };
        let earlier = earlier.filter(|earlier| earlier.since == later.since).unwrap_or(&start);
        let micros = later.time.saturating_sub(earlier.time).max(1) as f64;
        let done: [Tally; 4] = array::from_fn(|at| since(&later.tallies[at], &earlier.tallies[at]));
        let sum = |of: fn(&Tally) -> u64| done.iter().map(of).sum::<u64>();
        let rejected = later.rejected.saturating_sub(earlier.rejected);
        Self {
            volume: later.volume.clone(),
            queue: sum(|tally| tally.took) as f64 / micros,
            in_flight: later.in_flight,
            errors: sum(|tally| tally.errors) + rejected,
            rates: done.map(|tally| rates(tally, micros)),
        }
    }
}

fn since(later: &Tally, earlier: &Tally) -> Tally {
    let earlier_latencies = earlier.latencies.iter().copied().chain(std::iter::repeat(0));
    let latencies = later.latencies.iter().zip(earlier_latencies);
    Tally {
        requests: later.requests.saturating_sub(earlier.requests),
        sectors: later.sectors.saturating_sub(earlier.sectors),
        errors: later.errors.saturating_sub(earlier.errors),
        took: later.took.saturating_sub(earlier.took),
        latencies: latencies.map(|(later, earlier)| later.saturating_sub(earlier)).collect(),
    }
}

fn rates(done: Tally, micros: f64) -> Rates {
    let a_second = |count: u64| count as f64 * 1e6 / micros;
    Rates {
        requests: a_second(done.requests),
        kilobytes: a_second(done.sectors) / 2.0,
        wait: done.took as f64 / 1000.0 / done.requests.max(1) as f64,
        latencies: done.latencies,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(requests: u64, took: u64, latencies: &[u64]) -> Tally {
        Tally { requests, sectors: requests * 8, errors: requests / 10, took, latencies: latencies.into() }
    }

    fn sample(time: u64, reads: Tally) -> Sample {
        let tallies = [reads, Tally::default(), Tally::default(), Tally::default()];
        Sample {
            time,
            since: 1_000_000,
            in_flight: 7,
            rejected: time / 1_000_000,
            tallies,
            ..Sample::default()
        }
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let earlier = sample(2_000_000, tally(100, 50_000, &[90, 10]));
        let later = sample(4_000_000, tally(300, 4_050_000, &[100, 200]));
        let interval = Interval::between(Some(&earlier), &later);
        let read = &interval.rates[0];
        assert_eq!((read.requests, read.kilobytes, read.wait), (100.0, 400.0, 20.0));
        assert_eq!(read.latencies, [10, 190]);
        // Little's law: 100 a second, each for 20 ms.
        assert_eq!((interval.queue, interval.in_flight, interval.errors), (2.0, 7, 20 + 2));
        assert_eq!(
            interval.rates[1],
            Rates { requests: 0.0, kilobytes: 0.0, wait: 0.0, latencies: Vec::new() }
        );
    }

    #[test]
    fn the_first_is_since_counting_began() {
        let later = sample(3_000_000, tally(100, 50_000, &[90, 10]));
        let interval = Interval::between(None, &later);
        assert_eq!((interval.rates[0].requests, interval.rates[0].wait), (50.0, 0.5));
        assert_eq!(interval.rates[0].latencies, [90, 10]);
        let other = Sample { since: 500_000, ..sample(2_000_000, tally(40, 0, &[])) };
        assert_eq!(Interval::between(Some(&other), &later), interval, "an earlier device is another");
    }

    #[test]
    fn no_time_at_all_divides_nothing_by_zero() {
        let later = sample(1_000_000, tally(0, 0, &[]));
        assert_eq!(Interval::between(None, &later).queue, 0.0);
        assert_eq!(Interval::between(Some(&later), &later).rates[0].requests, 0.0);
    }
}
