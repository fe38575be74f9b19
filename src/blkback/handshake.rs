//! What the nodes of a virtual disk mean, and the xenstore jobs that read and write them, as
//! libxl 4.17 and Linux 6.1 use them (xen/include/public/io/blkif.h). No state: that is
//! [`super::vbd`]'s.

use core::fmt;

use crate::units::{DomId, GrantRef, Port};
use crate::volume::Volume;
use crate::wire::blkif;
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

    fn parse(text: &str) -> Option<Self> {
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
    }

    /// What the answers to [`Ours::job`] say; nothing when the directory is gone.
    ///
    /// # Errors
    /// xenstore failed: it is to be asked again.
    pub(super) fn parse(answers: &[Answer]) -> Result<Option<Self>, StoreError> {
        let [state, online, params, mode, frontend_id, removable, device_type] = answers else {
            return Err(StoreError::Other);
        };
        let state = match state {
            Ok(state) => XenbusState::parse(state),
            Err(StoreError::NotFound) => return Ok(None),
            Err(error) => return Err(*error),
        };
        for answer in [online, params, mode, frontend_id, removable, device_type] {
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
}

/// Offers the device: everything the frontend needs to know, and the state it waits for.
///
/// Linux writes all this when it connects. Written now, a node quota that is used up refuses the
/// attach where the toolstack still looks; and a frontend that was resumed, and therefore does not
/// wait for this state, finds it too. What is not offered (more queues, larger rings, indirect
/// requests, barriers) has no node: absent means none, and each costs us of the quota.
pub(super) fn offer(id: DeviceId, from: XenbusState, wish: &Wish, volume: &Volume) -> Job {
    Job::new(&id.home())
        .while_state(&[from])
        .write("sectors", volume.sectors().0)
        .write("sector-size", volume.block_size())
        .write("physical-sector-size", volume.block_size())
        .write("info", wish.info())
        .write("feature-flush-cache", u32::from(volume.volatile_cache))
        .write_state(XenbusState::InitWait)
}

/// What the frontend's directory says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Theirs {
    /// It is not there.
    Gone,
    /// The frontend starts, or starts again.
    Starting,
    /// The frontend has said where its ring is; it may take itself for connected.
    Ready(Result<Endpoint, Unserved>),
    /// The frontend wants to close.
    Closing,
    /// The frontend is closed.
    Closed,
    /// Nothing that matters.
    Other,
}

/// Where a frontend's ring is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Endpoint {
    /// The ring page.
    pub(super) ring: GrantRef,
    /// The frontend's event channel port.
    pub(super) port: Port,
}

/// Why a ready frontend cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unserved {
    /// The layout of 32-bit guests: said, or meant by saying nothing.
    Protocol32,
    /// Some other layout.
    ProtocolUnknown,
    /// A ring of more than the one page that was offered.
    RingOrder,
    /// No grant reference.
    NoRing,
    /// No event channel.
    NoPort,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol32 => "its frontend uses the protocol x86_32-abi, which is not served",
            Self::ProtocolUnknown => "its frontend uses an unknown protocol",
            Self::RingOrder => "its frontend made a ring of several pages, which was not offered",
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
            .read("ring-ref")
            .read("ring-page-order")
            .read("ring-ref0")
            .read("event-channel")
            .read("protocol")
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
            XenbusState::Initialised | XenbusState::Connected => Self::Ready(Endpoint::parse(nodes)),
            XenbusState::Closing => Self::Closing,
            XenbusState::Closed => Self::Closed,
            XenbusState::Unknown
            | XenbusState::InitWait
            | XenbusState::Reconfiguring
            | XenbusState::Reconfigured => Self::Other,
        }
    }
}

impl Endpoint {
    fn parse(nodes: &[Answer]) -> Result<Self, Unserved> {
        let [ring_ref, order, ring_ref0, port, protocol] = nodes else { return Err(Unserved::NoRing) };
        match text(protocol) {
            blkif::PROTOCOL => {}
            // The header says that nothing means the backend's own; Linux on x86 means this one.
            "" | "x86_32-abi" => return Err(Unserved::Protocol32),
            _ => return Err(Unserved::ProtocolUnknown),
        }
        // The presence of an order, even zero, means numbered references; not all frontends agree.
        let ring_ref = match text(order) {
            "" => ring_ref,
            "0" if ring_ref0.is_ok() => ring_ref0,
            "0" => ring_ref,
            _ => return Err(Unserved::RingOrder),
        };
        let ring = decimal(text(ring_ref)).map(GrantRef).ok_or(Unserved::NoRing)?;
        let port = decimal(text(port)).map(Port).ok_or(Unserved::NoPort)?;
        Ok(Self { ring, port })
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
mod tests {
    use super::*;
    use std::vec::Vec;

    fn answers(texts: &[&str]) -> Vec<Answer> {
        let answer = |text: &&str| match *text {
            "-" => Err(StoreError::NotFound),
            "#" => Err(StoreError::Denied),
            "!" => Err(StoreError::TooLong),
            "?" => Err(StoreError::Other),
            text => Ok(Value::try_from(text).unwrap()),
        };
        texts.iter().map(answer).collect()
    }

    fn ours(texts: &[&str; 7]) -> Result<Option<Ours>, StoreError> {
        Ours::parse(&answers(texts))
    }

    #[test]
    fn our_directory_is_read_as_libxl_writes_it() {
        let said = ours(&["1", "1", "/dev/nvme0n1", "w", "5", "0", "disk"]).unwrap().unwrap();
        assert_eq!((said.state, said.online), (XenbusState::Initialising, true));
        assert_eq!((said.wish.writable, said.wish.frontend_id, said.wish.info()), (true, Some(5), 0));
        let said = ours(&["5", "0", "x", "r", "-", "1", "cdrom"]).unwrap().unwrap();
        assert_eq!((said.state, said.online), (XenbusState::Closing, false));
        assert_eq!((said.wish.writable, said.wish.frontend_id, said.wish.info()), (false, None, 7));
    }

    #[test]
    fn what_is_missing_is_harmless() {
        assert_eq!(ours(&["-", "1", "x", "w", "5", "0", "disk"]), Ok(None));
        let said = ours(&["1", "-", "!", "-", "-", "-", "-"]).unwrap().unwrap();
        assert!(said.online && !said.wish.writable);
        assert_eq!(said.wish.target, Err(StoreError::TooLong));
    }

    #[test]
    fn a_failing_store_says_nothing_about_the_device() {
        for at in 0..7 {
            let mut texts = ["1", "1", "x", "w", "5", "0", "disk"];
            texts[at] = "?";
            assert_eq!(ours(&texts), Err(StoreError::Other), "node {at}");
        }
        assert_eq!(Ours::parse(&[]), Err(StoreError::Other));
    }

    #[test]
    fn the_frontends_state_decides() {
        let theirs = |state| Theirs::parse(&answers(&[state, "8", "-", "-", "15", "x86_64-abi"]));
        let endpoint = Ok(Endpoint { ring: GrantRef(8), port: Port(15) });
        assert_eq!(theirs("-"), Theirs::Gone);
        assert_eq!(theirs("#"), Theirs::Gone);
        assert_eq!(theirs("1"), Theirs::Starting);
        assert_eq!(theirs("3"), Theirs::Ready(endpoint));
        assert_eq!(theirs("4"), Theirs::Ready(endpoint));
        assert_eq!(theirs("5"), Theirs::Closing);
        assert_eq!(theirs("6"), Theirs::Closed);
        for state in ["0", "2", "7", "8", "9", "", "04", "4 ", "!", "?"] {
            assert_eq!(theirs(state), Theirs::Other, "{state}");
        }
        assert_eq!(Theirs::parse(&[]), Theirs::Other);
    }

    #[test]
    fn a_ring_is_found_where_frontends_put_it() {
        let ring = |ring_ref, order, ring_ref0, port, protocol| {
            let said = Endpoint::parse(&answers(&[ring_ref, order, ring_ref0, port, protocol]));
            said.map(|endpoint| (endpoint.ring.0, endpoint.port.0))
        };
        let abi = blkif::PROTOCOL;
        assert_eq!(ring("8", "-", "9", "15", abi), Ok((8, 15)));
        assert_eq!(ring("8", "0", "9", "15", abi), Ok((9, 15)));
        assert_eq!(ring("8", "0", "-", "15", abi), Ok((8, 15)));
        assert_eq!(ring("8", "1", "9", "15", abi), Err(Unserved::RingOrder));
        assert_eq!(ring("-", "-", "9", "15", abi), Err(Unserved::NoRing));
        assert_eq!(ring("8", "-", "-", "-", abi), Err(Unserved::NoPort));
        assert_eq!(ring("8", "-", "-", "15", "-"), Err(Unserved::Protocol32));
        assert_eq!(ring("8", "-", "-", "15", "x86_32-abi"), Err(Unserved::Protocol32));
        assert_eq!(ring("8", "-", "-", "15", "arm-abi"), Err(Unserved::ProtocolUnknown));
        for odd in ["", "+8", " 8", "8 ", "-8", "0x8", "4294967296", "8\n", "99999999999999999999999"] {
            assert_eq!(ring(odd, "-", "-", "15", abi), Err(Unserved::NoRing), "{odd:?}");
            assert_eq!(ring("8", "-", "-", odd, abi), Err(Unserved::NoPort), "{odd:?}");
        }
        assert_eq!(ring("4294967295", "-", "-", "0", abi), Ok((u32::MAX, 0)));
    }

    #[test]
    fn the_longest_paths_fit() {
        let id = DeviceId { guest: DomId(u16::MAX), device: u32::MAX };
        assert_eq!(id.errors().as_str(), "error/backend/vbd/65535/4294967295");
        assert_eq!(id.frontend().as_str(), "/local/domain/65535/device/vbd/4294967295");
        let _ = Theirs::job(id).watch("state", &id.token());
        let _ = Ours::job(id);
    }

    #[test]
    fn paths_and_tokens_name_devices() {
        let id = Some(DeviceId { guest: DomId(5), device: 51728 });
        assert_eq!(DeviceId::in_path("backend/vbd/5/51728/state"), id);
        assert_eq!(DeviceId::in_path("backend/vbd/5/51728"), id);
        assert_eq!(DeviceId::in_token("fe/5/51728"), id);
        for other in ["backend", "backend/vbd", "backend/vbd/5", "backend/qdisk/5/1", "backend/vbd/70000/1"] {
            assert_eq!(DeviceId::in_path(other), None, "{other}");
        }
        assert_eq!(DeviceId::in_path("backend/vbd/+5/1"), None);
    }
}
