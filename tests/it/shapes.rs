//! Requests of the wide parts of blkif that make no sense: indirect ones whose counts, operations or
//! descriptors are wrong, discards beyond the end. Each is answered with an error, changes nothing,
//! and leaves nothing mapped.

use core::time::Duration;

use platter::sim::abi::{
    Abi, Body, DISCARD, ENTRY_BYTES, Entry, Head, INDIRECT, READ, Segment, WRITE, write_segment,
};
use platter::sim::requests::Load;
use platter::sim::world::World;
use platter::units::PAGE_SIZE;

use crate::host::{SECTORS, attach, run, world};
use crate::rogue::Rogue;

/// When a frontend may show its ring, and when it is connected for sure.
const OFFER: Duration = Duration::from_millis(500);
const CONNECTED: Duration = Duration::from_millis(600);

fn entry(operation: u8, sector: u64, body: Body<'_>) -> Entry {
    let mut entry = [0; ENTRY_BYTES];
    Abi::X64.write(&mut entry, Head { operation, id: 0, sector }, body);
    entry
}

/// A page full of the same segment, granted.
fn descriptors(world: &World, rogue: Rogue, segment: Segment) -> u32 {
    let (page, gref) = rogue.grant(&mut world.state().machine);
    let mut bytes = [0; PAGE_SIZE];
    bytes.chunks_exact_mut(8).for_each(|place| write_segment(place, segment));
    page.write(0, &bytes);
    gref.0
}

/// Asks for all of it, and asserts that all of it is refused and others are served.
fn are_refused(mut world: World, rogue: Rogue, entries: Vec<Entry>) {
    let (_, calm) = attach(&world, 6, "/dev/nvme0n2", Load::new(0, SECTORS, 100));
    let count = entries.len() as u32;
    rogue.later(&world, OFFER, |rogue, state| rogue.offer(&mut state.machine));
    rogue.later(&world, CONNECTED, move |rogue, state| {
        (0..).zip(&entries).for_each(|(place, entry)| rogue.put_entry(place, entry));
        rogue.claim(&mut state.machine, count);
    });
    run(&mut world, |_, _| false);
    assert_eq!(rogue.answers(), count);
    let statuses: Vec<i16> = (0..count).map(|place| rogue.answer(place).1).collect();
    assert!(statuses.iter().all(|status| [-1, -2].contains(status)), "{statuses:?}");
    assert_eq!(world.state().machine.grants.mapped_from(rogue.guest), 1, "the ring");
    assert_eq!(world.state().frontends[calm].answered(), (100, 0));
}

#[test]
fn indirect_requests_that_make_no_sense_are_errors() {
    for seed in 0..4 {
        let world = world(seed);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let data = rogue.grant(&mut world.state().machine).1.0;
        let [good, reversed, outside, nobodys] = [(data, 0, 7), (data, 7, 0), (data, 0, 8), (u32::MAX, 0, 7)]
            .map(|segment| descriptors(&world, rogue, segment));
        let ask =
            |operation, sector, count, table| entry(operation, sector, Body::Indirect(count, &[table; 8]));
        let counts = [0, 257, 4096, 4097, u16::MAX].map(|count| ask(READ, 0, count, good));
        let operations = [DISCARD, INDIRECT, 77].map(|inner| ask(inner, 0, 1, good));
        let tables = [reversed, outside, nobodys, u32::MAX].map(|table| ask(WRITE, 0, 12, table));
        let places = [SECTORS - 8, u64::MAX - 8, u64::MAX].map(|sector| ask(WRITE, sector, 2, good));
        are_refused(world, rogue, [&counts[..], &operations, &tables, &places].concat());
    }
}

#[test]
fn discards_beyond_the_end_are_errors() {
    for seed in 0..4 {
        let world = world(seed);
        let (_, rogue) = Rogue::attach(&world, 5, "/dev/nvme0n1");
        let ranges =
            [(SECTORS, 1), (SECTORS - 1, 2), (0, u64::MAX), (1, u64::MAX), (u64::MAX, 1), (1 << 63, 1 << 63)];
        let flags = [0, 1, 0xff];
        let entries = flags.iter().flat_map(|flag| {
            ranges.iter().map(|(sector, count)| entry(DISCARD, *sector, Body::Discard(*flag, *count)))
        });
        let entries = entries.collect();
        are_refused(world, rogue, entries);
    }
}
