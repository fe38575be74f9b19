//! How much memory devices take, as platter itself tells, and how many are at work in what it has by default.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::systems::{self, Agreed};
use super::{World, XVDB};
use crate::fio;
use crate::machine::{COMMAND_LIMIT, Controller, DISK_SIZE, Linux, Manner, NAME, Platter, Settings};

/// Guests with disk drivers as Linux has them by default, and the disk whose partitions each gets.
const GUESTS: [(&str, &str); 3] = [("anna", "nvme0n1"), ("beth", "nvme0n2"), ("cleo", "nvme1n1")];
/// Partitions of each. With the disk of dave, whose driver asks for all there is, they are 64.
const PARTITIONS: usize = 21;
/// How long an idle page stays mapped.
const KEPT: Duration = Duration::from_secs(60);
/// MiB that are written to each.
const EACH: u32 = 2;

/// The most that blkfront asks for; were its grants persistent too, it would set 2 GiB aside for them.
const WIDE: &str = "max_ring_page_order=4 max_queues=4 max_indirect_segments=256 feature_persistent=0";
/// What must come of it.
const AGREED: Agreed = Agreed { order: 4, queues: 4, persistent: false, segments: 256, bounce: false };

/// A device takes the same memory whatever its frontend asks for, 64 of four guests work at once in 16 MiB, and idle they cost nothing.
pub(super) fn of_64_devices_at_work(world: &World) -> Result<()> {
    let platter = platter_with_partitions(world)?;
    let guests = GUESTS.iter().map(|(name, _)| boot(world, name)).collect::<Result<Vec<_>>>()?;
    let dave = world.dave(Manner { vcpus: 4, memory: 448, ..Manner::usual() })?;
    systems::load_driver(&dave, WIDE)?;
    let free = |word| free_memory(world, &platter, &guests[0], word);
    let mut waiting =
        (0..PARTITIONS).flat_map(|number| guests.iter().zip(GUESTS).map(move |guest| (number, guest)));
    let mut attach = |count| {
        waiting.by_ref().take(count).try_for_each(|(number, (guest, (_, disk)))| {
            guest.attach(&vdev(number), NAME, &format!("{disk}p{}", number + 1))
        })
    };

    world.step("three devices, one after the other");
    attach(1)?;
    let first = free("first")?;
    dave.attach("xvdb", NAME, "nvme1n2")?;
    let agreed = systems::agreed(world, &dave)?;
    ensure!(agreed == AGREED, "{agreed:?} instead of {AGREED:?}");
    let second = free("second")?;
    attach(1)?;
    let third = free("third")?;
    let (wide, default) = (first - second, second - third);
    world.step("61 more");
    attach(usize::MAX)?;
    world.step("all of them write, and read what they wrote");
    thread::scope(|scope| {
        let work: Vec<_> = guests.iter().map(|guest| scope.spawn(|| verify_all(guest))).collect();
        fio::verify_on_all(&dave, "xvdb", 4, 0, EACH)?;
        work.into_iter().try_for_each(|work| work.join().map_err(|_| anyhow!("a guest's thread panicked"))?)
    })?;
    let last = free("last")?;
    world.step("idle for long enough that no page stays mapped, all of them together cost nothing");
    thread::sleep(KEPT + Duration::from_secs(15));
    let before = platter.cpu_time()?;
    thread::sleep(Duration::from_secs(10));
    let used = platter.cpu_time()? - before;
    ensure!(used == 0, "with 64 idle devices platter used {used} ns of CPU in 10 s");
    world.say(&format!("a device of Linux as it is by default takes {default} KiB"));
    world.say(&format!("one with rings of 16 pages, 256 segments, 4 queues {wide} KiB"));
    world.say(&format!("64 devices take {} KiB; {last} KiB of 16 MiB are left", default + first - last));
    ensure!(wide == default && default > 0, "the memory depends on what a frontend asks for");
    let destroy = "for g in anna beth cleo dave; do xl destroy $g & done; wait";
    world.machine().dom0_answer(destroy, COMMAND_LIMIT * 4)?.success("dom0", destroy).map(drop)
}

/// With the memory it has by default, two controllers, and as many nodes in xenstore as it needs.
fn platter_with_partitions<'m>(world: &World<'m>) -> Result<Platter<'m>> {
    world.machine().dom0("xenstore-control quota set nodes 4000")?;
    world.remove_platter()?;
    let size = (DISK_SIZE >> 20) / (PARTITIONS as u64 + 1);
    let table = "label: gpt\n".to_owned() + &format!("size={size}MiB\n").repeat(PARTITIONS);
    for (controller, namespace) in
        [(Controller::PLATTER, 1), (Controller::PLATTER, 2), (Controller::LINUX, 1)]
    {
        world.machine().disk(&controller, namespace).partition(&table)?;
    }
    let controllers = &[Controller::PLATTER, Controller::LINUX];
    world.fresh_platter(Settings { controllers, options: "log=info opaque=nvme1n2", ..Settings::usual() })
}

fn boot<'m>(world: &World<'m>, name: &str) -> Result<Linux<'m>> {
    world.step(&format!("booting {name}"));
    // Linux sets 4 MiB aside for each disk.
    Linux::guest_with(world.machine(), name, Manner { memory: 288, ..Manner::usual() })
}

/// What a guest calls one of its disks.
fn vdev(number: usize) -> String {
    format!("xvd{}", char::from(b'b' + number as u8))
}

/// Writes to all disks of a guest, in turn, and compares what is read.
fn verify_all(guest: &Linux) -> Result<()> {
    let disks: Vec<String> = (0..PARTITIONS).map(vdev).collect();
    fio::verify(guest, &disks.join(":/dev/"), 0, EACH * PARTITIONS as u32)?;
    let busy = guest.run("awk '$3 ~ /^xvd/ && $4 && $8' /proc/diskstats | wc -l")?;
    ensure!(busy == PARTITIONS.to_string(), "{}: {busy} disks were read and written", guest.name());
    Ok(())
}

/// KiB that devices can still take, as platter answers to whoever asks about the first disk of a guest, with a word not
/// used before.
fn free_memory(world: &World, platter: &Platter, guest: &Linux, word: &str) -> Result<u64> {
    let home = format!("/local/domain/{}/data/statistics", platter.id());
    let question = format!("{}/{XVDB} {word}", guest.id()?);
    let answer = world.machine().dom0(&format!(
        "xenstore-write {home}/ask '{question}'; \
         until [ \"$(xenstore-read {home}/for)\" = '{question}' ]; do sleep 0.1; done; xenstore-read {home}/device"
    ))?;
    let free = answer.split(' ').find_map(|pair| pair.strip_prefix("free-memory="));
    free.and_then(|free| free.parse().ok()).with_context(|| format!("no free memory in {answer:?}"))
}
