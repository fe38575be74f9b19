//! Discards.

use super::*;
use crate::blkback::counters::Counters;

fn offered(volume: Volume, read_only: bool) -> Rig {
    Rig::with(Setup { volume, read_only, discards: true, ..Setup::default() })
}

impl Rig {
    /// One discard from end to end.
    fn discard(&mut self, sector: u64, sectors: u64) -> i16 {
        self.front().submit(&discard(Protocol::X86_64, 77, sector, sectors));
        self.end(DISCARD)
    }
}

#[test]
fn a_discard_is_issued_in_as_many_parts_as_the_disk_needs() {
    for failing in [None, Some(0), Some(3)] {
        let mut rig = offered(volume(1024, 1000), false);
        rig.front().submit(&discard(Protocol::X86_64, 7, 200, 200));
        rig.admit();
        for (first, left) in [(100, 100), (130, 70), (160, 40), (190, 10)] {
            assert_eq!(rig.next(), Some(Work::Discard(Block(first), Block(left))));
            rig.requests.issued(Issued::Blocks(Block(left.min(30))));
        }
        assert_eq!(rig.next(), None);
        for part in 0..4 {
            rig.settle();
            assert_eq!(rig.answer(), None, "parts are outstanding");
            rig.requests.completed(0, failing != Some(part));
        }
        rig.settle();
        let status = if failing.is_some() { ERROR } else { OKAY };
        assert_eq!(rig.front().response(), Some((DISCARD, 7, status)));
        let Counters { discard, write, .. } = &rig.requests.means().counters;
        let sectors = if failing.is_some() { 0 } else { 200 };
        assert_eq!((discard.requests, discard.sectors, write.requests), (1, sectors, 0));
        rig.close();
    }
}

#[test]
fn a_discard_of_nothing_is_done_at_once() {
    let mut rig = offered(volume(512, 1000), false);
    rig.front().submit(&discard(Protocol::X86_64, 7, u64::MAX, 0));
    rig.admit();
    assert_eq!(rig.next(), None);
    assert!(rig.requests.has_ended(), "there is an answer to give");
    rig.settle();
    assert_eq!(rig.answer(), Some((7, OKAY)));
    rig.close();
}

#[test]
fn discards_that_cannot_be_done_are_answered() {
    let mut rig = Rig::new(volume(512, 1000), false);
    assert_eq!(rig.discard(0, 8), UNSUPPORTED);
    assert_eq!(rig.discard(0, 0), UNSUPPORTED);
    assert_eq!(offered(volume(512, 1000), true).discard(0, 8), ERROR);
    let mut rig = offered(volume(4096, 100), false);
    for (sector, sectors) in
        [(800, 8), (792, 16), (0, 808), (u64::MAX - 7, 8), (8, u64::MAX - 7), (8, u64::MAX), (4, 8), (8, 4)]
    {
        assert_eq!(rig.discard(sector, sectors), ERROR, "{sectors} at {sector}");
    }
    assert_eq!(rig.requests.means().counters.rejected, 8);
    assert_eq!(rig.discard(0, 800), OKAY);
    assert_eq!(rig.discard(792, 8), OKAY);
}

#[test]
fn a_discard_that_the_disk_cannot_express_ends_after_what_was_issued() {
    let mut rig = offered(volume(512, 1000), false);
    rig.front().submit(&discard(Protocol::X86_64, 7, 0, 100));
    rig.admit();
    rig.requests.issued(Issued::Blocks(Block(40)));
    rig.requests.refused();
    rig.settle();
    assert_eq!(rig.answer(), None);
    rig.requests.completed(0, true);
    rig.settle();
    assert_eq!(rig.answer(), Some((7, ERROR)));
}
