//! Many devices at once, and what happens at the last one that xenstore's stock quota has room for.

use std::thread;

use anyhow::{Result, anyhow, ensure};

use super::{A_MOMENT, World};
use crate::machine::{COMMAND_LIMIT, Controller, Holdings, Linux, NAME, Settings, disk_spec};

/// Guests with disks.
const GUESTS: [&str; 4] = ["anna", "beth", "cleo", "dora"];
/// Disks of each guest that do I/O at once.
const DISKS: usize = 8;

/// 32 devices of four guests do I/O at once. More are attached until xenstore's quota refuses one, which names the
/// quota; then the guests are destroyed all at once, and nothing is left.
pub(super) fn devices_until_a_budget_refuses(world: &World) -> Result<()> {
    let controllers = &[Controller::PLATTER, Controller::LINUX];
    let options = "log=info opaque=nvme0n1,nvme0n2,nvme1n1,nvme1n2";
    let platter = world.fresh_platter(Settings { controllers, options, ..Settings::usual() })?;
    let before = Holdings::of(world.machine(), platter.id())?;
    world.step("four guests boot");
    let guests: Vec<Linux> =
        GUESTS.iter().map(|name| Linux::guest(world.machine(), name)).collect::<Result<_>>()?;
    for (number, guest) in guests.iter().enumerate() {
        world.step(&format!("{} gets {DISKS} disks", guest.name()));
        for vdev in vdevs().take(DISKS) {
            world.machine().dom0(&attach_to_read(guest.name(), &vdev, number))?;
        }
        vdevs().take(DISKS).try_for_each(|vdev| guest.wait_disk(&vdev))?;
    }
    world.step("all of them do I/O at once");
    thread::scope(|scope| {
        let work: Vec<_> = guests.iter().map(|guest| scope.spawn(move || read_all(guest))).collect();
        work.into_iter().try_for_each(|work| work.join().map_err(|_| anyhow!("a guest's thread panicked"))?)
    })?;
    let held = Holdings::of(world.machine(), platter.id())?.beyond(&before);
    let nodes = held.iter().filter(|line| line.starts_with("node ")).count() / (GUESTS.len() * DISKS);
    world.say(&format!("a device that is only read costs platter {nodes} nodes"));

    world.step("more disks, until one is refused");
    let from = platter.log().len();
    let more = (0..GUESTS.len()).flat_map(|number| vdevs().skip(DISKS).map(move |vdev| (number, vdev)));
    let mut attached = GUESTS.len() * DISKS;
    for (number, vdev) in more {
        let attach = attach_to_read(GUESTS[number], &vdev, number);
        if world.machine().dom0_answer(&attach, COMMAND_LIMIT)?.code != 0 {
            break;
        }
        attached += 1;
    }
    let words = ["refused: xenstore nodes: ", "raise quota-maxentity in oxenstored.conf"];
    platter.wait_line(from, &words, A_MOMENT)?;
    world.say(&format!("{attached} devices at {}'s stock quotas", world.machine().daemon().program()));
    world.step("the guests are destroyed all at once");
    let destroy = format!("for g in {}; do xl destroy $g & done; wait", GUESTS.join(" "));
    world.machine().dom0_answer(&destroy, COMMAND_LIMIT * 4)?.success("dom0", &destroy).map(drop)
}

/// The guests' names for disks, as many as have one letter.
fn vdevs() -> impl Iterator<Item = String> {
    ('b'..='z').map(|letter| format!("xvd{letter}"))
}

/// The line that attaches one of the four namespaces, to be read only.
fn attach_to_read(guest: &str, vdev: &str, namespace: usize) -> String {
    let target = format!("/dev/nvme{}n{}", namespace / 2, namespace % 2 + 1);
    format!("xl block-attach {guest} '{}'", disk_spec(vdev, NAME, &target).replace("access=rw", "access=ro"))
}

/// Reads every disk of a guest at the same time; they are one namespace and read the same.
fn read_all(guest: &Linux) -> Result<()> {
    let disks: Vec<String> = vdevs().take(DISKS).collect();
    let disks = disks.join(" ");
    let head = guest.run(&format!(
        "for d in {disks}; do dd if=/dev/$d of=/tmp/$d bs=64k count=32 iflag=direct 2>/dev/null & done; wait; \
         for d in {disks}; do [ $(stat -c %s /tmp/$d) = 2097152 ] && cmp /tmp/xvdb /tmp/$d || exit 1; done; \
         head -n 1 /tmp/xvdb",
    ))?;
    ensure!(head.starts_with("namespace ") && head.ends_with(" offset 0"), "{} reads {head:?}", guest.name());
    Ok(())
}
