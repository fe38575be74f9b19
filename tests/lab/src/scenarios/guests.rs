//! Guests come and go in the middle of I/O, with several disks, while others are served.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{A_MOMENT, REGION, World, XVDB, region};
use crate::fio;
use crate::machine::{Disk, Linux, NAME, attach_command, poll};
use crate::oracle::Expected;

/// Two disks from a guest's configuration are there when it boots, a third comes later, and each gets its own writes.
pub(super) fn boots_with_its_disks(world: &World) -> Result<()> {
    world.platter()?;
    let (first, second) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    let carol = world.carol(&[("xvda", &first), ("xvdb", &second)], "preserve")?;
    carol.write_line("xvda", 100..200, "first of carol")?;
    carol.write_line("xvdb", 200..300, "second of carol")?;
    world.step("a disk is taken away and comes back as another device");
    carol.detach("xvdb")?;
    carol.attach("xvdc", NAME, &second.target())?;
    carol.check_line("xvda", 100..200, "first of carol")?;
    carol.check_line("xvdc", 200..300, "second of carol")?;
    world.step("xl destroy takes both");
    world.machine().dom0(&format!("xl destroy {}", carol.name()))?;
    world.step("the host reads both disks");
    Expected::untouched(&first).line(100..200, "first of carol").check()?;
    Expected::untouched(&second).line(200..300, "second of carol").check()
}

/// `xl shutdown` of a guest in the middle of I/O.
pub(super) fn shut_down_in_mid_io(world: &World) -> Result<()> {
    ends_in_mid_io(world, |carol| world.machine().dom0(&format!("xl shutdown {}", carol.name())).map(drop))
}

/// A guest's kernel panics in the middle of I/O.
pub(super) fn crashes_in_mid_io(world: &World) -> Result<()> {
    ends_in_mid_io(world, |carol| carol.tell("echo c > /proc/sysrq-trigger", A_MOMENT).map(drop))
}

/// `xl destroy` of a guest in the middle of I/O: nobody asks it.
pub(super) fn destroyed_in_mid_io(world: &World) -> Result<()> {
    ends_in_mid_io(world, |carol| world.machine().dom0(&format!("xl destroy {}", carol.name())).map(drop))
}

/// A guest that reboots in the middle of I/O finds its disks again at once, under its new domain number.
pub(super) fn reboots_in_mid_io(world: &World) -> Result<()> {
    beside_bob(world, |disk| {
        let carol = world.carol(&[("xvdb", disk)], "destroy")?;
        let before = carol.id()?;
        fio::keep_verifying(&carol, "xvdb", REGION.0, REGION.1)?;
        world.step("carol reboots");
        let from = carol.said().len();
        carol.tell("reboot -f", A_MOMENT)?;
        carol.wait_up(from)?;
        ensure!(carol.id()? != before, "carol did not reboot");
        world.step("carol verifies after it");
        carol.wait_disk("xvdb")?;
        fio::verify(&carol, "xvdb", REGION.0, REGION.1)?;
        world.machine().dom0(&format!("xl destroy {}", carol.name())).map(drop)
    })
}

/// One vdev attached and detached twenty times back to back, faster than the guest can follow.
pub(super) fn twenty_times_back_to_back(world: &World) -> Result<()> {
    let (_, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    let attach = attach_command(alice.name(), "xvdb", NAME, &disk.target());
    world.step("xl attaches and detaches twenty times");
    let script = format!(
        "for i in $(seq 20); do {attach} && xl block-detach {} xvdb || {{ echo round $i; exit 1; }}; done",
        alice.name()
    );
    world.machine().dom0_answer(&script, Duration::from_secs(240))?.success("dom0", &script)?;
    world.step("the next attach serves");
    alice.attach("xvdb", NAME, &disk.target())?;
    alice.write_line("xvdb", 8..16, "at last")?;
    alice.detach("xvdb")?;
    Expected::untouched(&disk).line(8..16, "at last").check()
}

/// `xl block-detach --force` in the middle of I/O takes the disk without asking the guest, whose other disk stays.
pub(super) fn detached_by_force_in_mid_io(world: &World) -> Result<()> {
    world.platter()?;
    let (first, second) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    let carol = world.carol(&[("xvda", &first), ("xvdb", &second)], "destroy")?;
    fio::keep_verifying(&carol, "xvdb", REGION.0, REGION.1)?;
    world.step("xl block-detach --force");
    world.machine().dom0(&format!("xl block-detach {} xvdb --force", carol.name()))?;
    world.step("her other disk is served");
    carol.write_line("xvda", 8..16, "still here")?;
    carol.check_line("xvda", 8..16, "still here")?;
    world.machine().dom0(&format!("xl destroy {}", carol.name()))?;
    world.step("the host reads both disks");
    Expected::untouched(&first).line(8..16, "still here").check()?;
    region(&second).check()
}

/// Detaching twice at the same time, and what is not attached, harms nobody.
pub(super) fn detached_more_than_once(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    world.step("two detaches at the same time");
    let detach = format!("xl block-detach {} xvdb", alice.name());
    world.machine().dom0(&format!("{detach} & {detach} & wait"))?;
    poll("the end of the disk", A_MOMENT, || {
        let gone = format!("! xenstore-read {}/state", platter.backend(alice.id()?, XVDB));
        Ok((world.machine().dom0_answer(&gone, A_MOMENT)?.code == 0).then_some(()))
    })?;
    world.step("a third finds nothing");
    let third = world.machine().dom0_answer(&detach, A_MOMENT)?;
    ensure!(third.code != 0, "xl block-detach of nothing succeeded");
    world.step("the vdev is free");
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    alice.run("dd if=/dev/xvdb of=/dev/null bs=64k count=16 iflag=direct")?;
    alice.detach("xvdb")
}

/// carol writes and verifies when `end` ends her domain; nobody else notices, and her disk holds her writes only.
fn ends_in_mid_io(world: &World, end: impl FnOnce(&Linux) -> Result<()>) -> Result<()> {
    beside_bob(world, |disk| {
        let carol = world.carol(&[("xvdb", disk)], "destroy")?;
        fio::keep_verifying(&carol, "xvdb", REGION.0, REGION.1)?;
        world.step("carol ends");
        end(&carol)?;
        poll("the end of carol's domain", Duration::from_secs(60), || {
            let domain = world.machine().dom0_answer(&format!("xl domid {}", carol.name()), A_MOMENT)?;
            Ok((domain.code != 0).then_some(()))
        })
    })
}

/// Tells a story on the first disk while bob verifies on the second the whole time.
fn beside_bob(world: &World, tell: impl FnOnce(&Disk) -> Result<()>) -> Result<()> {
    let (_, bob) = (world.platter()?, world.bob()?);
    let (first, second) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    bob.attach("xvdb", NAME, &second.target())?;
    let rounds = fio::keep_verifying(bob, "xvdb", REGION.0, REGION.1)?;
    tell(&first)?;
    world.step("bob goes on");
    rounds.wait(1)?;
    rounds.stop()?;
    bob.detach("xvdb")?;
    world.step("the host reads both disks");
    region(&first).check()?;
    region(&second).check()
}
