//! The whole core of the image in a world that costs nothing: guests ask for requests of one shape, an NVMe controller
//! answers all of a batch at once, and what is counted is what the core does itself. `benches/requests.rs` counts, and
//! holds the figures that were recorded.

mod guest;
mod outside;

use core::time::Duration;

use platter::domain::{Domain, Tables, Turn};
use platter::hal::Clock as _;
use platter::limits;
use platter::mem::hook;
use platter::options::Options;
use platter::sim::nvme::Settings;
use platter::sim::nvme::Shape as Namespace;
use platter::sim::tables::Gpt;
use platter::sim::toolstack::Disk;
use platter::sim::world::{Pace, World};
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use self::guest::Guest;
pub use self::guest::Shape;
pub use self::outside::Calls;
use self::outside::Outside;

/// Blocks of the disk, of 512 bytes: each of 64 guests has its 32 requests of 1 MiB in 64 MiB.
const BLOCKS: u64 = 64 << 17;

/// What the disk takes for each command: so long that all of a batch are there when the first is done.
const LATENCY: Duration = Duration::from_millis(10);

/// xvdb.
const DEV: u32 = 51728;

/// A machine with platter and its guests.
pub struct Rig {
    world: World,
    domain: Domain<'static>,
    guests: Vec<Guest>,
    is_prepared: bool,
    calls: Calls,
}

impl Rig {
    /// So many guests, each with a disk that is connected and was used once.
    ///
    /// # Panics
    /// When something does not come up: that is for tests to find.
    #[must_use]
    pub fn new(guests: u16, shape: Shape) -> Self {
        let mut world = World::new(1, Flavour::Oxenstored);
        // Nobody acts while the core looks at memory: each run is the same.
        hook::set(None);
        let disks: Vec<Disk> = {
            let mut state = world.state();
            let state = &mut *state;
            state.machine.tree.quota.0 = usize::MAX;
            state.xenstored.watch_quota = usize::MAX;
            state.free_pages = 64 * limits::VBDS;
            let namespace = Namespace { id: 1, blocks: BLOCKS, block_shift: 9, metadata: 0 };
            let latency = LATENCY..LATENCY + Duration::from_nanos(1);
            let settings = Settings { namespaces: vec![namespace], latency, ..Settings::new(1) };
            state.lent.add_nvme(&mut state.machine, settings);
            state.lent.partition(0, 0, &Gpt::equal(512, BLOCKS, guests.into()));
            let disk = |n: u16| Disk::new(DomId(4 + n), DEV, &format!("/dev/nvme0n1p{n}"));
            (1..=guests).map(disk).collect()
        };
        let (page, port) = world.store();
        let started = world.now();
        let tables = Box::leak(Box::new(Tables::new()));
        let domain = Domain::new(tables, Options::parse(b""), page, port, started);
        let mut rig = Self { world, domain, guests: Vec::new(), is_prepared: false, calls: Calls::default() };
        rig.settle();
        for disk in &disks {
            let mut state = rig.world.state();
            let state = &mut *state;
            state.create_guest(disk.guest);
            state.toolstack.attach(&mut state.machine, disk);
            rig.guests.push(Guest::new(&mut state.machine, disk, shape));
        }
        rig.settle();
        for guest in &rig.guests {
            guest.offer(&mut rig.world.state().machine, shape.persistent);
        }
        rig.settle();
        rig.serve(shape.queues * guest::ENTRIES, guest::ENTRIES);
        (rig.is_prepared, rig.calls) = (true, Calls::default());
        rig
    }

    /// Has every guest ask for `requests` requests, `batch` at a time, and takes all answers.
    ///
    /// # Panics
    /// When one is missing.
    pub fn serve(&mut self, requests: u32, batch: u32) {
        let mut left = requests;
        while left > 0 {
            let batch = batch.min(left);
            left -= batch;
            {
                let machine = &mut self.world.state().machine;
                self.guests.iter_mut().for_each(|guest| guest.ask(machine, batch));
            }
            self.settle();
            let machine = &mut self.world.state().machine;
            self.guests.iter().for_each(|guest| guest.take_answers(machine));
        }
    }

    /// What the core asked the world for since it was prepared.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls
    }

    /// Lets the core and the world act until nobody has anything left to do. Only what is done once all is prepared
    /// counts.
    fn settle(&mut self) {
        let Self { world, domain, calls, is_prepared, .. } = self;
        let run = world.run(|world| {
            let mut outside = Outside { world, calls: Calls::default() };
            let turn =
                if *is_prepared { counted_turn(domain, &mut outside) } else { domain.turn(outside.world) };
            *calls += outside.calls;
            match turn {
                Turn::Again => Pace::Again,
                Turn::Sleep(deadline) => {
                    *calls += Calls { hypercalls: 1, mmio_writes: 0, all: 1 };
                    Pace::Sleep(deadline)
                }
                Turn::End(_) => Pace::Stop,
            }
        });
        if let Err((at, violation)) = run {
            panic!("{violation}, at {at:?}");
        }
    }
}

/// Where instructions are counted.
#[inline(never)]
fn counted_turn(domain: &mut Domain<'_>, outside: &mut Outside<'_>) -> Turn {
    domain.turn(outside)
}
