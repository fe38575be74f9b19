//! Xen and xenstore as a check uses them: calls that wait, but never longer than [`PATIENCE`].

use core::fmt::{self, Write};
use core::time::Duration;

use heapless::{String, Vec};
use platter::hal::{Clock as _, Events as _};
use platter::platform::xen::{Given, Xen};
use platter::units::{Instant, Port};
use platter::wire::xenbus::{Answers, Job, Node, Path, StoreError, Value, XenbusState};
use platter::xenstore::{Store, StoreEvent};

use crate::verdict::{End, Verdict};

/// How long anything may take: more than a backend lets a frontend wait that connects too often.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of a line of output.
const LINE: usize = 512;
/// Ports that can be pending at once: one a queue, the store's, one to spare.
const PORTS: usize = 32;

/// The domain that the suite runs in.
pub(crate) struct Host {
    /// Event channels, grants, memory.
    pub(crate) xen: Xen,
    store: Store,
    /// Ports whose event has come and was not waited for yet.
    rung: Vec<Port, PORTS>,
    /// A watch has fired.
    changed: bool,
    /// When waits for the backend end, where that is sooner than [`PATIENCE`] says.
    pub(crate) limit: Option<Instant>,
}

impl Host {
    #[inline(never)]
    pub(crate) fn new(xen: Xen, given: Given) -> Self {
        let store = Store::new(given.store, given.store_port);
        Self { xen, store, rung: Vec::new(), changed: false, limit: None }
    }

    pub(crate) fn now(&mut self) -> Instant {
        self.xen.now()
    }

    /// By when something that the backend is to do from now on must have been done.
    pub(crate) fn deadline(&mut self) -> Instant {
        let deadline = self.now() + PATIENCE;
        self.limit.map_or(deadline, |limit| limit.min(deadline))
    }

    /// Prints a line on the console. A console that takes nothing for [`PATIENCE`] loses it.
    pub(crate) fn say(&mut self, text: fmt::Arguments<'_>) {
        let mut line = String::<LINE>::new();
        // What does not fit is left out, but never the line's end.
        let _ = write!(line, "{text}");
        line.truncate(LINE - 1);
        let _ = line.push('\n');
        let (mut rest, deadline) = (line.as_bytes(), self.now() + PATIENCE);
        while !rest.is_empty() && self.now() < deadline {
            let taken = self.xen.print(rest);
            rest = &rest[taken..];
            if taken == 0 {
                self.nap(Duration::from_millis(10));
            }
        }
    }

    /// Sleeps for a while, or less when something happens.
    pub(crate) fn nap(&mut self, time: Duration) {
        let until = self.now() + time;
        self.collect();
        self.xen.alive();
        self.xen.wait(Some(until));
    }

    /// Sleeps until the event of `port` has come; false when that takes too long.
    pub(crate) fn wait_event(&mut self, port: Port, deadline: Instant) -> bool {
        loop {
            self.collect();
            if self.take_rung(port) {
                return true;
            }
            if self.now() >= deadline {
                return false;
            }
            self.xen.alive();
            self.xen.wait(Some(deadline));
        }
    }

    fn take_rung(&mut self, port: Port) -> bool {
        let before = self.rung.len();
        self.rung.retain(|other| *other != port);
        self.rung.len() < before
    }

    fn collect(&mut self) {
        while let Some(port) = self.xen.next_pending() {
            if !self.rung.contains(&port) && self.rung.push(port).is_err() {
                // Ports of connections that are over.
                self.rung.clear();
            }
        }
    }

    /// Has xenstore do something.
    ///
    /// # Errors
    /// It does not answer, or makes no sense.
    #[inline(never)]
    pub(crate) fn job(&mut self, job: Job) -> Verdict<Answers> {
        let deadline = self.now() + PATIENCE;
        self.store.start(job);
        loop {
            match self.store.turn(&mut self.xen) {
                Some(StoreEvent::Done(Ok(()))) => return Ok(self.store.answers().clone()),
                Some(StoreEvent::Done(Err(error))) => return Err(refused(error)),
                Some(StoreEvent::Watch { .. }) => self.changed = true,
                Some(StoreEvent::Broken(why)) => return Err(End::fail(format_args!("xenstore: {why}"))),
                None if self.wait_event(self.store.port(), deadline) => {}
                None => return Err(End::fail(format_args!("xenstore does not answer"))),
            }
        }
    }

    /// Reads a node; nothing where it is missing.
    pub(crate) fn read(&mut self, base: &Path, node: &str) -> Verdict<Option<Value>> {
        Ok(self.job(Job::new(base).read(node))?.pop().and_then(Result::ok))
    }

    /// The names below a path.
    pub(crate) fn list(&mut self, base: &Path) -> Verdict<Vec<Node, 16>> {
        self.job(Job::new(base).list(""))?;
        Ok(self.store.listing().take(16).filter_map(|name| Node::try_from(name).ok()).collect())
    }

    /// The state that `device` is in.
    pub(crate) fn state(&mut self, device: &Path) -> Verdict<XenbusState> {
        Ok(self.read(device, "state")?.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
    }

    /// Waits until a watch fires; false when none does.
    pub(crate) fn wait_change(&mut self, deadline: Instant) -> Verdict<bool> {
        loop {
            while let Some(event) = self.store.turn(&mut self.xen) {
                match event {
                    StoreEvent::Watch { .. } => self.changed = true,
                    StoreEvent::Broken(why) => return Err(End::fail(format_args!("xenstore: {why}"))),
                    StoreEvent::Done(_) => {}
                }
            }
            if core::mem::take(&mut self.changed) {
                return Ok(true);
            }
            if !self.wait_event(self.store.port(), deadline) {
                return Ok(false);
            }
        }
    }
}

fn refused(error: StoreError) -> End {
    End::fail(format_args!("xenstore refuses: {error:?}"))
}
