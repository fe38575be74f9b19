//! A disk that a guest boots from: a partition with GRUB's menu, Debian's kernel as the package has it, an initramfs
//! that finds the disk, and a small root file system.
//!
//! PV GRUB (Debian's grub-xen-host) runs the /boot/grub/grub.cfg of the first file system that has one. It cannot
//! decompress zstd, so the kernel is the older one.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::roots;
use crate::process;

/// Bytes of the disk; the rest of a larger one is not used.
const SIZE: u64 = 96 << 20;
/// Where the one partition starts, in bytes; it takes the rest.
pub(crate) const PARTITION: u64 = 1 << 20;
const GRUB_MENU: &str = "set timeout=0
menuentry lab {
  linux /boot/vmlinuz console=hvc0 root=/dev/xvda1
  initrd /boot/initrd
}
";

/// Makes `boot.raw` in the machine's folder, where `guest.cpio` already is.
///
/// # Errors
/// Something is missing, or does not fit.
pub(super) fn make(tree: &Path, machine: &Path, bzimage: &Path) -> Result<()> {
    let root = tempfile::tempdir_in(machine)?;
    let inside = |path: &str| root.path().join(path);
    for folder in ["bin", "sbin", "dev", "proc", "sys", "tmp", "boot/grub"] {
        fs::create_dir_all(inside(folder))?;
    }
    fs::copy(tree.join("bin/busybox"), inside("bin/busybox"))?;
    for (name, script) in [("init", roots::DISK_INIT), ("agent", roots::AGENT)] {
        fs::write(inside(name), script)?;
        fs::set_permissions(inside(name), Permissions::from_mode(0o755))?;
    }
    fs::copy(bzimage, inside("boot/vmlinuz"))?;
    fs::copy(machine.join("guest.cpio"), inside("boot/initrd"))?;
    fs::write(inside("boot/grub/grub.cfg"), GRUB_MENU)?;

    let disk = machine.join("boot.raw");
    File::create(&disk)?.set_len(SIZE)?;
    let path = disk.display().to_string();
    let table = format!("label: dos\nstart={}, type=83, bootable\n", PARTITION / 512);
    process::pipe("/usr/sbin/sfdisk", &["--quiet", &path], table.as_bytes())?;
    let mut mke2fs = Command::new("/usr/sbin/mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-E", &format!("offset={PARTITION}"), "-d"]).arg(root.path());
    process::output(mke2fs.arg(path).arg(format!("{}k", (SIZE - PARTITION) / 1024)))?;
    Ok(())
}
