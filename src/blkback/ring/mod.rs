//! The data path of one connected ring: requests become slots, slots become commands, completions
//! become responses. A slot is the obligation to answer: it is in use from the moment its request
//! is taken until its one response is written, and a request is only taken when a slot is free.
//!
//! Nothing here calls the hypervisor or a disk. `domain` does, with one batch for all rings:
//! [`Ring::admit`], map, [`Ring::mapped`]; [`Ring::next_command`] and what follows from it;
//! [`Ring::reap`], unmap, [`Ring::answer`]; [`Ring::publish`], notify.

#[cfg(test)]
mod tests;

use heapless::{Deque, Vec};

use super::slots::Slots;
use crate::hal::{GrantMap, GrantMapping};
use crate::limits::{GRANT_BATCH, RING_ENTRIES, SEGMENTS};
use crate::mem::SharedPage;
use crate::units::{Block, DomId, Span};
use crate::volume::Volume;
use crate::wire::blkif::{Entry, Head, Operation, Reject, Request, Status};
use crate::wire::ring::{BackRing, FrontendFault};

/// Work for a disk: what is left of one request. As many spans from the front as one command can
/// express are to be issued, and [`Ring::issued`] told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command<'a> {
    /// The request, for [`Ring::completed`].
    pub slot: u8,
    /// What to do.
    pub op: Operation,
    /// Where on the disk. Means nothing for a flush.
    pub first: Block,
    /// With which memory; nothing for a flush.
    pub spans: &'a [Span],
}

/// What was done of one operation since the ring connected.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Requests answered.
    pub requests: u64,
    /// Sectors moved by those that succeeded.
    pub sectors: u64,
    /// Requests among them that were answered with an error.
    pub errors: u64,
}

/// What was done since the ring connected.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Reads.
    pub read: Tally,
    /// Writes.
    pub write: Tally,
    /// Flushes, those with data included.
    pub flush: Tally,
    /// Requests that were answered at once, for what they asked.
    pub rejected: u64,
}

/// Slots by index, first in first out.
#[derive(Debug)]
struct Queue(Deque<u8, RING_ENTRIES>);

impl Queue {
    const fn new() -> Self {
        Self(Deque::new())
    }

    fn push(&mut self, slot: u8) {
        self.0.push_back(slot).expect("a slot is in a queue once at most");
    }

    fn pop(&mut self) -> Option<u8> {
        self.0.pop_front()
    }

    fn front(&self) -> Option<u8> {
        self.0.front().copied()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// A connected ring.
#[derive(Debug)]
pub struct Ring {
    back: BackRing,
    guest: DomId,
    volume: Volume,
    read_only: bool,
    slots: Slots,
    free: Queue,
    /// Wait for the results of their grants, in the order of the batch.
    mapping: Queue,
    /// Wait for commands to be issued.
    issue: Queue,
    /// Wait for their pages to be given back.
    finished: Queue,
    /// Wait for the hypercall that gives their pages back.
    reaped: Queue,
    /// The ring may hold requests that were not taken.
    more: bool,
    /// Requests are taken.
    open: bool,
    counters: Counters,
}

impl Ring {
    /// The ring of `guest` in `page`, served from `volume`; its requests live in `slots`.
    #[must_use]
    pub(super) fn attach(
        page: SharedPage,
        guest: DomId,
        volume: Volume,
        read_only: bool,
        slots: Slots,
    ) -> Self {
        let mut free = Queue::new();
        (0..RING_ENTRIES as u8).for_each(|slot| free.push(slot));
        Self {
            back: BackRing::attach(page),
            guest,
            volume,
            read_only,
            slots,
            free,
            mapping: Queue::new(),
            issue: Queue::new(),
            finished: Queue::new(),
            reaped: Queue::new(),
            more: true,
            open: true,
            counters: Counters::default(),
        }
    }

    /// Gives the page and the slots back.
    #[must_use]
    pub(super) fn detach(self) -> (SharedPage, Slots) {
        (self.back.detach(), self.slots)
    }

    /// What it is served from.
    #[must_use]
    pub const fn volume(&self) -> &Volume {
        &self.volume
    }

    /// What was done so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes at most `limit` requests, while a slot is free and the batch has room for the grants
    /// of any request. Adds their grants to the batch and returns how many; the results are due in
    /// [`Ring::mapped`] before anything else is asked of this ring. Bad requests are answered.
    ///
    /// # Errors
    /// The frontend broke the ring; nothing was taken.
    pub fn admit(
        &mut self,
        limit: usize,
        batch: &mut Vec<GrantMap, GRANT_BATCH>,
    ) -> Result<usize, FrontendFault> {
        let before = batch.len();
        for taken in 0..limit {
            if !self.open || self.free.len() == 0 || batch.capacity() - batch.len() < SEGMENTS {
                break;
            }
            match self.back.pop() {
                Ok(Some(entry)) => self.take(&entry, batch),
                Ok(None) => {
                    self.more = false;
                    break;
                }
                // What was taken before is to be served or answered; the next call fails again.
                Err(_) if taken > 0 => break,
                Err(fault) => return Err(fault),
            }
        }
        Ok(batch.len() - before)
    }

    /// Hands over what became of the grants that [`Ring::admit`] added, in that order.
    ///
    /// # Panics
    /// When they are fewer.
    pub fn mapped(&mut self, results: &[GrantMap]) {
        let mut rest = results;
        while let Some(index) = self.mapping.pop() {
            let slot = &mut self.slots[index];
            let (mine, others) = rest.split_at(slot.segments.len());
            rest = others;
            if slot.mapped(mine) {
                self.enqueue(index);
            } else {
                self.finished.push(index);
            }
        }
    }

    /// The next command, if there is any. The same again until [`Ring::issued`] or
    /// [`Ring::refused`] is called.
    #[must_use]
    pub fn next_command(&self) -> Option<Command<'_>> {
        let index = self.issue.front()?;
        let slot = &self.slots[index];
        Some(if slot.flush {
            Command { slot: index, op: Operation::Flush, first: Block(0), spans: &[] }
        } else {
            let op = match slot.op {
                Operation::Read => Operation::Read,
                Operation::Write | Operation::Flush => Operation::Write,
            };
            Command { slot: index, op, first: slot.next, spans: slot.rest() }
        })
    }

    /// A command took that many spans of the next command's, or is its flush.
    ///
    /// # Panics
    /// When there is no next command, or it has fewer spans, or none were taken of its data.
    pub fn issued(&mut self, spans: usize) {
        let index = self.issue.front().expect("there was a command");
        let slot = &mut self.slots[index];
        assert!(slot.flush == (spans == 0), "a command has data or is a flush");
        let bytes = slot.issue(spans);
        slot.next = Block(slot.next.0.saturating_add(self.volume.blocks_in(bytes).0));
        // Data that comes with a flush waits until the flush is done.
        let waits = core::mem::take(&mut slot.flush);
        if waits || slot.all_issued() {
            self.dequeue();
        }
    }

    /// The disk cannot express the next command: its request fails.
    ///
    /// # Panics
    /// When there is no next command.
    pub fn refused(&mut self) {
        let index = self.dequeue();
        let slot = &mut self.slots[index];
        slot.abandon();
        if slot.parts == 0 {
            self.finished.push(index);
        }
    }

    /// The device is done with one command of a slot, and with the memory of it.
    ///
    /// # Panics
    /// When no command of the slot is outstanding.
    pub fn completed(&mut self, slot: u8, ok: bool) {
        let index = slot;
        let slot = &mut self.slots[index];
        slot.parts = slot.parts.checked_sub(1).expect("a completion belongs to a command");
        if !ok {
            slot.status = Status::Error;
        }
        if slot.parts > 0 || slot.queued {
            return;
        }
        if ok && !slot.all_issued() {
            self.enqueue(index);
        } else {
            self.finished.push(index);
        }
    }

    /// Adds the pages of finished requests to a batch to be unmapped, as long as there is room for
    /// all of a request's; true when there were any such requests. [`Ring::answer`] is due when
    /// the batch was unmapped: a guest may reuse its pages as soon as it is answered.
    pub fn reap(&mut self, unmaps: &mut Vec<GrantMapping, GRANT_BATCH>) -> bool {
        while let Some(index) = self.finished.front() {
            let slot = &self.slots[index];
            if unmaps.extend_from_slice(&slot.mappings).is_err() {
                break;
            }
            self.finished.pop();
            self.reaped.push(index);
        }
        self.reaped.len() > 0
    }

    /// Whether there are finished requests to be reaped.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.finished.len() > 0
    }

    /// Answers what was reaped.
    pub fn answer(&mut self) {
        while let Some(index) = self.reaped.pop() {
            let slot = &self.slots[index];
            self.back.push(slot.head, slot.status);
            let tally = match slot.op {
                Operation::Read => &mut self.counters.read,
                Operation::Write => &mut self.counters.write,
                Operation::Flush => &mut self.counters.flush,
            };
            tally.requests += 1;
            if slot.status == Status::Okay {
                tally.sectors += slot.segments.iter().map(|s| u64::from(s.sectors())).sum::<u64>();
            } else {
                tally.errors += 1;
            }
            self.free.push(index);
        }
    }

    /// Shows the guest the answers; true when it asked to be notified.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.back.publish()
    }

    /// Whether [`Ring::admit`] may find requests without any event.
    #[must_use]
    pub fn backlog(&self) -> bool {
        self.open && self.more && self.free.len() > 0
    }

    /// Asks for an event at the next request, unless requests can be taken without any; true when
    /// so, see [`Ring::backlog`]. With no slot free the ring is empty, as it holds no more requests
    /// than there are slots; still the event is asked for, since the next request comes when an
    /// answer has made room for it.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        if self.open && !self.backlog() {
            self.more = self.back.arm();
        }
        self.backlog()
    }

    /// Requests that were taken and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        RING_ENTRIES - self.free.len()
    }

    /// Whether nothing is in flight and nothing more is taken.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        !self.open && self.in_flight() == 0
    }

    /// Takes no more requests. Those that were taken go on.
    pub fn close(&mut self) {
        self.open = false;
    }

    /// Turns an entry into a slot, or answers it.
    fn take(&mut self, entry: &Entry, batch: &mut Vec<GrantMap, GRANT_BATCH>) {
        let head = Head::parse(entry);
        match self.judge(entry) {
            Ok((request, first)) => self.hold(head, request, first, batch),
            Err(reject) => {
                self.counters.rejected += 1;
                self.back.push(head, reject.status());
            }
        }
    }

    /// What an entry asks for, and where on the disk.
    fn judge(&self, entry: &Entry) -> Result<(Request, Block), Reject> {
        let request = Request::parse(entry)?;
        if self.read_only && request.writes() {
            return Err(Reject::ReadOnly);
        }
        if request.segments.is_empty() {
            return Ok((request, Block(0)));
        }
        let first = self.volume.translate(request.sector, request.sectors().into())?;
        Ok((request, first))
    }

    fn hold(&mut self, head: Head, request: Request, first: Block, batch: &mut Vec<GrantMap, GRANT_BATCH>) {
        let index = self.free.pop().expect("a request is taken when a slot is free");
        let slot = &mut self.slots[index];
        slot.accept(head, request, first);
        if slot.segments.is_empty() {
            // A flush is about what was answered before, so it need not wait behind these grants.
            self.enqueue(index);
            return;
        }
        for segment in &slot.segments {
            let map = GrantMap::new(self.guest, segment.gref, slot.access());
            batch.push(map).expect("a request is taken when its grants have room");
        }
        self.mapping.push(index);
    }

    fn enqueue(&mut self, index: u8) {
        self.slots[index].queued = true;
        self.issue.push(index);
    }

    fn dequeue(&mut self) -> u8 {
        let index = self.issue.pop().expect("there was a command");
        self.slots[index].queued = false;
        index
    }
}
