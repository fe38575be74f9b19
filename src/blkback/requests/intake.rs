//! How requests are taken off the rings of a device: each ring in its turn, while there is a slot,
//! room in the batch, and no barrier. What was taken off a ring is never read again; an indirect
//! request that finds no page for its segments waits here.

use super::{Barrier, Batch, Requests};
use crate::hal::GrantCopy;
use crate::limits::SEGMENTS;
use crate::units::{Block, DomId, Instant, Sector};
use crate::volume::Volume;
use crate::wire::blkif::{ENTRY_BYTES, Entry, Head, Operation, Reject, Request, SEGMENT_BYTES};
use crate::wire::ring::FrontendFault;

/// How a device is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::blkback) struct Service {
    /// Whose requests.
    pub(in crate::blkback) guest: DomId,
    /// What they are served from.
    pub(in crate::blkback) volume: Volume,
    /// Nothing may be changed.
    pub(in crate::blkback) read_only: bool,
    /// Discards are offered.
    pub(in crate::blkback) discards: bool,
}

/// What taking depends on.
#[derive(Debug)]
pub(super) struct Intake {
    /// The frontend lets its pages stay mapped.
    pub(super) persistent: bool,
    /// Requests are taken.
    open: bool,
    /// The rings may hold requests that were not taken.
    more: bool,
    /// The ring whose turn it is.
    cursor: usize,
    /// An indirect request that was taken off this ring and waits for room, with the mappings that it needs.
    staged: Option<(u8, Entry, usize)>,
}

impl Intake {
    pub(super) const CLOSED: Self =
        Self { persistent: false, open: false, more: true, cursor: 0, staged: None };

    pub(super) const fn open(persistent: bool) -> Self {
        Self { persistent, open: true, ..Self::CLOSED }
    }

    pub(super) const fn is_closed(&self) -> bool {
        !self.open
    }

    /// A request that waits here is not accepted yet: there is no answer to it.
    pub(super) fn close(&mut self) {
        self.open = false;
        self.staged = None;
    }
}

/// What became of a request that was taken off a ring.
#[derive(PartialEq, Eq)]
enum Taken {
    /// A slot holds it, or it was answered.
    Accepted,
    /// There is no room for it and these mappings now.
    Staged(usize),
}

impl Requests {
    /// Takes at most `limit` requests. Adds copies and maps to the batch and returns how many
    /// of each; the results are due in [`Requests::copied`] and [`Requests::mapped`] before anything
    /// else is asked here. Bad requests are answered.
    ///
    /// # Errors
    /// The frontend broke a ring; nothing was taken.
    pub fn admit(
        &mut self,
        now: Instant,
        limit: usize,
        batch: &mut Batch,
    ) -> Result<Admitted, FrontendFault> {
        let before = (batch.copies.len(), batch.maps.len());
        let (mut requests, mut entry) = (0, [0; ENTRY_BYTES]);
        batch.allow(self.mappings_left());
        while usize::from(requests) < limit && self.can_take() {
            if !batch.has_room() {
                // What the event was for is not seen yet.
                self.intake.more = true;
                break;
            }
            let ring = match self.next_entry(&mut entry) {
                Ok(Some(ring)) => ring,
                Ok(None) => break,
                // What was taken before is to be served or answered; the next call fails again.
                Err(_) if requests > 0 => break,
                Err(fault) => return Err(fault),
            };
            if let Taken::Staged(maps) = self.take(ring, &entry, now, batch) {
                self.intake.staged = Some((ring, entry, maps));
                break;
            }
            requests += 1;
        }
        Ok(Admitted {
            requests,
            copies: (batch.copies.len() - before.0) as u16,
            maps: (batch.maps.len() - before.1) as u16,
        })
    }

    /// Whether [`Requests::admit`] may find requests without any event.
    #[must_use]
    pub fn backlog(&self) -> bool {
        (self.intake.more || self.intake.staged.is_some()) && self.can_take()
    }

    /// Asks for an event at the next request of each ring, unless requests can be taken without any;
    /// true when so, see [`Requests::backlog`]. What cannot be taken for lack of a slot or of mappings is taken when
    /// an answer has freed them; still the event is asked for.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        if self.intake.open && !self.backlog() {
            for link in self.means.links.iter() {
                self.intake.more |= link.back.arm();
            }
        }
        self.backlog()
    }

    fn can_take(&self) -> bool {
        let (maps, stuck) = match self.intake.staged {
            Some((_, _, maps)) => (maps, self.means.segment_pages.is_empty()),
            None => (SEGMENTS, false),
        };
        let has_mappings = maps <= self.mappings_left();
        self.intake.open && self.barrier.is_none() && self.free.len() > 0 && has_mappings && !stuck
    }

    /// The request that waits, or the next one of the ring whose turn it is; returns which ring it is of.
    fn next_entry(&mut self, entry: &mut Entry) -> Result<Option<u8>, FrontendFault> {
        if let Some((ring, staged, _)) = self.intake.staged.take() {
            *entry = staged;
            return Ok(Some(ring));
        }
        let rings = self.means.links.len();
        for _ in 0..rings {
            let ring = if self.intake.cursor < rings { self.intake.cursor } else { 0 };
            // A broken ring keeps its turn: so the others cannot hide it.
            let is_there = self.means.links[ring].back.pop(entry)?;
            self.intake.cursor = ring + 1;
            if is_there {
                self.intake.more = true;
                return Ok(Some(ring as u8));
            }
        }
        self.intake.more = false;
        Ok(None)
    }

    /// Turns an entry into a slot, or answers it.
    fn take(&mut self, ring: u8, entry: &Entry, now: Instant, batch: &mut Batch) -> Taken {
        let protocol = self.means.links[usize::from(ring)].back.protocol();
        let head = Head::parse(protocol, entry);
        let taken = match &Request::parse(protocol, entry) {
            Ok(request) => self.hold(head, ring, request, now, batch),
            Err(reject) => Err(*reject),
        };
        taken.unwrap_or_else(|reject| {
            self.means.counters.rejected();
            self.means.links[usize::from(ring)].back.push(head, reject.status());
            Taken::Accepted
        })
    }

    /// Holds a request, if it may be asked of this device.
    fn hold(
        &mut self,
        head: Head,
        ring: u8,
        request: &Request<'_>,
        now: Instant,
        batch: &mut Batch,
    ) -> Result<Taken, Reject> {
        match request {
            Request::Direct { op, sector, segments } => {
                let first = self.place(*op, *sector, segments.sectors())?;
                let index = self.accept(head, ring, *op, now);
                let slot = &mut self.means.slots[index];
                slot.hold(*segments);
                slot.next = first;
                self.map(index, now, &mut batch.maps);
            }
            Request::Indirect { op, sector, count, page } => {
                if !self.means.is_full {
                    return Err(Reject::Operation);
                }
                if self.means.segment_pages.is_empty() || !batch.promise(*count) {
                    return Ok(Taken::Staged(*count));
                }
                let index = self.accept(head, ring, *op, now);
                let room = self.means.segment_pages.pop().expect("there is one");
                let slot = &mut self.means.slots[index];
                slot.sector = *sector;
                let to = slot.make_room(*count, room);
                let copy = GrantCopy::new(self.service.guest, *page, to, count * SEGMENT_BYTES);
                batch.copies.push(copy).expect("a promise includes the copy");
                self.copying.push(index);
            }
            Request::Discard { .. } if !self.service.discards => return Err(Reject::Operation),
            Request::Discard { sector, sectors } => {
                let first = self.place(Operation::Discard, *sector, *sectors)?;
                let left = self.service.volume.blocks_of(*sectors);
                let index = self.accept(head, ring, Operation::Discard, now);
                let slot = &mut self.means.slots[index];
                (slot.sectors, slot.next, slot.left) = (*sectors, first, left);
                if left == Block(0) { self.finish_early(index) } else { self.ready(index) }
            }
        }
        Ok(Taken::Accepted)
    }

    fn accept(&mut self, head: Head, ring: u8, op: Operation, now: Instant) -> u8 {
        let index = self.free.pop().expect("a request is taken when a slot is free");
        self.means.slots[index].accept(head, ring, op, now);
        if op == Operation::Barrier {
            self.barrier = Some(Barrier::Taken);
        }
        index
    }

    /// Where on the disk so many sectors are, if they may be read or changed. Without any there is
    /// no such place, and it means nothing.
    pub(super) fn place(&self, op: Operation, sector: Sector, sectors: u64) -> Result<Block, Reject> {
        if sectors == 0 {
            return Ok(Block(0));
        }
        if self.service.read_only && op != Operation::Read {
            return Err(Reject::ReadOnly);
        }
        self.service.volume.translate(sector, sectors)
    }
}

/// What [`Requests::admit`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// Requests that were taken off the rings.
    pub requests: u16,
    /// Copies that were added.
    pub copies: u16,
    /// Maps that were added.
    pub maps: u16,
}
