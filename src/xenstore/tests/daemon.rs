//! A small store daemon on the other end of the ring. It splits messages where it is told to,
//! answers from a tree, and misbehaves on request.

use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use crate::mem::frame::Frame;
use crate::wire::xs::{HEADER, REQ, REQ_CONS, REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD};

pub(super) const DIRECTORY: u32 = 1;
pub(super) const READ: u32 = 2;
pub(super) const WATCH: u32 = 4;
pub(super) const UNWATCH: u32 = 5;
pub(super) const TRANSACTION_START: u32 = 6;
pub(super) const TRANSACTION_END: u32 = 7;
pub(super) const WRITE: u32 = 11;
pub(super) const RM: u32 = 13;
pub(super) const WATCH_EVENT: u32 = 15;
pub(super) const ERROR: u32 = 16;

type Tree = BTreeMap<String, Vec<u8>>;

/// A request as it came in: type, transaction, payload.
pub(super) type Seen = (u32, u32, Vec<u8>);

pub(super) struct Daemon {
    pub(super) frame: Frame,
    /// Bytes that one step moves each way at most.
    pub(super) chunk: usize,
    pub(super) tree: Tree,
    pub(super) seen: Vec<Seen>,
    /// Commits still to be answered by EAGAIN.
    pub(super) conflicts: usize,
    /// Requests of a type still to be answered by an error.
    pub(super) refusals: VecDeque<(u32, &'static str)>,
    /// Sent before each reply.
    pub(super) before_reply: Vec<u8>,
    pub(super) req_cons: u32,
    pub(super) rsp_prod: u32,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    transactions: BTreeMap<u32, Tree>,
    last_transaction: u32,
}

impl Daemon {
    /// A daemon whose two rings have come to these indexes.
    pub(super) fn new(chunk: usize, req: u32, rsp: u32) -> Self {
        let frame = Frame::new();
        for (offset, index) in [(REQ_CONS, req), (REQ_PROD, req), (RSP_CONS, rsp), (RSP_PROD, rsp)] {
            frame.write_u32(offset, index);
        }
        Self {
            frame,
            chunk,
            tree: Tree::new(),
            seen: Vec::new(),
            conflicts: 0,
            refusals: VecDeque::new(),
            before_reply: Vec::new(),
            req_cons: req,
            rsp_prod: rsp,
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            transactions: BTreeMap::new(),
            last_transaction: 40,
        }
    }

    pub(super) fn put(&mut self, path: &str, value: &str) {
        self.tree.insert(path.to_string(), value.as_bytes().to_vec());
    }

    pub(super) fn get(&self, path: &str) -> Option<&str> {
        self.tree.get(path).map(|value| str::from_utf8(value).unwrap())
    }

    pub(super) fn open_transactions(&self) -> usize {
        self.transactions.len()
    }

    /// How often each type was asked for.
    pub(super) fn count(&self, kind: u32) -> usize {
        self.seen.iter().filter(|seen| seen.0 == kind).count()
    }

    /// Puts raw bytes in line for the client.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.outbox.extend(bytes);
    }

    /// Moves bytes, answers one request; true if any byte moved, which real daemons notify.
    pub(super) fn step(&mut self) -> bool {
        let moved = self.take();
        self.answer_next();
        self.give() || moved
    }

    fn take(&mut self) -> bool {
        let ready = self.frame.read_u32(REQ_PROD).wrapping_sub(self.req_cons) as usize;
        assert!(ready <= RING_SIZE, "the client overran the ring");
        let count = ready.min(self.chunk);
        for _ in 0..count {
            let mut byte = [0];
            self.frame.read(REQ + self.req_cons as usize % RING_SIZE, &mut byte);
            self.inbox.extend(byte);
            self.req_cons = self.req_cons.wrapping_add(1);
        }
        self.frame.write_u32(REQ_CONS, self.req_cons);
        count > 0
    }

    fn give(&mut self) -> bool {
        let full = self.rsp_prod.wrapping_sub(self.frame.read_u32(RSP_CONS)) as usize;
        let count = self.outbox.len().min(self.chunk).min(RING_SIZE - full);
        for byte in self.outbox.drain(..count) {
            self.frame.write(RSP + self.rsp_prod as usize % RING_SIZE, &[byte]);
            self.rsp_prod = self.rsp_prod.wrapping_add(1);
        }
        self.frame.write_u32(RSP_PROD, self.rsp_prod);
        count > 0
    }

    fn answer_next(&mut self) {
        let Some(header) = self.inbox.first_chunk::<HEADER>() else { return };
        let [kind, id, transaction, len] =
            [0, 4, 8, 12].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()));
        let end = HEADER + len as usize;
        if self.inbox.len() < end {
            return;
        }
        let payload: Vec<u8> = self.inbox.drain(..end).skip(HEADER).collect();
        self.seen.push((kind, transaction, payload.clone()));
        let reply = self.handle(kind, transaction, &payload);
        self.outbox.extend(&self.before_reply);
        // As oxenstored: watches are never part of a transaction, whatever the request says.
        let echo = if matches!(kind, WATCH | UNWATCH) { 0 } else { transaction };
        match reply {
            Ok(bytes) => self.send(&message(kind, id, echo, &bytes)),
            Err(error) => self.send(&message(ERROR, id, echo, format!("{error}\0").as_bytes())),
        }
        if kind == WATCH {
            self.send(&message(WATCH_EVENT, 0, 0, &payload));
        }
    }

    fn handle(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
        match kind {
            TRANSACTION_START => self.refuse(kind).map(|()| self.begin()),
            TRANSACTION_END => {
                let tree = self.transactions.remove(&transaction).ok_or("ENOENT")?;
                self.refuse(kind)?;
                self.end(tree, payload)
            }
            WATCH | UNWATCH => self.refuse(kind).map(|()| b"OK\0".to_vec()),
            _ => {
                self.refuse(kind)?;
                let tree = match transaction {
                    0 => &mut self.tree,
                    _ => self.transactions.get_mut(&transaction).ok_or("EIO")?,
                };
                access(tree, kind, payload)
            }
        }
    }

    fn begin(&mut self) -> Vec<u8> {
        self.last_transaction += 1;
        self.transactions.insert(self.last_transaction, self.tree.clone());
        format!("{}\0", self.last_transaction).into_bytes()
    }

    fn end(&mut self, tree: Tree, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
        match payload {
            b"T\0" if self.conflicts > 0 => {
                self.conflicts -= 1;
                return Err("EAGAIN");
            }
            b"T\0" => self.tree = tree,
            b"F\0" => {}
            _ => return Err("EINVAL"),
        }
        Ok(b"OK\0".to_vec())
    }

    fn refuse(&mut self, kind: u32) -> Result<(), &'static str> {
        match self.refusals.front() {
            Some((refused, error)) if *refused == kind => {
                let error = *error;
                self.refusals.pop_front();
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// A message with any header whatever.
pub(super) fn message(kind: u32, id: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
    let header = [kind, id, transaction, payload.len() as u32].map(u32::to_le_bytes);
    [header.as_flattened(), payload].concat()
}

fn access(tree: &mut Tree, kind: u32, payload: &[u8]) -> Result<Vec<u8>, &'static str> {
    let nul = payload.iter().position(|byte| *byte == 0).ok_or("EINVAL")?;
    let path = str::from_utf8(&payload[..nul]).map_err(|_| "EINVAL")?;
    let below = format!("{path}/");
    match kind {
        READ => return tree.get(path).cloned().ok_or("ENOENT"),
        DIRECTORY => {
            let names = tree.keys().filter_map(|key| key.strip_prefix(&below));
            return Ok(names.flat_map(|name| format!("{name}\0").into_bytes()).collect());
        }
        WRITE => {
            tree.insert(path.to_string(), payload[nul + 1..].to_vec());
        }
        RM => {
            let before = tree.len();
            tree.retain(|key, _| key != path && !key.starts_with(&below));
            if tree.len() == before {
                return Err("ENOENT");
            }
        }
        _ => return Err("ENOSYS"),
    }
    Ok(b"OK\0".to_vec())
}
