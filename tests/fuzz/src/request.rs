//! Ring entries and pages of segments in both layouts: what is taken from them is what the header
//! says, nothing else in them matters, and no sum of theirs leads outside the volume. The rules are
//! said here once more, from blkif.h, with wider numbers.

use platter::sim::abi::{self, Abi, BARRIER, Body, DISCARD, FLUSH, INDIRECT, READ, WRITE, write_segment};
use platter::units::{Block, Sector};
use platter::volume::{DiskIndex, Volume};
use platter::wire::blkif::{
    Entry, Head, Operation, Protocol, Reject, Request, SEGMENT_BYTES, Segment, Status, response,
};

use crate::input::Input;

/// Segments of any direct request, and of any indirect one.
const DIRECT: usize = 11;
const MOST: usize = 256;

/// A layout byte, a volume, an entry, then segments as in the page of an indirect request.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (protocol, abi) = match input.byte() & 1 {
        0 => (Protocol::X86_64, Abi::X64),
        _ => (Protocol::X86_32, Abi::X32),
    };
    let place = Place::take(&mut input);
    let entry: Entry = input.array();
    let head = Head::parse(protocol, &entry);
    let parsed = Request::parse(protocol, &entry);
    match &parsed {
        Ok(request) => {
            assert!(is_sound(abi, &entry), "{request:?}");
            assert_written_again(protocol, abi, &entry, head, request);
            place.translate(request);
        }
        Err(reject) => {
            assert!(!is_sound(abi, &entry), "{reject:?}");
            let known = [READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT].contains(&entry[0]);
            assert_eq!(reject.status() == Status::Unsupported, !known);
        }
    }
    assert_answer(abi, head);
    page(input.rest());
}

/// What blkif.h allows: counts, and segments within their pages.
fn is_sound(abi: Abi, entry: &Entry) -> bool {
    let segments = &entry[if abi == Abi::X64 { 24 } else { 20 }..];
    let are_sound = |count: u8| {
        let mut segments = segments.chunks_exact(SEGMENT_BYTES).take(count.into());
        usize::from(count) <= DIRECT && segments.all(is_in_page)
    };
    match entry[0] {
        READ | WRITE => entry[1] != 0 && are_sound(entry[1]),
        BARRIER | FLUSH => are_sound(entry[1]),
        DISCARD => true,
        INDIRECT => {
            let count = usize::from(u16::from_le_bytes([entry[2], entry[3]]));
            matches!(entry[1], READ | WRITE) && (1..=MOST).contains(&count)
        }
        _ => false,
    }
}

fn is_in_page(segment: &[u8]) -> bool {
    segment[4] <= segment[5] && segment[5] < 8
}

/// The request, written by somebody else between other bytes, is the same request.
fn assert_written_again(protocol: Protocol, abi: Abi, entry: &Entry, head: Head, request: &Request<'_>) {
    let mut again = entry.map(|byte| !byte);
    let at = |sector: &Sector| abi::Head { operation: head.operation, id: head.id, sector: sector.0 };
    match request {
        Request::Direct { sector, segments, .. } => {
            let mut plain = [(0, 0, 0); DIRECT];
            for (to, segment) in plain.iter_mut().zip(segments.iter()) {
                *to = (segment.gref.0, segment.first, segment.last);
            }
            abi.write(&mut again, at(sector), Body::Direct(&plain[..segments.iter().count()]));
        }
        Request::Indirect { sector, count, page, .. } => {
            abi.write(&mut again, at(sector), Body::Indirect(*count as u16, &[page.0]));
        }
        // The flag for secure erasure is nobody's business.
        Request::Discard { sector, sectors } => {
            abi.write(&mut again, at(sector), Body::Discard(!entry[1], *sectors));
        }
    }
    assert_eq!(Head::parse(protocol, &again), head);
    assert_eq!(Request::parse(protocol, &again).as_ref(), Ok(request));
    let code = match request {
        Request::Direct { op, .. } | Request::Indirect { op, .. } => match op {
            Operation::Read => READ,
            Operation::Write => WRITE,
            Operation::Flush => FLUSH,
            Operation::Barrier => BARRIER,
            Operation::Discard => unreachable!("a discard is no transfer"),
        },
        Request::Discard { .. } => DISCARD,
    };
    assert_eq!(code, head.operation);
}

/// An answer repeats what it must, and has no other byte of ours.
fn assert_answer(abi: Abi, head: Head) {
    for (status, number) in
        [(Status::Okay, abi::OKAY), (Status::Error, abi::ERROR), (Status::Unsupported, abi::EOPNOTSUPP)]
    {
        let mut entry = [0xee; abi::ENTRY_BYTES];
        let bytes = response(head, status);
        entry[..bytes.len()].copy_from_slice(&bytes);
        let expected =
            abi::Response { id: head.id, operation: head.operation, status: number, is_clean: true };
        assert_eq!(abi.response(&entry), expected);
    }
}

/// The segments of an indirect request.
fn page(bytes: &[u8]) {
    for bytes in bytes.as_chunks::<SEGMENT_BYTES>().0 {
        match Segment::parse(*bytes) {
            Ok(segment) => {
                assert!(is_in_page(bytes) && (1..=8).contains(&segment.sectors()));
                let mut again = bytes.map(|byte| !byte);
                write_segment(&mut again, (segment.gref.0, segment.first, segment.last));
                assert_eq!(Segment::parse(again), Ok(segment));
            }
            Err(reject) => assert!(!is_in_page(bytes) && reject == Reject::Segment),
        }
    }
}

/// A volume, and the numbers it is made of.
struct Place {
    volume: Option<Volume>,
    /// Sectors of a block.
    block: u128,
    first: u128,
    blocks: u128,
}

impl Place {
    /// A part of a disk, wherever the input has it.
    fn take(input: &mut Input<'_>) -> Self {
        let shift = u32::from(input.byte() % 4);
        let (disk_blocks, first, blocks) = (input.long(), input.long(), input.long());
        let disk = DiskIndex { controller: 0, namespace: 0 };
        let whole = Volume::whole(disk, 512 << shift, Block(disk_blocks), true);
        let volume = whole.ok().and_then(|whole| whole.part(Block(first), Block(blocks)));
        let end = u128::from(first) + u128::from(blocks);
        let fits = u128::from(disk_blocks) << shift <= u64::MAX.into();
        let expected = fits && blocks != 0 && end <= disk_blocks.into();
        assert_eq!(volume.is_some(), expected, "{first}+{blocks} of {disk_blocks} << {shift}");
        Self { volume, block: 1 << shift, first: first.into(), blocks: blocks.into() }
    }

    /// What a request asks for lies in the volume, or is refused.
    fn translate(&self, request: &Request<'_>) {
        let Some(volume) = self.volume else { return };
        let (sector, sectors) = match request {
            Request::Direct { sector, segments, .. } => (*sector, segments.sectors()),
            // As many as there can be.
            Request::Indirect { sector, count, .. } => (*sector, 8 * *count as u64),
            Request::Discard { sector, sectors } => (*sector, *sectors),
        };
        let (start, length) = (u128::from(sector.0), u128::from(sectors));
        let is_whole = start % self.block == 0 && length % self.block == 0;
        let is_inside = start + length <= self.blocks * self.block;
        match volume.translate(sector, sectors) {
            Ok(block) => {
                assert!(is_whole && is_inside);
                assert_eq!(u128::from(block.0), self.first + start / self.block);
                assert_eq!(u128::from(volume.blocks_of(sectors).0), length / self.block);
            }
            Err(reject) if is_inside => assert!(!is_whole && reject == Reject::Alignment),
            Err(reject) => assert_eq!(reject, Reject::Range),
        }
    }
}
