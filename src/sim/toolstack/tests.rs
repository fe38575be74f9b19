//! The toolstack by itself, against nodes that the tests write.

use super::*;

const GUEST: DomId = DomId(5);
const DEV: u32 = 51728;

fn attached() -> (Machine, Toolstack, JobId, String) {
    let mut machine = Machine::new(1, 8);
    let mut toolstack = Toolstack::default();
    create_driver_domain(&mut machine);
    let disk = Disk::new(GUEST, DEV, "/dev/nvme0n1");
    let job = toolstack.attach(&mut machine, &disk);
    (machine, toolstack, job, format!("{}/state", back_path(GUEST, DEV)))
}

fn later(machine: &mut Machine, toolstack: &mut Toolstack, wait: Duration) {
    toolstack.notice(machine);
    machine.now = machine.now + wait;
    toolstack.step(machine);
}

#[test]
fn only_state_2_exactly_ends_an_attach_well() {
    let (mut machine, mut toolstack, job, state) = attached();
    machine.tree.write(&state, 4);
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    assert_eq!(toolstack.outcome(job), None);
    later(&mut machine, &mut toolstack, Duration::from_secs(10));
    assert_eq!(toolstack.outcome(job), Some(Outcome::TimedOut));
    let (mut machine, mut toolstack, job, state) = attached();
    machine.tree.write(&state, 2);
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    assert_eq!(toolstack.outcome(job), Some(Outcome::Done));
}

#[test]
fn a_directory_that_goes_away_ends_an_attach_at_once() {
    let (mut machine, mut toolstack, job, _) = attached();
    machine.tree.remove(&back_path(GUEST, DEV));
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    assert_eq!(toolstack.outcome(job), Some(Outcome::Gone));
    assert!(machine.tree.exists(&front_path(GUEST, DEV)), "left for block-detach");
    let job = toolstack.detach(&mut machine, GUEST, DEV, false);
    assert_eq!(toolstack.outcome(job), Some(Outcome::Done));
    assert!(!machine.tree.exists(&front_path(GUEST, DEV)));
}

#[test]
fn a_detach_must_read_6_and_then_see_the_directory_go() {
    let (mut machine, mut toolstack, _, state) = attached();
    let job = toolstack.detach(&mut machine, GUEST, DEV, false);
    assert_eq!(machine.tree.text(&state), Some("5"));
    machine.tree.write(&state, 6);
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    assert_eq!(toolstack.outcome(job), None);
    machine.tree.remove(&back_path(GUEST, DEV));
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    assert_eq!(toolstack.outcome(job), Some(Outcome::Done));
    assert!(!machine.tree.exists("/local/domain/3/backend"));
    let (mut machine, mut toolstack, _, _) = attached();
    let job = toolstack.detach(&mut machine, GUEST, DEV, false);
    machine.tree.remove(&back_path(GUEST, DEV));
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    assert_eq!(toolstack.outcome(job), Some(Outcome::Gone), "6 was never read");
}

#[test]
fn a_destroyed_guest_is_gone_when_its_last_device_is() {
    let (mut machine, mut toolstack, _, state) = attached();
    machine.tree.write("/local/domain/5/name", "guest");
    let jobs = toolstack.destroy(&mut machine, GUEST);
    assert!(!machine.tree.exists(&front_path(GUEST, DEV)));
    machine.tree.write(&state, 6);
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    machine.tree.remove(&back_path(GUEST, DEV));
    assert!(machine.tree.exists("/local/domain/5"));
    later(&mut machine, &mut toolstack, Duration::from_secs(1));
    assert_eq!(toolstack.outcome(jobs[0]), Some(Outcome::Done));
    assert!(!machine.tree.exists("/local/domain/5"));
}
