//! The driver against the simulated controller: its start and its end here, what goes wrong between
//! in [`recovery`], blocks that are given up in [`discard`], lots of I/O in [`storm`]; [`rig`] holds the two together.

mod discard;
mod interleavings;
mod recovery;
mod rig;
mod storm;

use std::vec::Vec;

use core::time::Duration;

use super::{Nvme, State, setup};
use crate::drivers::{DeviceError, Namespace, Operation, Refusal, Status};
use crate::hal::MmioRegion;
use crate::limits::NAMESPACES;
use crate::sim::Dma as _;
use crate::sim::nvme::{Found, Settings, Shape};
use crate::units::{Block, Discard};
use crate::wire::nvme::Unsupported;
use crate::wire::nvme::identify::Unusable;

use rig::{Reach, Rig, machine};

fn seeds() -> impl Iterator<Item = u64> {
    0..20
}

#[test]
fn it_comes_up_from_whatever_state_the_controller_is_found_in() {
    for found in Found::ALL {
        for (seed, msix) in seeds().zip([true, false].into_iter().cycle()) {
            let rig = Rig::ready(Settings { found, msix, ..Settings::new(seed) });
            let disk = |id, blocks, block_size| {
                Ok(Namespace {
                    id,
                    blocks: Block(blocks),
                    block_size,
                    physical_block_size: block_size,
                    volatile_cache: true,
                    discard: Some(Discard { granularity: block_size, alignment: 0 }),
                })
            };
            assert_eq!(rig.nvme.namespaces(), [disk(1, 1 << 21, 512), disk(2, 1 << 18, 4096)]);
            assert_eq!(rig.nvme.deadline(), None, "an idle controller needs no turns");
            rig.check();
        }
    }
}

#[test]
fn a_cache_that_is_not_there_is_not_advertised() {
    let rig = Rig::ready(Settings { volatile_cache: false, ..Settings::new(0) });
    assert!(rig.nvme.namespaces().iter().all(|disk| !disk.unwrap().volatile_cache));
}

#[test]
fn a_namespace_that_cannot_be_served_keeps_its_number_and_says_why() {
    let shape = |id, metadata| Shape { id, blocks: 8, block_shift: 9, metadata };
    let namespaces = [shape(3, 0), shape(7, 8), shape(9, 0)].into();
    let mut rig = Rig::ready(Settings { namespaces, ..Settings::new(0) });
    assert!(rig.nvme.namespaces()[0].is_ok() && rig.nvme.namespaces()[2].is_ok());
    assert_eq!(rig.nvme.namespaces()[1], Err(DeviceError::Unusable(Unusable::Metadata(8))));
    for (namespace, result) in
        [(0, Ok(0)), (1, Err(Refusal::Inexpressible)), (3, Err(Refusal::Inexpressible))]
    {
        let token = crate::drivers::Token(0);
        assert_eq!(rig.nvme.submit(token, namespace, Operation::Flush, Block(0), &[]), result);
    }
}

#[test]
fn more_namespaces_than_there_is_room_for_are_left_out() {
    let shape = |id| Shape { id, blocks: u64::from(id), block_shift: 9, metadata: 0 };
    let rig = Rig::ready(Settings { namespaces: (1..=20).map(shape).collect(), ..Settings::new(0) });
    let blocks: Vec<u64> = rig.nvme.namespaces().iter().map(|disk| disk.unwrap().blocks.0).collect();
    assert_eq!(blocks, (1..=NAMESPACES as u64).collect::<Vec<_>>());
    rig.check();
}

#[test]
fn pages_are_taken_all_or_none() {
    let settings = Settings::new(0);
    for pages in 0..9 {
        let mut machine = machine(&settings);
        machine.pages_left = pages;
        let region = MmioRegion { base: 0, len: settings.register_bytes() };
        let error = Nvme::new(&mut machine, 0, region, true).unwrap_err();
        assert_eq!((error, machine.frames.count()), (DeviceError::NoMemory, 0));
    }
}

#[test]
fn doorbells_out_of_reach_are_refused_with_the_controller_disabled() {
    let settings = Settings { doorbell_stride: 11, found: Found::Enabled, ..Settings::new(0) };
    let mut machine = machine(&settings);
    let region = MmioRegion { base: 0, len: 0x4000 };
    let nvme = Nvme::new(&mut machine, 0, region, true).unwrap();
    let mut rig = Rig::new(machine, nvme);
    rig.run_while(|rig| rig.nvme.status() == Status::Starting);
    let reason = DeviceError::Unsupported(Unsupported::Doorbells(11));
    assert_eq!(rig.nvme.status(), Status::Failed(reason));
    assert_eq!(rig.machine.controller.read32(crate::wire::nvme::CC) & 1, 0);
    rig.check();
}

#[test]
fn a_device_that_is_not_there_is_noticed() {
    let settings = Settings::new(0);
    let mut machine = machine(&settings);
    machine.controller.faults.gone = true;
    let region = MmioRegion { base: 0, len: settings.register_bytes() };
    assert_eq!(Nvme::new(&mut machine, 0, region, true).unwrap_err(), DeviceError::Gone);
}

#[test]
fn a_controller_that_never_becomes_ready_is_given_up() {
    let mut rig = Rig::found(Settings { found: Found::Disabling, ..Settings::new(0) });
    let before = rig.machine.now;
    rig.machine.controller.faults.never_ready = true;
    rig.run_while(|rig| rig.nvme.status() == Status::Starting);
    assert_eq!(rig.nvme.status(), Status::Failed(DeviceError::Stuck));
    // It claims two seconds for each change of the bit, and others wait for its first start.
    assert!(rig.machine.now.since(before) < Duration::from_secs(4));
    assert_eq!(rig.nvme.deadline(), None);
    assert_eq!(rig.submit(0, Operation::Flush, 0, &[]), Err(Refusal::Dead));
    rig.check();
}

#[test]
fn a_controller_is_waited_for_only_while_it_comes_up() {
    let found = |found| Rig::found(Settings { found, ..Settings::new(0) });
    let settles = |rig: &Rig| matches!(rig.nvme.state, State::Settling { .. });
    for state in Found::ALL {
        assert_eq!(settles(&found(state)), state == Found::Enabling, "{state:?}");
    }
    let mut rig = found(Found::Enabling);
    let State::Settling { until } = rig.nvme.state else { panic!("it is not waited for") };
    rig.run_while(settles);
    assert!(rig.machine.now < until, "as soon as it is up");
    let mut rig = found(Found::Enabling);
    rig.machine.controller.faults.fatal = true;
    rig.turn();
    assert!(!settles(&rig), "nor when it has failed");
}

#[test]
fn commands_wait_until_it_is_ready() {
    let mut rig = Rig::found(Settings::new(0));
    assert_eq!(rig.submit(0, Operation::Flush, 0, &[]), Err(Refusal::NotReady));
}

#[test]
fn the_queue_holds_one_command_less_than_it_has_entries() {
    for (entries, room) in [(2, 1), (3, 2), (64, 63), (1024, 63)] {
        let mut rig = Rig::ready(Settings { queue_entries: entries, ..Settings::new(0) });
        for token in 0..room {
            assert_eq!(rig.submit(token, Operation::Flush, 0, &[]), Ok(0));
        }
        assert_eq!(rig.submit(99, Operation::Flush, 0, &[]), Err(Refusal::Full));
        let mut tokens: Vec<u32> = (0..room).map(|_| rig.completion().0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..room).collect::<Vec<_>>());
        assert_eq!(rig.submit(99, Operation::Flush, 0, &[]), Ok(0));
        rig.check();
    }
}

#[test]
fn lost_interrupts_delay_and_do_not_hang() {
    for msix in [true, false] {
        let mut rig = Rig::ready(Settings { msix, ..Settings::new(0) });
        rig.machine.controller.faults.lost_interrupt = 1;
        let before = rig.machine.now;
        rig.submit(1, Operation::Flush, 0, &[]).unwrap();
        assert_eq!(rig.completion(), (1, Ok(())));
        let patience = if msix { 20_000_000 } else { 1_000_000 };
        assert!(rig.machine.now.0 - before.0 <= patience);
        rig.check();
    }
}

#[test]
fn a_doubled_completion_is_counted_and_answers_nobody_else() {
    let mut rig = Rig::ready(Settings::new(0));
    rig.machine.controller.faults.doubled = 1;
    for token in 0..2000 {
        rig.submit(token, Operation::Flush, 0, &[]).unwrap();
        assert_eq!(rig.completion(), (token, Ok(())));
    }
    assert_eq!(rig.nvme.counters().strays, 2000);
}

#[test]
fn doubled_and_invented_completions_do_not_confuse_its_coming_up() {
    for seed in seeds() {
        let mut rig = Rig::found(Settings { found: Found::Disabling, ..Settings::new(seed) });
        rig.machine.controller.faults.doubled = 2;
        rig.machine.controller.faults.invented = 2;
        rig.run_while(|rig| rig.nvme.status() == Status::Starting);
        assert_eq!(rig.nvme.status(), Status::Ready);
        let sizes = [512, 4096].map(Some);
        assert!(rig.nvme.namespaces().iter().map(|disk| disk.ok().map(|disk| disk.block_size)).eq(sizes));
        assert!(rig.nvme.counters().strays > 0);
        rig.check();
    }
}

#[test]
fn a_flood_of_completions_does_not_put_off_the_end_of_its_coming_up() {
    let mut rig = Rig::found(Settings::new(0));
    rig.run_while(|rig| !matches!(rig.nvme.state, State::SettingUp { .. }));
    // From here on the controller says one thing only, and again as soon as that was read.
    let queue = rig.nvme.admin.completions();
    for place in 0_u64.. {
        if rig.nvme.counters().resets > 0 {
            break;
        }
        let entries = u64::from(setup::ADMIN_ENTRIES);
        let phase = u8::from((place / entries).is_multiple_of(2));
        let entry = queue.offset(place % entries * 16 + 12);
        rig.machine.frames.write(entry, &[0xfe, 0xff, phase, 0]).unwrap();
        rig.machine.now = rig.machine.now + Duration::from_millis(1);
        let now = rig.machine.now;
        assert!(rig.nvme.turn(&mut rig.machine, now, &mut heapless::Vec::<_, 5>::new()));
        assert!(place < 31_000, "it waits for ever");
    }
    assert!(rig.nvme.counters().strays > 29_000);
}

#[test]
fn a_write_with_fua_is_safe_when_it_is_completed_and_takes_no_bit_without_a_cache() {
    for volatile_cache in [true, false] {
        let mut rig = Rig::ready(Settings { volatile_cache, ..Settings::new(0) });
        let (frame, page) = rig.guest_page(Reach::Reads);
        frame.fill(7);
        for (token, operation) in [(1, Operation::Write), (2, Operation::WriteFua)] {
            rig.submit(token, operation, u64::from(token) * 8, &[page]).unwrap();
            assert_eq!(rig.completion(), (token, Ok(())));
            let is_safe = rig.machine.controller.disk(0).read_safe(u64::from(token) * 8) == [7; 512];
            assert_eq!(is_safe, operation == Operation::WriteFua || !volatile_cache);
        }
        assert_eq!(rig.machine.controller.forced_writes(), volatile_cache.into());
        rig.check();
    }
}

#[test]
fn a_shutdown_leaves_everything_on_the_disk() {
    let mut rig = Rig::ready(Settings::new(0));
    let (frame, page) = rig.guest_page(Reach::Reads);
    frame.fill(7);
    rig.submit(1, Operation::Write, 8, &[page]).unwrap();
    assert_eq!(rig.completion(), (1, Ok(())));
    rig.nvme.shut_down(&mut rig.machine);
    assert_eq!(rig.nvme.status(), Status::Stopping);
    assert_eq!(rig.submit(2, Operation::Flush, 0, &[]), Err(Refusal::Dead));
    rig.run_while(|rig| rig.nvme.status() == Status::Stopping);
    assert_eq!((rig.nvme.status(), rig.nvme.deadline()), (Status::Stopped, None));
    let mut rng = crate::sim::rng::Rng::new(0);
    rig.machine.controller.disk_mut(0).cut_power(&mut rng);
    assert_eq!(rig.machine.controller.disk(0).read(8, 8), [7; 4096]);
    rig.check();
}

#[test]
fn a_shutdown_that_does_not_end_is_waited_for_and_no_longer() {
    let mut rig = Rig::ready(Settings::new(0));
    let start = rig.machine.now;
    rig.nvme.shut_down(&mut rig.machine);
    rig.machine.controller.faults.gone = true;
    rig.run_while(|rig| rig.nvme.status() == Status::Stopping);
    assert!(rig.machine.now.since(start) >= Duration::from_secs(5));
    assert!(rig.nvme.status() == Status::Stopped && rig.nvme.must_be_isolated());
}

#[test]
fn a_controller_that_is_reset_or_gone_is_not_as_it_was_enabled() {
    let is_enabled = |rig: &mut Rig| rig.nvme.is_enabled(&mut rig.machine);
    let mut rig = Rig::ready(Settings::new(0));
    assert!(is_enabled(&mut rig));
    rig.machine.controller.faults.gone = true;
    assert!(!is_enabled(&mut rig));
    assert!(!is_enabled(&mut Rig::found(Settings::new(0))));
    rig.nvme.abandon();
    assert_eq!(rig.nvme.status(), Status::Failed(DeviceError::Withdrawn));
}

#[test]
fn errors_say_what_is_wrong() {
    let status = crate::wire::nvme::command::ErrorStatus { kind: 2, code: 0x81, do_not_retry: false };
    for (error, text) in [
        (DeviceError::Unsupported(Unsupported::CommandSet), "it has no NVM command set"),
        (DeviceError::Unusable(Unusable::Empty), "it has no blocks"),
        (DeviceError::Command(status), "a command failed with status type 2, code 0x81"),
    ] {
        assert_eq!(std::format!("{error}"), text);
    }
}

#[test]
fn a_shutdown_before_it_is_ready_ends_at_once() {
    let mut rig = Rig::found(Settings::new(0));
    rig.nvme.shut_down(&mut rig.machine);
    assert_eq!((rig.nvme.status(), rig.nvme.deadline()), (Status::Stopped, None));
    assert!(rig.nvme.must_be_isolated(), "nothing is known of whoever had it before");
}

#[test]
fn its_pages_are_given_back_when_it_was_left() {
    type Leave = fn(&mut Rig);
    let ways: [Leave; 3] = [
        |rig| rig.nvme.shut_down(&mut rig.machine),
        |rig| rig.machine.controller.faults.fatal_for_good = true,
        |rig| {
            rig.machine.controller.faults.never_disabled = true;
            rig.machine.controller.faults.fatal = true;
        },
    ];
    for (leave, isolates) in ways.into_iter().zip([false, false, true]) {
        let mut rig = Rig::ready(Settings::new(0));
        assert!(!rig.nvme.must_be_isolated());
        rig.machine.controller.faults.forgets = 1;
        rig.submit(1, Operation::Flush, 0, &[]).unwrap();
        rig.run_while(|rig| rig.machine.controller.faults.forgets > 0);
        leave(&mut rig);
        rig.machine.controller.faults.fatal |= rig.machine.controller.faults.fatal_for_good;
        rig.run_while(|rig| !matches!(rig.nvme.status(), Status::Stopped | Status::Failed(_)));
        assert_eq!(rig.nvme.must_be_isolated(), isolates);
        rig.nvme.isolated();
        rig.turn();
        assert_eq!(rig.done.len(), 1, "what was in flight is given back first");
        assert!(!rig.nvme.must_be_isolated());
        assert_eq!(rig.nvme.deadline(), None);
        rig.nvme.release(&mut rig.machine);
        assert_eq!(rig.machine.frames.count(), 0);
    }
}

#[test]
#[should_panic(expected = "when nobody uses them")]
fn its_pages_are_not_given_back_while_it_may_access_them() {
    let mut rig = Rig::found(Settings::new(0));
    rig.nvme.shut_down(&mut rig.machine);
    rig.nvme.release(&mut rig.machine);
}
