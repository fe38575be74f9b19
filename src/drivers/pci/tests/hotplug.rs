//! Functions that come and go while we run.

use super::*;

/// The address of the function in this slot.
fn at(slot: u8) -> Address {
    Address { segment: 0, bus: 0, slot, function: 0 }
}

/// A machine whose functions are handed out, and in use.
fn serving(functions: &[Function]) -> Machine {
    let mut machine = Machine::new(functions);
    machine.run();
    assert!(machine.pci.settled());
    machine.events.clear();
    machine
}

impl Machine {
    /// What `xl pci-detach` writes.
    fn detach(&mut self, n: usize) {
        self.publish(&format!("state-{n}"), "5");
        self.set_state("7");
        self.run();
    }

    /// The driver of a function lets go of it.
    fn release(&mut self, slot: u8) {
        self.pci.release(at(slot));
        self.run();
    }

    fn front(&self) -> &str {
        self.node("device/pci/0/state")
    }

    /// The toolstack removes both directories.
    fn remove_all(&mut self) {
        self.nodes.clear();
        self.pci.notice();
        self.run();
    }
}

#[test]
fn a_function_leaves_when_its_driver_has_let_go_of_it() {
    let mut machine = serving(&[nvme(), nvme()]);
    machine.detach(1);
    assert_eq!(machine.events, [Event::Leaves(at(1))]);
    assert_eq!(machine.front(), "4", "pciback takes it as soon as we say 7");
    assert!(machine.pci.settled());
    machine.release(1);
    assert_eq!(machine.front(), "7");
    let functions = &machine.pciback.functions;
    assert_eq!((functions[0].msix, functions[1].msix), (true, false));
    machine.set_state("8");
    machine.run();
    assert_eq!(machine.front(), "4");
    machine.set_state("4");
    machine.run();
    assert_eq!(machine.events.len(), 1, "nobody else is disturbed");
}

#[test]
fn an_answer_is_given_once_and_not_into_another_directory() {
    let mut machine = serving(&[nvme()]);
    machine.detach(0);
    machine.release(0);
    let answer = machine.front().to_string();
    assert_ne!(answer, "4");
    machine.pci.notice();
    assert!(machine.do_job() && machine.pci.next_job().is_none(), "pciback is at it");
    let mut machine = serving(&[nvme()]);
    machine.detach(0);
    machine.failure = Some(StoreError::Gone);
    machine.pci.release(at(0));
    for _ in 0..20 {
        machine.pci.turn(&mut machine.hal, machine.now);
        machine.pciback.step(machine.hal.frame);
        if machine.failure.is_some() {
            machine.do_job();
        }
    }
    assert!(machine.failure.is_none() && machine.pci.next_job().is_some(), "it looks anew");
}

#[test]
fn a_function_without_a_name_is_missed_unless_it_leaves() {
    for (state, reason) in [("5", false), ("3", true)] {
        let mut machine = Machine::new(&[nvme()]);
        machine.publish("num_devs", "2");
        machine.publish("state-1", state);
        machine.run();
        assert_eq!((machine.found().len(), machine.pci.none_reason().is_some()), (1, reason));
    }
}

#[test]
fn a_function_that_comes_is_handed_out_and_the_others_are_not_again() {
    let mut machine = serving(&[nvme(), nvme()]);
    machine.detach(0);
    machine.release(0);
    machine.set_state("8");
    machine.run();
    // The toolstack moves the other one up, and the new one comes after it.
    machine.publish("vdev-0", "0000:00:01.00");
    machine.publish("state-0", "3");
    machine.nodes.remove(&format!("{BACKEND}/vdev-1"));
    machine.publish("state-1", "1");
    machine.set_state("4");
    machine.set_state("7");
    machine.run();
    assert_eq!(machine.front(), "7", "nothing is to leave");
    machine.publish("vdev-1", "0000:00:00.00");
    machine.publish("state-1", "3");
    machine.set_state("8");
    machine.run();
    assert_eq!(machine.front(), "4");
    let found: Vec<u8> = machine.found().iter().map(|found| found.address.slot).collect();
    assert_eq!(found, [0]);
    assert!(machine.pciback.functions[0].msix);
}

#[test]
fn a_function_that_nobody_uses_leaves_at_once() {
    let mut network = nvme();
    network.words[2] = 0x0200_0000;
    let mut machine = serving(&[network]);
    machine.detach(0);
    assert_eq!(machine.events, []);
    assert_eq!(machine.front(), "7");
}

#[test]
fn a_function_that_leaves_while_it_is_probed_is_probed_first() {
    let mut machine = Machine::new(&[nvme()]);
    while machine.front() != "4" {
        machine.do_job();
        if machine.front() == "3" {
            machine.set_state("4");
        }
    }
    assert_eq!(machine.pci.turn(&mut machine.hal, machine.now), None);
    machine.detach(0);
    assert!(matches!(machine.events[..], [Event::Found(_), Event::Leaves(_)]), "{:?}", machine.events);
    machine.release(0);
    assert_eq!(machine.front(), "7");
}

#[test]
fn a_function_that_leaves_before_we_have_connected_does_so_at_once() {
    let mut machine = Machine::new(&[nvme()]);
    while machine.front() != "3" {
        assert!(machine.do_job());
    }
    machine.publish("state-0", "5");
    // It was 4 meanwhile.
    machine.set_state("7");
    machine.run();
    assert_eq!((machine.front(), machine.events.len()), ("7", 0));
    machine.set_state("8");
    machine.run();
    assert_eq!((machine.front(), machine.events.len()), ("4", 0));
}

#[test]
fn bus_mastering_is_cleared_and_read_back() {
    let mut machine = serving(&[nvme(), nvme()]);
    machine.pci.isolate(at(1));
    machine.run();
    assert_eq!(machine.events, [Event::Isolated(at(1), true)]);
    let commands = machine.pciback.functions.iter().map(Function::command);
    assert_eq!(commands.collect::<Vec<_>>(), [0b110, 0b010]);
}

#[test]
fn a_function_that_cannot_be_isolated_is_known_to_be_so() {
    let mut machine = serving(&[nvme(), nvme()]);
    machine.pciback.silent = true;
    machine.pci.isolate(at(0));
    machine.run();
    assert_eq!(machine.events, []);
    machine.now = machine.pci.deadline().unwrap();
    machine.run();
    machine.pci.isolate(at(1));
    machine.run();
    let expected = [Event::Isolated(at(0), false), Event::Isolated(at(1), false)];
    assert_eq!(machine.events, expected, "the second is not even asked for");
    let mut machine = serving(&[nvme()]);
    machine.pciback.functions[0].take_back();
    machine.pci.isolate(at(0));
    machine.run();
    assert_eq!(machine.events, [Event::Isolated(at(0), false)]);
}

#[test]
fn everything_leaves_when_pciback_closes() {
    let mut machine = serving(&[nvme(), nvme()]);
    let told = machine.hal.notified;
    machine.set_state("5");
    machine.run();
    assert_eq!(machine.events, [Event::Leaves(at(0)), Event::Leaves(at(1))]);
    machine.release(0);
    assert_eq!(machine.front(), "4");
    machine.release(1);
    assert_eq!(machine.front(), "6");
    assert_eq!(machine.hal.notified, told, "it answers nothing any more");
    assert_eq!(machine.pci.deadline(), None);
}

#[test]
fn the_last_takes_the_directories_along_and_the_first_brings_them_again() {
    let mut machine = serving(&[nvme()]);
    for _ in 0..3 {
        machine.detach(0);
        machine.release(0);
        machine.set_state("8");
        machine.run();
        machine.set_state("4");
        machine.remove_all();
        assert_eq!(machine.reason(), "no PCI device was given to this domain");
        assert!(machine.pci.settled());
        machine.events.clear();
        let Machine { nodes, .. } = Machine::new(&[nvme()]);
        machine.nodes = nodes;
        machine.pci.notice();
        machine.run();
        assert_eq!(machine.found().len(), 1);
        assert_eq!(machine.node("device/pci/0/pci-op-ref"), "11", "the same page");
        assert_eq!(machine.node("device/pci/0/event-channel"), "9", "and port");
    }
}

#[test]
fn directories_that_are_made_anew_at_once_are_a_new_life() {
    let mut machine = serving(&[nvme()]);
    let Machine { nodes, .. } = Machine::new(&[nvme()]);
    machine.nodes = nodes;
    machine.pci.notice();
    machine.run();
    assert_eq!(machine.events, [Event::Leaves(at(0))]);
    assert_eq!(machine.front(), "1");
    machine.pciback.functions[0].take_back();
    machine.pciback.functions[0].lent = true;
    machine.release(0);
    assert_eq!((machine.front(), machine.found().len()), ("4", 1));
}

#[test]
fn a_first_function_that_comes_later_is_found() {
    let mut machine = Machine::new(&[nvme()]);
    let nodes = core::mem::take(&mut machine.nodes);
    machine.run();
    assert!(machine.pci.settled() && machine.events.is_empty());
    machine.nodes = nodes;
    machine.pci.notice();
    machine.run();
    assert_eq!(machine.found().len(), 1);
    assert_eq!(machine.pci.none_reason(), None);
}

#[test]
fn any_job_of_a_reconfiguration_can_fail() {
    for job in 0..3 {
        for error in [StoreError::Denied, StoreError::Again] {
            let mut machine = serving(&[nvme()]);
            machine.publish("state-0", "5");
            machine.set_state("7");
            for _ in 0..job {
                assert!(machine.do_job());
            }
            machine.failure = Some(error);
            machine.run();
            assert_eq!(machine.front(), "4", "pciback must not take what is in use");
            assert!(machine.events.is_empty() || job == 3);
        }
    }
}
