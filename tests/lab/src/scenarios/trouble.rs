//! What goes wrong around platter: a console nobody reads, interrupts that cannot be had, a loop that hangs.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{A_MOMENT, MIB, World};
use crate::fio;
use crate::machine::{NAME, Settings, poll};
use crate::oracle::Expected;

/// While the console daemon is stopped, the console's ring fills up; platter goes on answering, and what it had to say
/// is there when the daemon runs again.
pub(super) fn a_console_that_stands_still_holds_nothing_up(world: &World) -> Result<()> {
    const ROUNDS: usize = 14;
    let alice = world.alice()?;
    let platter = world.fresh_platter(Settings::usual())?;
    let from = platter.log().len();
    let target = |round: usize| format!("/dev/{round:02}{}", "x".repeat(180));
    world.step("the console daemon is stopped");
    world.machine().dom0("kill -STOP $(pidof xenconsoled)")?;
    world.step("refused attaches fill the console's ring");
    for round in 0..ROUNDS {
        let refused = platter.try_attach(alice.name(), "xvdb", &target(round))?;
        ensure!(refused.code != 0, "xl block-attach succeeded: {}", refused.text);
        world.machine().dom0(&format!("xl block-detach {} xvdb", alice.name()))?;
    }
    ensure!(platter.log().len() == from, "the console daemon is not stopped");
    world.step("the console daemon goes on, and every line is there");
    world.machine().dom0("kill -CONT $(pidof xenconsoled)")?;
    for round in 0..ROUNDS {
        platter.wait_line(from, &["refused: no volume named", &target(round)], A_MOMENT)?;
    }
    Ok(())
}

/// An NMI from dom0 ends the sleep without any event, so that Xen has not set the mask of upcalls again. platter looks at
/// it when it wakes up from being idle.
pub(super) fn a_wake_up_without_an_event_leaves_upcalls_masked(world: &World) -> Result<()> {
    let (platter, alice) = (world.fresh_platter(Settings::usual())?, world.alice()?);
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    for time in ["first", "second"] {
        world.step(&format!("platter settles, and dom0 sends it the {time} NMI"));
        thread::sleep(Duration::from_secs(4));
        let before = platter.cpu_time()?;
        world.machine().dom0(&format!("xl trigger {NAME} nmi"))?;
        poll("platter awake", A_MOMENT, || Ok((platter.cpu_time()? > before).then_some(())))?;
    }
    alice.run("dd if=/dev/xvdb of=/dev/null bs=64k count=16 iflag=direct")?;
    ensure!(platter.exists()?, "platter has ended");
    alice.detach("xvdb")
}

/// When Xen has no interrupt for the controller, platter says so and polls; data is right all the same.
pub(super) fn without_an_interrupt_it_polls(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    platter.wait_line(0, &["pci 0000:00:00.0", "completions are polled"], A_MOMENT)?;
    let disk = world.fresh_disk(1)?;
    alice.attach("xvdb", NAME, &disk.target())?;
    world.step("fio writes and verifies");
    fio::verify(alice, "xvdb", 1, 8)?;
    alice.detach("xvdb")?;
    Expected::untouched(&disk).anything(MIB..9 * MIB).check()
}

/// A loop that does not turn any more is ended by Xen's watchdog, and `on_watchdog` is obeyed. The loop is held up by
/// pausing the domain in the middle of I/O: it does not turn then either.
pub(super) fn a_loop_that_does_not_turn_is_ended(world: &World) -> Result<()> {
    const A_WHILE: Duration = Duration::from_secs(100);
    let (platter, alice) = (world.platter()?, world.alice()?);
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    let before = platter.cpu_time()?;
    thread::scope(|scope| {
        // It never ends: the disk stops answering under it.
        scope.spawn(|| alice.answer("dd if=/dev/xvdb of=/dev/null bs=64k iflag=direct", A_WHILE));
        world.step("alice reads");
        poll("platter at work", A_MOMENT, || Ok((platter.cpu_time()? > before + 100_000_000).then_some(())))?;
        world.step("xl pause platter");
        world.machine().dom0(&format!("xl pause {NAME}"))?;
        world.step("Xen ends it, and a new domain takes its place");
        world.successor(&platter, A_WHILE).map(drop)
    })
}
