//! The two layouts of requests and responses on x86: what a C compiler makes of blkif.h's structures
//! for a 64-bit and for a 32-bit frontend (xen/include/public/io/protocols.h). They differ in the
//! alignment of 64-bit numbers, which is 8 or 4 bytes.

use super::{INDIRECT_PAGES, SEGMENTS};

/// Which layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Abi {
    /// `x86_64-abi`.
    X64,
    /// `x86_32-abi`.
    X32,
}

/// `struct blkif_request_segment`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) gref: u32,
    pub(crate) first: u8,
    pub(crate) last: u8,
}

impl Segment {
    /// Bytes of a segment: it is padded to the alignment of its grant reference.
    pub(crate) const SIZE: usize = 8;

    /// The segment as it lies in a request or in a page of an indirect request.
    pub(crate) fn encode(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.gref.to_le_bytes();
        [a, b, c, d, self.first, self.last, 0, 0]
    }
}

/// What differs between the kinds of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    /// `struct blkif_request`; the count may lie about the segments.
    Direct { count: u8, segments: &'a [Segment] },
    /// `struct blkif_request_indirect`; the count may lie too.
    Indirect { op: u8, count: u16, pages: &'a [u32] },
    /// `struct blkif_request_discard`.
    Discard { flag: u8, sectors: u64 },
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) op: u8,
    pub(crate) id: u64,
    pub(crate) sector: u64,
    pub(crate) body: Body<'a>,
}

impl<'a> Request<'a> {
    /// A direct request with as many segments as there are.
    pub(crate) const fn direct(op: u8, id: u64, sector: u64, segments: &'a [Segment]) -> Self {
        Self { op, id, sector, body: Body::Direct { count: segments.len() as u8, segments } }
    }

    /// The operation that its response carries: that of an indirect request is the inner one.
    pub(crate) const fn answered_as(&self) -> u8 {
        match self.body {
            Body::Indirect { op, .. } => op,
            Body::Direct { .. } | Body::Discard { .. } => self.op,
        }
    }

    /// The entry, of which the first [`Abi::stride`] bytes count.
    pub(crate) fn encode(&self, abi: Abi) -> [u8; Abi::LARGEST] {
        let mut entry = [0; Abi::LARGEST];
        let mut put = |at: usize, bytes: &[u8]| entry[at..at + bytes.len()].copy_from_slice(bytes);
        // `id` is the first 64-bit number in each of the structures, `sector_number` the next.
        let id = abi.aligned(4);
        put(0, &[self.op]);
        put(id, &self.id.to_le_bytes());
        put(id + 8, &self.sector.to_le_bytes());
        match self.body {
            Body::Direct { count, segments } => {
                put(1, &[count]);
                for (i, segment) in segments.iter().take(SEGMENTS).enumerate() {
                    put(id + 16 + i * Segment::SIZE, &segment.encode());
                }
            }
            Body::Indirect { op, count, pages } => {
                put(1, &[op]);
                put(2, &count.to_le_bytes());
                // After `handle`, which takes two bytes and two of padding.
                for (i, page) in pages.iter().take(INDIRECT_PAGES).enumerate() {
                    put(id + 20 + i * 4, &page.to_le_bytes());
                }
            }
            Body::Discard { flag, sectors } => {
                put(1, &[flag]);
                put(id + 16, &sectors.to_le_bytes());
            }
        }
        entry
    }
}

/// `struct blkif_response`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Response {
    pub(crate) id: u64,
    pub(crate) op: u8,
    pub(crate) status: i16,
}

impl Response {
    /// Bytes that are looked at: the same in both layouts.
    pub(crate) const SIZE: usize = 12;

    /// Reads a response from the start of its entry.
    pub(crate) fn decode(entry: &[u8; Self::SIZE]) -> Self {
        let [id @ .., op, _, low, high] = *entry;
        Self { id: u64::from_le_bytes(id), op, status: i16::from_le_bytes([low, high]) }
    }
}

impl Abi {
    /// Bytes of the larger of the layouts' entries.
    pub(crate) const LARGEST: usize = 112;

    /// Bytes from one ring entry to the next: `union blkif_sring_entry`, as large as a request.
    pub(crate) const fn stride(self) -> usize {
        match self {
            Self::X64 => Self::LARGEST,
            Self::X32 => 108,
        }
    }

    /// `offset` aligned for a 64-bit number.
    const fn aligned(self, offset: usize) -> usize {
        match self {
            Self::X64 => offset.next_multiple_of(8),
            Self::X32 => offset.next_multiple_of(4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DISCARD, INDIRECT, WRITE};
    use super::*;

    const SEGMENT: Segment = Segment { gref: 0x0403_0201, first: 2, last: 5 };

    #[test]
    fn a_direct_request() {
        let request = Request::direct(WRITE, 0x1122, 0x3344, &[SEGMENT]);
        let entry = request.encode(Abi::X64);
        assert_eq!(entry[..10], [1, 1, 0, 0, 0, 0, 0, 0, 0x22, 0x11]);
        assert_eq!(entry[16..18], [0x44, 0x33]);
        assert_eq!(entry[24..32], [1, 2, 3, 4, 2, 5, 0, 0]);
        let entry = request.encode(Abi::X32);
        assert_eq!(entry[..6], [1, 1, 0, 0, 0x22, 0x11]);
        assert_eq!(entry[12..14], [0x44, 0x33]);
        assert_eq!(entry[20..28], [1, 2, 3, 4, 2, 5, 0, 0]);
    }

    #[test]
    fn an_indirect_request() {
        let body = Body::Indirect { op: WRITE, count: 0x102, pages: &[0x0605, 0x0807] };
        let request = Request { op: INDIRECT, id: 9, sector: 8, body };
        assert_eq!(request.answered_as(), WRITE);
        let entry = request.encode(Abi::X64);
        assert_eq!((&entry[..4], entry[8], entry[16]), (&[6, 1, 2, 1][..], 9, 8));
        assert_eq!(entry[28..36], [5, 6, 0, 0, 7, 8, 0, 0]);
        let entry = request.encode(Abi::X32);
        assert_eq!((&entry[..4], entry[4], entry[12]), (&[6, 1, 2, 1][..], 9, 8));
        assert_eq!(entry[24..32], [5, 6, 0, 0, 7, 8, 0, 0]);
    }

    #[test]
    fn a_discard_request() {
        let request = Request { op: DISCARD, id: 9, sector: 8, body: Body::Discard { flag: 1, sectors: 7 } };
        let entry = request.encode(Abi::X64);
        assert_eq!((&entry[..2], entry[8], entry[16], entry[24]), (&[5, 1][..], 9, 8, 7));
        let entry = request.encode(Abi::X32);
        assert_eq!((&entry[..2], entry[4], entry[12], entry[20]), (&[5, 1][..], 9, 8, 7));
    }

    #[test]
    fn a_response() {
        let response = Response::decode(&[1, 0, 0, 0, 0, 0, 0, 0x80, 5, 0xee, 0xfe, 0xff]);
        assert_eq!(response, Response { id: 1 << 63 | 1, op: 5, status: -2 });
    }
}
