//! The blkif protocol as frontends write it (xen/include/public/io/blkif.h), in the layout of 64-bit
//! and of 32-bit guests: ring entries from their parts, and what a response says. Written from the
//! header and not with the image's own encoders, so that a mistake there is not made here as well.

/// `BLKIF_OP_READ`.
pub const READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub const WRITE: u8 = 1;
/// `BLKIF_OP_WRITE_BARRIER`.
pub const BARRIER: u8 = 2;
/// `BLKIF_OP_FLUSH_DISKCACHE`.
pub const FLUSH: u8 = 3;
/// `BLKIF_OP_DISCARD`.
pub const DISCARD: u8 = 5;
/// `BLKIF_OP_INDIRECT`.
pub const INDIRECT: u8 = 6;

/// `BLKIF_RSP_OKAY`.
pub const OKAY: i16 = 0;
/// `BLKIF_RSP_ERROR`.
pub const ERROR: i16 = -1;
/// `BLKIF_RSP_EOPNOTSUPP`.
pub const EOPNOTSUPP: i16 = -2;

/// Segments of a direct request.
pub const SEGMENTS: usize = 11;

/// Segments that one descriptor page of an indirect request holds.
pub const SEGMENTS_PER_PAGE: usize = 512;

/// Bytes of a segment, in an entry or a descriptor page.
pub const SEGMENT_BYTES: usize = 8;

/// Bytes of the larger layout's ring entry.
pub const ENTRY_BYTES: usize = 112;

/// A ring entry; the smaller layout has fewer bytes.
pub type Entry = [u8; ENTRY_BYTES];

/// A segment: a grant, and the first and last sector of its page.
pub type Segment = (u32, u8, u8);

/// A layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abi {
    /// 64-bit numbers at multiples of eight bytes (`x86_64-abi`).
    X64,
    /// At multiples of four (`x86_32-abi`, and on x86 what a frontend means that does not say).
    X32,
}

/// What all requests have.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// `BLKIF_OP_*`; of an indirect request, the one inside.
    pub operation: u8,
    /// The guest's name for it.
    pub id: u64,
    /// Where it starts.
    pub sector: u64,
}

/// What follows it.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// The segments themselves, at most [`SEGMENTS`].
    Direct(&'a [Segment]),
    /// How many segments the descriptor pages hold, and these pages' grants.
    Indirect(u16, &'a [u32]),
    /// So many sectors; `BLKIF_DISCARD_SECURE` when the flag is 1.
    Discard(u8, u64),
}

/// What an answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's name.
    pub id: u64,
    /// Its operation.
    pub operation: u8,
    /// `BLKIF_RSP_*`.
    pub status: i16,
    /// Whether the structure's padding is zero.
    pub is_clean: bool,
}

impl Abi {
    /// The layout that a frontend uses with this in its `protocol` node, as Linux on x86 takes it.
    #[must_use]
    pub fn of(protocol: Option<&str>) -> Self {
        if protocol == Some("x86_64-abi") { Self::X64 } else { Self::X32 }
    }

    /// Bytes of a ring entry.
    #[must_use]
    pub const fn stride(self) -> usize {
        match self {
            Self::X64 => ENTRY_BYTES,
            Self::X32 => 108,
        }
    }

    /// Bytes that come earlier than in the larger layout, from the id on.
    const fn shift(self) -> usize {
        match self {
            Self::X64 => 0,
            Self::X32 => 4,
        }
    }

    /// Writes a request into an entry; bytes that the format does not name stay as they are.
    pub fn write(self, entry: &mut Entry, head: Head, body: Body<'_>) {
        let shift = self.shift();
        entry[8 - shift..][..8].copy_from_slice(&head.id.to_le_bytes());
        entry[16 - shift..][..8].copy_from_slice(&head.sector.to_le_bytes());
        entry[0] = head.operation;
        match body {
            Body::Direct(segments) => {
                entry[1] = segments.len() as u8;
                let places = entry[24 - shift..].chunks_exact_mut(SEGMENT_BYTES);
                places.zip(segments).for_each(|(place, segment)| write_segment(place, *segment));
            }
            Body::Discard(flag, sectors) => {
                entry[1] = flag;
                entry[24 - shift..][..8].copy_from_slice(&sectors.to_le_bytes());
            }
            Body::Indirect(count, pages) => {
                (entry[0], entry[1]) = (INDIRECT, head.operation);
                entry[2..4].copy_from_slice(&count.to_le_bytes());
                for (place, gref) in entry[28 - shift..].chunks_exact_mut(4).zip(pages) {
                    place.copy_from_slice(&gref.to_le_bytes());
                }
            }
        }
    }

    /// Reads an answer.
    #[must_use]
    pub fn response(self, entry: &Entry) -> Response {
        let id = u64::from_le_bytes(*entry.first_chunk().expect("an entry is longer than an id"));
        let tail = if self == Self::X64 { &entry[12..16] } else { &[] };
        Response {
            id,
            operation: entry[8],
            status: i16::from_le_bytes([entry[10], entry[11]]),
            is_clean: entry[9] == 0 && tail.iter().all(|byte| *byte == 0),
        }
    }
}

/// Writes a segment, but for its two bytes of padding.
pub fn write_segment(place: &mut [u8], (gref, first, last): Segment) {
    place[..4].copy_from_slice(&gref.to_le_bytes());
    place[4..6].copy_from_slice(&[first, last]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { operation: WRITE, id: 0x1112_1314_1516_1718, sector: 0x2122_2324_2526_2728 };
    const ID: [u8; 8] = [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11];
    const SECTOR: [u8; 8] = [0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21];
    const PAD: [u8; 4] = [0xee; 4];

    fn written(abi: Abi, body: Body<'_>) -> Entry {
        let mut entry = [0xee; ENTRY_BYTES];
        abi.write(&mut entry, HEAD, body);
        entry
    }

    /// The first bytes of an entry, the id's and the sector's put in.
    fn entry(start: &[u8], rest: &[u8]) -> Vec<u8> {
        [start, &ID[..], &SECTOR[..], rest].concat()
    }

    #[test]
    fn segments_are_where_each_layout_has_them() {
        let body = Body::Direct(&[(0x3132_3334, 1, 6), (9, 0, 7)]);
        let rest = [0x34, 0x33, 0x32, 0x31, 1, 6, 0xee, 0xee, 9, 0, 0, 0, 0, 7, 0xee, 0xee, 0xee];
        assert_eq!(written(Abi::X64, body)[..41], entry(&[1, 2, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee], &rest));
        assert_eq!(written(Abi::X32, body)[..37], entry(&[1, 2, 0xee, 0xee], &rest));
        let full = written(Abi::X32, Body::Direct(&[(1, 0, 7); SEGMENTS]));
        assert_eq!(full[100..], [1, 0, 0, 0, 0, 7, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]);
        assert_eq!((Abi::X64.stride(), Abi::X32.stride()), (112, 108));
    }

    #[test]
    fn a_discard_has_a_flag_and_a_count() {
        let body = Body::Discard(1, 0x41);
        let rest = [0x41, 0, 0, 0, 0, 0, 0, 0, 0xee];
        let head = |operation| Head { operation, ..HEAD };
        for (abi, start) in
            [(Abi::X64, &[5, 1, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee][..]), (Abi::X32, &[5, 1, 0xee, 0xee])]
        {
            let mut bytes = [0xee; ENTRY_BYTES];
            abi.write(&mut bytes, head(DISCARD), body);
            assert_eq!(bytes[..start.len() + 25], entry(start, &rest));
        }
    }

    #[test]
    fn an_indirect_request_names_its_descriptor_pages() {
        let body = Body::Indirect(0x0102, &[0x51, 0x52]);
        let rest = [0xee, 0xee, 0xee, 0xee, 0x51, 0, 0, 0, 0x52, 0, 0, 0, 0xee];
        let start = [6, 1, 2, 1, 0xee, 0xee, 0xee, 0xee];
        assert_eq!(written(Abi::X64, body)[..37], entry(&start, &rest));
        assert_eq!(written(Abi::X32, body)[..33], entry(&start[..4], &rest));
    }

    #[test]
    fn padding_of_an_answer_is_seen_where_there_is_any() {
        let mut entry = [0; ENTRY_BYTES];
        entry[..12].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1, 3, 0, 0xfe, 0xff]);
        let id = 0x0102_0304_0506_0708;
        let clean = Response { id, operation: FLUSH, status: EOPNOTSUPP, is_clean: true };
        assert_eq!([Abi::X64, Abi::X32].map(|abi| abi.response(&entry)), [clean; 2]);
        entry[12..16].copy_from_slice(&PAD);
        assert!(!Abi::X64.response(&entry).is_clean);
        assert!(Abi::X32.response(&entry).is_clean, "its structure ends before");
        entry[9] = 1;
        assert!(!Abi::X32.response(&entry).is_clean);
    }

    #[test]
    fn a_frontend_that_names_no_layout_means_the_small_one() {
        let abis = [Some("x86_64-abi"), Some("x86_32-abi"), None].map(Abi::of);
        assert_eq!(abis, [Abi::X64, Abi::X32, Abi::X32]);
    }
}
