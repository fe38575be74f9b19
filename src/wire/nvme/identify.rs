//! What Identify returns. Every field is a controller's claim until a parse here has bounded it.

use core::fmt;
use core::time::Duration;

use heapless::Vec;

use super::Unsupported;
use crate::limits;
use crate::units::Block;

/// Bytes of the Identify Controller data that are looked at, of 4096.
pub const CONTROLLER_BYTES: usize = 528;
/// Bytes of the Identify Namespace data that are looked at, of 4096: up to the last LBA format.
pub const NAMESPACE_BYTES: usize = 384;
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
        }
    }
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
    /// The namespace that this data describes.
    ///
    /// # Errors
    /// The first reason why it cannot be served.
    pub fn parse(data: &[u8; NAMESPACE_BYTES]) -> Result<Self, Unusable> {
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
        Ok(Self { blocks: Block(blocks), block_size: 1 << shift })
    }
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
        data[88..92].copy_from_slice(&2_000_000_u32.to_le_bytes());
        data[525] = 0b111;
        let controller = Controller::parse(&data);
        assert_eq!(controller.identity.model.to_string(), r#"Evil \x1b[2J\"disk\""#);
        assert_eq!(controller.identity.serial.to_string(), "PLATTER0");
        assert_eq!(controller.firmware.to_string(), "10.0.2");
        assert_eq!(controller.max_transfer, Some(512 << 10));
        assert!(controller.volatile_cache);
        assert_eq!(controller.shutdown, Duration::from_secs(2));
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
            assert_eq!(Format::parse(&data), Ok(Format { blocks: Block(99), block_size }));
        }
        let many: StdVec<_> = (0..64).map(|i| if i == 0x23 { [0, 0, 12, 0] } else { [0; 4] }).collect();
        let data = namespace(1, 0b100_0011, &many);
        assert_eq!(Format::parse(&data), Ok(Format { blocks: Block(1), block_size: 4096 }));
        // With 16 formats or fewer bits 5 and 6 mean nothing.
        let data = namespace(1, 0b110_0001, &[[0; 4], [0, 0, 9, 0]]);
        assert_eq!(Format::parse(&data), Ok(Format { blocks: Block(1), block_size: 512 }));
    }

    #[test]
    fn formats_that_cannot_be_served_say_why() {
        let refused =
            |blocks, flbas, format| Format::parse(&namespace(blocks, flbas, &[format])).unwrap_err();
        assert_eq!(refused(0, 0, [0, 0, 9, 0]), Unusable::Empty);
        assert_eq!(refused(1, 1, [0, 0, 9, 0]), Unusable::NoFormat);
        assert_eq!(refused(1, 0, [8, 1, 9, 0]), Unusable::Metadata(264));
        assert_eq!(refused(1, 0, [0, 0, 8, 0]), Unusable::BlockSize(8));
        assert_eq!(refused(1, 0, [0, 0, 13, 0]), Unusable::BlockSize(13));
        assert_eq!(refused(1 << 55, 0, [0, 0, 9, 0]), Unusable::TooLarge);
        assert!(Format::parse(&namespace((1 << 55) - 1, 0, &[[0, 0, 9, 0]])).is_ok());
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
            if let Ok(format) = Format::parse(&data) {
                assert!([512, 1024, 2048, 4096].contains(&format.block_size));
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
