//! pcifront against a simulated pciback and a store of a few nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::hal::{Clock, DmaPage, Events, GrantMap, GrantMapping, GrantedPage, Grants, Memory, MmioRegion};
use crate::mem::frame::Frame;
use crate::sim::pciback::{Function, MSIX, Pciback};
use crate::units::GrantRef;
use crate::wire::pci::{BarError, register};
use crate::wire::pciif::{Operation, OperationError};
use crate::wire::xenbus::{Answers, Step, Value};

const BACKEND: &str = "/local/domain/0/backend/pci/5/0";
const PORT: Port = Port(9);
const GREF: GrantRef = GrantRef(11);

/// What pcifront asks of Xen: one page, one grant, one port.
struct TestHal {
    frame: Frame,
    notified: usize,
    no_page: bool,
    no_grant: bool,
    no_port: bool,
}

impl Clock for TestHal {
    fn now(&mut self) -> Instant {
        unimplemented!("time is an argument")
    }
}

impl Events for TestHal {
    fn bind_interdomain(&mut self, _: DomId, _: Port) -> Result<Port, HypervisorError> {
        unimplemented!()
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, HypervisorError> {
        assert_eq!(peer, DomId(0));
        let failure = HypervisorError { op: "EVTCHNOP_alloc_unbound", code: -28 };
        if self.no_port { Err(failure) } else { Ok(PORT) }
    }

    fn bind_pirq(&mut self, _: Pirq) -> Result<Port, HypervisorError> {
        unimplemented!()
    }

    fn close(&mut self, _: Port) {
        unimplemented!()
    }

    fn notify(&mut self, port: Port) {
        assert_eq!(port, PORT);
        self.notified += 1;
    }

    fn next_pending(&mut self) -> Option<Port> {
        unimplemented!()
    }

    fn wait(&mut self, _: Option<Instant>) {
        unimplemented!("pcifront never waits")
    }
}

impl Grants for TestHal {
    fn map(&mut self, _: &mut [GrantMap]) {
        unimplemented!()
    }

    fn unmap(&mut self, _: &[GrantMapping]) {
        unimplemented!()
    }

    fn map_page(&mut self, _: DomId, _: GrantRef) -> Result<GrantedPage, HypervisorError> {
        unimplemented!()
    }

    fn unmap_page(&mut self, _: GrantedPage) {
        unimplemented!()
    }

    fn grant(&mut self, dom: DomId, page: &DmaPage) -> Result<GrantRef, HypervisorError> {
        assert_eq!((dom, page.page.base()), (DomId(0), self.frame.base()));
        if self.no_grant { Err(HypervisorError { op: "grant", code: -1 }) } else { Ok(GREF) }
    }
}

impl Memory for TestHal {
    fn take_page(&mut self) -> Option<DmaPage> {
        (!self.no_page).then(|| DmaPage { page: self.frame.shared(), bus: BusAddr(0x1000) })
    }

    fn return_page(&mut self, _: DmaPage) {
        unimplemented!()
    }

    fn map_mmio(&mut self, _: BusAddr, _: usize) -> Result<MmioRegion, HypervisorError> {
        unimplemented!()
    }

    fn unmap_mmio(&mut self, _: MmioRegion) {
        unimplemented!()
    }

    fn read32(&mut self, _: MmioRegion, _: usize) -> u32 {
        unimplemented!("pcifront touches no registers")
    }

    fn write32(&mut self, _: MmioRegion, _: usize, _: u32) {
        unimplemented!("pcifront touches no registers")
    }
}

/// A machine: pcifront, pciback, and the nodes between them.
struct Machine {
    pci: Pci,
    hal: TestHal,
    pciback: Pciback,
    nodes: BTreeMap<String, String>,
    /// The path that is watched.
    watched: Option<String>,
    /// What the next job is answered instead of being done.
    failure: Option<StoreError>,
    now: Instant,
    found: Vec<Found, 4>,
}

impl Machine {
    fn new(functions: &[Function]) -> Self {
        let mut machine = Self {
            pci: Pci::new(),
            hal: TestHal {
                frame: Frame::new(),
                notified: 0,
                no_page: false,
                no_grant: false,
                no_port: false,
            },
            pciback: Pciback { functions: functions.to_vec(), silent: false },
            nodes: BTreeMap::new(),
            watched: None,
            failure: None,
            now: Instant(1_000),
            found: Vec::new(),
        };
        for (path, value) in [
            ("device/pci/0/backend", BACKEND),
            ("device/pci/0/backend-id", "0"),
            ("device/pci/0/state", "1"),
            ("/local/domain/0/backend/pci/5/0/state", "1"),
        ] {
            machine.nodes.insert(path.into(), value.into());
        }
        machine.publish("num_devs", &functions.len().to_string());
        for slot in 0..functions.len() {
            machine.publish(&format!("vdev-{slot}"), &format!("0000:00:{slot:02x}.00"));
        }
        machine
    }

    fn publish(&mut self, node: &str, value: &str) {
        self.nodes.insert(format!("{BACKEND}/{node}"), value.into());
    }

    /// pciback's state changes, and the watch fires.
    fn set_state(&mut self, state: &str) {
        self.publish("state", state);
        if self.watched.is_some() {
            self.pci.notice();
        }
    }

    fn node(&self, path: &str) -> &str {
        self.nodes.get(path).map_or("", String::as_str)
    }

    /// Does one job, as the store would.
    fn do_job(&mut self) -> bool {
        let Some(job) = self.pci.next_job() else { return false };
        assert!(self.pci.next_job().is_none(), "one job at a time");
        let mut answers = Answers::new();
        let result = self.failure.take().map_or_else(|| self.perform(&job, &mut answers), Err);
        self.pci.job_done(&mut self.hal, result, &answers);
        true
    }

    fn perform(&mut self, job: &Job, answers: &mut Answers) -> Result<(), StoreError> {
        let path = |node: &str| format!("{}/{node}", job.base);
        if let Some(guard) = &job.guard {
            let state = XenbusState::parse(self.node(&path(&guard.node)));
            if !guard.states.contains(&state) {
                return Err(StoreError::Gone);
            }
        }
        for step in &job.steps {
            let answer = match step {
                Step::Read(node) => {
                    let value =
                        self.nodes.get(&path(node)).map(|text| Value::try_from(text.as_str()).unwrap());
                    value.ok_or(StoreError::NotFound)
                }
                Step::Write(node, value) => {
                    assert!(job.guard.is_some(), "a directory that was removed is not made again");
                    self.nodes.insert(path(node), value.as_str().into());
                    Ok(Value::new())
                }
                Step::Watch(node, token) => {
                    assert_eq!(token, TOKEN);
                    self.watched = Some(path(node));
                    // A watch fires once when it is set, before or after the job is done.
                    self.pci.notice();
                    Ok(Value::new())
                }
                Step::Remove(_) | Step::List(_) | Step::Unwatch(..) => unimplemented!(),
            };
            answers.push(answer).unwrap();
        }
        Ok(())
    }

    /// Runs until nothing happens any more. pciback connects as Linux's does: once we are at 3.
    fn run(&mut self) {
        for _ in 0..500 {
            let mut active = self.do_job();
            if self.node("device/pci/0/state") == "3"
                && ["1", "2", "3"].contains(&self.node(&format!("{BACKEND}/state")))
            {
                self.set_state("4");
                active = true;
            }
            if let Some(found) = self.pci.turn(&mut self.hal, self.now) {
                self.found.push(found).unwrap();
                active = true;
            }
            active |= self.pciback.step(self.hal.frame);
            if !active {
                return;
            }
        }
        panic!("pcifront does not come to rest: {:?}", self.pci);
    }

    fn reason(&self) -> String {
        self.pci.none_reason().map_or_else(String::new, |refusal| refusal.to_string())
    }
}

fn nvme() -> Function {
    Function::nvme(0xfebd_0000, 55)
}

/// The one function's fault, after everything has settled.
fn fault(function: Function) -> Option<Fault> {
    let mut machine = Machine::new(&[function]);
    machine.run();
    assert!(machine.pci.settled());
    match machine.pci.none_reason() {
        Some(Refusal::Function(_, _, fault)) => {
            assert!(machine.found.is_empty());
            assert_eq!(machine.pciback.functions[0].command(), 0, "what is not used stays off the bus");
            Some(fault)
        }
        Some(other) => panic!("{other}"),
        None => {
            assert_eq!(machine.found.len(), 1);
            None
        }
    }
}

/// The one function's interrupt: it is ready all the same.
fn pirq(function: Function) -> Option<Pirq> {
    let mut machine = Machine::new(&[function]);
    machine.run();
    assert!(machine.pci.settled() && machine.pci.none_reason().is_none());
    machine.found[0].pirq
}

#[test]
fn an_nvme_controller_is_readied() {
    let mut machine = Machine::new(&[nvme()]);
    machine.run();
    let expected = Found {
        address: Address::parse("0000:00:00.0").unwrap(),
        kind: DeviceKind::Nvme,
        bar: BusAddr(0xfebd_0000),
        bar_len: 0x4000,
        pirq: Some(Pirq(55)),
    };
    assert_eq!(machine.found, [expected]);
    assert!(machine.pci.settled() && machine.pci.none_reason().is_none());
    for (node, value) in [("pci-op-ref", "11"), ("event-channel", "9"), ("magic", "7"), ("state", "4")] {
        assert_eq!(machine.node(&format!("device/pci/0/{node}")), value);
    }
    assert_eq!(machine.pci.port(), Some(PORT));
    assert_eq!(machine.pciback.functions[0].command(), 0b110, "memory decoding and bus mastering");
    assert!(machine.pciback.functions[0].msix);
    assert_eq!(machine.pci.deadline(), None);
}

#[test]
fn what_the_log_says_of_it() {
    let ready = |interrupt| probe::Ready {
        found: Found {
            address: Address::parse("0000:00:00.0").unwrap(),
            kind: DeviceKind::Nvme,
            bar: BusAddr(0xfebd_0000),
            bar_len: 0x4000,
            pirq: None,
        },
        identity: Identity {
            ids: crate::wire::pci::Ids { vendor: 0x1b36, device: 0x10 },
            class: Class::NVME,
        },
        interrupt,
    };
    assert_eq!(
        ready(Ok(Pirq(55))).to_string(),
        "pci 0000:00:00.0: 1b36:0010 class 010802, BAR0 16 KiB at 0xfebd0000, MSI-X pirq 55"
    );
    assert_eq!(
        ready(Err(probe::NoMsix::Refused(OperationError(-6)))).to_string(),
        "pci 0000:00:00.0: 1b36:0010 class 010802, BAR0 16 KiB at 0xfebd0000, \
         no MSI-X: errno (-6); completions are polled"
    );
}

#[test]
fn a_64_bit_bar_above_4_gib() {
    let mut function = Function::nvme(0x38_0000_0000_0000, 55);
    function.bar_len = 8 << 30;
    let mut machine = Machine::new(&[function]);
    machine.run();
    assert_eq!((machine.found[0].bar, machine.found[0].bar_len), (BusAddr(0x38_0000_0000_0000), 8 << 30));
}

#[test]
fn sizing_leaves_the_bar_as_it_was() {
    let mut machine = Machine::new(&[Function::nvme(0x12_3456_0000, 55)]);
    machine.run();
    let page = machine.hal.frame.shared();
    for (at, value) in [(register::BAR0, 0x3456_0004), (register::BAR1, 0x12)] {
        crate::wire::pciif::post(&page, machine.found[0].address, Operation::Read(at));
        assert!(machine.pciback.step(machine.hal.frame));
        assert_eq!(crate::wire::pciif::reply(&page).unwrap().unwrap().value, value);
    }
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
    let slots: std::vec::Vec<_> = machine.found.iter().map(|found| found.address.slot).collect();
    assert_eq!(slots, [0, 2]);
    assert_eq!(machine.reason(), "pci 0000:00:01.0 (1234:5678, class 020000) has no driver");
    assert_eq!(machine.pciback.functions[1].command(), 0, "what has no driver stays off the bus");
}

#[test]
fn functions_that_cannot_be_used() {
    let with = |change: fn(&mut Function)| {
        let mut function = nvme();
        change(&mut function);
        fault(function)
    };
    assert_eq!(with(|_| ()), None);
    assert_eq!(with(|f| f.words[0] = u32::MAX), Some(Fault::Absent));
    assert_eq!(with(|f| f.words[3] = 0x0001_0000), Some(Fault::Layout(1)));
    assert_eq!(with(|f| f.words[3] = 0x0080_0000), None, "more functions in the slot do not matter");
    assert_eq!(with(|f| f.bar_len = 0x1000), Some(Fault::Short));
    assert_eq!(with(|f| f.words[4] = 0xe001), Some(Fault::Bar(BarError::Ports)));
    assert_eq!(with(|f| f.words[4] = 0b100), Some(Fault::Bar(BarError::Absent)));
    assert_eq!(with(|f| f.bar_len = 0x1_0001_0000), Some(Fault::Bar(BarError::Impossible)));
}

#[test]
fn an_operation_that_pciback_refuses() {
    let mut machine = Machine::new(&[nvme()]);
    machine.publish("vdev-0", "0000:00:03.00");
    machine.run();
    assert!(machine.pci.settled() && machine.found.is_empty());
    let reason = "pci 0000:00:03.0 cannot be used: reading configuration at 0x00: device not found (-1)";
    assert_eq!(machine.reason(), reason);
}

#[test]
fn msix_tables_must_not_lie_among_the_registers() {
    let with = |table, pending| {
        let mut function = nvme();
        function.words[MSIX as usize / 4 + 1] = table;
        function.words[MSIX as usize / 4 + 2] = pending;
        fault(function)
    };
    assert_eq!(with(0x2000, 0x3000), None);
    assert_eq!(with(0x1ff8, 0x3000), Some(Fault::Covered));
    assert_eq!(with(0x2000, 0x1800), Some(Fault::Covered));
    assert_eq!(with(0x0004, 0x1804), None, "in BAR4 they disturb nobody");
}

#[test]
fn without_msix_a_function_is_ready_all_the_same() {
    let with = |change: fn(&mut Function)| {
        let mut function = nvme();
        change(&mut function);
        pirq(function)
    };
    assert_eq!(with(|_| ()), Some(Pirq(55)));
    assert_eq!(with(|f| f.words[1] = 0), None, "no capabilities");
    assert_eq!(with(|f| f.words[32] = 1), None, "none of them is MSI-X");
    assert_eq!(with(|f| f.words[32] = 0x8001), None, "a list that never ends");
    assert_eq!(with(|f| f.words[32] = 0xfc01), None, "a list that leads into the void");
    assert_eq!(with(|f| f.msix_failure = Some((-6, 0))), None);
    assert_eq!(with(|f| f.msix_failure = Some((0, 3))), None);
    assert_eq!(with(|f| f.pirq = 0), None);
}

#[test]
fn msix_cut_off_by_the_end_of_the_space_is_none() {
    for (at, expected) in [(0xf4_u8, Some(Pirq(55))), (0xf8, None), (0xfc, None)] {
        let mut function = nvme();
        function.words[32] = 1 | u32::from(at) << 8;
        function.words[usize::from(at) / 4] = 0x0011;
        for word in usize::from(at) / 4 + 1..64 {
            function.words[word] = 0x2000;
        }
        assert_eq!(pirq(function), expected);
    }
}

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
    assert!(machine.found.is_empty());
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
fn it_waits_for_pciback_to_connect() {
    let mut machine = Machine::new(&[nvme()]);
    machine.publish("state", "7");
    for state in ["1", "2", "3", "8"] {
        while machine.do_job() {}
        machine.publish("state", state);
        machine.pci.notice();
        while machine.do_job() {}
        assert_eq!(machine.node("device/pci/0/state"), "3");
        assert!(!machine.pci.settled() && machine.pci.next_job().is_none());
    }
    assert_eq!(machine.watched.as_deref(), Some("/local/domain/0/backend/pci/5/0/state"));
    machine.set_state("4");
    machine.run();
    assert_eq!(machine.found.len(), 1);
}

#[test]
fn pciback_that_closes_is_not_waited_for() {
    for state in ["5", "6", "", "x"] {
        let mut machine = Machine::new(&[nvme()]);
        machine.publish("state", state);
        machine.run();
        assert!(machine.pci.settled());
        assert_eq!(machine.reason(), "pci: pciback has closed the devices");
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
        assert!(machine.pci.settled() && machine.found.is_empty(), "{path} {value:?}");
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
    assert_eq!(machine.found.len(), 1);
    assert_eq!(machine.reason(), "pci: more than 15 functions, the others are not used");
}

#[test]
fn any_job_can_fail() {
    // Of the jobs only the one that waits for pciback may be done more than once.
    for job in 0..6 {
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
            assert!(machine.pci.settled() && machine.found.is_empty(), "job {job}");
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
        assert!(machine.pci.settled() && machine.found.is_empty());
        assert_eq!(machine.reason(), reason);
    }
}

#[test]
fn any_configuration_space_comes_to_an_end() {
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 32) as u32
    };
    for _ in 0..5_000 {
        let mut function = nvme();
        for _ in 0..1 + random() % 6 {
            function.words[random() as usize % 64] = random();
        }
        function.bar_len = u64::from(random()) << (random() % 40);
        let mut machine = Machine::new(&[function]);
        machine.run();
        assert!(machine.pci.settled());
        assert_eq!(machine.found.is_empty(), machine.pci.none_reason().is_some());
    }
}
