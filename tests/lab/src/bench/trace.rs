//! Hypercalls for a request, of whoever serves: Xen traces them (`xentrace`), and `xenalyze` counts them by domain.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::job::Job;
use super::stage::{Contender, Stage};
use crate::fio::Measure;

/// Classes of events: the scheduler's, which say whose turn it is, and those of PV domains.
const EVENTS: &str = "0x0022f000";
/// Pages of a processor's buffer.
const BUFFER: u32 = 1024;
const FILE: &str = "/tmp/trace";
const SECONDS: u32 = 2;
const LIMIT: Duration = Duration::from_secs(120);

/// Hypercalls by the domain that serves, for one request.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Hypercalls {
    pub(super) all: f64,
    /// Of grants: maps, unmaps and copies, each of any number.
    pub(super) grants: f64,
    /// Of event channels: notifications above all.
    pub(super) events: f64,
}

/// Counts them while the first guest does a job.
///
/// # Errors
/// Xen does not trace, or the job fails.
pub(super) fn count(stage: &Stage, contender: Contender, job: &Job) -> Result<Hypercalls> {
    let domain = stage.domain(contender.server)?;
    stage.machine.dom0(&format!(
        "xentrace -D -S {BUFFER} -e {EVENTS} {FILE} >/dev/null 2>&1 & echo $! >/tmp/xentrace.pid; sleep 0.5"
    ))?;
    let ran = stage.run(contender, job, 1, SECONDS);
    let summary = format!("/share/{}-{}.xenalyze", job.name, contender.name().replace([' ', ','], "-"));
    // Nobody takes leave of a process whose parent has ended: that it is over shows in that it has no command line.
    let script = format!(
        "pid=$(cat /tmp/xentrace.pid); kill $pid; while grep -q . /proc/$pid/cmdline; do sleep 0.1; done 2>/dev/null; \
         xenalyze --summary {FILE} 2>/dev/null > {summary}; rm {FILE}; \
         awk '/^\\|-- Domain/ {{ own = $3 == {domain} }} own && /[a-z] +\\[ *[0-9]+\\]: +[0-9]+$/ {{ print }}' {summary}"
    );
    let said = stage.machine.dom0_answer(&script, LIMIT)?.success("dom0", &script)?;
    let requests: f64 = ran?.iter().map(|Measure { outcome, .. }| outcome.requests as f64).sum();
    let counts = parse(&said)?;
    ensure!(
        !counts.is_empty(),
        "xenalyze found no hypercall of domain {domain} in what xentrace traced: {summary}"
    );
    let of = |is_wanted: fn(&str) -> bool| {
        let wanted = counts.iter().filter(|(name, _)| is_wanted(name));
        wanted.map(|(_, count)| *count as f64).sum::<f64>() / requests
    };
    Ok(Hypercalls {
        all: of(|_| true),
        grants: of(|name| name == "grant_table_op"),
        events: of(|name| name == "evtchn_op"),
    })
}

/// Reads lines like `evtchn_op [32]:   1234`.
fn parse(said: &str) -> Result<Vec<(String, u64)>> {
    let line = |line: &str| {
        let (name, count) = line.split_once("]: ")?;
        let (name, _) = name.split_once('[')?;
        Some((name.trim().to_owned(), count.trim().parse().ok()?))
    };
    said.lines().map(|text| line(text).with_context(|| format!("xenalyze printed {text:?}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_names() {
        let counts = parse("      grant_table_op [20]:    100\n    evtchn_op      [32]:   1234\n").unwrap();
        assert_eq!(counts, [("grant_table_op".to_owned(), 100), ("evtchn_op".to_owned(), 1234)]);
        assert!(parse("something else").is_err());
    }
}
