//! The two file systems of the emulated machine: one for the control domain, which the Linux driver domain shares,
//! and one for Linux guests of each kernel; and what dom0 adds to its own to serve disks by QEMU. Files come from the
//! unpacked packages, scripts from `tests/lab/roots`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::cpio::Initramfs;
use super::kernel::Modules;
use crate::process;

pub(super) const AGENT: &str = include_str!("../../roots/agent");
const CONTROL_INIT: &str = include_str!("../../roots/control-init");
const GUEST_INIT: &str = include_str!("../../roots/guest-init");
const BLOCK: &str = include_str!("../../roots/block");
/// What a root file system on a disk starts with.
pub(super) const DISK_INIT: &str = include_str!("../../roots/disk-init");
/// The scripts inside: part of the recipe, so a change rebuilds.
pub(super) const SCRIPTS: [&str; 5] = [AGENT, CONTROL_INIT, GUEST_INIT, BLOCK, DISK_INIT];

const XEN_BIN: &str = "usr/lib/xen-4.17/bin";

const CONTROL_PROGRAMS: [&str; 18] = [
    "usr/lib/xen-4.17/bin/xl",
    "usr/lib/xen-4.17/bin/libxl-save-helper",
    "usr/lib/xen-4.17/bin/xenstored",
    "usr/lib/xen-4.17/bin/oxenstored",
    "usr/lib/xen-4.17/bin/xenconsoled",
    "usr/lib/xen-4.17/bin/xenconsole",
    "usr/lib/xen-4.17/bin/xen-init-dom0",
    "usr/lib/xen-4.17/bin/xentop",
    "usr/lib/xen-4.17/bin/xenstore-control",
    "usr/lib/xen-4.17/bin/xentrace",
    "usr/bin/xenalyze",
    "usr/bin/xenstore-read",
    "usr/bin/xenstore-write",
    "usr/bin/xenstore-ls",
    "usr/bin/xenstore-list",
    "usr/bin/xenstore-rm",
    "usr/bin/xenstore-watch",
    "usr/bin/xenstore-chmod",
];
/// Where Debian's libxl looks for it.
const QEMU: &str = "usr/libexec/xen-qemu-system-i386";
const GUEST_PROGRAMS: [&str; 4] = ["usr/bin/fio", "usr/bin/xenstore-read", "sbin/mke2fs", "sbin/e2fsck"];

/// Modules of both kinds of control domain, of the one with control, of the driver domain, of a control domain that
/// keeps a disk for itself, of a guest.
const COMMON_MODULES: [&str; 5] = ["xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd"];
const CONTROL_MODULES: [&str; 7] =
    ["xen-pciback", "virtio_pci", "virtio_console", "9pnet_virtio", "9p", "xen-blkback", "xen-blkfront"];
const DRIVER_MODULES: [&str; 3] = ["xen-pcifront", "nvme", "xen-blkback"];
const DISK_MODULES: [&str; 1] = ["nvme"];
const GUEST_MODULES: [&str; 3] = ["crc32c_generic", "ext4", "xen-blkfront"];

/// The file system of the control domain and of the Linux driver domain. `cpu_time` is the helper that reads
/// domains' CPU time.
pub(super) fn control(tree: &Path, modules: &Modules, cpu_time: &Path) -> Result<Vec<u8>> {
    let mut root = base(tree, CONTROL_INIT)?;
    programs(&mut root, tree, &CONTROL_PROGRAMS)?;
    root.copy(cpu_time, "usr/bin/domain-cpu-time")?;
    // The C library loads this by itself when a thread of xl is cancelled.
    root.copy(&tree.join("lib/x86_64-linux-gnu/libgcc_s.so.1"), "lib/x86_64-linux-gnu/libgcc_s.so.1")?;
    for config in ["etc/xen/xl.conf", "etc/xen/oxenstored.conf"] {
        root.copy(&tree.join(config), config)?;
    }
    root.file("etc/xen/scripts/block", 0o755, BLOCK.as_bytes());
    root.file("etc/profile", 0o644, profile().as_bytes());
    module_list(&mut root, modules, "common", &COMMON_MODULES)?;
    module_list(&mut root, modules, "control", &CONTROL_MODULES)?;
    module_list(&mut root, modules, "driver", &DRIVER_MODULES)?;
    module_list(&mut root, modules, "disk", &DISK_MODULES)?;
    Ok(root.finish())
}

/// QEMU as a disk backend with its libraries. Apart, because it would double what each control domain loads: dom0
/// unpacks it over its own file system when it is wanted.
pub(super) fn qemu(tree: &Path) -> Result<Vec<u8>> {
    let mut root = Initramfs::new();
    programs(&mut root, tree, &[QEMU])?;
    // It reads one before it shows nothing to nobody.
    root.file("usr/share/qemu/keymaps/en-us", 0o644, &[]);
    Ok(root.finish())
}

/// The file system of a Linux guest.
pub(super) fn guest(tree: &Path, modules: &Modules) -> Result<Vec<u8>> {
    let mut root = base(tree, GUEST_INIT)?;
    programs(&mut root, tree, &GUEST_PROGRAMS)?;
    root.symlink("sbin/mkfs.ext4", "mke2fs");
    root.copy(&tree.join("etc/mke2fs.conf"), "etc/mke2fs.conf")?;
    module_list(&mut root, modules, "guest", &GUEST_MODULES)?;
    Ok(root.finish())
}

fn base(tree: &Path, init: &str) -> Result<Initramfs> {
    let mut root = Initramfs::new();
    for name in
        ["bin", "sbin", "dev", "proc", "sys", "tmp", "run", "mnt", "root", "etc", "usr/bin", "usr/sbin"]
    {
        root.directory(name);
    }
    root.copy(&tree.join("bin/busybox"), "bin/busybox")?;
    root.file("init", 0o755, init.as_bytes());
    root.file("agent", 0o755, AGENT.as_bytes());
    Ok(root)
}

/// The shell of `cargo lab shell` finds Xen's tools.
fn profile() -> String {
    format!("export PATH=/{XEN_BIN}:/bin:/sbin:/usr/bin:/usr/sbin PS1='dom0# '\n")
}

/// Copies programs and the libraries the dynamic linker names for them.
fn programs(root: &mut Initramfs, tree: &Path, programs: &[&str]) -> Result<()> {
    let linker = tree.join("lib64/ld-linux-x86-64.so.2");
    root.copy(&linker, "lib64/ld-linux-x86-64.so.2")?;
    for program in programs {
        root.copy(&tree.join(program), program)?;
        for library in libraries(&linker, tree, &tree.join(program))? {
            let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            root.copy(&library, &format!("lib/x86_64-linux-gnu/{name}"))?;
        }
    }
    Ok(())
}

fn libraries(linker: &Path, tree: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    const FOLDERS: [&str; 4] = [
        "lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib/x86_64-linux-gnu/ceph",
        "usr/lib/xen-4.17/lib/x86_64-linux-gnu",
    ];
    let search = FOLDERS.map(|folder| tree.join(folder).display().to_string()).join(":");
    let said =
        process::output(Command::new(linker).args(["--library-path", &search, "--list"]).arg(program))?;
    if said.contains("not found") {
        bail!("{} lacks libraries:\n{said}", program.display());
    }
    let paths = said.lines().filter_map(|line| line.split_once("=> ")?.1.split(" (").next());
    Ok(paths.map(PathBuf::from).collect())
}

fn module_list(root: &mut Initramfs, modules: &Modules, list: &str, wanted: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in modules.in_load_order(wanted)? {
        let path = format!("modules/{}", module.file_name());
        root.file(&path, 0o644, &module.contents);
        order += &format!("/{path}\n");
    }
    root.file(&format!("modules/{list}"), 0o644, order.as_bytes());
    Ok(())
}
