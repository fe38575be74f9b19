//! The frontend's own idea of blkif, written from xen/include/public/io/blkif.h and ring.h. It
//! shares nothing with any backend's code, so that a mistake in one cannot hide in the other.

pub(crate) mod abi;
pub(crate) mod ring;

/// `BLKIF_OP_READ`.
pub(crate) const READ: u8 = 0;
/// `BLKIF_OP_WRITE`.
pub(crate) const WRITE: u8 = 1;
/// `BLKIF_OP_WRITE_BARRIER`.
pub(crate) const BARRIER: u8 = 2;
/// `BLKIF_OP_FLUSH_DISKCACHE`.
pub(crate) const FLUSH: u8 = 3;
/// `BLKIF_OP_RESERVED_1`: a packet command in old SLES sources.
pub(crate) const PACKET: u8 = 4;
/// `BLKIF_OP_DISCARD`.
pub(crate) const DISCARD: u8 = 5;
/// `BLKIF_OP_INDIRECT`.
pub(crate) const INDIRECT: u8 = 6;

/// `BLKIF_RSP_OKAY`.
pub(crate) const OKAY: i16 = 0;
/// `BLKIF_RSP_ERROR`.
pub(crate) const ERROR: i16 = -1;
/// `BLKIF_RSP_EOPNOTSUPP`.
pub(crate) const NOT_SUPPORTED: i16 = -2;

/// `BLKIF_DISCARD_SECURE`.
pub(crate) const SECURE: u8 = 1;
/// `BLKIF_MAX_SEGMENTS_PER_REQUEST`.
pub(crate) const SEGMENTS: usize = 11;
/// `BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`.
pub(crate) const INDIRECT_PAGES: usize = 8;
/// Segments that a page of an indirect request holds: `PAGE_SIZE / sizeof(struct blkif_request_segment)`.
pub(crate) const SEGMENTS_PER_PAGE: usize = 512;
/// Sectors of a page.
pub(crate) const PAGE_SECTORS: u8 = 8;
