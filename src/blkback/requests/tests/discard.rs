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
fn a_discard_is_issued_in_as_many_parts_as_the_disk_needs_one_at_a_time() {
    for failing in [None, Some(0), Some(3)] {
        let mut rig = offered(volume(1024, 1000), false);
        rig.front().submit(&discard(Protocol::X86_64, 7, 200, 200));
        rig.admit();
        let parts = [(100, 100), (130, 70), (160, 40), (190, 10)];
        for (part, (first, left)) in parts.into_iter().enumerate().take(failing.unwrap_or(3) + 1) {
            assert_eq!(rig.next(), Some(Work::Discard(Block(first), Block(left))));
            rig.requests.issued(Issued::Blocks(Block(left.min(30))));
            assert_eq!(rig.next(), None, "a part is outstanding");
            rig.settle();
            assert_eq!(rig.answer(), None);
            rig.requests.completed(0, failing != Some(part));
        }
        assert_eq!(rig.next(), None);
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
fn a_device_discards_one_after_the_other_and_nothing_else_waits_for_that() {
    let mut rig = offered(volume(512, 1000), false);
    for id in 0..3 {
        rig.front().submit(&discard(Protocol::X86_64, id, id * 8, 8));
    }
    // These are done without the disk, or not at all.
    rig.front().submit(&discard(Protocol::X86_64, 3, 0, 0));
    rig.front().submit(&discard(Protocol::X86_64, 4, 1000, 8));
    rig.submit(READ, 5, 0, &[(1, 0, 7)]);
    rig.admit();
    rig.issue(SEGMENTS);
    assert_eq!(rig.works(), [Work::Discard(Block(0), Block(8)), Work::Read(Block(0))]);
    rig.settle();
    assert_eq!([rig.answer(), rig.answer()], [Some((4, ERROR)), Some((3, OKAY))]);
    rig.issue(SEGMENTS);
    assert_eq!(rig.held.len(), 2, "what was done without the disk lets no other begin");
    rig.complete(1, true);
    for id in 0..3 {
        assert_eq!(rig.works(), [Work::Discard(Block(id * 8), Block(8))]);
        rig.complete(0, id != 1);
        rig.settle();
        rig.issue(SEGMENTS);
    }
    let answers = std::array::from_fn(|_| rig.answer());
    assert_eq!(answers, [Some((5, OKAY)), Some((0, OKAY)), Some((1, ERROR)), Some((2, OKAY))]);
    rig.close();
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
    rig.requests.completed(0, true);
    rig.requests.refused();
    rig.settle();
    assert_eq!(rig.answer(), Some((7, ERROR)));
}
