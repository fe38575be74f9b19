//! The attacks of `tests/frontend` on platter, beside a guest that must not notice more than a neighbour's load.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::World;
use crate::attacks::{self, Field, LIMIT, REGION};
use crate::fio;

/// Lines of platter's log that one guest may cause in so short a time: 256 in a row and one every five seconds, and a few
/// of others'.
const LINES: usize = 400;
/// Attackers that die one after the other.
const DEATHS: usize = 2;

/// All attacks, one after the other, while bob writes and reads back.
pub(super) fn each_beside_a_victim(world: &World) -> Result<()> {
    let field = Field::prepare(world)?;
    let from = world.log().len();
    let rounds = keep_verifying(&field)?;
    let count = attacks::play(world, &field.attacker("torture seconds=1")?)?;
    rounds.stop()?;
    let lines = world.log()[from..].lines().count();
    ensure!(lines <= LINES, "{count} attacks have platter say {lines} lines");
    field.check()
}

/// An attacker ends with requests in flight: it crashes, removes its device, is destroyed in the middle of an attack.
pub(super) fn attackers_die_in_the_middle(world: &World) -> Result<()> {
    let field = Field::prepare(world)?;
    let rounds = keep_verifying(&field)?;
    for death in 1..=DEATHS {
        world.step(&format!("mallory crashes: {death} of {DEATHS}"));
        field.attacker(&format!("torture=life/crashes seed={death}"))?.wait_end(LIMIT)?;
    }
    world.step("mallory removes its device's directory");
    field.attacker("torture=life/removes-its-directory seconds=1")?.wait_end(LIMIT)?;
    for attack in ["requests/splinters", "grants/persistent-exhausted"] {
        world.step(&format!("mallory is destroyed in {attack}"));
        let attacker = field.attacker(&format!("torture={attack} seconds=60"))?;
        attacks::await_word(world, &attacker, attack, |said| said.begun.clone())?;
        thread::sleep(Duration::from_secs(2));
        attacker.destroy()?;
    }
    rounds.stop()?;
    field.check()
}

fn keep_verifying<'w, 'm>(field: &Field<'w, 'm>) -> Result<fio::Rounds<'w, 'm>> {
    let (offset, _) = REGION;
    fio::keep_verifying(field.bob, "xvdb", offset, 8)
}
