//! Blocks that are given up.

use super::rig::{Reach, Rig};
use super::seeds;
use crate::drivers::{DeviceError, Operation, Refusal, Token};
use crate::sim::nvme::{Faults, Preferred, Settings};
use crate::units::{Block, Discard, PAGE_SIZE};
use crate::wire::nvme::command::ErrorStatus;

/// Gives up so many blocks by as many commands as it takes; returns how many that was.
fn discard_all(rig: &mut Rig, first: u64, blocks: u64) -> u32 {
    let (mut done, mut commands) = (0, 0);
    while done < blocks {
        done += rig.discard(commands, first + done, blocks - done).unwrap();
        assert_eq!(rig.completion(), (commands, Ok(())));
        commands += 1;
    }
    assert_eq!(done, blocks);
    commands
}

/// Fills so many pages' worth of blocks from the first one on.
fn fill(rig: &mut Rig, pages: u64, byte: u8) {
    let (frame, page) = rig.guest_page(Reach::Reads);
    frame.fill(byte);
    for n in 0..pages {
        rig.submit(0, Operation::Write, n * 8, &[page]).unwrap();
        assert_eq!(rig.completion(), (0, Ok(())));
    }
}

#[test]
fn what_is_given_up_reads_as_zeroes_or_as_before_and_its_neighbours_stay() {
    let mut rig = Rig::ready(Settings::new(0));
    fill(&mut rig, 4, 7);
    assert_eq!(discard_all(&mut rig, 9, 20), 1);
    assert_eq!(rig.machine.controller.discards(0).first(), Some(&(9..29)));
    let data = rig.machine.controller.disk(0).read(0, 32);
    let blocks: std::vec::Vec<u8> = data.chunks(512).map(|block| block[0]).collect();
    assert!(blocks[..9].iter().chain(&blocks[29..]).all(|byte| *byte == 7));
    assert!(blocks[9..29].contains(&0) && blocks[9..29].contains(&7), "whoever trusts in one is wrong");
    rig.check();
}

#[test]
fn no_command_gives_up_more_than_the_controller_allows() {
    let preferred = Preferred { atomic: 1, write: 1, deallocate: 8, deallocate_alignment: 1 };
    let limits = Settings { deallocate_limit: Some(100), preferred: Some(preferred), ..Settings::new(0) };
    let mut rig = Rig::ready(limits);
    assert_eq!(discard_all(&mut rig, 3, 300), 4);
    assert_eq!(rig.machine.controller.discards(0), [3..96, 96..192, 192..288, 288..303]);
    rig.check();
}

#[test]
fn no_command_gives_up_more_than_a_gibibyte_whatever_the_controller_allows() {
    for deallocate_limit in [None, Some(0), Some(u32::MAX)] {
        let mut settings = Settings { deallocate_limit, ..Settings::new(0) };
        settings.namespaces[0].blocks = 5 << 20;
        let mut rig = Rig::ready(settings);
        assert_eq!(discard_all(&mut rig, 0, 5 << 20), 3);
        assert_eq!(rig.machine.controller.discards(0)[0], 0..2 << 20);
        rig.check();
    }
}

#[test]
fn a_controller_without_the_command_is_not_sent_it() {
    let mut rig = Rig::ready(Settings { deallocates: false, ..Settings::new(0) });
    assert!(rig.nvme.namespaces().iter().all(|disk| disk.unwrap().discard.is_none()));
    assert_eq!(rig.discard(1, 0, 8), Err(Refusal::Inexpressible));
    rig.check();
}

#[test]
fn what_a_namespace_prefers_is_passed_on() {
    let preferred = Preferred { atomic: 4, write: 8, deallocate: 2, deallocate_alignment: 16 };
    let rig = Rig::ready(Settings { preferred: Some(preferred), ..Settings::new(0) });
    for (disk, block_size) in rig.nvme.namespaces().iter().zip([512, 4096]) {
        let disk = disk.unwrap();
        assert_eq!(disk.discard, Some(Discard { granularity: 16 * block_size, alignment: 0 }));
        assert_eq!(disk.physical_block_size, 4 * block_size);
    }
}

#[test]
fn a_discard_is_refused_like_any_command() {
    let mut rig = Rig::found(Settings::new(0));
    assert_eq!(rig.discard(0, 0, 8), Err(Refusal::NotReady));
    let mut rig = Rig::ready(Settings { queue_entries: 2, ..Settings::new(0) });
    assert_eq!(rig.discard(0, 0, 0), Err(Refusal::Inexpressible));
    let nowhere = rig.nvme.discard(Token(0), 2, Block(0), Block(8));
    assert_eq!(nowhere, Err(Refusal::Inexpressible));
    assert_eq!(rig.discard(0, 0, 8), Ok(8));
    assert_eq!(rig.discard(1, 0, 8), Err(Refusal::Full));
    assert_eq!(rig.completion(), (0, Ok(())));
    rig.check();
}

#[test]
fn a_discard_that_fails_is_an_error() {
    let mut rig = Rig::ready(Settings::new(0));
    let status = ErrorStatus { kind: 1, code: 0x80, do_not_retry: true };
    rig.machine.controller.faults = Faults { error: 1, statuses: [status].into(), ..Faults::default() };
    rig.discard(3, 0, 8).unwrap();
    assert_eq!(rig.completion(), (3, Err(DeviceError::Command(status))));
    assert_eq!(rig.machine.controller.discards(0), []);
}

#[test]
fn a_discard_survives_a_reset_with_its_range() {
    for seed in seeds() {
        let mut rig = Rig::ready(Settings::new(seed));
        let (_, page) = rig.guest_page(Reach::Both);
        let pages = [page; 9];
        rig.machine.controller.faults.forgets = 20;
        for token in (0..20).step_by(2) {
            let first = u64::from(token) * 100;
            assert_eq!(rig.discard(token, first, 10 + first), Ok(10 + first));
            // Its list lies beside the ranges.
            assert_eq!(rig.submit(token + 1, Operation::Read, 0, &pages), Ok(9));
        }
        rig.run_while(|rig| rig.machine.controller.faults.forgets > 0);
        assert_eq!(rig.machine.controller.discards(0), []);
        rig.machine.controller.faults.fatal = true;
        let mut tokens: std::vec::Vec<_> = (0..20).map(|_| rig.completion()).collect();
        tokens.sort_by_key(|(token, _)| *token);
        assert!(tokens.into_iter().eq((0..20).map(|token| (token, Ok(())))));
        let mut ranges = rig.machine.controller.discards(0).to_vec();
        ranges.sort_by_key(|range| range.start);
        // Until it is quiet, a controller that is reset may still do what it has.
        ranges.dedup();
        let expected = (0..2000).step_by(200).map(|first| first..2 * first + 10);
        assert!(ranges.into_iter().eq(expected));
        assert_eq!((rig.nvme.counters().resets, rig.nvme.counters().repeats), (1, 20));
        rig.check();
    }
}

#[test]
fn a_write_after_a_discard_stays_written() {
    let mut rig = Rig::ready(Settings::new(0));
    for byte in 1..20 {
        discard_all(&mut rig, 0, 1 << 20);
        fill(&mut rig, 2, byte);
        assert!(rig.machine.controller.disk(0).read(0, 16) == [byte; 2 * PAGE_SIZE]);
    }
    rig.check();
}
