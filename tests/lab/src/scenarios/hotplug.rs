//! Controllers that come and go: `xl pci-detach` and `xl pci-attach` under guests.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::World;
use crate::fio;
use crate::machine::{Controller, Linux, Machine, NAME, Platter, Settings, poll};
use crate::oracle::Expected;

const A_MOMENT: Duration = Duration::from_secs(20);
/// Blocks in a MiB.
const MIB: u64 = 2048;
/// devid of xvdb: 202 << 8 | 1 << 4.
const XVDB: u32 = 51728;

/// A controller is taken from platter while alice reads from it, and given back, twice; bob verifies on platter's
/// other controller all the while. Attaches are refused meanwhile, and served afterwards.
pub(super) fn a_controller_comes_and_goes_under_load(world: &World) -> Result<()> {
    const ROUNDS: u32 = 2;
    let (alice, bob) = (world.alice()?, world.bob()?);
    let controllers = [Controller::PLATTER, Controller::LINUX];
    let options = "log=info opaque=nvme0n1,nvme1n1";
    let platter =
        world.fresh_platter(Settings { controllers: &controllers, options, ..Settings::usual() })?;
    let disks = controllers.each_ref().map(|controller| world.machine().disk(controller, 1));
    disks.iter().try_for_each(|disk| disk.create())?;
    bob.attach("xvdb", NAME, "/dev/nvme1n1")?;
    for round in 1..=ROUNDS {
        thread::scope(|scope| {
            let verify = scope.spawn(|| fio::verify(bob, "xvdb", 10 * round, 8).map(drop));
            let mine = detach_and_attach(world, &platter, alice, round);
            verify.join().map_err(|_| anyhow!("bob's thread panicked"))?.context("bob")?;
            mine
        })?;
    }
    bob.detach("xvdb")?;
    world.step("the host reads both disks");
    let rounds = u64::from(ROUNDS);
    let expected = Expected::untouched(&disks[0]);
    (1..=rounds).fold(expected, |expected, round| expected.line(line_at(round), &line(round))).check()?;
    Expected::untouched(&disks[1]).anything(10 * MIB..(10 * rounds + 8) * MIB).check()
}

fn detach_and_attach(world: &World, platter: &Platter, alice: &Linux, round: u32) -> Result<()> {
    let (machine, pci) = (world.machine(), Controller::PLATTER.pci());
    let from = platter.log().len();
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    let before = platter.cpu_time()?;
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| {
            alice.answer("dd if=/dev/xvdb of=/dev/null bs=64k iflag=direct", Duration::from_secs(100))
        });
        world.step(&format!("alice reads: round {round}"));
        poll("platter at work", A_MOMENT, || Ok((platter.cpu_time()? > before + 100_000_000).then_some(())))?;
        world.step("xl pci-detach platter");
        machine.dom0(&format!("xl pci-detach {NAME} {pci}"))?;
        reader.join().map_err(|_| anyhow!("alice's thread panicked"))?.map(drop)
    })?;
    let size = alice.run("cat /sys/block/xvdb/size")?;
    ensure!(size == "0", "alice's disk still has {size} sectors");
    world.step("the device is closed, and the reason is in the log and in xenstore");
    platter.wait_line(from, &["nvme0: pci 0000:00:00.0 is let go"], A_MOMENT)?;
    let guest = alice.id()?;
    let home = format!("/local/domain/{}", platter.id());
    let error = machine.dom0(&format!("xenstore-read {home}/error/backend/vbd/{guest}/{XVDB}/error"))?;
    ensure!(error.contains("its controller nvme0") && error.contains("detached"), "{error:?}");
    alice.detach("xvdb")?;
    refused(machine, platter, alice)?;
    world.step("xl pci-attach platter");
    let from = platter.log().len();
    machine.dom0(&format!("xl pci-attach {NAME} {pci}"))?;
    platter.wait_line(from, &["nvme0n2: ", " blocks"], A_MOMENT)?;
    world.step("alice attaches, writes and reads");
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    let round = u64::from(round);
    alice.write_line("xvdb", line_at(round), &line(round))?;
    for earlier in 1..=round {
        alice.check_line("xvdb", line_at(earlier), &line(earlier))?;
    }
    alice.detach("xvdb")
}

fn refused(machine: &Machine, platter: &Platter, alice: &Linux) -> Result<()> {
    let from = platter.log().len();
    let answer = platter.try_attach(alice.name(), "xvdb", "/dev/nvme0n1")?;
    ensure!(answer.code != 0, "xl block-attach succeeded: {}", answer.text);
    platter.wait_line(from, &["refused: ", "nvme0n1", "detached"], A_MOMENT)?;
    machine.dom0(&format!("xl block-detach {} xvdb", alice.name())).map(drop)
}

fn line(round: u64) -> String {
    format!("round {round}")
}

fn line_at(round: u64) -> std::ops::Range<u64> {
    round * 8..round * 8 + 8
}

/// A platter that starts without a controller gets its first one later, loses it, and gets another.
pub(super) fn the_first_controller_comes_later(world: &World) -> Result<()> {
    let alice = world.alice()?;
    world.step("platter boots without a device");
    let platter = world.fresh_platter(Settings { controllers: &[], ..Settings::usual() })?;
    for controller in [Controller::PLATTER, Controller::LINUX] {
        let from = platter.log().len();
        world.step(&format!("xl pci-attach platter {}", controller.pci()));
        world.machine().dom0(&format!("xl pci-attach {NAME} {}", controller.pci()))?;
        platter.wait_line(from, &["nvme0n2: ", " blocks"], A_MOMENT)?;
        alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
        alice.run("dd if=/dev/xvdb of=/dev/null bs=64k count=16 iflag=direct")?;
        alice.detach("xvdb")?;
        world.step(&format!("xl pci-detach platter {}", controller.pci()));
        world.machine().dom0(&format!("xl pci-detach {NAME} {}", controller.pci()))?;
        platter.wait_line(from, &["is let go"], A_MOMENT)?;
    }
    world.remove_platter()
}
