//! Requests and their responses, on a stage that is connected.

use platter::hal::{DeviceAccess, Events as _};
use platter::units::{Instant, SECTOR_SIZE};

use crate::pattern::{self, CANARY, Tag};
use crate::protocol::abi::{Request, Response, Segment};
use crate::protocol::{OKAY, PAGE_SECTORS, READ, SEGMENTS, WRITE};
use crate::shelf::Buffer;
use crate::stage::{Queue, Stage};
use crate::verdict::{End, Verdict, ensure};

const _: () = assert!(SECTOR_SIZE == 512);

impl Stage<'_> {
    /// One of the connection's rings.
    pub(crate) fn queue(&mut self, index: usize) -> &mut Queue {
        let link = self.link.as_mut().expect("checks connect before they ask for anything");
        &mut link.queues[index]
    }

    /// An id that no other request has.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        pattern::mixed(self.last_id)
    }

    /// Writes a request's entry; nobody is told.
    pub(crate) fn put(&mut self, queue: usize, request: &Request<'_>) {
        let ring = &mut self.queue(queue).ring;
        let entry = request.encode(ring.abi());
        ring.put(&entry);
    }

    /// Publishes what was put, with an event if the backend wants one.
    pub(crate) fn publish(&mut self, queue: usize) {
        let queue = self.queue(queue);
        let (wanted, port) = (queue.ring.publish(), queue.port);
        if wanted {
            self.host.xen.notify(port);
        }
    }

    /// The next response, if it is there.
    pub(crate) fn take(&mut self, queue: usize) -> Verdict<Option<Response>> {
        let taken = self.queue(queue).ring.take();
        taken.map_err(|_| End::fail(format_args!("the backend claims more responses than requests")))
    }

    /// Sleeps until the next response has come and its event has been sent.
    ///
    /// # Errors
    /// It does not come in time, or without an event.
    pub(crate) fn answer(&mut self, queue: usize) -> Verdict<Response> {
        let deadline = self.host.deadline();
        self.answer_by(queue, deadline)
    }

    fn answer_by(&mut self, queue: usize, deadline: Instant) -> Verdict<Response> {
        let port = self.queue(queue).port;
        loop {
            if let Some(response) = self.take(queue)? {
                return Ok(response);
            }
            self.queue(queue).ring.arm(1);
            if let Some(response) = self.take(queue)? {
                return Ok(response);
            }
            if !self.host.wait_event(port, deadline) {
                let there = self.take(queue)?.is_some();
                ensure!(!there, "a response was published without the event that was asked for");
                return Err(End::fail(format_args!("no response within the time allowed")));
            }
        }
    }

    /// Sends one request, waits for its response, and gives its status.
    ///
    /// # Errors
    /// There is none in time, or it is not the request's.
    pub(crate) fn ask(&mut self, request: &Request<'_>) -> Verdict<i16> {
        self.ask_on(0, request)
    }

    /// The same on any of the rings.
    pub(crate) fn ask_on(&mut self, queue: usize, request: &Request<'_>) -> Verdict<i16> {
        self.put(queue, request);
        self.publish(queue);
        let response = self.answer(queue)?;
        let (id, op) = (request.id, request.answered_as());
        ensure!(response.id == id, "a response with id {:#x} to the request {id:#x}", response.id);
        ensure!(response.op == op, "a response with operation {} to operation {op}", response.op);
        Ok(response.status)
    }

    /// A direct request of an operation.
    pub(crate) fn direct(&mut self, op: u8, sector: u64, segments: &[Segment]) -> Verdict<i16> {
        let id = self.fresh_id();
        self.ask(&Request::direct(op, id, sector, segments))
    }

    /// Sectors `first` to `last` of a page as a segment.
    pub(crate) fn segment(&self, buffer: Buffer, first: u8, last: u8) -> Segment {
        Segment { gref: self.gref(buffer), first, last }
    }

    /// Fills a page with what its sectors are to hold.
    pub(crate) fn fill_page(&self, buffer: Buffer, tag: impl Fn(u64) -> Tag) {
        (0..PAGE_SECTORS).for_each(|sector| pattern::fill(self.page(buffer), sector, tag(sector.into())));
    }

    /// Whether all of a page is what its sectors are to hold.
    pub(crate) fn page_holds(&self, buffer: Buffer, tag: impl Fn(u64) -> Tag) -> bool {
        (0..PAGE_SECTORS).all(|sector| pattern::holds(self.page(buffer), sector, tag(sector.into())))
    }

    /// Whether a page still holds canaries.
    pub(crate) fn is_untouched(&self, buffer: Buffer) -> bool {
        self.page_holds(buffer, |_| CANARY)
    }

    /// Writes sectors by requests of the simplest kind. What each holds is said by its tag.
    pub(crate) fn paint(&mut self, start: u64, count: u64, mut tag: impl FnMut(u64) -> Tag) -> Verdict {
        self.plainly(WRITE, start, count, |stage, buffer, index, sector| {
            pattern::fill(stage.page(buffer), index, tag(sector));
            Ok(())
        })
    }

    /// Reads sectors by requests of the simplest kind and compares them with their tags.
    ///
    /// # Errors
    /// One of them holds something else.
    pub(crate) fn verify(&mut self, start: u64, count: u64, mut tag: impl FnMut(u64) -> Tag) -> Verdict {
        self.plainly(READ, start, count, |stage, buffer, index, sector| {
            let right = pattern::holds(stage.page(buffer), index, tag(sector));
            ensure!(right, "sector {sector} of the disk does not hold what was written");
            Ok(())
        })
    }

    /// Goes over sectors by direct requests of whole pages, as few as can be; `visit` is shown each
    /// sector in its page, before a write and after a read.
    pub(crate) fn plainly(
        &mut self,
        op: u8,
        start: u64,
        count: u64,
        mut visit: impl FnMut(&Self, Buffer, u8, u64) -> Verdict,
    ) -> Verdict {
        while !self.plain.is_full() {
            let buffer = self.lend(DeviceAccess::Writes)?;
            let _ = self.plain.push(buffer);
        }
        let most = SEGMENTS as u64 * u64::from(PAGE_SECTORS);
        let mut at = start;
        while at < start + count {
            let length = most.min(start + count - at);
            if op == WRITE {
                self.visit_all(at, length, &mut visit)?;
            }
            let segments = self.plain_segments(length);
            let status = self.direct(op, at, &segments)?;
            ensure!(status == OKAY, "operation {op} at sector {at}, {length} sectors: status {status}");
            if op == READ {
                self.visit_all(at, length, &mut visit)?;
            }
            at += length;
        }
        Ok(())
    }

    fn visit_all(
        &self,
        at: u64,
        length: u64,
        visit: &mut impl FnMut(&Self, Buffer, u8, u64) -> Verdict,
    ) -> Verdict {
        let sectors = u64::from(PAGE_SECTORS);
        (0..length)
            .try_for_each(|i| visit(self, self.plain[(i / sectors) as usize], (i % sectors) as u8, at + i))
    }

    fn plain_segments(&self, length: u64) -> heapless::Vec<Segment, SEGMENTS> {
        let sectors = u64::from(PAGE_SECTORS);
        let segment = |(i, buffer): (u64, &Buffer)| {
            self.segment(*buffer, 0, (sectors.min(length - i * sectors) - 1) as u8)
        };
        (0..length.div_ceil(sectors)).zip(&self.plain).map(segment).collect()
    }
}
