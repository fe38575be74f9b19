//! The conversation about the domain itself: watches on what the toolstack asks of it
//! (`control/shutdown`, `control/sysrq`), and `data/ready`.

use core::time::Duration;

use crate::units::Instant;
use crate::wire::xenbus::{Answer, Job, Path, StoreError};

/// The token of the watch on `control/shutdown`, and its place.
pub(super) const SHUTDOWN: &str = "shutdown";
/// The token of the watch on `control/sysrq`, and its place.
pub(super) const SYSRQ: &str = "sysrq";

/// The pause after `data/ready` could not be written: as long as a device's longest.
const RETRY: Duration = Duration::from_millis(6400);

/// What the toolstack has asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Poweroff,
    Reboot,
    Crash,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Nothing,
    SetUp,
    Ready,
    Control,
    Acknowledge,
}

/// What is to be done about `data/ready`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ready {
    /// Nothing now: the domain does not serve yet, or has said so.
    Nothing,
    /// It is to be written.
    Due,
    /// It could not be written, which was logged.
    Failed { retry_at: Instant },
    /// It is to be written again.
    Retried,
}

/// The state of it.
pub(super) struct Home {
    asked: Asked,
    set_up: bool,
    ready: Ready,
    noticed: bool,
    /// A request has been read that is to be acknowledged.
    to_acknowledge: bool,
    request: Option<Request>,
}

impl Home {
    pub(super) const fn new() -> Self {
        Self {
            asked: Asked::Nothing,
            set_up: false,
            ready: Ready::Nothing,
            noticed: false,
            to_acknowledge: false,
            request: None,
        }
    }

    /// Whether the watches are there.
    pub(super) const fn is_set_up(&self) -> bool {
        self.set_up
    }

    /// The domain serves.
    pub(super) fn set_ready(&mut self) {
        self.ready = Ready::Due;
    }

    /// When it has something to do by itself.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        match self.ready {
            Ready::Failed { retry_at } => Some(retry_at),
            Ready::Nothing | Ready::Due | Ready::Retried => None,
        }
    }

    /// Does what time allows.
    pub(super) fn turn(&mut self, now: Instant) {
        if self.deadline().is_some_and(|at| at <= now) {
            self.ready = Ready::Retried;
        }
    }

    /// A watch has fired.
    pub(super) fn notice(&mut self) {
        self.noticed = true;
    }

    pub(super) const fn request(&self) -> Option<Request> {
        self.request
    }

    /// Whether the toolstack knows that its request was taken.
    pub(super) const fn acknowledged(&self) -> bool {
        !self.to_acknowledge
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        let asked = self.due()?;
        if asked == Asked::Control {
            self.noticed = false;
        }
        self.asked = asked;
        Some(job(asked))
    }

    /// Whether there is a job now.
    pub(super) fn has_job(&self) -> bool {
        self.due().is_some()
    }

    /// What is to be asked next.
    fn due(&self) -> Option<Asked> {
        if self.asked != Asked::Nothing {
            None
        } else if !self.set_up {
            Some(Asked::SetUp)
        } else if self.to_acknowledge {
            Some(Asked::Acknowledge)
        } else if self.noticed {
            Some(Asked::Control)
        } else {
            matches!(self.ready, Ready::Due | Ready::Retried).then_some(Asked::Ready)
        }
    }

    pub(super) fn job_done(&mut self, now: Instant, result: Result<(), StoreError>, answers: &[Answer]) {
        match core::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Nothing => {}
            Asked::SetUp => {
                self.set_up = true;
                Self::say_failures("set up watches", result, answers);
            }
            Asked::Ready => {
                if self.ready == Ready::Due {
                    Self::say_failures("write data/ready", result, answers);
                }
                let failed = failure(result, answers).is_some();
                self.ready = if failed { Ready::Failed { retry_at: now + RETRY } } else { Ready::Nothing };
            }
            Asked::Control => {
                let value = |index: usize| answers.get(index).and_then(|answer| answer.as_ref().ok());
                if let Some(command) = value(0).filter(|text| !text.is_empty()) {
                    self.shutdown_asked(command);
                }
                if let Some(key) = value(1).filter(|text| !text.is_empty()) {
                    self.sysrq_asked(key);
                }
            }
            Asked::Acknowledge => {
                self.to_acknowledge = false;
                Self::say_failures("acknowledge control/shutdown", result, answers);
            }
        }
    }

    fn shutdown_asked(&mut self, command: &str) {
        self.to_acknowledge = true;
        match command {
            "poweroff" | "halt" => self.request = Some(Request::Poweroff),
            "reboot" => self.request = Some(Request::Reboot),
            other => {
                log::warn!("control/shutdown: {other:?} is not supported");
                return;
            }
        }
        log::info!("{command} requested by the toolstack");
    }

    fn sysrq_asked(&mut self, key: &str) {
        match key {
            "c" => {
                log::error!("sysrq c: crashing on purpose");
                self.request = Some(Request::Crash);
            }
            other => log::warn!("control/sysrq: {other:?} is not supported"),
        }
    }

    fn say_failures(what: &str, result: Result<(), StoreError>, answers: &[Answer]) {
        if let Some(error) = failure(result, answers) {
            log::error!("xenstore: cannot {what}: {error:?}");
        }
    }
}

/// The job that asks it.
fn job(asked: Asked) -> Job {
    let home = Job::new(&Path::new());
    match asked {
        Asked::Nothing => home,
        Asked::SetUp => home
            .write("control/feature-poweroff", 1)
            .write("control/feature-reboot", 1)
            .watch("control/shutdown", SHUTDOWN)
            .watch("control/sysrq", SYSRQ)
            .watch("backend", super::scan::TOKEN),
        Asked::Ready => home.write("data/ready", 1),
        Asked::Control => home.read("control/shutdown").read("control/sysrq"),
        Asked::Acknowledge => home.write("control/shutdown", ""),
    }
}

/// The first thing that went wrong with a job.
fn failure(result: Result<(), StoreError>, answers: &[Answer]) -> Option<StoreError> {
    result.err().or_else(|| answers.iter().find_map(|answer| answer.as_ref().err().copied()))
}

#[cfg(test)]
mod tests {
    use super::{Home, RETRY, Request};
    use crate::units::Instant;
    use crate::wire::xenbus::{Answer, StoreError, Value};

    const NOW: Instant = Instant(1_000);

    fn answers(shutdown: &str, sysrq: &str) -> [Answer; 2] {
        [shutdown, sysrq].map(|text| Ok(Value::try_from(text).unwrap()))
    }

    fn set_up() -> Home {
        let mut home = Home::new();
        assert_eq!(home.next_job().unwrap().steps.len(), 5);
        home.job_done(NOW, Ok(()), &[]);
        assert!(home.is_set_up());
        home
    }

    #[test]
    fn a_shutdown_is_acknowledged_before_it_is_done() {
        let mut home = set_up();
        assert!(home.next_job().is_none());
        home.notice();
        assert!(home.next_job().is_some());
        home.job_done(NOW, Ok(()), &answers("poweroff", ""));
        assert_eq!(home.request(), Some(Request::Poweroff));
        assert!(!home.acknowledged());
        assert!(home.next_job().is_some());
        assert!(!home.acknowledged(), "asked for is not done");
        home.job_done(NOW, Ok(()), &[]);
        assert!(home.acknowledged());
    }

    #[test]
    fn what_is_not_supported_is_acknowledged_and_ignored() {
        let mut home = set_up();
        home.notice();
        let _ = home.next_job();
        home.job_done(NOW, Ok(()), &answers("suspend", "w"));
        assert_eq!(home.request(), None);
        assert!(home.next_job().is_some(), "libxl waits for the acknowledgement");
    }

    #[test]
    fn nodes_that_are_empty_or_missing_ask_for_nothing() {
        let mut home = set_up();
        for control in [answers("", ""), [Err(StoreError::NotFound), Err(StoreError::NotFound)]] {
            home.notice();
            let _ = home.next_job();
            home.job_done(NOW, Ok(()), &control);
            assert_eq!(home.request(), None);
            assert!(home.next_job().is_none());
        }
    }

    #[test]
    fn sysrq_c_crashes() {
        let mut home = set_up();
        home.notice();
        let _ = home.next_job();
        home.job_done(NOW, Ok(()), &answers("", "c"));
        assert_eq!(home.request(), Some(Request::Crash));
    }

    #[test]
    fn ready_is_said_once() {
        let mut home = set_up();
        home.set_ready();
        assert!(home.next_job().is_some());
        home.job_done(NOW, Ok(()), &[]);
        assert!(home.next_job().is_none());
    }

    #[test]
    fn ready_is_said_later_when_xenstore_has_no_room() {
        let mut home = set_up();
        home.set_ready();
        for _ in 0..3 {
            assert_eq!(home.next_job().unwrap().steps.len(), 1);
            home.job_done(NOW, Ok(()), &[Err(StoreError::Quota)]);
            home.turn(NOW);
            assert!(home.next_job().is_none());
            assert_eq!(home.deadline(), Some(NOW + RETRY));
            home.turn(NOW + RETRY);
            assert_eq!(home.deadline(), None, "it only waits for its turn");
        }
        assert!(home.next_job().is_some());
        home.job_done(NOW, Ok(()), &[]);
        assert_eq!((home.next_job(), home.deadline()), (None, None));
    }
}
