//! One event of a guest's or a device's life each, in worlds where nothing else goes wrong: what
//! is promised is kept, and nothing is left. Storms of such events are in `life`.

use core::cell::Cell;
use core::time::Duration;
use std::rc::Rc;
use std::sync::OnceLock;

use platter::domain::End;
use platter::sim::frontend::{Frontend, Stage, back_path};
use platter::sim::machine::DOM0;
use platter::sim::requests::Load;
use platter::sim::shadow::Shadow;
use platter::sim::toolstack::{Disk, JobId, Outcome};
use platter::sim::world::{State, World};
use platter::units::DomId;

use crate::host::{DEV, assert_outcome, attach, disk, run, world};
use crate::left::{Footprint, nothing_is_left};
use crate::rogue::{FLUSH, READ, Rogue, WRITE};

const DONE: bool = false;

/// Sectors that each guest uses.
const USED: u64 = 4_000;

/// What the image holds when no guest ever came.
fn fresh() -> &'static Footprint {
    static FRESH: OnceLock<Footprint> = OnceLock::new();
    FRESH.get_or_init(|| {
        let mut world = world(0);
        run(&mut world, |_, _| DONE);
        Footprint::of(&world)
    })
}

/// A guest with a disk, and something that happens to it in the middle of its requests, which are
/// all answered in the end. Then the guest goes, and leaves nothing.
fn all_answered_though(requests: u32, act: fn(&mut State)) {
    let fresh = fresh();
    for seed in 0..16 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(0, USED, requests));
        let middle = world.state().machine.now + Duration::from_millis(250 + 2 * seed);
        world.state().at(middle, act);
        run(&mut world, |world, step| {
            if step == 0 {
                let answered: u64 = world.state().frontends.iter().map(|disk| disk.answered().0).sum();
                let last = world.state().frontends.last().map(|disk| (disk.stage(), disk.answered().1));
                assert!(answered >= u64::from(requests), "seed {seed}: {answered}");
                assert_eq!(last, Some((Stage::Connected, 0)), "seed {seed}");
                let guests: Vec<DomId> = world.state().frontends.iter().map(Frontend::guest).collect();
                guests.into_iter().for_each(|guest| _ = world.state().destroy(guest));
            }
            step == 0
        });
        nothing_is_left(&world, fresh);
    }
}

#[test]
fn a_guest_that_is_saved_and_restored_goes_on_where_it_was() {
    all_answered_though(300, |state| state.migrate(DomId(5), DomId(6)));
}

#[test]
fn a_suspend_that_was_cancelled_brings_a_new_ring_and_loses_nothing() {
    all_answered_though(300, |state| {
        let State { frontends, machine, .. } = state;
        frontends[0].renew(machine);
    });
}

#[test]
fn a_guest_that_is_rebooted_goes_on_in_its_new_domain() {
    all_answered_though(300, |state| {
        state.reboot(DomId(5), DomId(6));
        state.frontends[1].do_more(300);
    });
}

#[test]
fn a_kernel_that_another_took_over_from_leaves_its_disk_to_that() {
    all_answered_though(300, |state| {
        let State { frontends, machine, .. } = state;
        frontends[0].kexec(machine);
        frontends[0].do_more(300);
    });
}

#[test]
fn a_driver_that_begins_again_while_connected_is_served_again() {
    all_answered_though(300, |state| {
        let State { frontends, machine, .. } = state;
        frontends[0].restart(machine);
        frontends[0].do_more(300);
    });
}

#[test]
fn a_disk_given_up_with_requests_in_flight_can_be_opened_again() {
    all_answered_though(300, |state| {
        let State { frontends, machine, .. } = state;
        frontends[0].slam(machine, true);
        frontends[0].do_more(300);
    });
}

#[test]
fn a_device_made_anew_in_one_transaction_is_a_new_device() {
    all_answered_though(300, |state| {
        state.frontends[0].vanish();
        let shadow = state.frontends[0].take_shadow();
        state.attach(&disk(5, "/dev/nvme0n1"), Load::new(0, USED, 300), shadow);
    });
}

#[test]
fn a_paused_guest_finds_its_answers_when_it_goes_on() {
    all_answered_though(300, |state| {
        state.pause(DomId(5), true);
        let later = state.machine.now + Duration::from_secs(30);
        state.at(later, |state| state.unpause(DomId(5)));
    });
}

#[test]
fn a_shutdown_in_the_middle_of_a_reset_still_writes_the_cache_out() {
    let dirty = Rc::new(Cell::new(0));
    for seed in 0..8 {
        let mut world = world(seed);
        let dirty = Rc::clone(&dirty);
        let load = Load { may_fail: true, patience: Duration::MAX, ..Load::new(0, USED, 200) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        let start = world.state().machine.now;
        world.state().at(start + Duration::from_secs(2), move |state| {
            state.lent.controller(0).faults.unanswered = 1;
            state.frontends[frontend].do_more(1);
        });
        world.state().at(start + Duration::from_secs(3), move |state| {
            dirty.set(dirty.get() + u32::from(!state.lent.controller(0).disk(0).is_safe()));
            state.lent.controller(0).faults.unanswered = 0;
            state.machine.tree.write("/local/domain/3/control/shutdown", "poweroff");
        });
        assert_eq!(run(&mut world, |_, _| DONE), Some(End::Poweroff));
        assert!(world.state().lent.controller(0).disk(0).is_safe(), "seed {seed}");
    }
    assert!(dirty.get() > 0, "there was something to write out");
}

#[test]
fn a_guest_is_created_with_all_its_disks_or_not_at_all() {
    let fresh = fresh();
    for seed in 0..8 {
        let mut world = world(seed);
        let create = |guest, targets: &[&str]| {
            let frontends = [51712, DEV].into_iter().zip(targets).map(|(dev, target)| {
                Frontend::new(
                    &Disk::new(DomId(guest), dev, target),
                    Load::new(0, USED, 50),
                    Shadow::default(),
                )
            });
            world.state().create(DomId(guest), frontends.collect());
        };
        create(5, &["/dev/nvme0n1"]);
        create(6, &["/dev/nvme0n2", "/dev/nvme0n9"]);
        run(&mut world, |world, step| {
            if step == 0 {
                let mut state = world.state();
                let all: Vec<_> =
                    state.frontends.iter().map(|disk| (disk.stage(), disk.answered().0)).collect();
                let (served, never) = ((Stage::Connected, 50), (Stage::Vanished, 0));
                assert_eq!(all, [served, never, never], "seed {seed}");
                state.destroy(DomId(5));
            }
            step == 0
        });
        nothing_is_left(&world, fresh);
    }
}

#[test]
fn a_disk_is_attached_and_detached_twenty_times_back_to_back() {
    const TIMES: usize = 20;
    let fresh = fresh();
    for seed in 0..4 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(0, USED, 20));
        run(&mut world, |world, step| {
            let mut state = world.state();
            if step == TIMES {
                return DONE;
            }
            assert_eq!(state.frontends[step].answered(), (20, 0), "seed {seed}");
            let detach = state.detach(DomId(5), DEV, false);
            state.after(&[detach], move |state| {
                assert_eq!(state.toolstack.outcome(detach), Some(Outcome::Done));
                if step < TIMES - 1 {
                    let shadow = state.frontends[step].take_shadow();
                    state.attach(&disk(5, "/dev/nvme0n1"), Load::new(0, USED, 20), shadow);
                }
            });
            true
        });
        nothing_is_left(&world, fresh);
    }
}

#[test]
fn the_control_domain_is_a_guest_like_others() {
    let fresh = fresh();
    for seed in 0..4 {
        let mut world = world(seed);
        let (job, frontend) = {
            let load = Load::new(0, USED, 100);
            world.state().attach(&disk(DOM0.0, "/dev/nvme0n1"), load, Shadow::default())
        };
        run(&mut world, |world, step| {
            if step == 0 {
                assert_outcome(world, job, Outcome::Done);
                assert_eq!(world.state().frontends[frontend].answered(), (100, 0), "seed {seed}");
                world.state().detach(DOM0, DEV, false);
            }
            step == 0
        });
        nothing_is_left(&world, fresh);
    }
}

#[test]
fn a_cdrom_says_so_and_refuses_writes_and_nothing_else() {
    for seed in 0..4 {
        let mut world = world(seed);
        let cdrom = Disk { readonly: true, cdrom: true, ..disk(5, "/dev/nvme0n1") };
        let (_, rogue) = Rogue::attach_as(&world, &cdrom);
        rogue.later(&world, Duration::from_millis(500), |rogue, state| rogue.offer(&mut state.machine));
        rogue.later(&world, Duration::from_millis(900), |rogue, state| {
            let (_, gref) = rogue.grant(&mut state.machine);
            rogue.put(0, WRITE, 8, &[(gref, 0, 7)]);
            rogue.put(1, READ, 8, &[(gref, 0, 7)]);
            rogue.put(2, FLUSH, 0, &[]);
            rogue.claim(&mut state.machine, 3);
        });
        run(&mut world, |_, _| DONE);
        let mut answers: Vec<_> = (0..rogue.answers()).map(|place| rogue.answer(place)).collect();
        answers.sort_unstable();
        assert_eq!(answers, [(0, -1), (1, 0), (2, 0)], "seed {seed}");
        let info = format!("{}/info", back_path(rogue.guest, DEV));
        // VDISK_CDROM, VDISK_REMOVABLE and VDISK_READONLY.
        assert_eq!(world.state().machine.tree.text(&info), Some("7"));
    }
}

#[test]
fn frontends_that_are_ready_before_the_backend_are_served() {
    for seed in 0..8 {
        let mut world = world(seed);
        let (job, frontend) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, USED, 100));
        world.state().frontends[frontend].hurry();
        run(&mut world, |_, _| DONE);
        assert_outcome(&world, job, Outcome::Done);
        assert_eq!(world.state().frontends[frontend].answered(), (100, 0), "seed {seed}");
    }
}

#[test]
fn a_guest_that_calls_without_end_leaves_others_their_turn() {
    for seed in 0..4 {
        let mut world = world(seed);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        rogue.later(&world, Duration::from_millis(500), |rogue, state| rogue.offer(&mut state.machine));
        let load = Load { patience: Duration::from_millis(20), ..Load::new(0, USED, 300) };
        let (_, calm) = attach(&world, 6, "/dev/nvme0n2", load);
        rogue.later(&world, Duration::from_millis(400), |rogue, state| call(rogue, state, 20_000));
        run(&mut world, |_, _| DONE);
        assert_eq!(world.state().frontends[calm].answered(), (300, 0), "seed {seed}");
    }
}

/// Sends an event every few microseconds, so many times.
fn call(rogue: Rogue, state: &mut State, times: u32) {
    state.machine.notify(rogue.guest, rogue.port);
    if times > 0 {
        let next = state.machine.now + Duration::from_micros(10);
        state.at(next, move |state| call(rogue, state, times - 1));
    }
}

#[test]
fn a_disk_that_no_driver_uses_is_detached_at_once() {
    for seed in 0..4 {
        let mut world = world(seed);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let detach = detached(&world, rogue, false);
        run(&mut world, |_, _| DONE);
        assert_outcome(&world, detach.get().expect("it was asked for"), Outcome::Done);
    }
}

#[test]
fn a_guest_that_never_stops_asking_cannot_keep_its_disk() {
    for seed in 0..4 {
        let mut world = world(seed);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        rogue.later(&world, Duration::from_millis(500), |rogue, state| rogue.offer(&mut state.machine));
        rogue.later(&world, Duration::from_millis(900), |rogue, state| {
            let (_, gref) = rogue.grant(&mut state.machine);
            (0..32).for_each(|place| rogue.put(place, READ, 8, &[(gref, 0, 7)]));
            ask(rogue, state, 200_000);
        });
        let detach = detached(&world, rogue, true);
        run(&mut world, |_, _| DONE);
        assert_outcome(&world, detach.get().expect("it was asked for"), Outcome::Done);
        assert_eq!(world.state().machine.grants.mapped_from(rogue.guest), 0, "seed {seed}");
    }
}

/// Asks again for what was answered, every few microseconds.
fn ask(rogue: Rogue, state: &mut State, times: u32) {
    rogue.claim(&mut state.machine, rogue.answers() + 32);
    if times > 0 {
        let next = state.machine.now + Duration::from_micros(20);
        state.at(next, move |state| ask(rogue, state, times - 1));
    }
}

/// A second after its attach the disk is detached.
fn detached(world: &World, rogue: Rogue, force: bool) -> Rc<Cell<Option<JobId>>> {
    let job = Rc::new(Cell::new(None));
    let asked = Rc::clone(&job);
    rogue.later(world, Duration::from_secs(1), move |rogue, state| {
        asked.set(Some(state.detach(rogue.guest, DEV, force)));
    });
    job
}

#[test]
fn a_device_whose_directory_goes_with_those_above_it_is_missed() {
    let fresh = fresh();
    for seed in 0..4 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(0, USED, 50));
        run(&mut world, |world, step| {
            let mut state = world.state();
            match step {
                0 => state.machine.tree.remove("/local/domain/3/backend"),
                1 => {
                    assert_eq!(state.machine.grants.mapped_from(DomId(5)), 0, "seed {seed}");
                    state.destroy(DomId(5));
                }
                _ => return DONE,
            }
            true
        });
        nothing_is_left(&world, fresh);
    }
}

#[test]
fn a_request_whose_pages_cannot_be_mapped_is_answered_though_nothing_follows() {
    for seed in 0..4 {
        let mut world = world(seed);
        let load = Load { depth: 1, may_fail: true, ..Load::new(0, USED, 200) };
        let (_, frontend) = attach(&world, 5, "/dev/nvme0n1", load);
        world.state().failing_maps = 10;
        run(&mut world, |_, _| DONE);
        assert_eq!(world.state().frontends[frontend].answered(), (200, 0), "seed {seed}");
    }
}
