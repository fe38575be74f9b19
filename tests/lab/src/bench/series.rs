//! What was measured, round by round, and what comes of it: medians, and how far the rounds are apart.

use serde::Serialize;

/// What one job came to on one contender in one round, of all guests together.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Sample {
    pub(super) iops: f64,
    pub(super) megabytes_per_second: f64,
    /// How long a request took.
    pub(super) mean_ms: f64,
    /// Of 100 requests, 99 took no longer than this.
    pub(super) p99_ms: f64,
    /// CPU time of the domain that serves, less what it uses without any request, for one request.
    pub(super) cpu_us: f64,
}

/// The middle of some values, and the borders of the half of them that is around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Median {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Median {
    /// Of values, of which there is one at least; quartiles between two values are in proportion.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |quarter: f64| {
            let place = quarter * (sorted.len() - 1) as f64;
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Self { low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    /// How far the borders are apart, as a part of the median.
    pub(super) fn spread(&self) -> f64 {
        (self.high - self.low) / self.median.abs().max(f64::MIN_POSITIVE)
    }
}

/// The rounds of one job on one contender.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Series(pub(super) Vec<Sample>);

impl Series {
    /// The middle of one of its figures.
    pub(super) fn median(&self, of: impl Fn(&Sample) -> f64) -> Median {
        Median::of(self.0.iter().map(of))
    }

    /// The middle of a figure beside another's, round by round: what disturbs both does not show.
    pub(super) fn ratio(&self, other: &Self, of: impl Fn(&Sample) -> f64) -> Median {
        Median::of(self.0.iter().zip(&other.0).map(|(one, other)| of(one) / of(other)))
    }

    /// Whether the middle half of the rounds had the same requests a second but for this part.
    pub(super) fn is_steady(&self, spread: f64) -> bool {
        self.median(|sample| sample.iops).spread() <= spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_half_is_in_proportion_between_values() {
        let median = Median::of([4.0, 1.0, 2.0, 3.0].into_iter());
        assert_eq!(median, Median { low: 1.75, median: 2.5, high: 3.25 });
        assert!((median.spread() - 0.6).abs() < 1e-9);
        assert_eq!(Median::of([7.0].into_iter()).spread(), 0.0);
    }

    #[test]
    fn ratios_are_those_of_rounds() {
        let series = |values: [f64; 3]| {
            let sample =
                |iops| Sample { iops, megabytes_per_second: 1.0, mean_ms: 1.0, p99_ms: 1.0, cpu_us: 1.0 };
            Series(values.map(sample).to_vec())
        };
        // Each round is twice as fast, however the host's mood changes.
        let ratio = series([10.0, 2.0, 6.0]).ratio(&series([5.0, 1.0, 3.0]), |sample| sample.iops);
        assert_eq!(ratio, Median { low: 2.0, median: 2.0, high: 2.0 });
        assert!(!series([10.0, 2.0, 6.0]).is_steady(0.1) && series([10.0, 10.0, 10.5]).is_steady(0.1));
    }
}
