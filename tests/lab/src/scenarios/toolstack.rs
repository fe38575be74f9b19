//! The toolstack's more unusual requests: dom0's own disks, directories that were made before or made again, disks
//! for reading only, formats that are not served.

use anyhow::{Result, ensure};

use super::{A_MOMENT, World, XVDB};
use crate::machine::{COMMAND_LIMIT, NAME, Platter, Settings, attach_command, poll};
use crate::oracle::Expected;

/// dom0 itself may be the frontend, as for a boot loader that runs there.
pub(super) fn dom0_is_a_guest_too(world: &World) -> Result<()> {
    let machine = world.machine();
    world.platter()?;
    let disk = world.fresh_disk(1)?;
    world.step("dom0 attaches a disk to itself");
    machine.dom0(&attach_command("0", "xvdb", NAME, &disk.target()))?;
    machine.dom0("until [ -b /dev/xvdb ] && [ $(cat /sys/block/xvdb/size) != 0 ]; do sleep 0.1; done")?;
    machine.dom0(
        "yes 'dom0 was here' | head -c 4096 > /tmp/line && \
         dd if=/tmp/line of=/dev/xvdb bs=4096 seek=2 oflag=direct conv=notrunc && \
         dd if=/dev/xvdb of=/tmp/read bs=4096 skip=2 count=1 iflag=direct && cmp /tmp/line /tmp/read",
    )?;
    machine.dom0("xl block-detach 0 xvdb")?;
    machine.dom0("while [ -b /dev/xvdb ]; do sleep 0.1; done")?;
    Expected::untouched(&disk).line(16..24, "dom0 was here").check()
}

/// A disk the toolstack has lost sight of is attached over itself: libxl removes and makes its directories in one
/// transaction. After a detach nothing is left of either, and the vdev serves again.
pub(super) fn attached_over_itself(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    alice.write_line("xvdb", 8..16, "before")?;
    let guest = alice.id()?;
    let from = platter.log().len();
    world.step("libxl forgets the disk and makes it anew");
    world.machine().dom0(&format!("xenstore-rm /libxl/{guest}/device/vbd/{XVDB}"))?;
    world.machine().dom0(&attach_command(alice.name(), "xvdb", NAME, &disk.target()))?;
    platter.wait_line(from, &["attached anew"], A_MOMENT)?;
    world.step("detach, and a clean start");
    alice.detach("xvdb")?;
    alice.attach("xvdb", NAME, &disk.target())?;
    alice.check_line("xvdb", 8..16, "before")?;
    alice.detach("xvdb")?;
    Expected::untouched(&disk).line(8..16, "before").check()
}

/// A disk attached to a platter that does not run yet is served when it does.
pub(super) fn attached_before_platter_runs(world: &World) -> Result<()> {
    let alice = world.alice()?;
    let disk = world.fresh_disk(1)?;
    world.remove_platter()?;
    world.step("platter is created and does not run");
    let platter = Platter::create_paused(world.machine(), Settings::usual())?;
    world.step("xl block-attach waits for it");
    let attach = attach_command(alice.name(), "xvdb", NAME, &disk.target());
    let directory = platter.backend(alice.id()?, XVDB);
    world.machine().dom0(&format!(
        "rm -f /tmp/code; {{ {attach}; echo $? > /tmp/code; }} > /tmp/attach.log 2>&1 & \
         until xenstore-read {directory}/state; do sleep 0.1; done; xl unpause {NAME}"
    ))?;
    world
        .machine()
        .dom0("until [ -e /tmp/code ]; do sleep 0.1; done; cat /tmp/attach.log; exit $(cat /tmp/code)")?;
    alice.wait_disk("xvdb")?;
    alice.write_line("xvdb", 8..16, "early")?;
    alice.detach("xvdb")?;
    world.adopt(platter.id())?;
    Expected::untouched(&disk).line(8..16, "early").check()
}

/// A disk for reading only, and a CD-ROM, show their data and take no writes: not from the guest's kernel, and not
/// from one that was led to believe it may.
pub(super) fn read_only_disks_take_no_writes(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    let write = "dd if=/dev/zero of=/dev/xvdb bs=4k count=8 oflag=direct conv=notrunc";
    for kind in ["access=ro", "devtype=cdrom,access=ro"] {
        let spec = format!("format=raw,vdev=xvdb,{kind},backend={NAME},target={}", disk.target());
        let attach = format!("xl block-attach {} '{spec}'", alice.name());
        world.step(&format!("alice is told: {kind}"));
        world.machine().dom0(&attach)?;
        alice.wait_disk("xvdb")?;
        ensure!(alice.run("blockdev --getro /dev/xvdb")? == "1", "{kind}: the disk may be written");
        let head = alice.run("dd if=/dev/xvdb bs=4k count=1 iflag=direct 2>/dev/null | head -n 1")?;
        ensure!(head == "namespace 1 offset 0", "{kind}: the disk starts with {head:?}");
        ensure!(alice.answer(write, COMMAND_LIMIT)?.code != 0, "{kind}: a write succeeded");
        alice.detach("xvdb")?;

        world.step(&format!("alice is told otherwise: {kind}"));
        // While she is paused she does not read `info` yet, which says what she may.
        let info = format!("{}/info", platter.backend(alice.id()?, XVDB));
        let name = alice.name();
        world
            .machine()
            .dom0(&format!("xl pause {name} && {attach} && xenstore-write {info} 0 && xl unpause {name}"))?;
        alice.wait_disk("xvdb")?;
        ensure!(alice.run("blockdev --getro /dev/xvdb")? == "0", "{kind}: alice was not deceived");
        ensure!(alice.answer(write, COMMAND_LIMIT)?.code != 0, "{kind}: a forced write succeeded");
        alice.detach("xvdb")?;
    }
    world.step("the host reads the disk");
    Expected::untouched(&disk).check()
}

/// A format that needs QEMU makes a device for another backend: it is refused with the reason, and the vdev is free.
pub(super) fn a_format_that_is_not_served(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let (from, guest, name) = (platter.log().len(), alice.id()?, alice.name());
    world.step("alice is given a qcow2 disk");
    let spec = format!("format=qcow2,vdev=xvdb,access=rw,backend={NAME},target=/dev/nvme0n1");
    // Whether libxl calls that a success is its business: it does not wait for such a backend.
    world.machine().dom0_answer(&format!("xl block-attach {name} '{spec}'"), COMMAND_LIMIT)?;
    platter.wait_line(from, &["qdisk", "refused", "format=raw"], A_MOMENT)?;
    let home = format!("/local/domain/{}", platter.id());
    world
        .machine()
        .dom0(&format!("! xenstore-read {home}/backend/qdisk/{guest}/{XVDB}/state 2>/dev/null"))?;
    let error = format!("xenstore-read {home}/error/backend/qdisk/{guest}/{XVDB}/error");
    poll("the error node", A_MOMENT, || {
        Ok(world.machine().dom0_answer(&error, A_MOMENT)?.text.contains("format=raw").then_some(()))
    })?;
    world.step("the same vdev then takes a raw disk");
    world.machine().dom0(&format!("xl block-detach {name} xvdb"))?;
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    alice.run("dd if=/dev/xvdb of=/dev/null bs=64k count=16 iflag=direct")?;
    alice.detach("xvdb")
}
