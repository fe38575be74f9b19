//! Messages over the byte ring: requests go out, their replies come in the same order, and any number of watch
//! events between them, all of them split wherever the ring happened to be full. `job` decides what is asked.

use heapless::Deque;

use super::ring::Ring;
use super::{Broken, StoreEvent};
use crate::limits;
use crate::mem::SharedPage;
use crate::wire::xenbus::StoreError;
use crate::wire::xs::{self, HEADER, Header, Message, MessageType, Request, RequestId, TransactionId};

/// Requests that wait for their replies at most. Each reply that comes by itself wakes the domain; but C xenstored stops
/// reading what a domain asks while it has so many of its requests (quota `outstanding`, 20 by default).
const UNDER_WAY: usize = 8;

/// What the daemon sent.
#[derive(Debug)]
pub(super) enum Incoming<'a> {
    /// A watched node changed.
    Watch(StoreEvent),
    /// The answer to our request: its payload, or why it failed.
    Reply(Result<&'a [u8], StoreError>),
}

/// Our end of the conversation.
#[derive(Debug)]
pub(super) struct Connection {
    ring: Ring,
    /// The message that is arriving, and how much of it has.
    incoming: [u8; HEADER + limits::STORE_PAYLOAD],
    arrived: usize,
    /// The request that is leaving, and how much of it has.
    outgoing: Message,
    sent: usize,
    /// What the replies must echo, one after the other.
    awaited: Deque<(MessageType, RequestId, TransactionId), UNDER_WAY>,
    last_id: RequestId,
}

impl Connection {
    pub(super) fn new(page: SharedPage) -> Self {
        Self {
            ring: Ring::new(page),
            incoming: [0; HEADER + limits::STORE_PAYLOAD],
            arrived: 0,
            outgoing: Message::new(),
            sent: 0,
            awaited: Deque::new(),
            last_id: RequestId(0),
        }
    }

    /// Whether a request may be asked: all of the one before was sent, and not too many wait for their replies.
    pub(super) fn is_free(&self) -> bool {
        self.sent == self.outgoing.len() && !self.awaited.is_full()
    }

    /// Takes a request to send.
    ///
    /// # Panics
    /// When it may not be asked.
    pub(super) fn ask(&mut self, request: &Request<'_>, transaction: TransactionId) {
        self.last_id = RequestId(self.last_id.0.wrapping_add(1));
        self.outgoing = request.encode(self.last_id, transaction);
        self.sent = 0;
        let awaited = (request.kind(), self.last_id, transaction);
        self.awaited.push_back(awaited).expect("there is room for a request that may be asked");
    }

    /// Sends what there is room for.
    ///
    /// # Errors
    /// The ring is broken.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        self.sent += self.ring.send(&self.outgoing[self.sent..])?;
        Ok(())
    }

    /// Whether all that was sent was taken, and nothing has arrived.
    pub(super) fn is_quiet(&self) -> bool {
        self.ring.is_quiet()
    }

    /// Takes the next message, if all of it is there.
    ///
    /// # Errors
    /// The ring is broken, or the message is none that may come now.
    pub(super) fn receive(&mut self) -> Result<Option<Incoming<'_>>, Broken> {
        self.arrive(HEADER)?;
        let Some(header) = self.incoming[..self.arrived].first_chunk() else { return Ok(None) };
        let header = Header::parse(header).ok_or(Broken::Header)?;
        let end = HEADER + header.len;
        self.arrive(end)?;
        if self.arrived < end {
            return Ok(None);
        }
        self.arrived = 0;
        self.check(&header)?;
        let payload = &self.incoming[HEADER..end];
        Ok(Some(match header.kind {
            MessageType::WatchEvent => {
                let (path, token) = xs::watch_event(payload).ok_or(Broken::Payload)?;
                Incoming::Watch(StoreEvent::Watch { path, token })
            }
            MessageType::Error => Incoming::Reply(Err(xs::error(payload))),
            MessageType::Directory
            | MessageType::Read
            | MessageType::Watch
            | MessageType::Unwatch
            | MessageType::TransactionStart
            | MessageType::TransactionEnd
            | MessageType::Write
            | MessageType::Rm => Incoming::Reply(Ok(payload)),
        }))
    }

    /// Whether the daemon must be told that bytes were sent or taken.
    pub(super) fn take_moved(&mut self) -> bool {
        self.ring.take_moved()
    }

    /// Has the message that is arriving grow to `end` bytes, if they are there.
    fn arrive(&mut self, end: usize) -> Result<(), Broken> {
        if self.arrived < end {
            self.arrived += self.ring.receive(&mut self.incoming[self.arrived..end])?;
        }
        Ok(())
    }

    /// Holds a reply against the first request that waits for one, which it then ends.
    fn check(&mut self, header: &Header) -> Result<(), Broken> {
        if header.kind == MessageType::WatchEvent {
            return Ok(());
        }
        // Of those that wait all were sent, except perhaps for the last one.
        let was_asked = self.awaited.len() > 1 || self.sent == self.outgoing.len();
        let (kind, id, transaction) = self.awaited.pop_front().ok_or(Broken::UnexpectedReply)?;
        let answers = header.kind == kind || header.kind == MessageType::Error;
        let echoes = header.id == id && header.transaction == transaction;
        if answers && echoes && was_asked { Ok(()) } else { Err(Broken::UnexpectedReply) }
    }
}
