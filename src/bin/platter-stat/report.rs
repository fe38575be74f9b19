//! Intervals as text for people: a table with a line for each device, and histograms of latencies.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::Result;
use tabwriter::{Alignment, TabWriter};

use crate::interval::{Interval, Rates};
use crate::platter::Device;
use crate::sample::OPERATIONS;

const HEAD: &str = "Guest\tDevice\tVolume\tr/s\trkB/s\tr_await\tw/s\twkB/s\tw_await\t\
                    f/s\tf_await\td/s\tdkB/s\td_await\taqu-sz\tnow\terrors\t\n";

/// The longest bar of a histogram.
const BAR: u64 = 40;

/// A whole report, with an empty line at its end.
///
/// # Errors
/// None is expected: it is written to memory.
pub(crate) fn text(intervals: &[(&Device, Interval)], histograms: bool) -> Result<String> {
    let mut table = HEAD.to_owned();
    for (device, interval) in intervals {
        line(&mut table, device, interval)?;
    }
    let mut text = aligned(&table)?;
    if histograms {
        for (device, interval) in intervals {
            for (operation, rates) in OPERATIONS.iter().zip(&interval.rates) {
                text += &histogram(device, operation, &rates.latencies)?;
            }
        }
    }
    Ok(text + "\n")
}

fn line(to: &mut String, device: &Device, interval: &Interval) -> Result<()> {
    let Interval { volume, rates: [read, write, flush, discard], queue, in_flight, errors } = interval;
    let volume = if volume.is_empty() { "-" } else { volume };
    write!(to, "{}\t{}\t{volume}", device.guest_name, device.vdev)?;
    for Rates { requests, kilobytes, wait, .. } in [read, write] {
        write!(to, "\t{requests:.2}\t{kilobytes:.2}\t{wait:.2}")?;
    }
    write!(to, "\t{:.2}\t{:.2}", flush.requests, flush.wait)?;
    write!(to, "\t{:.2}\t{:.2}\t{:.2}", discard.requests, discard.kilobytes, discard.wait)?;
    writeln!(to, "\t{queue:.2}\t{in_flight}\t{errors}\t")?;
    Ok(())
}

/// How many requests took how long, from the first range with any to the last; nothing without any.
fn histogram(device: &Device, operation: &str, latencies: &[u64]) -> Result<String> {
    let most = latencies.iter().copied().max().unwrap_or(0);
    let has_any = |count: &u64| *count > 0;
    let (Some(first), Some(last)) = (latencies.iter().position(has_any), latencies.iter().rposition(has_any))
    else {
        return Ok(String::new());
    };
    let mut table = String::new();
    for (power, count) in latencies.iter().enumerate().take(last + 1).skip(first) {
        // The first range also has what is faster.
        let from = if power == 0 { 0 } else { 1_u64 << power };
        let bar = "#".repeat((u128::from(*count) * u128::from(BAR)).div_ceil(most.into()) as usize);
        writeln!(table, "{from}\t{count}\t {bar}")?;
    }
    let head = format!("\n{} {} {operation}: from µs, requests\n", device.guest_name, device.vdev);
    Ok(head + &aligned(&table)?)
}

/// Lines up cells between tabs, to the right.
fn aligned(table: &str) -> Result<String> {
    let mut lines = Vec::new();
    let mut writer = TabWriter::new(&mut lines).alignment(Alignment::Right);
    writer.write_all(table.as_bytes())?;
    writer.flush()?;
    drop(writer);
    Ok(String::from_utf8(lines)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Sample, Tally};

    fn device() -> Device {
        let (guest_name, vdev) = ("alice".to_owned(), "xvdb".to_owned());
        Device { guest: 5, device: 51728, guest_name, vdev }
    }

    fn interval() -> Interval {
        let latencies = [3, 0, 40, 1].into();
        let read = Tally { requests: 44, sectors: 352, errors: 2, took: 88_000, latencies };
        let tallies = [read, Tally::default(), Tally::default(), Tally::default()];
        let volume = "nvme0n1p2".to_owned();
        let sample = Sample { time: 2_000_000, since: 0, in_flight: 3, rejected: 0, volume, tallies };
        Interval::between(None, &sample)
    }

    #[test]
    fn a_line_has_a_cell_under_each_head() {
        let text = text(&[(&device(), interval())], false).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let expected =
            "alice xvdb nvme0n1p2 22.00 88.00 2.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.04 3 2";
        assert_eq!(cells(lines[1]), cells(expected));
        assert_eq!(cells(lines[0]).len(), cells(lines[1]).len());
        assert_eq!((lines[0].len(), lines.len()), (lines[1].len(), 3), "lined up, and an empty line");
    }

    #[test]
    fn a_histogram_begins_and_ends_with_what_there_was() {
        let mut interval = interval();
        let with = text(&[(&device(), interval.clone())], true).unwrap();
        let (_, shown) = with.split_once("\nalice xvdb read: from µs, requests\n").unwrap();
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        let bar = "#".repeat(40);
        assert_eq!(
            lines,
            [vec!["0", "3", "###"], vec!["2", "0"], vec!["4", "40", &bar], vec!["8", "1", "#"], vec![]]
        );
        interval.rates[0].latencies.fill(0);
        let without = text(&[(&device(), interval)], true).unwrap();
        assert!(!without.contains("requests"), "{without}");
    }
}
