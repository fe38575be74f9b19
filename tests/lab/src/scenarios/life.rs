//! platter's own life: options, idleness, having no device, shutdown, crash.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{A_MOMENT, World};
use crate::machine::{Controller, NAME, Settings, poll};

/// `log=warn` silences what `log=info` says; an option that does not exist is named and ignored.
pub(super) fn options_are_heeded_or_named(world: &World) -> Result<()> {
    let from = world.log().len();
    world.step("platter boots with log=warn and an option it does not know");
    let platter = world.fresh_platter(Settings { options: "log=warn foo", ..Settings::usual() })?;
    platter.wait_line(from, &["warning: unknown option \"foo\""], A_MOMENT)?;
    let log = platter.log();
    ensure!(!log[from..].contains("ready in"), "log=warn does not silence the ready line");
    world.step("platter boots with log=debug");
    let from = log.len();
    let options = "log=debug opaque=nvme0n1,nvme0n2";
    let platter = world.fresh_platter(Settings { options, ..Settings::usual() })?;
    platter.wait_line(from, &["ready in"], A_MOMENT).map(drop)
}

/// It serves with little memory, and takes all it is given into use.
pub(super) fn uses_the_memory_it_is_given(world: &World) -> Result<()> {
    let alice = world.alice()?;
    for memory in [4, 256] {
        let from = world.log().len();
        world.step(&format!("platter boots with {memory} MiB"));
        let platter = world.fresh_platter(Settings { memory, ..Settings::usual() })?;
        let line =
            platter.wait_line(from, &[&format!("memory: {memory} MiB, "), "free for I/O"], A_MOMENT)?;
        let free = line.split(' ').rev().nth(1).and_then(|kib| kib.parse::<u32>().ok());
        let free = free.with_context(|| format!("no number of KiB in {line:?}"))?;
        ensure!(free > (memory - 3) * 1024, "only {free} KiB are free for I/O");
        alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
        alice.run("dd if=/dev/xvdb of=/dev/null bs=64k count=16 iflag=direct")?;
        alice.detach("xvdb")?;
    }
    world.remove_platter()
}

/// With nothing to do it is never scheduled: its CPU time stands still.
pub(super) fn sleeps_when_idle(world: &World) -> Result<()> {
    let platter = world.fresh_platter(Settings::usual())?;
    world.step("platter settles");
    thread::sleep(Duration::from_secs(3));
    world.step("its CPU time stands still");
    let before = platter.cpu_time()?;
    thread::sleep(Duration::from_secs(10));
    let used = platter.cpu_time()? - before;
    ensure!(used == 0, "an idle platter used {used} ns of CPU in 10 s");
    Ok(())
}

/// Without a PCI device it says so, stays up, and refuses attaches with that reason.
pub(super) fn stays_up_without_a_device(world: &World) -> Result<()> {
    const REASON: &str = "no PCI device was given to this domain";
    let alice = world.alice()?;
    let from = world.log().len();
    world.step("platter boots without a device");
    let platter = world.fresh_platter(Settings { controllers: &[], ..Settings::usual() })?;
    platter.wait_line(from, &["warning: ", REASON], A_MOMENT)?;
    world.step("alice asks for a disk and is refused");
    let refused = platter.try_attach(alice.name(), "xvdb", "/dev/nvme0n1")?;
    ensure!(refused.code != 0, "xl block-attach succeeded: {}", refused.text);
    platter.wait_line(from, &["/51728: refused: ", REASON], A_MOMENT)?;
    world.machine().dom0(&format!("xl block-detach {} xvdb", alice.name()))?;
    ensure!(platter.exists()?, "platter has ended");
    world.remove_platter()
}

/// `xl shutdown` is acknowledged, and the domain ends.
pub(super) fn shuts_down_when_asked(world: &World) -> Result<()> {
    let platter = world.fresh_platter(Settings::usual())?;
    world.step("xl shutdown platter");
    world.machine().dom0(&format!("xl shutdown {NAME}"))?;
    world.step("the domain ends by itself");
    poll("the end of platter's domain", Duration::from_secs(60), || Ok((!platter.exists()?).then_some(())))
}

/// `xl sysrq platter c` crashes it on purpose: the epitaph has the cause and the registers, and on_crash is obeyed.
pub(super) fn crash_leaves_an_epitaph(world: &World) -> Result<()> {
    let platter = world.fresh_platter(Settings { on_crash: "preserve", ..Settings::usual() })?;
    let from = platter.log().len();
    world.step("xl sysrq platter c");
    world.machine().dom0(&format!("xl sysrq {NAME} c"))?;
    world.step("the epitaph is on the console");
    for words in ["epitaph", "sysrq c", "rip", "rsp"] {
        platter.wait_line(from, &[words], A_MOMENT)?;
    }
    world.step("on_crash=preserve keeps the crashed domain");
    let state = format!("xl list {} | awk 'NR == 2 {{ print $5 }}'", platter.id());
    poll("the domain's state c, crashed", A_MOMENT, || {
        Ok(world.machine().dom0(&state)?.contains('c').then_some(()))
    })?;
    world.remove_platter()
}

/// As its own configuration says, a crashed platter is replaced by a new one that serves.
pub(super) fn crash_restarts(world: &World) -> Result<()> {
    let platter = world.fresh_platter(Settings { on_crash: "restart", ..Settings::usual() })?;
    world.step("xl sysrq platter c");
    world.machine().dom0(&format!("xl sysrq {NAME} c"))?;
    world.step("a new domain takes its place");
    world.successor(&platter, Duration::from_secs(60))?;
    world.step("alice attaches a disk to it");
    let alice = world.alice()?;
    alice.attach("xvdb", NAME, &world.machine().disk(&Controller::PLATTER, 1).target())?;
    alice.run("dd if=/dev/xvdb of=/dev/null bs=64k count=4 iflag=direct")?;
    alice.detach("xvdb")?;
    world.remove_platter()
}
