//! The simulated controller sees what a driver does wrong with its registers.

use super::*;
use crate::sim::DmaFault;
use crate::units::BusAddr;

/// Memory full of zeroes, and all of it out of reach for writing.
struct Zeroes;

impl Dma for Zeroes {
    fn read(&mut self, _: BusAddr, to: &mut [u8]) -> Result<(), DmaFault> {
        to.fill(0);
        Ok(())
    }

    fn write(&mut self, _: BusAddr, _: &[u8]) -> Result<(), DmaFault> {
        Err(DmaFault)
    }
}

const START: Instant = Instant(0);
const LATER: Instant = Instant(1_000_000_000);
const ENABLE: u32 = CC_CONFIGURATION | CC_ENABLE;

fn off() -> Controller {
    let mut controller = Controller::new(Settings::new(0));
    controller.write32(AQA, 0x0003_0003, START);
    controller.write32(ASQ, 0x1000, START);
    controller.write32(ACQ, 0x2000, START);
    controller
}

fn ready() -> Controller {
    let mut controller = off();
    controller.write32(CC, ENABLE, START);
    controller.step(LATER, &mut Zeroes);
    assert_eq!(controller.read32(CSTS), 1);
    assert_eq!(controller.violations(), [""; 0]);
    controller
}

/// Does it, and wants exactly one violation that says `what`.
fn violates(mut controller: Controller, what: &str, act: impl Fn(&mut Controller)) {
    act(&mut controller);
    let [violation] = controller.violations() else { panic!("{what}: {:?}", controller.violations()) };
    assert!(violation.contains(what), "{violation}");
}

#[test]
fn wrong_ways_to_enable_and_disable_are_violations() {
    violates(off(), "not ready yet", |it| {
        it.write32(CC, ENABLE, START);
        it.write32(CC, 0, START);
    });
    violates(ready(), "not disabled yet", |it| {
        it.write32(CC, 0, LATER);
        it.write32(CC, ENABLE, LATER);
    });
    violates(off(), "configures", |it| it.write32(CC, CC_ENABLE, START));
    violates(off(), "off a page", |it| {
        it.write32(ACQ, 0x2004, START);
        it.write32(CC, ENABLE, START);
    });
    violates(ready(), "admin queues", |it| it.write32(ASQ, 0x5000, LATER));
}

#[test]
fn registers_and_doorbells_that_are_not_there_are_violations() {
    violates(ready(), "reads register 0x24", |it| {
        it.read32(AQA);
    });
    violates(ready(), "writes register 0x8", |it| it.write32(VS, 0, LATER));
    violates(ready(), "INTMS", |it| it.write32(INTMS, 1, LATER));
    violates(off(), "not there", |it| it.write32(DOORBELLS, 1, START));
    violates(ready(), "no queue", |it| it.write32(DOORBELLS + 8, 1, LATER));
    violates(ready(), "beyond the queue", |it| it.write32(DOORBELLS, 4, LATER));
    violates(ready(), "not posted", |it| it.write32(DOORBELLS + 4, 1, LATER));
    violates(ready(), "overruns", |it| {
        it.write32(DOORBELLS, 3, LATER);
        it.write32(DOORBELLS, 1, LATER);
    });
}

#[test]
fn an_id_used_twice_is_a_violation() {
    // Entries of zeroes all have the id 0.
    violates(ready(), "twice", |it| {
        it.write32(DOORBELLS, 2, LATER);
        it.step(LATER, &mut Zeroes);
    });
}

#[test]
fn a_completion_that_cannot_be_written_is_fatal() {
    let mut controller = ready();
    controller.write32(DOORBELLS, 1, LATER);
    controller.step(LATER, &mut Zeroes);
    assert_eq!(controller.read32(CSTS), 1);
    let due = controller.next_event().unwrap();
    controller.step(due, &mut Zeroes);
    assert_eq!(controller.read32(CSTS), 0b11);
}
