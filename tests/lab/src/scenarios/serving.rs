//! Attaching and detaching, as an administrator sees it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{A_MOMENT, World, XVDB};
use crate::image::UNIT;
use crate::machine::NAME;
use crate::oracle::Expected;
use crate::paths;

/// Bytes of the stripped image at most: tables that are not all zeros at first would be in the file.
const IMAGE_LIMIT: u64 = 512 << 10;

/// Small, and booted by its own configuration, platter says on its console what it has, then that it serves.
pub(super) fn boots_and_says_ready(world: &World) -> Result<()> {
    let size = fs::metadata(paths::image().join(NAME))?.len();
    ensure!(size < IMAGE_LIMIT, "the image has {size} bytes, more than {IMAGE_LIMIT}");
    world.step("platter boots and says what it has");
    let platter = world.platter()?;
    let version = concat!("platter ", env!("CARGO_PKG_VERSION"), " on Xen 4.17");
    for words in [
        &[version][..],
        &["memory: 16 MiB"],
        &["pci 0000:00:00.0: 1b36:0010 class 010802"],
        &["nvme0: model \"QEMU NVMe Ctrl\", serial \"PLATTER0\", firmware \"", "2 namespaces"],
        &["nvme0n1: 1048576 blocks of 512 bytes, 512 MiB"],
        &["nvme0n2: 1048576 blocks of 512 bytes, 512 MiB"],
        &["ready in ", " ms"],
    ] {
        platter.wait_line(0, words, A_MOMENT)?;
    }
    world.step("its systemd unit's wait for data/ready ends");
    let ready = format!("/local/domain/{}/data/ready", platter.id());
    ensure!(world.machine().dom0(&format!("xenstore-read {ready}"))? == "1", "data/ready is not 1");
    let wait = unit_script("ExecStartPost", "data/ready")?;
    world.machine().dom0(&wait)?;
    world.step("the unit leaves a platter alone that runs");
    let [take, create] = [("ExecStartPre", "pci-assignable-add"), ("ExecStart", "xl create")]
        .map(|(key, word)| unit_script(key, word));
    let end = unit_script("ExecStopPost", "xl destroy")?.replace("seq 30", "seq 1");
    world.machine().dom0(&format!("({}) && ({}) && ({end})", take?, create?))?;
    ensure!(
        world.machine().dom0(&format!("xl domid {NAME}"))? == platter.id().to_string(),
        "it is another one"
    );
    world.step("its wait does not end where nobody is ready");
    world.machine().dom0(&format!("xenstore-write {ready} 0"))?;
    let early = world.machine().dom0_answer(&wait, Duration::from_secs(3))?;
    world.machine().dom0(&format!("xenstore-write {ready} 1"))?;
    ensure!(early.code != 0, "the unit does not wait");
    Ok(())
}

/// The shell script of the systemd unit that has this key, and this text in it.
fn unit_script(key: &str, text: &str) -> Result<String> {
    let start = format!("{key}=/bin/sh -c '");
    let mut scripts = UNIT.lines().filter_map(|line| line.strip_prefix(&start)?.strip_suffix('\''));
    let script = scripts.find(|script| script.contains(text));
    Ok(script.with_context(|| format!("the unit has no {key} with {text}"))?.replace("$$", "$"))
}

/// A volume that does not exist is refused at once, with the reason in the log and in xenstore; the same vdev is then
/// free for one that does.
pub(super) fn refuses_an_unknown_volume(world: &World) -> Result<()> {
    let (platter, alice) = (world.platter()?, world.alice()?);
    let from = platter.log().len();
    world.step("alice asks for a namespace that is not there");
    let refused = platter.try_attach(alice.name(), "xvdb", "/dev/nvme0n9")?;
    ensure!(refused.code != 0, "xl block-attach succeeded: {}", refused.text);
    world.step("the reason is in the log and in xenstore, the device's directory has gone");
    let guest = world.machine().dom0(&format!("xl domid {}", alice.name()))?;
    let reason = "no volume named \"/dev/nvme0n9\"";
    platter.wait_line(from, &[&format!("vbd {guest}/{XVDB}: refused: {reason}")], A_MOMENT)?;
    let home = format!("/local/domain/{}", platter.id());
    let error =
        world.machine().dom0(&format!("xenstore-read {home}/error/backend/vbd/{guest}/{XVDB}/error"))?;
    ensure!(error.contains(reason), "the error node says {error:?}");
    let gone = format!("! xenstore-read {home}/backend/vbd/{guest}/{XVDB}/state 2>/dev/null");
    world.machine().dom0(&gone)?;
    world.step("the same vdev then takes a good volume");
    world.machine().dom0(&format!("xl block-detach {} xvdb", alice.name()))?;
    alice.attach("xvdb", NAME, "/dev/nvme0n1")?;
    alice.run("dd if=/dev/xvdb of=/dev/null bs=64k count=16 iflag=direct")?;
    alice.detach("xvdb")
}

/// A disk comes and goes five times; what was written before it went is there when it comes back.
pub(super) fn attaches_again_and_again(world: &World) -> Result<()> {
    const ROUNDS: u64 = 5;
    let (platter, alice) = (world.platter()?, world.alice()?);
    let disk = world.fresh_disk(2)?;
    let mut expected = Expected::untouched(&disk);
    for round in 1..=ROUNDS {
        let from = platter.log().len();
        world.step(&format!("attach, write, read what was written before, detach: {round} of {ROUNDS}"));
        alice.attach("xvdb", NAME, &disk.target())?;
        alice.write_line("xvdb", round * 8..round * 8 + 8, &format!("round {round}"))?;
        for earlier in 1..=round {
            alice.check_line("xvdb", earlier * 8..earlier * 8 + 8, &format!("round {earlier}"))?;
        }
        alice.detach("xvdb")?;
        for state in ["-> InitWait", "-> Connected", "-> Closed", "removed"] {
            platter.wait_line(from, &[&format!("/{XVDB} "), state], A_MOMENT)?;
        }
        expected = expected.line(round * 8..round * 8 + 8, &format!("round {round}"));
    }
    world.step("the host reads the disk");
    expected.check()
}
