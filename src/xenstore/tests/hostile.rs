//! A daemon that makes no sense ends the conversation: it is said once, then there is silence.

use std::collections::VecDeque;
use std::vec::Vec;

use super::daemon::{DIRECTORY, Daemon, ERROR, READ, TRANSACTION_START, WATCH_EVENT, WRITE, message};
use super::{Notified, client, daemon, guarded, job, run};
use crate::limits::STORE_PAYLOAD;
use crate::mem::frame::Frame;
use crate::wire::xenbus::StoreError;
use crate::wire::xs::{HEADER, REQ_CONS, REQ_PROD, RING_SIZE, RSP, RSP_PROD};
use crate::xenstore::{Broken, Store, StoreEvent};

/// Whatever is in the ring, a broken store says and does nothing more.
fn assert_silent(store: &mut Store, daemon: &mut Daemon) {
    let mut hal = Notified::default();
    daemon.send(&message(WATCH_EVENT, 0, 0, b"a\0b\0"));
    daemon.step();
    let before: Vec<u32> = (0..512).map(|word| daemon.frame.read_u32(word * 4)).collect();
    for _ in 0..3 {
        assert_eq!(store.turn(&mut hal), None);
    }
    assert!(!store.idle() && hal.0 == 0);
    assert!((0..512).all(|word| daemon.frame.read_u32(word * 4) == before[word]));
}

/// What the store says of `bytes` that come instead of the reply to its first read, whose id is 1.
fn said_of(bytes: &[u8]) -> Vec<StoreEvent> {
    let mut daemon = daemon();
    daemon.chunk = RING_SIZE;
    let mut store = client(&daemon);
    let mut hal = Notified::default();
    store.start(job().read("params"));
    assert_eq!(store.turn(&mut hal), None);
    daemon.send(bytes);
    let mut events = Vec::new();
    // The daemon must not answer by itself.
    daemon.req_cons = daemon.frame.read_u32(REQ_PROD);
    for _ in 0..10 {
        daemon.step();
        events.extend(store.turn(&mut hal));
    }
    if matches!(events.last(), Some(StoreEvent::Broken(_))) {
        assert_silent(&mut store, &mut daemon);
    }
    events
}

#[test]
fn only_the_reply_that_was_asked_for_is_taken() {
    assert_eq!(said_of(&message(READ, 1, 0, b"x")), [StoreEvent::Done(Ok(()))]);
    for (what, bytes) in [
        ("another request's", message(READ, 2, 0, b"x")),
        ("another transaction's", message(READ, 1, 7, b"x")),
        ("another kind's", message(WRITE, 1, 0, b"OK\0")),
        ("another request's error", message(ERROR, 0, 0, b"ENOENT\0")),
        ("another transaction's error", message(ERROR, 1, 7, b"ENOENT\0")),
    ] {
        assert_eq!(said_of(&bytes), [StoreEvent::Broken(Broken::UnexpectedReply)], "{what}");
    }
}

#[test]
fn a_second_reply_answers_nothing() {
    let twice = [message(READ, 1, 0, b"x"), message(READ, 1, 0, b"x")].concat();
    let broken = StoreEvent::Broken(Broken::UnexpectedReply);
    assert_eq!(said_of(&twice), [StoreEvent::Done(Ok(())), broken]);
}

#[test]
fn a_reply_to_half_a_request_answers_nothing() {
    let daemon = daemon();
    daemon.frame.write_u32(REQ_PROD, 1020);
    let mut store = client(&daemon);
    let mut hal = Notified::default();
    store.start(job().read("params"));
    assert_eq!(store.turn(&mut hal), None);
    let reply = message(READ, 1, 0, b"x");
    daemon.frame.write(RSP, &reply);
    daemon.frame.write_u32(RSP_PROD, reply.len() as u32);
    assert_eq!(store.turn(&mut hal), Some(StoreEvent::Broken(Broken::UnexpectedReply)));
}

#[test]
fn replies_come_in_the_order_of_what_was_asked_and_not_before_all_of_it_was_sent() {
    let [first, second] = [1, 2].map(|id| message(READ, id, 0, b"x"));
    for (sent, replies, expected) in [
        (1024, [&first, &second], StoreEvent::Done(Ok(()))),
        (1024, [&second, &first], StoreEvent::Broken(Broken::UnexpectedReply)),
        // There is room for the first request, and for half of the second.
        (80, [&first, &second], StoreEvent::Broken(Broken::UnexpectedReply)),
    ] {
        let daemon = daemon();
        daemon.frame.write_u32(REQ_PROD, 1024 - sent);
        let mut store = client(&daemon);
        let mut hal = Notified::default();
        store.start(job().read("params").read("params"));
        assert_eq!(store.turn(&mut hal), None);
        let replies = replies.map(Clone::clone).concat();
        daemon.frame.write(RSP, &replies);
        daemon.frame.write_u32(RSP_PROD, replies.len() as u32);
        assert_eq!(store.turn(&mut hal), Some(expected));
    }
}

#[test]
fn impossible_headers_are_refused() {
    let header = |kind: u32, len: u32| [kind, 1, 0, len].map(u32::to_le_bytes).concat();
    for bytes in [header(READ, STORE_PAYLOAD as u32 + 1), header(WATCH_EVENT, u32::MAX), header(99, 0)] {
        assert_eq!(said_of(&bytes), [StoreEvent::Broken(Broken::Header)]);
    }
    let longest = message(READ, 1, 0, &[b'x'; STORE_PAYLOAD]);
    assert_eq!(said_of(&longest), [StoreEvent::Done(Ok(()))]);
}

#[test]
fn payloads_without_what_they_must_hold_are_refused() {
    for payload in [&b""[..], b"path\0", b"path\0token"] {
        let events = said_of(&message(WATCH_EVENT, 0, 0, payload));
        assert_eq!(events, [StoreEvent::Broken(Broken::Payload)]);
    }
    for payload in [&b"0\0"[..], b"x\0", b"", b"4294967296\0"] {
        let mut daemon = daemon();
        let mut store = client(&daemon);
        let mut hal = Notified::default();
        store.start(guarded().read("params"));
        assert_eq!(store.turn(&mut hal), None);
        daemon.frame.write(RSP, &message(TRANSACTION_START, 1, 0, payload));
        daemon.frame.write_u32(RSP_PROD, 16 + payload.len() as u32);
        daemon.rsp_prod = 16 + payload.len() as u32;
        assert_eq!(store.turn(&mut hal), Some(StoreEvent::Broken(Broken::Payload)));
        assert_silent(&mut store, &mut daemon);
    }
}

#[test]
fn impossible_indexes_are_refused() {
    for (offset, index, broken) in [
        (RSP_PROD, 1025, true),
        (RSP_PROD, u32::MAX, true),
        (RSP_PROD, 1024, false),
        // With no request out, the daemon has read all of nothing and cannot be ahead.
        (REQ_CONS, 1, true),
        (REQ_CONS, 1_u32.wrapping_sub(1025), false),
        (REQ_CONS, 0_u32.wrapping_sub(1025), true),
    ] {
        let mut daemon = daemon();
        let mut store = client(&daemon);
        // A header that waits for 4096 more bytes.
        daemon.frame.write(RSP, &[READ, 0, 0, 4096].map(u32::to_le_bytes).concat());
        daemon.frame.write_u32(offset, index);
        let expected = broken.then_some(StoreEvent::Broken(Broken::RingIndex));
        assert_eq!(store.turn(&mut Notified::default()), expected, "{offset} {index}");
        if broken {
            daemon.rsp_prod = 0;
            daemon.frame.write_u32(offset, 0);
            assert_silent(&mut store, &mut daemon);
        }
    }
}

#[test]
fn names_that_are_not_text_spoil_only_the_listing() {
    let mut daemon = daemon();
    let mut store = client(&daemon);
    let mut hal = Notified::default();
    store.start(job().list(""));
    assert_eq!(store.turn(&mut hal), None);
    let reply = message(DIRECTORY, 1, 0, b"a\0\xff\0");
    daemon.frame.write(RSP, &reply);
    daemon.frame.write_u32(RSP_PROD, reply.len() as u32);
    daemon.rsp_prod = reply.len() as u32;
    assert_eq!(store.turn(&mut hal), Some(StoreEvent::Done(Ok(()))));
    assert_eq!(store.answers()[0], Err(StoreError::Malformed));
    assert_eq!(store.listing().count(), 0);
    assert_eq!(run(&mut store, &mut daemon).len(), 1, "then the daemon's own, second reply");
}

/// A daemon that answers from a seed: mostly what was asked, often enough not.
struct Noise {
    frame: Frame,
    state: u64,
    req_cons: u32,
    rsp_prod: u32,
    /// Header of the last request, and those of requests that have no reply yet.
    asked: [u32; 4],
    owed: VecDeque<[u32; 4]>,
}

impl Noise {
    fn new(seed: u64) -> Self {
        let state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
        Self { frame: Frame::new(), state, req_cons: 0, rsp_prod: 0, asked: [0; 4], owed: VecDeque::new() }
    }

    /// A number below `bound` (xorshift64).
    fn below(&mut self, bound: u32) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % u64::from(bound)) as u32
    }

    fn mostly(&mut self, number: u32) -> u32 {
        if self.below(40) == 0 { self.below(50) } else { number }
    }

    fn take(&mut self) {
        let end = self.frame.read_u32(REQ_PROD);
        while self.req_cons != end {
            let header = [0, 4, 8, 12].map(|word| {
                let mut bytes = [0; 4];
                for (byte, at) in bytes.iter_mut().zip(word..) {
                    let place = (self.req_cons as usize + at) % RING_SIZE;
                    self.frame.read(place, core::slice::from_mut(byte));
                }
                u32::from_le_bytes(bytes)
            });
            self.owed.push_back(header);
            let left = end.wrapping_sub(self.req_cons);
            self.req_cons = self.req_cons.wrapping_add(left.min(HEADER as u32 + header[3]));
        }
        self.frame.write_u32(REQ_CONS, self.req_cons);
    }

    fn payload(&mut self, kind: u32) -> Vec<u8> {
        if self.below(10) == 0 {
            let len = self.below(900);
            return (0..len).map(|_| if self.below(20) == 0 { 0 } else { self.below(256) as u8 }).collect();
        }
        match kind {
            WATCH_EVENT => b"a/b\0be\0".to_vec(),
            TRANSACTION_START => b"41\0".to_vec(),
            ERROR => b"EAGAIN\0".to_vec(),
            _ => b"1".to_vec(),
        }
    }

    fn say(&mut self) {
        let owes = self.owed.front().copied();
        self.asked = owes.unwrap_or(self.asked);
        let [kind, id, transaction, _] = self.asked.map(|word| self.mostly(word));
        let kind = match (self.below(8), owes.is_some()) {
            (0, _) | (_, false) => self.mostly(WATCH_EVENT),
            (1, true) => ERROR,
            (_, true) => kind,
        };
        if kind != WATCH_EVENT {
            self.owed.pop_front();
        }
        let payload = self.payload(kind);
        for byte in message(kind, id, transaction, &payload) {
            self.frame.write(RSP + self.rsp_prod as usize % RING_SIZE, &[byte]);
            self.rsp_prod = self.rsp_prod.wrapping_add(1);
        }
        self.frame.write_u32(RSP_PROD, self.rsp_prod);
    }

    fn step(&mut self) {
        self.take();
        match self.below(100) {
            0 => self.frame.write_u32(RSP_PROD, self.state as u32),
            1 => self.frame.write_u32(REQ_CONS, self.state as u32),
            2 => self.frame.write(RSP + self.state as usize % RING_SIZE, &[self.state as u8]),
            _ => self.say(),
        }
    }
}

#[test]
fn no_bytes_make_it_panic_or_talk_without_end() {
    let [mut watches, mut done, mut failed, mut broken] = [0; 4];
    for seed in 1..=3000 {
        let mut noise = Noise::new(seed);
        let mut store = Store::new(noise.frame.shared(), super::PORT);
        for _ in 0..40 {
            if store.idle() {
                let plain = noise.below(2) == 0;
                store.start(if plain { job().read("x").list("") } else { guarded().list("") });
            }
            noise.step();
            // A ring has room for fewer messages than this.
            for turn in 0..=RING_SIZE / HEADER {
                match store.turn(&mut Notified::default()) {
                    None => break,
                    Some(StoreEvent::Watch { .. }) => watches += 1,
                    Some(StoreEvent::Done(Ok(()))) => done += 1,
                    Some(StoreEvent::Done(Err(_))) => failed += 1,
                    Some(StoreEvent::Broken(_)) => broken += 1,
                }
                assert!(turn < RING_SIZE / HEADER, "seed {seed}: talks without end");
            }
        }
    }
    let reached = [watches, done, failed, broken];
    assert!(reached.iter().all(|count| *count > 500), "the noise no longer gets everywhere: {reached:?}");
}
