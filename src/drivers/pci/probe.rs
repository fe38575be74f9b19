//! What is asked of one function, operation by operation, until it is known and ready for its
//! driver, or refused. Pure: `mod.rs` carries the operations to pciback and the replies back.

use core::fmt;

use crate::units::{BusAddr, Pirq};
use crate::wire::pci::{
    self, Address, Bar, BarError, COMMAND_BUS_MASTER, COMMAND_MEMORY, CapabilityWalk, Class, Ids,
    MsixCapability, register,
};
use crate::wire::pciif::{Operation, OperationError, Reply};

use super::{DeviceKind, Found};

/// How much of BAR0 an NVMe driver writes: the registers' page and the doorbells' (NVMe over PCIe
/// Transport 1.0, 3.1).
const NVME_WRITTEN: u32 = 0x2000;

/// Why a function is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No vendor id can be read.
    Absent,
    /// It is a bridge, or something newer.
    Layout(u8),
    /// Nothing here drives its class.
    NoDriver,
    /// BAR0 cannot be used.
    Bar(BarError),
    /// BAR0 is shorter than the registers are.
    Short,
    /// The MSI-X tables share pages with registers that are written. Xen lets nobody but itself
    /// write the pages of the tables, so that a write to such a register would be our end.
    Covered,
    /// pciback did not do the operation.
    Refused(Operation, OperationError),
    /// pciback did not answer.
    Silent,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("does not exist"),
            Self::Layout(layout) => write!(f, "is no plain device (header layout {layout})"),
            Self::NoDriver => f.write_str("has no driver"),
            Self::Bar(error) => write!(f, "cannot be used: BAR0 {error}"),
            Self::Short => f.write_str("cannot be used: BAR0 is too short"),
            Self::Covered => f.write_str("cannot be used: its MSI-X tables lie among its registers"),
            Self::Refused(operation, error) => write!(f, "cannot be used: {operation}: {error}"),
            Self::Silent => f.write_str("cannot be used: pciback does not answer"),
        }
    }
}

/// Why a function has no interrupt. It works without: completions are polled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoMsix {
    /// It lacks the capability, or the capability is cut off by the end of the space.
    Absent,
    /// pciback did not enable it.
    Refused(OperationError),
    /// pciback enabled something else: it said so with a value, or named no interrupt.
    Odd(u32),
}

impl fmt::Display for NoMsix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the device has none"),
            Self::Refused(error) => write!(f, "{error}"),
            Self::Odd(value) => write!(f, "pciback gave no vector (value {value})"),
        }
    }
}

/// The operations, in their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Ids,
    Class(Ids),
    Header,
    Bar(Half),
    Ones(Half),
    Size(Half),
    Restore(Half),
    Status,
    Pointer,
    Capability(CapabilityWalk),
    Table { table: u8, pending: u8 },
    Pending { pending: u8, place: u32 },
    Command,
    Msix,
}

/// The halves of BAR0, which may be a 64-bit one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Half {
    Low,
    High,
}

impl Half {
    const fn register(self) -> u8 {
        match self {
            Self::Low => register::BAR0,
            Self::High => register::BAR1,
        }
    }
}

/// What a function says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Vendor and device.
    pub ids: Ids,
    /// What it is for.
    pub class: Class,
}

/// What a probe is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    /// Ask [`Probe::operation`].
    Ask,
    /// The function is ready for its driver.
    Ready(Ready),
}

/// A function that is ready, and what is worth saying about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ready {
    /// What the driver needs.
    pub(super) found: Found,
    /// What it is.
    pub(super) identity: Identity,
    /// Its interrupt, or why it has none.
    pub(super) interrupt: Result<Pirq, NoMsix>,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { address, bar: BusAddr(bar), bar_len, .. } = self.found;
        let Identity { ids, class } = self.identity;
        write!(f, "pci {address}: {ids} class {class}, BAR0 {} KiB at {bar:#x}, ", bar_len >> 10)?;
        match self.interrupt {
            Ok(Pirq(pirq)) => write!(f, "MSI-X pirq {pirq}"),
            Err(reason) => write!(f, "no MSI-X: {reason}; completions are polled"),
        }
    }
}

/// One function on its way to a driver.
#[derive(Debug)]
pub(super) struct Probe {
    /// Where it is.
    pub(super) address: Address,
    /// What it is, once it has said so.
    pub(super) identity: Option<Identity>,
    step: Step,
    bar: [u32; 2],
    sizing: [u32; 2],
    status: u32,
    has_msix: bool,
}

impl Probe {
    /// A probe that has asked nothing yet.
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            identity: None,
            step: Step::Ids,
            bar: [0; 2],
            sizing: [0; 2],
            status: 0,
            has_msix: false,
        }
    }

    /// The operation to be done now.
    pub(super) fn operation(&self) -> Operation {
        match self.step {
            Step::Ids => Operation::Read(register::IDS),
            Step::Class(_) => Operation::Read(register::CLASS),
            Step::Header => Operation::Read(register::HEADER),
            Step::Bar(half) | Step::Size(half) => Operation::Read(half.register()),
            Step::Ones(half) => Operation::Write32(half.register(), u32::MAX),
            Step::Restore(half) => Operation::Write32(half.register(), self.bar[half as usize]),
            Step::Status => Operation::Read(register::COMMAND),
            Step::Pointer => Operation::Read(register::CAPABILITIES),
            Step::Capability(walk) => Operation::Read(walk.offset()),
            Step::Table { table, pending: _ } => Operation::Read(table),
            Step::Pending { pending, place: _ } => Operation::Read(pending),
            Step::Command => Operation::Write16(register::COMMAND, self.command()),
            Step::Msix => Operation::EnableMsix,
        }
    }

    /// Takes the reply to [`Probe::operation`].
    ///
    /// # Errors
    /// The function cannot be used.
    pub(super) fn replied(&mut self, reply: Result<Reply, OperationError>) -> Result<Next, Fault> {
        if self.step == Step::Msix {
            return self.ready(vector(reply));
        }
        let word = reply.map_err(|error| Fault::Refused(self.operation(), error))?.value;
        if self.step == Step::Command && !self.has_msix {
            return self.ready(Err(NoMsix::Absent));
        }
        self.step = self.after(word)?;
        Ok(Next::Ask)
    }

    /// The step after this one, given the word that was read.
    fn after(&mut self, word: u32) -> Result<Step, Fault> {
        Ok(match self.step {
            Step::Ids => Step::Class(Ids::parse(word).ok_or(Fault::Absent)?),
            Step::Class(ids) => {
                let class = Class::parse(word);
                self.identity = Some(Identity { ids, class });
                DeviceKind::of(class).ok_or(Fault::NoDriver)?;
                Step::Header
            }
            Step::Header => match pci::header_layout(word) {
                0 => Step::Bar(Half::Low),
                layout => return Err(Fault::Layout(layout)),
            },
            Step::Bar(half) => {
                self.bar[half as usize] = word;
                Step::Ones(half)
            }
            Step::Ones(half) => Step::Size(half),
            Step::Size(half) => {
                self.sizing[half as usize] = word;
                Step::Restore(half)
            }
            Step::Restore(Half::Low) if Bar::is_64_bit(self.bar[0]) => Step::Bar(Half::High),
            Step::Restore(_) => {
                self.registers()?;
                Step::Status
            }
            Step::Status => {
                self.status = word;
                Step::Pointer
            }
            Step::Pointer => look_at(CapabilityWalk::start(self.status, word)),
            Step::Capability(walk) => match MsixCapability::places(walk.offset(), word) {
                Some([table, pending]) => Step::Table { table, pending },
                None => look_at(walk.next(word)),
            },
            Step::Table { table: _, pending } => Step::Pending { pending, place: word },
            Step::Pending { pending: _, place } => {
                if MsixCapability::parse(place, word).starts_within(0, NVME_WRITTEN) {
                    return Err(Fault::Covered);
                }
                self.has_msix = true;
                Step::Command
            }
            Step::Command | Step::Msix => Step::Msix,
        })
    }

    fn ready(&self, interrupt: Result<Pirq, NoMsix>) -> Result<Next, Fault> {
        let identity = self.identity.ok_or(Fault::Absent)?;
        let kind = DeviceKind::of(identity.class).ok_or(Fault::NoDriver)?;
        let (bar, bar_len) = self.registers()?;
        let found = Found { address: self.address, kind, bar, bar_len, pirq: interrupt.ok() };
        Ok(Next::Ready(Ready { found, identity, interrupt }))
    }

    fn registers(&self) -> Result<(BusAddr, usize), Fault> {
        let bar = Bar::parse(self.bar, self.sizing).map_err(Fault::Bar)?;
        let len = usize::try_from(bar.bytes).map_err(|_| Fault::Bar(BarError::Impossible))?;
        if bar.bytes < u64::from(NVME_WRITTEN) {
            return Err(Fault::Short);
        }
        Ok((bar.address, len))
    }

    /// Memory decoding must be on before MSI-X (else pciback answers ENXIO), and the bus is needed
    /// for MSI-X as for DMA. What the controller did before its reset cannot reach further than
    /// our own memory: the IOMMU sees to that.
    fn command(&self) -> u16 {
        pci::halves(self.status)[0] | COMMAND_MEMORY | COMMAND_BUS_MASTER
    }
}

fn look_at(walk: Option<CapabilityWalk>) -> Step {
    walk.map_or(Step::Command, Step::Capability)
}

fn vector(reply: Result<Reply, OperationError>) -> Result<Pirq, NoMsix> {
    let reply = reply.map_err(NoMsix::Refused)?;
    if reply.value != 0 || reply.vector == Pirq(0) {
        return Err(NoMsix::Odd(reply.value));
    }
    Ok(reply.vector)
}
