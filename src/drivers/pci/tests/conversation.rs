//! The conversation with pciback: its page, its silence, its xenstore nodes.

use super::*;

#[test]
fn an_answer_is_handed_out_once() {
    let mut machine = Machine::new(&[nvme()]);
    let mut link = Link::new(&mut machine.hal, DomId(0)).unwrap();
    assert_eq!(link.poll(machine.now), Poll::Idle);
    link.post(&mut machine.hal, machine.now, Address::parse("0:0:0.0").unwrap(), Operation::Read(0));
    assert_eq!(link.poll(machine.now), Poll::Waiting);
    assert!(machine.pciback.step(machine.hal.frame));
    assert!(matches!(link.poll(machine.now), Poll::Answered(Ok(reply)) if reply.value == 0x0010_1b36));
    assert_eq!((link.poll(machine.now), link.deadline()), (Poll::Idle, None));
}

#[test]
fn the_first_operation_is_due_at_once() {
    let mut machine = Machine::new(&[nvme()]);
    while machine.do_job() {}
    assert_eq!(machine.pci.deadline(), None, "pciback may take any time to connect");
    machine.set_state("4");
    while machine.do_job() {}
    assert!(machine.pci.deadline().is_some_and(|due| due <= machine.now));
}

#[test]
fn silence_ends_it_after_two_seconds() {
    let mut machine = Machine::new(&[nvme(), nvme()]);
    machine.pciback.silent = true;
    machine.run();
    let late = machine.pci.deadline().unwrap();
    assert_eq!(late, machine.now + Duration::from_secs(2));
    machine.now = Instant(late.0 - 1);
    machine.run();
    assert!(!machine.pci.settled());
    machine.now = late;
    machine.run();
    assert!(machine.pci.settled());
    assert_eq!(machine.reason(), "pci 0000:00:00.0 cannot be used: pciback does not answer");
    assert_eq!(machine.hal.notified, 1, "the page is pciback's: nothing more is asked");
    // An answer that comes too late changes nothing.
    machine.pciback.silent = false;
    machine.run();
    assert!(machine.found().is_empty());
}

#[test]
fn pciback_is_told_of_each_operation() {
    let mut machine = Machine::new(&[nvme()]);
    let mut answered = 0;
    for _ in 0..100 {
        machine.do_job();
        if machine.node("device/pci/0/state") == "3" {
            machine.set_state("4");
        }
        let _ = machine.pci.turn(&mut machine.hal, machine.now);
        answered += usize::from(machine.pciback.step(machine.hal.frame));
        assert_eq!(machine.hal.notified, answered);
    }
    assert!(machine.pci.settled() && answered > 10);
}

#[test]
fn no_device_was_given() {
    let mut machine = Machine::new(&[]);
    machine.nodes.clear();
    machine.run();
    assert!(machine.pci.settled());
    assert_eq!(machine.reason(), "no PCI device was given to this domain");
    assert_eq!(machine.pci.port(), None);
}

#[test]
fn every_function_is_handed_out_or_named() {
    let mut network = nvme();
    network.words[0] = 0x5678_1234;
    network.words[2] = 0x0200_0000;
    let mut machine = Machine::new(&[nvme(), network.clone(), nvme()]);
    machine.run();
    let slots: Vec<_> = machine.found().iter().map(|found| found.address.slot).collect();
    assert_eq!(slots, [0, 2]);
    assert_eq!(machine.reason(), "pci 0000:00:01.0 (1234:5678, class 020000) has no driver");
    assert_eq!(machine.pciback.functions[1].command(), 0, "what has no driver stays off the bus");
}

#[test]
fn it_waits_for_pciback_to_connect() {
    let mut machine = Machine::new(&[nvme()]);
    for state in ["1", "2", "3", "8"] {
        while machine.do_job() {}
        machine.publish("state", state);
        machine.pci.notice();
        while machine.do_job() {}
        assert_eq!(machine.node("device/pci/0/state"), "3");
        assert!(!machine.pci.settled() && machine.pci.next_job().is_none());
    }
    assert_eq!(machine.watched, ["device/pci/0/backend", "/local/domain/0/backend/pci/5/0/state"]);
    machine.set_state("4");
    machine.run();
    assert_eq!(machine.found().len(), 1);
}

#[test]
fn pciback_that_closes_is_not_waited_for() {
    for state in ["5", "6", "", "x"] {
        let mut machine = Machine::new(&[nvme()]);
        machine.publish("state", state);
        machine.run();
        assert!(machine.pci.settled());
        assert_eq!(machine.reason(), "pci: pciback has closed the devices");
        assert_eq!(
            machine.node("device/pci/0/state"),
            "3",
            "it did not connect, so there is nothing to close"
        );
    }
    let mut machine = Machine::new(&[nvme()]);
    machine.nodes.remove(&format!("{BACKEND}/state"));
    machine.run();
    assert_eq!(machine.reason(), "pci: pciback has closed the devices");
}

#[test]
fn nodes_that_make_no_sense() {
    for (path, value, reason) in [
        ("device/pci/0/backend-id", "32752", "pci: the node device/pci/0/backend-id makes no sense"),
        ("device/pci/0/backend-id", "-1", "pci: the node device/pci/0/backend-id makes no sense"),
        ("device/pci/0/backend-id", "7", "pci: the node device/pci/0/backend makes no sense"),
        ("device/pci/0/backend", "", "pci: the node device/pci/0/backend makes no sense"),
        (
            "device/pci/0/backend",
            "/local/domain/0/backend/pci/5",
            "pci: the node device/pci/0/backend makes no sense",
        ),
        (
            "device/pci/0/backend",
            "/local/domain/0/backend/pci/5/0\0",
            "pci: the node device/pci/0/backend makes no sense",
        ),
        ("device/pci/0/state", "4", "pci: cannot publish the shared page: Gone"),
        ("/local/domain/0/backend/pci/5/0/num_devs", "many", "pci: the node num_devs makes no sense"),
        ("/local/domain/0/backend/pci/5/0/num_devs", "0", "no PCI device was given to this domain"),
        ("/local/domain/0/backend/pci/5/0/vdev-0", "1", "pci: pciback does not say where device 0 is"),
    ] {
        let mut machine = Machine::new(&[nvme()]);
        machine.nodes.insert(path.into(), value.into());
        machine.run();
        assert!(machine.pci.settled() && machine.found().is_empty(), "{path} {value:?}");
        assert_eq!(machine.reason(), reason);
    }
    let mut machine = Machine::new(&[nvme()]);
    let long = format!("/local/domain/0/backend/pci/5/{}", "0".repeat(limits::PATH));
    machine.nodes.insert("device/pci/0/backend".into(), long);
    machine.run();
    assert_eq!(machine.reason(), "pci: the node device/pci/0/backend makes no sense");
}

#[test]
fn more_functions_than_are_looked_at() {
    let mut machine = Machine::new(&[nvme()]);
    machine.publish("num_devs", "4294967296");
    machine.run();
    assert_eq!(machine.found().len(), 1);
    assert_eq!(machine.reason(), "pci: more than 15 functions, the others are not used");
    let mut machine = Machine::new(&[(); limits::PCI_FUNCTIONS].map(|()| nvme()));
    machine.run();
    assert_eq!((machine.found().len(), machine.pci.none_reason()), (limits::PCI_FUNCTIONS, None));
}

#[test]
fn any_job_can_fail() {
    for job in 0..8 {
        for error in [StoreError::Denied, StoreError::Quota, StoreError::Again, StoreError::Gone] {
            let mut machine = Machine::new(&[nvme()]);
            for _ in 0..job {
                assert!(machine.do_job());
                if machine.node("device/pci/0/state") == "3" {
                    machine.set_state("4");
                }
            }
            machine.failure = Some(error);
            machine.run();
            assert!(machine.pci.settled() && machine.found().is_empty(), "job {job}");
            assert!(machine.reason().contains(&format!("{error:?}")), "job {job}: {}", machine.reason());
        }
    }
}

#[test]
fn xen_can_refuse_what_is_needed() {
    for (change, reason) in [
        (
            (|hal| hal.no_page = true) as fn(&mut TestHal),
            "pci: no memory is left for the page shared with pciback",
        ),
        (|hal| hal.no_grant = true, "pci: grant returned -1"),
        (|hal| hal.no_port = true, "pci: EVTCHNOP_alloc_unbound returned -28"),
    ] {
        let mut machine = Machine::new(&[nvme()]);
        change(&mut machine.hal);
        machine.run();
        assert!(machine.pci.settled() && machine.found().is_empty());
        assert_eq!(machine.reason(), reason);
    }
}
