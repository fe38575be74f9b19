//! The handshake as event tables: a toolstack, a frontend, and a xenstore that does every job at
//! once unless a test wants otherwise.

mod attach;
mod detach;
mod queues;
mod sharing;

use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use super::*;
use crate::blkback::Batch;
use crate::blkback::means::PLAIN;
use crate::blkback::testing::Machine;
use crate::mem::frame::Frame;
use crate::volume::tests::{disk, volume};
use crate::wire::blkif::Protocol;
use crate::wire::blkif::tests::entry;
use crate::wire::ring::tests::Front;
use crate::wire::xenbus::{Answers, Step};

const HOME: &str = "backend/vbd/5/51728";
const FRONT: &str = "/local/domain/5/device/vbd/51728";
const ERRORS: &str = "error/backend/vbd/5/51728/error";

struct World {
    nodes: BTreeMap<String, String>,
    watches: Vec<String>,
    machine: Machine,
    volumes: Volumes,
    vbd: Vbd,
    now: Instant,
    /// Jobs done so far.
    jobs: usize,
    /// What became of our directory: the states written, `error`, `removed`; with the time in ms.
    trace: Vec<(u64, String)>,
    /// Errors that the next jobs end with instead of being done.
    errors: Vec<StoreError>,
    watch_error: Option<StoreError>,
    /// Nodes that there may be.
    most_nodes: usize,
    /// Whether events tell the device of its own writes, as a rule they do.
    echo: bool,
    /// What other devices have.
    others: Vec<Neighbour>,
}

impl World {
    fn new() -> Self {
        let mut volumes = Volumes::new();
        volumes.add_disk(disk(0, volume(512, 1000)));
        volumes.add_disk(disk(1, volume(4096, 1000)));
        let mut machine = Machine::with(1, PLAIN);
        machine.granted = [((5, 8), Frame::new()), ((5, 9), Frame::new())].into();
        machine.open = vec![(5, 15), (5, 16)];
        Self {
            nodes: BTreeMap::new(),
            watches: Vec::new(),
            machine,
            volumes,
            vbd: Vbd::new(DeviceId { guest: crate::units::DomId(5), device: 51728 }),
            now: Instant(1_000_000_000),
            jobs: 0,
            trace: Vec::new(),
            errors: Vec::new(),
            watch_error: None,
            most_nodes: usize::MAX,
            echo: true,
            others: Vec::new(),
        }
    }

    /// `xl block-attach`: both directories anew, in one transaction.
    fn attach(&mut self, target: &str, mode: &str) {
        self.remove(HOME);
        self.remove(FRONT);
        for (node, value) in [
            ("frontend", FRONT),
            ("params", target),
            ("frontend-id", "5"),
            ("online", "1"),
            ("removable", "0"),
            ("bootable", "1"),
            ("state", "1"),
            ("dev", "xvdb"),
            ("type", "phy"),
            ("mode", mode),
            ("device-type", "disk"),
        ] {
            self.nodes.insert(format!("{HOME}/{node}"), value.to_string());
        }
        self.nodes.insert(format!("{FRONT}/state"), "1".to_string());
        self.vbd.notice();
    }

    /// The frontend as blkfront does it.
    fn frontend_ready(&mut self, ring: &str, port: &str) {
        for (node, value) in
            [("ring-ref", ring), ("event-channel", port), ("protocol", "x86_64-abi"), ("state", "3")]
        {
            self.nodes.insert(format!("{FRONT}/{node}"), value.to_string());
        }
        self.vbd.notice_frontend();
    }

    fn set(&mut self, base: &str, node: &str, value: &str) {
        self.nodes.insert(format!("{base}/{node}"), value.to_string());
        self.vbd.notice();
    }

    /// `xl block-detach`, its first transaction.
    fn detach(&mut self) {
        self.set(HOME, "online", "0");
        if self.ours("state") != "6" {
            self.set(HOME, "state", "5");
        }
    }

    fn remove(&mut self, base: &str) {
        self.nodes.retain(|path, _| !path.starts_with(base));
        self.vbd.notice();
    }

    fn ours(&self, node: &str) -> &str {
        self.nodes.get(&format!("{HOME}/{node}")).map_or("-", String::as_str)
    }

    fn millis(&self) -> u64 {
        (self.now.0 - 1_000_000_000) / 1_000_000
    }

    fn exists(&self) -> bool {
        self.nodes.keys().any(|path| path.starts_with(HOME))
    }

    /// Does everything that is due, without time passing.
    fn run(&mut self) {
        for _ in 0..100 {
            self.vbd.turn(self.now, &mut self.machine);
            if !self.step() {
                return;
            }
        }
        panic!("no end of it: {:?}", self.vbd.state);
    }

    /// Lets time pass, up to so many milliseconds from the start.
    fn run_until(&mut self, millis: u64) {
        let end = Instant(1_000_000_000 + millis * 1_000_000);
        self.run();
        for _ in 0..1000 {
            let Some(at) = self.vbd.deadline().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            assert!(at > self.now, "a deadline that has passed is none");
            self.now = at;
            self.run();
        }
        panic!("deadlines without end");
    }

    /// Does one job, if one is due.
    fn step(&mut self) -> bool {
        let Some(job) = self.vbd.next_job(self.now) else { return false };
        assert!(self.vbd.next_job(self.now).is_none(), "one job at a time");
        assert_eq!(self.vbd.is_complaining(), job.base.starts_with("error/"));
        let (result, answers) = self.apply(&job);
        self.done(result, &answers);
        true
    }

    fn done(&mut self, result: Result<(), StoreError>, answers: &[Answer]) {
        self.jobs += 1;
        let others = self.others.iter().copied();
        self.vbd.job_done(self.now, &mut self.machine, &self.volumes, others, result, answers);
    }

    fn apply(&mut self, job: &Job) -> (Result<(), StoreError>, Answers) {
        if !self.errors.is_empty() {
            return (Err(self.errors.remove(0)), Answers::new());
        }
        let path = |node: &str| format!("{}/{node}", job.base);
        if let Some(guard) = &job.guard {
            let held = self.nodes.get(&path(&guard.node)).map(|state| XenbusState::parse(state));
            if !held.is_some_and(|state| guard.states.contains(&state)) {
                return (Err(StoreError::Gone), Answers::new());
            }
        }
        let before = self.nodes.clone();
        let mut answers = Answers::new();
        for step in &job.steps {
            let answer = self.apply_step(&job.base, step);
            if let (Err(error), Some(_)) = (&answer, &job.guard) {
                self.nodes = before;
                return (Err(*error), Answers::new());
            }
            answers.push(answer).unwrap();
        }
        if job.base == HOME && self.echo && job.steps.iter().any(|step| matches!(step, Step::Write(..))) {
            self.vbd.notice();
        }
        (Ok(()), answers)
    }

    fn apply_step(&mut self, base: &str, step: &Step) -> Answer {
        let empty = Ok(Value::new());
        match step {
            Step::Read(node) => {
                let value = self.nodes.get(&format!("{base}/{node}")).ok_or(StoreError::NotFound)?;
                Value::try_from(value.as_str()).map_err(|_| StoreError::TooLong)
            }
            Step::Write(node, value) => {
                let is_new = !self.nodes.contains_key(&format!("{base}/{node}"));
                if is_new && self.nodes.len() >= self.most_nodes {
                    return Err(StoreError::Quota);
                }
                self.nodes.insert(format!("{base}/{node}"), value.to_string());
                if node == "state" || node == "error" {
                    let what = if node == "state" { value.to_string() } else { node.to_string() };
                    self.trace.push((self.millis(), what));
                }
                empty
            }
            Step::Remove(node) => {
                assert_eq!((base, node.as_str()), (HOME, ""), "only our own directory is ours to remove");
                self.trace.push((self.millis(), "removed".to_string()));
                self.remove(HOME);
                empty
            }
            Step::Watch(node, token) => {
                assert_eq!((base, node.as_str(), token.as_str()), (FRONT, "state", "fe/5/51728"));
                if let Some(error) = self.watch_error {
                    return Err(error);
                }
                assert!(self.watches.is_empty(), "watched once");
                self.watches.push(token.to_string());
                self.vbd.notice();
                empty
            }
            Step::Unwatch(_, token) => {
                let at = self.watches.iter().position(|watch| watch == token.as_str());
                self.watches.remove(at.expect("only what is watched is unwatched"));
                empty
            }
            Step::List(_) => unreachable!("a device lists nothing"),
        }
    }

    /// Brings a device to where it serves: at 200 ms.
    fn connected() -> Self {
        Self::new().connect()
    }

    fn connect(self) -> Self {
        let mut world = self;
        world.attach("/dev/nvme0n1", "w");
        world.run();
        world.frontend_ready("8", "15");
        world.run_until(200);
        assert_eq!(world.ours("state"), "4");
        world.set(FRONT, "state", "4");
        world.run();
        world.trace.clear();
        world
    }

    fn trace(&self) -> Vec<(u64, &str)> {
        self.trace.iter().map(|(at, what)| (*at, what.as_str())).collect()
    }

    /// Nothing is left of the device.
    fn assert_over(&self) {
        assert!(self.vbd.is_finished() && !self.exists(), "{:?}", self.vbd.state);
        assert_eq!(self.vbd.shown(), XenbusState::Unknown);
        assert!(self.watches.is_empty() && self.vbd.deadline().is_none());
        self.assert_disconnected();
        assert!(self.machine.reserved.is_empty() && self.machine.taken_pages == 0);
    }

    fn assert_disconnected(&self) {
        assert!(self.machine.mapped.is_empty() && self.machine.bound.is_empty());
        assert!(self.vbd.ports().next().is_none());
    }
}

/// A batch with room.
fn started() -> Batch {
    let mut batch = Batch::new();
    batch.start(usize::MAX);
    batch
}

/// An attach and a detach, until so many jobs were done. False when it was over before.
fn live(world: &mut World, jobs: usize) -> bool {
    let mut asked = false;
    for _ in 0..200 {
        if world.jobs == jobs {
            return true;
        }
        world.vbd.turn(world.now, &mut world.machine);
        if world.step() {
            continue;
        }
        match world.ours("state") {
            "2" => world.frontend_ready("8", "15"),
            "4" if !asked => {
                asked = true;
                world.detach();
            }
            "5" => world.set(FRONT, "state", "6"),
            _ => {}
        }
        if world.vbd.is_finished() {
            return false;
        }
        world.now = world.vbd.deadline().unwrap_or(world.now);
    }
    panic!("a life comes to an end");
}
