//! What dom0 sees of a guest's disk: platter's own counters, by `platter-stat`, beside what the guest did.

use anyhow::{Context, Result, bail, ensure};

use super::World;
use crate::fio;
use crate::image::STAT;
use crate::machine::{COMMAND_LIMIT, Linux, NAME};

/// How much each job reads or writes, in MiB.
const SIZE: u32 = 4;
/// Requests of 4 KiB in that.
const REQUESTS: u64 = (SIZE as u64) << 8;

/// dom0's `platter-stat` counts exactly what fio did in the guest, which cannot read the same nodes.
pub(super) fn what_fio_did_is_what_dom0_sees(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    world.step("without a disk there is an empty table");
    let empty = stat(world, "")?;
    ensure!(empty.lines().count() == 1, "more than a head: {empty}");
    alice.attach("xvdb", NAME, &disk.target())?;
    world.step("alice reads and writes, dom0 counts as many");
    counts_are_exact(world, alice)?;
    world.step("reports at intervals see what happens meanwhile");
    let rounds = fio::keep_reading(alice, "xvdb")?;
    let reports = stat(world, "2 3")?;
    rounds.stop()?;
    let lines: Vec<&str> = reports.lines().filter(|line| line.starts_with("alice")).collect();
    ensure!(lines.len() == 3, "three reports, one line each:\n{reports}");
    lines[1..].iter().try_for_each(|line| obeys_littles_law(line)).context(reports.clone())?;
    world.step("the guest has no answer, nor has a domain that is no platter");
    is_unreadable(alice, platter.id())?;
    for (domain, reason) in [("nobody", "no domain \"nobody\""), (alice.name(), "is no platter")] {
        let command = format!("/share/{STAT} --domain {domain} 2>&1");
        let answer = world.machine().dom0_answer(&command, COMMAND_LIMIT)?;
        ensure!(answer.code == 1 && answer.text.contains(reason), "{}", answer.text);
    }
    alice.detach("xvdb")
}

/// What `platter-stat` prints in dom0.
fn stat(world: &World, arguments: &str) -> Result<String> {
    world.machine().dom0(&format!("/share/{STAT} {arguments}"))
}

fn counts_are_exact(world: &World, alice: &Linux) -> Result<()> {
    let before = requests(&stat(world, "--histogram")?, "alice xvdb")?;
    for mix in ["randread", "randwrite"] {
        let outcome = fio::once_over(alice, "xvdb", mix, SIZE)?;
        ensure!((outcome.requests, outcome.errors) == (REQUESTS, 0), "fio: {outcome:?}");
    }
    let report = stat(world, "--histogram")?;
    let after = requests(&report, "alice xvdb")?;
    let done = [after[0] - before[0], after[1] - before[1]];
    ensure!(done == [REQUESTS; 2], "dom0 counts {done:?} reads and writes, fio did {REQUESTS} of each");
    let line = report.lines().nth(1).context("no line for the disk")?;
    let cells: Vec<&str> = line.split_whitespace().collect();
    ensure!(cells.len() == 17 && cells[..3] == ["alice", "xvdb", "nvme0n1"], "{line}");
    ensure!(cells[15..] == ["0", "0"], "nothing is in flight, nothing failed: {line}");
    Ok(())
}

/// A line of a time with reads alone: so many a second, each for so long, are so many at a time.
fn obeys_littles_law(line: &str) -> Result<()> {
    let cells: Vec<f64> = line.split_whitespace().skip(3).map_while(|cell| cell.parse().ok()).collect();
    let [reads, _, wait, writes, .., queue, _, _] = cells[..] else { bail!("too few numbers: {line}") };
    ensure!(reads > 0.0 && wait > 0.0 && queue > 0.0 && writes == 0.0, "reads alone: {line}");
    let expected = reads * wait / 1000.0;
    // All of them were rounded.
    ensure!((queue - expected).abs() <= 0.01 * expected + 0.02, "{queue} is not {expected}: {line}");
    Ok(())
}

fn is_unreadable(alice: &Linux, platter: u32) -> Result<()> {
    let own = alice.run("xenstore-read name").context("the guest cannot read xenstore at all")?;
    ensure!(own == alice.name(), "its name is {own:?}");
    for node in ["ask", "for", "device", "read"] {
        let read = format!("xenstore-read /local/domain/{platter}/data/statistics/{node} 2>&1");
        let answer = alice.answer(&read, COMMAND_LIMIT)?;
        ensure!(answer.code != 0, "the guest reads {node}: {}", answer.text);
    }
    Ok(())
}

/// How many reads and writes the histograms of a disk hold together.
fn requests(report: &str, disk: &str) -> Result<[u64; 2]> {
    let sum = |operation: &str| -> Result<u64> {
        let head = format!("{disk} {operation}: ");
        let lines = report.lines().skip_while(|line| !line.starts_with(&head)).skip(1);
        let counts = lines.take_while(|line| !line.is_empty());
        let count = |line: &str| line.split_whitespace().nth(1).and_then(|count| count.parse::<u64>().ok());
        counts.map(|line| count(line).with_context(|| format!("no count in {line:?}"))).sum()
    };
    Ok([sum("read")?, sum("write")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_added_up() {
        let report = "Guest\nalice\n\nalice xvdb read: from µs, requests\n 64  3  ###\n128 10  ####\n\n\
                      alice xvdb flush: from µs, requests\n 64  5  #\n\n";
        assert_eq!(requests(report, "alice xvdb").unwrap(), [13, 0]);
        assert!(requests(&report.replace("10", "x"), "alice xvdb").is_err());
    }
}
