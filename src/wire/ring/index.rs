//! The arithmetic of a ring's free-running indexes, apart from the pages that hold them. They wrap
//! at their width (io.h: 32 bits); the code is the same for any width, so that its tests can try every
//! value of a narrow one.

use core::num::Wrapping;
use core::ops::Sub;

/// An index, or how far one is ahead of another.
pub(super) trait Index: Copy + PartialOrd + Sub<Output = Self> {}

impl<T> Index for Wrapping<T> where Self: Copy + PartialOrd + Sub<Output = Self> {}

/// Whether the index at which an event was asked for is one of those after `old`, up to `new`
/// (io.h, `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
pub(super) fn reaches<I: Index>(old: I, new: I, event: I) -> bool {
    new - event < new - old
}

/// What a producer's index claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    /// What was taken and perhaps more, no more than the ring holds.
    Sound,
    /// More unanswered than the ring holds.
    Overrun,
    /// Less than was taken.
    Rewound,
}

/// Judges a producer's index by what of its ring of so many entries was answered and taken.
pub(super) fn judge<I: Index>(answered: I, taken: I, produced: I, entries: I) -> Claim {
    let claimed = produced - answered;
    if claimed > entries {
        Claim::Overrun
    } else if claimed < taken - answered {
        Claim::Rewound
    } else {
        Claim::Sound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_due_when_a_step_from_old_to_new_lands_on_it() {
        for (old, event) in (0..=u8::MAX).flat_map(|old| (0..=u8::MAX).map(move |event| (old, event))) {
            let (mut new, mut landed) = (old, false);
            for _ in 0..=u8::MAX {
                let due = reaches(Wrapping(old), Wrapping(new), Wrapping(event));
                assert_eq!(due, landed, "from {old} to {new}, asked for at {event}");
                new = new.wrapping_add(1);
                landed |= new == event;
            }
        }
    }

    /// The same by walking: the claim is sound when steps from what was taken lead there before they
    /// lead out of the ring.
    fn walked(answered: u8, taken: u8, produced: u8, entries: u8) -> Claim {
        let steps = |from: u8, to: u8| (0..=u8::MAX).position(|step| from.wrapping_add(step) == to).unwrap();
        let (ahead, behind) = (steps(taken, produced), steps(answered, taken));
        if behind + ahead <= usize::from(entries) {
            Claim::Sound
        } else if steps(answered, produced) < behind {
            Claim::Rewound
        } else {
            Claim::Overrun
        }
    }

    #[test]
    fn every_claim_on_every_small_ring_is_judged() {
        for entries in [1_u8, 2, 4, 8, 32] {
            for answered in [0, 1, 100, u8::MAX - 32, u8::MAX - 1, u8::MAX] {
                for taken in (0..=entries).map(|unanswered| answered.wrapping_add(unanswered)) {
                    for produced in 0..=u8::MAX {
                        let judged =
                            judge(Wrapping(answered), Wrapping(taken), Wrapping(produced), Wrapping(entries));
                        let expected = walked(answered, taken, produced, entries);
                        assert_eq!(judged, expected, "{answered} {taken} {produced} of {entries}");
                    }
                }
            }
        }
    }
}
