//! pcifront: takes over the PCI functions given to this domain, and readies each for its driver.
//!
//! A state machine that never waits. Its xenstore traffic is jobs (`wire::xenbus`) that `domain`
//! carries; its configuration operations go through the page shared with pciback (`link`), in
//! the order that `probe` knows. Nothing here touches a device's registers.
//!
//! Not handled: functions that come or go while we run (backend state 7), and AER.

mod link;
mod probe;
#[cfg(all(test, feature = "sim"))]
mod tests;

use core::fmt;

use heapless::Vec;

use crate::hal::{Hal, HypervisorError};
use crate::limits;
use crate::units::{BusAddr, DomId, Instant, Pirq, Port};
use crate::wire::pci::{Address, Class};
use crate::wire::pciif;
use crate::wire::xenbus::{self, Answer, Job, Path, StoreError, XenbusState};

use link::{Link, Poll};
pub use probe::{Fault, Identity};
use probe::{Next, Probe};

/// The token of the one watch, on the backend's state.
pub const TOKEN: &str = "pci";

/// Our end of the device in xenstore, below our home.
const FRONTEND: &str = "device/pci/0";

/// Which driver a function is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// An NVMe controller.
    Nvme,
}

impl DeviceKind {
    fn of(class: Class) -> Option<Self> {
        (class == Class::NVME).then_some(Self::Nvme)
    }
}

/// A function that a driver can take over: memory decoding and bus mastering are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Where it is on the bus that pciback shows us.
    pub address: Address,
    /// Its driver.
    pub kind: DeviceKind,
    /// Where BAR0 is. The pages of the MSI-X tables, if they are here, are read-only.
    pub bar: BusAddr,
    /// The length of BAR0 in bytes.
    pub bar_len: usize,
    /// The interrupt behind MSI-X entry 0; without one completions must be polled.
    pub pirq: Option<Pirq>,
}

/// Why there is no function, or one function less.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The toolstack gave us none.
    NoDevice,
    /// A function of ours is not used.
    Function(Address, Option<Identity>, Fault),
    /// pciback does not say where its n-th function is.
    Unnamed(usize),
    /// The functions after so many are not looked at.
    TooMany(usize),
    /// A node is missing, or xenstore refused something.
    Store(&'static str, StoreError),
    /// A node holds what it cannot hold.
    Claim(&'static str),
    /// pciback closed, or its directory went away.
    Closed,
    /// No page is left to share with pciback.
    NoPage,
    /// Xen refused what pciback needs from us.
    Hypervisor(HypervisorError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("no PCI device was given to this domain"),
            Self::Function(address, Some(Identity { ids, class }), fault) => {
                write!(f, "pci {address} ({ids}, class {class}) {fault}")
            }
            Self::Function(address, None, fault) => write!(f, "pci {address} {fault}"),
            Self::Unnamed(n) => write!(f, "pci: pciback does not say where device {n} is"),
            Self::TooMany(most) => write!(f, "pci: more than {most} functions, the others are not used"),
            Self::Store(what, error) => write!(f, "pci: cannot {what}: {error:?}"),
            Self::Claim(node) => write!(f, "pci: the node {node} makes no sense"),
            Self::Closed => f.write_str("pci: pciback has closed the devices"),
            Self::NoPage => f.write_str("pci: no memory is left for the page shared with pciback"),
            Self::Hypervisor(error) => write!(f, "pci: {error}"),
        }
    }
}

/// Where the handshake and the probing are.
#[derive(Debug)]
enum State {
    /// To read who the backend is.
    Looking,
    /// To publish our page and port.
    Offering,
    /// To watch the backend's state.
    Watching,
    /// For the backend to connect; to read its state when that has changed.
    Waiting,
    /// To read which functions there are.
    Listing,
    /// To say that we are connected.
    Connecting,
    /// Asking one function after the other.
    Probing(Probe),
    /// Every function is known.
    Settled,
}

/// The PCI functions given to this domain, on their way to drivers.
#[derive(Debug)]
pub struct Pci {
    state: State,
    /// A job is with `domain`.
    asked: bool,
    /// The backend's state may have changed.
    noticed: bool,
    backend: Path,
    link: Option<Link>,
    /// Functions still to be probed, the next one last.
    functions: Vec<Address, { limits::PCI_FUNCTIONS }>,
    refusal: Option<Refusal>,
}

impl Pci {
    /// Before anything is known.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default would say less than new")]
    pub const fn new() -> Self {
        Self {
            state: State::Looking,
            asked: false,
            noticed: false,
            backend: Path::new(),
            link: None,
            functions: Vec::new(),
            refusal: None,
        }
    }

    /// Xenstore work to be done now. The next comes after [`Pci::job_done`].
    pub fn next_job(&mut self) -> Option<Job> {
        if self.asked {
            return None;
        }
        let job = self.job()?;
        self.asked = true;
        Some(job)
    }

    /// What became of the job.
    pub fn job_done(&mut self, hal: &mut impl Hal, result: Result<(), StoreError>, answers: &[Answer]) {
        self.asked = false;
        match self.after_job(hal, result, answers) {
            Ok(state) => self.state = state,
            Err(refusal) => self.settle(refusal),
        }
    }

    /// The watch with [`TOKEN`] has fired.
    pub fn notice(&mut self) {
        self.noticed = true;
    }

    /// The port on which pciback answers, once there is one.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        self.link.as_ref().map(|link| link.port)
    }

    /// Goes on with the function at hand, and hands out one that is ready for its driver.
    pub fn turn(&mut self, hal: &mut impl Hal, now: Instant) -> Option<Found> {
        let (State::Probing(probe), Some(link)) = (&mut self.state, &mut self.link) else { return None };
        let outcome = match link.poll(now) {
            Poll::Waiting => return None,
            Poll::Idle => Ok(Next::Ask),
            Poll::Answered(reply) => probe.replied(reply),
            Poll::Late => Err(Fault::Silent),
        };
        match outcome {
            Ok(Next::Ask) => {
                link.post(hal, now, probe.address, probe.operation());
                None
            }
            Ok(Next::Ready(ready)) => {
                log::info!("{ready}");
                self.next_function(hal, now);
                Some(ready.found)
            }
            Err(fault) => {
                let refusal = Refusal::Function(probe.address, probe.identity, fault);
                self.refuse(refusal);
                if fault == Fault::Silent {
                    self.give_up();
                } else {
                    self.next_function(hal, now);
                }
                None
            }
        }
    }

    /// When [`Pci::turn`] is due if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            // An operation that is still to be posted is due at once.
            State::Probing(_) => Some(self.link.as_ref().and_then(Link::deadline).unwrap_or(Instant(0))),
            State::Looking
            | State::Offering
            | State::Watching
            | State::Waiting
            | State::Listing
            | State::Connecting
            | State::Settled => None,
        }
    }

    /// Whether every function given to us at the start is known: handed out or refused.
    #[must_use]
    pub fn settled(&self) -> bool {
        matches!(self.state, State::Settled)
    }

    /// The first thing that was refused, once there is one: where no function was handed out, the
    /// reason for that.
    #[must_use]
    pub fn none_reason(&self) -> Option<Refusal> {
        self.refusal
    }

    fn job(&mut self) -> Option<Job> {
        let frontend = xenbus::path(format_args!("{FRONTEND}"));
        match &self.state {
            State::Looking => Some(Job::new(&frontend).read("backend").read("backend-id")),
            State::Offering => {
                let link = self.link.as_ref()?;
                let job = Job::new(&frontend)
                    .while_state(&[XenbusState::Initialising])
                    .write("pci-op-ref", link.gref.0)
                    .write("event-channel", link.port.0)
                    .write("magic", pciif::MAGIC)
                    .write_state(XenbusState::Initialised);
                Some(job)
            }
            State::Watching => Some(Job::new(&self.backend).watch("state", TOKEN)),
            State::Waiting => {
                core::mem::take(&mut self.noticed).then(|| Job::new(&self.backend).read("state"))
            }
            State::Listing => {
                let numbers = 0..limits::PCI_FUNCTIONS;
                let job = Job::new(&self.backend).read("num_devs");
                Some(numbers.fold(job, |job, n| job.read(&xenbus::path(format_args!("vdev-{n}")))))
            }
            State::Connecting => Some(
                Job::new(&frontend)
                    .while_state(&[XenbusState::Initialised])
                    .write_state(XenbusState::Connected),
            ),
            State::Probing(_) | State::Settled => None,
        }
    }

    fn after_job(
        &mut self,
        hal: &mut impl Hal,
        result: Result<(), StoreError>,
        answers: &[Answer],
    ) -> Result<State, Refusal> {
        match &self.state {
            State::Looking => {
                let peer = self.looked(result, answers)?;
                self.link = Some(Link::new(hal, peer)?);
                Ok(State::Offering)
            }
            State::Offering => {
                result.map_err(|error| Refusal::Store("publish the shared page", error))?;
                Ok(State::Watching)
            }
            State::Watching => {
                read(result, answers, 0).map_err(|error| Refusal::Store("watch pciback", error))?;
                Ok(State::Waiting)
            }
            State::Waiting => backend_state(read(result, answers, 0)),
            State::Listing => {
                self.list(result, answers)?;
                Ok(State::Connecting)
            }
            State::Connecting => {
                result.map_err(|error| Refusal::Store("connect", error))?;
                Ok(self.functions.pop().map_or(State::Settled, |first| State::Probing(Probe::new(first))))
            }
            State::Probing(_) | State::Settled => unreachable!("no job is out in these states"),
        }
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
        self.backend =
            Path::try_from(backend).ok().filter(|_| is_path).ok_or(Refusal::Claim("device/pci/0/backend"))?;
        Ok(peer)
    }

    /// Reads which functions there are, the last first.
    fn list(&mut self, result: Result<(), StoreError>, answers: &[Answer]) -> Result<(), Refusal> {
        let count = read(result, answers, 0).map_err(|error| Refusal::Store("read num_devs", error))?;
        let count: usize = count.parse().map_err(|_| Refusal::Claim("num_devs"))?;
        if count == 0 {
            return Err(Refusal::NoDevice);
        }
        if count > limits::PCI_FUNCTIONS {
            self.refuse(Refusal::TooMany(limits::PCI_FUNCTIONS));
        }
        for n in (0..count.min(limits::PCI_FUNCTIONS)).rev() {
            let address = read(result, answers, n + 1).ok().and_then(Address::parse);
            match address {
                Some(address) => self.functions.push(address).expect("there is room for each n"),
                None => self.refuse(Refusal::Unnamed(n)),
            }
        }
        Ok(())
    }

    fn next_function(&mut self, hal: &mut impl Hal, now: Instant) {
        let (Some(address), Some(link)) = (self.functions.pop(), &mut self.link) else {
            self.state = State::Settled;
            return;
        };
        let probe = Probe::new(address);
        link.post(hal, now, address, probe.operation());
        self.state = State::Probing(probe);
    }

    /// The page is still pciback's, so nothing can be asked about the other functions either.
    fn give_up(&mut self) {
        while let Some(address) = self.functions.pop() {
            self.refuse(Refusal::Function(address, None, Fault::Silent));
        }
        self.state = State::Settled;
    }

    fn settle(&mut self, refusal: Refusal) {
        self.refuse(refusal);
        self.state = State::Settled;
    }

    fn refuse(&mut self, refusal: Refusal) {
        log::warn!("{refusal}");
        self.refusal.get_or_insert(refusal);
    }
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

fn backend_state(state: Result<&str, StoreError>) -> Result<State, Refusal> {
    let state = match state {
        Ok(state) => XenbusState::parse(state),
        Err(StoreError::NotFound) => XenbusState::Unknown,
        Err(error) => return Err(Refusal::Store("read pciback's state", error)),
    };
    match state {
        XenbusState::Initialising
        | XenbusState::InitWait
        | XenbusState::Initialised
        | XenbusState::Reconfiguring
        | XenbusState::Reconfigured => Ok(State::Waiting),
        XenbusState::Connected => Ok(State::Listing),
        XenbusState::Unknown | XenbusState::Closing | XenbusState::Closed => Err(Refusal::Closed),
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
