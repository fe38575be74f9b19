//! The data path: requests from rings to disks and answers back, batched over all rings so that a
//! turn costs at most one map, one unmap, and a notification where a frontend asks for one.
//!
//! Order within a turn: completions first, because they free slots; grants are given back before
//! the answer that lets the guest reuse its pages; then new requests and commands; notifications
//! last, so that the disks are at work when the guests are.

use core::ops::Range;

use heapless::Vec;

use super::disks::Disks;
use super::set::Set;
use crate::blkback::{Admitted, Batch, Completed, Issued, Requests, Spans, Vbd, Work};
use crate::drivers::{Completion, DeviceError, Disk, Operation, Refusal, Token};
use crate::hal::{GrantMapping, Hal, Memory};
use crate::limits;
use crate::units::{Block, Instant, Port, Span};
use crate::volume::DiskIndex;

/// Completions taken from one controller at a time.
const COMPLETIONS: usize = limits::QUEUE_ENTRIES;

/// Turns in which rings that were popped are looked at again, until they are armed instead.
const ARM_TURNS: u32 = 16;

// A token holds the vbd's place and the slot of its request, and none of them is `OUR_FLUSH`.
const _: () = assert!(limits::VBD_PLACES <= u16::MAX as usize && limits::SLOTS <= 1 << 8);

/// The state of it: who has something to be done.
pub(super) struct Io {
    /// Vbds whose rings may hold requests not taken yet.
    called: Set,
    /// By controller, vbds with requests to be issued to a disk of it.
    queued: [Set; limits::CONTROLLERS],
    /// Vbds with requests that have ended.
    ended: Set,
    /// Ports to be notified at the end of the turn: their guests wait for answers.
    notices: Vec<Port, { limits::RINGS }>,
    /// Vbds whose rings were popped since they were last armed.
    popped: Set,
    /// Turns since then.
    turns: u32,
    /// Vbds whose rings faulted, or gave the last answer before the end.
    stirred: Set,
    /// The vbd whose turn it is first.
    cursor: usize,
    /// The vbd whose ended requests are the first to have room in the batch.
    reap_cursor: usize,
    /// By controller, the vbd whose turn it is to issue a command: after the one that issued the
    /// last, so that all have equal shares of what a full controller can take.
    issue_cursors: [usize; limits::CONTROLLERS],
    batch: Batch,
    unmaps: Vec<GrantMapping, { limits::GRANT_BATCH }>,
    /// Who admitted what in this turn, in the order of the batch.
    shares: Shares,
    spans: Spans,
    done: Vec<Completion, COMPLETIONS>,
    /// No new requests are taken any more.
    closing: bool,
    /// Flushes of our own that are under way, by controller.
    flushes: [usize; limits::CONTROLLERS],
    read: OurRead,
}

/// Names the flushes before the end; no vbd has this place.
const OUR_FLUSH: Token = Token(u32::MAX);

/// Names the read of our own, of which there is one at a time; no vbd has this place either.
const OUR_READ: Token = Token(u32::MAX - 1);

/// Reads of our own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OurRead {
    None,
    /// By this controller.
    UnderWay(usize),
    Ended(Result<(), DeviceError>),
}

/// Vbds, and what each admitted.
type Shares = Vec<(u16, Admitted), { limits::VBD_PLACES }>;

pub(super) type Vbds = Vec<Option<Vbd>, { limits::VBD_PLACES }>;

impl Io {
    pub(super) const fn new() -> Self {
        Self {
            called: Set::EMPTY,
            queued: [Set::EMPTY; limits::CONTROLLERS],
            ended: Set::EMPTY,
            notices: Vec::new(),
            popped: Set::EMPTY,
            turns: 0,
            stirred: Set::EMPTY,
            cursor: 0,
            reap_cursor: 0,
            issue_cursors: [0; limits::CONTROLLERS],
            batch: Batch::new(),
            unmaps: Vec::new(),
            shares: Shares::new(),
            spans: Spans::new(),
            done: Vec::new(),
            closing: false,
            flushes: [0; limits::CONTROLLERS],
            read: OurRead::None,
        }
    }

    /// The frontend has sent an event, or its rings are new.
    pub(super) fn ring_called(&mut self, index: usize) {
        self.called.add(index);
    }

    /// Requests of this vbd have ended, without a disk.
    pub(super) fn requests_ended(&mut self, index: usize) {
        self.ended.add(index);
    }

    /// Adds the vbds to be visited for what became of their rings, each once.
    pub(super) fn take_stirred(&mut self, due: &mut Set) {
        due.take_all(&mut self.stirred);
    }

    /// Takes no new requests from now on.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Asks a controller's disks to write their caches out.
    pub(super) fn flush(&mut self, hal: &mut impl Memory, controller: usize, disk: &mut Disk) {
        for namespace in 0..disk.namespaces().len() {
            let flush = disk.submit(OUR_FLUSH, namespace, Operation::Flush, Block(0), &[]);
            self.flushes[controller] += usize::from(flush.is_ok());
        }
        disk.kick(hal);
    }

    /// Reads blocks of a disk into memory of our own, when no such read is under way.
    ///
    /// # Errors
    /// Not now, or never: the controller's status tells.
    pub(super) fn read(
        &mut self,
        disks: &mut Disks,
        from: DiskIndex,
        first: Block,
        to: Span,
    ) -> Result<(), Refusal> {
        let disk = disks[from.controller].as_mut().filter(|_| !self.closing).ok_or(Refusal::NotReady)?;
        disk.submit(OUR_READ, from.namespace, Operation::Read, first, &[to])?;
        self.read = OurRead::UnderWay(from.controller);
        Ok(())
    }

    /// What became of the read, once it has ended.
    pub(super) fn take_read(&mut self) -> Option<Result<(), DeviceError>> {
        let OurRead::Ended(result) = self.read else { return None };
        self.read = OurRead::None;
        Some(result)
    }

    /// Does not wait for the read any more: its controller has failed.
    pub(super) fn forget_read(&mut self) {
        self.read = OurRead::None;
    }

    /// Whether the read is still under way at this controller, and may end.
    pub(super) fn is_reading(&self, controller: usize, disk: &Disk) -> bool {
        self.read == OurRead::UnderWay(controller) && !disk.has_failed()
    }

    /// Whether a flush of our own is still under way, and may end.
    pub(super) fn is_flushing(&self, controller: usize, disk: &Disk) -> bool {
        self.flushes[controller] > 0 && !disk.has_failed()
    }

    /// Does what can be done now; returns whether there is more, that no event will tell of.
    pub(super) fn turn(
        &mut self,
        hal: &mut impl Hal,
        now: Instant,
        disks: &mut Disks,
        vbds: &mut Vbds,
    ) -> bool {
        let mut again = self.complete(hal, now, disks, vbds);
        self.finish(hal, now, vbds);
        if !self.closing {
            again |= self.admit(hal, now, vbds);
        }
        self.issue(disks, vbds);
        for disk in disks.iter_mut().flatten() {
            disk.kick(hal);
        }
        self.notices.iter().for_each(|port| hal.notify(*port));
        self.notices.clear();
        self.turns += 1;
        if self.turns >= ARM_TURNS {
            self.arm(vbds);
        }
        again || !self.ended.is_empty() || !self.stirred.is_empty()
    }

    /// Takes what the controllers have completed; returns whether there may be more to do for them.
    fn complete(&mut self, hal: &mut impl Hal, now: Instant, disks: &mut Disks, vbds: &mut Vbds) -> bool {
        let mut again = false;
        for (controller, disk) in disks.iter_mut().enumerate() {
            let Some(disk) = disk else { continue };
            again |= disk.turn(hal, now, &mut self.done);
            for completion in &self.done {
                match completion.token {
                    OUR_FLUSH => {
                        self.flushes[controller] -= 1;
                        continue;
                    }
                    OUR_READ => {
                        again = true;
                        // One that is not waited for any more ends when its controller is kept from
                        // memory, and another controller's may be under way by then.
                        if self.read == OurRead::UnderWay(controller) {
                            self.read = OurRead::Ended(completion.result);
                        }
                        continue;
                    }
                    Token(_) => {}
                }
                let (index, slot) = place(completion.token);
                if let Some(requests) = requests(vbds, index) {
                    match requests.completed(slot, completion.result.is_ok()) {
                        Completed::Last => self.ended.add(index),
                        Completed::Next => self.queued[controller].add(index),
                        Completed::One => {}
                    }
                }
            }
            self.done.clear();
        }
        again
    }

    /// Answers ended requests, those with grants to be given back when that is done.
    fn finish(&mut self, hal: &mut impl Hal, now: Instant, vbds: &mut Vbds) {
        let Some(first) = self.ended.next(self.reap_cursor) else { return };
        let mut waiting = Set::EMPTY;
        self.unmaps.clear();
        for index in core::mem::take(&mut self.ended).from(first) {
            let Some(requests) = requests(vbds, index) else { continue };
            if requests.reap(now, &mut self.unmaps) {
                waiting.add(index);
            } else {
                self.answered(hal, index, requests);
            }
        }
        // It may have taken all room in the batch: the next one is first the next time.
        self.reap_cursor = first + 1;
        if !self.unmaps.is_empty() {
            hal.unmap(&self.unmaps);
        }
        while let Some(index) = waiting.pop() {
            let Some(requests) = requests(vbds, index) else { continue };
            requests.answer(now);
            self.answered(hal, index, requests);
        }
    }

    /// Shows the answers that a vbd has got, and notes what may be done next for it. Inlined like [`Requests::reap`].
    #[inline(always)]
    fn answered(&mut self, hal: &mut impl Hal, index: usize, requests: &mut Requests) {
        publish(hal, requests, &mut self.notices);
        if requests.is_drained() {
            self.stirred.add(index);
        }
        // There may be room for requests that had to wait.
        if requests.backlog() {
            self.called.add(index);
        }
        // A barrier or a discard may begin, or end at once.
        note(index, requests, &mut self.queued, &mut self.ended);
    }

    /// Takes new requests: copies what indirect ones point to, and maps what all of them name. Returns whether some were
    /// taken and others are still to be.
    fn admit(&mut self, hal: &mut impl Hal, now: Instant, vbds: &mut Vbds) -> bool {
        // Nobody is told of what comes into a ring that is not armed.
        self.called.add_all(&self.popped);
        if self.called.is_empty() {
            return false;
        }
        self.batch.start(limits::GRANT_BATCH);
        self.shares.clear();
        let mut first = None;
        for index in self.called.from(self.cursor) {
            let Some(vbd) = vbds.get_mut(index).and_then(Option::as_mut) else {
                self.called.remove(index);
                continue;
            };
            let Some(requests) = vbd.requests_mut() else {
                self.called.remove(index);
                continue;
            };
            match requests.admit(now, limits::ADMIT_BATCH, &mut self.batch) {
                Ok(admitted) => {
                    if admitted.requests > 0 {
                        first.get_or_insert(index);
                    }
                    self.popped.add(index);
                    // Some may make no sense, and have their answers.
                    publish(hal, requests, &mut self.notices);
                    // A discard of nothing has ended.
                    note(index, requests, &mut self.queued, &mut self.ended);
                    if !requests.backlog() {
                        self.called.remove(index);
                    }
                    if admitted.copies + admitted.maps > 0 {
                        self.shares.push((index as u16, admitted)).expect("one share a vbd");
                    }
                }
                Err(fault) => {
                    vbd.fault(fault);
                    self.stirred.add(index);
                    self.called.remove(index);
                }
            }
        }
        if let Some(first) = first {
            // It may have taken all room in the batch: the next one is first the next time.
            self.cursor = first + 1;
        }
        if !self.shares.is_empty() {
            self.call(hal, now, vbds);
        }
        first.is_some() && !self.called.is_empty()
    }

    /// Makes the batch's hypercalls, and hands each vbd its share of the results.
    fn call(&mut self, hal: &mut impl Hal, now: Instant, vbds: &mut Vbds) {
        if !self.batch.copies.is_empty() {
            hal.copy(&mut self.batch.copies);
        }
        let direct = self.batch.maps.len();
        let indirect = self.copied(now, vbds);
        if !self.batch.maps.is_empty() {
            hal.map(&mut self.batch.maps);
        }
        let mut results = 0..direct;
        for i in 0..self.shares.len() {
            let (index, admitted) = self.shares[i];
            results.end = results.start + usize::from(admitted.maps);
            self.mapped(now, vbds, index.into(), results.clone());
            results.start = results.end;
        }
        for (index, share) in &indirect {
            results.end = results.start + share;
            self.mapped(now, vbds, *index, results.clone());
            results.start = results.end;
        }
    }

    /// Hands over what was copied; returns who has how many maps for that.
    fn copied(&mut self, now: Instant, vbds: &mut Vbds) -> Vec<(usize, usize), { limits::COPY_BATCH }> {
        let mut more = Vec::new();
        let mut copies = self.batch.copies.as_slice();
        for (index, admitted) in self.shares.iter().filter(|(_, admitted)| admitted.copies > 0) {
            let (results, others) = copies.split_at(admitted.copies.into());
            copies = others;
            let index = usize::from(*index);
            if let Some(requests) = requests(vbds, index) {
                let share = requests.copied(now, results, &mut self.batch.maps);
                more.push((index, share)).expect("no more of them than copies");
            }
        }
        more
    }

    /// Hands over what was mapped.
    fn mapped(&mut self, now: Instant, vbds: &mut Vbds, index: usize, results: Range<usize>) {
        if let Some(requests) = requests(vbds, index) {
            let kept = requests.kept();
            requests.mapped(now, &self.batch.maps[results]);
            // From now on there is a time when they have been idle.
            if kept == 0 && requests.kept() > 0 {
                self.stirred.add(index);
            }
            note(index, requests, &mut self.queued, &mut self.ended);
        }
    }

    /// Makes commands of accepted requests, one a vbd in turn, while the disks take them.
    fn issue(&mut self, disks: &mut Disks, vbds: &mut Vbds) {
        for (controller, disk) in disks.iter_mut().enumerate() {
            let Some(disk) = disk else { continue };
            let (queued, cursor) = (&mut self.queued[controller], &mut self.issue_cursors[controller]);
            if queued.is_empty() {
                continue;
            }
            let mut waiting = *queued;
            // Nobody is looked at while there is no room for anybody.
            while disk.room() != Some(0)
                && let Some(index) = waiting.next(*cursor)
            {
                let is_here = |requests: &&mut Requests| requests.volume().disk.controller == controller;
                let has_more = requests(vbds, index).filter(is_here).is_some_and(|requests| {
                    match issue_one(index, requests, disk, &mut self.spans) {
                        Step::Issued => *cursor = index + 1,
                        Step::Ended => self.ended.add(index),
                        Step::Empty => {}
                        Step::Wait => waiting.remove(index),
                    }
                    requests.has_commands()
                });
                if !has_more {
                    waiting.remove(index);
                    queued.remove(index);
                }
            }
        }
    }

    /// Asks each frontend whose ring was popped for an event at its next request; returns whether
    /// one has published a request meanwhile.
    pub(super) fn arm(&mut self, vbds: &mut Vbds) -> bool {
        self.turns = 0;
        while let Some(index) = self.popped.pop() {
            if requests(vbds, index).is_some_and(Requests::arm) {
                self.called.add(index);
            }
        }
        // Calls must not keep the domain from its sleep when nothing is taken any more before the end.
        !self.called.is_empty() && !self.closing
    }
}

enum Step {
    Issued,
    /// The request cannot be done and has ended.
    Ended,
    /// The vbd has no request to issue.
    Empty,
    /// The disk takes no command now.
    Wait,
}

fn issue_one(index: usize, requests: &mut Requests, disk: &mut Disk, spans: &mut Spans) -> Step {
    let namespace = requests.volume().disk.namespace;
    // Whoever comes next finds room, and as much of it as anybody has taken.
    if disk.room().is_some_and(|room| requests.commands() >= room) {
        return Step::Wait;
    }
    let Some(command) = requests.next_command(spans) else { return Step::Empty };
    let token = Token((index as u32) << 16 | u32::from(command.slot));
    let mut submit = |operation, first| {
        disk.submit(token, namespace, operation, first, spans.as_slice()).map(|taken| spans.issued(taken))
    };
    let issued = match command.work {
        Work::Read(first) => submit(Operation::Read, first),
        Work::Write(first) => submit(Operation::Write, first),
        Work::WriteThrough(first) => submit(Operation::WriteFua, first),
        Work::Flush => disk.submit(token, namespace, Operation::Flush, Block(0), &[]).map(|_| Issued::Flush),
        Work::Discard(first, blocks) => disk.discard(token, namespace, first, blocks).map(Issued::Blocks),
    };
    match issued {
        Ok(issued) => {
            requests.issued(issued);
            Step::Issued
        }
        Err(Refusal::Full | Refusal::NotReady) => Step::Wait,
        Err(Refusal::Inexpressible | Refusal::Dead) => {
            requests.refused();
            Step::Ended
        }
    }
}

/// Where a token's request is: the vbd's place and its slot.
fn place(token: Token) -> (usize, u8) {
    ((token.0 >> 16) as usize, token.0 as u8)
}

/// Shows a guest its answers; an event follows at the end of the turn, where its frontend asks for one.
fn publish(hal: &mut impl Hal, requests: &mut Requests, notices: &mut Vec<Port, { limits::RINGS }>) {
    requests.publish(|port| {
        if let Err(port) = notices.push(port) {
            hal.notify(port);
        }
    });
}

/// Notes what is to be done next for a vbd.
#[inline]
fn note(index: usize, requests: &Requests, queued: &mut [Set; limits::CONTROLLERS], ended: &mut Set) {
    if requests.has_commands() {
        queued[requests.volume().disk.controller].add(index);
    }
    if requests.has_ended() {
        ended.add(index);
    }
}

fn requests(vbds: &mut Vbds, index: usize) -> Option<&mut Requests> {
    vbds.get_mut(index)?.as_mut()?.requests_mut()
}
