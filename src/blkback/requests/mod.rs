//! The data path of one connected device: requests become slots, slots become commands, completions
//! become responses. A slot is the obligation to answer: it is in use from the moment its request
//! is taken until its one response is written, and a request is only taken when a slot is free. The
//! slots are the device's, whichever of its rings a request comes from.
//!
//! Nothing here calls the hypervisor or a disk. `domain` does, with one batch for all devices:
//! [`Requests::admit`], copy, [`Requests::copied`], map, [`Requests::mapped`];
//! [`Requests::next_command`] and what follows from it; [`Requests::reap`], unmap,
//! [`Requests::answer`]; [`Requests::publish`].
//!
//! `intake` takes requests off the rings, `grants` knows the guest's pages; here is what becomes of
//! accepted ones.

mod grants;
mod intake;
#[cfg(test)]
mod tests;

use heapless::Vec;

use self::intake::Intake;
use super::means::Means;
use crate::limits::{COMMAND_SPANS, SLOTS};
use crate::units::{Block, Instant, Port, Span};
use crate::volume::Volume;
use crate::wire::blkif::{Operation, Status};

pub use self::grants::Batch;
pub use self::intake::Admitted;
pub(super) use self::intake::Service;

/// What is left of one request, for a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// The request, for [`Requests::completed`].
    pub slot: u8,
    /// What to do.
    pub work: Work,
}

/// What a disk is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Move as many of the spans as one command can, and tell [`Requests::issued`].
    Read(Block),
    /// The same, to the disk.
    Write(Block),
    /// The same, durable when it is completed.
    WriteThrough(Block),
    /// Make what was completed before durable.
    Flush,
    /// Give up as many of these blocks as one command can.
    Discard(Block, Block),
}

/// The data of a command: as many spans as any command takes.
#[derive(Debug)]
pub struct Spans {
    spans: Vec<Span, COMMAND_SPANS>,
    /// For each, what is issued when it is the last that a command takes.
    parts: Vec<Part, COMMAND_SPANS>,
}

impl Spans {
    /// None.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "constant, for a static")]
    pub const fn new() -> Self {
        Self { spans: Vec::new(), parts: Vec::new() }
    }

    /// What a disk is asked for.
    #[must_use]
    pub fn as_slice(&self) -> &[Span] {
        &self.spans
    }

    /// What was issued once a command took so many of them, at least one.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn issued(&self, spans: usize) -> Issued {
        Issued::Data(self.parts[spans - 1])
    }

    fn clear(&mut self) {
        self.spans.clear();
        self.parts.clear();
    }
}

/// A part of a request's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// How many segments of the request are issued with it, from the first one on.
    pub segments: u16,
    /// Its bytes.
    pub bytes: u32,
}

/// What one command takes of what is left of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Issued {
    /// That much of its data.
    Data(Part),
    /// The flush.
    Flush,
    /// So many blocks of a discard.
    Blocks(Block),
}

/// What one command of a request was to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Completed {
    /// One of several: it waits for others.
    One,
    /// What the next one waited for: that can be issued.
    Next,
    /// The last one: the request has ended.
    Last,
}

/// Slots by index, first in first out. Each request goes through three of these: a few instructions for each step.
#[derive(Debug)]
struct Queue {
    slots: [u8; SLOTS],
    /// Free-running: how many were taken out, and put in.
    head: u8,
    tail: u8,
}

// Their difference is the length, up to all slots; places are found by a mask.
const _: () = assert!(SLOTS.is_power_of_two() && SLOTS < 1 << u8::BITS);

impl Queue {
    const fn new() -> Self {
        Self { slots: [0; SLOTS], head: 0, tail: 0 }
    }

    fn push(&mut self, slot: u8) {
        assert!(self.len() < SLOTS, "a slot is in a queue once at most");
        self.slots[usize::from(self.tail) % SLOTS] = slot;
        self.tail = self.tail.wrapping_add(1);
    }

    fn pop(&mut self) -> Option<u8> {
        let slot = self.front()?;
        self.head = self.head.wrapping_add(1);
        Some(slot)
    }

    fn front(&self) -> Option<u8> {
        self.get(0)
    }

    /// The one that is taken out after so many others.
    fn get(&self, after: usize) -> Option<u8> {
        (after < self.len()).then(|| self.slots[(usize::from(self.head) + after) % SLOTS])
    }

    const fn len(&self) -> usize {
        self.tail.wrapping_sub(self.head) as usize
    }
}

/// The requests of a connected device.
#[derive(Debug)]
pub struct Requests {
    service: Service,
    means: Means,
    intake: Intake,
    free: Queue,
    /// Wait for their segments, in the order of the batch.
    copying: Queue,
    /// Wait for the results of their grants, in the order of the batch.
    mapping: Queue,
    /// Wait for commands to be issued.
    issue: Queue,
    /// Discards that wait until another one is answered.
    discards: Queue,
    /// The discard under way. A disk may take long for each of its commands, and all who share the disk
    /// wait for those that it has: so a device has one of them at a time.
    discard: Option<u8>,
    /// Wait for their pages to be given back, and then for the hypercall that does it.
    finished: Queue,
    /// How many of them, from the front on, wait for the hypercall.
    reaped: usize,
    /// Pages that are mapped and not kept.
    held: usize,
    /// Commands that the disk has.
    commands: usize,
    /// Nobody waits for the answers any more.
    abandoned: bool,
    /// A barrier that was taken, and waits until it is the only request in flight, or is done then.
    barrier: Option<Barrier>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Barrier {
    /// Its pages are not mapped yet.
    Taken,
    /// It is ready to be done.
    Waiting(u8),
    UnderWay,
}

impl Requests {
    /// No requests, of a device that is to be served so. Closed: see [`Requests::open`].
    #[must_use]
    pub(super) fn new(service: Service, means: Means) -> Self {
        let mut free = Queue::new();
        (0..SLOTS as u8).for_each(|slot| free.push(slot));
        Self {
            service,
            means,
            intake: Intake::CLOSED,
            free,
            copying: Queue::new(),
            mapping: Queue::new(),
            issue: Queue::new(),
            discards: Queue::new(),
            discard: None,
            finished: Queue::new(),
            reaped: 0,
            held: 0,
            commands: 0,
            abandoned: false,
            barrier: None,
        }
    }

    /// Gives the means back.
    #[must_use]
    pub(super) fn into_means(self) -> Means {
        self.means
    }

    /// Serves another way from now on. Nothing is connected.
    pub(super) const fn serve(&mut self, service: Service) {
        self.service = service;
    }

    /// Takes requests from now on; the frontend lets its pages stay mapped, or does not.
    pub(super) fn open(&mut self, persistent: bool) {
        self.intake = Intake::open(persistent && self.means.keep.is_some());
        self.abandoned = false;
    }

    /// The means: rings among them, and what was counted.
    pub(super) const fn means(&self) -> &Means {
        &self.means
    }

    /// The means, to connect rings, and to give back what is kept.
    pub(super) const fn means_mut(&mut self) -> &mut Means {
        &mut self.means
    }

    /// What it is served from.
    #[must_use]
    pub const fn volume(&self) -> &Volume {
        &self.service.volume
    }

    /// The next command, if there is any, and its data. The same again until [`Requests::issued`] or
    /// [`Requests::refused`] is called.
    #[must_use]
    pub fn next_command(&self, spans: &mut Spans) -> Option<Command> {
        spans.clear();
        let index = self.issue.front()?;
        let slot = &self.means.slots[index];
        let work = if slot.flush {
            Work::Flush
        } else {
            match slot.op {
                Operation::Read => Work::Read(slot.next),
                Operation::Write | Operation::Flush => Work::Write(slot.next),
                Operation::Barrier => Work::WriteThrough(slot.next),
                Operation::Discard => Work::Discard(slot.next, slot.left),
            }
        };
        if work != Work::Flush {
            let mut bytes = 0;
            for (span, segments) in slot.rest().take(COMMAND_SPANS) {
                bytes += span.bytes;
                // There is room.
                let _ = (spans.spans.push(span), spans.parts.push(Part { segments, bytes }));
            }
        }
        Some(Command { slot: index, work })
    }

    /// A command took that much of the next command.
    ///
    /// # Panics
    /// When there is no next command, it is of another kind, or there is less left of it.
    pub fn issued(&mut self, issued: Issued) {
        let index = self.issue.front().expect("there was a command");
        let slot = &mut self.means.slots[index];
        slot.parts += 1;
        self.commands += 1;
        match issued {
            Issued::Flush => assert!(core::mem::take(&mut slot.flush), "there was a flush to issue"),
            Issued::Data(Part { segments, bytes }) => {
                assert!(!slot.flush, "a command has data");
                slot.issue(segments);
                slot.next = Block(slot.next.0.saturating_add(self.service.volume.blocks_in(bytes).0));
            }
            Issued::Blocks(blocks) => {
                slot.left = Block(slot.left.0.checked_sub(blocks.0).expect("no more blocks than are left"));
                slot.next = Block(slot.next.0.saturating_add(blocks.0));
            }
        }
        // What comes after a flush, or a part of a discard, waits until that is done.
        let waits = matches!(issued, Issued::Flush | Issued::Blocks(_));
        if waits || slot.all_issued() {
            self.dequeue();
        }
    }

    /// The next command is not to be issued, or the disk cannot express it: its request fails.
    ///
    /// # Panics
    /// When there is no next command.
    pub fn refused(&mut self) {
        let index = self.dequeue();
        let slot = &mut self.means.slots[index];
        slot.abandon();
        if slot.parts == 0 {
            self.finished.push(index);
        }
    }

    /// The device is done with one command of a slot, and with the memory of it; returns what follows.
    ///
    /// # Panics
    /// When no command of the slot is outstanding.
    #[inline]
    pub fn completed(&mut self, slot: u8, ok: bool) -> Completed {
        let index = slot;
        let slot = &mut self.means.slots[index];
        slot.parts = slot.parts.checked_sub(1).expect("a completion belongs to a command");
        self.commands -= 1;
        if !ok {
            slot.status = Status::Error;
        }
        if slot.parts > 0 || slot.queued {
            return Completed::One;
        }
        if self.intake.is_closed() {
            slot.left = Block(0);
        }
        let goes_on = ok && !slot.all_issued();
        if goes_on {
            self.enqueue(index);
        } else {
            self.finished.push(index);
        }
        if goes_on && !self.abandoned { Completed::Next } else { Completed::Last }
    }

    /// Commands that were issued and not completed.
    #[must_use]
    pub const fn commands(&self) -> usize {
        self.commands
    }

    /// Whether there are commands to be issued.
    #[must_use]
    pub const fn has_commands(&self) -> bool {
        self.issue.len() > 0
    }

    /// Whether there are finished requests to be reaped.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.finished.len() > self.reaped
    }

    /// Answers what was reaped.
    pub fn answer(&mut self, now: Instant) {
        for _ in 0..core::mem::take(&mut self.reaped) {
            self.answer_next(now);
        }
        self.follow_up();
    }

    /// Answers the request that has finished first.
    #[inline(always)]
    fn answer_next(&mut self, now: Instant) {
        let index = self.finished.pop().expect("what is answered has finished");
        let slot = &mut self.means.slots[index];
        self.means.links[usize::from(slot.ring)].back.push(slot.head(), slot.status);
        let okay = slot.status == Status::Okay;
        self.means.counters.answered(slot.op, okay, slot.sectors, now.since(slot.taken));
        if slot.op == Operation::Barrier {
            self.barrier = None;
        }
        if self.discard == Some(index) {
            self.discard = None;
        }
        if let Some(page) = slot.page.take() {
            self.means.segment_pages.push(page).expect("each page came from here");
        }
        self.free.push(index);
    }

    /// Begins what waited for answers.
    #[inline]
    fn follow_up(&mut self) {
        if self.barrier.is_some() {
            self.start_barrier();
        }
        if self.discards.len() > 0 {
            self.start_discard();
        }
    }

    /// Shows the guest the answers; notifies the ports of rings that asked for it.
    pub fn publish(&mut self, mut notify: impl FnMut(Port)) {
        for ring in 0..self.means.links.len() {
            let link = &mut self.means.links[ring];
            if link.back.publish() {
                notify(link.port);
            }
        }
    }

    /// Requests that were taken and not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        SLOTS - self.free.len()
    }

    /// Whether nothing is in flight and nothing more is taken.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.intake.is_closed() && self.in_flight() == 0
    }

    /// Takes no more requests. Those that were taken go on, but for discards: a disk may want so many commands for them
    /// that they take hours, and what is not given up reads as before, which is as good.
    pub fn close(&mut self) {
        self.intake.close();
    }

    /// Nobody waits for the answers any more: what the disk has is waited for, and nothing more is issued.
    pub fn abandon(&mut self) {
        self.abandoned = true;
        while self.issue.len() > 0 {
            self.refused();
        }
    }

    /// A request has all it needs. Inlined, because nearly all are only put into a queue here.
    #[inline(always)]
    fn ready(&mut self, index: u8) {
        match self.means.slots[index].op {
            Operation::Barrier => {
                self.barrier = Some(Barrier::Waiting(index));
                self.start_barrier();
            }
            Operation::Discard => {
                self.discards.push(index);
                self.start_discard();
            }
            Operation::Read | Operation::Write | Operation::Flush => self.enqueue(index),
        }
    }

    /// Lets a barrier begin once everything before it was answered; nothing after it was taken.
    fn start_barrier(&mut self) {
        if let Some(Barrier::Waiting(index)) = self.barrier
            && self.in_flight() == 1
        {
            self.barrier = Some(Barrier::UnderWay);
            self.enqueue(index);
        }
    }

    /// Lets a discard begin once the one before was answered, or none of them at the end.
    #[inline]
    fn start_discard(&mut self) {
        while self.discard.is_none()
            && let Some(index) = self.discards.pop()
        {
            if self.intake.is_closed() {
                self.finished.push(index);
            } else {
                self.discard = Some(index);
                self.enqueue(index);
            }
        }
    }

    #[inline]
    fn enqueue(&mut self, index: u8) {
        let slot = &mut self.means.slots[index];
        if self.abandoned {
            slot.abandon();
            self.finished.push(index);
        } else {
            slot.queued = true;
            self.issue.push(index);
        }
    }

    fn dequeue(&mut self) -> u8 {
        let index = self.issue.pop().expect("there was a command");
        self.means.slots[index].queued = false;
        index
    }
}
