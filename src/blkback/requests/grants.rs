//! The guest's pages: which grants a request needs mapped, what became of them, and what is given
//! back when the request has ended.

use heapless::Vec;

use super::{Barrier, Requests};
use crate::blkback::keep::Keep;
use crate::blkback::slot::Grant;
use crate::hal::{DeviceAccess, GrantCopy, GrantMap, GrantMapping};
use crate::limits::{COPY_BATCH, GRANT_BATCH, SEGMENTS};
use crate::units::Instant;
use crate::wire::blkif::{Operation, Reject, Status};

/// Hypercalls to be made for the devices of a turn: first all copies, then all maps.
#[derive(Debug)]
pub struct Batch {
    /// Segments of indirect requests.
    pub copies: Vec<GrantCopy, COPY_BATCH>,
    /// Pages.
    pub maps: Vec<GrantMap, GRANT_BATCH>,
    /// Maps that the copies may lead to.
    promised: usize,
    /// Maps that may be made now.
    room: usize,
    /// Those and no more of them than the device whose turn it is may have.
    limit: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "constant, for a static")]
    pub const fn new() -> Self {
        Self { copies: Vec::new(), maps: Vec::new(), promised: 0, room: 0, limit: 0 }
    }

    /// Starts over, with room for so many maps.
    pub fn start(&mut self, room: usize) {
        self.copies.clear();
        self.maps.clear();
        self.promised = 0;
        self.room = room.min(GRANT_BATCH);
    }

    /// The device whose turn it is may have so many more.
    pub(super) fn allow(&mut self, maps: usize) {
        self.limit = self.room.min(self.maps.len() + self.promised + maps);
    }

    /// Whether any direct request has room.
    pub(super) fn has_room(&self) -> bool {
        self.maps.len() + self.promised + SEGMENTS <= self.limit
    }

    /// Promises an indirect request of so many segments room.
    pub(super) fn promise(&mut self, segments: usize) -> bool {
        let has_room = !self.copies.is_full() && self.maps.len() + self.promised + segments <= self.limit;
        if has_room {
            self.promised += segments;
        }
        has_room
    }
}

impl Requests {
    /// Takes over what became of the copies that [`Requests::admit`] added, in that order, and adds
    /// the grants they name to the batch; returns how many.
    ///
    /// # Panics
    /// When the copies are fewer.
    pub fn copied(
        &mut self,
        now: Instant,
        copies: &[GrantCopy],
        maps: &mut Vec<GrantMap, GRANT_BATCH>,
    ) -> usize {
        let before = maps.len();
        for copy in copies {
            let index = self.copying.pop().expect("a copy belongs to a request");
            let judged = match copy.result {
                Ok(()) => self.hold_copied(index),
                Err(_) => {
                    self.means.slots[index].without_pieces();
                    Err(Reject::Segment)
                }
            };
            match judged {
                Ok(()) => self.map(index, now, maps),
                Err(reject) => {
                    self.means.slots[index].status = reject.status();
                    self.finish_early(index);
                }
            }
        }
        maps.len() - before
    }

    /// Hands over what became of the grants that [`Requests::admit`] and [`Requests::copied`] added,
    /// in that order.
    pub fn mapped(&mut self, now: Instant, mut results: &[GrantMap]) {
        while !results.is_empty() {
            let Some(index) = self.mapping.pop() else { return };
            results = self.take_over(index, now, results);
            if self.means.slots[index].status == Status::Okay {
                self.ready(index);
            } else {
                self.finish_early(index);
            }
        }
    }

    /// Answers finished requests. The pages of those that do not stay mapped are added to a batch to be unmapped, as
    /// long as there is room for all of a request's; true when there are any such requests: [`Requests::answer`] is
    /// due when the batch was unmapped, as a guest may reuse its pages as soon as it is answered. Inlined with what it
    /// calls: with many devices there is one request for each call.
    #[inline(always)]
    pub fn reap(&mut self, now: Instant, unmaps: &mut Vec<GrantMapping, GRANT_BATCH>) -> bool {
        while let Some(index) = self.finished.get(self.reaped) {
            let before = unmaps.len();
            if unmaps.capacity() - before < self.means.slots[index].pieces() {
                break;
            }
            self.give_back(index, unmaps);
            if unmaps.len() == before && self.reaped == 0 {
                self.answer_next(now);
            } else {
                self.reaped += 1;
            }
        }
        self.follow_up();
        if let Some(keep) = &mut self.means.keep {
            keep.make_room(unmaps);
        }
        self.reaped > 0
    }

    /// Pages that may yet be mapped for requests, whether they are kept then or not.
    pub(super) const fn mappings_left(&self) -> usize {
        self.means.mappings - self.held
    }

    /// Pages that stay mapped.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.means.keep.as_ref().map_or(0, Keep::len)
    }

    /// Makes pieces of the segments of an indirect request, and finds its place on the disk.
    fn hold_copied(&mut self, index: u8) -> Result<(), Reject> {
        let slot = &mut self.means.slots[index];
        slot.hold_copied()?;
        let (op, sector, sectors) = (slot.op, slot.sector, slot.sectors);
        self.means.slots[index].next = self.place(op, sector, sectors)?;
        Ok(())
    }

    /// Adds the grants of a request that are not mapped already.
    pub(super) fn map(&mut self, index: u8, now: Instant, maps: &mut Vec<GrantMap, GRANT_BATCH>) {
        let slot = &mut self.means.slots[index];
        // A page that is kept serves reads and writes.
        let (mut keep, access) = match &mut self.means.keep {
            Some(keep) if self.intake.persistent => (Some(keep), DeviceAccess::Writes),
            Some(_) | None => (None, slot.access()),
        };
        let before = maps.len();
        for i in 0..slot.pieces() {
            let piece = slot.piece(i);
            let Grant::Asked(gref) = piece.grant else { continue };
            match keep.as_mut().and_then(|keep| keep.find(gref, now)) {
                Some((place, page)) => slot.set_piece(i, piece.at(Grant::Kept(place), page)),
                None => {
                    maps.push(GrantMap::new(self.service.guest, gref, access))
                        .expect("there was room, or a promise");
                }
            }
        }
        if maps.len() == before {
            self.ready(index);
        } else {
            self.mapping.push(index);
        }
    }

    /// Gives a request its results, from the front; returns the others.
    fn take_over<'a>(&mut self, index: u8, now: Instant, mut results: &'a [GrantMap]) -> &'a [GrantMap] {
        let slot = &mut self.means.slots[index];
        let mut keep = self.means.keep.as_mut().filter(|_| self.intake.persistent);
        for i in 0..slot.pieces() {
            let piece = slot.piece(i);
            let Grant::Asked(gref) = piece.grant else { continue };
            let Some((result, others)) = results.split_first() else { break };
            results = others;
            match result.result {
                Ok(mapping) => {
                    let grant = match keep.as_mut().and_then(|keep| keep.insert(gref, mapping, now)) {
                        Some(place) => Grant::Kept(place),
                        None => {
                            self.held += 1;
                            Grant::Mapped(mapping.handle)
                        }
                    };
                    slot.set_piece(i, piece.at(grant, mapping.bus));
                }
                Err(_) => slot.status = Status::Error,
            }
        }
        results
    }

    /// Ends a request that was never issued.
    pub(super) fn finish_early(&mut self, index: u8) {
        if self.means.slots[index].op == Operation::Barrier {
            self.barrier = Some(Barrier::UnderWay);
        }
        self.finished.push(index);
    }

    #[inline(always)]
    fn give_back(&mut self, index: u8, unmaps: &mut Vec<GrantMapping, GRANT_BATCH>) {
        let slot = &self.means.slots[index];
        for i in 0..slot.pieces() {
            let piece = slot.piece(i);
            match piece.grant {
                Grant::Asked(_) => {}
                Grant::Mapped(handle) => {
                    self.held -= 1;
                    let mapping = GrantMapping { handle, bus: piece.page() };
                    unmaps.push(mapping).expect("there was room for all of the request's");
                }
                Grant::Kept(place) => {
                    let keep = self.means.keep.as_mut().expect("what is kept has a table");
                    keep.release(place);
                }
            }
        }
    }
}
