//! A simulated pciback: its end of the shared page, and the configuration space of the functions
//! it lends, filtered as Linux's xen-pciback filters it. The xenstore side is for whoever owns it.

use std::vec::Vec;

use crate::mem::frame::Frame;
use crate::wire::pci::{COMMAND_MEMORY, register};
use crate::wire::pciif::{ACTIVE, command, offset};

const ERR_DEV_NOT_FOUND: i32 = -1;
const ERR_INVALID_OFFSET: i32 = -2;
const ERR_NOT_IMPLEMENTED: i32 = -4;
const ERR_OP_FAILED: i32 = -5;
const ENXIO: i32 = -6;
const EALREADY: i32 = -114;

/// Where a [`Function::nvme`] has its MSI-X capability.
pub const MSIX: u8 = 0x40;

/// A function as pciback lends it: always at segment 0, bus 0, function 0.
#[derive(Clone, Debug)]
pub struct Function {
    /// The 64 words of configuration space.
    pub words: [u32; 64],
    /// The length of BAR0 in bytes, a power of two.
    pub bar_len: u64,
    /// The interrupt that enabling MSI-X gives.
    pub pirq: u16,
    /// What pciback answers to enabling MSI-X, if it cannot: an error, or a value.
    pub msix_failure: Option<(i32, u32)>,
    /// Whether MSI-X is enabled.
    pub msix: bool,
    /// Whether it is lent to the guest.
    pub lent: bool,
    is_sizing: [bool; 2],
}

impl Function {
    /// A function that looks like QEMU's NVMe controller: a 64-bit BAR0 of 16 KiB, and MSI-X with
    /// its table at 0x2000 and its pending bits at 0x3000 of it.
    #[must_use]
    pub fn nvme(bar: u64, pirq: u16) -> Self {
        let mut words = [0; 64];
        words[word(register::IDS)] = 0x0010_1b36;
        words[word(register::COMMAND)] = 1 << 20;
        words[word(register::CLASS)] = 0x0108_0202;
        words[word(register::BAR0)] = bar as u32 | 0b100;
        words[word(register::BAR1)] = (bar >> 32) as u32;
        words[word(register::CAPABILITIES)] = 0x80;
        // Power management first, as a capability to be skipped.
        words[word(0x80)] = 0x0003_0001 | u32::from(MSIX) << 8;
        words[word(MSIX)] = 0x0040_0011;
        words[word(MSIX + 4)] = 0x2000;
        words[word(MSIX + 8)] = 0x3000;
        Self {
            words,
            bar_len: 0x4000,
            pirq,
            msix_failure: None,
            msix: false,
            lent: true,
            is_sizing: [false; 2],
        }
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.words[word(register::COMMAND)] as u16
    }

    /// Takes the function back, as it was before it was lent: pciback resets it.
    pub fn take_back(&mut self) {
        self.words[word(register::COMMAND)] &= 0xffff_0000;
        (self.msix, self.lent, self.is_sizing) = (false, false, [false; 2]);
    }

    fn read(&self, at: u8) -> u32 {
        let is_wide = self.words[word(register::BAR0)] & 0b111 == 0b100;
        let size = self.bar_len.wrapping_neg();
        match at {
            register::BAR0 if self.is_sizing[0] => size as u32 | self.words[word(at)] & 0xf,
            register::BAR1 if self.is_sizing[1] && is_wide => (size >> 32) as u32,
            _ => self.words[word(at)],
        }
    }

    /// Writes what a guest may write; the rest is read-only, without an error.
    fn write(&mut self, at: u8, size: u32, value: u32) {
        match (at, size) {
            (register::COMMAND, 2) => {
                let status = self.words[word(at)] & 0xffff_0000;
                self.words[word(at)] = status | value & 0xffff;
            }
            (register::BAR0, 4) => self.is_sizing[0] = value | 0xf == u32::MAX,
            (register::BAR1, 4) => self.is_sizing[1] = value == u32::MAX,
            _ => {}
        }
    }

    /// Enables MSI-X: the error, the value, and the vector for entry 0.
    fn enable_msix(&mut self) -> (i32, u32, u16) {
        if let Some((error, value)) = self.msix_failure {
            return (error, value, self.pirq);
        }
        if self.msix {
            return (EALREADY, 0, 0);
        }
        if self.command() & COMMAND_MEMORY == 0 {
            return (ENXIO, 0, 0);
        }
        self.msix = true;
        (0, 0, self.pirq)
    }
}

/// pciback's end of the shared page.
#[derive(Clone, Default, Debug)]
pub struct Pciback {
    /// The functions by slot.
    pub functions: Vec<Function>,
    /// Whether it has stopped answering.
    pub silent: bool,
}

impl Pciback {
    /// Answers the operation in the page, if one waits; the frontend's port is then to be notified.
    ///
    /// # Panics
    /// When the frontend asks what xen-pciback does not know.
    pub fn step(&mut self, page: Frame) -> bool {
        if self.silent || page.read_u32(offset::FLAGS) & ACTIVE == 0 {
            return false;
        }
        let (error, value, vector) = self.answer(page);
        page.write_u32(offset::ERROR, error.cast_unsigned());
        page.write_u32(offset::VALUE, value);
        page.write(offset::MSIX_VECTOR, &vector.to_le_bytes());
        page.write_u32(offset::FLAGS, page.read_u32(offset::FLAGS) & !ACTIVE);
        true
    }

    fn answer(&mut self, page: Frame) -> (i32, u32, u16) {
        let word = |at| page.read_u32(at);
        let is_bus = word(offset::DOMAIN) == 0 && word(offset::BUS) == 0;
        let devfn = word(offset::DEVFN) as usize;
        let function = self.functions.get_mut(devfn >> 3).filter(|function| function.lent);
        let Some(function) = function.filter(|_| is_bus && devfn.is_multiple_of(8)) else {
            return (ERR_DEV_NOT_FOUND, 0, 0);
        };
        let (size, value) = (word(offset::SIZE), word(offset::VALUE));
        let at = u8::try_from(word(offset::OFFSET)).ok().filter(|at| at.is_multiple_of(4));
        match (word(offset::COMMAND), at) {
            (command::CONF_READ | command::CONF_WRITE, None) => (ERR_INVALID_OFFSET, 0, 0),
            (command::CONF_READ, Some(at)) => (0, function.read(at), 0),
            (command::CONF_WRITE, Some(at)) => {
                function.write(at, size, value);
                (0, value, 0)
            }
            (command::ENABLE_MSIX, _) => {
                assert_eq!((value, word(offset::MSIX_VECTOR)), (1, 0), "one vector, entry 0");
                function.enable_msix()
            }
            (command::DISABLE_MSIX, _) if !function.msix => (ERR_OP_FAILED, 0, 0),
            (command::DISABLE_MSIX, _) => {
                function.msix = false;
                (0, 0, 0)
            }
            _ => (ERR_NOT_IMPLEMENTED, 0, 0),
        }
    }
}

const fn word(at: u8) -> usize {
    at as usize / 4
}
