//! Makes volumes of disks: looks at each disk once, when its controller is ready for the first time,
//! and reads its partition table, unless it is one that belongs to guests whole. One block or page at
//! a time, and never waiting: `io` carries the reads, `volume` knows what is to be read.

use core::time::Duration;

use super::disks::Disks;
use super::io::Io;
use crate::drivers::{Disk, Namespace, Refusal, Status};
use crate::hal::{DmaPage, Memory};
use crate::limits;
use crate::options::Options;
use crate::units::{Instant, PAGE_SIZE, Span};
use crate::volume::reader::{Extent, Reader};
use crate::volume::{self, DiskIndex, Volume, Volumes};

/// How long the tables of one controller's disks may take together: others' are read after them, and
/// the first start waits for all. A single command that is lost takes half of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far it is.
pub(super) struct Survey {
    /// Controllers whose disks were added.
    seen: [bool; limits::CONTROLLERS],
    /// The disk that is looked at, or is next.
    next: Option<DiskIndex>,
    /// When the controller of that disk has used its time up.
    until: Instant,
    reading: Option<Reading>,
    /// All disks of a controller were looked at since this was last asked.
    has_found: bool,
    /// Pages that failed controllers may still write to.
    stranded: [Option<DmaPage>; limits::CONTROLLERS],
}

/// A table that is being read.
struct Reading {
    reader: Reader,
    page: DmaPage,
    /// What the disk was asked for.
    asked: Option<Extent>,
}

impl Survey {
    pub(super) const fn new() -> Self {
        Self {
            seen: [false; limits::CONTROLLERS],
            next: None,
            until: Instant(0),
            reading: None,
            has_found: false,
            stranded: [const { None }; limits::CONTROLLERS],
        }
    }

    /// Whether all disks of the controllers that are ready were looked at.
    pub(super) fn is_done(&self, disks: &Disks) -> bool {
        self.next.is_none() && self.unseen(disks).is_none()
    }

    /// Whether there may be volumes now that were not there when this was last asked.
    pub(super) const fn take_found(&mut self) -> bool {
        core::mem::replace(&mut self.has_found, false)
    }

    /// When the limit is reached of a table whose controller takes no command; one that it has is late before.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.reading.as_ref().filter(|reading| reading.has_more_to_ask()).map(|_| self.until)
    }

    /// A controller is going away: its disks are not to be added any more.
    pub(super) fn skip(&mut self, controller: usize) {
        self.seen[controller] = true;
    }

    /// A controller is gone, and cannot reach memory any more; another may have its number.
    pub(super) fn forget(&mut self, hal: &mut impl Memory, io: &mut Io, controller: usize) {
        self.seen[controller] = false;
        if self.next.take_if(|place| place.controller == controller).is_some()
            && let Some(reading) = self.reading.take()
        {
            io.forget_read();
            hal.return_page(reading.page);
        }
        if let Some(page) = self.stranded[controller].take() {
            hal.return_page(page);
        }
    }

    /// Does what can be done now; returns whether anything was.
    pub(super) fn turn(
        &mut self,
        hal: &mut impl Memory,
        now: Instant,
        disks: &mut Disks,
        volumes: &mut Volumes,
        io: &mut Io,
        options: &Options<'_>,
    ) -> bool {
        let Some(place) = self.next else {
            let unseen = self.unseen(disks);
            if let Some(controller) = unseen {
                self.seen[controller] = true;
                add_disks(controller, disks, volumes, options);
                self.next = Some(DiskIndex { controller, namespace: 0 });
                self.until = now + PATIENCE;
            }
            return unseen.is_some();
        };
        let Some(reading) = &mut self.reading else {
            self.begin(place, hal, volumes);
            return true;
        };
        if disks[place.controller].as_ref().is_none_or(Disk::has_failed) {
            self.give_up(place, "its controller has failed", hal, volumes, io);
            return true;
        }
        if now >= self.until && reading.has_more_to_ask() {
            self.give_up(place, "its controller takes too long", hal, volumes, io);
            return true;
        }
        match reading.step(place, disks, volumes, io) {
            Step::Waits => false,
            Step::GoesOn => true,
            Step::Ends => {
                if let Some(reading) = self.reading.take() {
                    hal.return_page(reading.page);
                }
                self.advance(place);
                true
            }
        }
    }

    /// A controller that is ready for the first time.
    fn unseen(&self, disks: &Disks) -> Option<usize> {
        let is_ready = |disk: &Option<Disk>| disk.as_ref().map(Disk::status) == Some(Status::Ready);
        disks.iter().zip(&self.seen).position(|(disk, seen)| !seen && is_ready(disk))
    }

    /// Begins with the table of this disk, if there is such a disk and its table is to be read.
    fn begin(&mut self, place: DiskIndex, hal: &mut impl Memory, volumes: &Volumes) {
        let Some(disk) = volumes.disks().find(|disk| disk.index == place) else {
            self.next = None;
            self.has_found = true;
            return;
        };
        if let Ok(whole) = disk.volume
            && !disk.opaque
        {
            if let Some(page) = hal.take_page() {
                self.reading = Some(Reading { reader: Reader::new(whole), page, asked: None });
                return;
            }
            log::warn!("{place}: no memory is left to read its partition table");
        }
        self.advance(place);
    }

    /// Leaves the rest of this disk's table, and those of its controller's other disks.
    fn give_up(
        &mut self,
        place: DiskIndex,
        reason: &str,
        hal: &mut impl Memory,
        volumes: &mut Volumes,
        io: &mut Io,
    ) {
        self.has_found = true;
        log::warn!("{place}: {reason}: no partitions of it, or of the disks after it, are served");
        volumes.remove_partitions(place);
        volumes.set_unread(None);
        self.next = None;
        match self.reading.take() {
            // The page may still be written to.
            Some(Reading { page, asked: Some(_), .. }) => {
                io.forget_read();
                self.stranded[place.controller] = Some(page);
            }
            Some(Reading { page, asked: None, .. }) => hal.return_page(page),
            None => {}
        }
    }

    fn advance(&mut self, place: DiskIndex) {
        self.next = Some(DiskIndex { namespace: place.namespace + 1, ..place });
    }
}

enum Step {
    Waits,
    GoesOn,
    Ends,
}

impl Reading {
    /// Whether something is still to be read, and nothing is being read.
    fn has_more_to_ask(&self) -> bool {
        self.asked.is_none() && self.reader.wants().is_some()
    }

    fn step(&mut self, place: DiskIndex, disks: &mut Disks, volumes: &mut Volumes, io: &mut Io) -> Step {
        if let Some(extent) = self.asked {
            let Some(result) = io.take_read() else { return Step::Waits };
            let mut bytes = [0; PAGE_SIZE];
            let bytes = &mut bytes[..extent.bytes as usize];
            self.page.page.read_bytes(0, bytes);
            self.reader.take(result.is_ok().then_some(bytes), volumes);
            self.asked = None;
            return Step::GoesOn;
        }
        let Some(extent) = self.reader.wants() else { return Step::Ends };
        // What the last read has left there must not pass for what a device did not write.
        self.page.page.clear();
        let span = Span { bus: self.page.bus, bytes: extent.bytes };
        match io.read(disks, place, extent.first, span) {
            Ok(()) => self.asked = Some(extent),
            Err(Refusal::Full | Refusal::NotReady) => return Step::Waits,
            // As good as a block that cannot be read.
            Err(Refusal::Inexpressible | Refusal::Dead) => self.reader.take(None, volumes),
        }
        Step::GoesOn
    }
}

/// Adds the disks of a controller to the volumes.
fn add_disks(controller: usize, disks: &Disks, volumes: &mut Volumes, options: &Options<'_>) {
    let Some(disk) = &disks[controller] else { return };
    let identity = disk.identity();
    for (namespace, claimed) in disk.namespaces().iter().enumerate() {
        let index = DiskIndex { controller, namespace };
        let volume =
            claimed.as_ref().map_err(|_| "see the log of its controller").and_then(|disk| whole(index, disk));
        let nsid = claimed.as_ref().map_or(0, |disk| disk.id);
        let mut disk = volume::Disk { index, identity, nsid, opaque: false, volume };
        disk.opaque = options.opaque().any(|name| disk.is_named(name));
        if disk.opaque {
            log::info!("{index}: opaque, it is never read");
        }
        volumes.add_disk(disk);
    }
}

/// The whole of a disk, with what it says of itself.
fn whole(index: DiskIndex, disk: &Namespace) -> Result<Volume, &'static str> {
    let mut volume = Volume::whole(index, disk.block_size, disk.blocks, disk.volatile_cache)?;
    volume.physical_block_size = disk.physical_block_size;
    volume.discard = disk.discard;
    Ok(volume)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::drivers::nvme::Nvme;
    use crate::sim::nvme::Settings;
    use crate::sim::world::World;
    use crate::sim::xenstored::Flavour;
    use crate::units::Block;

    const PLACE: DiskIndex = DiskIndex { controller: 0, namespace: 0 };

    /// A controller that is not ready yet, in a world of its own.
    fn starting() -> (World, Nvme) {
        let mut world = World::new(1, Flavour::Oxenstored);
        let settings = Settings::new(1);
        let len = settings.register_bytes();
        let bar = {
            let state = &mut *world.state();
            let number = state.lent.add_nvme(&mut state.machine, settings);
            state.lent.bar(number)
        };
        let registers = world.map_mmio(bar, len).unwrap();
        let nvme = Nvme::new(&mut world, 0, registers, false).unwrap();
        (world, nvme)
    }

    /// The beginning of a table.
    fn reading(world: &mut World) -> Reading {
        let whole = Volume::whole(PLACE, 512, Block(1000), false).unwrap();
        Reading { reader: Reader::new(whole), page: world.take_page().unwrap(), asked: None }
    }

    #[test]
    fn a_disk_that_takes_no_command_any_more_has_no_table() {
        let (mut world, mut nvme) = starting();
        nvme.abandon();
        let (mut disks, mut volumes, mut io) = (Disks::NONE, Volumes::new(), Io::new());
        disks.put(0, Disk::Nvme(nvme));
        let mut reading = reading(&mut world);
        let mut step = || reading.step(PLACE, &mut disks, &mut volumes, &mut io);
        assert!(matches!((step(), step()), (Step::GoesOn, Step::Ends)));
    }

    #[test]
    fn a_table_that_waits_for_its_controller_is_given_up_in_time() {
        let (mut world, nvme) = starting();
        let (mut disks, mut volumes, mut io) = (Disks::NONE, Volumes::new(), Io::new());
        disks.put(0, Disk::Nvme(nvme));
        let until = Instant(5_000);
        let reading = Some(reading(&mut world));
        let mut survey = Survey { next: Some(PLACE), until, reading, ..Survey::new() };
        let options = Options::parse(b"");
        let mut turn = |survey: &mut Survey, now| {
            survey.turn(&mut world, now, &mut disks, &mut volumes, &mut io, &options)
        };
        assert!(!turn(&mut survey, Instant(4_999)));
        assert_eq!(survey.deadline(), Some(until), "somebody wakes up for it");
        assert!(turn(&mut survey, until));
        assert!(survey.deadline().is_none() && survey.take_found() && survey.is_done(&disks));
    }
}
