//! The xenstore nodes that libxl writes and removes, for devices and for whole domains.

use super::Disk;
use crate::sim::frontend::{back_path, front_path};
use crate::sim::machine::{DOM0, DRIVER, Machine};
use crate::sim::tree::Perms;
use crate::units::DomId;

/// The nodes of both ends; what was there before goes in the same transaction.
pub(super) fn write_device(machine: &mut Machine, disk: &Disk) {
    let Disk { guest, dev, .. } = *disk;
    let kind = if disk.cdrom { "cdrom" } else { "disk" };
    let (front, back) = (front_path(guest, dev), back_path(guest, dev));
    let tree = &mut machine.tree;
    tree.remove(&front);
    tree.remove(&back);
    tree.write_for(&back, "", Perms { owner: DRIVER, reader: guest });
    let letter = char::from(b'a' + (dev / 16 % 16) as u8);
    for (node, value) in [
        ("frontend", front.as_str()),
        ("params", &disk.target),
        ("script", "/etc/xen/scripts/block"),
        ("frontend-id", &guest.to_string()),
        ("online", "1"),
        ("removable", "1"),
        ("bootable", "1"),
        ("state", "1"),
        ("dev", &format!("xvd{letter}")),
        ("type", "phy"),
        ("mode", if disk.readonly { "r" } else { "w" }),
        ("device-type", kind),
        ("discard-enable", if disk.readonly { "0" } else { "1" }),
        ("specification", "xen"),
    ] {
        tree.write(&format!("{back}/{node}"), value);
    }
    tree.write_for(&front, "", Perms { owner: guest, reader: DRIVER });
    for (node, value) in [
        ("backend", back.as_str()),
        ("backend-id", &DRIVER.to_string()),
        ("state", "1"),
        ("virtual-device", &dev.to_string()),
        ("device-type", kind),
        ("trusted", "1"),
    ] {
        tree.write(&format!("{front}/{node}"), value);
    }
}

/// The backend's nodes of a device that is for QEMU.
pub(super) fn write_qdisk(machine: &mut Machine, disk: &Disk) {
    let Disk { guest, dev, .. } = *disk;
    let back = format!("/local/domain/{DRIVER}/backend/qdisk/{guest}/{dev}");
    machine.tree.write_for(&back, "", Perms { owner: DRIVER, reader: guest });
    for (node, value) in [("frontend", front_path(guest, dev)), ("state", "1".into())] {
        machine.tree.write(&format!("{back}/{node}"), value);
    }
}

/// What libxl removes when a device is off: both ends, and parents that are empty now.
pub(super) fn clean(machine: &mut Machine, guest: DomId, dev: u32) {
    machine.tree.remove(&front_path(guest, dev));
    machine.tree.remove(&back_path(guest, dev));
    let top = format!("/local/domain/{DRIVER}/backend");
    for parent in [format!("{top}/vbd/{guest}"), format!("{top}/vbd"), top] {
        if machine.tree.children(&parent).is_empty() {
            machine.tree.remove(&parent);
        }
    }
}

/// A domain is no more: what it granted and is still mapped stays.
pub(super) fn bury(machine: &mut Machine, guest: DomId) {
    machine.tree.remove(&format!("/local/domain/{guest}"));
    machine.ports.bury(guest);
    machine.grants.bury(guest);
}

/// The directories that a guest has from its creation on.
pub fn create_guest(machine: &mut Machine, guest: DomId) {
    let home = format!("/local/domain/{guest}");
    machine.tree.write_for(&home, "", Perms { owner: DOM0, reader: guest });
    machine.tree.write(&format!("{home}/name"), format_args!("guest{guest}"));
    machine.tree.write(&format!("{home}/device"), "");
}

/// The directories that the driver domain has from its creation on.
pub fn create_driver_domain(machine: &mut Machine) {
    let home = format!("/local/domain/{DRIVER}");
    machine.tree.write_for(&home, "", Perms { owner: DOM0, reader: DRIVER });
    machine.tree.write(&format!("{home}/domid"), DRIVER);
    for (node, value) in [("name", "platter"), ("control/platform-feature-xs_reset_watches", "1")] {
        machine.tree.write(&format!("{home}/{node}"), value);
    }
    let own = Perms { owner: DRIVER, reader: DRIVER };
    let control =
        ["shutdown", "feature-poweroff", "feature-reboot", "sysrq"].map(|node| format!("control/{node}"));
    for node in control.iter().map(String::as_str).chain(["data", "error", "device"]) {
        machine.tree.write_for(&format!("{home}/{node}"), "", own);
    }
}
