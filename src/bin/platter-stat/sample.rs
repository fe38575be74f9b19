//! What platter has counted for one device at one moment, read from the text that it answers with.

use anyhow::{Context, Result};

/// The operations, in platter's words and in the order of [`Sample::tallies`].
pub(crate) const OPERATIONS: [&str; 4] = ["read", "write", "flush", "discard"];

/// What was done of one operation.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tally {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Sectors of 512 bytes.
    pub(crate) sectors: u64,
    /// Requests among them that were answered with an error.
    pub(crate) errors: u64,
    /// The time that all of them took together, in microseconds.
    pub(crate) took: u64,
    /// How many took at least 2^i and less than 2^(i+1) microseconds, where that was asked for.
    pub(crate) latencies: Vec<u64>,
}

/// What was done for one device.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Sample {
    /// Now, in microseconds of Xen's time.
    pub(crate) time: u64,
    /// When counting began.
    pub(crate) since: u64,
    /// Requests that were taken and not answered.
    pub(crate) in_flight: u64,
    /// Requests that were answered at once with an error, for what they asked.
    pub(crate) rejected: u64,
    /// What it is served from; empty before that is known.
    pub(crate) volume: String,
    /// By operation.
    pub(crate) tallies: [Tally; 4],
}

impl Sample {
    /// Reads the node `device` and those of the operations.
    ///
    /// # Errors
    /// A number is missing.
    pub(crate) fn parse(device: &str, tallies: &[String; 4]) -> Result<Self> {
        let [read, write, flush, discard] = tallies;
        Ok(Self {
            time: number(device, "time")?,
            since: number(device, "since")?,
            in_flight: number(device, "in-flight")?,
            rejected: number(device, "rejected")?,
            volume: value(device, "volume").unwrap_or_default().to_owned(),
            tallies: [tally(read)?, tally(write)?, tally(flush)?, tally(discard)?],
        })
    }
}

/// Reads the nodes of latencies, in their order.
///
/// # Errors
/// They hold something else than numbers.
pub(crate) fn latencies(nodes: &[String]) -> Result<Vec<u64>> {
    let counts = nodes.iter().flat_map(|node| node.split_ascii_whitespace());
    counts.map(|count| count.parse().with_context(|| format!("{count:?} is no count"))).collect()
}

fn tally(text: &str) -> Result<Tally> {
    Ok(Tally {
        requests: number(text, "requests")?,
        sectors: number(text, "sectors")?,
        errors: number(text, "errors")?,
        took: number(text, "took")?,
        latencies: Vec::new(),
    })
}

fn number(text: &str, name: &str) -> Result<u64> {
    let number = value(text, name).and_then(|value| value.parse().ok());
    number.with_context(|| format!("platter answers {text:?}, without a number {name}"))
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "time=2000000 since=1000000 state=4 in-flight=3 rejected=1 volume=nvme0n1p2";

    fn tallies() -> [String; 4] {
        ["requests=10 sectors=80 errors=1 took=5000"; 4].map(str::to_owned)
    }

    #[test]
    fn an_answer_is_read_by_its_names() {
        let sample = Sample::parse(DEVICE, &tallies()).unwrap();
        assert_eq!(
            (sample.time, sample.since, sample.in_flight, sample.rejected),
            (2_000_000, 1_000_000, 3, 1)
        );
        assert_eq!(sample.volume, "nvme0n1p2");
        let expected = Tally { requests: 10, sectors: 80, errors: 1, took: 5000, latencies: Vec::new() };
        assert!(sample.tallies.iter().all(|tally| *tally == expected));
        let later = Sample::parse(&format!("new=7 {DEVICE}"), &tallies()).unwrap();
        assert_eq!(later, sample, "what a later platter adds is left aside");
    }

    #[test]
    fn an_answer_without_a_number_is_none() {
        for (what, instead) in [("time=", "times="), ("in-flight=3", "in-flight=-3"), ("rejected=1 ", "")] {
            let error = Sample::parse(&DEVICE.replace(what, instead), &tallies()).unwrap_err();
            assert!(error.to_string().contains("without a number"), "{error}");
        }
        let mut tallies = tallies();
        tallies[3].clear();
        assert!(Sample::parse(DEVICE, &tallies).is_err());
        let bare = DEVICE.replace(" volume=nvme0n1p2", "");
        assert_eq!(Sample::parse(&bare, &self::tallies()).unwrap().volume, "", "before one was found");
    }

    #[test]
    fn latencies_follow_one_another() {
        let nodes = ["1 2 3".to_owned(), "4 18446744073709551615".to_owned()];
        assert_eq!(latencies(&nodes).unwrap(), [1, 2, 3, 4, u64::MAX]);
        assert!(latencies(&["1 x".to_owned()]).is_err());
    }
}
