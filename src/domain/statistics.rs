//! What dom0 may ask about a device while it serves, without a console: a conversation in
//! `data/statistics` below our home, which xenstore shows to this domain and dom0 alone, as all of
//! `data`. Nothing is written there that was not asked for, and there are always as many nodes,
//! however many devices: xenstore counts them in this domain's quota.
//!
//! dom0 writes `GUEST/DEVICE` to the node `ask`, with a word that it has not used before and maybe
//! the name of an operation after it. The other nodes answer, and last of all `for`, which then
//! repeats what was asked:
//!
//! | node | holds |
//! |---|---|
//! | `device` | `time` now and `since` when all is counted (µs of Xen's system time), `state` (XenbusState), `in-flight` requests, `rejected` requests, `free-memory` that devices can still take (KiB, of the whole domain), `volume`; or `error` and why there is no answer |
//! | `read`, `write`, `flush`, `discard` | `requests` answered, `sectors` of 512 bytes, `errors`, and the time that the requests `took` together (µs) |
//! | `fast`, `slow` | of the operation that was asked about: its latencies by [`LATENCY_RANGES`], below 4.096 ms and from there on |
//!
//! Each holds `name=number` separated by spaces, `volume` a name and `error` some words; `fast` and
//! `slow` numbers alone. Later versions may add names.

use core::fmt::{self, Display};

use super::io::Vbds;
use crate::blkback::{Counters, DeviceId, LATENCY_RANGES, Tally, Vbd};
use crate::limits;
use crate::units::{Instant, PAGE_SIZE};
use crate::wire::xenbus::{self, Answer, Job, Value};

/// The token of the watch on the question.
pub(super) const TOKEN: &str = "statistics";

const HOME: &str = "data/statistics";

/// The tallies' nodes, which are the operations' names.
const OPERATIONS: [&str; 4] = ["read", "write", "flush", "discard"];

/// Where latencies are cut in two, so that each half fits a node also with the largest numbers.
const HALF: usize = LATENCY_RANGES / 2;

const _: () = assert!((u64::MAX.ilog10() as usize + 2) * HALF <= limits::VALUE);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Errand {
    SetUp,
    Look,
    Answer,
}

/// What an answer says beside the counters.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    /// Pages that devices can still take.
    pub(super) free_pages: usize,
}

/// The conversation.
pub(super) struct Statistics {
    set_up: bool,
    errand: Option<Errand>,
    /// The question may have changed.
    noticed: bool,
    question: Option<Value>,
}

impl Statistics {
    pub(super) const fn new() -> Self {
        Self { set_up: false, errand: None, noticed: false, question: None }
    }

    /// The watch has fired.
    pub(super) fn notice(&mut self) {
        self.noticed = true;
    }

    /// Whether there is a job now.
    pub(super) fn has_job(&self) -> bool {
        self.errand.is_none() && (!self.set_up || self.question.is_some() || self.noticed)
    }

    /// The job that is due, if any; [`Statistics::job_done`] is owed for it.
    pub(super) fn next_job(&mut self, moment: impl FnOnce() -> Moment, vbds: &Vbds) -> Option<Job> {
        if !self.has_job() {
            return None;
        }
        let home = || Job::new(&xenbus::path(format_args!("{HOME}")));
        let (errand, job) = if !self.set_up {
            (Errand::SetUp, set_up(home()))
        } else if let Some(question) = self.question.take() {
            (Errand::Answer, answer(home(), &question, moment(), vbds))
        } else {
            self.noticed = false;
            (Errand::Look, home().read("ask"))
        };
        self.errand = Some(errand);
        Some(job)
    }

    /// The job was done, or not.
    pub(super) fn job_done(&mut self, answers: &[Answer]) {
        let failed = || answers.iter().find_map(|answer| answer.as_ref().err());
        match self.errand.take() {
            Some(Errand::SetUp) => {
                self.set_up = true;
                if let Some(error) = failed() {
                    log::warn!("xenstore: cannot make {HOME}: {error:?}; there will be no statistics");
                }
            }
            // What cannot be read is no question.
            Some(Errand::Look) => {
                let question = answers.first().and_then(|answer| answer.clone().ok());
                self.question = question.filter(|question| !question.is_empty());
            }
            // Whoever asked will ask again.
            Some(Errand::Answer) | None => {}
        }
    }
}

/// All nodes, while there is room for them, before the watch on the one that dom0 writes.
fn set_up(home: Job) -> Job {
    let nodes = ["ask", "for", "device", "fast", "slow"].into_iter().chain(OPERATIONS);
    nodes.fold(home, |job, node| job.write(node, "")).watch("ask", TOKEN)
}

fn answer(home: Job, question: &str, moment: Moment, vbds: &Vbds) -> Job {
    let mut words = question.split_ascii_whitespace();
    let job = match find(words.next().unwrap_or_default(), vbds) {
        Ok((vbd, counters)) => tell(home, vbd, counters, words.nth(1), moment),
        Err(why) => home.write("device", format_args!("error={why}")),
    };
    job.write("for", question)
}

fn find<'a>(device: &str, vbds: &'a Vbds) -> Result<(&'a Vbd, &'a Counters), &'static str> {
    let id = DeviceId::parse(device).ok_or("ask for GUEST/DEVICE, two numbers")?;
    let vbd = vbds.iter().flatten().find(|vbd| vbd.id() == id).ok_or("no such device")?;
    Ok((vbd, vbd.counters().ok_or("it is not served")?))
}

fn tell(home: Job, vbd: &Vbd, counters: &Counters, operation: Option<&str>, moment: Moment) -> Job {
    let Counters { read, write, flush, discard, .. } = counters;
    let mut job = home.write("device", device(vbd, counters, moment));
    for (name, tally) in OPERATIONS.into_iter().zip([read, write, flush, discard]) {
        job = job.write(name, numbers(tally));
        if operation == Some(name) {
            let (fast, slow) = tally.latencies.split_at(HALF);
            job = job.write("fast", list(fast)).write("slow", list(slow));
        }
    }
    job
}

fn device(vbd: &Vbd, counters: &Counters, moment: Moment) -> impl Display {
    fmt::from_fn(move |f| {
        let Moment { now, free_pages } = moment;
        let Counters { since, rejected, .. } = counters;
        let micros = |at: Instant| at.since(Instant(0)).as_micros();
        write!(f, "time={} since={} state={} ", micros(now), micros(*since), vbd.shown() as u8)?;
        write!(f, "in-flight={} rejected={rejected} ", vbd.in_flight())?;
        write!(f, "free-memory={}", free_pages * (PAGE_SIZE / 1024))?;
        vbd.volume().map_or(Ok(()), |volume| write!(f, " volume={volume}"))
    })
}

fn numbers(tally: &Tally) -> impl Display {
    let Tally { requests, sectors, errors, took, .. } = *tally;
    let took = took.as_micros();
    fmt::from_fn(move |f| write!(f, "requests={requests} sectors={sectors} errors={errors} took={took}"))
}

fn list(numbers: &[u64]) -> impl Display {
    fmt::from_fn(move |f| {
        let (last, rest) = numbers.split_last().ok_or(fmt::Error)?;
        rest.iter().try_for_each(|number| write!(f, "{number} "))?;
        last.fmt(f)
    })
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::string::ToString;

    use super::*;
    use crate::wire::xenbus::{Step, StoreError};

    #[test]
    fn the_largest_numbers_fit_their_nodes() {
        let largest = [u64::MAX; HALF];
        let tally = Tally {
            requests: u64::MAX,
            sectors: u64::MAX,
            errors: u64::MAX,
            took: Duration::MAX,
            latencies: [u64::MAX; LATENCY_RANGES],
        };
        let vbd = Vbd::new(DeviceId::parse("65535/4294967295").unwrap());
        let counters = Counters { rejected: u64::MAX, ..Counters::new(Instant(u64::MAX)) };
        let moment = Moment { now: Instant(u64::MAX), free_pages: usize::MAX / PAGE_SIZE };
        let device = device(&vbd, &counters, moment).to_string();
        for text in [list(&largest).to_string(), numbers(&tally).to_string(), device] {
            assert_eq!(xenbus::cut(&text).as_str(), text);
        }
    }

    #[test]
    fn one_question_is_one_look_and_one_answer() {
        let (vbds, moment) = (Vbds::new(), || Moment { now: Instant(0), free_pages: 0 });
        let mut statistics = Statistics::new();
        let nodes = statistics.next_job(moment, &vbds).unwrap().steps;
        assert!(matches!(nodes.last(), Some(Step::Watch(node, _)) if node == "ask"));
        assert!(statistics.next_job(moment, &vbds).is_none(), "one job at a time");
        statistics.job_done(&[]);
        assert!(statistics.next_job(moment, &vbds).is_none(), "nothing was asked");
        for question in [Ok("5/1 2"), Ok(""), Err(StoreError::TooLong)] {
            statistics.notice();
            statistics.notice();
            let look = statistics.next_job(moment, &vbds).unwrap();
            assert!(matches!(look.steps.as_slice(), [Step::Read(node)] if node == "ask"));
            statistics.job_done(&[question.map(xenbus::cut)]);
            if let Some(answer) = statistics.next_job(moment, &vbds) {
                assert_eq!(answer.steps.last(), Job::new(&answer.base).write("for", "5/1 2").steps.last());
                statistics.job_done(&[]);
            } else {
                assert_ne!(question, Ok("5/1 2"));
            }
            assert!(statistics.next_job(moment, &vbds).is_none());
        }
    }
}
