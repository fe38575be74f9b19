//! Plays the checks in order and tells how each ended, a line each.

use platter::platform::xen::{Given, Xen};

use crate::checks::ROOMS;
use crate::host::Host;
use crate::shelf::Shelf;
use crate::stage::Stage;
use crate::terms::Terms;
use crate::verdict::{Check, End, Verdict, ensure};

/// Sectors that a check has for itself: it uses up to 4096 with what is beside them.
pub(crate) const AREA: u64 = 4608;

static SHELF: spin::Mutex<Shelf> = spin::Mutex::new(Shelf::new());

/// What the command line asks for.
struct Options<'a> {
    /// `only=TEXT`: checks whose name has this in it.
    only: &'a str,
    /// `list`: names alone.
    list: bool,
}

impl<'a> Options<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_ascii_whitespace();
        let only = words.clone().find_map(|word| word.strip_prefix("only=")).unwrap_or_default();
        Self { only, list: words.any(|word| word == "list") }
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    fn checks(&self) -> impl Iterator<Item = &'static Check> {
        ROOMS.iter().flat_map(|room| *room).filter(|check| self.wants(check.name))
    }
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Checks the backend of the first disk, and tells the console.
pub fn run(xen: Xen, mut given: Given) {
    let line = core::mem::take(&mut given.command_line);
    let options = Options::parse(core::str::from_utf8(&line).unwrap_or_default());
    let mut host = Host::new(xen, given);
    if options.list {
        options.checks().for_each(|check| host.say(format_args!("{}", check.name)));
        return;
    }
    if let Err(end) = play(&mut host, &options) {
        host.say(format_args!("cannot begin: {end}"));
    }
}

#[inline(never)]
fn play(host: &mut Host, options: &Options<'_>) -> Verdict {
    let (mut shelf, mut tally) = (SHELF.lock(), Tally::default());
    let stage = &mut Stage::new(host, &mut shelf)?;
    introduce(stage, options.checks().count())?;
    for (number, check) in (1..).zip(options.checks()) {
        prepare(stage, number);
        let verdict = (check.run)(stage);
        let closed = stage.close();
        tell(stage, check, &verdict.and(closed), &mut tally);
    }
    let Tally { passed, failed, skipped } = tally;
    stage.host.say(format_args!("end: {passed} passed, {failed} failed, {skipped} skipped"));
    Ok(())
}

/// Connects once, to know the disk, and says what it is.
#[inline(never)]
fn introduce(stage: &mut Stage, checks: usize) -> Verdict {
    let connected = stage.connect(Terms::PLAIN);
    let closed = stage.close();
    connected.and(closed)?;
    let (offer, backend) = (stage.offer, stage.backend.clone());
    let (sectors, size) = (offer.sectors, offer.sector_size);
    ensure!(sectors >= 2 * AREA, "the disk is too small: {sectors} sectors, not {}", 2 * AREA);
    stage.host.say(format_args!(
        "conformance {checks} checks, backend {backend}, {sectors} sectors of {size} bytes, features {offer}"
    ));
    Ok(())
}

/// Gives a check its area and its seed.
fn prepare(stage: &mut Stage, number: u64) {
    let areas = stage.offer.sectors / AREA;
    stage.area = number % areas * AREA;
    stage.seed = number << 16;
}

fn tell(stage: &mut Stage, check: &Check, verdict: &Verdict, tally: &mut Tally) {
    let Check { name, why, .. } = check;
    match verdict {
        Ok(()) => {
            tally.passed += 1;
            stage.host.say(format_args!("check {name}: pass"));
        }
        Err(end @ End::Skip(_)) => {
            tally.skipped += 1;
            stage.host.say(format_args!("check {name}: {end}"));
        }
        Err(end @ End::Fail(_)) => {
            tally.failed += 1;
            let open = if why.is_empty() { "" } else { " -- " };
            stage.host.say(format_args!("check {name}: {end}{open}{why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_choose_checks() {
        let all = Options::parse("log=debug listed");
        assert!(!all.list && all.wants("segments/direct-1"));
        let some = Options::parse("list  only=segments/");
        assert!(some.list && some.wants("segments/direct-1") && !some.wants("ring/full"));
    }
}
