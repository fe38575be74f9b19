//! Entries of submission and completion queues. Neighbour of [`super::identify`], which says what
//! some of the commands return.

use core::fmt;

use crate::units::{Block, BusAddr};

/// Bytes of a submission queue entry (3.3.3.1).
pub const SUBMISSION_BYTES: usize = 64;
/// Bytes of a completion queue entry (3.3.3.2).
pub const COMPLETION_BYTES: usize = 16;
/// Offset of the last dword of a completion queue entry, which tells all that is used here.
pub const COMPLETION_DW3: usize = 12;

/// FUA in dword 12 of a Read or a Write (NVM Command Set 3.2.4 and 3.2.6).
pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;

/// AD in dword 11 of Dataset Management: deallocate the ranges (NVM Command Set 3.2.3).
pub const DEALLOCATE: u32 = 1 << 2;

/// Bytes of a range of Dataset Management (NVM Command Set 3.2.3.1).
pub const RANGE_BYTES: usize = 16;

/// Opcodes of admin commands (Base 5).
pub mod admin {
    /// Create I/O Submission Queue (5.5).
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Create I/O Completion Queue (5.4).
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify (5.17).
    pub const IDENTIFY: u8 = 0x06;
    /// Set Features (5.27).
    pub const SET_FEATURES: u8 = 0x09;
}

/// Opcodes of I/O commands (NVM Command Set 3).
pub mod io {
    /// Flush (Base 7.1).
    pub const FLUSH: u8 = 0x00;
    /// Write (3.2.6).
    pub const WRITE: u8 = 0x01;
    /// Read (3.2.4).
    pub const READ: u8 = 0x02;
    /// Dataset Management (3.2.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Identify what (5.17.1, Controller or Namespace Structure).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identify {
    /// One namespace.
    Namespace(u32),
    /// The controller.
    Controller,
    /// The ids of the active namespaces.
    ActiveNamespaces,
    /// What else the controller says of the NVM command set.
    CommandSet,
}

/// A command's name while it is in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandId(pub u16);

/// Where a command's data is: PRP entries 1 and 2 (4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prps {
    /// The first page, from an offset in it on.
    pub first: BusAddr,
    /// The second page, or a list of the pages from the second one on, or zero.
    pub second: BusAddr,
}

impl Prps {
    /// No data.
    pub const NONE: Self = Self { first: BusAddr(0), second: BusAddr(0) };

    /// One whole page.
    #[must_use]
    pub const fn page(bus: BusAddr) -> Self {
        Self { first: bus, second: BusAddr(0) }
    }
}

/// A submission queue entry, as the eight 64-bit words that it is written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Submission(pub [u64; 8]);

impl Submission {
    /// Identify, into a page at `to`.
    #[must_use]
    pub fn identify(id: CommandId, what: Identify, to: BusAddr) -> Self {
        let (cns, namespace) = match what {
            Identify::Namespace(namespace) => (0x00, namespace),
            Identify::Controller => (0x01, 0),
            Identify::ActiveNamespaces => (0x02, 0),
            // The command set's number in dword 11 is zero.
            Identify::CommandSet => (0x06, 0),
        };
        Self::new(id, admin::IDENTIFY, namespace, Prps::page(to), cns, 0)
    }

    /// Set Features, Number of Queues (5.27.1.5): asks for one I/O queue pair.
    #[must_use]
    pub fn one_queue_pair(id: CommandId) -> Self {
        const NUMBER_OF_QUEUES: u64 = 0x07;
        Self::new(id, admin::SET_FEATURES, 0, Prps::NONE, NUMBER_OF_QUEUES, 0)
    }

    /// Create I/O Completion Queue: contiguous, with interrupt vector 0 if `interrupts`.
    #[must_use]
    pub fn create_completion_queue(
        id: CommandId,
        queue: u16,
        entries: u16,
        at: BusAddr,
        interrupts: bool,
    ) -> Self {
        let dw11 = u64::from(interrupts) << 1 | 1;
        let dw10 = queue_dw10(queue, entries);
        Self::new(id, admin::CREATE_COMPLETION_QUEUE, 0, Prps::page(at), dw11 << 32 | dw10, 0)
    }

    /// Create I/O Submission Queue: contiguous, completing into the completion queue of the same
    /// number.
    #[must_use]
    pub fn create_submission_queue(id: CommandId, queue: u16, entries: u16, at: BusAddr) -> Self {
        let dw11 = u64::from(queue) << 16 | 1;
        let dw10 = queue_dw10(queue, entries);
        Self::new(id, admin::CREATE_SUBMISSION_QUEUE, 0, Prps::page(at), dw11 << 32 | dw10, 0)
    }

    /// Read or Write (by opcode) of `blocks` blocks from `first` on; `blocks` is 1 to 65536.
    #[must_use]
    pub fn transfer(
        id: CommandId,
        opcode: u8,
        namespace: u32,
        first: Block,
        blocks: u32,
        data: Prps,
    ) -> Self {
        // The count is sent minus one, in 16 bits (NVM Command Set 3.2.4, NLB).
        let count = u64::from(blocks.wrapping_sub(1) & 0xffff);
        Self::new(id, opcode, namespace, data, first.0, count)
    }

    /// The same transfer with Force Unit Access: a write ends when its data is on the medium, not
    /// in a volatile cache (NVM Command Set 3.2.6, dword 12 bit 30).
    #[must_use]
    pub const fn with_force_unit_access(mut self) -> Self {
        self.0[6] |= FORCE_UNIT_ACCESS as u64;
        self
    }

    /// Flush of one namespace.
    #[must_use]
    pub fn flush(id: CommandId, namespace: u32) -> Self {
        Self::new(id, io::FLUSH, namespace, Prps::NONE, 0, 0)
    }

    /// Dataset Management: deallocates the one [`Range`] at `range`. There is no such command that
    /// erases: what was deallocated may be read again, now or by whoever takes the medium apart.
    /// NVMe erases whole namespaces or controllers only (Format NVM, Sanitize).
    #[must_use]
    pub fn deallocate(id: CommandId, namespace: u32, range: BusAddr) -> Self {
        let data = Prps::page(range);
        // The count of ranges, in dword 10, is sent minus one.
        Self::new(id, io::DATASET_MANAGEMENT, namespace, data, u64::from(DEALLOCATE) << 32, 0)
    }

    /// The same command under another id.
    #[must_use]
    pub const fn renamed(mut self, id: CommandId) -> Self {
        self.0[0] = self.0[0] & !(0xffff << 16) | (id.0 as u64) << 16;
        self
    }

    fn new(id: CommandId, opcode: u8, namespace: u32, data: Prps, dw10_11: u64, dw12_13: u64) -> Self {
        let dw0 = u64::from(id.0) << 16 | u64::from(opcode);
        let dw0_1 = u64::from(namespace) << 32 | dw0;
        Self([dw0_1, 0, 0, data.first.0, data.second.0, dw10_11, dw12_13, 0])
    }
}

fn queue_dw10(queue: u16, entries: u16) -> u64 {
    u64::from(entries.saturating_sub(1)) << 16 | u64::from(queue)
}

/// A range of Dataset Management, without context attributes (NVM Command Set 3.2.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Where it starts.
    pub first: Block,
    /// Its length in blocks.
    pub blocks: u32,
}

impl Range {
    /// The range as the 64-bit words that it is written in.
    #[must_use]
    pub fn words(self) -> [u64; RANGE_BYTES / 8] {
        [u64::from(self.blocks) << 32, self.first.0]
    }
}

/// Status of a command that failed (3.3.3.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorStatus {
    /// Status Code Type: 0 generic, 1 command specific, 2 media and data integrity, 3 path.
    pub kind: u8,
    /// Status Code.
    pub code: u8,
    /// DNR: the same command is expected to fail again.
    pub do_not_retry: bool,
}

impl ErrorStatus {
    /// Whether the same command may succeed when it is issued again: the controller leaves that
    /// open, and the status speaks of circumstances that pass, not of what was asked for. What CRD
    /// says of the time to wait is not used: it is zero while ACRE is off, as it is here.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        let passes = match (self.kind, self.code) {
            // Data Transfer Error, Aborted due to Power Loss Notification, Internal Error, Abort
            // Requested, Command Interrupted, Transient Transport Error, Namespace Not Ready.
            (0, 0x04..=0x07 | 0x21 | 0x22 | 0x82) => true,
            // Write Fault, Unrecovered Read Error.
            (2, 0x80 | 0x81) => true,
            // Internal Path Error, Controller Pathing Error.
            (3, 0x00 | 0x60) => true,
            _ => false,
        };
        passes && !self.do_not_retry
    }
}

impl fmt::Display for ErrorStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status type {}, code {:#04x}", self.kind, self.code)
    }
}

/// A completion queue entry. The submission queue's head in it is not used: a queue with room for
/// one command less than it has entries cannot be overrun while every command is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompletionEntry {
    /// Inverted each time the queue wraps: tells a new entry from an old one.
    pub phase: bool,
    /// Which command, as the controller claims.
    pub id: CommandId,
    /// What became of it.
    pub result: Result<(), ErrorStatus>,
}

impl CompletionEntry {
    /// The entry with this last dword.
    #[must_use]
    pub fn parse(dw3: u32) -> Self {
        let [id0, id1, low, high] = dw3.to_le_bytes();
        let status = u16::from_le_bytes([low, high]) >> 1;
        let [code, kind] = (status & 0x7ff).to_le_bytes();
        let error = ErrorStatus { kind, code, do_not_retry: high & 0x80 != 0 };
        let result = if code == 0 && kind == 0 { Ok(()) } else { Err(error) };
        Self { phase: low & 1 != 0, id: CommandId(u16::from_le_bytes([id0, id1])), result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_is_taken_apart() {
        let entry = CompletionEntry::parse(0x0001_1234);
        assert_eq!(entry, CompletionEntry { phase: true, id: CommandId(0x1234), result: Ok(()) });
        // Do Not Retry, More, type 2, code 0x81, phase 0.
        let entry = CompletionEntry::parse(0xc502_0007);
        assert!(!entry.phase);
        assert_eq!(entry.result, Err(ErrorStatus { kind: 2, code: 0x81, do_not_retry: true }));
        let entry = CompletionEntry::parse(0x4502_0007);
        assert_eq!(entry.result, Err(ErrorStatus { kind: 2, code: 0x81, do_not_retry: false }));
        // Do Not Retry alone is no error.
        assert_eq!(CompletionEntry::parse(0x8000_0000).result, Ok(()));
    }

    #[test]
    fn a_retry_may_help_where_circumstances_pass_and_the_controller_does_not_rule_it_out() {
        let may_pass = |kind, code| ErrorStatus { kind, code, do_not_retry: false }.may_pass();
        let passing = |kind| (0..=0xff).filter(|code| may_pass(kind, *code)).collect::<std::vec::Vec<_>>();
        assert_eq!(passing(0), [0x04, 0x05, 0x06, 0x07, 0x21, 0x22, 0x82]);
        assert_eq!([passing(1), passing(4), passing(7)], [const { std::vec::Vec::new() }; 3]);
        assert_eq!((passing(2), passing(3)), ([0x80, 0x81].into(), [0x00, 0x60].into()));
        assert!(!ErrorStatus { kind: 2, code: 0x81, do_not_retry: true }.may_pass());
    }

    #[test]
    fn a_renamed_command_is_the_same_but_for_its_id() {
        let data = Prps { first: BusAddr(0x1200), second: BusAddr(0x3000) };
        let read = |id| Submission::transfer(CommandId(id), io::READ, u32::MAX, Block(7), 8, data);
        assert_eq!(read(0xabcd).renamed(CommandId(0x1234)), read(0x1234));
    }

    #[test]
    fn a_read_is_put_together() {
        let data = Prps { first: BusAddr(0x1200), second: BusAddr(0x3000) };
        let read = Submission::transfer(CommandId(0xabcd), io::READ, 3, Block(0x1_0000_0002), 8, data);
        assert_eq!(read.0, [0x3_abcd_0002, 0, 0, 0x1200, 0x3000, 0x1_0000_0002, 7, 0]);
    }

    #[test]
    fn a_deallocation_names_one_range() {
        let command = Submission::deallocate(CommandId(5), 3, BusAddr(0x1200));
        assert_eq!(command.0, [0x3_0005_0009, 0, 0, 0x1200, 0, 0x4_0000_0000, 0, 0]);
        let range = Range { first: Block(0x1_0000_0002), blocks: 8 };
        assert_eq!(range.words(), [0x8_0000_0000, 0x1_0000_0002]);
    }

    #[test]
    fn force_unit_access_is_one_more_bit_of_a_write() {
        let write = Submission::transfer(CommandId(1), io::WRITE, 1, Block(7), 65536, Prps::NONE);
        assert_eq!(write.0[6], 0xffff);
        let mut forced = write.0;
        forced[6] = 0x4000_ffff;
        assert_eq!(write.with_force_unit_access().0, forced);
    }

    #[test]
    fn queues_are_created_contiguous_with_their_sizes_minus_one() {
        let queue = Submission::create_completion_queue(CommandId(1), 1, 64, BusAddr(0x5000), true);
        assert_eq!(queue.0, [0x1_0005, 0, 0, 0x5000, 0, 0x3_003f_0001, 0, 0]);
        let queue = Submission::create_completion_queue(CommandId(1), 1, 64, BusAddr(0x5000), false);
        assert_eq!(queue.0[5], 0x1_003f_0001);
        let queue = Submission::create_submission_queue(CommandId(2), 1, 2, BusAddr(0x6000));
        assert_eq!(queue.0, [0x2_0001, 0, 0, 0x6000, 0, 0x1_0001_0001_0001, 0, 0]);
    }
}
