//! Messages cut anywhere, rings that are full or come round, watch events in between.

use std::vec::Vec;

use super::daemon::{Daemon, WATCH_EVENT, message};
use super::{Notified, at, client, daemon, guarded, job, result, run, watch_event};
use crate::limits;
use crate::wire::xenbus::{Job, Path, XenbusState};
use crate::wire::xs::{HEADER, REQ_CONS, REQ_PROD, RING_SIZE, RSP_CONS};
use crate::xenstore::StoreEvent;

/// A job with every kind of message in it, and a reply longer than the ring.
fn long_conversation(daemon: &mut Daemon) {
    for i in 0..190 {
        daemon.put(&std::format!("many/{i:020}"), "");
    }
    daemon.put(&at("state"), "1");
    daemon.conflicts = 1;
    daemon.before_reply = message(WATCH_EVENT, 0, 0, b"backend/vbd\0be\0");
    let mut store = client(daemon);
    store.start(guarded().write("error", "x".repeat(256)).read("error").write_state(XenbusState::InitWait));
    let events = run(&mut store, daemon);
    let (done, watches): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| matches!(event, StoreEvent::Done(_)));
    assert_eq!(done, [StoreEvent::Done(Ok(()))]);
    assert_eq!(watches, std::vec![watch_event("backend/vbd", "be"); daemon.seen.len()]);
    assert_eq!(store.answers()[1].as_ref().unwrap().len(), 256);

    daemon.before_reply.clear();
    assert_eq!(result(&mut store, daemon, Job::new(&Path::new()).list("many")), Ok(()));
    let names: Vec<&str> = store.listing().collect();
    assert_eq!((names.len(), names[189]), (190, "00000000000000000189"));
}

#[test]
fn messages_may_be_cut_anywhere() {
    for chunk in (1..40).chain([100, 512, 1023, 1024, 5000]) {
        long_conversation(&mut Daemon::new(chunk, 0, 0));
    }
}

#[test]
fn rings_come_round_at_every_place() {
    for start in (0..RING_SIZE as u32).step_by(7) {
        long_conversation(&mut Daemon::new(333, start, start.wrapping_mul(3)));
    }
}

#[test]
fn indexes_run_over_their_end() {
    for back in [1, 15, 16, 17, 500, 1024] {
        long_conversation(&mut Daemon::new(50, 0_u32.wrapping_sub(back), u32::MAX - back));
    }
}

#[test]
fn a_request_waits_for_room_and_goes_out_in_pieces() {
    let mut daemon = daemon();
    // All but 20 bytes of the ring are still to be read by the daemon.
    daemon.frame.write_u32(REQ_PROD, 1004);
    let mut store = client(&daemon);
    let mut hal = Notified::default();
    store.start(job().write("error", "x".repeat(200)));
    let sent = |daemon: &Daemon| daemon.frame.read_u32(REQ_PROD) - 1004;
    for (read, published) in [(0, 20), (0, 20), (5, 25), (5, 25), (100, 120)] {
        daemon.frame.write_u32(REQ_CONS, read);
        assert_eq!(store.turn(&mut hal), None);
        assert_eq!(sent(&daemon), published);
    }
    assert_eq!(hal.0, 3, "told only when bytes were sent");
    daemon.frame.write_u32(REQ_CONS, 1004);
    daemon.req_cons = 1004;
    assert_eq!(run(&mut store, &mut daemon), [StoreEvent::Done(Ok(()))]);
    assert_eq!(daemon.get(&at("error")).map(str::len), Some(200));
}

#[test]
fn steps_that_stand_alone_are_asked_together_and_a_transaction_step_by_step() {
    let asked = |job: Job| {
        let mut daemon = daemon();
        daemon.chunk = RING_SIZE;
        let mut store = client(&daemon);
        store.start(job);
        let mut hal = Notified::default();
        let mut asked = Vec::new();
        while store.turn(&mut hal).is_none() {
            let before = daemon.seen.len();
            // All that was asked in this turn is answered before the next.
            while daemon.step() {}
            asked.push(daemon.seen.len() - before);
        }
        asked
    };
    let reads = |job, count| (0..count).fold(job, |job: Job, _| job.read("params"));
    assert_eq!(asked(reads(job(), limits::JOB_STEPS)), [8, 8, 2]);
    assert_eq!(asked(reads(guarded(), 2)), [1; 5]);
}

#[test]
fn a_turn_tells_the_daemon_once() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    let mut hal = Notified::default();
    assert_eq!((store.turn(&mut hal), hal.0), (None, 0));
    store.start(job().read("state"));
    assert_eq!((store.turn(&mut hal), hal.0), (None, 1));
    assert_eq!((store.turn(&mut hal), hal.0), (None, 1));
    daemon.send(&message(WATCH_EVENT, 0, 0, b"a\0b\0"));
    daemon.chunk = 5;
    daemon.step();
    assert_eq!((store.turn(&mut hal), hal.0), (None, 2), "part of a message was taken");
    daemon.chunk = 1000;
    daemon.step();
    assert_eq!((store.turn(&mut hal), hal.0), (Some(watch_event("a", "b")), 3));
}

#[test]
fn a_storm_of_watches_is_handed_out_one_by_one() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    for i in 0..5000 {
        daemon.send(&message(WATCH_EVENT, 0, 0, std::format!("backend/{i}\0be\0").as_bytes()));
    }
    store.start(job().read("params"));
    let events = run(&mut store, &mut daemon);
    assert_eq!(events.len(), 5001);
    for (i, event) in events[..5000].iter().enumerate() {
        assert_eq!(*event, watch_event(&std::format!("backend/{i}"), "be"));
    }
    assert_eq!(events[5000], StoreEvent::Done(Ok(())));
}

#[test]
fn a_turn_ends_at_the_first_event() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    let event = message(WATCH_EVENT, 0, 0, b"a\0b\0");
    daemon.chunk = RING_SIZE;
    for _ in 0..10 {
        daemon.send(&event);
    }
    daemon.step();
    assert!(store.turn(&mut Notified::default()).is_some());
    assert_eq!(daemon.frame.read_u32(RSP_CONS) as usize, event.len());
}

#[test]
fn our_indexes_in_the_page_are_ours_alone() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    let mut hal = Notified::default();
    daemon.frame.write_u32(REQ_PROD, 77);
    store.start(job().read("params"));
    assert_eq!(store.turn(&mut hal), None);
    assert_eq!(daemon.frame.read_u32(REQ_PROD) as usize, HEADER + at("params").len() + 1);
    daemon.chunk = RING_SIZE;
    daemon.step();
    daemon.frame.write_u32(RSP_CONS, 99);
    assert_eq!(store.turn(&mut hal), Some(StoreEvent::Done(Ok(()))));
    assert_eq!(daemon.frame.read_u32(RSP_CONS), daemon.rsp_prod);
}

/// However fast the daemon is, one turn does no more than one job.
#[cfg(feature = "sim")]
#[test]
fn a_daemon_that_answers_at_once_cannot_stall_a_job() {
    use crate::limits::TRANSACTION_TRIES;
    use crate::mem::hook;
    use std::boxed::Box;

    let mut daemon = daemon();
    daemon.chunk = RING_SIZE;
    daemon.conflicts = TRANSACTION_TRIES - 1;
    let mut store = client(&daemon);
    let mut job = guarded();
    for _ in 0..crate::limits::JOB_STEPS {
        job = job.read("params");
    }
    store.start(job);
    hook::set(Some(Box::new(move |_, _| {
        daemon.step();
    })));
    let event = store.turn(&mut Notified::default());
    hook::set(None);
    assert_eq!(event, Some(StoreEvent::Done(Ok(()))));
}
