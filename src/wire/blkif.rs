//! The blkif protocol's requests and responses in the layout of 64-bit guests
//! (xen/include/public/io/blkif.h, `protocol` = "x86_64-abi"): 112-byte ring entries that a guest
//! filled in, and what they mean. [`super::ring`] carries the entries.
//!
//! Not handled: the 32-bit layout, indirect requests, discard.

use heapless::Vec;

use crate::limits::SEGMENTS;
use crate::units::{GrantRef, SECTOR_SIZE, Sector};

/// The `protocol` node of a frontend that uses this layout.
pub const PROTOCOL: &str = "x86_64-abi";

/// Bytes of a ring entry: `sizeof(union blkif_sring_entry)`.
pub const ENTRY_BYTES: usize = 112;

/// A ring entry, copied out of the ring.
pub type Entry = [u8; ENTRY_BYTES];

/// Sectors in a granted page: segments count in these, whatever the disk's block size is.
const SECTORS_PER_PAGE: u8 = (crate::units::PAGE_SIZE / SECTOR_SIZE) as u8;

const OP_READ: u8 = 0;
const OP_WRITE: u8 = 1;
const OP_FLUSH_DISKCACHE: u8 = 3;

// Offsets in `struct blkif_request` and `struct blkif_request_segment`.
const OPERATION: usize = 0;
const NR_SEGMENTS: usize = 1;
const ID: usize = 8;
const SECTOR_NUMBER: usize = 16;
const SEGMENT: usize = 24;
const SEGMENT_BYTES: usize = 8;
const FIRST_SECT: usize = 4;
const LAST_SECT: usize = 5;

/// What a response repeats from its request, verbatim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// `BLKIF_OP_*`, as the guest wrote it.
    pub operation: u8,
    /// The guest's name for the request: opaque.
    pub id: u64,
}

impl Head {
    /// The head of an entry; any bytes are one.
    #[must_use]
    pub fn parse(entry: &Entry) -> Self {
        Self { operation: entry[OPERATION], id: u64_at(entry, ID) }
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
}

/// A run of sectors inside one granted page; at least one, and none beyond the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The page.
    pub gref: GrantRef,
    first: u8,
    last: u8,
}

impl Segment {
    fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let gref = GrantRef(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let (first, last) = (bytes[FIRST_SECT], bytes[LAST_SECT]);
        if first > last || last >= SECTORS_PER_PAGE {
            return Err(Reject::Segment);
        }
        Ok(Self { gref, first, last })
    }

    /// Where in the page it starts, in bytes.
    #[must_use]
    pub fn offset(self) -> u64 {
        u64::from(self.first) * SECTOR_SIZE as u64
    }

    /// Its length in sectors: 1 to 8.
    #[must_use]
    pub fn sectors(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }
}

/// The segments of a request.
pub type Segments = Vec<Segment, SEGMENTS>;

/// A request whose counts and shapes are sound. Whether the place on the disk exists is for the
/// volume to say, whether the grants do is for Xen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What to do.
    pub op: Operation,
    /// Where on the virtual disk. Means nothing without segments.
    pub sector: Sector,
    /// With which memory; only a flush may have none.
    pub segments: Segments,
}

impl Request {
    /// What an entry asks for.
    ///
    /// # Errors
    /// Why it cannot be asked for; answer it with [`Reject::status`].
    pub fn parse(entry: &Entry) -> Result<Self, Reject> {
        let (op, least) = match entry[OPERATION] {
            OP_READ => (Operation::Read, 1),
            OP_WRITE => (Operation::Write, 1),
            OP_FLUSH_DISKCACHE => (Operation::Flush, 0),
            _ => return Err(Reject::Operation),
        };
        let count = usize::from(entry[NR_SEGMENTS]);
        if !(least..=SEGMENTS).contains(&count) {
            return Err(Reject::SegmentCount);
        }
        let segments = entry[SEGMENT..].chunks_exact(SEGMENT_BYTES).take(count).map(Segment::parse);
        let segments = segments.collect::<Result<Segments, Reject>>()?;
        Ok(Self { op, sector: Sector(u64_at(entry, SECTOR_NUMBER)), segments })
    }

    /// Its length in sectors: at most 88.
    #[must_use]
    pub fn sectors(&self) -> u32 {
        self.segments.iter().map(|segment| segment.sectors()).sum()
    }

    /// Whether it changes the disk.
    #[must_use]
    pub fn writes(&self) -> bool {
        match self.op {
            Operation::Read => false,
            Operation::Write | Operation::Flush => !self.segments.is_empty(),
        }
    }
}

/// Why a request is answered at once, with an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reject {
    /// An operation that is not served.
    Operation,
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
            Self::SegmentCount | Self::Segment | Self::Range | Self::Alignment | Self::ReadOnly => {
                Status::Error
            }
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

/// Bytes of `struct blkif_response`, its padding included.
pub const RESPONSE_BYTES: usize = 16;

/// A response as the guest reads it: the head, the status, and zero wherever the structure has
/// padding, so that no byte of ours reaches a guest (XSA-216).
#[must_use]
pub fn response(head: Head, status: Status) -> [u8; RESPONSE_BYTES] {
    let mut bytes = [0; RESPONSE_BYTES];
    bytes[..8].copy_from_slice(&head.id.to_le_bytes());
    bytes[8] = head.operation;
    bytes[10..12].copy_from_slice(&(status as i16).to_le_bytes());
    bytes
}

fn u64_at(entry: &Entry, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&entry[at..at + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An entry as a guest fills it in; segments are (grant, first, last).
    pub(crate) fn entry(operation: u8, id: u64, sector: u64, segments: &[(u32, u8, u8)]) -> Entry {
        let mut entry = [0xee; ENTRY_BYTES];
        entry[OPERATION] = operation;
        entry[NR_SEGMENTS] = u8::try_from(segments.len()).unwrap();
        entry[ID..ID + 8].copy_from_slice(&id.to_le_bytes());
        entry[SECTOR_NUMBER..SECTOR_NUMBER + 8].copy_from_slice(&sector.to_le_bytes());
        for (place, (gref, first, last)) in entry[SEGMENT..].chunks_exact_mut(SEGMENT_BYTES).zip(segments) {
            place[..4].copy_from_slice(&gref.to_le_bytes());
            place[FIRST_SECT] = *first;
            place[LAST_SECT] = *last;
        }
        entry
    }

    #[test]
    fn a_write_is_read_field_by_field() {
        let entry = entry(1, 0x1122_3344_5566_7788, 0x99, &[(7, 0, 7), (0xffff_ffff, 3, 3)]);
        assert_eq!(Head::parse(&entry), Head { operation: 1, id: 0x1122_3344_5566_7788 });
        let request = Request::parse(&entry).unwrap();
        assert_eq!((request.op, request.sector, request.sectors()), (Operation::Write, Sector(0x99), 9));
        assert_eq!(request.segments[1].gref, GrantRef(0xffff_ffff));
        assert_eq!((request.segments[1].offset(), request.segments[1].sectors()), (1536, 1));
    }

    #[test]
    fn segment_counts_are_bounded() {
        let full = [(1, 0, 7); 11];
        for op in [OP_READ, OP_WRITE] {
            assert_eq!(Request::parse(&entry(op, 0, 0, &[])), Err(Reject::SegmentCount));
            assert_eq!(Request::parse(&entry(op, 0, 0, &full)).map(|r| r.sectors()), Ok(88));
        }
        let flush = Request::parse(&entry(OP_FLUSH_DISKCACHE, 0, u64::MAX, &[])).unwrap();
        assert!(flush.segments.is_empty() && !flush.writes());
        assert!(Request::parse(&entry(OP_FLUSH_DISKCACHE, 0, 0, &full)).unwrap().writes());
        for count in 12..=u8::MAX {
            for op in [OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE] {
                let mut entry = entry(op, 0, 0, &full);
                entry[NR_SEGMENTS] = count;
                assert_eq!(Request::parse(&entry), Err(Reject::SegmentCount));
            }
        }
    }

    #[test]
    fn every_pair_of_sectors_is_judged() {
        for first in 0..=u8::MAX {
            for last in 0..=u8::MAX {
                let parsed = Request::parse(&entry(OP_READ, 0, 0, &[(1, 0, 0), (2, first, last)]));
                if first <= last && last <= 7 {
                    assert_eq!(parsed.unwrap().segments[1].sectors(), u32::from(last - first + 1));
                } else {
                    assert_eq!(parsed, Err(Reject::Segment));
                }
            }
        }
    }

    #[test]
    fn only_unknown_operations_are_unsupported() {
        for op in (0..=u8::MAX).filter(|op| ![0, 1, 3].contains(op)) {
            let reject = Request::parse(&entry(op, 0, 0, &[(1, 0, 0)])).unwrap_err();
            assert_eq!(reject.status(), Status::Unsupported);
        }
        for reject in
            [Reject::SegmentCount, Reject::Segment, Reject::Range, Reject::Alignment, Reject::ReadOnly]
        {
            assert_eq!(reject.status(), Status::Error);
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
