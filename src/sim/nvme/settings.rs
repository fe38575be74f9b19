//! What a simulated controller is, and what goes wrong with it: all that a test decides. Neighbour of
//! [`super`], the controller.

use core::ops::Range;
use core::time::Duration;
use std::string::String;
use std::vec::Vec;

use crate::units::PAGE_SIZE;
use crate::wire::nvme::DOORBELLS;
use crate::wire::nvme::command::ErrorStatus;

/// One namespace.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its id.
    pub id: u32,
    /// Its size in blocks.
    pub blocks: u64,
    /// Bytes of a block, as a power of two.
    pub block_shift: u8,
    /// Bytes of metadata a block.
    pub metadata: u16,
}

/// What namespaces prefer, in blocks, each at least one.
#[derive(Clone, Copy, Debug)]
pub struct Preferred {
    /// AWUPF + 1.
    pub atomic: u16,
    /// NPWG + 1.
    pub write: u16,
    /// NPDG + 1.
    pub deallocate: u16,
    /// NPDA + 1.
    pub deallocate_alignment: u16,
}

/// The state in which a controller is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// After a power cut.
    Off,
    /// Working, with queues of somebody else's.
    Enabled,
    /// On the way to that.
    Enabling,
    /// On the way from that.
    Disabling,
    /// In a fatal error, still enabled.
    Fatal,
    /// Shut down, still enabled.
    ShutDown,
}

impl Found {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Off, Self::Enabled, Self::Enabling, Self::Disabling, Self::Fatal, Self::ShutDown];
}

/// What a controller is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Decides all that is left to chance.
    pub seed: u64,
    /// The namespaces, by increasing id.
    pub namespaces: Vec<Shape>,
    /// CAP.MQES + 1.
    pub queue_entries: u16,
    /// CAP.DSTRD.
    pub doorbell_stride: u8,
    /// MDTS: the largest transfer is 4 KiB << this, without limit when zero.
    pub mdts: u8,
    /// Whether writes need a flush to be safe.
    pub volatile_cache: bool,
    /// Whether it has the Dataset Management command.
    pub deallocates: bool,
    /// DMRSL: the most blocks in one range of that command, without limit when zero; none, when it
    /// does not know the command that asks for it.
    pub deallocate_limit: Option<u32>,
    /// What all its namespaces say that they prefer, if they say anything.
    pub preferred: Option<Preferred>,
    /// Whether MSI-X is enabled.
    pub msix: bool,
    /// Its serial number.
    pub serial: String,
    /// The time a command takes.
    pub latency: Range<Duration>,
    /// The state it is found in.
    pub found: Found,
}

impl Settings {
    /// A common controller with two namespaces of 512-byte and 4096-byte blocks.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        const BYTES: u64 = 1 << 30;
        let shape = |id, block_shift| Shape { id, blocks: BYTES >> block_shift, block_shift, metadata: 0 };
        Self {
            seed,
            namespaces: [shape(1, 9), shape(2, 12)].into(),
            queue_entries: 2048,
            doorbell_stride: 0,
            mdts: 7,
            volatile_cache: true,
            deallocates: true,
            deallocate_limit: Some(0),
            preferred: None,
            msix: true,
            serial: "PLATTER0".into(),
            latency: Duration::from_micros(5)..Duration::from_micros(500),
            found: Found::Off,
        }
    }

    /// Bytes of registers.
    #[must_use]
    pub fn register_bytes(&self) -> usize {
        // Four doorbells: two queues, tail and head.
        (DOORBELLS + 4 * (4 << self.doorbell_stride)).next_multiple_of(PAGE_SIZE)
    }
}

/// What goes wrong; nothing at first. Rates are one in so many, zero for never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// I/O commands that fail and do nothing.
    pub error: u32,
    /// With which of these; with an unrecovered read error if there are none.
    pub statuses: Vec<ErrorStatus>,
    /// Completions that raise no interrupt.
    pub lost_interrupt: u32,
    /// Completions that come twice.
    pub doubled: u32,
    /// Completions that are followed by one of a command that has ended before.
    pub invented: u32,
    /// I/O commands that are never answered.
    pub unanswered: u32,
    /// So many of the next I/O commands are never answered either.
    pub forgets: u32,
    /// An I/O command at this block is a fatal error.
    pub poison: Option<u64>,
    /// CSTS.RDY does not follow CC.EN to one.
    pub never_ready: bool,
    /// CSTS.RDY does not follow CC.EN to zero.
    pub never_disabled: bool,
    /// CSTS.CFS, until it is reset.
    pub fatal: bool,
    /// A reset does not clear CSTS.CFS.
    pub fatal_for_good: bool,
    /// Nothing answers on the bus.
    pub gone: bool,
}
