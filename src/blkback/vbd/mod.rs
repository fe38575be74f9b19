//! One virtual disk's life, from the directory that the toolstack makes to its end, as libxl 4.17
//! drives a backend in another domain than its own:
//!
//! ```text
//! Found -> Subscribe -> Offer -> Dwelling -> InitWait -> Connect -> Connected -> Closing
//!   |                    ^                      |                       |           |
//!   +-> RemoveRefused    |                      +-> Draining <----------+-----------+
//!                        |                              |
//!                        +--- Closed <- AnnounceClosed <+
//!                               +-> Lingering -> Remove -> Unsubscribe -> Finished
//! ```
//!
//! Nodes are looked at again whenever something may have changed, and what they say now is what
//! counts: events carry nothing, come late, and several at once. Every write holds only while our
//! state node is what we last knew, so a directory that was removed or made anew is never touched.
//! `domain` carries the jobs, and serves [`Vbd::requests_mut`] whenever there is one.
//!
//! Here is what a device is asked and what it asks for; what it makes of what it sees is in
//! `sight`.

mod sight;
#[cfg(test)]
mod tests;

use core::fmt;
use core::time::Duration;

use super::connection::Connection;
use super::counters::Counters;
use super::handshake::{self, DeviceId, Ours, Terms, Theirs, Wish};
use super::link::Endpoint;
use super::requests::Requests;
use super::reserve::{Reserve, Share};
use crate::hal::Hal;
use crate::units::{Instant, Port};
use crate::volume::{Mark, Volume, VolumeName, Volumes};
use crate::wire::ring::FrontendFault;
use crate::wire::xenbus::{self, Answer, Job, StoreError, Value, XenbusState};

/// How long the state stays at InitWait: libxl waits for exactly that, and reads the node some
/// time after it was told of a change. So long also rests a device that could not be offered again.
const DWELL: Duration = Duration::from_millis(200);

/// The dwell doubles up to this while a frontend keeps starting again, so that no guest decides how
/// much is written and logged here.
const DWELL_MOST: Duration = Duration::from_millis(800);

/// An offer so far back does not count as such.
const DWELL_MEMORY: Duration = Duration::from_secs(60);

/// How long a closed device's directory stays: libxl has to read state 6 before it sees the
/// directory go, and gives up on either after 10 s.
const LINGER: Duration = Duration::from_secs(1);

/// The pause after a failure of xenstore doubles from the first to the second.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_millis(6400);

/// Where a device is. What the toolstack and the guest see of it is the state node alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// There is a directory; what it says is not known.
    Found,
    /// Something is to be written before anything else.
    Doing(Task),
    /// InitWait, and no further yet.
    Dwelling { until: Instant },
    /// InitWait, until the frontend is ready.
    InitWait,
    /// Serving.
    Connected,
    /// The toolstack asked us to close: serving until the frontend closes or goes.
    Closing,
    /// What the guest asked for is finished, then the connection is given up.
    Draining { then: Then },
    /// Closed, and may be wanted again.
    Closed,
    /// Closed for good, and to be seen so.
    Lingering { until: Instant },
    /// Over.
    Finished,
}

/// What follows when nothing is connected any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The device closes.
    Close,
    /// The device is offered again to a frontend that has started again.
    Offer,
    /// Our directory is not what we knew: it is looked at as a new one.
    Start,
    /// Our directory is gone.
    Leave,
}

/// A change of xenstore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Task {
    /// Watch the frontend.
    Subscribe,
    /// Say what the frontend needs, and InitWait.
    Offer,
    /// Read where the frontend's next ring is.
    Join,
    /// Say Connected.
    Connect,
    /// Say Closing.
    AnnounceClosing,
    /// Say Closed.
    AnnounceClosed,
    /// Remove our directory after a life.
    Remove,
    /// Remove our directory, which was never served.
    RemoveRefused,
    /// End the watch.
    Unsubscribe,
}

/// What is to be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    /// Nothing has changed.
    Nothing,
    /// Our directory, and the frontend's after it.
    Ours,
    /// The frontend's directory.
    Theirs,
}

/// A job under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Errand {
    LookOurs,
    LookTheirs,
    /// Leave the reason of a failure for the administrator to read.
    Complain,
    Task(Task),
}

/// What makes a device one that can be served.
#[derive(Debug)]
struct Served {
    wish: Wish,
    name: VolumeName,
    volume: Volume,
}

/// A volume that a device has, as others see it that want one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hold {
    id: DeviceId,
    name: VolumeName,
    volume: Volume,
    writable: bool,
}

impl Hold {
    /// Whether a device must not have that volume meanwhile: one writes blocks that both have.
    fn excludes(&self, volume: &Volume, writable: bool) -> bool {
        (self.writable || writable) && self.volume.overlaps(volume)
    }
}

/// What another device has, as one sees it that wants to be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    hold: Option<Hold>,
    share: Share,
}

/// One virtual block device.
#[derive(Debug)]
pub struct Vbd {
    id: DeviceId,
    state: State,
    /// Our state node, as last read or written.
    shown: XenbusState,
    served: Option<Served>,
    /// Which volume it was served from since the toolstack made the device: no other is to take its place.
    mark: Option<Mark>,
    connection: Option<Connection>,
    /// Counts the changes of the connection's rings.
    changes: u32,
    /// What the frontend said last when it was ready, until it is seen to close or to start again.
    known: Option<Terms>,
    /// What the next connection needs; nothing before the device is offered and when it is over.
    reserve: Reserve,
    /// There is no room for it: it is only here to be refused.
    barred: bool,
    look: Look,
    /// The frontend has written its state since what it says was read: what else is read of it may not go together
    /// with that.
    terms_are_old: bool,
    errand: Option<Errand>,
    /// Whether the watch on the frontend's state is set.
    watching: bool,
    /// Why the device closes.
    why: Value,
    /// What is still to be written to the error node.
    complaint: Option<Value>,
    /// There is no node left for it before the device's own are gone, if it is refused.
    complaint_waits: bool,
    fault: Option<FrontendFault>,
    /// Why there is no disk behind it any more.
    withdrawn: Option<Value>,
    dwell: Duration,
    /// When it was offered last, or was to be.
    offered: Option<Instant>,
    /// Nothing is read or written before.
    retry_at: Option<Instant>,
    retry_pause: Duration,
}

impl Vbd {
    /// The device of the directory `backend/vbd/GUEST/DEVICE` below our home. [`Vbd::next_job`] is
    /// not to be asked before the volumes are known.
    #[must_use]
    pub const fn new(id: DeviceId) -> Self {
        Self {
            id,
            state: State::Found,
            shown: XenbusState::Unknown,
            served: None,
            mark: None,
            connection: None,
            changes: 0,
            known: None,
            reserve: Reserve::NOTHING,
            barred: false,
            look: Look::Nothing,
            terms_are_old: false,
            errand: None,
            watching: false,
            why: Value::new(),
            complaint: None,
            complaint_waits: false,
            fault: None,
            withdrawn: None,
            dwell: DWELL,
            offered: None,
            retry_at: None,
            retry_pause: RETRY_FIRST,
        }
    }

    /// A device that there is no room for, to be refused with that reason.
    #[must_use]
    pub fn barred(id: DeviceId) -> Self {
        Self { barred: true, ..Self::new(id) }
    }

    /// Which device it is.
    #[must_use]
    pub const fn id(&self) -> DeviceId {
        self.id
    }

    /// The frontend has written its state, or its directory went: the watch with the token
    /// `fe/GUEST/DEVICE` fired.
    pub fn notice_frontend(&mut self) {
        self.terms_are_old = true;
        self.notice();
    }

    /// Something may have changed: below our directory, or that there is one.
    pub fn notice(&mut self) {
        self.look = Look::Ours;
        if self.state == State::Finished {
            self.state = State::Found;
        }
    }

    /// There are volumes that were not there before: a device that could not be offered again perhaps can.
    pub fn notice_volumes(&mut self) {
        if self.state == State::Closed && self.served.is_none() {
            self.notice();
        }
    }

    /// The frontend broke a ring: this device closes.
    pub fn fault(&mut self, fault: FrontendFault) {
        if let Some(connection) = &mut self.connection {
            connection.requests.close();
            self.fault = Some(fault);
        }
    }

    /// This controller is going away: a device that is served from it closes, also without its
    /// frontend. No new device may find the controller's volumes any more.
    pub fn withdraw(&mut self, controller: usize, reason: impl fmt::Display) {
        if self.served.as_ref().is_some_and(|served| served.volume.disk.controller == controller) {
            self.stop();
            self.withdrawn = Some(xenbus::cut(reason));
        }
    }

    /// The requests of the connected frontend, also while they drain.
    #[must_use]
    pub fn requests_mut(&mut self) -> Option<&mut Requests> {
        self.connection.as_mut().map(|connection| &mut *connection.requests)
    }

    /// The event channels of the connected rings.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        self.connection.iter().flat_map(Connection::ports)
    }

    /// Another number each time that [`Vbd::ports`] has changed.
    #[must_use]
    pub const fn changes(&self) -> u32 {
        self.changes
    }

    /// What was done since the device was attached, while there is one.
    #[must_use]
    pub fn counters(&self) -> Option<&Counters> {
        let lent = self.connection.as_ref().map(|connection| &connection.requests);
        lent.or(self.reserve.requests.as_ref()).map(|requests| &requests.means().counters)
    }

    /// Requests that were taken and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.connection.as_ref().map_or(0, |connection| connection.requests.in_flight())
    }

    /// The volume it is served from, if one was found.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeName> {
        self.served.as_ref().map(|served| served.name)
    }

    /// Its state, as the toolstack and the guest see it.
    #[must_use]
    pub const fn shown(&self) -> XenbusState {
        self.shown
    }

    /// What it has, as others see it.
    #[must_use]
    pub fn as_neighbour(&self) -> Neighbour {
        Neighbour { hold: self.hold(), share: self.reserve.share() }
    }

    /// The volume that is this device's, from when it was resolved until the device is closed for
    /// good and nothing is connected. While it may be opened again, the volume is kept for it.
    fn hold(&self) -> Option<Hold> {
        let Served { wish, name, volume } = self.served.as_ref()?;
        let is_open = match self.state {
            State::Found
            | State::Doing(Task::Subscribe | Task::Offer | Task::Join | Task::Connect)
            | State::Doing(Task::AnnounceClosing | Task::AnnounceClosed)
            | State::Dwelling { .. }
            | State::InitWait
            | State::Connected
            | State::Closing
            | State::Closed
            | State::Draining { then: Then::Close | Then::Offer } => true,
            State::Doing(Task::Remove | Task::RemoveRefused | Task::Unsubscribe)
            | State::Draining { then: Then::Start | Then::Leave }
            | State::Lingering { .. }
            | State::Finished => self.connection.is_some(),
        };
        is_open.then_some(Hold { id: self.id, name: *name, volume: *volume, writable: wish.writable })
    }

    /// Whether the device is over: our directory is gone, nothing is mapped or watched.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// Whether the job under way leaves a reason in the error node.
    #[must_use]
    pub fn is_complaining(&self) -> bool {
        self.errand == Some(Errand::Complain)
    }

    /// When there is something to do even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let stay = match self.state {
            State::Dwelling { until } | State::Lingering { until } => Some(until),
            State::Found
            | State::Doing(_)
            | State::InitWait
            | State::Connected
            | State::Closing
            | State::Draining { .. }
            | State::Closed
            | State::Finished => None,
        };
        let idle = self.connection.as_ref().and_then(Connection::idle_at);
        [stay, self.retry_at, idle].into_iter().flatten().min()
    }

    /// The xenstore work that is due, if any. [`Vbd::job_done`] is owed for it, and until then
    /// there is no other.
    #[must_use]
    pub fn next_job(&mut self, now: Instant) -> Option<Job> {
        if self.errand.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let errand = self.due()?;
        self.errand = Some(errand);
        match errand {
            // A notice from here on means to look again.
            Errand::LookOurs => self.look = Look::Theirs,
            Errand::LookTheirs => (self.look, self.terms_are_old) = (Look::Nothing, false),
            Errand::Complain | Errand::Task(_) => {}
        }
        Some(self.job(errand))
    }

    /// The job of [`Vbd::next_job`] was done, or not. `others` is what all other devices have.
    pub fn job_done(
        &mut self,
        now: Instant,
        hal: &mut impl Hal,
        volumes: &Volumes,
        others: impl Iterator<Item = Neighbour> + Clone,
        result: Result<(), StoreError>,
        answers: &[Answer],
    ) {
        let Some(errand) = self.errand.take() else { return };
        let result = result.and_then(|()| match errand {
            Errand::LookOurs => {
                Ours::parse(answers).map(|ours| self.see_ours(ours, now, hal, volumes, others))
            }
            Errand::LookTheirs => {
                self.see_theirs(Theirs::parse(answers));
                Ok(())
            }
            // An error node that cannot be written must not keep the device from its end.
            Errand::Complain => Ok(()),
            Errand::Task(task) => self.task_done(task, now, hal, answers),
        });
        match (errand, result) {
            (Errand::Complain, _) if self.must_wait_to_complain(answers) => self.complaint_waits = true,
            (Errand::Complain, _) => self.complaint = None,
            (Errand::LookOurs | Errand::LookTheirs | Errand::Task(_), Ok(())) => {
                self.retry_pause = RETRY_FIRST;
            }
            (Errand::LookOurs | Errand::LookTheirs | Errand::Task(_), Err(error)) => {
                self.trouble(errand, error, now);
            }
        }
        self.turn(now, hal);
    }

    /// Does what time and the rings' progress allow.
    pub fn turn(&mut self, now: Instant, hal: &mut impl Hal) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
        if let Some(connection) = &mut self.connection {
            connection.unmap_idle(hal, now);
        }
        // What is being written takes effect first.
        if !matches!(self.errand, Some(Errand::Task(_)))
            && let Some(reason) = self.withdrawn.take()
        {
            self.leave(&reason);
        }
        match self.state {
            State::Dwelling { until } if now >= until => {
                self.state = State::InitWait;
                self.look = Look::Ours;
            }
            State::Lingering { until } if now >= until => self.state = State::Doing(Task::Remove),
            State::Connected | State::Closing => {
                if let Some(fault) = self.fault.take() {
                    self.fail(fault);
                }
            }
            State::Found
            | State::Doing(_)
            | State::Dwelling { .. }
            | State::InitWait
            | State::Draining { .. }
            | State::Closed
            | State::Lingering { .. }
            | State::Finished => {}
        }
        if let State::Draining { then } = self.state
            && self.disconnect(hal)
        {
            self.state = match then {
                Then::Close => State::Doing(Task::AnnounceClosed),
                Then::Offer => State::Doing(Task::Offer),
                Then::Start => State::Found,
                Then::Leave => State::Doing(Task::Unsubscribe),
            };
            // What is not ours any more is not to be held again by a look at our directory.
            if matches!(then, Then::Start | Then::Leave) {
                self.served = None;
            }
        }
        if self.state == State::Doing(Task::Unsubscribe) && !self.watching && self.complaint.is_none() {
            // A notice since the directory went may be of one that was made anew.
            if self.look == Look::Ours {
                self.state = State::Found;
            } else {
                self.reserve.empty(hal);
                self.state = State::Finished;
            }
        }
    }

    /// Whether the toolstack has made the device and was not answered.
    fn is_new(&self) -> bool {
        self.shown == XenbusState::Initialising
    }

    /// Whether the reason of a refusal found no room that the device's own nodes take up.
    fn must_wait_to_complain(&self, answers: &[Answer]) -> bool {
        let refused = self.state == State::Doing(Task::RemoveRefused);
        refused && !self.complaint_waits && answers.contains(&Err(StoreError::Quota))
    }

    /// The job that the state asks for.
    fn due(&self) -> Option<Errand> {
        let waits = self.complaint_waits && self.state == State::Doing(Task::RemoveRefused);
        if self.complaint.is_some() && !waits {
            return Some(Errand::Complain);
        }
        match self.state {
            State::Found => Some(Errand::LookOurs),
            // The state alone does not tell a new directory from the one that was looked at.
            State::Doing(_) if self.is_new() && self.look == Look::Ours => Some(Errand::LookOurs),
            State::Doing(task) => Some(Errand::Task(task)),
            State::InitWait | State::Connected | State::Closing | State::Closed => match self.look {
                Look::Nothing => None,
                Look::Ours => Some(Errand::LookOurs),
                Look::Theirs => Some(Errand::LookTheirs),
            },
            State::Dwelling { .. } | State::Lingering { .. } => match self.look {
                Look::Nothing | Look::Theirs => None,
                Look::Ours => Some(Errand::LookOurs),
            },
            // Whoever goes away meanwhile waits for no answers.
            State::Draining { then: Then::Close | Then::Offer } if self.connection.is_some() => {
                match self.look {
                    Look::Nothing => None,
                    Look::Ours => Some(Errand::LookOurs),
                    Look::Theirs => Some(Errand::LookTheirs),
                }
            }
            State::Draining { .. } | State::Finished => None,
        }
    }

    fn job(&self, errand: Errand) -> Job {
        let guarded = || Job::new(&self.id.home()).while_state(&[self.shown]);
        match errand {
            Errand::LookOurs => Ours::job(self.id),
            Errand::LookTheirs => Theirs::job(self.id),
            Errand::Complain => {
                Job::new(&self.id.errors()).write("error", self.complaint.as_deref().unwrap_or_default())
            }
            Errand::Task(Task::Subscribe) => Job::new(&self.id.frontend()).watch("state", &self.id.token()),
            Errand::Task(Task::Unsubscribe) => {
                Job::new(&self.id.frontend()).unwatch("state", &self.id.token())
            }
            Errand::Task(Task::Offer) => {
                let served = self.served.as_ref().expect("what is offered was resolved");
                handshake::offer(self.id, self.shown, &served.wish, &served.volume, self.reserve.offers())
            }
            Errand::Task(Task::Join) => {
                let connection = self.connection.as_ref().expect("there is a connection to join");
                let ring = connection.next_ring().expect("a ring is to be joined");
                Endpoint::job(self.id, &connection.terms, ring)
            }
            Errand::Task(Task::Connect) => guarded().write_state(XenbusState::Connected),
            Errand::Task(Task::AnnounceClosing) => guarded().write_state(XenbusState::Closing),
            Errand::Task(Task::AnnounceClosed) => guarded().write_state(XenbusState::Closed),
            Errand::Task(Task::Remove | Task::RemoveRefused) => guarded().remove(""),
        }
    }

    /// Gives the connection up once nothing of it is in flight; true when there is none.
    fn disconnect(&mut self, hal: &mut impl Hal) -> bool {
        if let Some(connection) = self.connection.take_if(|connection| connection.requests.in_flight() == 0) {
            self.changes += 1;
            connection.close(hal, &mut self.reserve);
        }
        if self.connection.is_none() {
            self.fault = None;
        }
        self.connection.is_none()
    }
}

impl fmt::Display for Vbd {
    /// `vbd 5/51728 nvme0n1`, the volume only where it is known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vbd {}", self.id)?;
        self.served.as_ref().map_or(Ok(()), |served| write!(f, " {}", served.name))
    }
}
