//! Physical region pages (Base 4.1.1): how many spans one command can express, and the lists that
//! say where they are. Only the first span may start inside a page, only the last may end inside
//! one; spans that follow each other within a page come merged. A command that gives up blocks needs
//! no list, and has its range there.

use crate::hal::{DmaPage, Memory};
use crate::limits::{COMMAND_SPANS, QUEUE_ENTRIES};
use crate::units::{BusAddr, PAGE_SIZE, Span};
use crate::wire::nvme::command::{Prps, Range};

use super::tags::Tag;

/// Entries of the list that each tag has.
const LIST_ENTRIES: usize = COMMAND_SPANS - 1;
const LIST_BYTES: usize = LIST_ENTRIES * 8;
const LISTS_PER_PAGE: usize = PAGE_SIZE / LIST_BYTES;

/// Pages that hold the lists of all tags.
pub(super) const LIST_PAGES: usize = QUEUE_ENTRIES / LISTS_PER_PAGE;

/// Pages that one command can name: one itself, the others in its list. That is 128 KiB at any
/// offset, and no list goes on in another page.
pub(super) const PAGES: usize = COMMAND_SPANS;

const PAGE_BYTES: u32 = PAGE_SIZE as u32;

/// The bytes of [`PAGES`] whole pages.
pub(super) const MAX_BYTES: u32 = PAGES as u32 * PAGE_BYTES;

/// The spans from the front that one command can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Prefix {
    pub(super) spans: usize,
    pub(super) bytes: u32,
}

impl Prefix {
    /// No data.
    pub(super) const NONE: Self = Self { spans: 0, bytes: 0 };

    /// The longest one within `max_bytes` that is whole blocks, if there is any.
    pub(super) fn longest(spans: &[Span], block_size: u32, max_bytes: u32) -> Option<Self> {
        let mut longest = None;
        let mut bytes = 0;
        for (i, span) in spans.iter().take(PAGES).enumerate() {
            let offset = offset_in_page(span);
            let end = offset.saturating_add(span.bytes);
            if (i > 0 && offset != 0) || end == offset || end > PAGE_BYTES || span.bytes > max_bytes - bytes {
                break;
            }
            bytes += span.bytes;
            if bytes & (block_size - 1) == 0 {
                longest = Some(Self { spans: i + 1, bytes });
            }
            if end != PAGE_BYTES {
                break;
            }
        }
        longest
    }
}

fn offset_in_page(span: &Span) -> u32 {
    (span.bus.0 & u64::from(PAGE_BYTES - 1)) as u32
}

/// The lists of all tags.
#[derive(Debug)]
pub(super) struct PrpLists([DmaPage; LIST_PAGES]);

impl PrpLists {
    /// Lists in these pages.
    pub(super) fn new(pages: [DmaPage; LIST_PAGES]) -> Self {
        Self(pages)
    }

    /// Gives the pages back. No command is in flight.
    pub(super) fn release(self, hal: &mut impl Memory) {
        self.0.into_iter().for_each(|page| hal.return_page(page));
    }

    /// The entries for these spans, of which there are 1 to [`PAGES`], with a list at this tag
    /// when there are more than two.
    pub(super) fn describe(&self, tag: Tag, spans: &[Span]) -> Prps {
        match spans {
            [] => Prps::NONE,
            [only] => Prps::page(only.bus),
            [first, second] => Prps { first: first.bus, second: second.bus },
            [first, others @ ..] => {
                let entries = others.iter().take(LIST_ENTRIES).map(|span| span.bus.0);
                Prps { first: first.bus, second: self.write(tag, entries) }
            }
        }
    }

    /// Writes the range where the list at this tag would be; returns its place.
    pub(super) fn hold_range(&self, tag: Tag, range: Range) -> BusAddr {
        self.write(tag, range.words().into_iter())
    }

    /// Writes words, no more than [`LIST_ENTRIES`], to the list at this tag; returns its place.
    fn write(&self, tag: Tag, words: impl Iterator<Item = u64>) -> BusAddr {
        let lists = &self.0[tag.index() / LISTS_PER_PAGE];
        let place = tag.index() % LISTS_PER_PAGE * LIST_BYTES;
        for (i, word) in words.enumerate() {
            lists.page.write_u64(place + i * 8, word);
        }
        lists.bus.offset(place as u64)
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::drivers::Token;
    use crate::drivers::nvme::tags::Tags;
    use crate::mem::frame::Frame;
    use crate::sim::rng::Rng;
    use crate::units::{Instant, SECTOR_SIZE};

    /// Whether one command can do all of these, said another way than the code says it.
    fn is_legal(spans: &[Span], block_size: u32, max_bytes: u32) -> bool {
        let start = |span: &Span| span.bus.0 % 4096;
        let end = |span: &Span| start(span) + u64::from(span.bytes);
        let (Some((_, after_first)), Some((_, before_last))) = (spans.split_first(), spans.split_last())
        else {
            return false;
        };
        let bytes: u64 = spans.iter().map(|span| u64::from(span.bytes)).sum();
        after_first.iter().all(|span| start(span) == 0)
            && before_last.iter().all(|span| end(span) == 4096)
            && spans.iter().all(|span| span.bytes > 0 && end(span) <= 4096)
            && spans.len() <= 33
            && bytes <= max_bytes.into()
            && bytes.is_multiple_of(block_size.into())
    }

    fn random_spans(rng: &mut Rng) -> Vec<Span> {
        let raggedness = [0, 1, 3, 20][rng.index(4)];
        let sectors = |n: u64| n * SECTOR_SIZE as u64;
        let mut span = || {
            let ragged = rng.one_in(raggedness);
            let page = sectors(8) * rng.within(1..1 << 40);
            let start = if ragged { rng.within(0..8) } else { 0 };
            let length = if ragged { rng.within(0..10 - start) } else { 8 };
            Span { bus: BusAddr(page + sectors(start)), bytes: sectors(length) as u32 }
        };
        let count = span().bus.0 / sectors(8) % 40;
        (0..count).map(|_| span()).collect()
    }

    #[test]
    fn the_longest_legal_prefix_is_found() {
        let mut rng = Rng::new(1);
        let (mut none, mut many) = (0, 0);
        for _ in 0..20_000 {
            let spans = random_spans(&mut rng);
            let block_size = 512 << rng.index(4);
            let max_bytes = (4096 << rng.within(1..8)).min(MAX_BYTES);
            // A span that is illegal wherever it stands ends the search, so prefixes are enough.
            let legal = (1..=spans.len()).rev().find(|n| is_legal(&spans[..*n], block_size, max_bytes));
            let found = Prefix::longest(&spans, block_size, max_bytes);
            assert_eq!(found.map(|prefix| prefix.spans), legal, "{spans:x?}");
            let Some(Prefix { spans: n, bytes }) = found else {
                none += 1;
                continue;
            };
            assert_eq!(bytes, spans[..n].iter().map(|span| span.bytes).sum::<u32>());
            many += u32::from(n == PAGES);
        }
        assert!(none > 100 && many > 100, "{none} {many}");
    }

    /// The sectors that a controller reaches through these entries, in order (Base 4.1.1): to the end
    /// of the first page from anywhere in it, then page by page; what needs more than two entries has
    /// all but the first in a list.
    fn reached(prps: Prps, bytes: u32, frames: &[Frame]) -> Vec<u64> {
        let first = (4096 - prps.first.0 % 4096).min(bytes.into());
        let others = (u64::from(bytes) - first).div_ceil(4096);
        let listed = |i: u64| {
            let frame = frames[(prps.second.0 / 0x10_0000 - 1) as usize];
            frame.shared().read_u64((prps.second.0 % 4096 + i * 8) as usize)
        };
        let entry = |i| if others == 1 { prps.second.0 } else { listed(i) };
        let pages = (0..others).map(|i| (entry(i), (u64::from(bytes) - first - i * 4096).min(4096)));
        let pieces: Vec<_> = [(prps.first.0, first)].into_iter().chain(pages).collect();
        assert!(pieces[1..].iter().all(|(start, _)| start.is_multiple_of(4096)));
        pieces.into_iter().flat_map(|(start, bytes)| (start..start + bytes).step_by(512)).collect()
    }

    /// Every span of quarters of two pages.
    fn quarters() -> Vec<Span> {
        let places = (0..4).flat_map(|start| (1..=4 - start).map(move |length| (start, length)));
        let span = |page: u64, (start, length): (u64, u64)| Span {
            bus: BusAddr(page * 4096 + start * 1024),
            bytes: length as u32 * 1024,
        };
        places.flat_map(|place| [span(3, place), span(4, place)]).collect()
    }

    /// Cuts a request into commands, and has a controller do them.
    fn cut(mut rest: &[Span], block_size: u32, max_bytes: u32, lists: &PrpLists, frames: &[Frame]) {
        let (tag, _) = Tags::new(64).enter(Token(0), Instant(0)).unwrap();
        loop {
            let legal = (1..=rest.len()).rev().find(|n| is_legal(&rest[..*n], block_size, max_bytes));
            let Some(found) = Prefix::longest(rest, block_size, max_bytes) else {
                assert_eq!(legal, None, "{rest:x?}");
                return;
            };
            assert_eq!(Some(found.spans), legal, "{rest:x?}");
            let (now, later) = rest.split_at(found.spans);
            let sectors = |span: &Span| (span.bus.0..span.bus.0 + u64::from(span.bytes)).step_by(512);
            let asked: Vec<_> = now.iter().flat_map(sectors).collect();
            assert_eq!(reached(lists.describe(tag, now), found.bytes, frames), asked, "{now:x?}");
            rest = later;
        }
    }

    #[test]
    fn every_request_of_a_few_quarters_is_cut_into_the_longest_commands_that_reach_it() {
        let frames: [Frame; LIST_PAGES] = core::array::from_fn(|_| Frame::new());
        let page = |i: usize| DmaPage { page: frames[i].shared(), bus: BusAddr(0x10_0000 * (i as u64 + 1)) };
        let lists = PrpLists::new(core::array::from_fn(page));
        let spans = quarters();
        for count in 1..=4 {
            for request in 0..spans.len().pow(count) {
                let span = |i| spans[request / spans.len().pow(i) % spans.len()];
                let request: Vec<_> = (0..count).map(span).collect();
                for (block_size, max_bytes) in [(512, 4096), (1024, 8192), (4096, MAX_BYTES)] {
                    cut(&request, block_size, max_bytes, &lists, &frames);
                }
            }
        }
    }

    #[test]
    fn each_tag_has_a_list_of_its_own() {
        let frames: [Frame; LIST_PAGES] = core::array::from_fn(|_| Frame::new());
        let page = |i: usize| DmaPage { page: frames[i].shared(), bus: BusAddr(0x10_0000 * (i as u64 + 1)) };
        let lists = PrpLists::new(core::array::from_fn(page));
        let mut tags = Tags::new(64);
        let spans = |n: u64| -> Vec<Span> {
            let span = |i| Span { bus: BusAddr((n * 100 + i) << 12), bytes: PAGE_BYTES };
            (0..PAGES as u64).map(span).collect()
        };
        let prps: Vec<Prps> =
            (0..63).map(|n| lists.describe(tags.enter(Token(0), Instant(0)).unwrap().0, &spans(n))).collect();
        for (n, prps) in (0..).zip(prps) {
            assert_eq!(prps.first, spans(n)[0].bus);
            let frame = frames[(prps.second.0 / 0x10_0000 - 1) as usize];
            for (i, span) in spans(n)[1..].iter().enumerate() {
                let offset = (prps.second.0 % 4096) as usize + i * 8;
                assert_eq!(frame.shared().read_u64(offset), span.bus.0);
            }
        }
    }

    #[test]
    fn up_to_two_pages_need_no_list() {
        let lists = PrpLists::new(core::array::from_fn(|_| DmaPage {
            page: Frame::new().shared(),
            bus: BusAddr(0x5000),
        }));
        let (tag, _) = Tags::new(64).enter(Token(0), Instant(0)).unwrap();
        let span = |bus| Span { bus: BusAddr(bus), bytes: 512 };
        assert_eq!(lists.describe(tag, &[]), Prps::NONE);
        assert_eq!(lists.describe(tag, &[span(0x1e00)]), Prps::page(BusAddr(0x1e00)));
        let two = Prps { first: BusAddr(0x1e00), second: BusAddr(0x3000) };
        assert_eq!(lists.describe(tag, &[span(0x1e00), span(0x3000)]), two);
    }
}
