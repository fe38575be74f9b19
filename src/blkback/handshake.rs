//! What the nodes of a virtual disk mean, and the xenstore jobs that read and write them, as
//! libxl 4.17 and Linux 6.1 use them (xen/include/public/io/blkif.h). No state: that is
//! [`super::vbd`]'s.

use core::fmt;

use heapless::Vec;

use super::link::Endpoint;
use crate::limits::{INDIRECT_SEGMENTS, RING_PAGES};
use crate::units::{Discard, DomId, GrantRef, Port};
use crate::volume::Volume;
use crate::wire::blkif::Protocol;
use crate::wire::xenbus::{self, Answer, Job, Path, StoreError, Value, XenbusState};

// Bits of the node `info`.
const VDISK_CDROM: u32 = 1;
const VDISK_REMOVABLE: u32 = 2;
const VDISK_READONLY: u32 = 4;

/// A device is named by the guest it is for and the toolstack's number for it, which means nothing
/// here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceId {
    /// The guest it is for.
    pub guest: DomId,
    /// The toolstack's number for it.
    pub device: u32,
}

impl DeviceId {
    /// What a path below our home is about, if it is about a device's directory or within it.
    #[must_use]
    pub fn in_path(path: &str) -> Option<Self> {
        Self::parse(path.strip_prefix("backend/vbd/")?)
    }

    /// What the token of a watch on a frontend's state is about, if it is one.
    #[must_use]
    pub fn in_token(token: &str) -> Option<Self> {
        Self::parse(token.strip_prefix("fe/")?)
    }

    /// What `GUEST/DEVICE` is about, whatever may follow after another slash.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let guest = DomId(xenbus::number(parts.next()?)?);
        Some(Self { guest, device: xenbus::number(parts.next()?)? })
    }

    /// Our directory, below our home.
    pub(super) fn home(self) -> Path {
        xenbus::path(format_args!("backend/vbd/{self}"))
    }

    /// Where the reason of a failure is left for the administrator, as Linux does.
    pub(super) fn errors(self) -> Path {
        xenbus::path(format_args!("error/backend/vbd/{self}"))
    }

    /// Where all such reasons about this guest's devices are.
    pub(crate) fn guest_errors(self) -> Path {
        xenbus::path(format_args!("error/backend/vbd/{}", self.guest))
    }

    /// The frontend's directory. It is worked out: the node that names it is not to be trusted.
    pub(super) fn frontend(self) -> Path {
        xenbus::path(format_args!("/local/domain/{}/device/vbd/{}", self.guest, self.device))
    }

    /// The token of the watch on the frontend's state.
    pub(super) fn token(self) -> Value {
        xenbus::cut(format_args!("fe/{self}"))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.guest, self.device)
    }
}

/// What our own directory says: the toolstack's wishes, and the state as it was last written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ours {
    /// Of the backend.
    pub(super) state: XenbusState,
    /// False: the device is to go for good once it is closed.
    pub(super) online: bool,
    /// What was attached.
    pub(super) wish: Wish,
}

/// What the toolstack wants a device to be. It does not change while a device exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wish {
    /// `target=` as the administrator wrote it.
    pub(super) target: Result<Value, StoreError>,
    /// The guest may write.
    pub(super) writable: bool,
    /// The node `frontend-id`, where it is a number.
    pub(super) frontend_id: Option<u32>,
    removable: bool,
    cdrom: bool,
    /// `discard-enable`, which only says no.
    no_discard: bool,
}

impl Ours {
    /// Reads our directory.
    pub(super) fn job(id: DeviceId) -> Job {
        Job::new(&id.home())
            .read("state")
            .read("online")
            .read("params")
            .read("mode")
            .read("frontend-id")
            .read("removable")
            .read("device-type")
            .read("discard-enable")
    }

    /// What the answers to [`Ours::job`] say; nothing when the directory is gone.
    ///
    /// # Errors
    /// xenstore failed: it is to be asked again.
    pub(super) fn parse(answers: &[Answer]) -> Result<Option<Self>, StoreError> {
        let [state, online, params, mode, frontend_id, removable, device_type, discard] = answers else {
            return Err(StoreError::Other);
        };
        let state = match state {
            Ok(state) => XenbusState::parse(state),
            Err(StoreError::NotFound) => return Ok(None),
            Err(error) => return Err(*error),
        };
        for answer in [online, params, mode, frontend_id, removable, device_type, discard] {
            if let Err(error @ (StoreError::Again | StoreError::Other)) = answer {
                return Err(*error);
            }
        }
        let wish = Wish {
            target: params.clone(),
            // As Linux has it: without a `w` the device is for reading only.
            writable: text(mode).contains('w'),
            frontend_id: decimal(text(frontend_id)),
            removable: text(removable) == "1",
            cdrom: text(device_type) == "cdrom",
            no_discard: text(discard) == "0",
        };
        Ok(Some(Self { state, online: text(online) != "0", wish }))
    }
}

impl Wish {
    /// The node `info` for it.
    const fn info(&self) -> u32 {
        let mut info = 0;
        if self.cdrom {
            info |= VDISK_CDROM;
        }
        if self.removable {
            info |= VDISK_REMOVABLE;
        }
        if !self.writable {
            info |= VDISK_READONLY;
        }
        info
    }

    /// How discards are offered, if they are.
    pub(super) fn discards(&self, volume: &Volume) -> Option<Discard> {
        volume.discard.filter(|_| !self.no_discard)
    }
}

/// What a frontend may use besides one ring of direct requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offers {
    /// Rings.
    pub(super) queues: usize,
    /// Indirect requests.
    pub(super) indirect: bool,
    /// Grants that stay mapped.
    pub(super) persistent: bool,
}

/// Offers the device: everything the frontend needs to know, and the state it waits for.
///
/// Linux writes all this when it connects. Written now, a node quota that is used up refuses the
/// attach where the toolstack still looks; and a frontend that was resumed, and therefore does not
/// wait for this state, finds it too. What is not offered, or is what a frontend assumes, has no
/// node: each costs us of the quota.
pub(super) fn offer(id: DeviceId, from: XenbusState, wish: &Wish, volume: &Volume, offers: Offers) -> Job {
    let job = Job::new(&id.home())
        .while_state(&[from])
        .write("sectors", volume.sectors().0)
        .write("sector-size", volume.block_size())
        .write("info", wish.info())
        .write("max-ring-page-order", RING_PAGES.ilog2());
    let job = when(volume.physical_block_size != volume.block_size(), job, |job| {
        job.write("physical-sector-size", volume.physical_block_size)
    });
    // As in Linux: without a volatile cache nothing needs to be flushed.
    let job = when(volume.volatile_cache, job, |job| {
        job.write("feature-flush-cache", 1).write("feature-barrier", 1)
    });
    let job = when(offers.queues > 1, job, |job| job.write("multi-queue-max-queues", offers.queues));
    let job = when(offers.indirect, job, |job| job.write("feature-max-indirect-segments", INDIRECT_SEGMENTS));
    let job = when(offers.persistent, job, |job| job.write("feature-persistent", 1));
    let job = match wish.discards(volume) {
        Some(discard) => offer_discard(job, discard),
        None => job,
    };
    job.write_state(XenbusState::InitWait)
}

/// Both numbers or none, says the header.
fn offer_discard(job: Job, discard: Discard) -> Job {
    job.write("feature-discard", 1)
        .write("discard-granularity", discard.granularity)
        .write("discard-alignment", discard.alignment)
}

fn when(condition: bool, job: Job, then: impl FnOnce(Job) -> Job) -> Job {
    if condition { then(job) } else { job }
}

/// What the frontend's directory says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Theirs {
    /// It is not there.
    Gone,
    /// The frontend starts, or starts again.
    Starting,
    /// The frontend has said how it is to be served; it may take itself for connected.
    Ready(Result<Terms, Unserved>),
    /// The frontend wants to close.
    Closing,
    /// The frontend is closed.
    Closed,
    /// Nothing that matters.
    Other,
}

/// How a frontend is to be served. Where all its rings are is read one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Terms {
    /// The layout of its requests.
    pub(super) protocol: Protocol,
    /// How many rings it has; one at least.
    pub(super) queues: usize,
    /// How many pages each has, where it says so; a power of two.
    pages: Option<usize>,
    /// It lets its pages stay mapped.
    pub(super) persistent: bool,
    /// Where the first ring is: tells one that was resumed from one that was not.
    first_ring: u32,
    first_port: u32,
}

/// Why a ready frontend cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unserved {
    /// Some layout that is not known.
    Protocol,
    /// A ring larger than was offered.
    RingOrder,
    /// More rings than were offered, or none.
    Queues,
    /// No grant reference.
    NoRing,
    /// No event channel.
    NoPort,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "its frontend uses an unknown protocol",
            Self::RingOrder => "its frontend made a ring of more pages than were offered",
            Self::Queues => "its frontend wants none or more queues than were offered",
            Self::NoRing => "its frontend gave no valid ring-ref",
            Self::NoPort => "its frontend gave no valid event-channel",
        })
    }
}

impl Theirs {
    /// Reads the frontend's directory; the state first, as the frontend writes it last.
    pub(super) fn job(id: DeviceId) -> Job {
        Job::new(&id.frontend())
            .read("state")
            .read("protocol")
            .read("multi-queue-num-queues")
            .read("ring-page-order")
            .read("feature-persistent")
            .read("ring-ref")
            .read("ring-ref0")
            .read("event-channel")
            .read("queue-0/ring-ref")
            .read("queue-0/ring-ref0")
            .read("queue-0/event-channel")
    }

    /// What the answers to [`Theirs::job`] say. The directory is the guest's: whatever it did to it
    /// other than removing it is its own fault and tells nothing.
    pub(super) fn parse(answers: &[Answer]) -> Self {
        let [state, nodes @ ..] = answers else { return Self::Other };
        let state = match state {
            Ok(state) => XenbusState::parse(state),
            // C xenstored says this of a node that is missing where what is above it is not ours to
            // read; while the directory is there, we may read it.
            Err(StoreError::NotFound | StoreError::Denied) => return Self::Gone,
            Err(_) => return Self::Other,
        };
        match state {
            XenbusState::Initialising => Self::Starting,
            XenbusState::Initialised | XenbusState::Connected => Self::Ready(Terms::parse(nodes)),
            XenbusState::Closing => Self::Closing,
            XenbusState::Closed => Self::Closed,
            XenbusState::Unknown
            | XenbusState::InitWait
            | XenbusState::Reconfiguring
            | XenbusState::Reconfigured => Self::Other,
        }
    }
}

impl Terms {
    fn parse(nodes: &[Answer]) -> Result<Self, Unserved> {
        let [protocol, queues, order, persistent, rings @ ..] = nodes else { return Err(Unserved::NoRing) };
        let protocol = Protocol::parse(text(protocol)).ok_or(Unserved::Protocol)?;
        let queues = match text(queues) {
            "" => 1,
            queues => decimal(queues).filter(|queues| *queues > 0).ok_or(Unserved::Queues)?,
        };
        let pages = match text(order) {
            "" => None,
            order => {
                let order = decimal(order).filter(|order| *order <= RING_PAGES.ilog2());
                Some(1 << order.ok_or(Unserved::RingOrder)?)
            }
        };
        // Nodes of the other kind are left from whoever was there before, such as a boot loader.
        let of_first = if queues == 1 { rings.first_chunk() } else { rings.last_chunk() };
        let [plain, numbered, port] = of_first.ok_or(Unserved::NoRing)?;
        let numbered = pages.and_then(|_| decimal(text(numbered)));
        let ring = numbered.or_else(|| decimal(text(plain)));
        Ok(Self {
            protocol,
            queues: queues as usize,
            pages,
            persistent: text(persistent) == "1",
            first_ring: ring.ok_or(Unserved::NoRing)?,
            first_port: decimal(text(port)).ok_or(Unserved::NoPort)?,
        })
    }
}

impl Endpoint {
    /// Reads where a ring of the frontend is, and whether the frontend is still ready. One that has
    /// one ring has its nodes among the others.
    pub(super) fn job(id: DeviceId, terms: &Terms, ring: usize) -> Job {
        let read = |job: Job, name: fmt::Arguments<'_>| match terms.queues {
            1 => job.read(&xenbus::node(name)),
            _ => job.read(&xenbus::node(format_args!("queue-{ring}/{name}"))),
        };
        let job = read(Job::new(&id.frontend()).read("state"), format_args!("event-channel"));
        let job =
            (0..terms.pages.unwrap_or(0)).fold(job, |job, page| read(job, format_args!("ring-ref{page}")));
        // The presence of an order, even zero, means numbered references; not all frontends with one
        // page agree.
        when(terms.pages.unwrap_or(1) == 1, job, |job| read(job, format_args!("ring-ref")))
    }

    /// What the answers to [`Endpoint::job`] say; nothing when the frontend is not ready any more.
    pub(super) fn parse(terms: &Terms, answers: &[Answer]) -> Result<Option<Self>, Unserved> {
        let [state, port, refs @ ..] = answers else { return Err(Unserved::NoRing) };
        match XenbusState::parse(text(state)) {
            XenbusState::Initialised | XenbusState::Connected => {}
            XenbusState::Unknown
            | XenbusState::Initialising
            | XenbusState::InitWait
            | XenbusState::Closing
            | XenbusState::Closed
            | XenbusState::Reconfiguring
            | XenbusState::Reconfigured => return Ok(None),
        }
        let port = decimal(text(port)).map(Port).ok_or(Unserved::NoPort)?;
        let refs = refs.iter().filter(|gref| terms.pages != Some(1) || gref.is_ok());
        let pages = refs.map(|gref| decimal(text(gref)).map(GrantRef).ok_or(Unserved::NoRing));
        let pages = pages.take(terms.pages.unwrap_or(1)).collect::<Result<Vec<_, _>, _>>()?;
        if pages.is_empty() { Err(Unserved::NoRing) } else { Ok(Some(Self { pages, port })) }
    }
}

/// A node's text, empty when there is none.
fn text(answer: &Answer) -> &str {
    answer.as_ref().map_or("", Value::as_str)
}

/// A decimal number and nothing else.
fn decimal(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests;
