//! NVMe as it looks on the bus: controller registers here, queue entries in [`command`], Identify
//! data in [`identify`]. Formats only; `drivers::nvme` holds the state, `sim::nvme` the other end.
//!
//! Sections cited are those of the NVM Express Base Specification 2.0, and where it is said of
//! the PCIe Transport Specification 1.0 and the NVM Command Set Specification 1.0. Not handled:
//! memory page sizes other than 4 KiB, I/O command sets other than NVM, scatter-gather lists.

pub mod command;
pub mod identify;

use core::fmt;
use core::time::Duration;

use crate::limits;

/// Controller capabilities, 64 bits (3.1.3.1).
pub const CAP: usize = 0x00;
/// Interrupt mask set, for pin-based interrupts only (3.1.3.3).
pub const INTMS: usize = 0x0c;
/// Controller configuration (3.1.3.5).
pub const CC: usize = 0x14;
/// Controller status (3.1.3.6).
pub const CSTS: usize = 0x1c;
/// Admin queue attributes: sizes minus one, completion queue in the upper half (3.1.3.8).
pub const AQA: usize = 0x24;
/// Bus address of the admin submission queue, 64 bits (3.1.3.9).
pub const ASQ: usize = 0x28;
/// Bus address of the admin completion queue, 64 bits (3.1.3.10).
pub const ACQ: usize = 0x30;
/// The first doorbell (PCIe Transport 3.1.2); the registers before it fill one page.
pub const DOORBELLS: usize = 0x1000;

/// CC.EN: the controller works.
pub const CC_ENABLE: u32 = 1;
/// CC.SHN: notice of a normal shutdown (3.6.1).
pub const CC_SHUT_DOWN: u32 = 0b01 << 14;
/// The bits of CC.SHN.
pub const CC_SHUTDOWN_MASK: u32 = 0b11 << 14;
/// What we configure: NVM command set, pages of 4 KiB, round robin, and queue entries of 64
/// (CC.IOSQES = 6) and 16 bytes (CC.IOCQES = 4).
pub const CC_CONFIGURATION: u32 = 6 << 16 | 4 << 20;

/// Offset of the doorbell for new submissions in queue `queue`, with the stride CAP.DSTRD.
#[must_use]
pub const fn tail_doorbell(queue: u16, stride: u8) -> usize {
    DOORBELLS + 2 * (queue as usize) * (4 << stride)
}

/// Offset of the doorbell for completions of queue `queue` that were read.
#[must_use]
pub const fn head_doorbell(queue: u16, stride: u8) -> usize {
    tail_doorbell(queue, stride) + (4 << stride)
}

/// CAP: what the controller says it can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Entries that an I/O queue of ours has: CAP.MQES + 1, and at most
    /// [`limits::QUEUE_ENTRIES`].
    #[must_use]
    pub fn queue_entries(self) -> u16 {
        let largest = usize::from(self.field16(0)) + 1;
        u16::try_from(largest.min(limits::QUEUE_ENTRIES)).unwrap_or(u16::MAX)
    }

    /// The longest time that CSTS.RDY takes to follow CC.EN: CAP.TO counts half seconds, and zero
    /// is taken for one of them.
    #[must_use]
    pub fn ready_timeout(self) -> Duration {
        let [_, halves] = self.field16(16).to_le_bytes();
        Duration::from_millis(500 * u64::from(halves.max(1)))
    }

    /// CAP.DSTRD: doorbells are 4 << this bytes apart.
    #[must_use]
    pub fn doorbell_stride(self) -> u8 {
        self.nibble(32)
    }

    /// Whether the controller can be served, with `len` bytes of its registers mapped.
    ///
    /// # Errors
    /// The first thing that cannot.
    pub fn check(self, len: usize) -> Result<(), Unsupported> {
        let page_size = self.nibble(48);
        if page_size != 0 {
            return Err(Unsupported::PageSize(page_size));
        }
        if self.0 >> 37 & 1 == 0 {
            return Err(Unsupported::CommandSet);
        }
        if self.queue_entries() < 2 {
            return Err(Unsupported::QueueEntries);
        }
        if head_doorbell(1, self.doorbell_stride()) + 4 > len {
            return Err(Unsupported::Doorbells(self.doorbell_stride()));
        }
        Ok(())
    }

    fn field16(self, bit: u32) -> u16 {
        u16::try_from(self.0 >> bit & 0xffff).unwrap_or_default()
    }

    fn nibble(self, bit: u32) -> u8 {
        u8::try_from(self.0 >> bit & 0xf).unwrap_or_default()
    }
}

/// Why a controller cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unsupported {
    /// CAP.MPSMIN: its smallest memory page is 4 KiB << this.
    PageSize(u8),
    /// CAP.CSS: it has no NVM command set.
    CommandSet,
    /// CAP.MQES: a queue must have two entries to hold a command.
    QueueEntries,
    /// CAP.DSTRD: with doorbells 4 << this bytes apart ours are not in its registers.
    Doorbells(u8),
    /// The active namespaces are not listed in order.
    NamespaceList,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PageSize(shift) => write!(f, "its smallest memory page is 4 KiB << {shift}"),
            Self::CommandSet => f.write_str("it has no NVM command set"),
            Self::QueueEntries => f.write_str("its queues hold no command"),
            Self::Doorbells(stride) => {
                write!(f, "its doorbells, 4 << {stride} bytes apart, are not in its registers")
            }
            Self::NamespaceList => f.write_str("its list of namespaces is not in order"),
        }
    }
}

/// CSTS: how the controller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// No device answers: reads of the bus that fail are all ones.
    #[must_use]
    pub const fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// CSTS.RDY: it takes commands. After CC.EN was cleared it may access memory until this is
    /// clear too.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// CSTS.CFS: only a reset helps.
    #[must_use]
    pub const fn is_fatal(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// CSTS.SHST: shutdown processing is complete.
    #[must_use]
    pub const fn is_shut_down(self) -> bool {
        self.0 >> 2 & 0b11 == 0b10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU's controller says: MQES 2047, CQR, TO 15, DSTRD 0, CSS NVM, MPSMIN 0, MPSMAX 4.
    const QEMU: u64 = 0x0040_0020_0f01_07ff;

    #[test]
    fn capabilities_of_a_common_controller_are_served() {
        let capabilities = Capabilities(QEMU);
        assert_eq!(capabilities.check(0x4000), Ok(()));
        assert_eq!(capabilities.queue_entries(), 64);
        assert_eq!(capabilities.ready_timeout(), Duration::from_millis(7500));
        assert_eq!(head_doorbell(1, capabilities.doorbell_stride()), 0x100c);
    }

    #[test]
    fn capabilities_that_do_not_fit_are_refused_by_name() {
        let refusal = |cap: u64, len| Capabilities(cap).check(len);
        assert_eq!(refusal(QEMU | 1 << 48, 0x4000), Err(Unsupported::PageSize(1)));
        assert_eq!(refusal(QEMU & !(1 << 37), 0x4000), Err(Unsupported::CommandSet));
        assert_eq!(refusal(QEMU & !0xffff, 0x4000), Err(Unsupported::QueueEntries));
        assert_eq!(refusal(QEMU | 0xf << 32, 0x4000), Err(Unsupported::Doorbells(15)));
        assert_eq!(refusal(QEMU, 0x100f), Err(Unsupported::Doorbells(0)));
        assert_eq!(refusal(QEMU, 0x1010), Ok(()));
    }

    #[test]
    fn a_shutdown_is_complete_when_its_status_says_so() {
        let shut_down = [0b0001, 0b0101, 0b1001, 0b1101].map(|bits| ControllerStatus(bits).is_shut_down());
        assert_eq!(shut_down, [false, false, true, false]);
    }

    #[test]
    fn small_queues_and_no_timeout_are_taken_as_they_are() {
        assert_eq!(Capabilities(1).queue_entries(), 2);
        assert_eq!(Capabilities(0xffff).queue_entries(), 64);
        assert_eq!(Capabilities(0).ready_timeout(), Duration::from_millis(500));
    }
}
