//! The daemon against a client that moves raw bytes, written from the protocol's description.

use super::*;
use crate::sim::toolstack::create_driver_domain;
use crate::sim::tree::Perms;
use crate::units::DomId;

struct Client {
    machine: Machine,
    daemon: Xenstored,
    ring: Frame,
    port: Port,
    received: Vec<u8>,
}

impl Client {
    fn new(seed: u64, flavour: Flavour) -> Self {
        let mut machine = Machine::new(seed, 8);
        create_driver_domain(&mut machine);
        let leaf = Perms { owner: DRIVER, reader: DomId(5) };
        machine.tree.write_for("/local/domain/3/backend/vbd/5/51728", "", leaf);
        machine.tree.take_changes();
        let ring = Frame::new();
        start_ring(ring, u32::MAX - 5, u32::MAX - 1000);
        let theirs = machine.ports.open(DOM0, DRIVER).unwrap();
        let port = machine.ports.bind(DRIVER, DOM0, theirs, machine.now).unwrap();
        Self { machine, daemon: Xenstored::new(ring, theirs, flavour), ring, port, received: Vec::new() }
    }

    /// Puts bytes into the ring, all at once, and tells the daemon.
    fn send(&mut self, kind: u32, tx_id: u32, payload: &[u8]) {
        let words = [kind, 7, tx_id, payload.len() as u32].map(u32::to_le_bytes).concat();
        let prod = self.ring.read_u32(REQ_PROD);
        for (i, byte) in (0..).zip(words.iter().chain(payload)) {
            self.ring.write((prod.wrapping_add(i) % RING) as usize, &[*byte]);
        }
        self.ring.write_u32(REQ_PROD, prod.wrapping_add((words.len() + payload.len()) as u32));
        self.machine.notify(DRIVER, self.port);
    }

    /// Lets the daemon work until it sleeps, and takes what it sends.
    fn settle(&mut self) {
        self.daemon.watch(&mut self.machine);
        while let Some(at) = self.daemon.next_event(&self.machine) {
            self.machine.now = self.machine.now.max(at);
            self.daemon.step(&mut self.machine);
            self.drain();
        }
    }

    fn drain(&mut self) {
        let (cons, prod) = (self.ring.read_u32(RSP_CONS), self.ring.read_u32(RSP_PROD));
        let ready = prod.wrapping_sub(cons);
        if ready == 0 || ready > RING {
            return;
        }
        for i in 0..ready {
            let mut byte = [0];
            self.ring.read(RSP + (cons.wrapping_add(i) % RING) as usize, &mut byte);
            self.received.push(byte[0]);
        }
        self.ring.write_u32(RSP_CONS, prod);
        self.machine.notify(DRIVER, self.port);
    }

    /// The next message that came: its type and payload, with NULs as `|`.
    fn next(&mut self) -> (u32, String) {
        let word = |i: usize| u32::from_le_bytes(*self.received[i * 4..].first_chunk().unwrap());
        let (kind, len) = (word(0), word(3) as usize);
        let payload = String::from_utf8(self.received[HEADER..HEADER + len].to_vec()).unwrap();
        self.received.drain(..HEADER + len);
        (kind, payload.replace('\0', "|"))
    }

    fn ask(&mut self, kind: u32, tx_id: u32, payload: &str) -> (u32, String) {
        self.send(kind, tx_id, payload.replace('|', "\0").as_bytes());
        self.settle();
        self.next()
    }
}

fn ok(kind: u32) -> (u32, String) {
    (kind, "OK|".to_string())
}

fn error(name: &str) -> (u32, String) {
    (ERROR, format!("{name}|"))
}

const STATE: &str = "backend/vbd/5/51728/state";

#[test]
fn nodes_are_written_read_listed_and_removed() {
    for seed in 0..20 {
        let mut client = Client::new(seed, Flavour::Oxenstored);
        assert_eq!(client.ask(WRITE, 0, &format!("{STATE}|2")), ok(WRITE));
        assert_eq!(client.ask(READ, 0, &format!("/local/domain/3/{STATE}|")), (READ, "2".to_string()));
        assert_eq!(client.ask(MKDIR, 0, "backend/vbd/5/51728/more|"), ok(MKDIR));
        assert_eq!(client.ask(DIRECTORY, 0, "backend/vbd/5/51728|"), (DIRECTORY, "more|state|".to_string()));
        assert_eq!(client.ask(RM, 0, "backend/vbd/5/51728|"), ok(RM));
        assert_eq!(client.ask(READ, 0, &format!("{STATE}|")), error("ENOENT"));
        assert_eq!(client.ask(WRITE, 0, &format!("{STATE}|6")), error("EACCES"));
        assert_eq!(client.ask(99, 0, ""), error("ENOSYS"));
        assert_eq!(client.machine.violations(), []);
    }
}

#[test]
fn watches_fire_at_once_and_at_each_change_with_paths_as_they_were_given() {
    let mut client = Client::new(1, Flavour::Cxenstored);
    assert_eq!(client.ask(WATCH, 0, "backend|be|"), ok(WATCH));
    assert_eq!(client.next(), (WATCH_EVENT, "backend|be|".to_string()));
    client.machine.tree.write(&format!("/local/domain/3/{STATE}"), 5);
    client.settle();
    // Once for the node that is made, and once for its value.
    assert_eq!(client.next(), (WATCH_EVENT, format!("{STATE}|be|")));
    assert_eq!(client.next(), (WATCH_EVENT, format!("{STATE}|be|")));
    assert_eq!(client.ask(WATCH, 0, "backend|be|"), error("EEXIST"));
    assert_eq!(client.ask(UNWATCH, 0, "backend|be|"), ok(UNWATCH));
    client.machine.tree.write(&format!("/local/domain/3/{STATE}"), 6);
    client.settle();
    assert_eq!(client.received, []);
}

#[test]
fn a_transaction_is_done_whole_or_disturbed() {
    let mut client = Client::new(1, Flavour::Oxenstored);
    assert_eq!(client.ask(TRANSACTION_START, 0, "|"), (TRANSACTION_START, "1|".to_string()));
    assert_eq!(client.ask(WRITE, 1, &format!("{STATE}|2")), ok(WRITE));
    assert!(!client.machine.tree.exists(&format!("/local/domain/3/{STATE}")));
    assert_eq!(client.ask(TRANSACTION_END, 1, "T|"), ok(TRANSACTION_END));
    assert_eq!(client.machine.tree.text(&format!("/local/domain/3/{STATE}")), Some("2"));
    assert_eq!(client.ask(TRANSACTION_START, 0, "|"), (TRANSACTION_START, "2|".to_string()));
    client.machine.tree.write("/local/domain/5/name", "guest");
    assert_eq!(client.ask(TRANSACTION_END, 2, "T|"), error("EAGAIN"));
    assert_eq!(client.ask(TRANSACTION_END, 2, "F|"), error("ENOENT"));
    assert_eq!(client.daemon.open_transactions(), 0);
}

#[test]
fn each_daemon_has_its_own_words_for_a_quota() {
    for (flavour, nodes, watches) in
        [(Flavour::Oxenstored, "EQUOTA", (100, "EQUOTA")), (Flavour::Cxenstored, "ENOSPC", (128, "E2BIG"))]
    {
        let mut client = Client::new(1, flavour);
        client.machine.tree.quota = (0, flavour.quota());
        assert_eq!(client.ask(WRITE, 0, &format!("{STATE}|2")), error(nodes));
        for i in 0..watches.0 {
            assert_eq!(client.ask(WATCH, 0, &format!("data|{i}|")), ok(WATCH));
            client.received.clear();
        }
        assert_eq!(client.ask(WATCH, 0, "data|one more|"), error(watches.1));
    }
}

#[test]
fn it_does_not_look_at_the_ring_when_it_was_not_told() {
    let mut client = Client::new(1, Flavour::Oxenstored);
    client.settle();
    assert!(!client.daemon.is_unaware(&client.machine));
    let told = client.ring.read_u32(REQ_PROD);
    client.ring.write_u32(REQ_PROD, told.wrapping_add(16));
    assert!(client.daemon.is_unaware(&client.machine));
    assert_eq!(client.daemon.next_event(&client.machine), None);
}

#[test]
fn impossible_bytes_are_a_violation_and_end_the_connection() {
    let breaks: [fn(&mut Client); 3] = [
        |client| client.ring.write_u32(REQ_PROD, client.ring.read_u32(REQ_CONS).wrapping_add(RING + 1)),
        |client| client.ring.write_u32(RSP_CONS, client.ring.read_u32(RSP_PROD).wrapping_add(1)),
        |client| {
            client.send(READ, 0, &[b'a'; 8]);
            let at = client.ring.read_u32(REQ_CONS).wrapping_add(13);
            client.ring.write((at % RING) as usize, &[0x20]);
        },
    ];
    for (i, make) in breaks.into_iter().enumerate() {
        let mut client = Client::new(1, Flavour::Oxenstored);
        make(&mut client);
        client.machine.notify(DRIVER, client.port);
        client.settle();
        assert!(matches!(client.machine.violations(), [(_, Violation::Store(_))]), "case {i}");
    }
}
