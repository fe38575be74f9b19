//! The commands in flight. A command id is a tag, the entry's place here, and a generation, so
//! that a completion which is stale, invented or doubled finds nothing. Each entry keeps what it
//! takes to issue its command again, after a reset or after an error that may pass.

use crate::drivers::Token;
use crate::limits::QUEUE_ENTRIES;
use crate::units::Instant;
use crate::wire::nvme::command::{CommandId, Submission};

/// Bits of a command id that hold the tag.
const TAG_BITS: u32 = QUEUE_ENTRIES.ilog2();
const TAG_MASK: u16 = (1 << TAG_BITS) - 1;

const _: () = assert!(QUEUE_ENTRIES == 64, "one word says which tags are in use");

/// How often a command is issued again after an error.
const RETRIES: u8 = 3;

/// How often a command is issued again after a reset: it may be the one that the controller does
/// not survive.
const REISSUES: u8 = 3;

/// A place in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag(u8);

impl Tag {
    /// The place as an index, less than [`QUEUE_ENTRIES`].
    pub(super) fn index(self) -> usize {
        self.0.into()
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: Token,
    /// Counts the uses of this place; the command id holds its lower bits.
    generation: u16,
    /// Counts all commands, for the order in which they were submitted.
    order: u64,
    issued: Instant,
    submission: Submission,
    retries: u8,
    reissues: u8,
}

impl Entry {
    const EMPTY: Self = Self {
        token: Token(0),
        generation: 0,
        order: 0,
        issued: Instant(0),
        submission: Submission([0; 8]),
        retries: 0,
        reissues: 0,
    };

    /// A new id for the command at this place, the only one that is good from now on.
    fn new_id(&mut self, place: u32) -> CommandId {
        self.generation = self.generation.wrapping_add(1);
        CommandId(self.generation << TAG_BITS | place as u16)
    }
}

/// The table. It has room for one command less than the queue has entries, which keeps the queue
/// from overrunning, and makes 0xffff, which is reserved (3.3.3.1), no command's id.
#[derive(Debug)]
pub(super) struct Tags {
    used: u64,
    /// Those of them that the controller does not have, and is to be given again.
    waiting: u64,
    /// Those of them that the controller does not have, and is not to be given again.
    failed: u64,
    /// Commands that can be in flight, and how many more can be now: counted, as it is asked for all the time.
    most: u32,
    room: u32,
    submitted: u64,
    entries: [Entry; QUEUE_ENTRIES],
}

impl Tags {
    /// No commands, for a queue of so many entries.
    pub(super) const fn new(queue_entries: u16) -> Self {
        Self {
            used: 0,
            waiting: 0,
            failed: 0,
            most: queue_entries.saturating_sub(1) as u32,
            room: queue_entries.saturating_sub(1) as u32,
            submitted: 0,
            entries: [Entry::EMPTY; QUEUE_ENTRIES],
        }
    }

    /// Nothing is in flight.
    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// How many commands can be entered.
    pub(super) const fn room(&self) -> usize {
        self.room as usize
    }

    /// Enters a command that is issued now, if there is room. [`Tags::keep`] is due next.
    #[inline]
    pub(super) fn enter(&mut self, token: Token, now: Instant) -> Option<(Tag, CommandId)> {
        let place = self.used.trailing_ones();
        if place >= self.most {
            return None;
        }
        self.used |= 1 << place;
        self.room -= 1;
        self.submitted += 1;
        let entry = &mut self.entries[place as usize];
        (entry.token, entry.order, entry.issued) = (token, self.submitted, now);
        (entry.retries, entry.reissues) = (0, 0);
        Some((Tag(place as u8), entry.new_id(place)))
    }

    /// Remembers the command that was entered at this tag.
    pub(super) fn keep(&mut self, tag: Tag, submission: Submission) {
        self.entries[tag.index()].submission = submission;
    }

    /// Removes the command of this id, if the controller has it.
    pub(super) fn take(&mut self, id: CommandId) -> Option<Token> {
        let place = self.find(id)?;
        Some(self.free(place))
    }

    /// The controller has failed the command of this id: puts it aside to be issued again, if it
    /// was in flight at all and was not tried too often. True when so.
    pub(super) fn retry(&mut self, id: CommandId) -> bool {
        let Some(place) = self.find(id) else { return false };
        let entry = &mut self.entries[place];
        let again = entry.retries < RETRIES;
        if again {
            entry.retries += 1;
            self.waiting |= 1 << place;
        }
        again
    }

    /// The controller is being reset, and will have nothing: what is `late` fails, and what was
    /// issued again too often; the rest waits.
    pub(super) fn take_back(&mut self, late: impl Fn(Instant) -> bool) {
        for place in places(self.issued()) {
            let entry = &mut self.entries[place];
            if late(entry.issued) || entry.reissues == REISSUES {
                self.failed |= 1 << place;
            } else {
                entry.reissues += 1;
                self.waiting |= 1 << place;
            }
        }
    }

    /// The controller has nothing, and will not be given anything again.
    pub(super) fn fail_all(&mut self) {
        (self.failed, self.waiting) = (self.used, 0);
    }

    /// Removes any command that has failed.
    pub(super) fn take_failed(&mut self) -> Option<Token> {
        let place = places(self.failed).next()?;
        self.failed &= !(1 << place);
        Some(self.free(place))
    }

    /// Nothing is at this place any more; returns whose it was.
    fn free(&mut self, place: usize) -> Token {
        self.used &= !(1 << place);
        self.room += 1;
        self.entries[place].token
    }

    /// The command that waits and was submitted first, under a new id: it is issued now.
    pub(super) fn reissue(&mut self, now: Instant) -> Option<Submission> {
        let place = places(self.waiting).min_by_key(|place| self.entries[*place].order)?;
        self.waiting &= !(1 << place);
        let entry = &mut self.entries[place];
        entry.issued = now;
        let id = entry.new_id(place as u32);
        entry.submission = entry.submission.renamed(id);
        Some(entry.submission)
    }

    /// When the command that the controller has for the longest time was issued.
    pub(super) fn oldest(&self) -> Option<Instant> {
        places(self.issued()).map(|place| self.entries[place].issued).min()
    }

    /// The commands that the controller has.
    const fn issued(&self) -> u64 {
        self.used & !self.waiting & !self.failed
    }

    /// Where the command of this id is, if the controller has it.
    fn find(&self, id: CommandId) -> Option<usize> {
        let place = usize::from(id.0 & TAG_MASK);
        let is_this = self.entries[place].generation << TAG_BITS == id.0 & !TAG_MASK;
        (self.issued() >> place & 1 != 0 && is_this).then_some(place)
    }
}

/// The places that are in a set, in their order.
fn places(mut set: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let place = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        Some(place as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_one_command_less_than_the_queue_has_entries() {
        for entries in [2, 3, 64] {
            let mut tags = Tags::new(entries);
            for n in (1..entries).rev() {
                assert_eq!(tags.room(), n.into());
                assert!(tags.enter(Token(n.into()), Instant(0)).is_some());
            }
            assert_eq!((tags.room(), tags.enter(Token(0), Instant(0))), (0, None));
        }
    }

    #[test]
    fn an_id_is_taken_once_and_means_nothing_when_its_tag_is_used_again() {
        let mut tags = Tags::new(64);
        let (tag, first) = tags.enter(Token(1), Instant(0)).unwrap();
        assert_eq!(tags.take(first), Some(Token(1)));
        assert_eq!(tags.take(first), None);
        let (again, second) = tags.enter(Token(2), Instant(0)).unwrap();
        assert_eq!(again, tag);
        assert_eq!(tags.take(first), None);
        assert_eq!(tags.take(CommandId(second.0 ^ 1)), None);
        assert_eq!(tags.take(second), Some(Token(2)));
    }

    #[test]
    fn no_id_is_the_reserved_one_and_generations_wrap() {
        let mut tags = Tags::new(64);
        for round in 0..70_000 {
            let (_, id) = tags.enter(Token(round), Instant(0)).unwrap();
            assert_eq!(tags.take(id), Some(Token(round)));
        }
        for _ in 0..1025 {
            let ids: std::vec::Vec<_> =
                (0..63).map(|n| tags.enter(Token(n), Instant(0)).unwrap().1).collect();
            assert!(!ids.contains(&CommandId(0xffff)));
            assert!(ids.iter().all(|id| tags.take(*id).is_some()));
        }
    }

    /// Enters a flush for each token, a second apart; returns the ids.
    fn enter_all(tags: &mut Tags, tokens: core::ops::Range<u32>) -> std::vec::Vec<CommandId> {
        let enter = |token| {
            let (tag, id) = tags.enter(Token(token), second(token)).unwrap();
            tags.keep(tag, Submission::flush(id, token));
            id
        };
        tokens.map(enter).collect()
    }

    fn second(n: u32) -> Instant {
        Instant(u64::from(n) * 1_000_000_000)
    }

    fn id(submission: Submission) -> CommandId {
        CommandId((submission.0[0] >> 16) as u16)
    }

    #[test]
    fn the_oldest_command_is_found() {
        let mut tags = Tags::new(64);
        assert_eq!(tags.oldest(), None);
        let ids = enter_all(&mut tags, 3..6);
        tags.take(ids[1]);
        assert_eq!(tags.oldest(), Some(second(3)));
        assert!(tags.retry(ids[0]));
        assert_eq!(
            tags.oldest(),
            Some(second(5)),
            "nobody waits for the controller to do what it does not have"
        );
    }

    #[test]
    fn what_waits_is_issued_in_order_under_new_ids() {
        let mut tags = Tags::new(64);
        let ids = enter_all(&mut tags, 0..5);
        tags.take(ids[1]);
        // It has the place of the second command, and is the youngest.
        enter_all(&mut tags, 5..6);
        tags.take_back(|_| false);
        assert!(ids.iter().all(|old| tags.take(*old).is_none() && !tags.retry(*old)));
        for token in [0, 2, 3, 4, 5] {
            let again = tags.reissue(second(9)).unwrap();
            assert!(!ids.contains(&id(again)));
            assert_eq!(again, Submission::flush(id(again), token));
            assert_eq!(tags.take(id(again)), Some(Token(token)));
        }
        assert_eq!(tags.reissue(second(9)), None);
        assert!(tags.is_empty());
    }

    #[test]
    fn a_command_that_waits_keeps_its_tag() {
        let mut tags = Tags::new(64);
        let ids = enter_all(&mut tags, 0..2);
        assert!(tags.retry(ids[0]));
        let other = enter_all(&mut tags, 2..3)[0];
        let again = id(tags.reissue(second(9)).unwrap());
        assert_eq!([again, ids[1], other].map(|id| tags.take(id)), [0, 1, 2].map(|n| Some(Token(n))));
    }

    #[test]
    fn what_is_late_fails_and_so_does_what_is_reset_too_often() {
        let mut tags = Tags::new(64);
        enter_all(&mut tags, 0..4);
        tags.take_back(|issued| issued < second(2));
        let mut failed = [tags.take_failed(), tags.take_failed()];
        failed.sort_by_key(|token| token.map(|token| token.0));
        assert_eq!((failed, tags.take_failed()), ([Some(Token(0)), Some(Token(1))], None));
        for _ in 1..REISSUES {
            while tags.reissue(second(9)).is_some() {}
            // A reset under a reset is none to commands that were not issued between.
            tags.take_back(|_| false);
            tags.take_back(|_| true);
            assert_eq!(tags.take_failed(), None);
        }
        while tags.reissue(second(9)).is_some() {}
        tags.take_back(|_| false);
        assert!(tags.take_failed().is_some() && tags.take_failed().is_some());
        assert!(tags.is_empty());
    }

    #[test]
    fn a_command_is_tried_so_often_and_no_more() {
        let mut tags = Tags::new(64);
        let mut last = enter_all(&mut tags, 7..8)[0];
        for _ in 0..RETRIES {
            assert!(tags.retry(last));
            last = id(tags.reissue(second(8)).unwrap());
        }
        assert!(!tags.retry(last));
        assert_eq!(tags.take(last), Some(Token(7)));
    }

    #[test]
    fn all_can_be_failed_wherever_they_are() {
        let mut tags = Tags::new(64);
        let ids = enter_all(&mut tags, 0..3);
        tags.retry(ids[1]);
        tags.fail_all();
        let mut tokens: std::vec::Vec<u32> =
            core::iter::from_fn(|| tags.take_failed()).map(|t| t.0).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [0, 1, 2]);
        assert!(tags.is_empty() && tags.reissue(second(9)).is_none());
    }

    #[test]
    fn of_all_ids_only_those_in_flight_are_known() {
        let mut tags = Tags::new(64);
        for _ in 0..700 {
            let (_, id) = tags.enter(Token(0), Instant(0)).unwrap();
            tags.take(id);
        }
        let ids = enter_all(&mut tags, 0..5);
        tags.take(ids[2]);
        assert!(tags.retry(ids[4]), "it waits, and the controller does not have it");
        for (token, id) in [0, 1, 3].map(|token| (token, ids[token as usize])) {
            let others = (0..=u16::MAX).map(CommandId).filter(|other| !ids.contains(other));
            others.for_each(|other| assert!(tags.find(other).is_none(), "{other:?}"));
            assert_eq!(tags.take(id), Some(Token(token)));
        }
        assert!((0..=u16::MAX).all(|id| tags.take(CommandId(id)).is_none()));
    }

    #[test]
    fn a_stale_id_means_nothing_for_as_long_as_ids_can_tell() {
        let mut tags = Tags::new(64);
        let generations = 1 << (u16::BITS - TAG_BITS);
        let mut used = std::vec::Vec::new();
        for round in 0..3 * generations {
            let (_, id) = tags.enter(Token(0), Instant(0)).unwrap();
            let recent = used.iter().rev().take(generations - 1);
            assert!(recent.clone().all(|old| tags.find(*old).is_none()), "round {round}");
            assert_eq!(tags.take(id), Some(Token(0)));
            used.push(id);
        }
        assert_eq!(used[0], used[generations], "after that ids come again");
    }
}
