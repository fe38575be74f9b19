//! Every short interleaving of what can happen to two commands, beside a list that is kept by hand.

use std::vec::Vec;

use crate::drivers::Token;
use crate::drivers::nvme::tags::Tags;
use crate::units::Instant;
use crate::wire::nvme::command::{CommandId, Submission};

/// What can happen, to the command of one of the last ids where it is to one.
#[derive(Clone, Copy, Debug)]
enum Event {
    Enter,
    Reissue,
    TakeFailed,
    /// The controller is reset; nothing is late, or everything.
    TakeBack(bool),
    FailAll,
    Complete(usize),
    Retry(usize),
}

const EVENTS: [Event; 12] = [
    Event::Enter,
    Event::Reissue,
    Event::TakeFailed,
    Event::TakeBack(false),
    Event::TakeBack(true),
    Event::FailAll,
    Event::Complete(0),
    Event::Complete(1),
    Event::Complete(2),
    Event::Retry(0),
    Event::Retry(1),
    Event::Retry(2),
];

/// Where a command is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The controller has it under this id, since then.
    Issued(CommandId, Instant),
    Waiting,
    Failed,
}

/// The table, and the commands that should be in it in the order of their submission.
struct Pair {
    tags: Tags,
    commands: Vec<(Token, Place)>,
    /// Every id that there was.
    ids: Vec<CommandId>,
    tokens: u32,
}

impl Pair {
    /// With room for two.
    fn new() -> Self {
        Self { tags: Tags::new(3), commands: Vec::new(), ids: Vec::new(), tokens: 0 }
    }

    /// Lets something happen; false when there is no such id.
    fn happen(&mut self, event: Event, now: Instant) -> bool {
        match event {
            Event::Enter => self.enter(now),
            Event::Reissue => self.reissue(now),
            Event::TakeFailed => {
                let token = self.tags.take_failed();
                let is_it =
                    |(known, place): &(Token, Place)| Some(*known) == token && *place == Place::Failed;
                let at = self.commands.iter().position(is_it);
                let fewer = self.commands.iter().any(|(_, place)| *place == Place::Failed);
                assert_eq!((at.is_some(), token.is_some()), (fewer, fewer));
                at.map(|at| self.commands.remove(at));
            }
            Event::TakeBack(late) => {
                self.tags.take_back(|_| late);
                self.move_issued(if late { Place::Failed } else { Place::Waiting });
            }
            Event::FailAll => {
                self.tags.fail_all();
                self.commands.iter_mut().for_each(|(_, place)| *place = Place::Failed);
            }
            Event::Complete(back) => {
                let Some(id) = self.ids.iter().rev().nth(back).copied() else { return false };
                let at = self.issued(id);
                let token = at.map(|at| self.commands.remove(at).0);
                assert_eq!(self.tags.take(id), token);
            }
            Event::Retry(back) => {
                let Some(id) = self.ids.iter().rev().nth(back).copied() else { return false };
                let at = self.issued(id);
                assert_eq!(self.tags.retry(id), at.is_some());
                at.into_iter().for_each(|at| self.commands[at].1 = Place::Waiting);
            }
        }
        true
    }

    fn enter(&mut self, now: Instant) {
        let entered = self.tags.enter(Token(self.tokens), now);
        assert_eq!(entered.is_some(), self.commands.len() < 2);
        let Some((tag, id)) = entered else { return };
        self.tags.keep(tag, Submission::flush(id, self.tokens));
        assert!(!self.ids.contains(&id), "an id is new");
        self.ids.push(id);
        self.commands.push((Token(self.tokens), Place::Issued(id, now)));
        self.tokens += 1;
    }

    fn reissue(&mut self, now: Instant) {
        let again = self.tags.reissue(now);
        let first = self.commands.iter_mut().find(|(_, place)| *place == Place::Waiting);
        assert_eq!(again.is_some(), first.is_some());
        let (Some(again), Some((token, place))) = (again, first) else { return };
        let id = CommandId((again.0[0] >> 16) as u16);
        assert_eq!(again, Submission::flush(id, token.0), "the same command, in its turn");
        assert!(!self.ids.contains(&id), "an id is new");
        self.ids.push(id);
        *place = Place::Issued(id, now);
    }

    /// The command that the controller has under this id.
    fn issued(&self, id: CommandId) -> Option<usize> {
        self.commands.iter().position(|(_, place)| matches!(place, Place::Issued(known, _) if *known == id))
    }

    fn move_issued(&mut self, to: Place) {
        let issued = self.commands.iter_mut().filter(|(_, place)| matches!(place, Place::Issued(..)));
        issued.for_each(|(_, place)| *place = to);
    }

    fn check(&self) {
        let since = self.commands.iter().filter_map(|(_, place)| match place {
            Place::Issued(_, since) => Some(*since),
            Place::Waiting | Place::Failed => None,
        });
        assert_eq!((self.tags.oldest(), self.tags.is_empty()), (since.min(), self.commands.is_empty()));
    }
}

#[test]
fn the_table_does_what_a_list_would_in_every_short_interleaving() {
    const LENGTH: u32 = 5;
    for story in 0..EVENTS.len().pow(LENGTH) {
        let mut pair = Pair::new();
        pair.happen(Event::Enter, Instant(1));
        for step in 0..LENGTH {
            let event = EVENTS[story / EVENTS.len().pow(step) % EVENTS.len()];
            // Without the id it is a shorter story, which is told already.
            if !pair.happen(event, Instant(u64::from(step) + 2)) {
                break;
            }
            pair.check();
        }
    }
}
