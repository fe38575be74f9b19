//! What the image does is chosen here: the checks are played in order, and how each ended is told, a
//! line each; or the attacks are (see `attacks`).

use platter::platform::xen::{Given, Xen};

use crate::attacks;
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
pub(crate) struct Options<'a> {
    /// `only=TEXT`, `torture=TEXT`: checks or attacks whose name has this in it.
    only: &'a str,
    /// `list`: names alone.
    lists: bool,
    /// `torture`: attacks instead of checks.
    torture: bool,
    /// `seconds=N`: how long each attack takes.
    pub(crate) seconds: u64,
    /// `seed=N`: what decides whatever an attack leaves to chance.
    pub(crate) seed: u64,
}

impl<'a> Options<'a> {
    fn parse(line: &'a str) -> Self {
        let words = || line.split_ascii_whitespace();
        let value = |name: &str| words().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let count = |name: &str| value(name).and_then(|text| text.parse().ok());
        let is_there = |name: &str| words().any(|word| word == name);
        Self {
            only: value("only").or(value("torture")).unwrap_or_default(),
            lists: is_there("list"),
            torture: is_there("torture") || value("torture").is_some(),
            seconds: count("seconds").unwrap_or(5),
            seed: count("seed").unwrap_or(1),
        }
    }

    /// Whether this one alone is asked for, by its whole name.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.only == name
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    fn list(&self) -> impl Iterator<Item = &'static str> {
        let checks = self.checks().filter(|_| !self.torture).map(|check| check.name);
        checks.chain(attacks::chosen(self).filter(|_| self.torture).map(|(_, attack)| attack.name))
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
    if options.lists {
        options.list().for_each(|name| host.say(format_args!("{name}")));
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
    meet(stage)?;
    if options.torture {
        attacks::run(stage, options);
        return Ok(());
    }
    introduce(stage, options.checks().count());
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

/// Connects once, to know the disk.
#[inline(never)]
fn meet(stage: &mut Stage) -> Verdict {
    let connected = stage.connect(Terms::PLAIN);
    let closed = stage.close();
    connected.and(closed)?;
    let sectors = stage.offer.sectors;
    ensure!(sectors >= 2 * AREA, "the disk is too small: {sectors} sectors, not {}", 2 * AREA);
    Ok(())
}

/// Says what the disk is.
fn introduce(stage: &mut Stage, checks: usize) {
    let (offer, backend) = (stage.offer, stage.backend.clone());
    let (sectors, size) = (offer.sectors, offer.sector_size);
    stage.host.say(format_args!(
        "conformance {checks} checks, backend {backend}, {sectors} sectors of {size} bytes, features {offer}"
    ));
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
        assert!(!all.lists && all.wants("segments/direct-1"));
        let some = Options::parse("list  only=segments/");
        assert!(some.lists && some.wants("segments/direct-1") && !some.wants("ring/full"));
    }

    #[test]
    fn options_choose_attacks() {
        let options = Options::parse("torture=life/ seconds=20 seed=x");
        assert!(options.torture && (options.seconds, options.seed) == (20, 1));
        assert!(options.wants("life/slams") && !options.wants("ring/garbage"));
        assert!(Options::parse("torture").torture && !Options::parse("only=torture").torture);
        let named = Options::parse("torture=life/crashes");
        assert!(named.names("life/crashes") && !options.names("life/crashes"));
    }
}
