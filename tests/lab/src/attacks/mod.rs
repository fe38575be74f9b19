//! `cargo lab attacks`: a guest's I/O beside each attack of the image (`tests/frontend`, torture), measured.
//!
//! [`Field`] is what this and the stories of [`crate::scenarios`] share: bob, whose disk is attacked through platter, and
//! mallory, who has a partition of another disk behind the same controller. [`console`] reads what the image says.

mod console;

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use self::console::Transcript;
use crate::fio::{self, Measure};
use crate::machine::{
    Controller, Daemon, Disk, Disks, Frontend, Linux, Machine, NAME, Settings, Spec, disk_spec, poll,
};
use crate::oracle::Expected;
use crate::progress::Progress;
use crate::scenarios::World;
use crate::{image, interrupt, process, report, setup};

/// The attacker's domain.
const MALLORY: &str = "mallory";
/// A partition for mallory, with blocks before and behind it that nobody may touch.
const TABLE: &str = "label: dos\nstart=2048, size=262144, type=83\n";
const PARTITION: Range<u64> = 2048..2048 + 262_144;
/// What bob has written before, and what he writes meanwhile, in MiB: from where, and how much.
const STAMP: Range<u64> = 8..64;
const WORDS: &str = "bob was here first";
pub(crate) const REGION: (u32, u32) = (5, 64);
/// Blocks in a MiB.
const MIB: u64 = 2048;

/// What attacks are held against: a guest that does nothing but use a processor, and one that reads as much as it gets.
const NEIGHBOURS: [&str; 2] = ["neighbour/only-computes", "neighbour/reads-at-full-rate"];
/// How long bob is measured beside each attack, which goes on until that is done, and at most so long.
const JOB_SECONDS: u32 = 10;
const ATTACK_SECONDS: u32 = 300;
/// What all attacks together may take, and a dead domain's end.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);
/// How often the attacker's domain is asked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The processors of platter, bob and mallory. What they do to each other is then platter's doing, not that of Xen's
/// scheduler.
const PROCESSORS: [u32; 3] = [0, 1, 2];

/// Bob and mallory, one's disk and the other's partition, and a platter that serves both.
pub(crate) struct Field<'w, 'm> {
    world: &'w World<'m>,
    pub(crate) bob: &'w Linux<'m>,
    bobs: Disk,
    mallorys: Disk,
}

impl<'w, 'm> Field<'w, 'm> {
    /// Boots a fresh platter on fresh disks, and bob, who leaves a mark on his.
    ///
    /// # Errors
    /// Something does not come up.
    pub(crate) fn prepare(world: &'w World<'m>) -> Result<Self> {
        world.remove_platter()?;
        let (bobs, mallorys) = (world.fresh_disk(1)?, world.fresh_disk(2)?);
        mallorys.partition(TABLE)?;
        world.step("platter boots");
        world.fresh_platter(Settings { options: "log=info opaque=nvme0n1", ..Settings::usual() })?;
        let bob = world.bob()?;
        bob.attach("xvdb", NAME, &bobs.target())?;
        bob.write_line("xvdb", STAMP, WORDS)?;
        Ok(Self { world, bob, bobs, mallorys })
    }

    /// Boots the attacker with the image's options.
    ///
    /// # Errors
    /// As [`Frontend::create`].
    pub(crate) fn attacker(&self, options: &str) -> Result<Frontend<'m>> {
        let partition = format!("{}p1", self.mallorys.target());
        Frontend::create(self.world.machine(), MALLORY, &disk_spec("xvda", NAME, &partition), options)
    }

    /// Bob's disk is as he left it, a new one can be had, and nobody has written where nobody may.
    ///
    /// # Errors
    /// What is otherwise.
    pub(crate) fn check(self) -> Result<()> {
        let Self { world, bob, bobs, mallorys } = self;
        world.step("bob's disk is as he left it");
        bob.check_line("xvdb", STAMP, WORDS)?;
        world.step("a new disk can be attached");
        bob.attach("xvdc", NAME, &format!("{}p1", mallorys.target()))?;
        bob.run("dd if=/dev/xvdc of=/dev/null bs=64k count=16 iflag=direct")?;
        bob.detach("xvdc")?;
        bob.detach("xvdb")?;
        world.step("the host reads both disks");
        let region = u64::from(REGION.0) * MIB..u64::from(REGION.0 + REGION.1) * MIB;
        Expected::untouched(&bobs).line(STAMP, WORDS).anything(region).check()?;
        // The table is the tool's.
        Expected::untouched(&mallorys).anything(0..1).anything(PARTITION).check()
    }
}

/// Waits until the image has said what is looked for.
///
/// # Errors
/// It has not within [`LIMIT`], or its domain is gone.
pub(crate) fn await_word<T>(
    world: &World,
    attacker: &Frontend,
    what: &str,
    look: impl Fn(&Transcript) -> Option<T>,
) -> Result<T> {
    let (mut begun, mut next_look) = (None, Instant::now() + LOOK_EVERY);
    poll(what, LIMIT, || {
        world.machine().check_alive()?;
        let is_there = Instant::now() < next_look || attacker.exists()?;
        let said = Transcript::read(&attacker.said());
        let found = look(&said);
        if found.is_none() && !is_there {
            bail!("{MALLORY} is gone: {}", process::tail(&attacker.said(), 12));
        }
        if begun != said.begun {
            begun = said.begun;
            world.step(begun.as_deref().unwrap_or_default());
        }
        if Instant::now() >= next_look {
            next_look = Instant::now() + LOOK_EVERY;
        }
        Ok(found)
    })
}

/// Plays attacks and waits until all of them are over: how many there were.
///
/// # Errors
/// One of them did nothing, or the image does not come to its end.
pub(crate) fn play(world: &World, attacker: &Frontend) -> Result<usize> {
    let transcript = await_word(world, attacker, "the end of all attacks", |said| {
        (said.over && said.announced == Some(said.done.len())).then(|| said.clone())
    })?;
    let idle = transcript.done.iter().find(|attack| attack.acts == 0);
    ensure!(idle.is_none(), "an attack that does not attack: {idle:?}");
    let kept = transcript.done.iter().find(|attack| attack.how.contains("still uses"));
    ensure!(kept.is_none(), "platter is Closed and keeps pages: {kept:?}");
    attacker.wait_end(LIMIT)?;
    Ok(transcript.done.len())
}

/// Measures bob alone, beside neighbours that do nothing wrong, and beside every attack whose name contains `filter`;
/// prints the table.
///
/// # Errors
/// Something does not come up, no attack has such a name, bob reads what he has not written, or somebody else's block was
/// written.
pub(crate) fn run(progress: &Progress, filter: Option<&str>) -> Result<()> {
    setup::ensure(progress)?;
    image::build(progress)?;
    image::build_frontend(progress)?;
    let step = progress.task("attacks");
    step.now("booting Xen and dom0");
    let machine = Machine::boot(Spec {
        name: "attacks".to_owned(),
        daemon: Daemon::Oxenstored,
        controllers: vec![Controller::PLATTER],
        disks: Disks::Fresh,
        xen_options: "dom0_vcpus_pin",
        processors: PROCESSORS.len() as u32,
    })?;
    let rows = measure_all(&World::new(&machine, &step), filter.unwrap_or_default())
        .map_err(|error| machine.explain(error))?;
    let head = [
        "bob's 4 KiB at depth 4, verified, beside",
        "acts",
        "IOPS",
        "p99 ms",
        "/ that beside computing",
        "at most doubled",
        "/ that beside reads",
    ];
    progress.say(&format!("\n{}", report::table(&head, &rows)));
    machine.end()
}

fn measure_all(world: &World, filter: &str) -> Result<Vec<Vec<String>>> {
    world.story("attacks");
    let field = Field::prepare(world)?;
    world.machine().pin(NAME, PROCESSORS[0])?;
    world.machine().pin(field.bob.name(), PROCESSORS[1])?;
    let names: Vec<String> = names(&field)?.into_iter().filter(|name| name.contains(filter)).collect();
    ensure!(!names.is_empty(), "no attack's name contains {filter:?}");
    world.step("bob alone");
    let alone = measure(field.bob)?;
    let [computing, reading] = [beside(&field, NEIGHBOURS[0])?, beside(&field, NEIGHBOURS[1])?];
    let references = [computing.1.p99, reading.1.p99];
    let mut rows = vec![row("nobody", None, &alone, references)];
    for (name, (acts, measure)) in NEIGHBOURS.iter().zip([computing, reading]) {
        rows.push(row(name, Some(acts), &measure, references));
    }
    for name in names.iter().filter(|name| !NEIGHBOURS.contains(&name.as_str())) {
        let (acts, measure) = beside(&field, name)?;
        rows.push(row(name, Some(acts), &measure, references));
    }
    let (acts, again) = beside(&field, NEIGHBOURS[0])?;
    rows.push(row("the first of these again", Some(acts), &again, references));
    // Alone he has more of the host, and may only be faster.
    if !are_steady(&[alone.p99.max(references[0]), references[0], again.p99]) {
        world.say("the host was busy with something else: figures that should be alike are not, and the others mean nothing");
    }
    field.check()?;
    Ok(rows)
}

/// Whether figures that should be alike are: the largest is no more than half as large again as the least.
fn are_steady(figures: &[Duration]) -> bool {
    let (least, most) = (figures.iter().min(), figures.iter().max());
    least.zip(most).is_none_or(|(least, most)| *most <= *least * 3 / 2)
}

/// The attacks there are, as the image lists them.
fn names(field: &Field) -> Result<Vec<String>> {
    let image = field.attacker("torture list")?;
    image.wait_end(LIMIT)?;
    let said = image.said();
    Ok(said.lines().filter(|line| line.contains('/')).map(str::to_owned).collect())
}

/// Bob's figures beside an attack, and how often that acted.
fn beside(field: &Field, name: &str) -> Result<(u64, Measure)> {
    let world = field.world;
    world.step(name);
    interrupt::check()?;
    let attacker = field.attacker(&format!("torture={name} seconds={ATTACK_SECONDS}"))?;
    world.machine().pin(MALLORY, PROCESSORS[2])?;
    await_word(world, &attacker, name, |said| {
        said.begun.as_deref().filter(|begun| *begun == name).map(drop)
    })?;
    let measure = measure(field.bob)?;
    let said = Transcript::read(&attacker.said());
    ensure!(said.done.is_empty(), "{name} was over before bob's job was");
    attacker.destroy()?;
    let (rate, p99) = (measure.outcome.requests_per_second(), measure.p99.as_secs_f64() * 1e3);
    world.say(&format!("{name}: {} acts, {rate:.0} IOPS, p99 {p99:.1} ms", said.so_far));
    Ok((said.so_far, measure))
}

fn measure(bob: &Linux) -> Result<Measure> {
    let measure = fio::verified_for(bob, "xvdb", REGION, JOB_SECONDS)?;
    ensure!(measure.outcome.errors == 0, "bob's job met an error");
    Ok(measure)
}

/// A row of the table: bob's figures, and his p99 beside what it is next to each of [`NEIGHBOURS`].
fn row(name: &str, acts: Option<u64>, measure: &Measure, [computing, reading]: [Duration; 2]) -> Vec<String> {
    let p99 = measure.p99.as_secs_f64();
    vec![
        name.to_owned(),
        acts.map_or_else(|| "-".to_owned(), |acts| acts.to_string()),
        format!("{:.0}", measure.outcome.requests_per_second()),
        format!("{:.1}", p99 * 1e3),
        format!("{:.2}", p99 / computing.as_secs_f64()),
        if measure.p99 <= computing * 2 { "yes" } else { "no" }.to_owned(),
        format!("{:.2}", p99 / reading.as_secs_f64()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_busy_host_are_told_apart() {
        let ms = Duration::from_millis;
        assert!(are_steady(&[ms(20), ms(30), ms(22)]));
        assert!(!are_steady(&[ms(177), ms(10), ms(11)]));
    }
}
