//! The nodes of a virtual disk, the toolstack's and the frontend's, with any values: the backend's jobs
//! stay below paths that it works out, write nothing of the frontend's, say only states that a backend
//! has, and are never more than a device may hold. When both directories are gone, nothing is left.

use std::cell::RefCell;
use std::iter::empty;

use platter::blkback::{DeviceId, Vbd};
use platter::limits;
use platter::units::{Block, Discard, DomId, Instant};
use platter::volume::{Disk, DiskIndex, Volume, Volumes};
use platter::wire::nvme::identify::Identity;
use platter::wire::xenbus::{Answers, Job, Step, StoreError, Value};

use crate::host::Host;
use crate::input::{Input, store_error};
use crate::output;

const DEVICE: DeviceId = DeviceId { guest: DomId(5), device: 51728 };
const HOME: &str = "backend/vbd/5/51728";
const FRONT: &str = "/local/domain/5/device/vbd/51728";
const ERRORS: &str = "error/backend/vbd/5/51728";

/// Things done in one run, and after it until the device must be over.
const STEPS: usize = 300;
const LAST_STEPS: usize = 100;

thread_local! {
    /// One whole disk, which stays as it is.
    static VOLUMES: RefCell<Box<Volumes>> = RefCell::new(volumes());
}

fn volumes() -> Box<Volumes> {
    let index = DiskIndex { controller: 0, namespace: 0 };
    let discard = Some(Discard { granularity: 4096, alignment: 0 });
    let whole = Volume::whole(index, 512, Block(1 << 20), true);
    let volume = whole.map(|mut whole| {
        whole.discard = discard;
        whole
    });
    let mut volumes = Box::new(Volumes::new());
    volumes.add_disk(Disk { index, identity: Identity::NONE, nsid: 1, opaque: true, volume });
    volumes
}

/// What xenstore answers, and what happens between that.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    output::log(input.byte() & 1 != 0);
    VOLUMES.with_borrow(|volumes| {
        let mut bench = Bench { host: Host::new(()), vbd: Vbd::new(DEVICE), volumes, now: Instant(1) };
        bench.vbd.notice();
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            bench.step(&mut input);
        }
        bench.end();
    });
    output::take_log();
}

struct Bench<'a> {
    host: Host<()>,
    vbd: Vbd,
    volumes: &'a Volumes,
    now: Instant,
}

impl Bench<'_> {
    fn step(&mut self, input: &mut Input<'_>) {
        if let Some(job) = self.vbd.next_job(self.now) {
            self.check(&job);
            let (result, answers) = answer(&job, input);
            self.done(result, &answers);
        } else {
            match input.byte() % 8 {
                0..4 => self.vbd.notice(),
                4 => self.now.0 += u64::from(input.word()),
                5 => self.now = self.vbd.deadline().unwrap_or(self.now).max(self.now),
                6 => self.vbd.withdraw(0, "its controller was detached"),
                _ => self.vbd.withdraw(1, "its controller was detached"),
            }
            self.vbd.turn(self.now, &mut self.host);
        }
        let (mapped, ports) = self.host.held();
        assert!(mapped <= limits::QUEUES * limits::RING_PAGES && ports <= limits::QUEUES);
    }

    fn done(&mut self, result: Result<(), StoreError>, answers: &Answers) {
        self.vbd.job_done(self.now, &mut self.host, self.volumes, empty(), result, answers);
    }

    /// What a job may do, and where.
    fn check(&self, job: &Job) {
        let is_ours = job.base == HOME;
        assert!(is_ours || [FRONT, ERRORS].contains(&job.base.as_str()), "{}", job.base);
        for step in &job.steps {
            match step {
                Step::Write(node, value) if is_ours => {
                    output::assert_plain(value);
                    assert!(job.guard.is_some(), "{node} may be written where nothing is any more");
                    if node == "state" {
                        assert!(["2", "4", "5", "6"].contains(&value.as_str()));
                        let serves = self.vbd.ports().next().is_some();
                        assert!(value != "4" || serves, "connected to nothing");
                    }
                }
                Step::Write(node, value) => {
                    output::assert_plain(value);
                    assert!(job.base == ERRORS && node == "error", "{}/{node} is written", job.base);
                }
                Step::Remove(_) => assert!(is_ours && job.guard.is_some()),
                Step::Watch(..) | Step::Unwatch(..) => assert_eq!(job.base, FRONT),
                Step::Read(_) => assert_ne!(job.base, ERRORS),
                Step::List(_) => panic!("nothing is listed"),
            }
        }
    }

    /// Both directories are gone, and xenstore does what it is asked.
    fn end(mut self) {
        self.vbd.notice();
        for _ in 0..LAST_STEPS {
            if let Some(job) = self.vbd.next_job(self.now) {
                self.check(&job);
                let answers = job.steps.iter().map(|step| match step {
                    Step::Read(_) => Err(StoreError::NotFound),
                    _ => Ok(Value::new()),
                });
                let answers: Answers = answers.collect();
                let holds = if job.guard.is_some() { Err(StoreError::Gone) } else { Ok(()) };
                self.done(holds, &if holds.is_ok() { answers } else { Answers::new() });
                continue;
            }
            match self.vbd.deadline() {
                Some(deadline) => self.now = deadline.max(self.now),
                None if self.vbd.is_finished() => break,
                None => {}
            }
            self.vbd.turn(self.now, &mut self.host);
        }
        assert!(self.vbd.is_finished() && self.host.is_clear(), "{:?} is left", self.host.held());
    }
}

/// What xenstore answers: mostly what could be in such a node.
fn answer(job: &Job, input: &mut Input<'_>) -> (Result<(), StoreError>, Answers) {
    let control = input.byte();
    if control >= 0xf0 {
        return (Err(store_error(control)), Answers::new());
    }
    let answers = job.steps.iter().map(|step| {
        let Step::Read(node) = step else {
            return if control == 0 { Err(store_error(input.byte())) } else { Ok(Value::new()) };
        };
        match input.byte() {
            choice @ 0..0xc0 => Ok(value(node, choice)),
            0xc0..0xe0 => Err(StoreError::NotFound),
            choice @ 0xe0..0xf0 => Err(store_error(choice)),
            _ => Ok(Value::try_from(input.text()).unwrap_or_default()),
        }
    });
    (Ok(()), answers.collect())
}

/// A value as those who own a node write it.
fn value(node: &str, choice: u8) -> Value {
    let name = node.rsplit('/').next().unwrap_or(node);
    let text = match name {
        "params" => pick(&["nvme0n1", "/dev/nvme0n1", "nvme0n2", "PARTLABEL=x"], choice),
        "mode" => pick(&["w", "r", "w!"], choice),
        "protocol" => pick(&["x86_64-abi", "x86_32-abi", "arm-abi", ""], choice),
        "device-type" => pick(&["disk", "cdrom"], choice),
        "frontend-id" => "5",
        "online" | "removable" | "feature-persistent" | "discard-enable" => pick(&["1", "0"], choice),
        "state" => pick(&["3", "1", "4", "2", "5", "6", "7", "8", ""], choice),
        "ring-page-order" => pick(&["0", "1", "4", "", "5"], choice),
        "multi-queue-num-queues" => pick(&["1", "2", "16", "", "17", "0"], choice),
        "event-channel" => pick(&["8", "10", "7"], choice),
        _ => pick(&["8", "9", "10", "11", "4294967295", "4294967296"], choice),
    };
    Value::try_from(text).unwrap_or_default()
}

fn pick<'t>(from: &[&'t str], choice: u8) -> &'t str {
    from[usize::from(choice) % from.len()]
}
