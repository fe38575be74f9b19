//! A queue of the toy: its ring, taken apart by the numbers of the header in either layout.

use platter::hal::{Events, GrantedPage, Grants};
use platter::mem::full_barrier;
use platter::sim::world::World;
use platter::units::{DomId, GrantRef, PAGE_SIZE, Port};

use super::Mistake;

const ENTRIES: usize = 64;
const DESCRIPTORS: u8 = 6;
const DISCARD: u8 = 5;

/// Sectors of its disk.
const MOST: u64 = 4096;

/// The largest entry.
type Entry = [u8; 112];

pub(super) struct Segment {
    pub(super) gref: GrantRef,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// What a request says.
pub(super) struct Request {
    pub(super) operation: u8,
    pub(super) id: u64,
    pub(super) sector: u64,
    pub(super) segments: Vec<Segment>,
    /// Pages with more segments, and how many they hold.
    pub(super) descriptors: (usize, Vec<GrantRef>),
    /// Sectors to discard.
    pub(super) discarded: u64,
    pub(super) is_indirect: bool,
}

pub(super) struct Link {
    pages: Vec<GrantedPage>,
    port: Port,
    wide: bool,
    size: u32,
    req_cons: u32,
    rsp_prod: u32,
    published: u32,
}

impl Link {
    pub(super) fn connect(
        world: &mut World,
        guest: DomId,
        grefs: &[GrantRef],
        remote: Port,
        wide: bool,
    ) -> Self {
        let pages: Vec<_> = grefs.iter().map(|gref| world.map_page(guest, *gref).expect("granted")).collect();
        let port = world.bind_interdomain(guest, remote).expect("open");
        let stride = if wide { 112 } else { 108 };
        let size = 1 << ((pages.len() * PAGE_SIZE - ENTRIES) / stride).ilog2();
        Self { pages, port, wide, size, req_cons: 0, rsp_prod: 0, published: 0 }
    }

    pub(super) fn disconnect(self, world: &mut World) {
        world.close(self.port);
        self.pages.into_iter().for_each(|page| world.unmap_page(page));
    }

    fn stride(&self) -> usize {
        if self.wide { 112 } else { 108 }
    }

    fn place(&self, index: u32, byte: usize) -> (&GrantedPage, usize) {
        let at = ENTRIES + (index % self.size) as usize * self.stride() + byte;
        (&self.pages[at / PAGE_SIZE], at % PAGE_SIZE)
    }

    pub(super) fn taken(&self) -> u32 {
        self.req_cons
    }

    pub(super) fn take(&mut self) -> Option<Request> {
        if self.pages[0].page.read_u32(0) == self.req_cons {
            return None;
        }
        let mut entry: Entry = [0; 112];
        for at in (0..self.stride()).step_by(4) {
            let (page, offset) = self.place(self.req_cons, at);
            page.page.read_bytes(offset, &mut entry[at..at + 4]);
        }
        self.req_cons = self.req_cons.wrapping_add(1);
        Some(self.parse(&entry))
    }

    fn parse(&self, entry: &Entry) -> Request {
        let early = if self.wide { 0 } else { 4 };
        let number = |at: usize| u64::from_le_bytes(*entry[at - early..].first_chunk().expect("8 bytes"));
        let (is_indirect, mut segments, mut descriptors) =
            (entry[0] == DESCRIPTORS, Vec::new(), (0, Vec::new()));
        if is_indirect {
            let count = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
            let grefs = entry[28 - early..].chunks(4).map(|bytes| GrantRef(number32(bytes)));
            descriptors = (count, grefs.take(count.div_ceil(512)).collect());
        } else if entry[0] != DISCARD {
            let bytes = entry[24 - early..].chunks_exact(8).take(usize::from(entry[1]));
            segments = bytes.map_while(segment).collect();
        }
        let operation = if is_indirect { entry[1] } else { entry[0] };
        // Its own answers, mistaken for requests, may say anything.
        let discarded = if operation == DISCARD { number(24).min(MOST) } else { 0 };
        Request {
            operation,
            id: number(8),
            sector: number(16),
            segments,
            descriptors,
            discarded,
            is_indirect,
        }
    }

    pub(super) fn answer(&mut self, id: u64, operation: u8, status: i16, mistake: Mistake) {
        let mut answer = [0; 16];
        answer[..8].copy_from_slice(&id.to_le_bytes());
        answer[8] = operation;
        answer[10..12].copy_from_slice(&status.to_le_bytes());
        if mistake == Mistake::LeavesBytesInTheAnswer {
            answer[9] = 0x55;
        }
        for (i, bytes) in answer[..if self.wide { 16 } else { 12 }].chunks(4).enumerate() {
            let (page, offset) = self.place(self.rsp_prod, i * 4);
            page.page.write_bytes(offset, bytes);
        }
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    pub(super) fn publish(&mut self, world: &mut World, mistake: Mistake) {
        full_barrier();
        self.pages[0].page.write_u32(8, self.rsp_prod);
        full_barrier();
        let asked = self.rsp_prod.wrapping_sub(self.pages[0].page.read_u32(12));
        if asked < self.rsp_prod.wrapping_sub(self.published) && mistake != Mistake::NeverNotifies {
            world.notify(self.port);
        }
        self.published = self.rsp_prod;
    }

    pub(super) fn arm(&self, mistake: Mistake) -> bool {
        self.pages[0].page.write_u32(4, self.req_cons.wrapping_add(1));
        full_barrier();
        mistake != Mistake::ForgetsToLookAgain && self.pages[0].page.read_u32(0) != self.req_cons
    }
}

/// None for nonsense, as a backend meets that mistakes its own answers for requests.
pub(super) fn segment(bytes: &[u8]) -> Option<Segment> {
    let (first, last) = (usize::from(bytes[4]), usize::from(bytes[5]));
    let good = first <= last && last < 8;
    good.then(|| Segment { gref: GrantRef(number32(bytes)), first, last })
}

fn number32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("4 bytes"))
}
