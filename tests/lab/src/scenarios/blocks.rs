//! What guests write and read, judged by the host's view of the disks and QEMU's trace.

use std::thread;

use anyhow::{Result, anyhow, ensure};

use super::{MIB, World};
use crate::machine::{BLOCK_SIZE, DISK_SIZE, Linux, NAME};
use crate::oracle::Expected;
use crate::{fio, flushes};

const LAST_BLOCK: u64 = DISK_SIZE / BLOCK_SIZE - 1;

/// Writes of many shapes, the first and the last block among them, each end up exactly where they belong.
pub(super) fn writes_land_where_they_belong(world: &World) -> Result<()> {
    let (_, alice) = (world.platter()?, world.alice()?);
    let (disk, other) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    alice.attach("xvdb", NAME, &disk.target())?;
    let mut expected = Expected::untouched(&disk);
    let shapes = [
        0..1,
        7..8,
        13..20,
        64..72,
        101..228,
        1001..1602,
        2047..2049,
        100_000..104_096,
        LAST_BLOCK..LAST_BLOCK + 1,
    ];
    for blocks in shapes {
        world.step(&format!("alice writes blocks {}..{}", blocks.start, blocks.end));
        let line = format!("alice at {}", blocks.start);
        alice.write_line("xvdb", blocks.clone(), &line)?;
        alice.check_line("xvdb", blocks.clone(), &line)?;
        expected = expected.line(blocks, &line);
    }
    world.step("beyond the end nothing can be written");
    let beyond = format!("dd if=/dev/zero of=/dev/xvdb bs=512 seek={} count=1 oflag=direct", LAST_BLOCK + 1);
    ensure!(
        alice.answer(&beyond, crate::machine::COMMAND_LIMIT)?.code != 0,
        "a write beyond the end succeeded"
    );
    alice.detach("xvdb")?;
    world.step("the host reads both disks");
    expected.check()?;
    Expected::untouched(&other).check()
}

/// Each flush alice's kernel asks for is one flush command at the device.
pub(super) fn flushes_reach_the_device(world: &World) -> Result<()> {
    const SYNCS: u64 = 20;
    let (_, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    let before = (flushes::of_guest(alice, "xvdb")?, flushes::at_device(world.machine())?);
    world.step(&format!("alice writes and syncs {SYNCS} times"));
    alice.run(&format!(
        "for i in $(seq {SYNCS}); do dd if=/dev/zero of=/dev/xvdb bs=4k seek=$i count=1 oflag=direct conv=fsync; done"
    ))?;
    let asked = flushes::of_guest(alice, "xvdb")? - before.0;
    let done = flushes::at_device(world.machine())? - before.1;
    alice.detach("xvdb")?;
    ensure!(asked >= SYNCS, "alice's kernel asked for {asked} flushes in {SYNCS} syncs");
    ensure!(asked == done, "alice's kernel asked for {asked} flushes, the device saw {done}");
    Ok(())
}

/// mkfs.ext4, files copied, unmounted, checked, mounted and compared; the other namespace never changes.
pub(super) fn file_system_stays_clean(world: &World) -> Result<()> {
    let (_, alice) = (world.platter()?, world.alice()?);
    let (disk, other) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    alice.attach("xvdb", NAME, &disk.target())?;
    world.step("alice makes a file system");
    alice.run("mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/xvdb")?;
    world.step("alice copies files");
    alice.run("mount /dev/xvdb /mnt && cp -a /modules /usr /lib /mnt && umount /mnt")?;
    world.step("alice checks the file system");
    alice.run("e2fsck -f -n /dev/xvdb")?;
    world.step("the disk goes and comes back, and alice compares the files");
    alice.detach("xvdb")?;
    alice.attach("xvdb", NAME, &disk.target())?;
    alice.run(
        "mount -o ro /dev/xvdb /mnt && for d in modules usr lib; do diff -r /$d /mnt/$d || exit 1; done",
    )?;
    alice.run("umount /mnt")?;
    alice.detach("xvdb")?;
    world.step("the host reads the other disk");
    Expected::untouched(&other).check()
}

/// fio writes and verifies requests of 512 bytes to 256 KiB, unaligned to pages, with flushes between.
pub(super) fn all_sizes_verify(world: &World) -> Result<()> {
    let (_, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    world.step("fio writes and verifies");
    let outcome = fio::verify(alice, "xvdb", 3, 48)?;
    alice.detach("xvdb")?;
    world.say(&format!("fio: {} requests, {:.1} MB/s", outcome.requests, outcome.megabytes_per_second()));
    world.step("the host reads the disk");
    Expected::untouched(&disk).anything(3 * MIB..51 * MIB).check()
}

/// Two guests verify at the same time, each on its own namespace; neither leaves its region.
pub(super) fn two_guests_at_once(world: &World) -> Result<()> {
    two_guests(world, 24)
}

/// The same for longer.
pub(super) fn two_guests_for_long(world: &World) -> Result<()> {
    two_guests(world, 256)
}

fn two_guests(world: &World, size: u32) -> Result<()> {
    let (_, alice, bob) = (world.platter()?, world.alice()?, world.bob()?);
    let (first, second) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
    alice.attach("xvdb", NAME, &first.target())?;
    bob.attach("xvdb", NAME, &second.target())?;
    world.step(&format!("alice and bob verify {size} MiB each"));
    let verify = |guest: &Linux, offset| fio::verify(guest, "xvdb", offset, size).map(drop);
    thread::scope(|scope| {
        let other = scope.spawn(|| verify(bob, 100));
        let mine = verify(alice, 10);
        other.join().map_err(|_| anyhow!("bob's thread panicked"))?.and(mine)
    })?;
    alice.detach("xvdb")?;
    bob.detach("xvdb")?;
    world.step("the host reads both disks");
    let region = |from: u64| from * MIB..(from + u64::from(size)) * MIB;
    Expected::untouched(&first).anything(region(10)).check()?;
    Expected::untouched(&second).anything(region(100)).check()
}
