//! pcifront: takes over the PCI functions given to this domain, and readies each for its driver.
//!
//! A state machine that never waits. Its xenstore traffic (`handshake`) is jobs (`wire::xenbus`)
//! that `domain` carries; its configuration operations go through the page shared with pciback
//! (`link`), in the order that `order` and `probe` know. `functions` knows which there are:
//! they come and go while we run. Nothing here touches a device's registers.
//!
//! Not handled: AER.

mod functions;
mod handshake;
mod link;
mod order;
mod probe;
#[cfg(all(test, feature = "sim"))]
mod tests;

use core::fmt;

use crate::hal::{Hal, HypervisorError};
use crate::units::{BusAddr, Instant, Pirq, Port};
use crate::wire::pci::{Address, Class};
use crate::wire::pciif::{OperationError, Reply};
use crate::wire::xenbus::{Answer, Job, Path, StoreError};

use functions::{Functions, Stage};
use handshake::{Names, Occasion, State};
use link::{Link, Poll};
use order::{Isolation, Order};
pub use probe::{Fault, Identity};
use probe::{Next, Probe};

/// The token of the watches, on our directory and on the backend's state.
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

/// What `domain` is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A function is ready for its driver.
    Found(Found),
    /// The toolstack wants a function back that was handed out: [`Pci::release`] is owed for it.
    Leaves(Address),
    /// What became of [`Pci::isolate`]: whether the function is known to reach memory no more.
    Isolated(Address, bool),
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

/// The PCI functions given to this domain, on their way to drivers and back.
#[derive(Debug)]
pub struct Pci {
    state: State,
    /// A job is with `domain`.
    asked: bool,
    /// Our directory or the backend's state may have changed.
    noticed: bool,
    /// Whether the backend's state is watched.
    watching: bool,
    backend: Path,
    link: Option<Link>,
    names: Names,
    functions: Functions,
    /// What pciback was asked to do last, until it is done.
    order: Option<Order>,
    refusal: Option<Refusal>,
}

impl Pci {
    /// Before anything is known.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default would say less than new")]
    pub const fn new() -> Self {
        Self {
            state: State::Subscribing,
            asked: false,
            noticed: false,
            watching: false,
            backend: Path::new(),
            link: None,
            names: Names::new(),
            functions: Functions::new(),
            order: None,
            refusal: None,
        }
    }

    /// Whether there is xenstore work to be done now.
    #[must_use]
    pub fn has_job(&self) -> bool {
        !self.asked && self.state_has_job()
    }

    /// Xenstore work to be done now. The next comes after [`Pci::job_done`].
    pub fn next_job(&mut self) -> Option<Job> {
        if !self.has_job() {
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
            Err(refusal) => self.trouble(refusal),
        }
    }

    /// A watch with [`TOKEN`] has fired.
    pub fn notice(&mut self) {
        self.noticed = true;
    }

    /// The port on which pciback answers, once there is one.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        self.link.as_ref().map(|link| link.port)
    }

    /// Goes on with what pciback is asked to do; to be called again after each event.
    pub fn turn(&mut self, hal: &mut impl Hal, now: Instant) -> Option<Event> {
        if let Some(address) = self.functions.take_leaving() {
            return Some(Event::Leaves(address));
        }
        let event = self.follow(now);
        self.give_order(hal, now);
        self.advance();
        event
    }

    /// Gives a function back that [`Event::Leaves`] named: nothing of ours uses it any more.
    pub fn release(&mut self, address: Address) {
        self.functions.release(address);
    }

    /// Keeps a function from memory, by its bus mastering; [`Event::Isolated`] tells when it is done.
    pub fn isolate(&mut self, address: Address) {
        self.functions.isolate(address);
    }

    /// When [`Pci::turn`] is due if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        // An order that is still to be given is due at once.
        let at_once = (self.order.is_some() || self.has_orders()).then_some(Instant(0));
        let late = self.link.as_ref().and_then(Link::deadline);
        late.or(at_once)
    }

    /// Whether every function given to us at the start is known: handed out or refused.
    #[must_use]
    pub fn settled(&self) -> bool {
        match self.state {
            State::Absent
            | State::Serving
            | State::Naming(Occasion::Wanted)
            | State::Sorting(Occasion::Wanted)
            | State::Leaving(_)
            | State::Answering
            | State::Reconfiguring
            | State::Closing => true,
            State::Subscribing
            | State::Looking
            | State::Offering
            | State::Watching
            | State::Waiting
            | State::Naming(Occasion::Lent)
            | State::Sorting(Occasion::Lent)
            | State::Connecting
            | State::Probing => false,
        }
    }

    /// The first thing that was refused since pciback was found, once there is one: where no function
    /// was handed out, the reason for that.
    #[must_use]
    pub fn none_reason(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Takes the reply to the order under way, if it is there.
    fn follow(&mut self, now: Instant) -> Option<Event> {
        let order = self.order.take()?;
        match self.link.as_mut()?.poll(now) {
            Poll::Waiting => self.order = Some(order),
            Poll::Answered(reply) => return self.answered(order, reply),
            Poll::Idle | Poll::Silent => return self.unanswered(&order),
        }
        None
    }

    fn answered(&mut self, mut order: Order, reply: Result<Reply, OperationError>) -> Option<Event> {
        match &mut order {
            Order::Probe(probe) => match probe.replied(reply) {
                Ok(Next::Ask) => {}
                Ok(Next::Ready(ready)) => {
                    log::info!("{ready}");
                    self.functions.probed(ready.found.address, true);
                    return Some(Event::Found(ready.found));
                }
                Err(fault) => {
                    self.refuse_function(probe.address, probe.identity, fault);
                    return None;
                }
            },
            Order::Isolate(isolation) => {
                if let Some(done) = isolation.replied(reply) {
                    return Some(Event::Isolated(order.address(), done));
                }
            }
            // Where it was not enabled pciback refuses; it is off either way.
            Order::Silence(address) => {
                self.functions.remove(*address);
                return None;
            }
        }
        self.order = Some(order);
        None
    }

    /// pciback is silent or gone: nothing more can be asked.
    fn unanswered(&mut self, order: &Order) -> Option<Event> {
        match order {
            Order::Probe(probe) => {
                self.refuse_function(probe.address, probe.identity, Fault::Silent);
                None
            }
            Order::Isolate(_) => Some(Event::Isolated(order.address(), false)),
            Order::Silence(address) => {
                self.functions.remove(*address);
                None
            }
        }
    }

    /// Posts the next operation of the order under way, or of a new one.
    fn give_order(&mut self, hal: &mut impl Hal, now: Instant) {
        let Some(link) = &mut self.link else { return };
        if self.order.is_none() {
            self.order = next_order(&mut self.functions, self.state);
        }
        if let Some(order) = &self.order
            && link.is_free()
        {
            link.post(hal, now, order.address(), order.operation());
        }
    }

    fn has_orders(&self) -> bool {
        let probes = self.state == State::Probing && self.functions.any_new();
        probes || self.functions.any_isolation() || self.functions.first(Stage::Released).is_some()
    }

    fn refuse_function(&mut self, address: Address, identity: Option<Identity>, fault: Fault) {
        self.functions.probed(address, false);
        self.refuse(Refusal::Function(address, identity, fault));
    }

    fn refuse(&mut self, refusal: Refusal) {
        // What is found again when something changes was said.
        if self.refusal != Some(refusal) {
            log::warn!("{refusal}");
        }
        self.refusal.get_or_insert(refusal);
    }
}

/// What is most urgent.
fn next_order(functions: &mut Functions, state: State) -> Option<Order> {
    if let Some(address) = functions.take_isolation() {
        return Some(Order::Isolate(Isolation::new(address)));
    }
    if let Some(address) = functions.first(Stage::Released) {
        return Some(Order::Silence(address));
    }
    let new = functions.first(Stage::New).filter(|_| state == State::Probing);
    new.map(|address| Order::Probe(Probe::new(address)))
}
