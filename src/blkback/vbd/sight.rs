//! What a virtual disk makes of what it sees: of its directory, of its frontend's, of its own
//! writes done or failed. See the module above for the states.

use core::fmt;
use core::time::Duration;

use super::{
    DWELL, DWELL_MEMORY, DWELL_MOST, Errand, Hold, LINGER, Look, Neighbour, RETRY_MOST, Served, State, Task,
    Then, Vbd,
};
use crate::blkback::connection::Connection;
use crate::blkback::handshake::{DeviceId, Ours, Terms, Theirs, Unserved, Wish};
use crate::blkback::link::Endpoint;
use crate::blkback::requests::Service;
use crate::blkback::reserve::Shortage;
use crate::hal::Hal;
use crate::limits;
use crate::report::GuestTarget;
use crate::units::Instant;
use crate::volume::{NameError, Volume, VolumeName, Volumes};
use crate::wire::xenbus::{self, Answer, StoreError, XenbusState};

const ASKED: &str = "asked by the toolstack";
const CLOSED: &str = "its frontend closed";
const GONE: &str = "its frontend is gone";

/// Why a device is not served.
enum Refusal<'a> {
    /// The node `frontend-id` contradicts the path, which only dom0 can have written.
    Guest,
    TooLong,
    Unreadable,
    Name(NameError<'a>),
    /// The volume of that name shares blocks with what another device has.
    InUse(VolumeName, Hold),
    /// The volume of that name is not the one that the device was served from.
    Another(VolumeName),
    Short(Shortage),
    Nodes,
    Watches,
    Full,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest => f.write_str("its frontend-id is not the guest it is for"),
            Self::TooLong => f.write_str("its target is too long"),
            Self::Unreadable => f.write_str("its target cannot be read"),
            Self::Name(error) => error.fmt(f),
            Self::InUse(name, by) => {
                let purpose = if by.writable { "writing" } else { "reading" };
                let Hold { id, name: theirs, .. } = by;
                write!(f, "{name} is in use for {purpose} by guest {} (vbd {id} {theirs})", id.guest)
            }
            Self::Another(name) => write!(f, "{name} is another disk than before; detach this device"),
            Self::Short(shortage) => shortage.fmt(f),
            Self::Nodes => quota(f, "nodes", "quota-maxentity"),
            Self::Watches => quota(f, "watches", "quota-maxwatch"),
            Self::Full => write!(f, "{} devices are attached, the most this build serves", limits::VBDS),
        }
    }
}

/// A quota of ours is used up: what it counts, in C xenstored's words, and oxenstored's setting.
fn quota(f: &mut fmt::Formatter<'_>, what: &str, setting: &str) -> fmt::Result {
    write!(f, "xenstore {what}: this domain's quota is used up; raise {setting} in oxenstored.conf, ")?;
    write!(f, "or with C xenstored run xenstore-control quota set {what} N")
}

/// The volume that the toolstack wants, if no other device stands in the way.
fn resolve<'a>(
    id: DeviceId,
    wish: &'a Wish,
    volumes: &'a Volumes,
    others: impl Iterator<Item = Neighbour>,
) -> Result<(VolumeName, Volume), Refusal<'a>> {
    if wish.frontend_id != Some(u32::from(id.guest.0)) {
        return Err(Refusal::Guest);
    }
    let (name, volume) = match &wish.target {
        Ok(target) => volumes.find(target, wish.writable).map_err(Refusal::Name)?,
        Err(StoreError::TooLong) => return Err(Refusal::TooLong),
        Err(_) => return Err(Refusal::Unreadable),
    };
    let mut holds = others.filter_map(|other| other.hold);
    match holds.find(|other| other.excludes(&volume, wish.writable)) {
        Some(other) => Err(Refusal::InUse(name, other)),
        None => Ok((name, volume)),
    }
}

impl Vbd {
    /// Our directory as it is now, or that it is gone.
    pub(super) fn see_ours(
        &mut self,
        ours: Option<Ours>,
        now: Instant,
        hal: &mut impl Hal,
        volumes: &Volumes,
        others: impl Iterator<Item = Neighbour> + Clone,
    ) {
        let Some(ours) = ours else { return self.lose("its directory is gone") };
        match self.state {
            State::Found => self.begin(ours, now, hal, volumes, others),
            State::Doing(_) if self.is_new() => self.begin(ours, now, hal, volumes, others),
            State::Dwelling { .. } | State::InitWait | State::Connected | State::Closing => {
                self.see_ours_open(&ours);
            }
            State::Closed | State::Lingering { .. } => self.see_ours_closed(&ours, now),
            // What is being done either holds, or starts over because its guard did not.
            State::Doing(_) | State::Draining { .. } | State::Finished => {}
        }
    }

    /// The frontend's directory as it is now.
    pub(super) fn see_theirs(&mut self, theirs: Theirs) {
        match theirs {
            Theirs::Starting | Theirs::Closing | Theirs::Closed | Theirs::Gone => self.known = None,
            Theirs::Ready(_) | Theirs::Other => {}
        }
        match self.state {
            State::InitWait => match theirs {
                Theirs::Ready(terms) => self.connect(terms),
                Theirs::Gone => self.end_alone(),
                Theirs::Closing | Theirs::Closed => self.end(CLOSED),
                Theirs::Starting | Theirs::Other => {}
            },
            State::Connected => match theirs {
                // One that was resumed may take our state of before for the answer to its new ring.
                Theirs::Ready(Ok(terms)) if self.moved_to(terms) => {
                    self.drain(Then::Offer);
                }
                Theirs::Ready(_) | Theirs::Other => {}
                Theirs::Starting => self.drain(Then::Offer),
                Theirs::Closing => self.announce("its frontend is closing"),
                Theirs::Closed => self.end(CLOSED),
                Theirs::Gone => self.end_alone(),
            },
            State::Closing => match theirs {
                Theirs::Gone => self.end_alone(),
                Theirs::Closing | Theirs::Closed | Theirs::Starting => self.end(CLOSED),
                Theirs::Ready(_) | Theirs::Other => {}
            },
            State::Closed => match theirs {
                Theirs::Starting => self.state = State::Found,
                // As mini-os and GRUB start: what was closed before is ready again. One that never
                // closed, and says the same as before, was given up.
                Theirs::Ready(Ok(terms)) if self.known != Some(terms) => self.state = State::Found,
                Theirs::Ready(_) | Theirs::Other | Theirs::Closing | Theirs::Closed | Theirs::Gone => {}
            },
            State::Draining { .. } if theirs == Theirs::Gone => self.abandon(),
            State::Found
            | State::Doing(_)
            | State::Dwelling { .. }
            | State::Draining { .. }
            | State::Lingering { .. }
            | State::Finished => {}
        }
    }

    /// What was to be done was done, unless the answers say otherwise.
    pub(super) fn task_done(
        &mut self,
        task: Task,
        now: Instant,
        hal: &mut impl Hal,
        answers: &[Answer],
    ) -> Result<(), StoreError> {
        match task {
            Task::Subscribe => {
                // Without a guard a step's failure is in its answer alone.
                answers.first().map_or(Ok(()), |answer| answer.as_ref().map(drop).map_err(|e| *e))?;
                self.watching = true;
                self.state = State::Doing(Task::Offer);
            }
            Task::Offer => {
                self.show(XenbusState::InitWait, "offered");
                self.state = State::Dwelling { until: now + self.next_dwell(now) };
            }
            Task::Join => self.join(answers, hal),
            Task::Connect => {
                self.show(XenbusState::Connected, "its frontend is ready");
                self.state = State::Connected;
            }
            Task::AnnounceClosing => {
                self.show(XenbusState::Closing, self.why.clone());
                self.drain(Then::Close);
            }
            Task::AnnounceClosed => {
                self.show(XenbusState::Closed, self.why.clone());
                self.state = State::Closed;
                self.look = Look::Ours;
            }
            Task::Remove => self.lose("detached"),
            Task::RemoveRefused => {
                self.shown = XenbusState::Unknown;
                self.drain(Then::Leave);
            }
            Task::Unsubscribe => self.watching = false,
        }
        Ok(())
    }

    /// A job was not done.
    pub(super) fn trouble(&mut self, errand: Errand, error: StoreError, now: Instant) {
        match error {
            StoreError::Gone => self.drain(Then::Start),
            StoreError::Quota if errand == Errand::Task(Task::Subscribe) => {
                self.not_offered(Refusal::Watches, now)
            }
            StoreError::Quota if errand == Errand::Task(Task::Offer) => self.not_offered(Refusal::Nodes, now),
            StoreError::Quota
            | StoreError::NotFound
            | StoreError::Denied
            | StoreError::Again
            | StoreError::TooLong
            | StoreError::Malformed
            | StoreError::Other => {
                // A look that failed is still due.
                self.look = Look::Ours;
                self.retry_at = Some(now + self.retry_pause);
                self.retry_pause = (self.retry_pause * 2).min(RETRY_MOST);
            }
        }
    }

    /// Closes because of what the frontend did or the disk is; the reason is left in the error node.
    pub(super) fn fail(&mut self, reason: impl fmt::Display) {
        let reason = xenbus::cut(reason);
        self.complaint = Some(reason.clone());
        if self.shown == XenbusState::Closing {
            self.end(&reason);
        } else {
            self.announce(&reason);
        }
    }

    /// There is no disk behind the device any more: it closes, if it was ever offered.
    pub(super) fn leave(&mut self, reason: &str) {
        match self.state {
            State::Doing(Task::Subscribe | Task::Offer) if self.is_new() => self.refuse(reason),
            State::Doing(Task::Subscribe | Task::Offer | Task::Join | Task::Connect)
            | State::Dwelling { .. }
            | State::InitWait
            | State::Connected
            | State::Closing
            | State::Draining { then: Then::Offer } => self.fail(reason),
            State::Found
            | State::Doing(
                Task::AnnounceClosing
                | Task::AnnounceClosed
                | Task::Remove
                | Task::RemoveRefused
                | Task::Unsubscribe,
            )
            | State::Draining { then: Then::Close | Then::Start | Then::Leave }
            | State::Closed
            | State::Lingering { .. }
            | State::Finished => {}
        }
    }

    /// A directory that is looked at for the first time, or again from scratch.
    fn begin(
        &mut self,
        ours: Ours,
        now: Instant,
        hal: &mut impl Hal,
        volumes: &Volumes,
        others: impl Iterator<Item = Neighbour> + Clone,
    ) {
        match ours.state {
            XenbusState::Closing => {
                self.show(XenbusState::Closing, ASKED);
                self.end("it was not connected");
            }
            XenbusState::Closed if !ours.online => {
                self.shown = XenbusState::Closed;
                self.state = State::Lingering { until: now + LINGER };
            }
            XenbusState::Initialising | XenbusState::InitWait | XenbusState::Closed => {
                if ours.state == XenbusState::Initialising {
                    (self.offered, self.mark) = (None, None);
                    self.reserve.count_anew(now);
                }
                self.shown = ours.state;
                self.served = None;
                let barred = if self.barred { Err(Refusal::Full) } else { Ok(()) };
                let found = barred.and_then(|()| resolve(self.id, &ours.wish, volumes, others.clone()));
                let found = found.and_then(|(name, volume)| {
                    let is_same = self.mark.is_none() || self.mark == volumes.mark(&volume);
                    if is_same { Ok((name, volume)) } else { Err(Refusal::Another(name)) }
                });
                let shares = others.map(|other| other.share);
                let reserved = |(name, volume)| {
                    let (guest, discards) = (self.id.guest, ours.wish.discards(&volume).is_some());
                    let service = Service { guest, volume, read_only: !ours.wish.writable, discards };
                    let filled = self.reserve.fill(hal, service, shares, now);
                    filled.map(|()| (name, volume)).map_err(Refusal::Short)
                };
                match found.and_then(reserved) {
                    Ok((name, volume)) => {
                        // It may have been refused before, and looked at again since.
                        (self.complaint, self.complaint_waits) = (None, false);
                        self.mark = volumes.mark(&volume);
                        self.served = Some(Served { name, volume, wish: ours.wish });
                        let task = if self.watching { Task::Offer } else { Task::Subscribe };
                        self.state = State::Doing(task);
                    }
                    Err(refusal) => self.not_offered(refusal, now),
                }
            }
            XenbusState::Unknown
            | XenbusState::Initialised
            | XenbusState::Connected
            | XenbusState::Reconfiguring
            | XenbusState::Reconfigured => {
                self.shown = ours.state;
                self.fail("it was left in a state that is not ours");
            }
        }
    }

    fn see_ours_open(&mut self, ours: &Ours) {
        if self.replaced(ours) {
            return;
        }
        if ours.state == XenbusState::Closing && self.shown != XenbusState::Closing {
            self.show(XenbusState::Closing, ASKED);
            if self.connection.is_some() {
                self.state = State::Closing;
            } else {
                self.end("it was not connected");
            }
        } else if ours.state != XenbusState::Closing && !ours.online {
            // It was detached while it was closed, for which libxl writes no state, and was just
            // being offered again.
            self.announce(ASKED);
        }
    }

    fn see_ours_closed(&mut self, ours: &Ours, now: Instant) {
        if self.replaced(ours) {
            return;
        }
        if ours.state == XenbusState::Closing {
            self.show(XenbusState::Closing, ASKED);
            self.end("it was not connected");
        } else if ours.online {
            self.state = State::Closed;
        } else if self.state == State::Closed {
            self.state = State::Lingering { until: now + LINGER };
        }
    }

    /// Starts over when our directory is another device's: libxl removes and makes it in one
    /// transaction, so it may never be seen absent.
    fn replaced(&mut self, ours: &Ours) -> bool {
        let same_wish = self.served.as_ref().is_none_or(|served| served.wish == ours.wish);
        let replaced = ours.state == XenbusState::Initialising || !same_wish;
        if replaced {
            self.show(ours.state, "attached anew");
            self.drain(Then::Start);
        }
        replaced
    }

    fn connect(&mut self, terms: Result<Terms, Unserved>) {
        self.known = terms.ok();
        let offered = self.reserve.offers().queues;
        let within = |terms: Terms| if terms.queues <= offered { Ok(terms) } else { Err(Unserved::Queues) };
        match terms.and_then(within) {
            Ok(terms) => {
                self.connection = Some(Connection::new(self.id.guest, terms, &mut self.reserve));
                self.state = State::Doing(Task::Join);
            }
            Err(unserved) => self.fail(unserved),
        }
    }

    fn join(&mut self, answers: &[Answer], hal: &mut impl Hal) {
        let Some(connection) = &mut self.connection else { return };
        let endpoint = match Endpoint::parse(&connection.terms, answers) {
            Ok(Some(endpoint)) => endpoint,
            // It may start again, or be gone: the next look tells.
            Ok(None) => return self.drain(Then::Offer),
            Err(unserved) => return self.fail(unserved),
        };
        match connection.join(hal, &endpoint, &mut self.reserve) {
            Ok(()) => {
                self.changes += 1;
                if connection.next_ring().is_some() {
                    return;
                }
                if self.terms_are_old {
                    self.drain(Then::Offer);
                } else {
                    self.state = State::Doing(Task::Connect);
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Whether the frontend's rings are not those that are connected.
    fn moved_to(&self, terms: Terms) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.terms != terms)
    }

    /// It cannot be offered. Once it was, the toolstack has its answer and only the guest looks: without our directory
    /// it would find no state at all.
    fn not_offered(&mut self, refusal: Refusal<'_>, now: Instant) {
        if self.shown == XenbusState::Closed {
            self.stay_closed(refusal, now);
        } else if self.offered.is_some() {
            self.fail(refusal);
        } else {
            self.refuse(refusal);
        }
    }

    /// Not served, and the toolstack is to learn it at once: its wait ends when our directory goes.
    fn refuse(&mut self, reason: impl fmt::Display) {
        let reason = xenbus::cut(reason);
        // A late event makes it look at what it has refused already.
        let said = self.state == State::Doing(Task::RemoveRefused) && self.why == reason;
        if !said {
            log::warn!("vbd {}: refused: {reason}", self.id);
            self.complaint = Some(reason.clone());
            self.complaint_waits = false;
            self.why = reason;
        }
        self.state = State::Doing(Task::RemoveRefused);
    }

    /// Not offered again, and still closed for a guest that has not looked since. What the guest says next is looked at
    /// after a pause, as if this had been an offer.
    fn stay_closed(&mut self, reason: impl fmt::Display, now: Instant) {
        let reason = xenbus::cut(reason);
        if self.why != reason {
            log::warn!(target: &GuestTarget::new(self.id.guest), "{self}: not offered again: {reason}");
            self.complaint = Some(reason.clone());
            self.why = reason;
        }
        self.state = State::Closed;
        self.retry_at = Some(now + self.next_dwell(now));
        // Its frontend asks for what cannot be done; when it says something new, there is another look.
        if self.look == Look::Theirs {
            self.look = Look::Nothing;
        }
    }

    /// Closes, and says so first.
    fn announce(&mut self, why: &str) {
        self.stop();
        self.why = xenbus::cut(why);
        self.state = State::Doing(Task::AnnounceClosing);
    }

    /// Closes.
    fn end(&mut self, why: &str) {
        self.drain(Then::Close);
        self.why = xenbus::cut(why);
    }

    /// The frontend is gone, and waits for no answers.
    fn end_alone(&mut self) {
        self.end(GONE);
        self.abandon();
    }

    /// Our directory is gone.
    fn lose(&mut self, why: &str) {
        if self.shown != XenbusState::Unknown {
            log::info!(target: &GuestTarget::new(self.id.guest), "{self}: {:?} -> removed: {why}", self.shown);
            self.shown = XenbusState::Unknown;
        }
        self.drain(Then::Leave);
        self.abandon();
    }

    fn abandon(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.requests.abandon();
        }
    }

    /// Takes no more requests, and goes on when none is in flight.
    fn drain(&mut self, then: Then) {
        self.stop();
        // Whoever removed the nodes that a reason waited for.
        self.complaint_waits = false;
        self.state = State::Draining { then };
    }

    /// Takes no more requests.
    pub(super) fn stop(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.requests.close();
        }
    }

    /// Our state node is now another.
    fn show(&mut self, to: XenbusState, why: impl fmt::Display) {
        log::info!(target: &GuestTarget::new(self.id.guest), "{self}: {:?} -> {to:?}: {why}", self.shown);
        self.shown = to;
    }

    /// How long to stay at InitWait this time, or closed where that is the answer.
    fn next_dwell(&mut self, now: Instant) -> Duration {
        let recent = self.offered.is_some_and(|last| now.since(last) < DWELL_MEMORY);
        self.dwell = if recent { (self.dwell * 2).min(DWELL_MOST) } else { DWELL };
        self.offered = Some(now);
        self.dwell
    }
}
