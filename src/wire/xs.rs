//! xenstore's messages and the layout of its byte ring (xen/include/public/io/xs_wire.h,
//! docs/misc/xenstore.txt). The client that speaks them is `xenstore`; the work it is given is
//! [`super::xenbus`]'s.
//!
//! Only what the client uses: no permissions, no control messages, no DIRECTORY_PART (oxenstored
//! does not know it).

use heapless::{String, Vec};

use super::xenbus::{Node, Path, StoreError, Value};
use crate::limits;

/// Bytes of the ring of either direction (`XENSTORE_RING_SIZE`).
pub const RING_SIZE: usize = 1024;

/// Where the requests' ring is in the shared page (`req`).
pub const REQ: usize = 0;

/// Where the ring of replies and watch events is (`rsp`).
pub const RSP: usize = 1024;

/// Where the daemon says how far it has read requests (`req_cons`).
pub const REQ_CONS: usize = 2048;

/// Where we say how far we have written requests (`req_prod`).
pub const REQ_PROD: usize = 2052;

/// Where we say how far we have read (`rsp_cons`).
pub const RSP_CONS: usize = 2056;

/// Where the daemon says how far it has written (`rsp_prod`).
pub const RSP_PROD: usize = 2060;

/// Bytes of a message's header (`struct xsd_sockmsg`).
pub const HEADER: usize = 16;

/// Names below a node, each ended by a NUL; a reply's payload holds no more.
pub type Names = String<{ limits::STORE_PAYLOAD }>;

/// A request as it goes out, header and all; a write is the longest.
pub type Message = Vec<u8, { HEADER + limits::PATH + 1 + limits::NODE + 1 + limits::VALUE }>;

/// What a message is (`enum xsd_sockmsg_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageType {
    /// Lists the names below a node.
    Directory = 1,
    /// Reads a value.
    Read = 2,
    /// Sets a watch.
    Watch = 4,
    /// Removes a watch.
    Unwatch = 5,
    /// Begins a transaction.
    TransactionStart = 6,
    /// Commits or drops a transaction.
    TransactionEnd = 7,
    /// Writes a value.
    Write = 11,
    /// Removes a node and everything below it.
    Rm = 13,
    /// A watched node changed; answers no request.
    WatchEvent = 15,
    /// Answers a request that failed.
    Error = 16,
}

impl MessageType {
    const fn parse(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Directory,
            2 => Self::Read,
            4 => Self::Watch,
            5 => Self::Unwatch,
            6 => Self::TransactionStart,
            7 => Self::TransactionEnd,
            11 => Self::Write,
            13 => Self::Rm,
            15 => Self::WatchEvent,
            16 => Self::Error,
            _ => return None,
        })
    }
}

/// Our name for a request; its reply echoes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestId(pub u32);

/// The daemon's name for a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionId(pub u32);

impl TransactionId {
    /// Not in a transaction.
    pub const NONE: Self = Self(0);
}

/// What starts each message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the message is.
    pub kind: MessageType,
    /// The request that it is or answers.
    pub id: RequestId,
    /// The transaction that it belongs to.
    pub transaction: TransactionId,
    /// Bytes of payload that follow, at most [`limits::STORE_PAYLOAD`].
    pub len: usize,
}

impl Header {
    /// Reads a header; nothing when its type is none that a client gets, or its payload longer
    /// than the protocol allows.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Option<Self> {
        let [kind, id, transaction, len] = words(bytes);
        let len = usize::try_from(len).ok().filter(|len| *len <= limits::STORE_PAYLOAD)?;
        let kind = MessageType::parse(kind)?;
        Some(Self { kind, id: RequestId(id), transaction: TransactionId(transaction), len })
    }
}

fn words(bytes: &[u8; HEADER]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    core::array::from_fn(|i| u32::from_le_bytes(words[i]))
}

/// A node to ask about: `node` below `base`, or `base` itself when `node` is empty. Without a
/// base it is relative to our own home, which itself has no such name.
#[derive(Clone, Copy, Debug)]
pub struct NodePath<'a> {
    /// The directory.
    pub base: &'a Path,
    /// The name in it.
    pub node: &'a Node,
}

/// What a client asks.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// The names below a node.
    Directory(NodePath<'a>),
    /// A node's value.
    Read(NodePath<'a>),
    /// That a node be made if need be and hold a value.
    Write(NodePath<'a>, &'a Value),
    /// That a node and everything below it go.
    Rm(NodePath<'a>),
    /// To be told of changes to a node or below it, with a token.
    Watch(NodePath<'a>, &'a Node),
    /// The end of such a watch.
    Unwatch(NodePath<'a>, &'a Node),
    /// A transaction.
    TransactionStart,
    /// Its end: all of it or nothing.
    TransactionEnd {
        /// Whether what was done in it is to stay.
        commit: bool,
    },
}

impl Request<'_> {
    /// The type that the request has, and its reply unless it is an error.
    #[must_use]
    pub const fn kind(&self) -> MessageType {
        match self {
            Self::Directory(_) => MessageType::Directory,
            Self::Read(_) => MessageType::Read,
            Self::Write(..) => MessageType::Write,
            Self::Rm(_) => MessageType::Rm,
            Self::Watch(..) => MessageType::Watch,
            Self::Unwatch(..) => MessageType::Unwatch,
            Self::TransactionStart => MessageType::TransactionStart,
            Self::TransactionEnd { .. } => MessageType::TransactionEnd,
        }
    }

    /// The request as bytes.
    #[must_use]
    pub fn encode(&self, id: RequestId, transaction: TransactionId) -> Message {
        let mut message = Message::new();
        for word in [self.kind() as u32, id.0, transaction.0, 0] {
            put(&mut message, &word.to_le_bytes());
        }
        self.encode_payload(&mut message);
        // A message is shorter than 64 KiB by its type.
        let len = (message.len() - HEADER) as u32;
        message[HEADER - 4..HEADER].copy_from_slice(&len.to_le_bytes());
        message
    }

    fn encode_payload(&self, message: &mut Message) {
        match self {
            Self::Directory(path) | Self::Read(path) | Self::Rm(path) => put_path(message, *path),
            Self::Write(path, value) => {
                put_path(message, *path);
                put(message, value.as_bytes());
            }
            Self::Watch(path, token) | Self::Unwatch(path, token) => {
                put_path(message, *path);
                put(message, token.as_bytes());
                put(message, b"\0");
            }
            Self::TransactionStart => put(message, b"\0"),
            Self::TransactionEnd { commit: true } => put(message, b"T\0"),
            Self::TransactionEnd { commit: false } => put(message, b"F\0"),
        }
    }
}

fn put_path(message: &mut Message, path: NodePath<'_>) {
    put(message, path.base.as_bytes());
    if !path.base.is_empty() && !path.node.is_empty() {
        put(message, b"/");
    }
    put(message, path.node.as_bytes());
    put(message, b"\0");
}

fn put(message: &mut Message, bytes: &[u8]) {
    message.extend_from_slice(bytes).expect("a message has room for the longest of each of its parts");
}

/// The error that the payload of an error message names.
#[must_use]
pub fn error(payload: &[u8]) -> StoreError {
    match payload.strip_suffix(b"\0").unwrap_or(payload) {
        b"ENOENT" => StoreError::NotFound,
        b"EACCES" | b"EPERM" => StoreError::Denied,
        // oxenstored says EQUOTA, which xs_wire.h does not know, where C xenstored says ENOSPC.
        b"EQUOTA" | b"ENOSPC" | b"E2BIG" => StoreError::Quota,
        b"EAGAIN" => StoreError::Again,
        _ => StoreError::Other,
    }
}

/// The value in the reply to a read.
///
/// # Errors
/// [`StoreError::TooLong`] or [`StoreError::Malformed`].
pub fn value(payload: &[u8]) -> Result<Value, StoreError> {
    let text = str::from_utf8(payload).map_err(|_| StoreError::Malformed)?;
    Value::try_from(text).map_err(|_| StoreError::TooLong)
}

/// The names in the reply to a listing.
///
/// # Errors
/// [`StoreError::TooLong`] or [`StoreError::Malformed`].
pub fn names(payload: &[u8]) -> Result<Names, StoreError> {
    let text = str::from_utf8(payload).map_err(|_| StoreError::Malformed)?;
    Names::try_from(text).map_err(|_| StoreError::TooLong)
}

/// The transaction in the reply that begins one: a decimal number, which is never 0.
#[must_use]
pub fn transaction_id(payload: &[u8]) -> Option<TransactionId> {
    let digits = payload.strip_suffix(b"\0").unwrap_or(payload);
    // The parse below would take a sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let id = str::from_utf8(digits).ok()?.parse().ok()?;
    (id != 0).then_some(TransactionId(id))
}

/// The path and the token of a watch event, which end in a NUL each; nothing when they do not.
///
/// Whoever owns a watched node can make paths below it as long as they like. Of a path that does
/// not fit here we get an ancestor, and a token that does not is none of ours and comes back empty.
#[must_use]
pub fn watch_event(payload: &[u8]) -> Option<(Path, Node)> {
    let mut strings = payload.split(|byte| *byte == 0);
    let (path, token, _after_nul) = (strings.next()?, strings.next()?, strings.next()?);
    let token = str::from_utf8(token).ok().and_then(|token| Node::try_from(token).ok());
    Some((nearest_path(path), token.unwrap_or_default()))
}

/// The path, or the nearest ancestor of it that is text and fits.
fn nearest_path(bytes: &[u8]) -> Path {
    let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    if text.len() == bytes.len()
        && let Ok(path) = Path::try_from(text)
    {
        return path;
    }
    let fits = &text[..text.floor_char_boundary(limits::PATH)];
    let parent = fits.rfind('/').map_or("", |end| &fits[..end]);
    Path::try_from(parent).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::try_from(text).unwrap()
    }

    fn node(text: &str) -> Node {
        Node::try_from(text).unwrap()
    }

    fn encoded(request: &Request<'_>) -> (Header, std::vec::Vec<u8>) {
        let message = request.encode(RequestId(0x0102_0304), TransactionId(9));
        let header = Header::parse(message.first_chunk().unwrap()).unwrap();
        (header, message[HEADER..].to_vec())
    }

    #[test]
    fn requests_have_the_layout_of_xs_wire_h() {
        let (base, name, token) = (path("/a/b"), node("state"), node("fe/5"));
        let value = Value::try_from("4").unwrap();
        let at = NodePath { base: &base, node: &name };
        for (request, number, payload) in [
            (Request::Directory(at), 1, &b"/a/b/state\0"[..]),
            (Request::Read(at), 2, b"/a/b/state\0"),
            (Request::Watch(at, &token), 4, b"/a/b/state\0fe/5\0"),
            (Request::Unwatch(at, &token), 5, b"/a/b/state\0fe/5\0"),
            (Request::TransactionStart, 6, b"\0"),
            (Request::TransactionEnd { commit: true }, 7, b"T\0"),
            (Request::TransactionEnd { commit: false }, 7, b"F\0"),
            (Request::Write(at, &value), 11, b"/a/b/state\x004"),
            (Request::Rm(at), 13, b"/a/b/state\0"),
        ] {
            let (header, bytes) = encoded(&request);
            assert_eq!((header.kind as u32, bytes.as_slice()), (number, payload));
            assert_eq!((header.id, header.transaction), (RequestId(0x0102_0304), TransactionId(9)));
            assert_eq!(header.len, payload.len());
        }
        let message = Request::TransactionStart.encode(RequestId(0x0102_0304), TransactionId(9));
        assert_eq!(message, [6, 0, 0, 0, 4, 3, 2, 1, 9, 0, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn base_and_node_are_joined_only_when_there_are_both() {
        for (base, name, joined) in
            [("backend/vbd", "5", "backend/vbd/5\0"), ("", "backend", "backend\0"), ("/a/b", "", "/a/b\0")]
        {
            let (base, name) = (path(base), node(name));
            let (_, bytes) = encoded(&Request::Read(NodePath { base: &base, node: &name }));
            assert_eq!(bytes, joined.as_bytes());
        }
    }

    #[test]
    fn the_longest_request_fits() {
        let (base, name) = (path(&"b".repeat(limits::PATH)), node(&"n".repeat(limits::NODE)));
        let value = Value::try_from("v".repeat(limits::VALUE).as_str()).unwrap();
        let (header, _) = encoded(&Request::Write(NodePath { base: &base, node: &name }, &value));
        assert_eq!(header.len, limits::PATH + 1 + limits::NODE + 1 + limits::VALUE);
    }

    #[test]
    fn headers_of_unknown_type_or_length_are_refused() {
        let header = |kind: u32, len: u32| {
            let mut bytes = [0; HEADER];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            bytes[12..].copy_from_slice(&len.to_le_bytes());
            Header::parse(&bytes)
        };
        assert_eq!(
            header(15, 4096).map(|header| (header.kind, header.len)),
            Some((MessageType::WatchEvent, 4096))
        );
        for (kind, len) in [(15, 4097), (2, u32::MAX), (0, 0), (17, 0), (0xffff, 0), (u32::MAX, 0)] {
            assert_eq!(header(kind, len), None, "type {kind}, {len} bytes");
        }
    }

    #[test]
    fn error_strings_of_both_daemons_are_known() {
        for (text, expected) in [
            (&b"ENOENT\0"[..], StoreError::NotFound),
            (b"ENOENT", StoreError::NotFound),
            (b"EACCES\0", StoreError::Denied),
            (b"EPERM\0", StoreError::Denied),
            (b"EQUOTA\0", StoreError::Quota),
            (b"ENOSPC\0", StoreError::Quota),
            (b"E2BIG\0", StoreError::Quota),
            (b"EAGAIN\0", StoreError::Again),
            (b"EINVAL\0", StoreError::Other),
            (b"ENOENT\0\0", StoreError::Other),
            (b"", StoreError::Other),
            (b"\xff\xfe", StoreError::Other),
        ] {
            assert_eq!(error(text), expected);
        }
    }

    #[test]
    fn values_are_text_of_bounded_length() {
        assert_eq!(value(b"/dev/nvme0n1").as_deref(), Ok("/dev/nvme0n1"));
        assert_eq!(value(b"").as_deref(), Ok(""));
        assert_eq!(value(b"\xff"), Err(StoreError::Malformed));
        assert!(value(&[b'a'; limits::VALUE]).is_ok());
        assert_eq!(value(&[b'a'; limits::VALUE + 1]), Err(StoreError::TooLong));
    }

    #[test]
    fn transactions_are_strict_decimal_numbers() {
        assert_eq!(transaction_id(b"17\0"), Some(TransactionId(17)));
        assert_eq!(transaction_id(b"4294967295\0"), Some(TransactionId(u32::MAX)));
        for bad in [
            &b""[..],
            b"\0",
            b"0\0",
            b"+1\0",
            b"-1\0",
            b" 1\0",
            b"1 \0",
            b"1\0\0",
            b"4294967296\0",
            b"\xff\0",
        ] {
            assert_eq!(transaction_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn watch_events_carry_path_and_token() {
        assert_eq!(watch_event(b"a/b\0tok\0"), Some((path("a/b"), node("tok"))));
        for bad in [&b""[..], b"\0", b"a\0tok", b"a"] {
            assert_eq!(watch_event(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_path_that_does_not_fit_becomes_an_ancestor() {
        let watched = "/local/domain/5/device/vbd/51728/state";
        let long = std::format!("{watched}/{}\0tok\0", "x".repeat(3000));
        assert_eq!(watch_event(long.as_bytes()), Some((path(watched), node("tok"))));
        assert_eq!(watch_event(b"a/b\xff/c\0tok\0"), Some((path("a"), node("tok"))));
        assert_eq!(watch_event(&[&[b'x'; 200][..], b"\0tok\0"].concat()), Some((path(""), node("tok"))));
        // Cutting must not split a character.
        let wide = std::format!("/a/{}\0tok\0", "é".repeat(100));
        assert_eq!(watch_event(wide.as_bytes()), Some((path("/a"), node("tok"))));
    }

    #[test]
    fn tokens_come_back_verbatim_or_not_at_all() {
        let longest = "t".repeat(limits::NODE);
        assert_eq!(watch_event(std::format!("a\0{longest}\0").as_bytes()), Some((path("a"), node(&longest))));
        assert_eq!(watch_event(std::format!("a\0{longest}t\0").as_bytes()), Some((path("a"), node(""))));
        assert_eq!(watch_event(b"a\0\xff\0"), Some((path("a"), node(""))));
    }
}
