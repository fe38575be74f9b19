//! Commands that fail, commands that are forgotten, and controllers that do worse.

use core::time::Duration;
use std::vec::Vec;

use super::rig::{Reach, Rig};
use super::seeds;
use crate::drivers::nvme::State;
use crate::drivers::{Completion, DeviceError, Operation, Status};
use crate::mem::frame::Frame;
use crate::sim::nvme::{Faults, Settings};
use crate::units::{PAGE_SIZE, Span};
use crate::wire::nvme::command::ErrorStatus;

const RESET: Result<(), DeviceError> = Err(DeviceError::Reset);

const fn status(kind: u8, code: u8, do_not_retry: bool) -> ErrorStatus {
    ErrorStatus { kind, code, do_not_retry }
}

/// Makes the controller forget the next commands.
fn forget(rig: &mut Rig, commands: u32) {
    rig.machine.controller.faults.forgets = commands;
}

/// Lets the controller take what was submitted, until it has forgotten all that it should.
fn let_forget(rig: &mut Rig) {
    rig.run_while(|rig| rig.machine.controller.faults.forgets > 0);
}

/// Lets time pass while nobody turns, and the controller works.
fn pause(rig: &mut Rig, time: Duration) {
    let end = rig.machine.now + time;
    while let Some(next) = rig.machine.controller.next_event().filter(|next| *next <= end) {
        rig.machine.now = rig.machine.now.max(next);
        rig.machine.controller.step(rig.machine.now, &mut rig.machine.frames);
    }
    rig.machine.now = end;
}

#[test]
fn a_command_that_fails_is_tried_three_times_more() {
    let mut rig = Rig::ready(Settings::new(0));
    for error in [status(2, 0x81, false), status(0, 0x82, false)] {
        let before = (rig.nvme.counters(), rig.machine.now);
        rig.machine.controller.faults = Faults { error: 1, statuses: [error].into(), ..Faults::default() };
        rig.submit(7, Operation::Flush, 0, &[]).unwrap();
        assert_eq!(rig.completion(), (7, Err(DeviceError::Command(error))));
        let after = rig.nvme.counters();
        assert_eq!((after.errors - before.0.errors, after.repeats - before.0.repeats), (4, 3));
        let passed = rig.machine.now.since(before.1).as_millis();
        assert!((30..40).contains(&passed), "after {passed} ms");
    }
    assert_eq!(rig.nvme.counters().resets, 0);
    rig.check();
}

#[test]
fn a_command_is_not_tried_again_where_that_cannot_help() {
    let mut rig = Rig::ready(Settings::new(0));
    for error in
        [status(2, 0x81, true), status(0, 0x80, false), status(0, 0x02, false), status(1, 0x82, false)]
    {
        rig.machine.controller.faults = Faults { error: 1, statuses: [error].into(), ..Faults::default() };
        rig.submit(7, Operation::Flush, 0, &[]).unwrap();
        assert_eq!(rig.completion(), (7, Err(DeviceError::Command(error))));
    }
    assert_eq!((rig.nvme.counters().errors, rig.nvme.counters().repeats), (4, 0));
}

#[test]
fn an_error_that_passes_is_nobodys_and_holds_nobody_up() {
    let mut rig = Rig::ready(Settings::new(0));
    let (frame, page) = rig.guest_page(Reach::Reads);
    frame.fill(5);
    rig.machine.controller.faults.error = 1;
    rig.submit(1, Operation::Write, 8, &[page]).unwrap();
    rig.run_while(|rig| rig.nvme.counters().errors == 0);
    rig.machine.controller.faults.error = 0;
    rig.submit(2, Operation::Flush, 0, &[]).unwrap();
    assert_eq!(rig.completion(), (2, Ok(())));
    assert_eq!(rig.completion(), (1, Ok(())));
    assert_eq!(rig.machine.controller.disk(0).read(8, 8), [5; PAGE_SIZE]);
    rig.check();
}

#[test]
fn a_doubled_error_does_not_answer_the_next_try() {
    let mut rig = Rig::ready(Settings::new(0));
    (rig.machine.controller.faults.error, rig.machine.controller.faults.doubled) = (1, 1);
    rig.submit(1, Operation::Flush, 0, &[]).unwrap();
    rig.run_while(|rig| rig.nvme.counters().strays == 0);
    rig.machine.controller.faults.error = 0;
    assert_eq!(rig.completion(), (1, Ok(())));
    assert_eq!((rig.nvme.counters().errors, rig.nvme.counters().repeats), (1, 1));
    assert_eq!(rig.done, []);
}

#[test]
fn what_was_completed_is_taken_before_a_deadline_is_believed() {
    let mut rig = Rig::ready(Settings::new(0));
    // More than a turn of the rig takes, so that some are left when the first are taken.
    for token in 0..20 {
        rig.submit(token, Operation::Flush, 0, &[]).unwrap();
    }
    pause(&mut rig, Duration::from_secs(40));
    rig.turn();
    assert_eq!(rig.done.len(), 20);
    assert!(rig.done.iter().all(|completion| completion.result == Ok(())));
    assert_eq!(rig.nvme.counters().resets, 0);
    rig.check();
}

#[test]
fn late_commands_are_given_back_when_the_controller_lets_go_of_their_memory() {
    for seed in seeds() {
        let mut rig = Rig::ready(Settings::new(seed));
        forget(&mut rig, 8);
        let before = rig.machine.now;
        let pages: Vec<_> = (0..8).map(|_| rig.guest_page(Reach::Writes).1).collect();
        for (token, page) in (0..).zip(&pages) {
            rig.submit(token, Operation::Read, 0, &[*page]).unwrap();
        }
        for _ in &pages {
            let (token, result) = rig.completion();
            assert_eq!(result, RESET);
            rig.machine.frames.unmap(pages[token as usize].bus);
        }
        let passed = rig.machine.now.since(before);
        assert!((30..33).contains(&passed.as_secs()), "after {passed:?}");
        rig.run_while(|rig| rig.nvme.status() == Status::Starting);
        rig.submit(9, Operation::Flush, 0, &[]).unwrap();
        assert_eq!(rig.completion(), (9, Ok(())));
        assert_eq!((rig.nvme.counters().resets, rig.nvme.counters().repeats), (1, 0));
        rig.check();
    }
}

/// Writes of so many pages each, all of them forgotten by the controller.
fn forgotten_writes(rig: &mut Rig, tokens: core::ops::Range<u32>, pages: usize) -> Vec<Vec<(Frame, Span)>> {
    forget(rig, tokens.len() as u32);
    let writes = tokens.map(|token| {
        let pages: Vec<_> = (0..pages).map(|_| rig.guest_page(Reach::Reads)).collect();
        pages.iter().for_each(|(frame, _)| frame.fill(token as u8));
        let spans: Vec<Span> = pages.iter().map(|(_, span)| *span).collect();
        let block = u64::from(token) * 256;
        assert_eq!(rig.submit(token, Operation::Write, block, &spans), Ok(spans.len()));
        pages
    });
    let writes = writes.collect();
    let_forget(rig);
    writes
}

#[test]
fn what_is_not_late_is_issued_again_after_a_reset() {
    for seed in seeds() {
        let mut rig = Rig::ready(Settings::new(seed));
        forgotten_writes(&mut rig, 0..1, 1);
        pause(&mut rig, Duration::from_secs(25));
        rig.turn();
        let writes = forgotten_writes(&mut rig, 1..40, 17);
        forget(&mut rig, 1);
        rig.submit(40, Operation::Flush, 0, &[]).unwrap();
        let_forget(&mut rig);
        assert_eq!(rig.completion(), (0, RESET));
        let before = rig.machine.now;
        let mut tokens = Vec::new();
        for _ in 1..=40 {
            let (token, result) = rig.completion();
            assert_eq!(result, Ok(()), "seed {seed}");
            tokens.push(token);
            if token < 40 {
                writes[token as usize - 1].iter().for_each(|(_, span)| rig.machine.frames.unmap(span.bus));
                let data = rig.machine.controller.disk(0).read(u64::from(token) * 256, 17 * 8);
                assert!(data == std::vec![token as u8; 17 * PAGE_SIZE]);
            }
        }
        assert!(rig.machine.now.since(before) < Duration::from_secs(1));
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(1..=40));
        assert_eq!((rig.nvme.counters().resets, rig.nvme.counters().repeats), (1, 40));
        rig.check();
    }
}

#[test]
fn one_forgotten_command_among_busy_ones_is_found_too() {
    let mut rig = Rig::ready(Settings::new(0));
    forget(&mut rig, 1);
    rig.submit(1, Operation::Flush, 0, &[]).unwrap();
    let_forget(&mut rig);
    let before = rig.machine.now;
    loop {
        rig.submit(2, Operation::Flush, 0, &[]).unwrap();
        match rig.completion() {
            (2, Ok(())) => {}
            other => break assert_eq!(other, (1, RESET)),
        }
    }
    assert_eq!(rig.completion(), (2, Ok(())));
    let passed = rig.machine.now.since(before).as_secs();
    assert!((30..33).contains(&passed), "after {passed} s");
}

#[test]
fn a_fatal_error_is_noticed_and_costs_no_request() {
    let mut rig = Rig::ready(Settings::new(0));
    forget(&mut rig, 1);
    rig.submit(1, Operation::Flush, 0, &[]).unwrap();
    let_forget(&mut rig);
    let before = rig.machine.now;
    rig.machine.controller.faults.fatal = true;
    assert_eq!(rig.completion(), (1, Ok(())));
    assert!(rig.machine.now.since(before) < Duration::from_secs(3));
    assert_eq!(rig.nvme.status(), Status::Ready);
    rig.check();
}

#[test]
fn a_command_that_the_controller_does_not_survive_fails_after_four_times() {
    for seed in seeds() {
        let mut rig = Rig::ready(Settings::new(seed));
        rig.machine.controller.faults.poison = Some(64);
        let (_, page) = rig.guest_page(Reach::Both);
        for token in 0..16 {
            rig.submit(token, Operation::Read, u64::from(token) * 8, &[page]).unwrap();
        }
        let mut results: Vec<_> = (0..16).map(|_| rig.completion()).collect();
        results.sort_by_key(|(token, _)| *token);
        let expected = (0..16).map(|token| (token, if token == 8 { RESET } else { Ok(()) }));
        assert!(results.iter().copied().eq(expected), "{results:?}");
        rig.run_while(|rig| rig.nvme.status() == Status::Starting);
        assert_eq!((rig.nvme.status(), rig.nvme.counters().resets), (Status::Ready, 4));
        rig.check();
    }
}

#[test]
fn a_controller_that_cannot_be_stopped_keeps_what_it_has_until_it_is_isolated() {
    type Break = fn(&mut Faults);
    let ways: [(Break, DeviceError); 2] = [
        (|faults| faults.never_disabled = true, DeviceError::Stuck),
        (|faults| faults.gone = true, DeviceError::Gone),
    ];
    for (seed, (break_it, reason)) in seeds().flat_map(|seed| ways.map(|way| (seed, way))) {
        let mut rig = Rig::ready(Settings::new(seed));
        forgotten_writes(&mut rig, 0..3, 3);
        pause(&mut rig, Duration::from_secs(20));
        rig.turn();
        forgotten_writes(&mut rig, 3..10, 1);
        break_it(&mut rig.machine.controller.faults);
        rig.run_while(|rig| !matches!(rig.nvme.status(), Status::Failed(_)));
        assert_eq!(rig.nvme.status(), Status::Failed(reason));
        // It may go on as long as it likes.
        pause(&mut rig, Duration::from_secs(100));
        rig.turn();
        assert_eq!((rig.done.as_slice(), rig.nvme.deadline()), ([].as_slice(), None));
        assert!(rig.nvme.must_be_isolated());
        assert_eq!(rig.submit(99, Operation::Flush, 0, &[]), Err(crate::drivers::Refusal::Dead));
        rig.nvme.isolated();
        rig.turn();
        let mut tokens: Vec<u32> = rig.done.iter().map(|completion| completion.token.0).collect();
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(0..10));
        assert!(rig.done.iter().all(|Completion { result, .. }| *result == RESET));
        assert!(!rig.nvme.must_be_isolated());
        assert_eq!((rig.nvme.status(), rig.nvme.deadline()), (Status::Failed(reason), None));
    }
}

#[test]
fn a_reset_that_was_lost_on_the_bus_is_asked_for_again() {
    for while_enabling in [false, true] {
        let mut rig = Rig::ready(Settings::new(0));
        forgotten_writes(&mut rig, 0..1, 1);
        if while_enabling {
            rig.machine.controller.faults.never_ready = true;
            rig.run_while(|rig| !matches!(rig.nvme.state, State::Enabling { .. }));
        }
        let resets = rig.nvme.counters().resets;
        rig.machine.controller.faults.gone = true;
        rig.run_while(|rig| rig.nvme.counters().resets == resets);
        rig.machine.controller.faults.gone = false;
        rig.turn();
        rig.machine.controller.faults = Faults::default();
        rig.run_while(|rig| rig.nvme.status() == Status::Starting);
        assert_eq!(rig.nvme.status(), Status::Ready);
        rig.check();
    }
}

#[test]
fn a_fatal_error_that_stays_ends_in_answers() {
    let mut rig = Rig::ready(Settings::new(0));
    forgotten_writes(&mut rig, 0..10, 2);
    let faults = &mut rig.machine.controller.faults;
    (faults.fatal, faults.fatal_for_good) = (true, true);
    for _ in 0..10 {
        assert_eq!(rig.completion().1, RESET);
    }
    rig.run_while(|rig| rig.nvme.status() == Status::Starting);
    assert_eq!(rig.nvme.status(), Status::Failed(DeviceError::Fatal));
    assert_eq!(rig.nvme.counters().resets, 6);
    assert!(!rig.nvme.must_be_isolated(), "its ready bit is clear");
    rig.check();
}

#[test]
fn a_controller_that_never_answers_is_restarted_so_often_and_no_more() {
    let mut rig = Rig::ready(Settings::new(0));
    rig.machine.controller.faults.unanswered = 1;
    let mut given_back = 0;
    while rig.nvme.status() == Status::Ready {
        rig.submit(1, Operation::Flush, 0, &[]).unwrap();
        assert_eq!(rig.completion(), (1, RESET));
        given_back += 1;
        rig.run_while(|rig| rig.nvme.status() == Status::Starting);
    }
    assert_eq!((given_back, rig.nvme.counters().resets), (6, 6));
    assert_eq!(rig.nvme.status(), Status::Failed(DeviceError::Timeout));
}
