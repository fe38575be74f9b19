//! A guest's block requests: put into granted pages and ring entries as the protocol has it, and
//! judged when they are answered. `plan` is what they ask for.

pub mod plan;

use core::time::Duration;
use std::collections::BTreeMap;

pub use self::plan::Load;
use self::plan::{Operation, Plan};
use super::abi::{
    Abi, Body, ENTRY_BYTES, EOPNOTSUPP, ERROR, Entry, Head, OKAY, Response, SEGMENT_BYTES, SEGMENTS,
    SEGMENTS_PER_PAGE, write_segment,
};
use super::deal::Features;
use super::machine::{Machine, Violation};
use super::pages::{CANARY, Page, Pool};
use super::shadow::{Shadow, Stamp, content};
use crate::units::{DomId, Instant, PAGE_SIZE, SECTOR_SIZE};

/// A request of ours that is not answered yet.
#[derive(Debug)]
pub struct Request {
    id: u64,
    plan: Plan,
    /// The page of each segment.
    places: Vec<Page>,
    /// All pages, those with descriptors last.
    pages: Vec<Page>,
    /// How many of these hold descriptors.
    descriptors: usize,
    since: Instant,
}

impl Request {
    /// Puts a plan into pages: indirectly where it must be, and sometimes where it need not.
    pub fn new(machine: &mut Machine, pool: &mut Pool, features: Features, plan: Plan) -> Self {
        let readonly = plan.writes();
        let mut places: Vec<Page> = Vec::new();
        let mut pages = Vec::new();
        for shape in &plan.shapes {
            let shared = places.last().copied().filter(|_| shape.same_page);
            let page = shared.unwrap_or_else(|| {
                pages.push(pool.take(machine, readonly));
                pages[pages.len() - 1]
            });
            places.push(page);
        }
        let may = features.segments > 0 && matches!(plan.operation, Operation::Read | Operation::Write);
        let is_indirect = places.len() > SEGMENTS || (may && machine.rng.one_in(8));
        let descriptors = if is_indirect { places.len().div_ceil(SEGMENTS_PER_PAGE) } else { 0 };
        pages.extend((0..descriptors).map(|_| pool.take(machine, true)));
        let (id, since) = (machine.rng.bits(), machine.now);
        let request = Self { id, plan, places, pages, descriptors, since };
        request.write_content(machine);
        request.write_descriptors(machine);
        request
    }

    /// The id that the answer must carry.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it asks for.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Takes it apart, into what it asks for and its pages.
    #[must_use]
    pub fn into_parts(self) -> (Plan, Vec<Page>) {
        (self.plan, self.pages)
    }

    /// The ring entry, with arbitrary bytes where the format does not say any.
    #[must_use]
    pub fn entry(&self, machine: &mut Machine, abi: Abi) -> Entry {
        let mut entry = [0; ENTRY_BYTES];
        machine.rng.fill(&mut entry);
        let operation = self.plan.operation;
        let head = Head { operation: operation.code(), id: self.id, sector: self.plan.sector };
        let grefs: Vec<u32> = self.descriptor_pages().iter().map(|page| page.gref.0).collect();
        let segments: Vec<_> = self.segments().collect();
        let body = match operation {
            Operation::Discard(secure) => Body::Discard(secure.into(), self.plan.count),
            _ if grefs.is_empty() => Body::Direct(&segments),
            _ => Body::Indirect(segments.len() as u16, &grefs),
        };
        abi.write(&mut entry, head, body);
        entry
    }

    /// Whether the guest has waited for longer than `patience`.
    #[must_use]
    pub fn is_late(&self, now: Instant, patience: Duration) -> bool {
        now.since(self.since) > patience
    }

    /// The guest was paused for so long.
    pub fn excuse(&mut self, pause: Duration) {
        self.since = self.since + pause;
    }

    /// When it is answered, this is durable too, if it was answered before that.
    pub fn promise(&mut self, written: impl Iterator<Item = (u64, Stamp)>) {
        self.plan.promised.extend(written);
    }

    /// Judges the answer; what it promised is returned, to be looked for on the disk.
    pub fn answered(
        mut self,
        machine: &mut Machine,
        pool: &mut Pool,
        answer: Response,
        may_fail: bool,
        shadow: &mut Shadow,
    ) -> BTreeMap<u64, Stamp> {
        let promised = core::mem::take(&mut self.plan.promised);
        self.judge(machine, pool.guest(), answer, may_fail);
        let (sector, count, is_done) = (self.plan.sector, self.plan.count, answer.status == OKAY);
        if self.plan.writes() {
            match is_done {
                true => shadow.written(sector, count, self.plan.stamp),
                false => shadow.unsettled(sector, count),
            }
        } else if self.plan.changes() {
            shadow.discarded(sector, count);
        } else if is_done {
            self.check(machine, pool.guest(), shadow);
        }
        self.pages.iter().for_each(|page| pool.give_back(machine, *page));
        match self.plan.operation {
            Operation::Barrier if is_done => promised.into_iter().chain(self.plan.written()).collect(),
            _ if is_done => promised,
            _ => {
                shadow.still_volatile(promised);
                BTreeMap::new()
            }
        }
    }

    /// Whether an answer is one that this request can have.
    fn judge(&self, machine: &mut Machine, guest: DomId, answer: Response, may_fail: bool) {
        let operation = self.plan.operation.code();
        let statuses = match self.plan.operation {
            Operation::Unknown(_) => [EOPNOTSUPP; 3],
            _ => [OKAY, ERROR, EOPNOTSUPP],
        };
        if answer.operation != operation || !statuses.contains(&answer.status) {
            let answer = (answer.operation, answer.status);
            machine.violated(Violation::WrongAnswer { guest, answer });
        } else if answer.status != statuses[0] && !may_fail {
            machine.violated(Violation::Refused { guest, operation });
        }
    }

    /// Its segments as the protocol has them.
    fn segments(&self) -> impl Iterator<Item = (u32, u8, u8)> {
        let pairs = self.places.iter().zip(&self.plan.shapes);
        pairs.map(|(page, shape)| (page.gref.0, shape.first, shape.last))
    }

    fn data_pages(&self) -> &[Page] {
        &self.pages[..self.pages.len() - self.descriptors]
    }

    fn descriptor_pages(&self) -> &[Page] {
        &self.pages[self.pages.len() - self.descriptors..]
    }

    fn write_descriptors(&self, machine: &mut Machine) {
        let segments: Vec<_> = self.segments().collect();
        for (page, segments) in self.descriptor_pages().iter().zip(segments.chunks(SEGMENTS_PER_PAGE)) {
            let mut bytes = [CANARY; PAGE_SIZE];
            let places = bytes.chunks_exact_mut(SEGMENT_BYTES);
            places.zip(segments).for_each(|(place, segment)| write_segment(place, *segment));
            machine.memory.frame(page.mfn).write(0, &bytes);
        }
    }

    fn each_sector(&self, machine: &mut Machine, mut act: impl FnMut(&mut Machine, u64, Page, usize)) {
        let mut sector = self.plan.sector;
        for (page, shape) in self.places.iter().zip(&self.plan.shapes) {
            for i in 0..shape.sectors() {
                act(machine, sector, *page, shape.offset() + i as usize * SECTOR_SIZE);
                sector += 1;
            }
        }
    }

    fn write_content(&self, machine: &mut Machine) {
        if self.plan.writes() {
            self.each_sector(machine, |machine, sector, page, offset| {
                machine.memory.frame(page.mfn).write(offset, &content(sector, self.plan.stamp));
            });
        }
    }

    /// A read's pages: the sectors, and nothing else was touched.
    fn check(&self, machine: &mut Machine, guest: DomId, shadow: &Shadow) {
        let mut wrong = None;
        self.each_sector(machine, |machine, sector, page, offset| {
            let mut bytes = [0; SECTOR_SIZE];
            let frame = machine.memory.frame(page.mfn);
            frame.read(offset, &mut bytes);
            frame.write(offset, &[CANARY; SECTOR_SIZE]);
            if !shadow.accepts(sector, &bytes) {
                wrong.get_or_insert(sector);
            }
        });
        for page in self.data_pages() {
            let mut bytes = [0; PAGE_SIZE];
            machine.memory.frame(page.mfn).read(0, &mut bytes);
            if bytes != [CANARY; PAGE_SIZE] {
                wrong.get_or_insert(self.plan.sector);
            }
        }
        if let Some(sector) = wrong {
            machine.violated(Violation::Corrupt { guest, sector });
        }
    }
}
