//! What a `target=` names: partitions, made by the real sfdisk, and who may have them.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use super::{A_MOMENT, World};
use crate::machine::{BLOCK_SIZE, DISK_SIZE, Disk, Linux, NAME, Platter, Settings};
use crate::oracle::Expected;

/// Blocks that a GPT takes at the beginning of a disk, and one less at the end.
const GPT_BLOCKS: u64 = 34;

/// A table for sfdisk, and where its partitions start.
const GPT: &str = "label: gpt
start=2048, size=131072, uuid=A0000000-0000-4000-8000-000000000001, name=\"root a\"
start=133120, size=262144, uuid=A0000000-0000-4000-8000-000000000002, name=\"home\"
start=395264, size=65536, uuid=A0000000-0000-4000-8000-000000000003, name=\"twin\"
start=460800, size=65536, uuid=A0000000-0000-4000-8000-000000000004, name=\"twin\"
";
const FIRST: u64 = 2048;
const SECOND: u64 = 133_120;
const THIRD: u64 = 395_264;

const MBR: &str = "label: dos
label-id: 0xcafe0001
start=2048, size=65536, type=83
start=67584, size=200000, type=5
start=69632, size=65536, type=83
start=137216, size=65536, type=83
";

/// Each kind of name leads to its partition, whose blocks and no others are written.
pub(super) fn partitions_by_every_name(world: &World) -> Result<()> {
    let alice = world.alice()?;
    let disk = partitioned(world, GPT)?;
    let platter = platter_beside(world, "opaque=nvme0n2")?;
    platter.wait_line(0, &["nvme0n1p2: 262144 blocks", "128 MiB", "home"], A_MOMENT)?;
    platter.wait_line(0, &["nvme0n2: opaque"], A_MOMENT)?;
    let names = [
        ("/dev/nvme0n1p1", FIRST),
        ("nvme0n1p2", SECOND),
        ("PARTUUID=a0000000-0000-4000-8000-000000000003", THIRD),
        ("/dev/disk/by-partuuid/a0000000-0000-4000-8000-000000000001", FIRST),
        ("PARTLABEL=home", SECOND),
        ("/dev/disk/by-partlabel/root\\x20a", FIRST),
        ("/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_PLATTER0_1-part3", THIRD),
    ];
    let mut expected = with_gpt(&disk);
    for (place, (name, start)) in (8..).step_by(8).zip(names) {
        world.step(&format!("alice writes to {name}"));
        alice.attach("xvdb", NAME, name)?;
        alice.write_line("xvdb", place..place + 8, "alice was here")?;
        alice.check_line("xvdb", place..place + 8, "alice was here")?;
        alice.detach("xvdb")?;
        expected = expected.line(start + place..start + place + 8, "alice was here");
    }
    world.step("names of two volumes are refused, and both are named");
    refused(world, alice, "rw", "PARTLABEL=twin", &["nvme0n1p3", "nvme0n1p4"])?;
    let both = "/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_PLATTER0";
    refused(world, alice, "rw", both, &["nvme0n1", "nvme0n2"])?;
    refused(world, alice, "rw", "/dev/nvme0n1p9", &["no volume named \"/dev/nvme0n1p9\""])?;
    world.step("the host reads the disk");
    expected.check()?;

    world.step("with the first copy of the table gone, the second one serves");
    let file = std::fs::OpenOptions::new().write(true).open(disk.path())?;
    file.write_all_at(&[0; BLOCK_SIZE as usize], BLOCK_SIZE)?;
    let from = world.log().len();
    let platter = platter_beside(world, "opaque=nvme0n2")?;
    platter.wait_line(from, &["warning: ", "nvme0n1", "backup"], A_MOMENT)?;
    alice.attach("xvdb", NAME, "PARTLABEL=home")?;
    alice.check_line("xvdb", 16..24, "alice was here")?;
    alice.detach("xvdb")?;
    world.remove_platter()
}

/// Partitions of an MBR, the logical ones in their container too.
pub(super) fn logical_partitions(world: &World) -> Result<()> {
    let alice = world.alice()?;
    let disk = partitioned(world, MBR)?;
    platter_beside(world, "opaque=nvme0n2")?;
    for (name, start) in [("nvme0n1p1", 2048), ("nvme0n1p5", 69_632), ("PARTUUID=cafe0001-06", 137_216)] {
        world.step(&format!("alice reads {name}"));
        alice.attach("xvdb", NAME, name)?;
        // Partitions start at whole MiB, where the disk's pattern has a stamp.
        let head = alice.run("dd if=/dev/xvdb bs=4k count=1 iflag=direct 2>/dev/null | head -n 1")?;
        ensure!(head == format!("namespace 1 offset {}", start * BLOCK_SIZE), "{name} starts with {head:?}");
        alice.detach("xvdb")?;
    }
    refused(world, alice, "rw", "nvme0n1p2", &["nvme0n1p2"])?;
    world.remove_platter()?;
    drop(disk);
    Ok(())
}

/// alice copies the table of the other disk, with all its names, into whatever she was given. Where her disk is
/// opaque that changes nothing, also when platter starts anew; were it not, the names would be anybody's.
pub(super) fn tables_that_guests_write_change_nothing(world: &World) -> Result<()> {
    const HOME: &str = "PARTUUID=a0000000-0000-4000-8000-000000000002";
    let alice = world.alice()?;
    let disk = partitioned(world, GPT)?;
    world.fresh_disk(2)?;
    platter_beside(world, "opaque=nvme0n2")?;
    world.step("alice reads the table");
    attach(world, alice, "xvdb", "ro", "/dev/nvme0n1")?;
    alice.run(&format!("dd if=/dev/xvdb of=/tmp/table bs={BLOCK_SIZE} count={GPT_BLOCKS} iflag=direct"))?;
    alice.detach("xvdb")?;
    for target in ["nvme0n1p1", "nvme0n2"] {
        world.step(&format!("alice writes it into {target}"));
        alice.attach("xvdb", NAME, target)?;
        alice.run("dd if=/tmp/table of=/dev/xvdb bs=512 oflag=direct conv=notrunc")?;
        alice.detach("xvdb")?;
    }
    world.step("platter starts anew, and the names mean what they meant");
    platter_beside(world, "opaque=nvme0n2")?;
    alice.attach("xvdb", NAME, HOME)?;
    let head = alice.run("dd if=/dev/xvdb bs=4k count=1 iflag=direct 2>/dev/null | head -n 1")?;
    ensure!(head == format!("namespace 1 offset {}", SECOND * BLOCK_SIZE), "{HOME} starts with {head:?}");
    alice.detach("xvdb")?;
    world.step("a disk that is not opaque is not given for writing as a whole");
    platter_beside(world, "")?;
    refused(world, alice, "rw", "/dev/nvme0n1", &["opaque=nvme0n1"])?;
    world.step("and were alice's not opaque, the names would be hers too");
    refused(world, alice, "rw", HOME, &["nvme0n1p2", "nvme0n2p2"])?;
    world.remove_platter()?;
    with_gpt(&disk).anything(FIRST..FIRST + GPT_BLOCKS).check()
}

/// Each block has one writer, or any number of readers, under whatever names; a volume is free when its last holder
/// has closed.
pub(super) fn each_block_has_one_writer(world: &World) -> Result<()> {
    let (alice, bob) = (world.alice()?, world.bob()?);
    let disk = partitioned(world, GPT)?;
    platter_beside(world, "opaque=nvme0n2")?;
    let holder = format!("guest {}", alice.id()?);
    world.step("alice writes to a partition");
    alice.attach("xvdb", NAME, "nvme0n1p1")?;
    for (access, target) in [("rw", "PARTLABEL=root a"), ("ro", "nvme0n1p1"), ("ro", "nvme0n1")] {
        refused(world, bob, access, target, &["in use for writing", &holder])?;
    }
    world.step("bob writes to another");
    bob.attach("xvdb", NAME, "nvme0n1p2")?;
    bob.write_line("xvdb", 0..8, "bob was here")?;
    bob.detach("xvdb")?;
    world.step("what alice lets go is bob's at once");
    alice.detach("xvdb")?;
    bob.attach("xvdb", NAME, "nvme0n1p1")?;
    bob.write_line("xvdb", 8..16, "bob was here too")?;
    bob.detach("xvdb")?;
    world.step("both read the whole disk, and nobody writes to a part of it");
    attach(world, alice, "xvdb", "ro", "nvme0n1")?;
    attach(world, bob, "xvdb", "ro", "nvme0n1")?;
    let platter = world.platter()?;
    let (from, name) = (platter.log().len(), bob.name());
    let third = platter.try_attach(name, "xvdc", "nvme0n1p3")?;
    ensure!(third.code != 0, "xl block-attach succeeded: {}", third.text);
    platter.wait_line(from, &["refused", "in use for reading"], A_MOMENT)?;
    world.machine().dom0(&format!("xl block-detach {name} xvdc"))?;
    alice.detach("xvdb")?;
    bob.detach("xvdb")?;
    world.step("the host reads the disk");
    with_gpt(&disk)
        .line(SECOND..SECOND + 8, "bob was here")
        .line(FIRST + 8..FIRST + 16, "bob was here too")
        .check()
}

/// The first namespace with its pattern and this table on it.
fn partitioned(world: &World, table: &str) -> Result<Disk> {
    world.remove_platter()?;
    world.step("the host partitions the disk");
    let disk = world.fresh_disk(1)?;
    disk.partition(table)?;
    Ok(disk)
}

/// A new platter with these options beside the usual ones.
fn platter_beside<'m>(world: &World<'m>, options: &str) -> Result<Platter<'m>> {
    world.step(&format!("platter boots, {options}"));
    world.fresh_platter(Settings { options: &format!("log=info {options}"), ..Settings::usual() })
}

/// What is on a disk with a GPT that nobody has touched.
fn with_gpt(disk: &Disk) -> Expected<'_> {
    let end = DISK_SIZE / BLOCK_SIZE;
    Expected::untouched(disk).anything(0..GPT_BLOCKS).anything(end - GPT_BLOCKS + 1..end)
}

fn attach(world: &World, guest: &Linux, vdev: &str, access: &str, target: &str) -> Result<()> {
    let spec = format!("format=raw,vdev={vdev},access={access},backend={NAME},target={target}");
    world.machine().dom0(&format!("xl block-attach {} '{spec}'", guest.name()))?;
    guest.wait_disk(vdev)
}

/// The attach fails, and platter's log says why.
fn refused(world: &World, guest: &Linux, access: &str, target: &str, why: &[&str]) -> Result<()> {
    let platter = world.platter()?;
    let (from, name) = (platter.log().len(), guest.name());
    let attached = attach(world, guest, "xvdb", access, target);
    ensure!(attached.is_err(), "{name} got {target}");
    platter.wait_line(from, &[&["refused"], why].concat(), A_MOMENT)?;
    world.machine().dom0(&format!("xl block-detach {name} xvdb")).map(drop)
}
