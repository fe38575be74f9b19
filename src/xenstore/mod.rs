//! The xenstore client: carries out one [`Job`] at a time over the byte ring shared with the store
//! daemon, and hands out watch events as they come. It never waits and queues nothing: watch
//! events stay in the ring, and the rest with the daemon, until [`Store::turn`] is called.
//!
//! `domain` owns it and carries jobs to it; `ring` moves bytes, `connection` messages, `job`
//! knows what a job asks. Works with oxenstored and with C xenstored, which are trusted to serve
//! but not to be free of mistakes: nonsense from them ends the conversation, not the image.

mod connection;
mod job;
mod ring;
#[cfg(test)]
mod tests;

use core::fmt;

use self::connection::{Connection, Incoming};
use self::job::Run;
use crate::hal::Events;
use crate::mem::SharedPage;
use crate::units::Port;
use crate::wire::xenbus::{Answers, Job, Node, Path, StoreError};

/// What a turn brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreEvent {
    /// A watched node changed, or something below it; says neither how nor how often.
    Watch {
        /// What changed, or an ancestor of it when its path is longer than fits here. Relative if
        /// the watch was.
        path: Path,
        /// The watch's token, verbatim; empty when it is longer than any of ours.
        token: Node,
    },
    /// The job has ended: [`Store::answers`] and [`Store::listing`] hold what it brought.
    Done(Result<(), StoreError>),
    /// The daemon made no sense. Nothing more will come, and no job can be started.
    Broken(Broken),
}

/// How the daemon made no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// An index of its own is further from ours than the ring is long.
    RingIndex,
    /// A message's type is unknown, or its payload longer than the protocol allows.
    Header,
    /// A reply to something that was not asked.
    UnexpectedReply,
    /// A watch event without path and token, or a transaction without a number.
    Payload,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RingIndex => "impossible ring index",
            Self::Header => "impossible message header",
            Self::UnexpectedReply => "reply to nothing that was asked",
            Self::Payload => "malformed payload",
        })
    }
}

/// The client.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    port: Port,
    run: Run,
    broken: bool,
}

impl Store {
    /// A client on the page and the port that Xen gave us for the store (`store_mfn` and
    /// `store_evtchn` of `start_info`). Carries on from the indexes that the page holds.
    #[must_use]
    pub fn new(ring: SharedPage, port: Port) -> Self {
        Self { connection: Connection::new(ring), port, run: Run::new(), broken: false }
    }

    /// The port by which the daemon calls for a turn.
    #[must_use]
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Whether a job can be started.
    #[must_use]
    pub const fn idle(&self) -> bool {
        self.run.is_idle() && !self.broken
    }

    /// Takes a job; the next turn sends its first request.
    ///
    /// # Panics
    /// When not [`Store::idle`], or when a guarded job has watches: these are no part of
    /// transactions, so they could not be undone.
    pub fn start(&mut self, job: Job) {
        assert!(self.idle(), "the store has a job already, or is broken");
        self.run.start(job);
    }

    /// One answer for each step of the last job; none if it failed as a whole.
    #[must_use]
    pub const fn answers(&self) -> &Answers {
        self.run.answers()
    }

    /// The names that the last job listed.
    pub fn listing(&self) -> impl Iterator<Item = &str> {
        self.run.listing()
    }

    /// Whether a turn would do nothing.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.broken || self.run.is_idle() && self.connection.is_quiet()
    }

    /// Sends and receives what can be, up to the next thing worth telling. Nothing means that all
    /// there was has been dealt with, and that the port will be pending when there is more.
    pub fn turn(&mut self, hal: &mut impl Events) -> Option<StoreEvent> {
        if self.is_quiet() {
            return None;
        }
        match self.advance() {
            Ok(event) => {
                if self.connection.take_moved() {
                    hal.notify(self.port);
                }
                event
            }
            Err(reason) => {
                self.broken = true;
                Some(StoreEvent::Broken(reason))
            }
        }
    }

    fn advance(&mut self) -> Result<Option<StoreEvent>, Broken> {
        // Replies alone do not end a turn, and a job has so many of them; what comes after the last
        // is its result.
        for _ in 0..=job::REQUESTS {
            self.connection.flush()?;
            while self.connection.is_free()
                && let Some((request, transaction)) = self.run.request()
            {
                self.connection.ask(&request, transaction);
                self.run.asked();
                self.connection.flush()?;
            }
            if let Some(result) = self.run.take_result() {
                return Ok(Some(StoreEvent::Done(result)));
            }
            match self.connection.receive()? {
                None => break,
                Some(Incoming::Watch(event)) => return Ok(Some(event)),
                Some(Incoming::Reply(reply)) => self.run.reply(reply)?,
            }
        }
        Ok(None)
    }
}
