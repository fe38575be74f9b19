//! `place/`: where on the disk a request is, from its first sector to far beyond its last.

use platter::hal::DeviceAccess;

use crate::pattern::Tag;
use crate::protocol::{ERROR, PAGE_SECTORS, READ, WRITE};
use crate::stage::Stage;
use crate::terms::Terms;
use crate::transfer::{Carrier, Piece, piece, whole};
use crate::verdict::{Check, Verdict, ensure, needs};

const WRAPS: &str = "a place times 512 does not fit 64 bits: done all the same, it happens somewhere else";

/// The room.
pub(crate) const CHECKS: &[Check] = &[
    Check::new("place/first-sector", |stage| at(stage, |_| 0)),
    Check::new("place/last-sector", last_sector),
    Check::new("place/last-page", |stage| at(stage, |end| end - 8)),
    Check::new("place/last-pages", last_pages),
    Check::new("place/beyond-the-disk", |stage| outside(stage, |end| [end, end + 1, end + 8, end * 2])),
    Check::new("place/across-the-end", |stage| outside(stage, |end| [end - 1, end - 2, end - 8, end - 15])),
    Check::because("place/overflow", WRAPS, |stage| {
        outside(stage, |end| [u64::MAX, u64::MAX - 8, (1 << 63) | 8, (1 << 55) + end / 2])
    }),
    Check::new("place/indirect-across-the-end", indirect_across),
];

fn at(stage: &mut Stage, place: impl Fn(u64) -> u64) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let sector = place(stage.offer.sectors);
    stage.write_lands(Carrier::Direct, &whole(1), sector)?;
    stage.read_fills(Carrier::Direct, &whole(1), sector)
}

fn last_sector(stage: &mut Stage) -> Verdict {
    needs!(stage.offer.block() == 1, "sector-size is {}", stage.offer.sector_size);
    stage.connect(Terms::PLAIN)?;
    let (last, shape): (u64, [Piece; 1]) = (stage.offer.sectors - 1, [piece(0, 5, 5)]);
    stage.write_lands(Carrier::Direct, &shape, last)?;
    stage.read_fills(Carrier::Direct, &shape, last)
}

fn last_pages(stage: &mut Stage) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    let (count, first) = (11, stage.offer.sectors - 88);
    stage.write_lands(Carrier::Direct, &whole(count), first)?;
    stage.read_fills(Carrier::Direct, &whole(count), first)
}

/// Two pages at places that are not, or not wholly, on the disk.
fn outside(stage: &mut Stage, places: impl Fn(u64) -> [u64; 4]) -> Verdict {
    stage.connect(Terms::PLAIN)?;
    places(stage.offer.sectors)
        .into_iter()
        .try_for_each(|place| refused(stage, Carrier::Direct, 2, place))?;
    stage.works()
}

fn indirect_across(stage: &mut Stage) -> Verdict {
    let most = stage.offer.max_segments;
    needs!(most >= 32, "feature-max-indirect-segments is {most}");
    stage.connect(Terms::PLAIN)?;
    let place = stage.offer.sectors - 31 * u64::from(PAGE_SECTORS);
    refused(stage, Carrier::Indirect, 32, place)?;
    stage.works()
}

fn refused(stage: &mut Stage, carrier: Carrier, count: usize, place: u64) -> Verdict {
    let (end, seed) = (stage.offer.sectors, stage.seed);
    let before = |sector| Tag::of(seed ^ 1, sector);
    let (first, length) = (end - 256, 256);
    stage.paint(first, length, before)?;
    stage.paint(0, 16, before)?;
    let pages = stage.lend_pages(&whole(count), DeviceAccess::Writes)?;
    for op in [WRITE, READ] {
        let status = stage.transfer(carrier, op, place, &whole(count), &pages)?;
        ensure!(status == ERROR, "operation {op} at sector {place} of {end}: status {status}");
    }
    let untouched = pages.iter().all(|buffer| stage.is_untouched(*buffer));
    ensure!(untouched, "a refused read at sector {place} of {end} changed a page");
    stage.verify(0, 16, before)?;
    stage.verify(first, length, before)
}
