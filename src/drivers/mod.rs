//! pcifront, and disk controllers, each a state machine that never waits, behind one [`Disk`]. `domain` turns
//! them and carries completions to their owners; a [`Token`] is all that is known of those here.

pub mod nvme;
pub mod pci;

use core::fmt;

use heapless::Vec;

use crate::hal::Memory;
use crate::units::{Block, Discard, Instant, Span};
use crate::wire::nvme::Unsupported;
use crate::wire::nvme::command::ErrorStatus;
use crate::wire::nvme::identify::{Identity, Unusable};

/// The owner's name for a command; not looked at here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token(pub u32);

/// What a command does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Moves blocks from the disk to memory.
    Read,
    /// Moves blocks from memory to the disk.
    Write,
    /// The same, and has them safe from a power cut when it is completed.
    WriteFua,
    /// Makes all writes that were completed before it was submitted safe from a power cut.
    Flush,
}

/// A command has ended: the device does not touch its memory any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Whose it was.
    pub token: Token,
    /// What became of it.
    pub result: Result<(), DeviceError>,
}

/// Why a command was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The queue is full: again after a completion.
    Full,
    /// No command can say this: not even the first span is a legal beginning, or there is no such
    /// namespace.
    Inexpressible,
    /// The controller is starting, or starting again: again when its status has changed.
    NotReady,
    /// The controller has stopped, or failed: never.
    Dead,
}

/// How a controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Being brought up, for the first time or again.
    Starting,
    /// Takes commands.
    Ready,
    /// Being shut down.
    Stopping,
    /// Shut down.
    Stopped,
    /// Given up.
    Failed(DeviceError),
}

/// A disk behind a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its number at the controller (NSID).
    pub id: u32,
    /// Its size.
    pub blocks: Block,
    /// Bytes of a block, a power of two from 512 to 4096.
    pub block_size: u32,
    /// Bytes that are written well together and all or none of them when the power fails: a power
    /// of two, not less than a block.
    pub physical_block_size: u32,
    /// What was written is safe only after a flush.
    pub volatile_cache: bool,
    /// How it gives up blocks, if it does. That erases nothing: no disk served here has a command
    /// that makes a part of it unreadable for good.
    pub discard: Option<Discard>,
}

/// What is wrong with a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceError {
    /// No memory is left for its queues.
    NoMemory,
    /// Its registers read all ones.
    Gone,
    /// It cannot be served.
    Unsupported(Unsupported),
    /// A namespace of it cannot be served.
    Unusable(Unusable),
    /// It reports a fatal error.
    Fatal,
    /// It did not follow a change of its enable bit in the time it claims for that.
    Stuck,
    /// It left a command unanswered.
    Timeout,
    /// It was reset under a command.
    Reset,
    /// A command failed.
    Command(ErrorStatus),
    /// It was taken away from us.
    Withdrawn,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("no memory is left for its queues"),
            Self::Gone => f.write_str("its registers read all ones"),
            Self::Unsupported(reason) => reason.fmt(f),
            Self::Unusable(reason) => reason.fmt(f),
            Self::Fatal => f.write_str("it reports a fatal error"),
            Self::Stuck => f.write_str("its ready bit does not change"),
            Self::Timeout => f.write_str("it left a command unanswered"),
            Self::Reset => f.write_str("it was reset under a command"),
            Self::Withdrawn => f.write_str("it was taken away"),
            Self::Command(status) => write!(f, "a command failed with {status}"),
        }
    }
}

/// A controller with its disks.
#[derive(Debug)]
pub enum Disk {
    /// NVMe over PCIe.
    Nvme(nvme::Nvme),
}

impl Disk {
    /// Moves on: completions into `done` while it has room, then what is due at `now`. Returns
    /// whether it wants to be called again before anybody sleeps.
    pub fn turn<const N: usize>(
        &mut self,
        hal: &mut impl Memory,
        now: Instant,
        done: &mut Vec<Completion, N>,
    ) -> bool {
        match self {
            Self::Nvme(nvme) => nvme.turn(hal, now, done),
        }
    }

    /// When [`Disk::turn`] is due if no interrupt comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Nvme(nvme) => nvme.deadline(),
        }
    }

    /// How the controller is.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Nvme(nvme) => nvme.status(),
        }
    }

    /// Whether the controller was given up: what is in flight there is not completed unless it is
    /// isolated.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.status(), Status::Failed(_))
    }

    /// Its disks, in the order of their names, or why one cannot be served. They are known when
    /// the controller is ready for the first time, and do not change any more.
    pub fn namespaces(&self) -> &[Result<Namespace, DeviceError>] {
        match self {
            Self::Nvme(nvme) => nvme.namespaces(),
        }
    }

    /// What tells the controller from others; known as soon as its disks are.
    #[must_use]
    pub fn identity(&self) -> Identity {
        match self {
            Self::Nvme(nvme) => nvme.identity(),
        }
    }

    /// How many commands it can take until one of those that it has is completed; while it takes none for another
    /// reason, [`Disk::submit`] says so.
    #[must_use]
    pub fn room(&self) -> Option<usize> {
        match self {
            Self::Nvme(nvme) => nvme.room(),
        }
    }

    /// Takes one command that does as many of the spans as one command can, and at least one;
    /// returns how many that is (none for a flush). `namespace` is an index into
    /// [`Disk::namespaces`]. The blocks are known to lie on the disk, and the spans add up to
    /// whole blocks. [`Disk::kick`] sets it going.
    ///
    /// # Errors
    /// It was not taken.
    pub fn submit(
        &mut self,
        token: Token,
        namespace: usize,
        operation: Operation,
        first: Block,
        spans: &[Span],
    ) -> Result<usize, Refusal> {
        match self {
            Self::Nvme(nvme) => nvme.submit(token, namespace, operation, first, spans),
        }
    }

    /// Takes one command that gives up as many of the blocks, from `first` on, as one command may,
    /// and at least one; returns how many that is. They read as zeroes then, or as before, or as
    /// something else that stays the same. Otherwise the same as [`Disk::submit`].
    ///
    /// # Errors
    /// It was not taken. It is inexpressible where the disk gives up no blocks.
    pub fn discard(
        &mut self,
        token: Token,
        namespace: usize,
        first: Block,
        blocks: Block,
    ) -> Result<Block, Refusal> {
        match self {
            Self::Nvme(nvme) => nvme.discard(token, namespace, first, blocks),
        }
    }

    /// Tells the device of all commands submitted since the last kick.
    pub fn kick(&mut self, hal: &mut impl Memory) {
        match self {
            Self::Nvme(nvme) => nvme.kick(hal),
        }
    }

    /// Begins the orderly end; [`Disk::status`] says when it is reached. Whoever wants the
    /// disks' caches written out has flushed them before, and nothing is in flight.
    pub fn shut_down(&mut self, hal: &mut impl Memory) {
        match self {
            Self::Nvme(nvme) => nvme.shut_down(hal),
        }
    }

    /// Whether the controller has failed or stopped, and may access memory all the same: then its
    /// bus mastering is to be cleared, and [`Disk::isolated`] to be told.
    #[must_use]
    pub fn must_be_isolated(&self) -> bool {
        match self {
            Self::Nvme(nvme) => nvme.must_be_isolated(),
        }
    }

    /// The controller cannot reach memory any more, whatever it does: what is in flight is given
    /// back as failed by the turns that follow. Means nothing before it has failed or stopped.
    pub fn isolated(&mut self) {
        match self {
            Self::Nvme(nvme) => nvme.isolated(),
        }
    }

    /// Whether the controller still is as we enabled it: the toolstack resets one before it asks for
    /// it back, and then nothing in flight is ever completed.
    #[must_use]
    pub fn is_enabled(&self, hal: &mut impl Memory) -> bool {
        match self {
            Self::Nvme(nvme) => nvme.is_enabled(hal),
        }
    }

    /// Gives the controller up, whatever it is doing; it may have to be isolated then.
    pub fn abandon(&mut self) {
        match self {
            Self::Nvme(nvme) => nvme.abandon(),
        }
    }

    /// Gives all pages of the controller's back.
    ///
    /// # Panics
    /// It has neither failed nor stopped, something is in flight, or it must be isolated before.
    pub fn release(self, hal: &mut impl Memory) {
        match self {
            Self::Nvme(nvme) => nvme.release(hal),
        }
    }
}
