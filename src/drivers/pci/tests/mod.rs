//! pcifront against a simulated pciback and a store of a few nodes.

mod conversation;
mod hotplug;
mod probing;

use std::collections::BTreeMap;
use std::time::Duration;

use std::vec::Vec;

use super::*;
use crate::hal::{
    Clock, DmaPage, Events, GrantCopy, GrantMap, GrantMapping, GrantedPage, Grants, Memory, MmioRegion,
};
use crate::limits;
use crate::mem::frame::Frame;
use crate::mem::private::PrivatePage;
use crate::sim::pciback::{Function, MSIX, Pciback};
use crate::units::{DomId, GrantRef};
use crate::wire::pci::{BarError, register};
use crate::wire::pciif::Operation;
use crate::wire::xenbus::{Answers, Step, Value, XenbusState};

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

    fn copy(&mut self, _: &mut [GrantCopy]) {
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
    fn free_pages(&self) -> usize {
        unreachable!("nobody asks")
    }

    fn take_page(&mut self) -> Option<DmaPage> {
        (!self.no_page).then(|| DmaPage { page: self.frame.shared(), bus: BusAddr(0x1000) })
    }

    fn return_page(&mut self, _: DmaPage) {
        unimplemented!()
    }

    fn take_private(&mut self) -> Option<PrivatePage> {
        unreachable!("controllers share their pages with devices")
    }

    fn return_private(&mut self, _: PrivatePage) {
        unreachable!("nothing private was taken")
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
    /// The paths that are watched.
    watched: Vec<String>,
    /// What the next job is answered instead of being done.
    failure: Option<StoreError>,
    now: Instant,
    events: Vec<Event>,
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
            watched: Vec::new(),
            failure: None,
            now: Instant(1_000),
            events: Vec::new(),
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
        if self.watched.contains(&format!("{BACKEND}/state")) {
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
                    assert!(!self.watched.contains(&path(node)), "xenstored refuses to watch twice");
                    self.watched.push(path(node));
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
            let mut active = self.pci.deadline().is_some_and(|due| due <= self.now);
            if let Some(event) = self.pci.turn(&mut self.hal, self.now) {
                self.events.push(event);
                active = true;
            }
            active |= self.do_job();
            if self.node("device/pci/0/state") == "3"
                && ["1", "2", "3"].contains(&self.node(&format!("{BACKEND}/state")))
            {
                self.set_state("4");
                active = true;
            }
            active |= self.pciback.step(self.hal.frame);
            if !active {
                return;
            }
        }
        panic!("pcifront does not come to rest: {:?}", self.pci);
    }

    /// The functions that were handed out.
    fn found(&self) -> Vec<Found> {
        let found = |event: &Event| if let Event::Found(found) = event { Some(*found) } else { None };
        self.events.iter().filter_map(found).collect()
    }

    fn reason(&self) -> String {
        self.pci.none_reason().map_or_else(String::new, |refusal| refusal.to_string())
    }
}

fn nvme() -> Function {
    Function::nvme(0xfebd_0000, 55)
}
