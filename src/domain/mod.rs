//! The event loop: joins the xenstore client, the PCI and disk drivers and the virtual block
//! devices, which do not know each other. One [`Domain::turn`] does all that can be done now and
//! says whether to turn again, sleep, or end.
//!
//! `controllers` joins PCI functions with the disks behind them, `survey` makes volumes of these,
//! `home` holds the conversation about the domain itself, `scan` finds devices in xenstore, `foreign`
//! refuses those of other kinds, `errors` bounds what they leave there, `io` carries requests between
//! rings and disks, `ports` knows whose an event channel is, `statistics` answers dom0's questions,
//! `farewell` ends it.

mod controllers;
mod disks;
mod errors;
mod farewell;
mod foreign;
mod home;
mod io;
mod ports;
mod scan;
mod set;
mod statistics;
mod survey;

use heapless::Vec;

use self::controllers::{Controller, Controllers};
use self::disks::Disks;
use self::errors::Errors;
use self::farewell::Farewell;
use self::foreign::Foreign;
use self::home::{Home, Request};
use self::io::{Io, Vbds};
use self::ports::{Owner, PortTable};
use self::scan::Scan;
use self::set::Set;
use self::statistics::{Moment, Statistics};
use self::survey::Survey;
use crate::blkback::{DeviceId, Vbd};
use crate::drivers::pci::{self, Pci};
use crate::drivers::{Disk, Status};
use crate::hal::{Hal, Memory};
use crate::limits;
use crate::mem::SharedPage;
use crate::options::Options;
use crate::units::{Instant, Port};
use crate::volume::Volumes;
use crate::wire::xenbus::{Job, Node, StoreError};
use crate::xenstore::{Store, StoreEvent};

/// What the loop does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Something was done, and more may follow from it.
    Again,
    /// Nothing can be done before a port is pending or the time has come.
    Sleep(Option<Instant>),
    /// The domain ends.
    End(End),
}

/// How the domain ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// In good order, for good (`xl shutdown`).
    Poweroff,
    /// In good order, to be started again (`xl reboot`).
    Reboot,
    /// At once, as asked by `xl sysrq <domain> c`.
    Crash,
}

/// Messages of the store looked at in one turn, so that a storm of watch events does not keep
/// requests waiting.
const STORE_BUDGET: usize = 16;

/// Everything the domain knows about its disks and devices: one region of fixed size.
pub struct Tables {
    disks: Disks,
    vbds: Vbds,
    /// Vbds that something happened to since they were last visited.
    due: Set,
    /// When the first of the others has something to do by itself, or earlier.
    first_deadline: Option<Instant>,
    volumes: Volumes,
    ports: PortTable,
    io: Io,
}

impl Tables {
    /// Empty tables.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "constant, for a static")]
    pub const fn new() -> Self {
        Self {
            disks: Disks::NONE,
            vbds: Vec::new(),
            due: Set::EMPTY,
            first_deadline: None,
            volumes: Volumes::new(),
            ports: PortTable::new(),
            io: Io::new(),
        }
    }
}

/// Whose xenstore job is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaker {
    Home,
    Pci,
    Scan,
    Foreign,
    Errors,
    Statistics,
    Vbd(usize),
}

/// How far the start is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Start {
    /// Functions and controllers are being brought up.
    Devices,
    /// Their volumes are known; ready is being said.
    Ready,
}

/// The domain.
pub struct Domain<'a> {
    tables: &'a mut Tables,
    options: Options<'a>,
    store: Store,
    speaker: Option<Speaker>,
    home: Home,
    pci: Pci,
    controllers: Controllers,
    scan: Scan,
    /// The device of another kind that is being refused.
    foreign: Option<Foreign>,
    survey: Survey,
    errors: Errors,
    statistics: Statistics,
    start: Start,
    started: Instant,
    /// The vbd whose turn it is to speak with the store.
    cursor: usize,
    /// What the orderly end waits for.
    farewell: Farewell,
}

impl<'a> Domain<'a> {
    /// A domain that was entered at `started`, with the store's page and port.
    #[must_use]
    pub fn new(
        tables: &'a mut Tables,
        options: Options<'a>,
        store: SharedPage,
        store_port: Port,
        started: Instant,
    ) -> Self {
        tables.ports.set(store_port, Some(Owner::Store));
        Self {
            tables,
            options,
            store: Store::new(store, store_port),
            speaker: None,
            home: Home::new(),
            pci: Pci::new(),
            controllers: [const { None }; limits::CONTROLLERS],
            scan: Scan::new(),
            foreign: None,
            survey: Survey::new(),
            errors: Errors::new(),
            statistics: Statistics::new(),
            start: Start::Devices,
            started,
            cursor: 0,
            farewell: Farewell::Draining,
        }
    }

    /// Does what can be done now.
    pub fn turn(&mut self, hal: &mut impl Hal) -> Turn {
        let now = hal.now();
        self.take_events(hal);
        self.home.turn(now);
        // The store comes last of the three: what time makes due may be a job for it.
        self.vbds_turn(hal, now);
        let mut progress = self.devices_turn(hal, now);
        progress |= !self.is_silent() && self.store_turn(hal, now);
        let Tables { disks, vbds, io, .. } = &mut *self.tables;
        progress |= io.turn(hal, now, disks, vbds);
        if let Some(end) = self.end(hal) {
            return Turn::End(end);
        }
        let Tables { vbds, io, .. } = &mut *self.tables;
        if progress || io.arm(vbds) { Turn::Again } else { Turn::Sleep(self.deadline()) }
    }

    fn take_events(&mut self, hal: &mut impl Hal) {
        for _ in 0..limits::PORTS {
            let Some(port) = hal.next_pending() else { return };
            match self.tables.ports.owner(port) {
                Some(Owner::Vbd(index)) => self.tables.io.ring_called(index.into()),
                // These look for their work in every turn.
                Some(Owner::Store | Owner::Pci | Owner::Disk) | None => {}
            }
        }
    }

    /// Lets the store's events reach whom they concern, and starts the next job. Both are large: other turns make no
    /// room for them.
    #[inline(never)]
    fn store_turn(&mut self, hal: &mut impl Hal, now: Instant) -> bool {
        let mut progress = false;
        for _ in 0..STORE_BUDGET {
            if self.store.idle()
                && self.speaker.is_none()
                && let Some((speaker, job)) = self.next_job(hal, now)
            {
                self.speaker = Some(speaker);
                self.store.start(job);
            }
            let Some(event) = self.store.turn(hal) else { break };
            progress = true;
            match event {
                StoreEvent::Watch { path, token } => self.watch_fired(&path, &token),
                StoreEvent::Done(result) => self.job_done(hal, now, result),
                StoreEvent::Broken(reason) => {
                    log::error!("xenstore: {reason}; devices can no longer be attached or detached");
                    break;
                }
            }
        }
        progress
    }

    /// Whether there is nothing to be said to the store or to be heard from it: most turns are so.
    fn is_silent(&self) -> bool {
        let has_job = self.home.has_job()
            || self.pci.has_job()
            || self.statistics.has_job()
            || self.errors.has_job()
            || self.foreign.is_some()
            || self.scan.has_job()
            || !self.tables.due.is_empty();
        self.store.is_quiet() && !has_job
    }

    fn next_job(&mut self, hal: &impl Memory, now: Instant) -> Option<(Speaker, Job)> {
        if let Some(job) = self.home.next_job() {
            return Some((Speaker::Home, job));
        }
        if let Some(job) = self.pci.next_job() {
            return Some((Speaker::Pci, job));
        }
        if self.start == Start::Devices {
            return None;
        }
        // Before the devices' jobs, of which guests can make more and more.
        let moment = || Moment { now, free_pages: hal.free_pages() };
        if let Some(job) = self.statistics.next_job(moment, &self.tables.vbds) {
            return Some((Speaker::Statistics, job));
        }
        // Before anybody leaves the next reason.
        if let Some(job) = self.errors.next_job() {
            return Some((Speaker::Errors, job));
        }
        // Before the next walk, which would find the next one.
        if let Some(foreign) = &self.foreign {
            return Some((Speaker::Foreign, foreign.job()));
        }
        if let Some(job) = self.scan.next_job() {
            return Some((Speaker::Scan, job));
        }
        let Tables { vbds, due, .. } = &mut *self.tables;
        for index in due.from(self.cursor) {
            if let Some(vbd) = &mut vbds[index]
                && let Some(job) = vbd.next_job(now)
            {
                self.cursor = index + 1;
                if vbd.is_complaining() {
                    self.errors.note(vbd.id().guest_errors());
                }
                return Some((Speaker::Vbd(index), job));
            }
            due.remove(index);
        }
        None
    }

    fn watch_fired(&mut self, path: &str, token: &Node) {
        match token.as_str() {
            home::SHUTDOWN | home::SYSRQ => self.home.notice(),
            pci::TOKEN => self.pci.notice(),
            statistics::TOKEN => self.statistics.notice(),
            scan::TOKEN => match DeviceId::in_path(path).and_then(|id| self.place_of(id)) {
                Some(index) => self.notice_vbd(index, Vbd::notice),
                None => self.scan.notice(),
            },
            token => {
                if let Some(index) = DeviceId::in_token(token).and_then(|id| self.place_of(id)) {
                    self.notice_vbd(index, Vbd::notice_frontend);
                }
            }
        }
    }

    fn place_of(&self, id: DeviceId) -> Option<usize> {
        self.tables.vbds.iter().position(|vbd| vbd.as_ref().is_some_and(|vbd| vbd.id() == id))
    }

    fn notice_vbd(&mut self, index: usize, notice: impl FnOnce(&mut Vbd)) {
        if let Some(vbd) = &mut self.tables.vbds[index] {
            notice(vbd);
            self.tables.due.add(index);
        }
    }

    fn job_done(&mut self, hal: &mut impl Hal, now: Instant, result: Result<(), StoreError>) {
        let answers = self.store.answers();
        match self.speaker.take() {
            Some(Speaker::Home) => self.home.job_done(now, result, answers),
            Some(Speaker::Pci) => self.pci.job_done(hal, result, answers),
            Some(Speaker::Scan) => {
                self.scan.job_done(answers, self.store.listing());
                if self.scan.complete() {
                    self.take_scan();
                }
            }
            Some(Speaker::Foreign) => {
                self.foreign = self.foreign.take().and_then(|foreign| foreign.job_done(result));
                if let Some(foreign) = &self.foreign {
                    self.errors.note(foreign.errors());
                }
            }
            Some(Speaker::Statistics) => self.statistics.job_done(answers),
            Some(Speaker::Vbd(index)) => {
                let Tables { vbds, volumes, .. } = &mut *self.tables;
                let (before, rest) = vbds.split_at_mut(index);
                if let [Some(vbd), after @ ..] = rest {
                    let others = before.iter().chain(&*after).flatten().map(Vbd::as_neighbour);
                    vbd.job_done(now, hal, volumes, others, result, answers);
                    self.settle_vbd(index);
                }
            }
            // A removal that failed leaves a few nodes too many.
            Some(Speaker::Errors) | None => {}
        }
    }

    /// Compares what xenstore holds with the devices we know.
    fn take_scan(&mut self) {
        self.foreign = self.scan.take_foreign();
        for index in 0..self.tables.vbds.len() {
            let id = self.tables.vbds[index].as_ref().map(Vbd::id);
            if id.is_some_and(|known| !self.scan.found().any(|id| id == known)) {
                self.notice_vbd(index, Vbd::notice);
            }
        }
        for index in 0..self.scan.found().count() {
            let Some(id) = self.scan.found().nth(index) else { break };
            if self.place_of(id).is_none() {
                self.add_vbd(id);
            }
        }
    }

    /// Takes a device on, or in to be refused; while that place is taken too, it waits for the scan
    /// that follows when a device has gone.
    fn add_vbd(&mut self, id: DeviceId) {
        let Tables { vbds, due, .. } = &mut *self.tables;
        let served = vbds.iter().flatten().count();
        let free = vbds.iter().position(Option::is_none).unwrap_or(vbds.len());
        if free == vbds.len() && vbds.push(None).is_err() {
            log::debug!("vbd {id}: waits to be refused");
            return;
        }
        vbds[free] = Some(if served < limits::VBDS { Vbd::new(id) } else { Vbd::barred(id) });
        due.add(free);
    }

    /// Visits the vbds that something happened to, and all of them when a time has come.
    fn vbds_turn(&mut self, hal: &mut impl Hal, now: Instant) {
        let Tables { vbds, due, first_deadline, io, .. } = &mut *self.tables;
        io.take_stirred(due);
        if first_deadline.is_some_and(|at| at <= now) {
            *first_deadline = None;
            (0..vbds.len()).for_each(|index| due.add(index));
        }
        if due.is_empty() {
            return;
        }
        for index in due.from(0) {
            if let Some(vbd) = &mut self.tables.vbds[index] {
                vbd.turn(now, hal);
                self.settle_vbd(index);
            }
        }
    }

    /// Follows a vbd's step: its port or its deadline may have changed, or it may have ended.
    fn settle_vbd(&mut self, index: usize) {
        let Tables { vbds, due, first_deadline, ports, io, .. } = &mut *self.tables;
        let Some(vbd) = &mut vbds[index] else { return };
        due.add(index);
        *first_deadline = earlier(*first_deadline, vbd.deadline());
        if ports.set_vbd(index, vbd.changes(), vbd.ports()) {
            io.ring_called(index);
        }
        if vbd.requests_mut().is_some_and(|requests| requests.has_ended()) {
            io.requests_ended(index);
        }
        if vbd.is_finished() && self.speaker != Some(Speaker::Vbd(index)) {
            vbds[index] = None;
            // It may have been the one to wake up for, as for pages that it keeps no more.
            *first_deadline = vbds.iter().flatten().filter_map(Vbd::deadline).min();
            self.scan.notice();
        }
    }

    /// Controllers come and go, their disks become volumes.
    fn devices_turn(&mut self, hal: &mut impl Hal, now: Instant) -> bool {
        let mut progress = self.controllers_turn(hal, now);
        let Tables { disks, volumes, io, .. } = &mut *self.tables;
        progress |= self.survey.turn(hal, now, disks, volumes, io, &self.options);
        if self.survey.take_found() {
            for index in 0..self.tables.vbds.len() {
                self.notice_vbd(index, Vbd::notice_volumes);
            }
        }
        if self.start == Start::Devices && self.pci.settled() && self.disks_settled() && self.home.is_set_up()
        {
            self.start = Start::Ready;
            self.ready(now);
            progress = true;
        }
        progress
    }

    fn disks_settled(&self) -> bool {
        let disks = &self.tables.disks;
        disks.iter().flatten().all(|disk| disk.status() != Status::Starting) && self.survey.is_done(disks)
    }

    /// Opens the doors.
    fn ready(&mut self, now: Instant) {
        let Tables { disks, volumes, .. } = &mut *self.tables;
        if let Some(refusal) = self.pci.none_reason() {
            volumes.explain_nothing(refusal);
        }
        for (controller, disk) in disks.iter().enumerate() {
            if let Some(Status::Failed(error)) = disk.as_ref().map(Disk::status) {
                volumes.explain_nothing(format_args!("nvme{controller}: {error}"));
            }
        }
        for name in self.options.opaque().filter(|name| !volumes.disks().any(|disk| disk.is_named(name))) {
            log::warn!("option opaque lists {name}, but there is no such disk");
        }
        log::info!("ready in {} ms", now.since(self.started).as_millis());
        self.home.set_ready();
        self.scan.notice();
    }

    /// Whether it is time to end, and how.
    fn end(&mut self, hal: &mut impl Hal) -> Option<End> {
        match self.home.request()? {
            Request::Crash => Some(End::Crash),
            Request::Poweroff | Request::Reboot if !self.home.acknowledged() => None,
            request => {
                let Tables { disks, vbds, io, .. } = &mut *self.tables;
                while let Some(next) = self.farewell.step(io, hal, disks, vbds) {
                    if next == self.farewell {
                        return None;
                    }
                    self.farewell = next;
                }
                farewell::warn_of_attached(vbds);
                Some(if request == Request::Reboot { End::Reboot } else { End::Poweroff })
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let mut first = earlier(self.tables.first_deadline, self.pci.deadline());
        first = earlier(earlier(first, self.home.deadline()), self.survey.deadline());
        // A controller has the number of its disk.
        for (disk, controller) in self.tables.disks.iter().zip(&self.controllers) {
            first = earlier(first, disk.as_ref().and_then(Disk::deadline));
            first = earlier(first, controller.as_ref().and_then(Controller::deadline));
        }
        first
    }
}

/// The earlier of two times that there may be.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
