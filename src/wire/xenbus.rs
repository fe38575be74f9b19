//! xenbus: device states, and xenstore work as data. A device's state machine says what it wants
//! read or written as a [`Job`]; `domain` carries it to the store client and the answers back, so
//! that neither knows the other.

use core::fmt::{self, Write};

use heapless::{String, Vec};

use crate::limits;

/// A xenstore path, absolute or relative to our own `/local/domain/<id>`.
pub type Path = String<{ limits::PATH }>;

/// The name of a node below a path.
pub type Node = String<{ limits::NODE }>;

/// The value of a node.
pub type Value = String<{ limits::VALUE }>;

/// A device's state as both ends publish it (xen/include/public/io/xenbus.h, `xenbus_state`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XenbusState {
    /// The node is missing or holds no state.
    Unknown = 0,
    /// Created by the toolstack.
    Initialising = 1,
    /// The backend waits for the frontend's details.
    InitWait = 2,
    /// The frontend has published its details.
    Initialised = 3,
    /// Serving.
    Connected = 4,
    /// Closing.
    Closing = 5,
    /// Closed.
    Closed = 6,
    /// PCI hotplug: the backend changes its devices.
    Reconfiguring = 7,
    /// PCI hotplug: the change is done.
    Reconfigured = 8,
}

impl XenbusState {
    /// The state a node's text means; anything unexpected is [`XenbusState::Unknown`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "1" => Self::Initialising,
            "2" => Self::InitWait,
            "3" => Self::Initialised,
            "4" => Self::Connected,
            "5" => Self::Closing,
            "6" => Self::Closed,
            "7" => Self::Reconfiguring,
            "8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }
}

/// Why a step or a job was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// ENOENT.
    NotFound,
    /// EACCES or EPERM.
    Denied,
    /// Our node, watch, transaction or size quota: EQUOTA (oxenstored), ENOSPC, E2BIG.
    Quota,
    /// A transaction that others disturbed each time it was tried.
    Again,
    /// The value or path does not fit where it is used here.
    TooLong,
    /// Not UTF-8, or not what the protocol allows.
    Malformed,
    /// The guard did not hold: the directory was removed or has moved on.
    Gone,
    /// Any other error.
    Other,
}

/// One step of a job; nodes are names below the job's base.
#[expect(clippy::large_enum_variant, reason = "steps live in a job's fixed array, there is no heap")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Reads a node.
    Read(Node),
    /// Writes a node.
    Write(Node, Value),
    /// Removes a node and everything below it.
    Remove(Node),
    /// Lists the names below a node (at most one such step a job).
    List(Node),
    /// Watches a node; its events carry the token.
    Watch(Node, Node),
    /// Ends such a watch.
    Unwatch(Node, Node),
}

/// A condition for a whole job: `node` exists and holds one of `states`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    /// The node below the job's base, `state` as a rule.
    pub node: Node,
    /// What it may hold.
    pub states: Vec<XenbusState, 4>,
}

/// Xenstore work of one device: steps under one base path, in order.
///
/// Without a guard each step stands alone, and a failed one does not stop the others. With a guard
/// all of it is one transaction, so that a directory which the toolstack has just removed is never
/// made again: either the guard held and every step was done, or none was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// The directory the steps are about; empty for our own home.
    pub base: Path,
    /// The condition, if there is one.
    pub guard: Option<Guard>,
    /// What to do.
    pub steps: Vec<Step, { limits::JOB_STEPS }>,
}

impl Job {
    /// A job below `base` with no steps yet.
    #[must_use]
    pub fn new(base: &Path) -> Self {
        Self { base: base.clone(), guard: None, steps: Vec::new() }
    }

    /// Makes it a transaction that holds only while the node `state` is one of `states`.
    #[must_use]
    pub fn while_state(mut self, states: &[XenbusState]) -> Self {
        let states = Vec::from_slice(states).expect("a guard names at most four states");
        self.guard = Some(Guard { node: name("state"), states });
        self
    }

    /// Adds a read.
    #[must_use]
    pub fn read(self, node: &str) -> Self {
        self.step(Step::Read(name(node)))
    }

    /// Adds a write. A value that does not fit is cut.
    #[must_use]
    pub fn write(self, node: &str, value: impl fmt::Display) -> Self {
        self.step(Step::Write(name(node), cut(value)))
    }

    /// Adds a write of a state.
    #[must_use]
    pub fn write_state(self, state: XenbusState) -> Self {
        self.write("state", state as u8)
    }

    /// Adds a removal; the empty name is the base itself.
    #[must_use]
    pub fn remove(self, node: &str) -> Self {
        self.step(Step::Remove(name(node)))
    }

    /// Adds a listing; the empty name is the base itself.
    #[must_use]
    pub fn list(self, node: &str) -> Self {
        self.step(Step::List(name(node)))
    }

    /// Adds a watch.
    #[must_use]
    pub fn watch(self, node: &str, token: &str) -> Self {
        self.step(Step::Watch(name(node), name(token)))
    }

    /// Adds the end of a watch.
    #[must_use]
    pub fn unwatch(self, node: &str, token: &str) -> Self {
        self.step(Step::Unwatch(name(node), name(token)))
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step).expect("a job's steps fit, they are ours");
        self
    }
}

/// What became of one step: the value that was read, or empty.
pub type Answer = Result<Value, StoreError>;

/// What became of a whole job, with one answer a step when it was done.
pub type Answers = Vec<Answer, { limits::JOB_STEPS }>;

/// A number as the toolstack writes it: decimal digits alone.
#[must_use]
pub fn number<T: core::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A path from our own formatting, which fits.
///
/// # Panics
/// When it does not: only numbers vary in the paths made here.
#[must_use]
pub fn path(text: fmt::Arguments<'_>) -> Path {
    let mut path = Path::new();
    path.write_fmt(text).expect("paths made here fit");
    path
}

/// A node's name from text that is known to fit.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn node(text: fmt::Arguments<'_>) -> Node {
    let mut node = Node::new();
    node.write_fmt(text).expect("node names made here fit");
    node
}

/// Text cut to what a node of ours may hold.
#[must_use]
pub fn cut(text: impl fmt::Display) -> Value {
    let mut value = Cut(Value::new());
    // `Cut` drops what does not fit instead of failing.
    let _ = write!(value, "{text}");
    value.0
}

struct Cut(Value);

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.0.push(c).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn name(node: &str) -> Node {
    Node::try_from(node).expect("node names made here fit")
}
