//! The client against a daemon on the same page: what jobs mean here, what the wire and a hostile
//! daemon can do in the two modules below.

mod daemon;
mod hostile;
mod stream;

use std::vec::Vec;

use self::daemon::{
    DIRECTORY, Daemon, READ, RM, TRANSACTION_END, TRANSACTION_START, UNWATCH, WATCH, WRITE, message,
};
use super::{Store, StoreEvent};
use crate::hal::{Events, HypervisorError};
use crate::limits;
use crate::units::{DomId, Instant, Pirq, Port};
use crate::wire::xenbus::{Job, Node, Path, StoreError, XenbusState};

const PORT: Port = Port(3);
const BASE: &str = "backend/vbd/5/51728";

/// Counts notifications; a store does nothing else with event channels.
#[derive(Default)]
struct Notified(usize);

impl Events for Notified {
    fn bind_interdomain(&mut self, _: DomId, _: Port) -> Result<Port, HypervisorError> {
        unreachable!()
    }
    fn alloc_unbound(&mut self, _: DomId) -> Result<Port, HypervisorError> {
        unreachable!()
    }
    fn bind_pirq(&mut self, _: Pirq) -> Result<Port, HypervisorError> {
        unreachable!()
    }
    fn close(&mut self, _: Port) {
        unreachable!()
    }
    fn notify(&mut self, port: Port) {
        assert_eq!(port, PORT);
        self.0 += 1;
    }
    fn next_pending(&mut self) -> Option<Port> {
        unreachable!()
    }
    fn wait(&mut self, _: Option<Instant>) {
        unreachable!()
    }
}

fn client(daemon: &Daemon) -> Store {
    Store::new(daemon.frame.shared(), PORT)
}

/// Lets both ends run, each only when the other has notified it, until neither does.
fn run(store: &mut Store, daemon: &mut Daemon) -> Vec<StoreEvent> {
    let mut hal = Notified::default();
    let mut events = Vec::new();
    for _ in 0..100_000 {
        while let Some(event) = store.turn(&mut hal) {
            events.push(event);
        }
        let called = core::mem::take(&mut hal.0) > 0;
        let moved = daemon.step();
        if !called && !moved {
            return events;
        }
    }
    panic!("store and daemon never come to rest");
}

/// The result of a job that brings no watch events.
fn result(store: &mut Store, daemon: &mut Daemon, job: Job) -> Result<(), StoreError> {
    store.start(job);
    match run(store, daemon).as_slice() {
        [StoreEvent::Done(result)] => *result,
        other => panic!("not one result: {other:?}"),
    }
}

fn job() -> Job {
    Job::new(&Path::try_from(BASE).unwrap())
}

fn guarded() -> Job {
    job().while_state(&[XenbusState::Initialising, XenbusState::InitWait])
}

fn at(node: &str) -> std::string::String {
    std::format!("{BASE}/{node}")
}

fn watch_event(path: &str, token: &str) -> StoreEvent {
    StoreEvent::Watch { path: Path::try_from(path).unwrap(), token: Node::try_from(token).unwrap() }
}

/// A daemon that holds our backend directory in state 1.
fn daemon() -> Daemon {
    let mut daemon = Daemon::new(64, 0, 0);
    daemon.put(&at("state"), "1");
    daemon.put(&at("params"), "/dev/nvme0n1");
    daemon
}

#[test]
fn steps_are_done_in_order_and_answered() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    let job = job().read("params").write("sectors", 2048).read("sectors").remove("params").list("");
    assert_eq!(result(&mut store, &mut daemon, job), Ok(()));
    let values: Vec<&str> = store.answers().iter().map(|answer| answer.as_deref().unwrap()).collect();
    assert_eq!(values, ["/dev/nvme0n1", "", "2048", "", ""]);
    assert_eq!(store.listing().collect::<Vec<_>>(), ["sectors", "state"]);
    assert_eq!((daemon.get(&at("sectors")), daemon.get(&at("params"))), (Some("2048"), None));
    let kinds: Vec<u32> = daemon.seen.iter().map(|seen| seen.0).collect();
    assert_eq!(kinds, [READ, WRITE, READ, RM, DIRECTORY]);
}

#[test]
fn an_empty_job_is_done_at_once() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    assert_eq!(result(&mut store, &mut daemon, job()), Ok(()));
    assert!(store.idle() && daemon.seen.is_empty());
}

#[test]
fn without_a_guard_each_step_stands_alone() {
    let mut daemon = daemon();
    daemon.refusals.extend([(WRITE, "EACCES"), (WRITE, "EQUOTA"), (WRITE, "ENOSPC"), (WRITE, "EAGAIN")]);
    daemon.refusals.extend([(WRITE, "EWHATEVER"), (DIRECTORY, "E2BIG"), (RM, "ENOENT")]);
    let mut store = client(&daemon);
    let mut job = job().read("missing");
    for node in ["a", "b", "c", "d", "e"] {
        job = job.write(node, 1);
    }
    let job = job.list("").remove("gone").write("last", 1);
    assert_eq!(result(&mut store, &mut daemon, job), Ok(()));
    let errors: Vec<Option<StoreError>> =
        store.answers().iter().map(|answer| answer.as_ref().err().copied()).collect();
    let [missing, denied, quota] = [StoreError::NotFound, StoreError::Denied, StoreError::Quota].map(Some);
    let [again, other] = [StoreError::Again, StoreError::Other].map(Some);
    // Removing what is not there is done.
    assert_eq!(errors, [missing, denied, quota, quota, again, other, quota, None, None]);
    assert_eq!(store.listing().count(), 0);
    assert_eq!(daemon.get(&at("last")), Some("1"));
}

#[test]
fn odd_values_spoil_only_their_step() {
    let mut daemon = daemon();
    daemon.tree.insert(at("binary"), std::vec![0xff]);
    daemon.put(&at("long"), &"x".repeat(limits::VALUE + 1));
    daemon.put(&at("huge"), &"x".repeat(limits::STORE_PAYLOAD));
    let mut store = client(&daemon);
    let job = job().read("binary").read("long").read("huge").read("params");
    assert_eq!(result(&mut store, &mut daemon, job), Ok(()));
    let answers: Vec<_> = store.answers().iter().map(|answer| answer.as_deref().map_err(|e| *e)).collect();
    let [malformed, long] = [StoreError::Malformed, StoreError::TooLong].map(Err);
    assert_eq!(answers, [malformed, long, long, Ok("/dev/nvme0n1")]);
}

#[test]
fn a_guarded_job_is_one_transaction() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    let job = guarded().read("params").write("sectors", 8).write_state(XenbusState::InitWait);
    assert_eq!(result(&mut store, &mut daemon, job), Ok(()));
    assert_eq!(store.answers()[0].as_deref(), Ok("/dev/nvme0n1"));
    assert_eq!(store.answers().len(), 3);
    assert_eq!((daemon.get(&at("sectors")), daemon.get(&at("state"))), (Some("8"), Some("2")));
    let kinds: Vec<u32> = daemon.seen.iter().map(|seen| seen.0).collect();
    assert_eq!(kinds, [TRANSACTION_START, READ, READ, WRITE, WRITE, TRANSACTION_END]);
    assert_eq!(daemon.seen[1].2, std::format!("{BASE}/state\0").as_bytes());
    assert_eq!(daemon.seen[5].2, b"T\0");
    let transactions: Vec<u32> = daemon.seen.iter().map(|seen| seen.1).collect();
    assert_eq!(transactions, [0, 41, 41, 41, 41, 41]);
}

#[test]
fn a_guard_that_does_not_hold_leaves_everything_alone() {
    let long = [b'1'; 300];
    for state in [None, Some(&b"5"[..]), Some(b""), Some(b"1 "), Some(b"\xff"), Some(&long)] {
        let mut daemon = daemon();
        daemon.tree.remove(&at("state"));
        if let Some(state) = state {
            daemon.tree.insert(at("state"), state.to_vec());
        }
        let before = daemon.tree.clone();
        let mut store = client(&daemon);
        let job = guarded().write_state(XenbusState::InitWait);
        assert_eq!(result(&mut store, &mut daemon, job), Err(StoreError::Gone), "{state:?}");
        assert!(store.answers().is_empty());
        assert_eq!(daemon.tree, before);
        assert_eq!(daemon.seen.last().unwrap().2, b"F\0");
        assert_eq!(daemon.open_transactions(), 0);
    }
}

#[test]
fn a_failed_step_undoes_a_guarded_job() {
    for (kind, error, expected) in [
        (WRITE, "EQUOTA", StoreError::Quota),
        (WRITE, "ENOSPC", StoreError::Quota),
        (WRITE, "EACCES", StoreError::Denied),
        (RM, "EPERM", StoreError::Denied),
        (DIRECTORY, "E2BIG", StoreError::Quota),
        (READ, "EIO", StoreError::Other),
    ] {
        let mut daemon = daemon();
        daemon.refusals.push_back((kind, error));
        let before = daemon.tree.clone();
        let mut store = client(&daemon);
        let job = guarded().list("").write("a", 1).read("params").remove("params").write("b", 2);
        assert_eq!(result(&mut store, &mut daemon, job), Err(expected), "{error}");
        assert!(store.answers().is_empty() && store.listing().next().is_none());
        assert_eq!(daemon.tree, before);
        assert_eq!(daemon.seen.last().unwrap().2, b"F\0");
        assert_eq!(daemon.open_transactions(), 0);
    }
}

#[test]
fn a_missing_node_fails_a_guarded_job() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    assert_eq!(result(&mut store, &mut daemon, guarded().read("missing")), Err(StoreError::NotFound));
    assert_eq!(result(&mut store, &mut daemon, guarded().remove("missing")), Ok(()));
}

#[test]
fn conflicts_are_tried_again_from_the_start() {
    let mut daemon = daemon();
    daemon.conflicts = limits::TRANSACTION_TRIES - 1;
    let mut store = client(&daemon);
    let job = guarded().list("").read("params").write("sectors", 8);
    assert_eq!(result(&mut store, &mut daemon, job), Ok(()));
    for kind in [TRANSACTION_START, DIRECTORY, WRITE, TRANSACTION_END] {
        assert_eq!(daemon.count(kind), limits::TRANSACTION_TRIES);
    }
    assert_eq!(daemon.count(READ), 2 * limits::TRANSACTION_TRIES);
    assert_eq!(store.answers().len(), 3);
    assert_eq!(store.listing().collect::<Vec<_>>(), ["params", "state"]);
    assert_eq!((daemon.get(&at("sectors")), daemon.open_transactions()), (Some("8"), 0));
}

#[test]
fn conflicts_without_end_are_given_up() {
    let mut daemon = daemon();
    daemon.conflicts = usize::MAX;
    let mut store = client(&daemon);
    let job = || guarded().write("sectors", 8);
    for round in 1..=2 {
        assert_eq!(result(&mut store, &mut daemon, job()), Err(StoreError::Again));
        assert_eq!(daemon.count(TRANSACTION_START), round * limits::TRANSACTION_TRIES);
    }
    assert_eq!((daemon.get(&at("sectors")), daemon.open_transactions()), (None, 0));
    daemon.conflicts = 0;
    assert_eq!(result(&mut store, &mut daemon, job()), Ok(()));
}

#[test]
fn a_guard_is_read_anew_after_a_conflict() {
    let mut daemon = daemon();
    daemon.conflicts = 1;
    let mut store = client(&daemon);
    let mut hal = Notified::default();
    store.start(guarded().write_state(XenbusState::InitWait));
    while daemon.count(TRANSACTION_END) == 0 {
        assert_eq!(store.turn(&mut hal), None);
        daemon.step();
    }
    daemon.put(&at("state"), "5");
    assert_eq!(run(&mut store, &mut daemon), [StoreEvent::Done(Err(StoreError::Gone))]);
    assert_eq!(daemon.get(&at("state")), Some("5"));
}

#[test]
fn errors_at_either_end_of_a_transaction_fail_the_job() {
    for (kind, error, expected) in [
        (TRANSACTION_START, "EQUOTA", StoreError::Quota),
        (TRANSACTION_START, "ENOSPC", StoreError::Quota),
        (TRANSACTION_END, "ENOSPC", StoreError::Quota),
        (TRANSACTION_END, "ENOMEM", StoreError::Other),
    ] {
        let mut daemon = daemon();
        daemon.refusals.push_back((kind, error));
        let mut store = client(&daemon);
        let job = guarded().write("sectors", 8);
        assert_eq!(result(&mut store, &mut daemon, job), Err(expected), "{error}");
        assert!(store.answers().is_empty() && store.idle());
        // The daemon has ended the transaction by itself: no second end.
        assert!(daemon.count(TRANSACTION_END) <= 1);
        assert_eq!((daemon.get(&at("sectors")), daemon.open_transactions()), (None, 0));
    }
}

#[test]
fn a_conflict_inside_a_transaction_drops_it_and_tries_again() {
    let mut daemon = daemon();
    daemon.refusals.extend([(TRANSACTION_START, "EAGAIN"), (READ, "EAGAIN"), (WRITE, "EAGAIN")]);
    let mut store = client(&daemon);
    assert_eq!(result(&mut store, &mut daemon, guarded().write("sectors", 8)), Ok(()));
    let ends: Vec<&[u8]> =
        daemon.seen.iter().filter(|seen| seen.0 == TRANSACTION_END).map(|seen| seen.2.as_slice()).collect();
    assert_eq!(ends, [b"F\0", b"F\0", b"T\0"]);
    assert_eq!(daemon.get(&at("sectors")), Some("8"));
}

#[test]
fn watches_fire_with_their_path_and_token() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    store.start(Job::new(&Path::new()).watch("backend", "be"));
    assert_eq!(run(&mut store, &mut daemon), [StoreEvent::Done(Ok(())), watch_event("backend", "be")]);
    daemon.send(&message(daemon::WATCH_EVENT, 0, 0, b"backend/vbd/5/51728/state\0be\0"));
    assert_eq!(run(&mut store, &mut daemon), [watch_event("backend/vbd/5/51728/state", "be")]);
    assert_eq!(result(&mut store, &mut daemon, Job::new(&Path::new()).unwatch("backend", "be")), Ok(()));
    assert_eq!(daemon.seen, [(WATCH, 0, b"backend\0be\0".to_vec()), (UNWATCH, 0, b"backend\0be\0".to_vec())]);
}

#[test]
fn a_new_job_forgets_what_the_last_one_brought() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    assert_eq!(result(&mut store, &mut daemon, job().list("")), Ok(()));
    assert_eq!(result(&mut store, &mut daemon, job().read("state")), Ok(()));
    assert_eq!((store.answers().len(), store.listing().count()), (1, 0));
}

#[test]
#[should_panic(expected = "has a job already")]
fn one_job_at_a_time() {
    let daemon = daemon();
    let mut store = client(&daemon);
    store.start(job().read("state"));
    store.start(job().read("state"));
}

#[test]
#[should_panic(expected = "watches are no part of transactions")]
fn watches_cannot_be_guarded() {
    client(&daemon()).start(guarded().watch("state", "be"));
}
