//! A simulated xenstore daemon at the other end of the driver domain's byte ring
//! (xen/include/public/io/xs_wire.h): it moves bytes in pieces of any size, looks at the ring only
//! when it was told to, and answers as oxenstored or as C xenstored does where that differs.
//!
//! It reads the protocol by itself and not with `wire`, so that one checks the other.

#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use super::machine::{DOM0, DRIVER, Machine, Violation};
use super::tree::{Errno, Tree};
use crate::mem::frame::Frame;
use crate::units::{Instant, Port};

const RING: u32 = 1024;
const RSP: usize = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;

const HEADER: usize = 16;
const PAYLOAD_MAX: usize = 4096;
const VALUE_MAX: usize = 2048;
const TRANSACTIONS: usize = 10;

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const WRITE: u32 = 11;
const MKDIR: u32 = 12;
const RM: u32 = 13;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

/// Which daemon this is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Debian's default.
    Oxenstored,
    /// The other one.
    Cxenstored,
}

impl Flavour {
    /// The error for a node too many.
    #[must_use]
    pub const fn quota(self) -> Errno {
        match self {
            Self::Oxenstored => "EQUOTA",
            Self::Cxenstored => "ENOSPC",
        }
    }

    const fn watches(self) -> (usize, Errno) {
        match self {
            Self::Oxenstored => (100, "EQUOTA"),
            Self::Cxenstored => (128, "E2BIG"),
        }
    }

    const fn value_too_long(self) -> Errno {
        match self {
            Self::Oxenstored => "E2BIG",
            Self::Cxenstored => "ENOSPC",
        }
    }
}

#[derive(Debug)]
struct Watch {
    /// As it was asked for.
    path: String,
    token: String,
}

#[derive(Debug)]
struct Transaction {
    started: u64,
    tree: Tree,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u32,
    req_id: u32,
    tx_id: u32,
    len: usize,
}

/// The daemon's side of the driver domain's connection.
#[derive(Debug)]
pub struct Xenstored {
    ring: Frame,
    port: Port,
    flavour: Flavour,
    /// When it looks at the ring again; never, until it is told.
    awake: Option<Instant>,
    broken: bool,
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    watches: Vec<Watch>,
    /// Watches that the driver domain may have.
    pub watch_quota: usize,
    transactions: BTreeMap<u32, Transaction>,
    last_transaction: u32,
    /// One commit in so many fails with EAGAIN for no reason; 0 for none.
    pub conflicts: u32,
}

impl Xenstored {
    /// A daemon over `ring`, whose end of the event channel is `port`.
    #[must_use]
    pub fn new(ring: Frame, port: Port, flavour: Flavour) -> Self {
        Self {
            ring,
            port,
            flavour,
            awake: None,
            broken: false,
            input: VecDeque::new(),
            output: VecDeque::new(),
            watches: Vec::new(),
            watch_quota: flavour.watches().0,
            transactions: BTreeMap::new(),
            last_transaction: 0,
            conflicts: 0,
        }
    }

    /// When it acts next.
    #[must_use]
    pub fn next_event(&self, machine: &Machine) -> Option<Instant> {
        let told = machine.ports.pending(DOM0, self.port);
        let awake = self.awake.into_iter().chain(told).min();
        awake.filter(|_| !self.broken)
    }

    /// Whether there are bytes in the ring, or room for bytes that wait, that it was not told of.
    #[must_use]
    pub fn is_unaware(&self, machine: &Machine) -> bool {
        let requests = self.index(REQ_PROD) != self.index(REQ_CONS);
        let room = !self.output.is_empty() && self.response_room() > 0;
        self.next_event(machine).is_none() && !self.broken && (requests || room)
    }

    /// Queues the events of what has changed in the tree.
    pub fn watch(&mut self, machine: &mut Machine) {
        for change in machine.tree.take_changes() {
            for i in 0..self.watches.len() {
                if change.fires(DRIVER, &absolute(&self.watches[i].path)) {
                    self.event(i, &change.path);
                    self.awake.get_or_insert(machine.now);
                }
            }
        }
    }

    /// Moves some bytes in and out, and answers what is complete.
    pub fn step(&mut self, machine: &mut Machine) {
        machine.ports.take(DOM0, self.port);
        self.awake = None;
        if self.broken {
            return;
        }
        let taken = self.take_requests(machine);
        while !self.broken
            && let Some((header, payload)) = self.message(machine)
        {
            self.answer(machine, header, &payload);
            self.watch(machine);
        }
        let given = self.give_responses(machine);
        if taken || given {
            machine.notify(DOM0, self.port);
            self.awake = Some(machine.now + Duration::from_nanos(machine.rng.within(1..20_000)));
        }
    }

    fn take_requests(&mut self, machine: &mut Machine) -> bool {
        let cons = self.index(REQ_CONS);
        let ready = self.index(REQ_PROD).wrapping_sub(cons);
        if ready > RING {
            self.fail(machine, "more request bytes than the ring holds");
            return false;
        }
        let count = piece(machine, ready);
        for i in 0..count {
            let mut byte = [0];
            self.ring.read((cons.wrapping_add(i) % RING) as usize, &mut byte);
            self.input.push_back(byte[0]);
        }
        self.ring.write_u32(REQ_CONS, cons.wrapping_add(count));
        count > 0
    }

    fn give_responses(&mut self, machine: &mut Machine) -> bool {
        let prod = self.index(RSP_PROD);
        if prod.wrapping_sub(self.index(RSP_CONS)) > RING {
            self.fail(machine, "more response bytes consumed than there were");
            return false;
        }
        let waiting = u32::try_from(self.output.len()).unwrap_or(u32::MAX);
        let count = piece(machine, self.response_room().min(waiting));
        for (i, byte) in (0..count).zip(self.output.drain(..count as usize)) {
            self.ring.write(RSP + (prod.wrapping_add(i) % RING) as usize, &[byte]);
        }
        self.ring.write_u32(RSP_PROD, prod.wrapping_add(count));
        count > 0
    }

    fn message(&mut self, machine: &mut Machine) -> Option<(Header, Vec<u8>)> {
        let header: Vec<u8> = self.input.iter().copied().take(HEADER).collect();
        let word = |i: usize| Some(u32::from_le_bytes(*header.get(i * 4..)?.first_chunk()?));
        let header = Header { kind: word(0)?, req_id: word(1)?, tx_id: word(2)?, len: word(3)? as usize };
        if header.len > PAYLOAD_MAX {
            self.fail(machine, "a payload of more than 4096 bytes");
            return None;
        }
        if self.input.len() < HEADER + header.len {
            return None;
        }
        let payload = self.input.drain(..HEADER + header.len).skip(HEADER).collect();
        Some((header, payload))
    }

    fn answer(&mut self, machine: &mut Machine, header: Header, payload: &[u8]) {
        let answer = match header.kind {
            WATCH => return self.add_watch(header, payload),
            UNWATCH => self.remove_watch(payload),
            TRANSACTION_START => self.start(machine, header),
            TRANSACTION_END => self.end(machine, header, payload),
            DIRECTORY | READ | WRITE | MKDIR | RM => self.serve(machine, header, payload),
            _ => Err("ENOSYS"),
        };
        match answer {
            Ok(payload) => self.reply(header, header.kind, &payload),
            Err(name) => self.reply(header, ERROR, format!("{name}\0").as_bytes()),
        }
    }

    /// The requests about nodes, in a transaction or not.
    fn serve(&mut self, machine: &mut Machine, header: Header, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let tree = match header.tx_id {
            0 => &mut machine.tree,
            id => &mut self.transactions.get_mut(&id).ok_or("ENOENT")?.tree,
        };
        let (path, rest) = split(payload)?;
        let path = absolute(path);
        let done = Ok(b"OK\0".to_vec());
        match header.kind {
            READ => tree.get(DRIVER, &path).map(<[u8]>::to_vec),
            DIRECTORY => tree.get(DRIVER, &path).map(|_| names(tree, &path)).and_then(fitting),
            WRITE if rest.len() > VALUE_MAX => Err(self.flavour.value_too_long()),
            WRITE => tree.put(DRIVER, &path, rest).and(done),
            MKDIR => tree.make_dir(DRIVER, &path).and(done),
            _ => tree.delete(DRIVER, &path).and(done),
        }
    }

    fn add_watch(&mut self, header: Header, payload: &[u8]) {
        let full = self.flavour.watches().1;
        let watch = parse_watch(payload).and_then(|watch| {
            let same = |other: &Watch| other.path == watch.path && other.token == watch.token;
            match self.watches.iter().any(same) {
                true => Err("EEXIST"),
                false if self.watches.len() >= self.watch_quota => Err(full),
                false => Ok(watch),
            }
        });
        match watch {
            Ok(watch) => {
                self.reply(header, WATCH, b"OK\0");
                let path = absolute(&watch.path);
                self.watches.push(watch);
                self.event(self.watches.len() - 1, &path);
            }
            Err(name) => self.reply(header, ERROR, format!("{name}\0").as_bytes()),
        }
    }

    fn remove_watch(&mut self, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let gone = parse_watch(payload)?;
        let same = |watch: &Watch| watch.path == gone.path && watch.token == gone.token;
        let at = self.watches.iter().position(same).ok_or("ENOENT")?;
        self.watches.remove(at);
        Ok(b"OK\0".to_vec())
    }

    fn start(&mut self, machine: &Machine, header: Header) -> Result<Vec<u8>, Errno> {
        if header.tx_id != 0 {
            return Err("EBUSY");
        }
        if self.transactions.len() >= TRANSACTIONS {
            return Err(self.flavour.quota());
        }
        self.last_transaction += 1;
        let transaction = Transaction { started: machine.tree.generation(), tree: machine.tree.fork() };
        self.transactions.insert(self.last_transaction, transaction);
        Ok(format!("{}\0", self.last_transaction).into_bytes())
    }

    fn end(&mut self, machine: &mut Machine, header: Header, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let transaction = self.transactions.remove(&header.tx_id).ok_or("ENOENT")?;
        match payload {
            b"F\0" => Ok(b"OK\0".to_vec()),
            b"T\0" if machine.rng.one_in(self.conflicts) => Err("EAGAIN"),
            b"T\0" if machine.tree.merge(transaction.started, transaction.tree) => Ok(b"OK\0".to_vec()),
            b"T\0" => Err("EAGAIN"),
            _ => Err("EINVAL"),
        }
    }

    /// How many transactions are open: none, once the image has nothing to do.
    #[must_use]
    pub fn open_transactions(&self) -> usize {
        self.transactions.len()
    }

    /// The watches that are set, by path.
    pub fn watched(&self) -> impl Iterator<Item = &str> {
        self.watches.iter().map(|watch| watch.path.as_str())
    }

    fn event(&mut self, watch: usize, path: &str) {
        let watch = &self.watches[watch];
        let path = if watch.path.starts_with('/') { path } else { relative(path) };
        let payload = format!("{path}\0{}\0", watch.token);
        self.reply(Header { kind: 0, req_id: 0, tx_id: 0, len: 0 }, WATCH_EVENT, payload.as_bytes());
    }

    fn reply(&mut self, to: Header, kind: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("payloads are short");
        for word in [kind, to.req_id, to.tx_id, len] {
            self.output.extend(word.to_le_bytes());
        }
        self.output.extend(payload);
    }

    fn response_room(&self) -> u32 {
        RING.saturating_sub(self.index(RSP_PROD).wrapping_sub(self.index(RSP_CONS)))
    }

    fn index(&self, offset: usize) -> u32 {
        self.ring.read_u32(offset)
    }

    fn fail(&mut self, machine: &mut Machine, why: &'static str) {
        self.broken = true;
        machine.violated(Violation::Store(why));
    }
}

/// Sets a ring's indexes as if it had been in use before.
pub fn start_ring(ring: Frame, request: u32, response: u32) {
    for (offset, index) in
        [(REQ_CONS, request), (REQ_PROD, request), (RSP_CONS, response), (RSP_PROD, response)]
    {
        ring.write_u32(offset, index);
    }
}

/// How many of `count` bytes to move at once: often few, sometimes all.
fn piece(machine: &mut Machine, count: u32) -> u32 {
    let most = if machine.rng.one_in(4) { count.min(8) } else { count };
    if most == 0 { 0 } else { machine.rng.within(1..u64::from(most) + 1) as u32 }
}

fn home() -> String {
    format!("/local/domain/{DRIVER}")
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_string() } else { format!("{}/{path}", home()) }
}

fn relative(path: &str) -> &str {
    path.strip_prefix(&format!("{}/", home())).unwrap_or(path)
}

/// The path up to the first NUL, and what follows.
fn split(payload: &[u8]) -> Result<(&str, &[u8]), Errno> {
    let end = payload.iter().position(|byte| *byte == 0).ok_or("EINVAL")?;
    let path = core::str::from_utf8(&payload[..end]).map_err(|_| "EINVAL")?;
    Ok((path, &payload[end + 1..]))
}

fn parse_watch(payload: &[u8]) -> Result<Watch, Errno> {
    let (path, rest) = split(payload)?;
    let (token, _) = split(rest)?;
    Ok(Watch { path: path.to_string(), token: token.to_string() })
}

fn names(tree: &Tree, path: &str) -> Vec<u8> {
    tree.children(path).iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect()
}

fn fitting(payload: Vec<u8>) -> Result<Vec<u8>, Errno> {
    if payload.len() > PAYLOAD_MAX { Err("E2BIG") } else { Ok(payload) }
}
