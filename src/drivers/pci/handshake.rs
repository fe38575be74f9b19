//! pcifront's conversation with the toolstack and pciback in xenstore, as libxl 4.17 and Linux's
//! xen-pciback lead it:
//!
//! ```text
//! Subscribing -> Looking -> Offering -> Watching -> Waiting -> Naming -> Sorting -> Connecting
//!                  |  ^                                          ^ ^                    |
//!                Absent                                          | |                 Probing
//!                  ^                                             | |                    |
//!                  +--- Closing <- Leaving <---------------------)-+----------------- Serving
//!                                    +-> Answering -> Reconfiguring
//! ```
//!
//! `xl pci-detach` sets the backend's `state` to 7 and the function's `state-N` to 5; when we
//! have let go of it we say 7, pciback takes it and says 8, and we say 4. `xl pci-attach` does the
//! same with a new `state-N` of 1, which pciback lends us before it says 8. With the last function
//! the toolstack removes both directories, and with the first it makes them; our page and port are
//! offered again then.

use heapless::Vec;

use super::link::Link;
use super::{FRONTEND, Pci, Refusal, TOKEN};
use crate::hal::Hal;
use crate::limits;
use crate::units::DomId;
use crate::wire::pci::Address;
use crate::wire::pciif;
use crate::wire::xenbus::{self, Answer, Job, Path, StoreError, XenbusState};

/// Where each function is, in pciback's order; what it does not say is not known.
pub(super) type Names = Vec<Option<Address>, { limits::PCI_FUNCTIONS }>;

/// Where the conversation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// To watch our directory come and go.
    Subscribing,
    /// To read who the backend is.
    Looking,
    /// There is no backend for us until something changes.
    Absent,
    /// To publish our page and port.
    Offering,
    /// To watch the backend's state.
    Watching,
    /// For the backend to connect; to read its state when that has changed.
    Waiting,
    /// To read where the functions are.
    Naming(Occasion),
    /// To read which of them come and which leave.
    Sorting(Occasion),
    /// To say that we are connected.
    Connecting,
    /// For the new functions to be probed.
    Probing,
    /// Connected; to read the backend's state when that has changed.
    Serving,
    /// For the functions that leave to be let go.
    Leaving(Then),
    /// To say that pciback may have them, or lend us more.
    Answering,
    /// For pciback to have done so.
    Reconfiguring,
    /// To say that we have closed.
    Closing,
}

/// Why the functions are listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Occasion {
    /// pciback has lent us functions.
    Lent,
    /// The toolstack wants something changed.
    Wanted,
}

/// What follows when the functions have left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// pciback may have them.
    Answer,
    /// pciback closes, and so do we.
    Close,
    /// Our directory is another, or gone.
    Look,
}

impl Pci {
    /// Whether the state asks for a job.
    pub(super) fn state_has_job(&self) -> bool {
        match self.state {
            State::Absent | State::Waiting | State::Serving | State::Reconfiguring => self.noticed,
            State::Probing | State::Leaving(_) => false,
            State::Subscribing
            | State::Looking
            | State::Offering
            | State::Watching
            | State::Naming(_)
            | State::Sorting(_)
            | State::Connecting
            | State::Answering
            | State::Closing => true,
        }
    }

    /// The job that the state asks for.
    pub(super) fn job(&mut self) -> Option<Job> {
        let front = || Job::new(&xenbus::path(format_args!("{FRONTEND}")));
        let back = || Job::new(&self.backend);
        match self.state {
            State::Subscribing => Some(front().watch("backend", TOKEN)),
            State::Looking => Some(self.look()),
            State::Offering => {
                let link = self.link.as_ref()?;
                let job = front()
                    .while_state(&[XenbusState::Initialising])
                    .write("pci-op-ref", link.gref.0)
                    .write("event-channel", link.port.0)
                    .write("magic", pciif::MAGIC);
                Some(job.write_state(XenbusState::Initialised))
            }
            State::Watching => Some(back().watch("state", TOKEN)),
            State::Naming(_) => {
                Some(numbers().fold(back().read("num_devs"), |job, n| {
                    job.read(&xenbus::path(format_args!("vdev-{n}")))
                }))
            }
            State::Sorting(_) => {
                let state = |n| xenbus::path(format_args!("state-{n}"));
                Some(numbers().fold(back(), |job, n| job.read(&state(n))))
            }
            State::Connecting => {
                let before = [XenbusState::Initialised, XenbusState::Reconfiguring];
                Some(front().while_state(&before).write_state(XenbusState::Connected))
            }
            State::Answering => {
                let before = [XenbusState::Initialised, XenbusState::Connected];
                Some(front().while_state(&before).write_state(XenbusState::Reconfiguring))
            }
            State::Closing => {
                let before = [XenbusState::Connected, XenbusState::Reconfiguring];
                Some(front().while_state(&before).write_state(XenbusState::Closed))
            }
            State::Absent => {
                self.state = State::Looking;
                Some(self.look())
            }
            State::Waiting | State::Serving | State::Reconfiguring => {
                self.noticed = false;
                Some(back().read("state"))
            }
            State::Probing | State::Leaving(_) => None,
        }
    }

    fn look(&mut self) -> Job {
        // What is noticed from here on means to look again.
        self.noticed = false;
        Job::new(&xenbus::path(format_args!("{FRONTEND}"))).read("backend").read("backend-id")
    }

    /// The state that follows from what became of the job.
    pub(super) fn after_job(
        &mut self,
        hal: &mut impl Hal,
        result: Result<(), StoreError>,
        answers: &[Answer],
    ) -> Result<State, Refusal> {
        let said = |what| move |error| Refusal::Store(what, error);
        match self.state {
            State::Subscribing => {
                read(result, answers, 0).map_err(said("watch device/pci/0"))?;
                Ok(State::Looking)
            }
            State::Looking => {
                let peer = self.looked(result, answers)?;
                self.link_to(hal, peer)?;
                self.refusal = None;
                Ok(State::Offering)
            }
            State::Offering => {
                result.map_err(said("publish the shared page"))?;
                // A watch that is there already may have told of it before.
                self.noticed = self.watching;
                Ok(if self.watching { State::Waiting } else { State::Watching })
            }
            State::Watching => {
                read(result, answers, 0).map_err(said("watch pciback"))?;
                self.watching = true;
                Ok(State::Waiting)
            }
            State::Waiting | State::Serving | State::Reconfiguring => {
                self.backend_is(backend_state(read(result, answers, 0))?)
            }
            State::Naming(occasion) => {
                self.names = self.list(result, answers)?;
                Ok(State::Sorting(occasion))
            }
            State::Sorting(occasion) => {
                result.map_err(said("read the functions' states"))?;
                Ok(self.sort(occasion, answers))
            }
            State::Connecting => {
                result.map_err(said("connect"))?;
                Ok(State::Probing)
            }
            State::Answering => {
                result.map_err(said("let pciback reconfigure"))?;
                Ok(State::Reconfiguring)
            }
            State::Closing => Ok(State::Absent),
            State::Absent | State::Probing | State::Leaving(_) => {
                unreachable!("no job is out in these states")
            }
        }
    }

    /// Goes on when the functions that are waited for are known, or gone.
    pub(super) fn advance(&mut self) {
        if self.state == State::Probing && !self.functions.any_new() {
            self.state = State::Serving;
        } else if let State::Leaving(then) = self.state
            && !self.functions.any_leaving()
        {
            self.state = match then {
                Then::Answer => State::Answering,
                Then::Close => State::Closing,
                Then::Look => State::Looking,
            };
        }
    }

    /// A job was not done, or made no sense.
    pub(super) fn trouble(&mut self, refusal: Refusal) {
        self.refuse(refusal);
        let is_gone = matches!(refusal, Refusal::Store(_, StoreError::Gone));
        self.state = match self.state {
            // Our directory is not what we knew.
            State::Answering | State::Connecting if is_gone => self.leave_all(Then::Look),
            State::Naming(Occasion::Lent) | State::Sorting(Occasion::Lent) => State::Connecting,
            // Without an answer pciback takes nothing that is still in use.
            State::Naming(Occasion::Wanted)
            | State::Sorting(Occasion::Wanted)
            | State::Answering
            | State::Connecting
            | State::Serving => State::Serving,
            State::Reconfiguring => State::Reconfiguring,
            State::Subscribing
            | State::Looking
            | State::Absent
            | State::Offering
            | State::Watching
            | State::Waiting
            | State::Probing
            | State::Leaving(_)
            | State::Closing => State::Absent,
        };
    }

    /// What follows from the backend's state.
    fn backend_is(&mut self, backend: XenbusState) -> Result<State, Refusal> {
        let connected = self.state != State::Waiting;
        match backend {
            XenbusState::Connected if !connected => Ok(State::Naming(Occasion::Lent)),
            // Before that it was connected, whether we saw it or not.
            XenbusState::Reconfiguring if matches!(self.state, State::Serving | State::Waiting) => {
                Ok(State::Naming(Occasion::Wanted))
            }
            XenbusState::Reconfigured if self.state == State::Reconfiguring => {
                Ok(State::Naming(Occasion::Lent))
            }
            XenbusState::Closing | XenbusState::Closed if connected => {
                self.refuse(Refusal::Closed);
                Ok(self.leave_all(Then::Close))
            }
            // pciback starts again, or its directory is gone.
            XenbusState::Unknown
            | XenbusState::Initialising
            | XenbusState::InitWait
            | XenbusState::Initialised
                if connected =>
            {
                Ok(self.leave_all(Then::Look))
            }
            XenbusState::Unknown | XenbusState::Closing | XenbusState::Closed => Err(Refusal::Closed),
            XenbusState::Initialising
            | XenbusState::InitWait
            | XenbusState::Initialised
            | XenbusState::Connected
            | XenbusState::Reconfiguring
            | XenbusState::Reconfigured => Ok(self.state),
        }
    }

    /// pciback does not lend us anything any more, nor does it answer.
    fn leave_all(&mut self, then: Then) -> State {
        if let Some(link) = &mut self.link {
            link.cut();
        }
        self.functions.want_all_back();
        State::Leaving(then)
    }

    /// Reads who the backend is, and checks that its directory is that domain's and for PCI.
    fn looked(&mut self, result: Result<(), StoreError>, answers: &[Answer]) -> Result<DomId, Refusal> {
        let backend = match read(result, answers, 0) {
            Ok(backend) => backend,
            Err(StoreError::NotFound) => return Err(Refusal::NoDevice),
            Err(error) => return Err(Refusal::Store("read device/pci/0/backend", error)),
        };
        let id = read(result, answers, 1)
            .map_err(|error| Refusal::Store("read device/pci/0/backend-id", error))?;
        let peer = domain(id).ok_or(Refusal::Claim("device/pci/0/backend-id"))?;
        let parent = xenbus::path(format_args!("/local/domain/{peer}/backend/pci/"));
        let is_path = backend.strip_prefix(parent.as_str()).is_some_and(is_device);
        let path = Path::try_from(backend).ok().filter(|_| is_path);
        // One that is watched is the only one there can be: it is named after our domain.
        let path = path.filter(|path| !self.watching || *path == self.backend);
        self.backend = path.ok_or(Refusal::Claim("device/pci/0/backend"))?;
        Ok(peer)
    }

    /// The page and port are made once, and serve again when pciback comes again.
    fn link_to(&mut self, hal: &mut impl Hal, peer: DomId) -> Result<(), Refusal> {
        match &mut self.link {
            Some(link) => link.renew(),
            None => self.link = Some(Link::new(hal, peer)?),
        }
        Ok(())
    }

    /// Reads where the functions are.
    fn list(&mut self, result: Result<(), StoreError>, answers: &[Answer]) -> Result<Names, Refusal> {
        let count = read(result, answers, 0).map_err(|error| Refusal::Store("read num_devs", error))?;
        let count: usize = count.parse().map_err(|_| Refusal::Claim("num_devs"))?;
        if count == 0 {
            return Err(Refusal::NoDevice);
        }
        if count > limits::PCI_FUNCTIONS {
            self.refuse(Refusal::TooMany(limits::PCI_FUNCTIONS));
        }
        let name = |n| read(result, answers, n + 1).ok().and_then(Address::parse);
        Ok((0..count.min(limits::PCI_FUNCTIONS)).map(name).collect())
    }

    /// Takes note of the functions that came or are to leave.
    fn sort(&mut self, occasion: Occasion, answers: &[Answer]) -> State {
        for n in 0..self.names.len() {
            let state = read(Ok(()), answers, n).map_or(XenbusState::Unknown, XenbusState::parse);
            let leaves = state == XenbusState::Closing;
            match (occasion, self.names[n]) {
                (Occasion::Lent, Some(address)) if !leaves => self.functions.lend(address),
                (Occasion::Lent, None) if !leaves => self.refuse(Refusal::Unnamed(n)),
                (Occasion::Wanted, Some(address)) if leaves => self.functions.want_back(address),
                // One that is still to be lent has no name yet.
                (Occasion::Lent | Occasion::Wanted, _) => {}
            }
        }
        match occasion {
            Occasion::Lent => State::Connecting,
            Occasion::Wanted => State::Leaving(Then::Answer),
        }
    }
}

/// The functions that are looked at.
fn numbers() -> core::ops::Range<usize> {
    0..limits::PCI_FUNCTIONS
}

/// The text that a job's n-th step read.
fn read(result: Result<(), StoreError>, answers: &[Answer], n: usize) -> Result<&str, StoreError> {
    result?;
    match answers.get(n) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(*error),
        None => Err(StoreError::Malformed),
    }
}

fn backend_state(state: Result<&str, StoreError>) -> Result<XenbusState, Refusal> {
    match state {
        Ok(state) => Ok(XenbusState::parse(state)),
        Err(StoreError::NotFound) => Ok(XenbusState::Unknown),
        Err(error) => Err(Refusal::Store("read pciback's state", error)),
    }
}

/// A domain id that is not one of Xen's reserved ones (xen.h, `DOMID_FIRST_RESERVED`).
fn domain(text: &str) -> Option<DomId> {
    text.parse().ok().filter(|id| *id < 0x7ff0).map(DomId)
}

/// Whether the rest of a backend's path is `frontend-id/device`: what is used as a path must not
/// smuggle other bytes into a request.
fn is_device(rest: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    rest.split_once('/').is_some_and(|(frontend, device)| is_number(frontend) && is_number(device))
}
