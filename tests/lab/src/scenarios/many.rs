//! Many devices at once, and what happens at the last one that xenstore's stock quota has room for.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::World;
use crate::machine::{COMMAND_LIMIT, Controller, Linux, NAME, Platter, Settings, disk_spec};

const A_MOMENT: Duration = Duration::from_secs(20);
/// Disks of each of the two guests that do I/O at once; the first of them is written.
const DISKS: usize = 16;

/// The guests' names for disks, as many as have one letter.
fn vdevs() -> impl Iterator<Item = String> {
    ('b'..='z').map(|letter| format!("xvd{letter}"))
}

/// A volume to be read: both namespaces of the first controller in turn.
fn volume(number: usize) -> String {
    format!("/dev/nvme0n{}", number % 2 + 1)
}

/// The line that attaches a disk which is only read.
fn attach_to_read(guest: &str, vdev: &str, target: &str) -> String {
    format!("xl block-attach {guest} '{}'", disk_spec(vdev, NAME, target).replace("access=rw", "access=ro"))
}

/// 32 devices of two guests do I/O at once. More are attached until xenstore's quota refuses one, which names the quota;
/// then all are detached and xenstore is as it was before.
pub(super) fn devices_until_a_budget_refuses(world: &World) -> Result<()> {
    let controllers = &[Controller::PLATTER, Controller::LINUX];
    let platter = world.fresh_platter(Settings { controllers, ..Settings::usual() })?;
    let guests = [world.alice()?, world.bob()?];
    let before = nodes(world, &platter)?;
    for (number, guest) in guests.iter().enumerate() {
        world.step(&format!("{} gets {DISKS} disks", guest.name()));
        guest.attach("xvdb", NAME, &format!("/dev/nvme1n{}", number + 1))?;
        for (number, vdev) in vdevs().enumerate().take(DISKS).skip(1) {
            world.machine().dom0(&attach_to_read(guest.name(), &vdev, &volume(number)))?;
        }
    }
    let each = (nodes(world, &platter)? - before) / (guests.len() * DISKS);
    world.step("all of them do I/O at once");
    thread::scope(|scope| {
        let work = guests.map(|guest| scope.spawn(move || use_all(guest)));
        work.into_iter().try_for_each(|work| work.join().map_err(|_| anyhow!("a guest's thread panicked"))?)
    })?;
    let attached = attach_until_refused(world, &platter, guests)?;
    world.say(&format!("{attached} devices at oxenstored's stock quotas, {each} nodes each"));
    for guest in guests {
        world.step(&format!("{} gives its disks back", guest.name()));
        let detach = format!(
            "for d in $(xl block-list {0} | awk 'NR > 1 {{ print $1 }}'); do xl block-detach {0} $d || exit 1; done",
            guest.name()
        );
        world.machine().dom0_answer(&detach, COMMAND_LIMIT * 4)?.success("dom0", &detach)?;
    }
    let reason = 5;
    let after = nodes(world, &platter)?;
    ensure!(after <= before + reason, "platter had {before} nodes and has {after}");
    world.remove_platter()
}

/// Reads every disk of a guest and writes the first, all at the same time; disks of one namespace read the same.
fn use_all(guest: &Linux) -> Result<()> {
    let read: Vec<String> = vdevs().take(DISKS).skip(1).collect();
    let sums = guest.run(&format!(
        "dd if=/dev/zero of=/dev/xvdb bs=64k count=64 oflag=direct 2>/dev/null & \
         for d in {}; do dd if=/dev/$d bs=64k count=32 iflag=direct 2>/dev/null | cksum > /tmp/$d & done; \
         wait; for d in {}; do cat /tmp/$d; done",
        read.join(" "),
        read.join(" ")
    ))?;
    let sums: Vec<&str> = sums.lines().collect();
    ensure!(sums.len() == read.len(), "{}: {} disks were read", guest.name(), sums.len());
    for namespace in 0..2 {
        let different: BTreeSet<_> = sums.iter().skip(namespace).step_by(2).collect();
        ensure!(different.len() == 1, "{}: one namespace reads as {different:?}", guest.name());
    }
    Ok(())
}

/// Attaches disks until one is refused, for the quota of nodes. Returns how many there are then.
fn attach_until_refused(world: &World, platter: &Platter, guests: [&Linux; 2]) -> Result<usize> {
    world.step("more disks, until one is refused");
    let from = platter.log().len();
    let mut attached = guests.len() * DISKS;
    for guest in guests {
        for (number, vdev) in vdevs().enumerate().skip(DISKS) {
            let attach = attach_to_read(guest.name(), &vdev, &volume(number));
            if world.machine().dom0_answer(&attach, COMMAND_LIMIT)?.code != 0 {
                let words = ["refused: xenstore nodes: ", "raise quota-maxentity in oxenstored.conf"];
                platter.wait_line(from, &words, A_MOMENT)?;
                return Ok(attached);
            }
            attached += 1;
        }
    }
    Err(anyhow!("{attached} disks are attached and none was refused"))
}

/// Nodes of platter's home in xenstore, most of them of its quota.
fn nodes(world: &World, platter: &Platter) -> Result<usize> {
    let count = world.machine().dom0(&format!("xenstore-ls -f /local/domain/{} | wc -l", platter.id()))?;
    count.trim().parse().context("wc printed no number")
}
