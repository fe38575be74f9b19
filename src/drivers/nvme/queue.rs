//! A submission queue and its completion queue, each in one page. Who may still submit is the
//! business of [`super::tags`]: while fewer commands are in flight than a queue has entries,
//! neither queue can be overrun, so the controller's word for where it reads is not needed.

use crate::hal::{DmaPage, Memory, MmioRegion};
use crate::mem::read_barrier;
use crate::units::BusAddr;
use crate::wire::nvme::command::{
    COMPLETION_BYTES, COMPLETION_DW3, CompletionEntry, SUBMISSION_BYTES, Submission,
};
use crate::wire::nvme::{head_doorbell, tail_doorbell};

/// Both queues of one number, and their doorbells.
#[derive(Debug)]
pub(super) struct QueuePair {
    number: u16,
    submissions: DmaPage,
    completions: DmaPage,
    entries: u16,
    stride: u8,
    tail: u16,
    /// The tail that the controller was told.
    told_tail: u16,
    head: u16,
    /// The head that the controller was told.
    told_head: u16,
    /// The phase of entries that are new.
    phase: bool,
}

impl QueuePair {
    /// Empty queues, number 0 being the admin queues, for a controller with this doorbell stride.
    pub(super) fn new(
        number: u16,
        entries: u16,
        stride: u8,
        submissions: DmaPage,
        completions: DmaPage,
    ) -> Self {
        Self {
            number,
            submissions,
            completions,
            entries,
            stride,
            tail: 0,
            told_tail: 0,
            head: 0,
            told_head: 0,
            phase: true,
        }
    }

    /// Starts over. The controller does not use the queues.
    pub(super) fn reset(&mut self) {
        self.submissions.page.clear();
        self.completions.page.clear();
        (self.tail, self.told_tail, self.head, self.told_head) = (0, 0, 0, 0);
        self.phase = true;
    }

    /// Gives the pages back. The controller does not use the queues.
    pub(super) fn release(self, hal: &mut impl Memory) {
        hal.return_page(self.submissions);
        hal.return_page(self.completions);
    }

    /// The number of entries of each queue.
    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Where the submission queue is.
    pub(super) fn submissions(&self) -> BusAddr {
        self.submissions.bus
    }

    /// Where the completion queue is.
    pub(super) fn completions(&self) -> BusAddr {
        self.completions.bus
    }

    /// Adds a command, for which there is room; the controller is not told yet.
    pub(super) fn push(&mut self, submission: Submission) {
        let place = usize::from(self.tail) * SUBMISSION_BYTES;
        for (i, word) in submission.0.into_iter().enumerate() {
            self.submissions.page.write_u64(place + i * 8, word);
        }
        self.tail = self.after(self.tail);
    }

    /// Tells the controller of commands added since it was told last.
    pub(super) fn ring(&mut self, hal: &mut impl Memory, registers: MmioRegion) {
        if self.told_tail != self.tail {
            self.told_tail = self.tail;
            hal.write32(registers, tail_doorbell(self.number, self.stride), self.tail.into());
        }
    }

    /// Takes the next completion, if there is one; the controller is not told yet.
    pub(super) fn next(&mut self) -> Option<CompletionEntry> {
        let place = usize::from(self.head) * COMPLETION_BYTES;
        let entry = CompletionEntry::parse(self.completions.page.read_u32(place + COMPLETION_DW3));
        if entry.phase != self.phase {
            return None;
        }
        // The phase is read before the data that the command brought.
        read_barrier();
        self.head = self.after(self.head);
        if self.head == 0 {
            self.phase = !self.phase;
        }
        Some(entry)
    }

    /// Tells the controller of completions taken since it was told last.
    pub(super) fn acknowledge(&mut self, hal: &mut impl Memory, registers: MmioRegion) {
        if self.told_head != self.head {
            self.told_head = self.head;
            hal.write32(registers, head_doorbell(self.number, self.stride), self.head.into());
        }
    }

    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.entries { 0 } else { index + 1 }
    }
}
