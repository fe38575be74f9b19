//! What frontends do besides reading and writing: drivers come and go, connections start again, guests are paused,
//! saved and restored.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{A_MOMENT, REGION, World, XVDB, region};
use crate::fio;
use crate::machine::{Linux, NAME, Platter, poll};
use crate::oracle::Expected;

/// A guest's memory is written to a file and read back.
const SAVE_LIMIT: Duration = Duration::from_secs(300);
/// Requests in a ring of one page.
const RING: u32 = 32;

/// The driver is unloaded: the disk's connection goes, its directory stays. Loaded again, it is served as before.
pub(super) fn driver_unloaded_and_loaded(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    alice.write_line("xvdb", 8..16, "before")?;
    let vbd = Nodes::of(&platter, alice)?;
    world.step("alice unloads her disk driver");
    alice.run("echo vbd-51728 > /sys/bus/xen/drivers/vbd/unbind && rmmod xen_blkfront")?;
    vbd.wait_ours(world, 6)?;
    // To Linux a device that has closed stays so; one whose directory is new is a new device.
    world.machine().dom0(&format!("xenstore-rm {}", vbd.theirs))?;
    alice.run("while [ -e /sys/bus/xen/devices/vbd-51728 ]; do sleep 0.1; done")?;
    vbd.make_theirs(world, &platter, alice)?;
    vbd.wait_ours(world, 2)?;
    world.step("alice loads it again");
    alice.run("insmod /modules/xen-blkfront.ko")?;
    vbd.wait_ours(world, 4)?;
    alice.wait_disk("xvdb")?;
    alice.check_line("xvdb", 8..16, "before")?;
    alice.write_line("xvdb", 16..24, "after")?;
    alice.detach("xvdb")?;
    Expected::untouched(&disk).line(8..16, "before").line(16..24, "after").check()
}

/// A frontend that starts again while it is connected is connected again, with requests in its ring; fio notices
/// nothing. So is one that gives another ring and takes that back.
pub(super) fn starts_again_while_connected(world: &World) -> Result<()> {
    const ROUNDS: u32 = 3;
    let (platter, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    let vbd = Nodes::of(&platter, alice)?;
    let rounds = fio::keep_verifying(alice, "xvdb", REGION.0, REGION.1)?;
    for round in 1..=ROUNDS {
        world.step(&format!("the frontend is at 1, and at 4 again: {round} of {ROUNDS}"));
        vbd.write_theirs(world, "state", "1")?;
        vbd.wait_ours(world, 2)?;
        vbd.write_theirs(world, "state", "4")?;
        vbd.wait_ours(world, 4)?;
        rounds.wait(0)?;
    }
    world.step("the frontend says another ring, and then its own");
    let ring = world.machine().dom0(&format!("xenstore-read {}/ring-ref", vbd.theirs))?;
    // By now InitWait lasts for most of a second: ours is at 2 long before the ring is looked at.
    vbd.write_theirs(world, "ring-ref", "4000000")?;
    vbd.write_theirs(world, "state", "3")?;
    vbd.wait_ours(world, 2)?;
    vbd.write_theirs(world, "ring-ref", &ring)?;
    vbd.wait_ours(world, 4)?;
    vbd.write_theirs(world, "state", "4")?;
    rounds.wait(1)?;
    rounds.stop()?;
    alice.detach("xvdb")?;
    region(&disk).check()
}

/// A frontend that is ready before we offer anything, as one that was resumed may be, is served all the same.
pub(super) fn ready_before_us(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    let vbd = Nodes::of(&platter, alice)?;
    let rounds = fio::keep_verifying(alice, "xvdb", REGION.0, REGION.1)?;
    world.step("platter wakes up to a new directory and a frontend at 3");
    let from = platter.log().len();
    world.machine().dom0(&format!("xl pause {NAME}"))?;
    world.machine().dom0(&format!("xenstore-write {}/state 1", vbd.ours))?;
    vbd.write_theirs(world, "state", "3")?;
    world.machine().dom0(&format!("xl unpause {NAME}"))?;
    platter.wait_line(from, &["attached anew"], A_MOMENT)?;
    platter.wait_line(from, &["InitWait -> Connected"], A_MOMENT)?;
    vbd.write_theirs(world, "state", "4")?;
    rounds.wait(1)?;
    rounds.stop()?;
    alice.detach("xvdb")?;
    region(&disk).check()
}

/// A guest that is paused with a full ring disturbs nobody, and goes on where it was.
pub(super) fn paused_with_a_full_ring(world: &World) -> Result<()> {
    let (_, alice, bob) = (world.platter()?, world.alice()?, world.bob()?);
    let (first, second) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    alice.attach("xvdb", NAME, &first.target())?;
    bob.attach("xvdb", NAME, &second.target())?;
    world.step("alice is paused with a full ring, bob verifies");
    // Without an answer it fills up, if the round has only begun: near its end there are too few requests left.
    world.machine().dom0(&format!("xl pause {NAME}"))?;
    let hers = fio::keep_reading(alice, "xvdb")?;
    hers.wait_in_flight(RING)?;
    world.machine().dom0(&format!("xl pause {} && xl unpause {NAME}", alice.name()))?;
    let his = fio::keep_verifying(bob, "xvdb", REGION.0, REGION.1)?;
    his.wait(1)?;
    world.step("alice goes on");
    world.machine().dom0(&format!("xl unpause {}", alice.name()))?;
    hers.wait(0)?;
    hers.stop()?;
    fio::verify(alice, "xvdb", REGION.0, REGION.1)?;
    his.stop()?;
    alice.detach("xvdb")?;
    bob.detach("xvdb")?;
    world.step("the host reads both disks");
    region(&first).check()?;
    region(&second).check()
}

/// `xl save` and `xl restore` in the middle of I/O: what was written is there, and fio goes on in the new domain.
pub(super) fn saved_and_restored(world: &World) -> Result<()> {
    let alice = world.alice()?;
    saved(world, || {
        let before = alice.id()?;
        let name = alice.name();
        world.step("xl save and xl restore");
        let script = format!("xl save {name} /tmp/{name} && xl restore /tmp/{name} && rm /tmp/{name}");
        world.machine().dom0_answer(&script, SAVE_LIMIT)?.success("dom0", &script)?;
        ensure!(alice.id()? != before, "alice was not restored into a new domain");
        alice.find_terminal()
    })
}

/// `xl save -c`: the guest is suspended, and carries on where it is.
pub(super) fn saved_and_carried_on(world: &World) -> Result<()> {
    let alice = world.alice()?;
    saved(world, || {
        let name = alice.name();
        world.step("xl save -c");
        let script = format!("xl save -c {name} /tmp/{name} && rm /tmp/{name}");
        world.machine().dom0_answer(&script, SAVE_LIMIT)?.success("dom0", &script).map(drop)
    })
}

fn saved(world: &World, save: impl FnOnce() -> Result<()>) -> Result<()> {
    let (_, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    alice.write_line("xvdb", 8..16, "before")?;
    let rounds = fio::keep_verifying(alice, "xvdb", REGION.0, REGION.1)?;
    save()?;
    world.step("alice verifies after it");
    rounds.wait(1)?;
    rounds.stop()?;
    alice.check_line("xvdb", 8..16, "before")?;
    alice.write_line("xvdb", 16..24, "after")?;
    alice.detach("xvdb")?;
    region(&disk).line(8..16, "before").line(16..24, "after").check()
}

/// The xenstore directories of xvdb.
struct Nodes {
    ours: String,
    theirs: String,
}

impl Nodes {
    fn of(platter: &Platter, guest: &Linux) -> Result<Self> {
        let id = guest.id()?;
        Ok(Self { ours: platter.backend(id, XVDB), theirs: format!("/local/domain/{id}/device/vbd/{XVDB}") })
    }

    /// Makes the frontend's directory as libxl does.
    fn make_theirs(&self, world: &World, platter: &Platter, guest: &Linux) -> Result<()> {
        let (theirs, ours, backend, guest) = (&self.theirs, &self.ours, platter.id(), guest.id()?);
        // What is made below a node has its permissions.
        world.machine().dom0(&format!(
            "xenstore-write {theirs} '' && xenstore-chmod {theirs} n{guest} r{backend} && \
             for node in backend={ours} backend-id={backend} virtual-device={XVDB} device-type=disk trusted=1 \
             protocol=x86_64-abi state=1; do xenstore-write {theirs}/${{node%=*}} ${{node#*=}} || exit 1; done"
        ))?;
        Ok(())
    }

    fn read_ours(&self, world: &World, node: &str) -> Result<String> {
        world.machine().dom0(&format!("xenstore-read {}/{node}", self.ours))
    }

    fn write_theirs(&self, world: &World, node: &str, value: &str) -> Result<()> {
        world.machine().dom0(&format!("xenstore-write {}/{node} {value}", self.theirs)).map(drop)
    }

    fn wait_ours(&self, world: &World, state: u32) -> Result<()> {
        poll(&format!("backend state {state}"), A_MOMENT, || {
            Ok((self.read_ours(world, "state")? == state.to_string()).then_some(()))
        })
    }
}
