//! The events of a storm as they come over the world: each finds a guest or a device that it can
//! happen to, or passes.

use core::time::Duration;

use platter::sim::frontend::{Frontend, back_path, front_path};
use platter::sim::lending::{Manner, PciJobId};
use platter::sim::machine::{DOM0, DRIVER};
use platter::sim::nvme::Settings;
use platter::sim::requests::Load;
use platter::sim::rng::Rng;
use platter::sim::shadow::Shadow;
use platter::sim::toolstack::{Disk, JobId};
use platter::sim::world::State;
use platter::units::DomId;
use platter::wire::nvme::command::ErrorStatus;

use super::script::{Cue, Event, Fault};
use super::{FAULTY, NAMESPACES, VICTIM};
use crate::journal::{self, note};

/// Sectors that a guest uses of its disk.
const USED: u64 = 2_000;

/// Namespace not ready (NVMe 1.4, figure 127): the command may succeed the next time.
const BUSY: ErrorStatus = ErrorStatus { kind: 0, code: 0x82, do_not_retry: false };

/// The longest that a command takes of a controller that has become slow.
const SLOW: Duration = Duration::from_secs(4);

/// How long guests on a disk that fails wait for their answers.
const PATIENCE: Duration = Duration::from_secs(300);

/// The first device number of a guest; the others follow in steps of 16, as xvda, xvdb, …
const FIRST_DEV: u32 = 51712;

/// Devices that a guest has at most.
const DEVS: u32 = 4;

/// Lets an event happen, and notes to whom.
pub(crate) fn happen(state: &mut State, cue: Cue) {
    let happened = begin(state, cue.event, &mut Rng::new(cue.pick));
    journal::set_now(state.machine.now);
    note(format_args!("{:?}: {}", cue.event, happened.as_deref().unwrap_or("finds nobody")));
}

fn begin(state: &mut State, event: Event, rng: &mut Rng) -> Option<String> {
    match event {
        Event::Create { disks } => create(state, rng, disks),
        Event::Attach { readonly } => {
            let guest = guest(state, rng)?;
            attach(state, rng, guest, readonly)
        }
        Event::AttachDom0 if state.toolstack.is_busy(DOM0) => None,
        Event::AttachDom0 => attach(state, rng, DOM0, false),
        Event::AttachNothing | Event::AttachQcow => attach_in_vain(state, rng, event),
        Event::Destroy => {
            let guest = any_guest(state, rng)?;
            state.destroy(guest);
            Some(format!("guest {guest}"))
        }
        Event::ShutDown | Event::Reboot | Event::Migrate | Event::Pause { .. } => {
            let guest = guest(state, rng).filter(|guest| *guest != DOM0)?;
            Some(format!("guest {guest}{}", end(state, rng, guest, event)))
        }
        Event::AttachTaken => attach_taken(state, rng),
        // Controllers are numbered as they come: until then, the other one would be the first.
        Event::PciDetach { .. } if !is_ready(state) => None,
        Event::PciDetach { manner } => {
            replug(state, manner);
            Some("nvme0".into())
        }
        // The nodes for statistics are written once, at the start, and not later.
        Event::Fault(Fault::Quota) if !has_statistics(state) => None,
        Event::Fault(fault) => {
            fail(state, fault);
            Some("from now on".into())
        }
        Event::Uproar => {
            uproar(state, 0);
            Some("for a second".into())
        }
        Event::Heal => {
            heal(state);
            Some("from now on".into())
        }
        Event::Detach { .. }
        | Event::DetachTwice
        | Event::BackToBack { .. }
        | Event::Replace
        | Event::Renew
        | Event::Reload
        | Event::Kexec
        | Event::Restart
        | Event::Slam { .. } => {
            let place = device(state, rng)?;
            let (guest, dev) = (state.frontends[place].guest(), state.frontends[place].dev());
            // Requests are in flight when it happens, or nearly so, or were just answered.
            state.frontends[place].do_more(40);
            let soon = state.machine.now + Duration::from_micros(rng.within(0..3_000));
            state.at(soon, move |state| happen_to(state, place, event));
            Some(format!("{guest}/{dev}"))
        }
    }
}

/// The events of one device.
fn happen_to(state: &mut State, place: usize, event: Event) {
    let now = state.machine.now;
    let frontend = &mut state.frontends[place];
    let (guest, dev) = (frontend.guest(), frontend.dev());
    if !frontend.is_alive() || frontend.is_paused() {
        return;
    }
    match event {
        Event::Detach { force } => _ = state.detach(guest, dev, force),
        Event::DetachTwice => {
            state.detach(guest, dev, false);
            state.at(now + Duration::from_secs(1), move |state| {
                if state.toolstack.is_busy(guest) {
                    state.detach(guest, dev, false);
                }
            });
        }
        Event::BackToBack { times } => back_to_back(state, place, times),
        Event::Replace if !state.toolstack.is_busy(guest) => {
            frontend.vanish();
            attach_again(state, place);
        }
        Event::Renew => frontend.renew(&mut state.machine),
        Event::Reload => frontend.close(now, true),
        Event::Kexec => frontend.kexec(&mut state.machine),
        Event::Restart => frontend.restart(&mut state.machine),
        Event::Slam { reopens } => frontend.slam(&mut state.machine, reopens),
        _ => {}
    }
}

/// The events of a whole guest; says what more there is to know.
fn end(state: &mut State, rng: &mut Rng, guest: DomId, event: Event) -> String {
    let now = state.machine.now;
    for frontend in state.frontends.iter_mut().filter(|frontend| frontend.guest() == guest) {
        frontend.do_more(20);
    }
    let soon = now + Duration::from_micros(rng.within(0..3_000));
    let new = state.new_domain();
    let act = move |state: &mut State| match event {
        _ if state.toolstack.is_busy(guest) || !exists(state, guest) => {}
        Event::Reboot => state.reboot(guest, new),
        Event::Migrate => state.migrate(guest, new),
        Event::Pause { full, millis } => {
            state.pause(guest, full);
            state.at(soon + Duration::from_millis(millis), move |state| state.unpause(guest));
        }
        _ => {
            for frontend in state.frontends.iter_mut().filter(|frontend| frontend.guest() == guest) {
                frontend.close(soon, false);
            }
            state.at(soon + Duration::from_millis(100), move |state| _ = state.destroy(guest));
        }
    };
    state.at(soon, act);
    if matches!(event, Event::Reboot | Event::Migrate) { format!(" as {new}") } else { String::new() }
}

fn create(state: &mut State, rng: &mut Rng, disks: usize) -> Option<String> {
    let guest = state.new_domain();
    let mut frontends: Vec<Frontend> = Vec::new();
    for dev in (FIRST_DEV..).step_by(16).take(disks) {
        let taken: Vec<&str> = frontends.iter().map(Frontend::target).collect();
        let Some(target) = free_target(state, rng, &taken) else { break };
        frontends.push(Frontend::new(&Disk::new(guest, dev, &target), load(rng), shadow(state, &target)));
    }
    let targets: Vec<&str> = frontends.iter().map(Frontend::target).collect();
    let text = format!("guest {guest} with {}", targets.join(", "));
    if frontends.is_empty() {
        return None;
    }
    state.create(guest, frontends);
    Some(text)
}

fn attach(state: &mut State, rng: &mut Rng, guest: DomId, readonly: bool) -> Option<String> {
    let dev = free_dev(state, guest)?;
    let target = free_target(state, rng, &[])?;
    let disk = Disk { readonly, ..Disk::new(guest, dev, &target) };
    let shadow = shadow(state, &target);
    let (_, place) = state.attach(&disk, Load { writes: !readonly, ..load(rng) }, shadow);
    if rng.one_in(4) {
        state.frontends[place].hurry();
    }
    Some(format!("{guest}/{dev} {target}"))
}

fn attach_in_vain(state: &mut State, rng: &mut Rng, event: Event) -> Option<String> {
    let guest = guest(state, rng)?;
    let dev = free_dev(state, guest)?;
    let disk = Disk::new(guest, dev, "/dev/nvme7n1");
    if event == Event::AttachQcow {
        state.toolstack.attach_qdisk(&mut state.machine, &disk);
    } else {
        let (job, _) = state.attach(&disk, load(rng), Shadow::default());
        state.after(&[job], move |state| _ = state.detach(guest, dev, false));
    }
    Some(format!("{guest}/{dev}"))
}

/// Another guest has the disk: this one gets it when that one has just lost it, and does nothing
/// with it then.
fn attach_taken(state: &mut State, rng: &mut Rng) -> Option<String> {
    let guest = guest(state, rng)?;
    let dev = free_dev(state, guest)?;
    let target = choose(rng, guests(state).map(|frontend| frontend.target().to_owned()))?;
    let load = Load { requests: 0, sectors: 0, ..load(rng) };
    let (job, _) = state.attach(&Disk::new(guest, dev, &target), load, Shadow::default());
    state.after(&[job], move |state| _ = state.detach(guest, dev, false));
    Some(format!("{guest}/{dev} {target}"))
}

/// `xl pci-detach` and, when that is done, `xl pci-attach`; unless that is under way.
pub(crate) fn replug(state: &mut State, manner: Manner) {
    let jobs: Vec<_> = state.lent.lending.outcomes().collect();
    if jobs.len().is_multiple_of(2) && jobs.iter().all(Option::is_some) {
        let job = state.lent.detach(&mut state.machine, FAULTY, manner);
        plug_in(state, job);
    }
}

fn plug_in(state: &mut State, detach: PciJobId) {
    if state.lent.lending.outcome(detach).is_some() {
        state.lent.attach(&mut state.machine, FAULTY);
    } else {
        let later = state.machine.now + Duration::from_millis(300);
        state.at(later, move |state| plug_in(state, detach));
    }
}

/// Detaches the device and attaches it again when it is off, so many times.
fn back_to_back(state: &mut State, place: usize, times: u32) {
    let (guest, dev) = (state.frontends[place].guest(), state.frontends[place].dev());
    let job = state.detach(guest, dev, false);
    state.after(&[job], move |state| {
        if exists(state, guest) && !state.toolstack.is_busy(guest) {
            let (job, place) = attach_again(state, place);
            if times > 1 {
                state.after(&[job], move |state| back_to_back(state, place, times - 1));
            }
        }
    });
}

fn attach_again(state: &mut State, place: usize) -> (JobId, usize) {
    let disk = state.frontends[place].disk().clone();
    let shadow = shadow(state, &disk.target);
    let load = state.frontends[place].load().clone();
    state.attach(&disk, Load { requests: 40, ..load }, shadow)
}

/// Writes nodes that we watch again, as they were.
fn uproar(state: &mut State, times: usize) {
    const TIMES: usize = 200;
    let paths = |frontend: &Frontend| {
        let (guest, dev) = (frontend.guest(), frontend.dev());
        [format!("{}/online", back_path(guest, dev)), format!("{}/state", front_path(guest, dev))]
    };
    let mut nodes: Vec<String> = guests(state).flat_map(paths).collect();
    nodes.push("/local/domain/3/control/sysrq".into());
    let node = nodes.swap_remove(times % nodes.len());
    if let Some(text) = state.machine.tree.text(&node).map(str::to_owned) {
        state.machine.tree.write(&node, text);
    }
    if times < TIMES {
        let next = state.machine.now + Duration::from_millis(5);
        state.at(next, move |state| uproar(state, times + 1));
    }
}

fn fail(state: &mut State, fault: Fault) {
    let owned = state.machine.tree.owned(DRIVER);
    if fault == Fault::Slow {
        state.lent.controller(FAULTY).slow_down(Duration::ZERO..SLOW);
    }
    let faults = &mut state.lent.controller(FAULTY).faults;
    match fault {
        Fault::Errors => faults.error = 20,
        Fault::Busy => (faults.error, faults.statuses) = (10, vec![BUSY]),
        Fault::Fatal => faults.fatal = true,
        Fault::Stuck => (faults.unanswered, faults.never_disabled) = (1, true),
        Fault::LostInterrupts => faults.lost_interrupt = 5,
        Fault::Doubled => faults.doubled = 20,
        Fault::Invented => faults.invented = 10,
        Fault::Unanswered => faults.unanswered = 40,
        Fault::Slow => {}
        Fault::Lame => (faults.fatal, faults.never_ready) = (true, true),
        Fault::Gone => faults.gone = true,
        Fault::Maps => (state.failing_maps, state.failing_rings) = (30, 10),
        Fault::Conflicts => state.xenstored.conflicts = 3,
        Fault::Quota => state.machine.tree.quota.0 = owned + 3,
    }
}

/// Whether the image has told all domains what it serves.
fn is_ready(state: &State) -> bool {
    state.machine.tree.text("/local/domain/3/data/ready").is_some()
}

/// Whether the image has written the last of its nodes for statistics.
fn has_statistics(state: &State) -> bool {
    state.machine.tree.exists("/local/domain/3/data/statistics/discard")
}

fn heal(state: &mut State) {
    state.lent.controller(FAULTY).slow_down(Settings::new(0).latency);
    let faults = &mut state.lent.controller(FAULTY).faults;
    (faults.error, faults.lost_interrupt, faults.doubled) = (0, 0, 0);
    (faults.invented, faults.unanswered, faults.never_disabled) = (0, 0, false);
    (faults.never_ready, faults.gone) = (false, false);
    faults.statuses.clear();
    (state.failing_maps, state.failing_rings) = (0, 0);
    (state.xenstored.conflicts, state.machine.tree.quota.0) = (0, 1000);
}

/// Many requests at a time, or one.
fn load(rng: &mut Rng) -> Load {
    let depth = if rng.one_in(4) { 1 } else { 32 };
    Load { depth, may_fail: true, patience: PATIENCE, ..Load::new(0, USED, 40) }
}

fn exists(state: &State, guest: DomId) -> bool {
    state.machine.tree.exists(&format!("/local/domain/{guest}"))
}

/// A guest that runs, and whose devices nobody is at work on.
fn guest(state: &State, rng: &mut Rng) -> Option<DomId> {
    let is_idle = |frontend: &&Frontend| !frontend.is_paused() && !state.toolstack.is_busy(frontend.guest());
    choose(rng, guests(state).filter(is_idle).map(Frontend::guest))
}

/// A guest in any condition.
fn any_guest(state: &State, rng: &mut Rng) -> Option<DomId> {
    choose(rng, guests(state).map(Frontend::guest)).filter(|guest| *guest != DOM0 && exists(state, *guest))
}

/// A device that nobody is at work on, in a guest that runs.
fn device(state: &State, rng: &mut Rng) -> Option<usize> {
    let devices = state.frontends.iter().enumerate().filter(|(_, frontend)| {
        let guest = frontend.guest();
        guest != VICTIM && frontend.is_alive() && !frontend.is_paused() && !state.toolstack.is_busy(guest)
    });
    choose(rng, devices.map(|(place, _)| place))
}

fn guests(state: &State) -> impl Iterator<Item = &Frontend> {
    state.frontends.iter().filter(|frontend| frontend.is_alive() && frontend.guest() != VICTIM)
}

fn choose<T>(rng: &mut Rng, from: impl Iterator<Item = T>) -> Option<T> {
    let mut all: Vec<T> = from.collect();
    (!all.is_empty()).then(|| all.swap_remove(rng.index(all.len())))
}

fn free_dev(state: &State, guest: DomId) -> Option<u32> {
    let mut devs = (FIRST_DEV..).step_by(16).take(DEVS as usize);
    let taken = |dev: &u32| guests(state).any(|other| other.guest() == guest && other.dev() == *dev);
    devs.find(|dev| !taken(dev))
}

/// A disk that nobody has, and of whose last guest nothing is left.
fn free_target(state: &State, rng: &mut Rng, taken: &[&str]) -> Option<String> {
    let targets = NAMESPACES.into_iter().enumerate().flat_map(|(controller, namespaces)| {
        (1..=namespaces).map(move |namespace| format!("/dev/nvme{controller}n{namespace}"))
    });
    let has = |frontend: &Frontend, target: &str| {
        let mapped = state.machine.grants.mapped_from(frontend.guest()) > 0;
        frontend.target() == target && (frontend.is_alive() || mapped)
    };
    let is_free = |target: &String| {
        !taken.contains(&target.as_str()) && !state.frontends.iter().any(|frontend| has(frontend, target))
    };
    choose(rng, targets.filter(is_free))
}

/// What was written to a disk by those who had it before.
fn shadow(state: &mut State, target: &str) -> Shadow {
    let had = state.frontends.iter_mut().filter(|frontend| frontend.target() == target);
    let wrote = had.filter_map(|frontend| {
        frontend.unplug(&mut state.machine);
        frontend.shadow().touched().next()?;
        Some(frontend.take_shadow())
    });
    wrote.last().unwrap_or_default()
}
