//! The simulated world itself: an honest backend passes under every seed, and each mistake is found
//! and called by its name.

use core::time::Duration;

use platter::hal::{Events as _, Memory as _};
use platter::sim::deal::Wish;
use platter::sim::frontend::Stage;
use platter::sim::machine::Violation;
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::toolstack::{Disk, Outcome};
use platter::sim::world::World;
use platter::sim::xenstored::Flavour;
use platter::units::DomId;

use crate::host;
use crate::toy::{Mistake, Toy};

const GUEST: DomId = DomId(5);
const DEV: u32 = 51728;

/// A guest with a disk of 4096 sectors behind the toy backend, which it closes in the end.
fn run(seed: u64, mistake: Mistake, wish: Wish) -> (World, Result<(), Violation>) {
    let mut world = World::new(seed, Flavour::Oxenstored);
    world.state().create_guest(GUEST);
    let disk = Disk::new(GUEST, DEV, "/dev/nvme0n1");
    // Few at a time, so that the backend sleeps often.
    let load = Load { depth: 8, ..Load::new(0, 4000, 400) };
    let (job, frontend) = world.state().attach(&disk, load, Shadow::default());
    world.state().frontends[frontend].insist(wish);
    let mut toy = Toy::new(GUEST, DEV, mistake);
    let mut result = world.run(|world| toy.turn(world));
    if result.is_ok() && mistake == Mistake::None {
        let state = world.state();
        assert_eq!(state.toolstack.outcome(job), Some(Outcome::Done), "seed {seed}");
        let frontend = &state.frontends[frontend];
        assert_eq!(frontend.answered(), (400, 0), "seed {seed}");
        assert_eq!(state.machine.grants.mapped_from(GUEST), toy.kept() + frontend.rings());
    }
    if result.is_ok() {
        let now = world.state().machine.now;
        world.state().frontends[frontend].close(now, false);
        result = world.run(|world| toy.turn(world));
    }
    (world, result.map_err(|(_, violation)| violation))
}

#[test]
fn an_honest_backend_passes_under_every_seed() {
    for seed in 0..50 {
        let (world, result) = run(seed, Mistake::None, Wish::default());
        assert_eq!(result, Ok(()), "seed {seed}");
        assert_eq!(world.state().frontends[0].stage(), Stage::Closed, "seed {seed}");
        assert_eq!(world.state().machine.grants.mapped_from(GUEST), 0, "seed {seed}");
    }
}

#[test]
fn a_seed_replays_the_whole_run() {
    let end = |seed| run(seed, Mistake::None, Wish::default()).0.state().machine.now;
    assert_eq!(end(7), end(7));
    assert_ne!(end(7), end(8));
}

/// Each seed finds the mistake, as what `is_it` knows.
fn each_seed_finds(mistake: Mistake, is_it: impl Fn(&Violation) -> bool) {
    each_seed_finds_with(Wish::default(), mistake, is_it);
}

/// The same with a frontend that can suffer from it.
fn each_seed_finds_with(wish: Wish, mistake: Mistake, is_it: impl Fn(&Violation) -> bool) {
    for seed in 0..10 {
        let found = run(seed, mistake, wish).1;
        assert!(found.as_ref().is_err_and(&is_it), "{mistake:?}, seed {seed}: {found:?}");
    }
}

#[test]
fn a_missing_look_after_arming_is_a_lost_wakeup() {
    // The events of one queue would wake the others.
    let wish = Wish { queues: Some(1), ..Wish::default() };
    each_seed_finds_with(wish, Mistake::ForgetsToLookAgain, |found| {
        matches!(found, Violation::LostWakeup { .. })
    });
}

#[test]
fn a_missing_notification_is_a_lost_wakeup() {
    each_seed_finds(Mistake::NeverNotifies, |found| matches!(found, Violation::LostWakeup { .. }));
}

#[test]
fn answers_to_nothing_are_found() {
    each_seed_finds(Mistake::AnswersTwice, |found| {
        matches!(found, Violation::UnknownAnswer { .. } | Violation::RingOverrun(GUEST))
    });
    each_seed_finds(Mistake::AnswersWithAnotherId, |found| matches!(found, Violation::UnknownAnswer { .. }));
}

#[test]
fn wrong_answers_are_found() {
    let is_wrong = |found: &Violation| matches!(found, Violation::WrongAnswer { .. });
    each_seed_finds(Mistake::AnswersWithAnotherOperation, is_wrong);
    each_seed_finds(Mistake::AnswersWithTheOuterOperation, is_wrong);
    each_seed_finds(Mistake::AnswersUnknownOperations, is_wrong);
    each_seed_finds(Mistake::LeavesBytesInTheAnswer, |found| *found == Violation::Leak(GUEST));
    each_seed_finds(Mistake::FailsARead, |found| matches!(found, Violation::Refused { operation: 0, .. }));
}

#[test]
fn an_answer_in_another_queue_is_found() {
    let wish = Wish { queues: Some(3), ..Wish::default() };
    each_seed_finds_with(wish, Mistake::AnswersInAnotherQueue, |found| {
        // Where nobody waits for one, a request may overwrite it.
        let overwritten = *found == Violation::Leak(GUEST);
        overwritten || matches!(found, Violation::UnknownAnswer { .. } | Violation::RingOverrun(GUEST))
    });
}

#[test]
fn grants_mapped_or_unmapped_at_the_wrong_time_are_found() {
    let wish = Wish { persistent: Some(false), ..Wish::default() };
    each_seed_finds_with(wish, Mistake::AnswersBeforeUnmapping, is_still_mapped);
    each_seed_finds_with(wish, Mistake::UnmapsBeforeTheDevice, |found| {
        matches!(found, Violation::Dma { .. })
    });
    each_seed_finds_with(wish, Mistake::UnmapsTwice, |found| matches!(found, Violation::BadUnmap(_)));
    each_seed_finds_with(wish, Mistake::UnmapsAnotherAddress, |found| {
        matches!(found, Violation::BadUnmap(_))
    });
    // A writable mapping of a read-only grant fails, so that the write gets no data.
    each_seed_finds_with(wish, Mistake::MapsWritesWritable, is_wrong_data);
}

#[test]
fn a_persistent_grant_that_outlives_its_connection_is_found() {
    let wish = Wish { persistent: Some(true), ..Wish::default() };
    each_seed_finds_with(wish, Mistake::KeepsPagesAfterClosing, is_still_mapped);
}

fn is_still_mapped(found: &Violation) -> bool {
    matches!(found, Violation::StillMapped(GUEST, _))
}

fn is_wrong_data(found: &Violation) -> bool {
    matches!(found, Violation::Corrupt { .. } | Violation::NotDurable { .. })
}

#[test]
fn wrong_data_is_found() {
    each_seed_finds(Mistake::MisplacesASector, is_wrong_data);
    each_seed_finds(Mistake::OverwritesTheWholePage, |found| matches!(found, Violation::Corrupt { .. }));
    each_seed_finds(Mistake::DiscardsOneSectorMore, is_wrong_data);
    each_seed_finds(Mistake::FlushesNothing, |found| matches!(found, Violation::NotDurable { .. }));
    each_seed_finds(Mistake::TakesBarriersForWrites, |found| matches!(found, Violation::NotDurable { .. }));
}

#[test]
fn a_barrier_that_is_overtaken_is_found() {
    let wish = Wish { queues: Some(1), ..Wish::default() };
    each_seed_finds_with(wish, Mistake::PutsBarriersOff, |found| {
        matches!(found, Violation::Overtaken { .. })
    });
}

#[test]
fn a_loop_that_comes_to_nothing_is_found() {
    each_seed_finds(Mistake::NeverSleeps, |found| *found == Violation::Livelock);
}

#[test]
fn a_backend_that_connects_too_early_fails_the_attach() {
    let timed_out = (0..20).filter(|seed| {
        let mut world = World::new(*seed, Flavour::Oxenstored);
        world.state().create_guest(GUEST);
        let disk = Disk::new(GUEST, DEV, "/dev/nvme0n1");
        let (job, _) = world.state().attach(&disk, Load::new(0, 4000, 10), Shadow::default());
        let mut toy = Toy::new(GUEST, DEV, Mistake::SkipsInitWait);
        assert_eq!(world.run(|world| toy.turn(world)), Ok(()));
        world.state().toolstack.outcome(job) == Some(Outcome::TimedOut)
    });
    assert!(timed_out.count() > 0, "libxl must read 2, and has not always had the time");
}

#[test]
fn a_late_answer_is_found() {
    let mut world = World::new(1, Flavour::Oxenstored);
    world.state().create_guest(GUEST);
    let load = Load { patience: Duration::ZERO, ..Load::new(0, 4000, 400) };
    world.state().attach(&host::disk(5, "/dev/nvme0n1"), load, Shadow::default());
    let mut toy = Toy::new(GUEST, DEV, Mistake::None);
    let result = world.run(|world| toy.turn(world)).map_err(|(_, violation)| violation);
    assert_eq!(result, Err(Violation::Late(GUEST)));
}

fn violations(world: &World) -> Vec<Violation> {
    world.state().machine.violations().iter().map(|(_, violation)| violation.clone()).collect()
}

#[test]
fn ports_and_registers_that_are_not_ours_are_found() {
    let mut world = host::world(1);
    let port = world.alloc_unbound(GUEST).expect("a port");
    world.notify(port);
    world.close(port);
    assert_eq!(violations(&world), []);
    world.notify(port);
    world.close(port);
    let bar = world.state().lent.bar(0);
    assert!(world.map_mmio(bar.offset(4096), 4096).is_err());
    assert!(world.map_mmio(bar, 1 << 20).is_err());
    let region = world.map_mmio(bar, 8192).expect("the controller's registers");
    world.write32(region, 8192, 0);
    let expected =
        [Violation::BadPort(port), Violation::BadPort(port), Violation::BadRegister { offset: 8192 }];
    assert_eq!(violations(&world), expected);
}

#[test]
fn a_disk_that_is_not_what_its_guests_made_it_is_found() {
    let world = host::world(1);
    let mut shadow = Shadow::default();
    shadow.written(70, 2, 9);
    let written = [70, 71].map(|sector| platter::sim::shadow::content(sector, 9)).concat();
    world.state().create_guest(GUEST);
    world.state().attach(&host::disk(5, "nvme0n2"), Load::new(0, 100, 0), shadow);
    world.state().lent.controller(0).disk_mut(1).write(70, &written);
    world.state().check_disks();
    assert_eq!(violations(&world), []);
    world.state().lent.controller(0).disk_mut(1).write(71, &written);
    world.state().check_disks();
    let stray = Violation::Stray { target: "nvme0n2".into(), block: 72 };
    assert_eq!(violations(&world), [Violation::Corrupt { guest: GUEST, sector: 71 }, stray]);
}
