//! What a guest wants of its disk, drawn by chance within a [`Load`] and what the backend serves:
//! not yet in pages, nor in a ring.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::sim::abi::{BARRIER, DISCARD, FLUSH, READ, SEGMENTS, WRITE};
use crate::sim::deal::Features;
use crate::sim::rng::Rng;
use crate::sim::shadow::{Shadow, Stamp};
use crate::units::SECTOR_SIZE;

const SECTORS_PER_PAGE: u8 = 8;

/// Segments of an indirect request, as most frontends limit themselves.
const MODEST: usize = 32;

/// Sectors of a discard at most.
const DISCARDED: u64 = 200;

/// What a guest does with its disk.
#[derive(Clone, Debug)]
pub struct Load {
    /// First sector it uses.
    pub first: u64,
    /// How many it uses from there.
    pub sectors: u64,
    /// Requests it makes in all.
    pub requests: u32,
    /// Requests it has in flight at most.
    pub depth: usize,
    /// How long it waits for an answer before that is a violation.
    pub patience: Duration,
    /// Whether it writes, too.
    pub writes: bool,
    /// Whether each request is work for the disk that is done in one step: reads, writes and
    /// flushes without data, and not more segments than fit a ring's entry.
    pub plain: bool,
    /// Whether good requests may be answered with an error: the disk or Xen was told to fail.
    pub may_fail: bool,
}

impl Load {
    /// That many requests, a ring full of them in flight, within the given sectors.
    #[must_use]
    pub const fn new(first: u64, sectors: u64, requests: u32) -> Self {
        let patience = Duration::from_secs(5);
        Self { first, sectors, requests, depth: 32, patience, writes: true, plain: false, may_fail: false }
    }
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `BLKIF_OP_READ`.
    Read,
    /// `BLKIF_OP_WRITE`.
    Write,
    /// `BLKIF_OP_WRITE_BARRIER`: with its data, or without any.
    Barrier,
    /// `BLKIF_OP_FLUSH_DISKCACHE`: then its data is written, or it has none.
    Flush,
    /// `BLKIF_OP_DISCARD`, and whether it is to be secure.
    Discard(bool),
    /// One that nobody serves.
    Unknown(u8),
}

impl Operation {
    /// Its number in the protocol.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
            Self::Barrier => BARRIER,
            Self::Flush => FLUSH,
            Self::Discard(_) => DISCARD,
            Self::Unknown(code) => code,
        }
    }

    fn pick(rng: &mut Rng, load: &Load, features: Features) -> Self {
        let operation = match rng.index(24) {
            0..9 => Self::Read,
            9..19 => Self::Write,
            19 | 20 => Self::Flush,
            21 if features.barrier && !load.plain => Self::Barrier,
            22 if features.discard && !load.plain => Self::Discard(features.secure && rng.one_in(2)),
            23 if !load.plain && rng.one_in(2) => Self::Unknown([4, 7, 200][rng.index(3)]),
            _ => Self::Write,
        };
        let changes = matches!(operation, Self::Write | Self::Barrier | Self::Discard(_));
        if changes && !load.writes { Self::Read } else { operation }
    }
}

/// Where in its page a segment lies, and whether that page is the segment's before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) first: u8,
    pub(super) last: u8,
    pub(super) same_page: bool,
}

impl Shape {
    pub(super) fn sectors(self) -> u64 {
        u64::from(self.last - self.first) + 1
    }

    pub(super) fn offset(self) -> usize {
        usize::from(self.first) * SECTOR_SIZE
    }
}

/// A request to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) operation: Operation,
    pub(super) sector: u64,
    pub(super) count: u64,
    /// What its memory looks like; a discard has none.
    pub(super) shapes: Vec<Shape>,
    pub(super) stamp: Stamp,
    /// What is durable when it is answered.
    pub(super) promised: BTreeMap<u64, Stamp>,
}

impl Plan {
    /// A request by chance; none when there was no room beside the others.
    pub fn draw<'a>(
        rng: &mut Rng,
        load: &Load,
        features: Features,
        shadow: &mut Shadow,
        mut others: impl Iterator<Item = &'a Self>,
    ) -> Option<Self> {
        let operation = Operation::pick(rng, load, features);
        let shapes = match operation {
            Operation::Discard(_) => Vec::new(),
            Operation::Flush if load.plain || !load.writes || !rng.one_in(4) => Vec::new(),
            Operation::Barrier if rng.one_in(4) => Vec::new(),
            _ => {
                let most = if load.plain { SEGMENTS } else { most_segments(rng, operation, features) };
                shapes(rng, most, load.sectors)
            }
        };
        let count = match operation {
            Operation::Discard(_) => rng.within(1..DISCARDED.min(load.sectors) + 1),
            _ => shapes.iter().map(|shape| shape.sectors()).sum(),
        };
        let sector = load.first + rng.within(0..load.sectors - count + 1);
        let mut plan = Self { operation, sector, count, shapes, stamp: 0, promised: BTreeMap::new() };
        if others.any(|other| other.disturbs(&plan)) {
            return None;
        }
        plan.stamp = rng.bits().max(1);
        if matches!(operation, Operation::Flush | Operation::Barrier) {
            plan.promised = shadow.take_volatile();
        }
        Some(plan)
    }

    /// The same once more, with data that can be told from the first's.
    #[must_use]
    pub fn again(self, rng: &mut Rng) -> Self {
        Self { stamp: rng.bits().max(1), ..self }
    }

    /// The same in pieces of so many segments, for a backend that takes no more.
    #[must_use]
    pub fn split(mut self, most: usize) -> Vec<Self> {
        if self.shapes.len() <= most {
            return vec![self];
        }
        let mut sector = self.sector;
        let shapes = core::mem::take(&mut self.shapes);
        let pieces = shapes.chunks(most).map(|shapes| {
            let mut shapes = shapes.to_vec();
            shapes[0].same_page = false;
            let count = shapes.iter().map(|shape| shape.sectors()).sum();
            sector += count;
            Self { sector: sector - count, count, shapes, ..self.clone() }
        });
        pieces.collect()
    }

    /// Whether it changes what is on the disk.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.writes() || matches!(self.operation, Operation::Discard(_))
    }

    /// Whether it brings data.
    #[must_use]
    pub fn writes(&self) -> bool {
        let carries = matches!(self.operation, Operation::Write | Operation::Barrier | Operation::Flush);
        carries && self.count > 0
    }

    /// Whether it is a barrier.
    #[must_use]
    pub fn is_barrier(&self) -> bool {
        self.operation == Operation::Barrier
    }

    /// Whether it changes the sector.
    #[must_use]
    pub fn touches(&self, sector: u64) -> bool {
        self.changes() && (self.sector..self.sector + self.count).contains(&sector)
    }

    /// A sector that it writes, and the stamp.
    #[must_use]
    pub fn sample(&self) -> Option<(u64, Stamp)> {
        self.writes().then_some((self.sector, self.stamp))
    }

    /// All sectors that it writes, each with its stamp.
    pub fn written(&self) -> impl Iterator<Item = (u64, Stamp)> {
        let count = if self.writes() { self.count } else { 0 };
        (self.sector..self.sector + count).map(|sector| (sector, self.stamp))
    }

    /// It will never be answered: what it did, or will still do, is not known.
    pub fn forget(&mut self, shadow: &mut Shadow) {
        shadow.still_volatile(core::mem::take(&mut self.promised));
        if self.writes() {
            shadow.unsettled(self.sector, self.count);
        } else if self.changes() {
            shadow.discarded(self.sector, self.count);
        }
    }

    /// Whether the result of a new one would depend on which of the two comes first.
    fn disturbs(&self, new: &Self) -> bool {
        let overlap = new.sector < self.sector + self.count && self.sector < new.sector + new.count;
        overlap && (new.changes() || self.changes())
    }
}

/// How many segments a request has at most.
fn most_segments(rng: &mut Rng, operation: Operation, features: Features) -> usize {
    let may_be_indirect = matches!(operation, Operation::Read | Operation::Write);
    match rng.index(16) {
        0 if may_be_indirect => features.segments.max(SEGMENTS),
        1..4 if may_be_indirect => features.segments.clamp(SEGMENTS, MODEST),
        _ => SEGMENTS,
    }
}

/// Whole pages half of the time, and any pieces of pages otherwise; at most `room` sectors.
fn shapes(rng: &mut Rng, most: usize, room: u64) -> Vec<Shape> {
    let whole = rng.one_in(2);
    let mut shapes: Vec<Shape> = Vec::new();
    let mut total = 0;
    for _ in 0..rng.within(1..most as u64 + 1) {
        let before = shapes.last().map(|shape| shape.last).filter(|last| *last < SECTORS_PER_PAGE - 1);
        let before = before.filter(|_| rng.one_in(4));
        let first = match before {
            _ if whole => 0,
            Some(last) => rng.within(u64::from(last) + 1..8) as u8,
            None => rng.within(0..8) as u8,
        };
        let last = if whole { SECTORS_PER_PAGE - 1 } else { rng.within(u64::from(first)..8) as u8 };
        let shape = Shape { first, last, same_page: before.is_some() && !whole };
        total += shape.sectors();
        if total > room {
            break;
        }
        shapes.push(shape);
    }
    if shapes.is_empty() {
        shapes.push(Shape { first: 0, last: 0, same_page: false });
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features =
        Features { persistent: false, segments: 256, barrier: true, discard: true, secure: true };

    fn drawn(load: &Load, features: Features) -> Vec<Plan> {
        let (mut rng, mut shadow) = (Rng::new(1), Shadow::default());
        let draw = |_| Plan::draw(&mut rng, load, features, &mut shadow, [].iter());
        (0..5000).filter_map(draw).collect()
    }

    #[test]
    fn only_what_is_served_is_asked_for() {
        let plain = drawn(&Load::new(0, 4000, 0), Features::default());
        assert!(plain.iter().all(|plan| plan.shapes.len() <= SEGMENTS && plan.operation.code() != DISCARD));
        assert!(!plain.iter().any(Plan::is_barrier));
        let readonly = drawn(&Load { writes: false, ..Load::new(0, 4000, 0) }, ALL);
        assert!(!readonly.iter().any(Plan::changes));
        let plain = drawn(&Load { plain: true, ..Load::new(0, 4000, 0) }, ALL);
        let is_plain = |plan: &Plan| {
            let one_step = matches!(plan.operation, Operation::Read | Operation::Write);
            plan.shapes.len() <= SEGMENTS
                && (one_step || (plan.operation == Operation::Flush && !plan.writes()))
        };
        assert!(plain.iter().all(is_plain));
    }

    #[test]
    fn everything_that_is_served_is_asked_for() {
        let plans = drawn(&Load::new(0, 4000, 0), ALL);
        for code in [READ, WRITE, BARRIER, FLUSH, DISCARD, 4, 7, 200] {
            assert!(plans.iter().any(|plan| plan.operation.code() == code), "{code}");
        }
        for operation in [Operation::Barrier, Operation::Flush] {
            let with_data =
                |with: bool| move |plan: &Plan| plan.operation == operation && plan.writes() == with;
            assert!(plans.iter().any(with_data(true)) && plans.iter().any(with_data(false)));
        }
        let longest = plans.iter().map(|plan| plan.shapes.len()).max();
        assert!(longest.is_some_and(|longest| (200..=256).contains(&longest)), "{longest:?}");
        assert!(plans.iter().all(|plan| plan.sector + plan.count <= 4000));
    }

    #[test]
    fn pieces_are_what_the_whole_was() {
        let plans = drawn(&Load::new(0, 4000, 0), ALL);
        let whole = plans.iter().max_by_key(|plan| plan.shapes.len()).expect("there are some");
        let pieces = whole.clone().split(SEGMENTS);
        let sectors = |plan: &Plan| plan.written().map(|(sector, _)| sector).collect::<Vec<_>>();
        assert_eq!(pieces.iter().flat_map(sectors).collect::<Vec<_>>(), sectors(whole));
        assert_eq!(pieces.iter().map(|piece| piece.count).sum::<u64>(), whole.count);
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| !piece.shapes[0].same_page));
    }
}
