//! The memory of a command: made for the driver to name, and read from the names that it gives, by the
//! rules of the standard (Base 4.1.1).

use platter::units::{BusAddr, PAGE_SIZE, SECTOR_SIZE, Span};

use crate::input::Input;

const PAGE: u64 = PAGE_SIZE as u64;

/// Where guests' pages are on the bus. No two are neighbours.
const GUESTS: u64 = 1 << 40;

/// Spans of a request at most, and sectors of a page.
const SPANS: u8 = 48;
const SECTORS: u8 = (PAGE_SIZE / SECTOR_SIZE) as u8;

/// Pages or parts of them that add up to whole blocks, each of which begins and ends in one page
/// where blocks are larger than sectors.
pub(super) fn spans(input: &mut Input<'_>, block_size: u32) -> Vec<Span> {
    let sectors = (block_size / SECTOR_SIZE as u32) as u8;
    let count = 1 + input.byte() % SPANS;
    let blocks = SECTORS / sectors;
    let span = |page: u8| {
        let shape = input.byte();
        // Mostly whole pages, which is what can go on from one to the next.
        let (first, last) = match shape {
            0..0xc0 => (0, blocks - 1),
            _ => (shape & 7, shape >> 3 & 7),
        };
        let (first, last) = (first % blocks, last % blocks);
        let (first, last) = (first.min(last) * sectors, (first.max(last) + 1) * sectors);
        let bus = BusAddr(GUESTS + u64::from(page) * 2 * PAGE).offset(u64::from(first) * SECTOR_SIZE as u64);
        Span { bus, bytes: u32::from(last - first) * SECTOR_SIZE as u32 }
    };
    (0..count).map(span).collect()
}

/// The memory that a command's entries name for so many bytes.
pub(super) fn pieces(first: u64, second: u64, bytes: u64, read: impl Fn(u64) -> u64) -> Vec<Span> {
    let piece = |bus, bytes: u64| Span { bus: BusAddr(bus), bytes: bytes as u32 };
    let in_first = bytes.min(PAGE - first % PAGE);
    let mut pieces = vec![piece(first, in_first)];
    let mut left = bytes - in_first;
    let pages = left.div_ceil(PAGE);
    if pages > 1 {
        assert!(second.is_multiple_of(8) && second % PAGE + pages * 8 <= PAGE, "a list leaves its page");
    }
    for page in 0..pages {
        let bus = if pages == 1 { second } else { read(second + page * 8) };
        assert!(bus.is_multiple_of(PAGE), "goes on inside a page");
        pieces.push(piece(bus, left.min(PAGE)));
        left -= left.min(PAGE);
    }
    assert!(pages > 0 || second == 0, "names a page too many");
    pieces
}
