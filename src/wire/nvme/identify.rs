//! What Identify returns. Every field is a controller's claim until a parse here has bounded it.

use core::fmt;
use core::time::Duration;

use heapless::Vec;

use super::Unsupported;
use crate::limits;
use crate::units::{Block, Discard};

/// Bytes of the Identify Controller data that are looked at, of 4096.
pub const CONTROLLER_BYTES: usize = 530;
/// Bytes of the Identify Namespace data that are looked at, of 4096: up to the last LBA format.
pub const NAMESPACE_BYTES: usize = 384;
/// Bytes of the command set's Identify Controller data that are looked at, of 4096.
pub const COMMAND_SET_BYTES: usize = 16;
/// Ids in a namespace list (Base 4.4.2).
pub const LIST_ENTRIES: usize = 1024;

/// Text from a controller, padded with spaces; shown without them and escaped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.trim_ascii().escape_ascii().fmt(f)
    }
}

/// What tells a controller from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// MN.
    pub model: Text<40>,
    /// SN.
    pub serial: Text<20>,
}

impl Identity {
    /// Of a controller that was not asked.
    pub const NONE: Self = Self { model: Text([0; 40]), serial: Text([0; 20]) };
}

/// The most that a physical block size may be claimed to be, in bytes: a page of common flash.
const PHYSICAL_BLOCK_LIMIT: u32 = 64 << 10;

/// What is kept of Identify Controller (5.17.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Controller {
    /// What tells it from others.
    pub identity: Identity,
    /// FR.
    pub firmware: Text<8>,
    /// MDTS in bytes: the largest transfer of one command, nothing when there is no limit.
    pub max_transfer: Option<u32>,
    /// VWC: what was written is safe only after a Flush.
    pub volatile_cache: bool,
    /// RTD3E: the time that a shutdown may take, zero when not reported.
    pub shutdown: Duration,
    /// ONCS bit 2: it has the Dataset Management command.
    pub deallocates: bool,
    /// VER: it knows [`super::command::Identify::CommandSet`] or says so. Before version 1.2, which
    /// has VER first, the field that asks for it was shorter.
    pub has_command_set: bool,
    /// AWUPF: so many blocks at most are written all or none when the power fails.
    pub atomic_blocks: u32,
}

impl Controller {
    /// The controller that this data describes. The capabilities' smallest memory page is 4 KiB.
    #[must_use]
    pub fn parse(data: &[u8; CONTROLLER_BYTES]) -> Self {
        let mdts = u32::from(data[77]);
        let rtd3e = u32::from_le_bytes(array(data, 88));
        Self {
            identity: Identity { model: Text(array(data, 24)), serial: Text(array(data, 4)) },
            firmware: Text(array(data, 64)),
            max_transfer: if mdts == 0 { None } else { 1_u32.checked_shl(12 + mdts) },
            volatile_cache: data[525] & 1 != 0,
            shutdown: Duration::from_micros(rtd3e.into()),
            deallocates: data[520] & 1 << 2 != 0,
            has_command_set: u32::from_le_bytes(array(data, 80)) != 0,
            atomic_blocks: count(data, 528),
        }
    }
}

/// The blocks that one command may deallocate in one range, at least one, by the command set's
/// Identify Controller data (NVM Command Set 4.1.5.2): DMRSL and DMSL, where zero is no limit.
#[must_use]
pub fn deallocate_limit(data: &[u8; COMMAND_SET_BYTES]) -> u32 {
    let range = u64::from(u32::from_le_bytes(array(data, 4)));
    let all = u64::from_le_bytes(array(data, 8));
    let limit = [range, all].into_iter().filter(|limit| *limit != 0).min();
    limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(u32::MAX)
}

/// The active namespaces that are used, and how many there are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamespaceList {
    /// The first ids, in order.
    pub ids: Vec<u32, { limits::NAMESPACES }>,
    /// All that were listed.
    pub count: usize,
}

impl NamespaceList {
    /// The list of these ids, which ends at a zero or after [`LIST_ENTRIES`] (Base 4.4.2).
    ///
    /// # Errors
    /// The ids do not increase, or one is reserved.
    pub fn parse(entries: impl Iterator<Item = u32>) -> Result<Self, Unsupported> {
        // Ids from this one on name no single namespace (Base 3.2.1).
        const RESERVED: u32 = 0xffff_fffe;
        let mut list = Self { ids: Vec::new(), count: 0 };
        let mut last = 0;
        for id in entries.take(LIST_ENTRIES).take_while(|id| *id != 0) {
            if id <= last || id >= RESERVED {
                return Err(Unsupported::NamespaceList);
            }
            last = id;
            list.count += 1;
            // A full list is no error: the count tells.
            let _ = list.ids.push(id);
        }
        Ok(list)
    }
}

/// What is kept of Identify Namespace (NVM Command Set 4.1.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    /// NSZE: its size.
    pub blocks: Block,
    /// The data size of its LBA format in bytes, a power of two from 512 to 4096.
    pub block_size: u32,
    /// Bytes that are written well together, and all or none of them when the power fails: a power
    /// of two, not less than a block. Linux counts it the same way, without an upper bound.
    pub physical_block_size: u32,
    /// What deallocations are to heed, if the controller does any.
    pub discard: Discard,
}

/// Why a namespace cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// It has no blocks.
    Empty,
    /// FLBAS names an LBA format beyond NLBAF.
    NoFormat,
    /// MS: each block carries metadata of so many bytes, which blkif cannot.
    Metadata(u16),
    /// LBADS: blocks are 2 to the power of this bytes: less than a sector, or more than a page,
    /// which is all that one grant is sure to hold.
    BlockSize(u8),
    /// Its size in bytes does not fit 64 bits.
    TooLarge,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("it has no blocks"),
            Self::NoFormat => f.write_str("its LBA format is not defined"),
            Self::Metadata(bytes) => write!(f, "each block carries {bytes} bytes of metadata"),
            Self::BlockSize(shift) => write!(f, "its blocks are 2^{shift} bytes, not 2^9 to 2^12"),
            Self::TooLarge => f.write_str("its size in bytes does not fit 64 bits"),
        }
    }
}

impl Format {
    /// The namespace that this data describes, behind a controller with these
    /// [`Controller::atomic_blocks`].
    ///
    /// # Errors
    /// The first reason why it cannot be served.
    pub fn parse(data: &[u8; NAMESPACE_BYTES], atomic_blocks: u32) -> Result<Self, Unusable> {
        let blocks = u64::from_le_bytes(array(data, 0));
        if blocks == 0 {
            return Err(Unusable::Empty);
        }
        let (last_format, flbas) = (data[25], data[26]);
        let extended = if last_format > 15 { flbas >> 5 & 0b11 } else { 0 };
        let index = extended << 4 | flbas & 0xf;
        if index > last_format {
            return Err(Unusable::NoFormat);
        }
        let [metadata0, metadata1, shift, _] = array(data, 128 + 4 * usize::from(index));
        let metadata = u16::from_le_bytes([metadata0, metadata1]);
        if metadata != 0 {
            return Err(Unusable::Metadata(metadata));
        }
        if !(9..=12).contains(&shift) {
            return Err(Unusable::BlockSize(shift));
        }
        if blocks > u64::MAX >> shift {
            return Err(Unusable::TooLarge);
        }
        let block_size = 1 << shift;
        let together = write_granularity(data).min(atomic_unit(data, atomic_blocks));
        Ok(Self {
            blocks: Block(blocks),
            block_size,
            physical_block_size: (block_size << together.ilog2()).min(PHYSICAL_BLOCK_LIMIT),
            discard: Discard { granularity: block_size * deallocate_granularity(data), alignment: 0 },
        })
    }
}

/// Blocks that are written well together: NPWG, where NSFEAT says that it is there.
fn write_granularity(data: &[u8; NAMESPACE_BYTES]) -> u32 {
    if has_preferences(data) { count(data, 64) } else { 1 }
}

/// Blocks that are written all or none when the power fails: NAWUPF, or the controller's word
/// where there is none. One where such units do not start at the first block (NABO).
fn atomic_unit(data: &[u8; NAMESPACE_BYTES], controller: u32) -> u32 {
    let (atomicity, own) = (data[24] & 1 << 1 != 0, count(data, 36));
    match array(data, 38) {
        [0, 0] if atomicity && own > 1 => own,
        [0, 0] => controller,
        _ => 1,
    }
}

/// Blocks that are deallocated together: ranges are to start at multiples of NPDA and to have
/// lengths that are multiples of NPDG. Multiples of the larger one heed both, as they are powers
/// of two; others are ignored.
fn deallocate_granularity(data: &[u8; NAMESPACE_BYTES]) -> u32 {
    let preferred = [count(data, 68), count(data, 70)];
    let is_usable = has_preferences(data) && preferred.iter().all(|blocks| blocks.is_power_of_two());
    if is_usable { preferred[0].max(preferred[1]) } else { 1 }
}

/// NSFEAT bit 4 (OPTPERF): NPWG, NPDG and NPDA are there.
fn has_preferences(data: &[u8; NAMESPACE_BYTES]) -> bool {
    data[24] & 1 << 4 != 0
}

/// A count of blocks that is sent minus one, in 16 bits.
fn count(data: &[u8], offset: usize) -> u32 {
    u32::from(u16::from_le_bytes(array(data, offset))) + 1
}

/// The `N` bytes from `offset` on, which lie within the data: both are constants, or bounded.
fn array<const N: usize>(data: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&data[offset..offset + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec as StdVec;

    use super::*;

    fn namespace(blocks: u64, flbas: u8, formats: &[[u8; 4]]) -> [u8; NAMESPACE_BYTES] {
        let mut data = [0; NAMESPACE_BYTES];
        data[..8].copy_from_slice(&blocks.to_le_bytes());
        data[25] = u8::try_from(formats.len() - 1).unwrap();
        data[26] = flbas;
        for (i, format) in formats.iter().enumerate() {
            data[128 + 4 * i..][..4].copy_from_slice(format);
        }
        data
    }

    #[test]
    fn a_controller_is_described_without_padding_and_escaped() {
        let mut data = [0; CONTROLLER_BYTES];
        data[4..24].copy_from_slice(b"PLATTER0            ");
        data[24..64].copy_from_slice(b"Evil \x1b[2J\"disk\"\n                        ");
        data[64..72].copy_from_slice(b" 10.0.2 ");
        data[77] = 7;
        data[80] = 1;
        data[88..92].copy_from_slice(&2_000_000_u32.to_le_bytes());
        data[520] = 0b100;
        data[525] = 0b111;
        data[528] = 7;
        let controller = Controller::parse(&data);
        assert_eq!(controller.identity.model.to_string(), r#"Evil \x1b[2J\"disk\""#);
        assert_eq!(controller.identity.serial.to_string(), "PLATTER0");
        assert_eq!(controller.firmware.to_string(), "10.0.2");
        assert_eq!(controller.max_transfer, Some(512 << 10));
        assert!(controller.volatile_cache);
        assert_eq!(controller.shutdown, Duration::from_secs(2));
        assert_eq!((controller.deallocates, controller.has_command_set), (true, true));
        assert_eq!(controller.atomic_blocks, 8);
        let silent = Controller::parse(&[0; CONTROLLER_BYTES]);
        assert_eq!((silent.deallocates, silent.has_command_set), (false, false));
        assert_eq!(silent.atomic_blocks, 1);
    }

    #[test]
    fn the_smaller_limit_of_deallocations_counts_and_zero_is_none() {
        let limit = |range: u32, all: u64| {
            let mut data = [0; COMMAND_SET_BYTES];
            data[4..8].copy_from_slice(&range.to_le_bytes());
            data[8..].copy_from_slice(&all.to_le_bytes());
            deallocate_limit(&data)
        };
        assert_eq!((limit(0, 0), limit(0, 1 << 32)), (u32::MAX, u32::MAX));
        assert_eq!((limit(7, 0), limit(0, 9), limit(7, 9), limit(9, 7)), (7, 9, 7, 7));
    }

    /// What is made of these bytes of a namespace's data, in sizes of 512 bytes: its physical block
    /// size, and the granularity of its deallocations.
    fn preferences(atomic_blocks: u32, fields: &[(usize, u16)]) -> (u32, u32) {
        let mut data = namespace(1, 0, &[[0, 0, 9, 0]]);
        for (offset, value) in fields {
            data[*offset..][..2].copy_from_slice(&value.to_le_bytes());
        }
        let format = Format::parse(&data, atomic_blocks).unwrap();
        assert_eq!(format.discard.alignment, 0);
        (format.physical_block_size / 512, format.discard.granularity / 512)
    }

    const NSFEAT: usize = 24;
    const NAWUPF: usize = 36;
    const NABO: usize = 38;
    const NPWG: usize = 64;
    const NPDG: usize = 68;
    const NPDA: usize = 70;
    const OPTPERF: (usize, u16) = (NSFEAT, 1 << 4);

    #[test]
    fn a_physical_block_is_written_well_and_whole() {
        assert_eq!(preferences(1, &[OPTPERF, (NPWG, 7)]).0, 1, "not all or none of it");
        assert_eq!(preferences(8, &[(NPWG, 7)]).0, 1, "without OPTPERF there is no NPWG");
        assert_eq!(preferences(8, &[OPTPERF, (NPWG, 7)]).0, 8);
        assert_eq!(preferences(4, &[OPTPERF, (NPWG, 7)]).0, 4);
        assert_eq!(preferences(7, &[OPTPERF, (NPWG, 5)]).0, 4, "a power of two");
        assert_eq!(preferences(1 << 16, &[OPTPERF, (NPWG, 0xffff)]).0, 128, "bounded");
        let own = (NSFEAT, 1 << 4 | 1 << 1);
        assert_eq!(preferences(1, &[own, (NPWG, 7), (NAWUPF, 3)]).0, 4);
        assert_eq!(preferences(2, &[own, (NPWG, 7), (NAWUPF, 0)]).0, 2, "the controller's word");
        assert_eq!(preferences(2, &[OPTPERF, (NPWG, 7), (NAWUPF, 3)]).0, 2);
        assert_eq!(preferences(8, &[OPTPERF, (NPWG, 7), (NABO, 256)]).0, 1, "such units are elsewhere");
    }

    #[test]
    fn deallocations_heed_what_is_preferred_if_that_makes_sense() {
        assert_eq!(preferences(1, &[(NPDG, 7), (NPDA, 7)]).1, 1, "without OPTPERF there is neither");
        assert_eq!(preferences(1, &[OPTPERF, (NPDG, 7), (NPDA, 7)]).1, 8);
        assert_eq!(preferences(1, &[OPTPERF, (NPDG, 1), (NPDA, 15)]).1, 16);
        assert_eq!(preferences(1, &[OPTPERF, (NPDG, 0xffff)]).1, 1 << 16);
        assert_eq!(preferences(1, &[OPTPERF, (NPDG, 5), (NPDA, 7)]).1, 1);
    }

    #[test]
    fn no_transfer_limit_and_an_absurd_one_are_no_limit() {
        let limit = |mdts| {
            let mut data = [0; CONTROLLER_BYTES];
            data[77] = mdts;
            Controller::parse(&data).max_transfer
        };
        assert_eq!([0, 1, 19, 20, 255].map(limit), [None, Some(8192), Some(1 << 31), None, None]);
    }

    #[test]
    fn formats_from_512_to_4096_bytes_are_served() {
        for (shift, block_size) in [(9, 512), (10, 1024), (11, 2048), (12, 4096)] {
            let data = namespace(99, 1, &[[8, 0, 9, 0], [0, 0, shift, 0]]);
            let format = Format::parse(&data, 1).unwrap();
            assert_eq!((format.blocks, format.block_size), (Block(99), block_size));
            assert_eq!(format.physical_block_size, block_size);
            assert_eq!(format.discard, Discard { granularity: block_size, alignment: 0 });
        }
        let many: StdVec<_> = (0..64).map(|i| if i == 0x23 { [0, 0, 12, 0] } else { [0; 4] }).collect();
        let data = namespace(1, 0b100_0011, &many);
        assert_eq!(Format::parse(&data, 1).unwrap().block_size, 4096);
        // With 16 formats or fewer bits 5 and 6 mean nothing.
        for count in [2, 16] {
            let mut formats = [[0; 4]].repeat(count);
            formats[1] = [0, 0, 9, 0];
            let data = namespace(1, 0b110_0001, &formats);
            assert_eq!(Format::parse(&data, 1).unwrap().block_size, 512, "{count} formats");
        }
    }

    #[test]
    fn formats_that_cannot_be_served_say_why() {
        let refused =
            |blocks, flbas, format| Format::parse(&namespace(blocks, flbas, &[format]), 1).unwrap_err();
        assert_eq!(refused(0, 0, [0, 0, 9, 0]), Unusable::Empty);
        assert_eq!(refused(1, 1, [0, 0, 9, 0]), Unusable::NoFormat);
        assert_eq!(refused(1, 0, [8, 1, 9, 0]), Unusable::Metadata(264));
        assert_eq!(refused(1, 0, [0, 0, 8, 0]), Unusable::BlockSize(8));
        assert_eq!(refused(1, 0, [0, 0, 13, 0]), Unusable::BlockSize(13));
        assert_eq!(refused(1 << 55, 0, [0, 0, 9, 0]), Unusable::TooLarge);
        assert!(Format::parse(&namespace((1 << 55) - 1, 0, &[[0, 0, 9, 0]]), 1).is_ok());
    }

    #[test]
    fn a_namespace_list_ends_at_zero_and_keeps_the_first() {
        let list = NamespaceList::parse([1, 5, 0, 7].into_iter()).unwrap();
        assert_eq!((list.ids.as_slice(), list.count), (&[1, 5][..], 2));
        let list = NamespaceList::parse(1..).unwrap();
        assert_eq!((list.ids.len(), list.count), (limits::NAMESPACES, LIST_ENTRIES));
        let malformed: [&[u32]; 4] = [&[2, 1], &[1, 1], &[u32::MAX], &[0xffff_fffe]];
        for ids in malformed {
            let list = NamespaceList::parse(ids.iter().copied());
            assert_eq!(list, Err(Unsupported::NamespaceList), "{ids:?}");
        }
    }

    #[cfg(feature = "sim")]
    #[test]
    fn hostile_bytes_become_bounded_claims_or_reasons() {
        let mut rng = crate::sim::rng::Rng::new(1);
        let mut usable = 0;
        for _ in 0..20_000 {
            let mut data = [0; NAMESPACE_BYTES];
            rng.fill(&mut data);
            if rng.one_in(2) {
                // Without this hardly any is accepted.
                let shift = data[0] % 16;
                data[128..].as_chunks_mut::<4>().0.fill([0, 0, shift, 0]);
                data[7] = 0;
            }
            let atomic_blocks = rng.within(1..1 << 16) as u32;
            if let Ok(format) = Format::parse(&data, atomic_blocks) {
                assert!([512, 1024, 2048, 4096].contains(&format.block_size));
                let sizes = [format.physical_block_size, format.discard.granularity];
                assert!(sizes.iter().all(|size| size.is_power_of_two() && *size >= format.block_size));
                assert!(format.blocks.0.checked_mul(format.block_size.into()).is_some());
                usable += 1;
            }
            let mut data = [0; CONTROLLER_BYTES];
            rng.fill(&mut data);
            let text = Controller::parse(&data).identity.model.to_string();
            assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
        }
        assert!(usable > 300, "{usable}");
    }
}
