//! fio in a guest: its command lines, and what its JSON says.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::machine::Linux;

/// What a job came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    /// Reads and writes together.
    pub(crate) requests: u64,
    /// Bytes read and written.
    pub(crate) bytes: u64,
    /// How long the job ran.
    pub(crate) time: Duration,
    /// 1 when a request failed or a block did not hold what was written: the job stops there.
    pub(crate) errors: u64,
}

impl Outcome {
    pub(crate) fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.time.as_secs_f64()
    }

    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.time.as_secs_f64()
    }
}

/// Writes `size` MiB from `offset` MiB on in random order and reads all of it back, comparing checksums: 512 bytes to
/// 256 KiB a request, in buffers that are not aligned to pages (fio puts them behind each other, and the largest is no
/// multiple of a page), a flush every 32 writes.
pub(crate) fn verify(guest: &Linux, device: &str, offset: u32, size: u32) -> Result<Outcome> {
    verify_on_all(guest, device, 1, offset, size)
}

/// As [`verify`], on so many processors at once: each has `size` MiB of its own, one behind the other.
pub(crate) fn verify_on_all(
    guest: &Linux,
    device: &str,
    processors: u32,
    offset: u32,
    size: u32,
) -> Result<Outcome> {
    let outcome = run(
        guest,
        device,
        &format!(
            "--rw=randwrite --bsrange=512-262656 --offset={offset}m --offset_increment={size}m --size={size}m \
             --iodepth=16 --fsync=32 --verify=crc32c --verify_backlog=64 --verify_fatal=1 \
             --numjobs={processors} --cpus_allowed=0-{} --cpus_allowed_policy=split --group_reporting",
            processors - 1
        ),
        Duration::from_secs(900),
    )?;
    if outcome.errors != 0 {
        bail!("fio in {} met {} errors", guest.name(), outcome.errors);
    }
    Ok(outcome)
}

/// fio in the background of a guest, round after round until it is told to stop. One at a time in a guest.
pub(crate) struct Rounds<'g, 'm> {
    guest: &'g Linux<'m>,
    device: String,
}

/// Starts rounds that write `size` MiB from `offset` MiB on at depth 32 and read them back, comparing checksums; waits
/// until the disk is busy.
pub(crate) fn keep_verifying<'g, 'm>(
    guest: &'g Linux<'m>,
    device: &str,
    offset: u32,
    size: u32,
) -> Result<Rounds<'g, 'm>> {
    let job = format!(
        "--rw=randwrite --bsrange=512-262656 --offset={offset}m --size={size}m --fsync=64 --verify=crc32c \
         --verify_backlog=64 --verify_fatal=1"
    );
    Rounds::start(guest, device, &job)
}

/// Starts rounds of large reads at depth 32; waits until the disk is busy.
pub(crate) fn keep_reading<'g, 'm>(guest: &'g Linux<'m>, device: &str) -> Result<Rounds<'g, 'm>> {
    Rounds::start(guest, device, "--rw=randread --bs=256k --size=64m")
}

impl<'g, 'm> Rounds<'g, 'm> {
    fn start(guest: &'g Linux<'m>, device: &str, job: &str) -> Result<Self> {
        guest.run(&format!(
            "cd /tmp; rm -f stop failed ended; echo 0 > rounds\n{{ round=1; until [ -e stop ]; do\n\
             fio --name=job --filename=/dev/{device} --direct=1 --ioengine=libaio --iodepth=32 --randseed=$round \
             {job} > fio.log 2>&1 || {{ touch failed; break; }}\n\
             echo $round > rounds; round=$((round + 1)); done; touch ended; }} < /dev/null > /dev/null 2>&1 &"
        ))?;
        let rounds = Self { guest, device: device.to_owned() };
        rounds.wait_in_flight(1)?;
        Ok(rounds)
    }

    /// Waits until so many requests are under way.
    ///
    /// # Errors
    /// fio has met an error, or there never are.
    pub(crate) fn wait_in_flight(&self, requests: u32) -> Result<()> {
        let reads_and_writes = format!("awk '{{ print $1 + $2 }}' /sys/block/{}/inflight", self.device);
        self.until(&format!("[ $({reads_and_writes}) -ge {requests} ]"))
    }

    /// Waits until `count` rounds have begun and ended well, beside the one under way.
    ///
    /// # Errors
    /// fio has met an error, or nothing moves.
    pub(crate) fn wait(&self, count: u32) -> Result<()> {
        let rounds = count + 1;
        self.until(&format!("[ $(cat rounds) -ge $((begun + {rounds})) ]"))
    }

    /// Ends with the round under way.
    ///
    /// # Errors
    /// fio has met an error.
    pub(crate) fn stop(self) -> Result<()> {
        self.guest.run("touch /tmp/stop")?;
        self.until("[ -e ended ]")
    }

    fn until(&self, condition: &str) -> Result<()> {
        let script = format!(
            "cd /tmp; begun=$(cat rounds); until {condition} || [ -e failed ]; do sleep 0.05; done; \
             if [ -e failed ]; then cat fio.log; exit 1; fi"
        );
        self.guest.run_within(Duration::from_secs(300), &script).map(drop)
    }
}

/// 4 KiB random requests at depth 8, as many as there are blocks in `size` MiB: reads, writes or, half and half, both.
pub(crate) fn once_over(guest: &Linux, device: &str, mix: &str, size: u32) -> Result<Outcome> {
    let job = format!("--rw={mix} --bs=4k --iodepth=8 --size={size}m");
    run(guest, device, &job, Duration::from_secs(300))
}

/// What a job came to whose requests are timed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measure {
    pub(crate) outcome: Outcome,
    /// How long a request took.
    pub(crate) mean: Duration,
    /// Of 100 requests, 99 were answered within this time.
    pub(crate) p99: Duration,
}

/// 4 KiB random writes at depth 4 in `size` MiB from `offset` MiB on, all read back and compared, for some seconds.
pub(crate) fn verified_for(
    guest: &Linux,
    device: &str,
    (offset, size): (u32, u32),
    seconds: u32,
) -> Result<Measure> {
    let job = format!(
        "--rw=randwrite --bs=4k --iodepth=4 --offset={offset}m --size={size}m --verify=crc32c \
         --verify_backlog=32 --verify_fatal=1"
    );
    timed(guest, device, &job, seconds)
}

/// A job of these options for some seconds, whose requests are timed.
pub(crate) fn timed(guest: &Linux, device: &str, job: &str, seconds: u32) -> Result<Measure> {
    let more = format!("--time_based --runtime={seconds} --unified_rw_reporting=1");
    let report = report(guest, device, job, &more, Duration::from_secs(u64::from(seconds) + 120))?;
    parse_measure(&report)
}

fn run(guest: &Linux, device: &str, job: &str, limit: Duration) -> Result<Outcome> {
    parse(&report(guest, device, job, "--clat_percentiles=0 --lat_percentiles=0", limit)?)
}

/// Runs a job and gives its report.
fn report(guest: &Linux, device: &str, job: &str, more: &str, limit: Duration) -> Result<String> {
    guest.run_within(
        limit,
        &format!(
            "fio --name=job --filename=/dev/{device} --direct=1 --ioengine=libaio --randseed=7 {job} {more} \
             --output-format=json --output=/tmp/fio.json"
        ),
    )?;
    guest.run("cat /tmp/fio.json")
}

/// The first job, or group of them, of fio's report. Lines before the JSON, as fio's warnings are, are skipped.
fn first_job(report: &str) -> Result<Value> {
    let json = report.find('{').map_or("", |start| &report[start..]);
    let mut report: Value = serde_json::from_str(json).context("fio's report is no JSON")?;
    Ok(report["jobs"][0].take())
}

fn number(value: &Value, what: &str) -> Result<u64> {
    value.as_u64().with_context(|| format!("fio's report has no {what}"))
}

/// Reads a report that has reads and writes apart.
fn parse(report: &str) -> Result<Outcome> {
    let job = first_job(report)?;
    outcome(&job, &[&job["read"], &job["write"]])
}

/// Reads a report that has them together, with the times they took.
fn parse_measure(report: &str) -> Result<Measure> {
    let job = first_job(report)?;
    let both = &job["mixed"];
    let p99 = number(&both["clat_ns"]["percentile"]["99.000000"], "99th percentile")?;
    let mean = both["clat_ns"]["mean"].as_f64().context("fio's report has no mean")?;
    let [mean, p99] = [mean as u64, p99].map(Duration::from_nanos);
    Ok(Measure { outcome: outcome(&job, &[both])?, mean, p99 })
}

fn outcome(job: &Value, directions: &[&Value]) -> Result<Outcome> {
    let sum = |what: &str| -> Result<u64> { directions.iter().map(|one| number(&one[what], what)).sum() };
    Ok(Outcome {
        requests: sum("total_ios")?,
        bytes: sum("io_bytes")?,
        time: Duration::from_millis(number(&job["job_runtime"], "job_runtime")?.max(1)),
        // A job stops at its first error and reports which.
        errors: u64::from(number(&job["error"], "error")? != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"fio: a warning
        {"jobs": [{"job_runtime": 2000, "error": 0,
          "read": {"total_ios": 300, "io_bytes": 3000000},
          "write": {"total_ios": 100, "io_bytes": 1000000}}]}"#;

    #[test]
    fn reads_and_writes_are_added() {
        let outcome = parse(REPORT).unwrap();
        assert_eq!((outcome.requests, outcome.bytes, outcome.errors), (400, 4_000_000, 0));
        assert_eq!((outcome.requests_per_second(), outcome.megabytes_per_second()), (200.0, 2.0));
    }

    #[test]
    fn times_are_those_of_reads_and_writes_together() {
        let report = r#"{"jobs": [{"job_runtime": 2000, "error": 0, "mixed": {"total_ios": 400,
            "io_bytes": 1638400, "clat_ns": {"mean": 900.5, "percentile": {"95.000000": 1000, "99.000000": 2500000}}}}]}"#;
        let measure = parse_measure(report).unwrap();
        assert_eq!((measure.p99, measure.outcome.requests), (Duration::from_micros(2500), 400));
        assert_eq!(measure.mean, Duration::from_nanos(900));
        assert!(parse_measure(REPORT).is_err());
    }

    #[test]
    fn errors_are_counted_and_a_broken_report_is_refused() {
        assert_eq!(parse(&REPORT.replace("\"error\": 0", "\"error\": 84")).unwrap().errors, 1);
        assert!(parse("fio: error").is_err());
        assert!(parse(&REPORT.replace("total_ios", "other")).is_err());
    }
}
