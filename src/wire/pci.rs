//! PCI configuration space (PCI Local Bus Specification 3.0, chapter 6): where things are, and
//! what the 32-bit words read from there mean. What a function says of itself is a claim: every
//! number is checked here. `drivers::pci` does the reading.

use core::fmt;

use crate::units::BusAddr;

/// Offsets of the aligned 32-bit words of a header (6.1).
pub mod register {
    /// Vendor id, then device id.
    pub const IDS: u8 = 0x00;
    /// Command, then status.
    pub const COMMAND: u8 = 0x04;
    /// Revision, then the three bytes of the class code.
    pub const CLASS: u8 = 0x08;
    /// Cache line size, latency timer, header type, BIST.
    pub const HEADER: u8 = 0x0c;
    /// Base address register 0.
    pub const BAR0: u8 = 0x10;
    /// Base address register 1: the upper half of a 64-bit one.
    pub const BAR1: u8 = 0x14;
    /// The offset of the first capability.
    pub const CAPABILITIES: u8 = 0x34;
}

/// Command register: the function answers at its memory BARs (6.2.2).
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may use the bus by itself: DMA and MSI (6.2.2).
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;

const STATUS_CAPABILITIES: u32 = 1 << (16 + 4);

/// Where a function sits on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The segment, called domain by Linux and Xen.
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// The slot on it, 0 to 31.
    pub slot: u8,
    /// The function in it, 0 to 7.
    pub function: u8,
}

impl Address {
    /// Reads `0000:00:1f.7`, as pciback's `vdev-N` and Linux write it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (segment, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (slot, function) = rest.split_once('.')?;
        Some(Self {
            segment: hex(segment, 0xffff)?,
            bus: u8::try_from(hex(bus, 0xff)?).ok()?,
            slot: u8::try_from(hex(slot, 0x1f)?).ok()?,
            function: u8::try_from(hex(function, 7)?).ok()?,
        })
    }

    /// Slot and function in one byte, as configuration cycles carry them.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        (self.slot & 0x1f) << 3 | self.function & 7
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.slot, self.function)
    }
}

fn hex(text: &str, most: u16) -> Option<u16> {
    if text.starts_with('+') {
        return None;
    }
    u16::from_str_radix(text, 16).ok().filter(|number| *number <= most)
}

/// Who made a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ids {
    /// The vendor, as the PCI-SIG numbers it.
    pub vendor: u16,
    /// The device, as the vendor numbers it.
    pub device: u16,
}

impl Ids {
    /// The ids in the word at [`register::IDS`]; none when no function answers there.
    #[must_use]
    pub fn parse(word: u32) -> Option<Self> {
        let [vendor, device] = halves(word);
        (vendor != 0xffff).then_some(Self { vendor, device })
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// What a function is: base class, subclass and programming interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class(u32);

impl Class {
    /// Mass storage, non-volatile memory, NVM Express (NVMe over PCIe Transport 1.0, 3.8.1).
    pub const NVME: Self = Self(0x01_08_02);

    /// The class in the word at [`register::CLASS`].
    #[must_use]
    pub const fn parse(word: u32) -> Self {
        Self(word >> 8)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// The layout of a header, from the word at [`register::HEADER`]: 0 for a device, 1 for a bridge.
#[must_use]
pub const fn header_layout(word: u32) -> u8 {
    // The top bit of the byte says that the slot has more functions.
    (word >> 16) as u8 & 0x7f
}

/// Why a base address register cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarError {
    /// It decodes I/O ports.
    Ports,
    /// Its type is reserved.
    Type,
    /// It is not there, or the firmware gave it no address.
    Absent,
    /// Its size or address is impossible.
    Impossible,
}

impl fmt::Display for BarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ports => "decodes I/O ports",
            Self::Type => "has a reserved type",
            Self::Absent => "has no address",
            Self::Impossible => "has an impossible size or address",
        })
    }
}

/// A window of memory in which a function answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Where it is.
    pub address: BusAddr,
    /// Its length in bytes, a power of two.
    pub bytes: u64,
}

impl Bar {
    /// Whether the register continues in the next one, from its value.
    #[must_use]
    pub const fn is_64_bit(low: u32) -> bool {
        low & 0b111 == 0b100
    }

    /// The window, from a register's value and its value after all ones were written (6.2.5.1),
    /// low half first. The high halves of a 32-bit register are ignored.
    ///
    /// # Errors
    /// It is no memory window, or not a possible one.
    pub fn parse(value: [u32; 2], sizing: [u32; 2]) -> Result<Self, BarError> {
        let [low, high] = value;
        // The low bits of a register are flags; what is left of all ones is the size, negated.
        let (address, bytes) = match low & 0b111 {
            0b000 => (u64::from(low & !0xf), u64::from((sizing[0] & !0xf).wrapping_neg())),
            0b100 => (whole(low & !0xf, high), whole(sizing[0] & !0xf, sizing[1]).wrapping_neg()),
            0b010 | 0b110 => return Err(BarError::Type),
            _ => return Err(BarError::Ports),
        };
        if address == 0 || bytes == 0 {
            return Err(BarError::Absent);
        }
        if !bytes.is_power_of_two() || address & (bytes - 1) != 0 || address.checked_add(bytes).is_none() {
            return Err(BarError::Impossible);
        }
        Ok(Self { address: BusAddr(address), bytes })
    }
}

/// A walk along the list of capabilities (6.7), which a broken function could tie into a loop:
/// it ends after as many steps as the space has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CapabilityWalk {
    at: u8,
    left: u8,
}

impl CapabilityWalk {
    /// Starts, from the words at [`register::COMMAND`] and [`register::CAPABILITIES`]; none where
    /// the function has no list.
    #[must_use]
    pub const fn start(command_status: u32, pointer: u32) -> Option<Self> {
        if command_status & STATUS_CAPABILITIES == 0 {
            return None;
        }
        // 192 bytes follow the header, and a capability takes at least four.
        Self { at: 0, left: 48 }.step(pointer as u8)
    }

    /// Where the next capability is.
    #[must_use]
    pub const fn offset(self) -> u8 {
        self.at
    }

    /// Goes on, from the word at [`CapabilityWalk::offset`]; none at the end of the list.
    #[must_use]
    pub const fn next(self, word: u32) -> Option<Self> {
        self.step((word >> 8) as u8)
    }

    const fn step(self, pointer: u8) -> Option<Self> {
        let at = pointer & !0b11;
        if at < 0x40 || self.left == 0 {
            return None;
        }
        Some(Self { at, left: self.left - 1 })
    }
}

/// The MSI-X capability (PCI 3.0, 6.8.2): where its two tables lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixCapability {
    table: Place,
    pending: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    bar: u8,
    offset: u32,
}

impl MsixCapability {
    /// Where its second and third word are, if the capability at this offset, which starts with
    /// this word, is MSI-X and all there.
    #[must_use]
    pub const fn places(offset: u8, word: u32) -> Option<[u8; 2]> {
        if word as u8 != 0x11 || offset > 0xf4 {
            return None;
        }
        Some([offset + 4, offset + 8])
    }

    /// The capability, from its second and third word.
    #[must_use]
    pub const fn parse(table: u32, pending: u32) -> Self {
        Self { table: Place::parse(table), pending: Place::parse(pending) }
    }

    /// Whether one of the tables starts within the first `bytes` of a BAR. Tables that start
    /// later do not reach back.
    #[must_use]
    pub const fn starts_within(self, bar: u8, bytes: u32) -> bool {
        self.table.starts_within(bar, bytes) || self.pending.starts_within(bar, bytes)
    }
}

impl Place {
    const fn parse(word: u32) -> Self {
        Self { bar: word as u8 & 0b111, offset: word & !0b111 }
    }

    const fn starts_within(self, bar: u8, bytes: u32) -> bool {
        self.bar == bar && self.offset < bytes
    }
}

fn whole(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The low and the high half of a word.
#[must_use]
pub const fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let whole = Address { segment: 0xabcd, bus: 0xff, slot: 0x1f, function: 7 };
        assert_eq!(Address::parse("abcd:ff:1f.7"), Some(whole));
        assert_eq!(Address::parse("abcd:ff:1f.07"), Some(whole), "as pciback writes it");
        assert_eq!(whole.to_string(), "abcd:ff:1f.7");
        assert_eq!(whole.devfn(), 0xff);
        for text in [
            "",
            "0",
            "0:0",
            "0:0:0",
            "0:0:0.",
            ":0:0.0",
            "0:0:20.0",
            "0:0:0.8",
            "0:100:0.0",
            "10000:0:0.0",
            "0:+0:0.0",
            "0:-1:0.0",
            "g:0:0.0",
            "0:0:0.0 ",
            "0:0:0.0.0",
            "0:0:0:0.0",
        ] {
            assert_eq!(Address::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn who_and_what() {
        let ids = Ids::parse(0x0010_1b36).unwrap();
        assert_eq!(ids.to_string(), "1b36:0010");
        assert_eq!(Ids::parse(0xffff_ffff), None);
        assert_eq!(Class::parse(0x0108_0202), Class::NVME);
        assert_ne!(Class::parse(0x0106_0102), Class::NVME);
        assert_eq!(Class::parse(0x0200_00ff).to_string(), "020000");
        assert_eq!(header_layout(0x1281_3456), 1);
    }

    #[test]
    fn bars() {
        let bar = |address, bytes| Ok(Bar { address: BusAddr(address), bytes });
        let parse = |value, sizing| Bar::parse(value, sizing);
        assert_eq!(parse([0xfebd_0000, 0], [0xffff_c000, 0]), bar(0xfebd_0000, 0x4000));
        assert_eq!(parse([0xfebd_0008, 7], [0xffff_c008, 7]), bar(0xfebd_0000, 0x4000), "prefetchable");
        assert_eq!(parse([0xfebd_0004, 0x12], [0xffff_c004, !0]), bar(0x12_febd_0000, 0x4000));
        assert_eq!(parse([4, 0x40], [4, !0]), bar(0x40_0000_0000, 1 << 32));
        assert_eq!(parse([4, 0x8000_0000], [4, 0x8000_0000]), Err(BarError::Impossible), "ends past the end");
        assert_eq!(parse([0xfebd_0000, 0], [0, 0]), Err(BarError::Absent));
        assert_eq!(parse([0xfebd_0004, 1], [4, 0]), Err(BarError::Absent));
        assert_eq!(parse([0, 0], [0xffff_c000, 0]), Err(BarError::Absent));
        assert_eq!(parse([0xe001, 0], [0xffff_ff01, 0]), Err(BarError::Ports));
        assert_eq!(parse([0xe003, 0], [0xffff_ff03, 0]), Err(BarError::Ports));
        assert_eq!(parse([0xf002, 0], [0xffff_f002, 0]), Err(BarError::Type));
        assert_eq!(parse([0xf006, 0], [0xffff_f006, 0]), Err(BarError::Type));
        assert_eq!(parse([0xfebd_0000, 0], [0xff0f_c000, 0]), Err(BarError::Impossible), "no power of two");
        assert_eq!(parse([0xfebd_2000, 0], [0xffff_c000, 0]), Err(BarError::Impossible), "not aligned");
        assert_eq!(BarError::Type.to_string(), "has a reserved type");
        assert_eq!([0xfebd_0000, 0xfebd_0004, 0xf006].map(Bar::is_64_bit), [false, true, false]);
    }

    #[test]
    fn capabilities_are_walked_and_the_walk_ends() {
        const LISTED: u32 = STATUS_CAPABILITIES;
        assert_eq!(CapabilityWalk::start(0, 0x40), None);
        assert_eq!(CapabilityWalk::start(LISTED, 0), None);
        assert_eq!(CapabilityWalk::start(LISTED, 0x3c), None, "inside the header");
        let walk = CapabilityWalk::start(LISTED, 0xffff_ff43).unwrap();
        assert_eq!(walk.offset(), 0x40);
        assert_eq!(walk.next(0x0003_8001).unwrap().offset(), 0x80);
        assert_eq!(walk.next(0x0003_0001), None);
        let endless = core::iter::successors(Some(walk), |at| at.next(0x4001));
        assert_eq!(endless.take(1000).count(), 48);
    }

    #[test]
    fn msix() {
        assert_eq!(MsixCapability::places(0x40, 0x0040_8011), Some([0x44, 0x48]));
        assert_eq!(MsixCapability::places(0x40, 0x0040_1105), None);
        assert_eq!(MsixCapability::places(0xf4, 0x11), Some([0xf8, 0xfc]));
        assert_eq!(MsixCapability::places(0xf8, 0x11), None);
        let tables = MsixCapability::parse(0x2000, 0x3004);
        assert!(!tables.starts_within(0, 0x2000) && tables.starts_within(0, 0x2001));
        assert!(!tables.starts_within(4, 0x3000) && tables.starts_within(4, 0x3001));
    }
}
