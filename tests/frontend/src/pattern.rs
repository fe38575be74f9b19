//! Data that tells where it belongs: a sector's contents follow from a tag, and no two tags give the
//! same contents in any of their words.

use platter::mem::SharedPage;
use platter::units::SECTOR_SIZE;

use crate::protocol::PAGE_SECTORS;

/// What a sector holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag(pub(crate) u64);

/// What pages hold before a backend writes to them.
pub(crate) const CANARY: Tag = Tag(0xdead_0000_0000_0000);

impl Tag {
    /// A tag of a seed and a number.
    pub(crate) const fn of(seed: u64, number: u64) -> Self {
        Self(mixed(seed) ^ number)
    }

    const fn word(self, index: usize) -> u64 {
        mixed(self.0.wrapping_mul(64).wrapping_add(index as u64))
    }
}

/// Fills sector `sector` of a page.
pub(crate) fn fill(page: &SharedPage, sector: u8, tag: Tag) {
    for index in 0..SECTOR_SIZE / 8 {
        page.write_u64(usize::from(sector) * SECTOR_SIZE + index * 8, tag.word(index));
    }
}

/// Whether sector `sector` of a page holds all of what the tag says.
pub(crate) fn holds(page: &SharedPage, sector: u8, tag: Tag) -> bool {
    let base = usize::from(sector) * SECTOR_SIZE;
    (0..SECTOR_SIZE / 8).all(|index| page.read_u64(base + index * 8) == tag.word(index))
}

/// Fills a page with what no check writes.
pub(crate) fn blank(page: &SharedPage) {
    (0..PAGE_SECTORS).for_each(|sector| fill(page, sector, CANARY));
}

/// A number with its bits mixed: splitmix64, which is one to one.
pub(crate) const fn mixed(number: u64) -> u64 {
    let a = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let b = (a ^ (a >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let c = (b ^ (b >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    c ^ (c >> 31)
}
