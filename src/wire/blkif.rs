//! The blkif protocol's requests and responses (xen/include/public/io/blkif.h): ring entries that a
//! guest filled in, in the layout of its ABI, and what they mean. [`super::ring`] carries the entries.

use core::fmt;

use crate::limits::{INDIRECT_SEGMENTS, SEGMENTS};
use crate::units::{GrantRef, SECTOR_SIZE, Sector};

/// A layout of ring entries. They differ in where 64-bit numbers are aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// Of 64-bit guests.
    X86_64,
    /// Of 32-bit guests.
    X86_32,
}

impl Protocol {
    /// The layout that a frontend's node `protocol` names, empty when there is none. The header says
    /// that nothing means the backend's own; Linux on x86, and QEMU after it, take it for 32 bits.
    #[must_use]
    pub fn parse(node: &str) -> Option<Self> {
        match node {
            "x86_64-abi" => Some(Self::X86_64),
            "x86_32-abi" | "" => Some(Self::X86_32),
            _ => None,
        }
    }

    /// Bytes of a ring entry: `sizeof(union blkif_sring_entry)`.
    #[must_use]
    pub const fn entry_bytes(self) -> usize {
        match self {
            Self::X86_64 => 112,
            Self::X86_32 => 108,
        }
    }

    const fn id(self) -> usize {
        match self {
            Self::X86_64 => 8,
            Self::X86_32 => 4,
        }
    }

    const fn sector_number(self) -> usize {
        self.id() + 8
    }

    /// What comes after the sector number: `seg`, or `nr_sectors` of a discard, or `handle` of an
    /// indirect request.
    const fn rest(self) -> usize {
        self.id() + 16
    }

    const fn indirect_grefs(self) -> usize {
        self.rest() + 4
    }
}

/// A ring entry, copied out of the ring; the last bytes mean nothing where it is a shorter one.
pub type Entry = [u8; ENTRY_BYTES];

/// Bytes of the longest ring entry.
pub const ENTRY_BYTES: usize = Protocol::X86_64.entry_bytes();

/// Bytes of an entry's start, which says how many of the others are used.
pub const START_BYTES: usize = 8;

/// How many bytes of an entry mean anything, by its first [`START_BYTES`]: a multiple of four, that number at least.
#[must_use]
pub fn used_bytes(protocol: Protocol, start: &[u8]) -> usize {
    let body = match start[OPERATION] {
        OP_DISCARD => 8,
        OP_INDIRECT => protocol.indirect_grefs() - protocol.rest() + 4,
        _ => usize::from(start[NR_SEGMENTS]).min(SEGMENTS) * SEGMENT_BYTES,
    };
    protocol.rest() + body
}

/// Sectors in a granted page: segments count in these, whatever the disk's block size is.
const SECTORS_PER_PAGE: u8 = (crate::units::PAGE_SIZE / SECTOR_SIZE) as u8;

const OP_READ: u8 = 0;
const OP_WRITE: u8 = 1;
const OP_WRITE_BARRIER: u8 = 2;
const OP_FLUSH_DISKCACHE: u8 = 3;
const OP_DISCARD: u8 = 5;
const OP_INDIRECT: u8 = 6;

// Offsets that all layouts share.
const OPERATION: usize = 0;
const NR_SEGMENTS: usize = 1;
const INDIRECT_OP: usize = 1;
const INDIRECT_NR_SEGMENTS: usize = 2;

/// Bytes of `struct blkif_request_segment`.
pub const SEGMENT_BYTES: usize = 8;
const FIRST_SECT: usize = 4;
const LAST_SECT: usize = 5;

/// What a response repeats from its request, verbatim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// `BLKIF_OP_*`, as the guest wrote it; of an indirect request the operation within.
    pub operation: u8,
    /// The guest's name for the request: opaque.
    pub id: u64,
}

impl Head {
    /// The head of an entry; any bytes are one.
    #[must_use]
    pub fn parse(protocol: Protocol, entry: &Entry) -> Self {
        let operation = match entry[OPERATION] {
            OP_INDIRECT => entry[INDIRECT_OP],
            operation => operation,
        };
        Self { operation, id: u64_at(entry, protocol.id()) }
    }
}

/// What a request wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// From the disk into the guest's pages.
    Read,
    /// From the guest's pages to the disk.
    Write,
    /// What was answered before becomes durable. With segments: and then they are written.
    Flush,
    /// Everything before it is done and durable before, and what it writes before anything after it.
    Barrier,
    /// The contents are not needed any more.
    Discard,
}

impl Operation {
    /// One that can be asked for indirectly.
    const fn indirect(operation: u8) -> Option<Self> {
        match operation {
            OP_READ => Some(Self::Read),
            OP_WRITE => Some(Self::Write),
            _ => None,
        }
    }

    /// An operation that can have segments in its entry, and how few make sense.
    const fn direct(operation: u8) -> Option<(Self, usize)> {
        match operation {
            OP_READ => Some((Self::Read, 1)),
            OP_WRITE => Some((Self::Write, 1)),
            OP_FLUSH_DISKCACHE => Some((Self::Flush, 0)),
            OP_WRITE_BARRIER => Some((Self::Barrier, 0)),
            _ => None,
        }
    }
}

/// A run of sectors inside one granted page; at least one, and none beyond the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The page.
    pub gref: GrantRef,
    /// Its first sector in the page, and its last.
    pub first: u8,
    /// Less than 8, and not before the first.
    pub last: u8,
}

impl Segment {
    /// The segment that these bytes describe, in a ring entry or in a page of an indirect request.
    ///
    /// # Errors
    /// It ends before it starts, or outside its page.
    pub fn parse(bytes: [u8; SEGMENT_BYTES]) -> Result<Self, Reject> {
        let segment = Self::read(bytes);
        let makes_sense = segment.first <= segment.last && segment.last < SECTORS_PER_PAGE;
        makes_sense.then_some(segment).ok_or(Reject::Segment)
    }

    const fn read(bytes: [u8; SEGMENT_BYTES]) -> Self {
        let gref = GrantRef(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        Self { gref, first: bytes[FIRST_SECT], last: bytes[LAST_SECT] }
    }

    /// Its length in sectors: 1 to 8.
    #[must_use]
    pub fn sectors(self) -> u64 {
        u64::from(self.last - self.first) + 1
    }
}

/// The segments of a direct request, in its entry: each makes sense.
#[derive(Clone, Copy)]
pub struct Segments<'e> {
    places: &'e [[u8; SEGMENT_BYTES]],
    sectors: u64,
}

impl<'e> Segments<'e> {
    /// The segments at these places.
    ///
    /// # Errors
    /// One makes no sense.
    pub fn parse(places: &'e [[u8; SEGMENT_BYTES]]) -> Result<Self, Reject> {
        let mut sectors = 0;
        for place in places {
            sectors += Segment::parse(*place)?.sectors();
        }
        Ok(Self { places, sectors })
    }

    /// Their length in sectors together.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.sectors
    }

    /// One after the other.
    pub fn iter(self) -> impl Iterator<Item = Segment> {
        self.places.iter().copied().map(Segment::read)
    }
}

impl PartialEq for Segments<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Segments<'_> {}

impl fmt::Debug for Segments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A request whose counts and shapes are sound. Whether the place on the disk exists is for the
/// volume to say, whether the grants do is for Xen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<'e> {
    /// Its segments are in the ring entry; only a flush or a barrier may have none.
    Direct {
        /// What to do.
        op: Operation,
        /// Where on the virtual disk. Means nothing without segments.
        sector: Sector,
        /// With which memory.
        segments: Segments<'e>,
    },
    /// Its segments are in a page of the guest's.
    Indirect {
        /// What to do.
        op: Operation,
        /// Where on the virtual disk.
        sector: Sector,
        /// How many segments: 1 to [`INDIRECT_SEGMENTS`].
        count: usize,
        /// The page that holds them, from its start on.
        page: GrantRef,
    },
    /// The contents of these sectors are not needed any more. The flag that asks for secure erasure
    /// is ignored, as the header has it where that is not offered.
    Discard {
        /// The first sector.
        sector: Sector,
        /// How many.
        sectors: u64,
    },
}

// One page holds the segments of any indirect request.
const _: () = assert!(INDIRECT_SEGMENTS * SEGMENT_BYTES <= crate::units::PAGE_SIZE);

impl<'e> Request<'e> {
    /// What an entry asks for.
    ///
    /// # Errors
    /// Why it cannot be asked for; answer it with [`Reject::status`].
    pub fn parse(protocol: Protocol, entry: &'e Entry) -> Result<Self, Reject> {
        let sector = Sector(u64_at(entry, protocol.sector_number()));
        match entry[OPERATION] {
            OP_DISCARD => Ok(Self::Discard { sector, sectors: u64_at(entry, protocol.rest()) }),
            OP_INDIRECT => {
                let op = Operation::indirect(entry[INDIRECT_OP]).ok_or(Reject::IndirectOperation)?;
                let count =
                    u16::from_le_bytes([entry[INDIRECT_NR_SEGMENTS], entry[INDIRECT_NR_SEGMENTS + 1]]);
                let count = usize::from(count);
                if !(1..=INDIRECT_SEGMENTS).contains(&count) {
                    return Err(Reject::SegmentCount);
                }
                let page = GrantRef(u32_at(entry, protocol.indirect_grefs()));
                Ok(Self::Indirect { op, sector, count, page })
            }
            operation => {
                let (op, least) = Operation::direct(operation).ok_or(Reject::Operation)?;
                let count = usize::from(entry[NR_SEGMENTS]);
                if !(least..=SEGMENTS).contains(&count) {
                    return Err(Reject::SegmentCount);
                }
                let (places, _) = entry[protocol.rest()..].as_chunks::<SEGMENT_BYTES>();
                let segments = Segments::parse(&places[..count])?;
                Ok(Self::Direct { op, sector, segments })
            }
        }
    }
}

/// Why a request is answered at once, with an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// An operation that is not served.
    Operation,
    /// One that cannot be asked for indirectly.
    IndirectOperation,
    /// No segments where some are needed, or more than a request holds.
    SegmentCount,
    /// A segment that ends before it starts, or outside its page.
    Segment,
    /// Beyond the volume's end.
    Range,
    /// Not whole blocks of the disk.
    Alignment,
    /// A write to a device that was attached for reading only.
    ReadOnly,
}

impl Reject {
    /// The status that says so. Frontends take "unsupported" as a reason to never use the operation
    /// again, so it is kept for that.
    #[must_use]
    pub const fn status(self) -> Status {
        match self {
            Self::Operation => Status::Unsupported,
            Self::IndirectOperation
            | Self::SegmentCount
            | Self::Segment
            | Self::Range
            | Self::Alignment
            | Self::ReadOnly => Status::Error,
        }
    }
}

/// `BLKIF_RSP_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Done.
    Okay = 0,
    /// Not done, or not all of it.
    Error = -1,
    /// The operation is not served.
    Unsupported = -2,
}

/// A response as the guest reads it: `struct blkif_response` up to its status, and zero wherever the
/// structure has padding, so that no byte of ours reaches a guest (XSA-216). It is the same in all
/// layouts, but for padding at its end.
#[must_use]
pub fn response(head: Head, status: Status) -> [u8; RESPONSE_BYTES] {
    let mut bytes = [0; RESPONSE_BYTES];
    bytes[..8].copy_from_slice(&head.id.to_le_bytes());
    bytes[8] = head.operation;
    bytes[10..12].copy_from_slice(&(status as i16).to_le_bytes());
    bytes
}

/// Bytes of the longest `struct blkif_response`, its padding included.
pub const RESPONSE_BYTES: usize = 16;

fn u64_at(entry: &Entry, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&entry[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn u32_at(entry: &Entry, at: usize) -> u32 {
    u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use Protocol::{X86_32, X86_64};

    /// An entry as a guest fills it in; segments are (grant, first, last).
    pub(crate) fn entry(operation: u8, id: u64, sector: u64, segments: &[(u32, u8, u8)]) -> Entry {
        entry_of(X86_64, operation, id, sector, segments)
    }

    /// The same in any layout.
    pub(crate) fn entry_of(
        protocol: Protocol,
        operation: u8,
        id: u64,
        sector: u64,
        segments: &[(u32, u8, u8)],
    ) -> Entry {
        let mut entry = numbers(protocol, operation, id, sector);
        entry[NR_SEGMENTS] = u8::try_from(segments.len()).unwrap();
        for (place, segment) in entry[protocol.rest()..].chunks_exact_mut(SEGMENT_BYTES).zip(segments) {
            place.copy_from_slice(&segment_bytes(*segment));
        }
        entry
    }

    /// A segment as it lies in an entry, or in a page of an indirect request.
    pub(crate) fn segment_bytes((gref, first, last): (u32, u8, u8)) -> [u8; SEGMENT_BYTES] {
        let [a, b, c, d] = gref.to_le_bytes();
        [a, b, c, d, first, last, 0xee, 0xee]
    }

    /// An indirect request, whose segments are in the page `gref`.
    pub(crate) fn indirect(protocol: Protocol, op: u8, id: u64, sector: u64, count: u16, gref: u32) -> Entry {
        let mut entry = numbers(protocol, OP_INDIRECT, id, sector);
        entry[1] = op;
        entry[2..4].copy_from_slice(&count.to_le_bytes());
        let at = protocol.rest() + 4;
        entry[at..at + 4].copy_from_slice(&gref.to_le_bytes());
        entry
    }

    /// A discard.
    pub(crate) fn discard(protocol: Protocol, id: u64, sector: u64, sectors: u64) -> Entry {
        let mut entry = numbers(protocol, OP_DISCARD, id, sector);
        let at = protocol.rest();
        entry[at..at + 8].copy_from_slice(&sectors.to_le_bytes());
        entry
    }

    fn numbers(protocol: Protocol, operation: u8, id: u64, sector: u64) -> Entry {
        let mut entry = [0xee; ENTRY_BYTES];
        entry[OPERATION] = operation;
        let at = protocol.id();
        entry[at..at + 8].copy_from_slice(&id.to_le_bytes());
        entry[at + 8..at + 16].copy_from_slice(&sector.to_le_bytes());
        entry
    }

    /// What a direct request says: operation, sector, segments.
    fn direct(protocol: Protocol, entry: &Entry) -> Result<(Operation, Sector, Vec<Segment>), Reject> {
        Request::parse(protocol, entry).map(|request| match request {
            Request::Direct { op, sector, segments } => (op, sector, segments.iter().collect()),
            other => panic!("not direct: {other:?}"),
        })
    }

    #[test]
    fn a_write_is_read_field_by_field_in_both_layouts() {
        for protocol in [X86_64, X86_32] {
            let segments = [(7, 0, 7), (0xffff_ffff, 3, 3)];
            let entry = entry_of(protocol, 1, 0x1122_3344_5566_7788, 0x99, &segments);
            assert_eq!(Head::parse(protocol, &entry), Head { operation: 1, id: 0x1122_3344_5566_7788 });
            let (op, sector, segments) = direct(protocol, &entry).unwrap();
            assert_eq!((op, sector), (Operation::Write, Sector(0x99)));
            assert_eq!(segments[1], Segment { gref: GrantRef(0xffff_ffff), first: 3, last: 3 });
            assert_eq!(segments.iter().map(|segment| segment.sectors()).sum::<u64>(), 9);
        }
    }

    /// The header's structures as C lays them out: offsets written by hand.
    #[test]
    fn fields_are_where_the_header_has_them() {
        let mut entry = [0; ENTRY_BYTES];
        for (i, byte) in (0_u8..).zip(&mut entry) {
            *byte = i;
        }
        let u64_from = |first: u8| u64::from_le_bytes(core::array::from_fn(|i| first + i as u8));
        let u32_from = |first: u8| u32::from_le_bytes(core::array::from_fn(|i| first + i as u8));
        for (protocol, id, sector, rest) in [(X86_64, 8, 16, 24), (X86_32, 4, 12, 20)] {
            entry[0] = OP_DISCARD;
            assert_eq!(Head::parse(protocol, &entry).id, u64_from(id));
            let (sector, sectors) = (Sector(u64_from(sector)), u64_from(rest));
            assert_eq!(Request::parse(protocol, &entry), Ok(Request::Discard { sector, sectors }));
            (entry[0], entry[1], entry[2], entry[3]) = (OP_INDIRECT, OP_WRITE, 0, 1);
            let page = GrantRef(u32_from(rest + 4));
            let expected = Request::Indirect { op: Operation::Write, sector, count: 256, page };
            assert_eq!(Request::parse(protocol, &entry), Ok(expected));
            assert_eq!(Head::parse(protocol, &entry).operation, OP_WRITE, "the operation within");
            (entry[0], entry[1], entry[2], entry[3]) = (OP_WRITE_BARRIER, 1, 2, 3);
            entry[usize::from(rest) + 4] = 0;
            entry[usize::from(rest) + 5] = 7;
            let segment = Segment { gref: GrantRef(u32_from(rest)), first: 0, last: 7 };
            let (op, _, segments) = direct(protocol, &entry).unwrap();
            assert_eq!((op, segments.as_slice()), (Operation::Barrier, &[segment][..]));
            for (i, byte) in (0_u8..).zip(&mut entry) {
                *byte = i;
            }
        }
    }

    #[test]
    fn protocols_are_told_by_name() {
        assert_eq!(Protocol::parse("x86_64-abi"), Some(X86_64));
        assert_eq!([Protocol::parse("x86_32-abi"), Protocol::parse("")], [Some(X86_32); 2]);
        for other in ["arm-abi", "x86_64", "x86_64-abi ", "X86_64-ABI", "0"] {
            assert_eq!(Protocol::parse(other), None, "{other}");
        }
    }

    #[test]
    fn segment_counts_are_bounded() {
        let full = [(1, 0, 7); 11];
        for op in [OP_READ, OP_WRITE] {
            assert_eq!(direct(X86_64, &entry(op, 0, 0, &[])), Err(Reject::SegmentCount));
            assert_eq!(direct(X86_64, &entry(op, 0, 0, &full)).map(|(.., segments)| segments.len()), Ok(11));
        }
        for op in [OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER] {
            assert!(direct(X86_64, &entry(op, 0, u64::MAX, &[])).unwrap().2.is_empty());
            assert_eq!(direct(X86_64, &entry(op, 0, 0, &full)).unwrap().2.len(), 11);
        }
        for count in 12..=u8::MAX {
            for op in [OP_READ, OP_WRITE, OP_WRITE_BARRIER, OP_FLUSH_DISKCACHE] {
                let mut entry = entry(op, 0, 0, &full);
                entry[NR_SEGMENTS] = count;
                assert_eq!(Request::parse(X86_64, &entry), Err(Reject::SegmentCount));
            }
        }
    }

    #[test]
    fn indirect_requests_have_1_to_256_segments_and_an_operation_that_takes_them() {
        for count in 0..=u16::MAX {
            let entry = indirect(X86_64, OP_READ, 0, 0, count, 9);
            let parsed = Request::parse(X86_64, &entry);
            let expected = match count {
                1..=256 => {
                    let (sector, page) = (Sector(0), GrantRef(9));
                    Ok(Request::Indirect { op: Operation::Read, sector, count: count.into(), page })
                }
                _ => Err(Reject::SegmentCount),
            };
            assert_eq!(parsed, expected);
        }
        for op in 2..=u8::MAX {
            let entry = indirect(X86_64, op, 0, 0, 1, 9);
            let parsed = Request::parse(X86_64, &entry);
            assert_eq!(parsed, Err(Reject::IndirectOperation), "{op}");
        }
    }

    #[test]
    fn every_pair_of_sectors_is_judged() {
        for first in 0..=u8::MAX {
            for last in 0..=u8::MAX {
                let parsed = direct(X86_64, &entry(OP_READ, 0, 0, &[(1, 0, 0), (2, first, last)]));
                if first <= last && last <= 7 {
                    assert_eq!(parsed.unwrap().2[1].sectors(), u64::from(last - first + 1));
                } else {
                    assert_eq!(parsed, Err(Reject::Segment));
                }
            }
        }
    }

    #[test]
    fn only_unknown_operations_are_unsupported() {
        for op in (0..=u8::MAX).filter(|op| ![0, 1, 2, 3, 5, 6].contains(op)) {
            let reject = Request::parse(X86_64, &entry(op, 0, 0, &[(1, 0, 0)])).unwrap_err();
            assert_eq!(reject.status(), Status::Unsupported);
        }
        let rejects = [Reject::SegmentCount, Reject::Segment, Reject::Range, Reject::Alignment];
        for reject in rejects.into_iter().chain([Reject::ReadOnly, Reject::IndirectOperation]) {
            assert_eq!(reject.status(), Status::Error);
        }
    }

    #[test]
    fn what_an_entry_does_not_use_means_nothing() {
        for (protocol, operation) in [X86_64, X86_32].into_iter().flat_map(|p| (0..8).map(move |op| (p, op)))
        {
            for count in 0..=u8::MAX {
                let mut entry: Entry = core::array::from_fn(|i| (i as u8).wrapping_mul(37) & 7);
                (entry[OPERATION], entry[NR_SEGMENTS]) = (operation, count);
                let used = used_bytes(protocol, &entry[..START_BYTES]);
                assert!((START_BYTES..=protocol.entry_bytes()).contains(&used) && used.is_multiple_of(4));
                let mut other = entry;
                other[used..].fill(0xa5);
                let [one, another] = [&entry, &other]
                    .map(|entry| (Head::parse(protocol, entry), Request::parse(protocol, entry)));
                assert_eq!(one, another, "{protocol:?}, {operation}, {count}");
            }
        }
    }

    #[test]
    fn responses_have_no_stray_bytes() {
        let head = Head { operation: 3, id: 0x0102_0304_0506_0708 };
        let expected = [8, 7, 6, 5, 4, 3, 2, 1, 3, 0, 0xfe, 0xff, 0, 0, 0, 0];
        assert_eq!(response(head, Status::Unsupported), expected);
        assert_eq!(response(head, Status::Error)[10..12], [0xff, 0xff]);
        assert_eq!(response(head, Status::Okay)[10..12], [0, 0]);
    }
}
