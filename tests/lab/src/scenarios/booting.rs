//! A guest that boots from its disk: firmware connects, closes, and the kernel connects to the same device again.

use std::process::Command;

use anyhow::{Result, ensure};

use super::{A_MOMENT, World};
use crate::machine::{Disk, Linux, Manner, NAME, Platter, System, disk_spec};
use crate::oracle::Expected;
use crate::{paths, process, setup};

/// PV GRUB reads menu, kernel and initramfs from the disk, the kernel mounts its root from it and writes there; the
/// guest reboots and finds what it wrote, and so does the host.
pub(super) fn boots_from_its_disk(world: &World) -> Result<()> {
    let (platter, disk) = (world.platter()?, world.fresh_disk(1)?);
    let used = disk.overlay(&paths::machine().join("boot.raw"))?;
    let disks = [disk_spec("xvda", NAME, &disk.target())];
    let mut from = platter.log().len();
    let dave = world.dave(Manner { system: System::Grub, memory: 320, disks: &disks, ..Manner::usual() })?;
    runs_from_its_disk(&platter, &mut from, &dave)?;
    dave.run("echo 'still here' > /note && sync")?;
    world.step("dave reboots");
    let said = dave.said().len();
    dave.tell("reboot -f", A_MOMENT)?;
    dave.wait_up(said)?;
    runs_from_its_disk(&platter, &mut from, &dave)?;
    let note = dave.run("cat /note")?;
    ensure!(note == "still here", "after a reboot the disk holds {note:?}");
    dave.run("mount -o remount,ro /")?;
    world.machine().dom0(&format!("xl destroy {}", dave.name()))?;
    world.step("the host reads the disk");
    ensure!(on_host("debugfs", &["-R", "cat /note"], &disk)? == "still here\n", "the host finds no note");
    on_host("e2fsck", &["-f", "-n"], &disk)?;
    Expected::untouched(&disk).anything(used).check()
}

/// The root is on the disk, and two frontends have connected since `from`, which moves on.
fn runs_from_its_disk(platter: &Platter, from: &mut usize, dave: &Linux) -> Result<()> {
    dave.run("grep -q '^/dev/xvda1 / ext4 rw' /proc/mounts")?;
    let log = platter.log();
    let connected = log[*from..].matches("InitWait -> Connected").count();
    ensure!(connected == 2, "the disk was connected {connected} times, not by GRUB and the kernel");
    *from = log.len();
    Ok(())
}

/// Runs a program of e2fsprogs on the disk's partition.
fn on_host(program: &str, arguments: &[&str], disk: &Disk) -> Result<String> {
    let partition = format!("{}?offset={}", disk.path().display(), setup::BOOT_PARTITION);
    process::output(Command::new(format!("/usr/sbin/{program}")).args(arguments).arg(partition))
}
