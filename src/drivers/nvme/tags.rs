//! The commands in flight. A command id is a tag, the entry's place here, and a generation, so
//! that a completion which is stale, invented or doubled finds nothing.

use crate::drivers::Token;
use crate::limits::QUEUE_ENTRIES;
use crate::units::Instant;
use crate::wire::nvme::command::CommandId;

/// Bits of a command id that hold the tag.
const TAG_BITS: u32 = QUEUE_ENTRIES.ilog2();
const TAG_MASK: u16 = (1 << TAG_BITS) - 1;

const _: () = assert!(QUEUE_ENTRIES == 64, "one word says which tags are in use");

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
    issued: Instant,
}

/// The table. It has room for one command less than the queue has entries, which keeps the queue
/// from overrunning, and makes 0xffff, which is reserved (3.3.3.1), no command's id.
#[derive(Debug)]
pub(super) struct Tags {
    used: u64,
    room: u32,
    entries: [Entry; QUEUE_ENTRIES],
}

impl Tags {
    /// No commands, for a queue of so many entries.
    pub(super) const fn new(queue_entries: u16) -> Self {
        let entry = Entry { token: Token(0), generation: 0, issued: Instant(0) };
        Self { used: 0, room: queue_entries.saturating_sub(1) as u32, entries: [entry; QUEUE_ENTRIES] }
    }

    /// Nothing is in flight.
    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Enters a command, if there is room.
    pub(super) fn enter(&mut self, token: Token, now: Instant) -> Option<(Tag, CommandId)> {
        let place = self.used.trailing_ones();
        if place >= self.room {
            return None;
        }
        self.used |= 1 << place;
        let tag = Tag(u8::try_from(place).ok()?);
        let entry = &mut self.entries[tag.index()];
        entry.generation = entry.generation.wrapping_add(1);
        (entry.token, entry.issued) = (token, now);
        Some((tag, CommandId(entry.generation << TAG_BITS | u16::from(tag.0))))
    }

    /// Removes the command of this id, if it is in flight.
    pub(super) fn take(&mut self, id: CommandId) -> Option<Token> {
        let place = id.0 & TAG_MASK;
        let entry = &self.entries[usize::from(place)];
        let is_this = entry.generation << TAG_BITS == id.0 & !TAG_MASK;
        if self.used >> place & 1 == 0 || !is_this {
            return None;
        }
        self.used &= !(1 << place);
        Some(entry.token)
    }

    /// Removes any command.
    pub(super) fn take_any(&mut self) -> Option<Token> {
        let place = self.used.checked_ilog2()?;
        self.used &= !(1 << place);
        self.entries.get(place as usize).map(|entry| entry.token)
    }

    /// When the command that is in flight for the longest time was issued.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let in_flight = |place: &usize| self.used >> place & 1 != 0;
        (0..QUEUE_ENTRIES).filter(in_flight).map(|place| self.entries[place].issued).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_one_command_less_than_the_queue_has_entries() {
        for entries in [2, 3, 64] {
            let mut tags = Tags::new(entries);
            for n in 1..u32::from(entries) {
                assert!(tags.enter(Token(n), Instant(0)).is_some());
            }
            assert_eq!(tags.enter(Token(0), Instant(0)), None);
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

    #[test]
    fn the_oldest_command_is_found_and_all_can_be_taken() {
        let mut tags = Tags::new(64);
        assert_eq!((tags.oldest(), tags.take_any()), (None, None));
        let (_, first) = tags.enter(Token(1), Instant(5)).unwrap();
        tags.enter(Token(2), Instant(3)).unwrap();
        tags.enter(Token(3), Instant(9)).unwrap();
        assert_eq!(tags.oldest(), Some(Instant(3)));
        tags.take(first);
        assert_eq!([tags.take_any(), tags.take_any()], [Some(Token(3)), Some(Token(2))]);
        assert!(tags.is_empty());
    }
}
