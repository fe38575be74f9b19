//! Messages over the byte ring: one request at a time goes out, its reply and any number of watch
//! events come in, all of them split wherever the ring happened to be full. `job` decides what is
//! asked.

use super::ring::Ring;
use super::{Broken, StoreEvent};
use crate::limits;
use crate::mem::SharedPage;
use crate::wire::xenbus::StoreError;
use crate::wire::xs::{self, HEADER, Header, Message, MessageType, Request, RequestId, TransactionId};

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
    /// What the reply must echo.
    awaited: Option<(MessageType, RequestId, TransactionId)>,
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
            awaited: None,
            last_id: RequestId(0),
        }
    }

    /// Whether a request may be asked: the one before has its reply.
    pub(super) const fn is_free(&self) -> bool {
        self.awaited.is_none()
    }

    /// Takes a request to send.
    pub(super) fn ask(&mut self, request: &Request<'_>, transaction: TransactionId) {
        self.last_id = RequestId(self.last_id.0.wrapping_add(1));
        self.outgoing = request.encode(self.last_id, transaction);
        self.sent = 0;
        self.awaited = Some((request.kind(), self.last_id, transaction));
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

    /// Holds a reply against the request that is out, which it then ends.
    fn check(&mut self, header: &Header) -> Result<(), Broken> {
        if header.kind == MessageType::WatchEvent {
            return Ok(());
        }
        let (kind, id, transaction) = self.awaited.take().ok_or(Broken::UnexpectedReply)?;
        let answers = header.kind == kind || header.kind == MessageType::Error;
        let echoes = header.id == id && header.transaction == transaction;
        let was_asked = self.sent == self.outgoing.len();
        if answers && echoes && was_asked { Ok(()) } else { Err(Broken::UnexpectedReply) }
    }
}
