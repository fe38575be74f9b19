//! Plays attacks one after the other, each for its time, and tells how often each acted; and what
//! attacks have in common: chance, time, and a ring that is filled without a look at the answers.
//! An attack's time runs from its first act: connecting is not attacking.

use core::time::Duration;

use platter::hal::{DeviceAccess, Events as _};
use platter::units::Instant;
use platter::wire::xenbus::XenbusState;

use super::{Attack, chosen};
use crate::pattern::mixed;
use crate::protocol::PAGE_SECTORS;
use crate::protocol::abi::{Abi, Request, Segment};
use crate::shelf::Buffer;
use crate::stage::Stage;
use crate::suite::Options;
use crate::terms::{RingNodes, Terms};
use crate::transfer::Pages;
use crate::verdict::Verdict;

/// Acts between two looks at whether the backend still serves.
const LOOK_EVERY: u64 = 32;
/// How long an attack sleeps at most between two acts.
const BREATH: Duration = Duration::from_millis(1);
/// How often an attack tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// What an attack leaves its backend to notice something.
const MOMENT: Duration = Duration::from_secs(1);

/// An entry of a ring.
pub(super) type Entry = [u8; Abi::LARGEST];

/// A stage under attack.
pub(super) struct Siege<'a, 's> {
    pub(super) stage: &'a mut Stage<'s>,
    /// What chance has come to.
    chance: u64,
    name: &'static str,
    time: Duration,
    /// When its time is over; nothing before its first act.
    until: Option<Instant>,
    /// When to tell how far it is.
    tell_at: Option<Instant>,
    acts: u64,
    /// The acts at which the backend is to be looked at again.
    look_at: u64,
}

/// Plays the attacks that are asked for, a line at the first act of each and one when it is over.
#[inline(never)]
pub(crate) fn run(stage: &mut Stage, options: &Options<'_>) {
    let (count, seconds, seed) = (chosen(options).count(), options.seconds, options.seed);
    let (backend, sectors) = (stage.backend.clone(), stage.offer.sectors);
    stage.host.say(format_args!(
        "torture {count} attacks of {seconds} s, seed {seed}, backend {backend}, {sectors} sectors"
    ));
    for (number, attack) in chosen(options) {
        let (chance, time) = (mixed(seed ^ number << 32), Duration::from_secs(seconds));
        let (name, until, tell_at) = (attack.name, None, None);
        Siege { stage, chance, name, time, until, tell_at, acts: 0, look_at: 0 }.play(attack);
    }
    stage.host.say(format_args!("torture over"));
}

impl Siege<'_, '_> {
    fn play(&mut self, attack: &Attack) {
        let mut rounds = 0;
        let last = loop {
            rounds += 1;
            self.stage.host.limit = self.until;
            let ended = (attack.round)(self);
            self.stage.host.limit = None;
            let last = ended.and(self.stage.close());
            if self.acts == 0 || !self.has_time() {
                break last;
            }
        };
        let (name, acts, host) = (self.name, self.acts, &mut self.stage.host);
        match last {
            Ok(()) => host.say(format_args!("attack {name}: {acts} acts in {rounds} rounds")),
            Err(end) => {
                host.say(format_args!("attack {name}: {acts} acts in {rounds} rounds, the last: {end}"))
            }
        }
    }

    pub(super) fn has_time(&mut self) -> bool {
        let now = self.stage.host.now();
        self.until.is_none_or(|until| now < until)
    }

    /// From now on it attacks.
    fn begin(&mut self) {
        self.stage.host.say(format_args!("attack {} begins", self.name));
        self.until = Some(self.stage.host.now() + self.time);
        self.stage.host.limit = self.until;
    }

    /// So many acts were done. Whether to go on with this connection: there is time, and the
    /// backend serves it, which is looked at now and then.
    pub(super) fn acted(&mut self, count: u64) -> Verdict<bool> {
        if self.until.is_none() {
            self.begin();
        }
        self.acts += count;
        self.stage.host.xen.alive();
        self.tell();
        if self.acts < self.look_at {
            return Ok(self.has_time());
        }
        self.look_at = self.acts + LOOK_EVERY;
        Ok(self.has_time() && self.is_served()?)
    }

    /// Tells how far it is, unless it has just done so.
    fn tell(&mut self) {
        let now = self.stage.host.now();
        if *self.tell_at.get_or_insert(now + TELL_EVERY) <= now {
            self.stage.host.say(format_args!("attack {}: {} acts so far", self.name, self.acts));
            self.tell_at = Some(now + TELL_EVERY);
        }
    }

    /// Whether the backend says that it is Connected, as far as it was heard of.
    fn is_served(&mut self) -> Verdict<bool> {
        let now = self.stage.host.now();
        if self.stage.host.wait_change(now)? {
            let state = self.stage.host.state(&self.stage.backend)?;
            return Ok(state == XenbusState::Connected);
        }
        Ok(true)
    }

    /// Waits until the backend ends the connection, but no longer than a moment.
    pub(super) fn await_end(&mut self) -> Verdict {
        let end = self.stage.host.now() + MOMENT;
        while self.stage.host.now() < end && self.has_time() && self.is_served()? {
            self.nap();
        }
        Ok(())
    }

    /// Any number.
    pub(super) fn any(&mut self) -> u64 {
        self.chance = self.chance.wrapping_add(1);
        mixed(self.chance)
    }

    /// A number below another.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.any() % end
    }

    pub(super) fn one_of<T: Copy>(&mut self, things: &[T]) -> T {
        things[self.below(things.len() as u64) as usize]
    }

    /// Bytes that mean nothing.
    pub(super) fn noise(&mut self) -> Entry {
        let mut entry = [0; Abi::LARGEST];
        entry.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.any().to_le_bytes()));
        entry
    }

    /// A sector of the disk at which a whole page begins.
    pub(super) fn place(&mut self) -> u64 {
        let pages = (self.stage.offer.sectors / u64::from(PAGE_SECTORS)).max(1);
        self.below(pages) * u64::from(PAGE_SECTORS)
    }

    /// The largest single ring that is offered.
    pub(super) fn widest(&self) -> Terms {
        match self.stage.offer.max_order.min(4) {
            0 => Terms::PLAIN,
            order => Terms { nodes: RingNodes::Numbered, ..Terms::order(order) },
        }
    }

    /// Connects, and lends some pages.
    pub(super) fn open(&mut self, terms: Terms, pages: usize, access: DeviceAccess) -> Verdict<Pages> {
        self.stage.connect(terms)?;
        self.lend(pages, access)
    }

    pub(super) fn lend(&mut self, pages: usize, access: DeviceAccess) -> Verdict<Pages> {
        (0..pages).map(|_| self.stage.lend(access)).collect()
    }

    /// All of one of some pages, as a segment.
    pub(super) fn whole(&mut self, pages: &[Buffer]) -> Segment {
        let page = self.one_of(pages);
        self.stage.segment(page, 0, PAGE_SECTORS - 1)
    }

    /// The entry of a direct request.
    pub(super) fn direct(&mut self, op: u8, sector: u64, segments: &[Segment]) -> Entry {
        let id = self.stage.fresh_id();
        self.encode(&Request::direct(op, id, sector, segments))
    }

    pub(super) fn encode(&mut self, request: &Request<'_>) -> Entry {
        let abi = self.stage.queue(0).ring.abi();
        request.encode(abi)
    }

    /// Fills the ring with entries, as many as the backend has answered, and publishes them: how
    /// many. The answers are left unread.
    pub(super) fn fill(&mut self, mut entry: impl FnMut(&mut Self) -> Entry) -> u64 {
        let room = self.stage.queue(0).ring.room();
        for _ in 0..room {
            let entry = entry(self);
            self.stage.queue(0).ring.shove(&entry);
        }
        self.stage.publish(0);
        room.into()
    }

    /// Sends the ring's event.
    pub(super) fn call(&mut self) {
        let port = self.stage.queue(0).port;
        self.stage.host.xen.notify(port);
    }

    /// Sleeps until the next response, but not for long.
    fn breathe(&mut self) {
        let ring = &mut self.stage.queue(0).ring;
        ring.skip();
        ring.arm(1);
        self.nap();
    }

    /// Sleeps for a millisecond, or less when there is an event.
    pub(super) fn nap(&mut self) {
        self.stage.host.nap(BREATH);
    }

    /// Keeps the ring full of such entries.
    pub(super) fn flood(&mut self, entry: impl FnMut(&mut Self) -> Entry) -> Verdict {
        self.flood_and(entry, |_| Ok(0))
    }

    /// Keeps the ring full of such entries, and does something else after each push: so many acts.
    pub(super) fn flood_and(
        &mut self,
        mut entry: impl FnMut(&mut Self) -> Entry,
        mut then: impl FnMut(&mut Self) -> Verdict<u64>,
    ) -> Verdict {
        loop {
            let count = self.fill(&mut entry) + then(self)?;
            if !self.acted(count)? {
                return Ok(());
            }
            self.breathe();
        }
    }
}
