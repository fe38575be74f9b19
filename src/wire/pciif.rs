//! The page that pcifront and pciback share (xen/include/public/io/pciif.h): one operation at a
//! time, posted by us, answered by the backend. `drivers::pci` says what is asked and when.
//!
//! Not handled: AER operations from the backend. It sends none to a frontend that has not set
//! `XEN_PCIB_AERHANDLER`, so every bit of `flags` but the first stays clear.

use core::fmt;

use crate::mem::{SharedPage, read_barrier, write_barrier};
use crate::units::Pirq;
use crate::wire::pci::Address;

/// The version of the protocol, the node `magic` (`XEN_PCI_MAGIC`).
pub const MAGIC: &str = "7";

/// Set while an operation waits for the backend (`XEN_PCIF_active`).
pub const ACTIVE: u32 = 1;

/// Commands (`XEN_PCI_OP_*`).
pub mod command {
    /// Reads configuration space.
    pub const CONF_READ: u32 = 0;
    /// Writes configuration space.
    pub const CONF_WRITE: u32 = 1;
    /// Enables MSI-X with the vectors listed.
    pub const ENABLE_MSIX: u32 = 4;
    /// Disables MSI-X.
    pub const DISABLE_MSIX: u32 = 5;
}

/// Offsets in `struct xen_pci_sharedinfo`.
pub mod offset {
    /// `flags`.
    pub const FLAGS: usize = 0;
    /// `op.cmd`.
    pub const COMMAND: usize = 4;
    /// `op.err`.
    pub const ERROR: usize = 8;
    /// `op.domain`: the PCI segment.
    pub const DOMAIN: usize = 12;
    /// `op.bus`.
    pub const BUS: usize = 16;
    /// `op.devfn`.
    pub const DEVFN: usize = 20;
    /// `op.offset`, in configuration space.
    pub const OFFSET: usize = 24;
    /// `op.size`, in bytes.
    pub const SIZE: usize = 28;
    /// `op.value`.
    pub const VALUE: usize = 32;
    /// `op.info`.
    pub const INFO: usize = 36;
    /// `op.msix_entries[0].vector`.
    pub const MSIX_VECTOR: usize = 40;
    /// `op.msix_entries[0].entry`.
    pub const MSIX_ENTRY: usize = 42;
}

/// One operation on one function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Reads 32 bits of configuration space at an aligned offset.
    Read(u8),
    /// Writes 16 bits at an aligned offset.
    Write16(u8, u16),
    /// Writes 32 bits at an aligned offset.
    Write32(u8, u32),
    /// Enables MSI-X with one vector, entry 0 of the function's table.
    EnableMsix,
    /// Disables MSI-X.
    DisableMsix,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(at) => write!(f, "reading configuration at {at:#04x}"),
            Self::Write16(at, _) | Self::Write32(at, _) => write!(f, "writing configuration at {at:#04x}"),
            Self::EnableMsix => f.write_str("enabling MSI-X"),
            Self::DisableMsix => f.write_str("disabling MSI-X"),
        }
    }
}

/// Why the backend did not do an operation: `XEN_PCI_ERR_*`, or a negative errno from Linux.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OperationError(pub i32);

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            -1 => "device not found",
            -2 => "invalid offset",
            -3 => "access denied",
            -4 => "not implemented",
            -5 => "operation failed",
            _ => "errno",
        };
        write!(f, "{name} ({})", self.0)
    }
}

/// What the backend left in the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// What was read. After [`Operation::EnableMsix`] it is 0, or pciback's reason.
    pub value: u32,
    /// The interrupt behind entry 0, where MSI-X was asked for; 0 is none.
    pub vector: Pirq,
}

/// Posts an operation. The backend must then be notified; none may be waiting.
pub fn post(page: &SharedPage, address: Address, operation: Operation) {
    let (command, at, size, value) = match operation {
        Operation::Read(at) => (command::CONF_READ, at, 4, 0),
        Operation::Write16(at, value) => (command::CONF_WRITE, at, 2, u32::from(value)),
        Operation::Write32(at, value) => (command::CONF_WRITE, at, 4, value),
        // The value is the number of vectors.
        Operation::EnableMsix => (command::ENABLE_MSIX, 0, 0, 1),
        Operation::DisableMsix => (command::DISABLE_MSIX, 0, 0, 0),
    };
    page.write_u32(offset::COMMAND, command);
    page.write_u32(offset::ERROR, 0);
    page.write_u32(offset::DOMAIN, u32::from(address.segment));
    page.write_u32(offset::BUS, u32::from(address.bus));
    page.write_u32(offset::DEVFN, u32::from(address.devfn()));
    page.write_u32(offset::OFFSET, u32::from(at));
    page.write_u32(offset::SIZE, size);
    page.write_u32(offset::VALUE, value);
    page.write_u32(offset::INFO, 0);
    page.write_u16(offset::MSIX_VECTOR, 0);
    page.write_u16(offset::MSIX_ENTRY, 0);
    // The operation before the flag that hands it over.
    write_barrier();
    page.write_u32(offset::FLAGS, ACTIVE);
}

/// The reply to the operation that was posted, once it is there.
#[must_use]
pub fn reply(page: &SharedPage) -> Option<Result<Reply, OperationError>> {
    if page.read_u32(offset::FLAGS) & ACTIVE != 0 {
        return None;
    }
    // The flag before the reply that it stands for.
    read_barrier();
    let error = page.read_u32(offset::ERROR).cast_signed();
    if error != 0 {
        return Some(Err(OperationError(error)));
    }
    Some(Ok(Reply {
        value: page.read_u32(offset::VALUE),
        vector: Pirq(u32::from(page.read_u16(offset::MSIX_VECTOR))),
    }))
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;
    use crate::mem::frame::Frame;

    /// The header's structures, as a C compiler lays them out.
    #[repr(C)]
    struct MsixEntry {
        vector: u16,
        entry: u16,
    }

    #[repr(C)]
    struct PciOp {
        cmd: u32,
        err: i32,
        domain: u32,
        bus: u32,
        devfn: u32,
        offset: i32,
        size: i32,
        value: u32,
        info: u32,
        msix_entries: [MsixEntry; 128],
    }

    #[repr(C)]
    struct SharedInfo {
        flags: u32,
        op: PciOp,
        aer_op: [u32; 5],
    }

    #[test]
    fn offsets_are_the_headers() {
        assert_eq!(size_of::<SharedInfo>(), 572);
        assert_eq!(offset::FLAGS, offset_of!(SharedInfo, flags));
        assert_eq!(offset::COMMAND, offset_of!(SharedInfo, op.cmd));
        assert_eq!(offset::ERROR, offset_of!(SharedInfo, op.err));
        assert_eq!(offset::DOMAIN, offset_of!(SharedInfo, op.domain));
        assert_eq!(offset::BUS, offset_of!(SharedInfo, op.bus));
        assert_eq!(offset::DEVFN, offset_of!(SharedInfo, op.devfn));
        assert_eq!(offset::OFFSET, offset_of!(SharedInfo, op.offset));
        assert_eq!(offset::SIZE, offset_of!(SharedInfo, op.size));
        assert_eq!(offset::VALUE, offset_of!(SharedInfo, op.value));
        assert_eq!(offset::INFO, offset_of!(SharedInfo, op.info));
        let entries = offset_of!(SharedInfo, op.msix_entries);
        assert_eq!(offset::MSIX_VECTOR, entries + offset_of!(MsixEntry, vector));
        assert_eq!(offset::MSIX_ENTRY, entries + offset_of!(MsixEntry, entry));
    }

    #[test]
    fn an_operation_is_posted_whole() {
        let at = Address { segment: 0x1234, bus: 0x56, slot: 0x1f, function: 7 };
        for (operation, words) in [
            (Operation::Read(0x34), [0, 0x34, 4, 0]),
            (Operation::Write16(4, 0x0106), [1, 4, 2, 0x0106]),
            (Operation::Write32(0x10, u32::MAX), [1, 0x10, 4, u32::MAX]),
            (Operation::EnableMsix, [4, 0, 0, 1]),
        ] {
            let frame = Frame::new();
            frame.fill(0xff);
            frame.write_u32(offset::FLAGS, 0);
            post(&frame.shared(), at, operation);
            let read = |at| frame.read_u32(at);
            let posted = [offset::COMMAND, offset::OFFSET, offset::SIZE, offset::VALUE].map(read);
            assert_eq!(posted, words);
            assert_eq!([offset::DOMAIN, offset::BUS, offset::DEVFN].map(read), [0x1234, 0x56, 0xff]);
            assert_eq!([offset::ERROR, offset::INFO, offset::MSIX_VECTOR].map(read), [0, 0, 0]);
            assert_eq!(read(offset::FLAGS), ACTIVE);
        }
    }

    #[test]
    fn a_reply_is_there_when_the_flag_is_clear() {
        let frame = Frame::new();
        let page = frame.shared();
        let at = Address { segment: 0, bus: 0, slot: 0, function: 0 };
        post(&page, at, Operation::EnableMsix);
        assert_eq!(reply(&page), None);
        frame.write_u32(offset::VALUE, 42);
        frame.write_u32(offset::MSIX_VECTOR, 55);
        frame.write_u32(offset::FLAGS, 0);
        assert_eq!(reply(&page), Some(Ok(Reply { value: 42, vector: Pirq(55) })));
        frame.write_u32(offset::ERROR, (-6_i32).cast_unsigned());
        assert_eq!(reply(&page), Some(Err(OperationError(-6))));
    }

    #[test]
    fn errors_have_the_headers_names() {
        let text = |error| std::format!("{}", OperationError(error));
        let names =
            ["device not found", "invalid offset", "access denied", "not implemented", "operation failed"];
        for (error, name) in (1..).zip(names) {
            assert_eq!(text(-error), std::format!("{name} (-{error})"));
        }
        assert_eq!(text(-22), "errno (-22)");
    }
}
