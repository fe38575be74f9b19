//! A guest that writes a pattern to its disk directly, several writes at a time, of all lengths. Where step `n` writes,
//! and what, follows from `n`; each sector says which write it is from.

use std::ops::Range;

use crate::machine::BLOCK_SIZE;

/// Sectors that are written to, and the longest write.
const REGION: u64 = 4096;
const LONGEST: u64 = 40;
/// Writes of a step, all under way at the same time.
const WRITES: u64 = 4;
/// A line of the pattern. It divides a sector.
const LINE: usize = 32;

/// How step `n` and its write `k` give a place and a length, in the shell's arithmetic too.
const LENGTH_STEPS: (u64, u64) = (5, 11);
const PLACE_STEPS: (u64, u64) = (173, 1021);

/// The disk's first bytes with all that is ever written.
pub(super) const BYTES: u64 = REGION * BLOCK_SIZE;

/// One step: several writes past the page cache, and then one flush for all of them.
pub(super) fn step() -> String {
    let ((n_length, k_length), (n_place, k_place)) = (LENGTH_STEPS, PLACE_STEPS);
    let last = WRITES - 1;
    format!(
        "writes=
for k in $(seq 0 {last}); do
size=$(((n * {n_length} + k * {k_length}) % {LONGEST} * {BLOCK_SIZE} + {BLOCK_SIZE}))
place=$(((n * {n_place} + k * {k_place}) % {}))
yes \"$(printf 'write %08d sector %09d' $n $place)\" | head -c $size > /tmp/$k
dd if=/tmp/$k of=/dev/xvdb bs=$size count=1 seek=$((place * {BLOCK_SIZE})) oflag=direct,seek_bytes conv=notrunc status=none &
writes=\"$writes $!\"
done
for write in $writes; do wait $write; done
sync /dev/xvdb",
        REGION - LONGEST
    )
}

/// The sectors that step `number` writes.
fn writes(number: u64) -> impl Iterator<Item = Range<u64>> {
    (0..WRITES).map(move |k| {
        let length = (number * LENGTH_STEPS.0 + k * LENGTH_STEPS.1) % LONGEST + 1;
        let place = (number * PLACE_STEPS.0 + k * PLACE_STEPS.1) % (REGION - LONGEST);
        place..place + length
    })
}

/// The line that a sector of the write at `place` in step `number` is full of.
fn line(number: u64, place: u64) -> String {
    format!("write {number:08} sector {place:09}\n")
}

/// The step that a sector is from, if all of it is: 0 when nothing was written there.
fn step_of(sector: u64, bytes: &[u8]) -> Option<u64> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let first = str::from_utf8(&bytes[..LINE]).ok()?;
    let (number, place) = first.strip_prefix("write ")?.split_once(" sector ")?;
    let (number, place): (u64, u64) = (number.parse().ok()?, place.trim_end().parse().ok()?);
    let here = writes(number).any(|write| write.start == place && write.contains(&sector));
    let whole = bytes.chunks(LINE).all(|other| other == line(number, place).as_bytes());
    (here && whole).then_some(number)
}

/// Looks in each sector for what step `acknowledged`, or one before it, was the last to write there, or for something
/// newer; what is lost, if anything is.
pub(super) fn check(disk: &[u8], acknowledged: u64) -> Option<String> {
    let mut newest = vec![0; REGION as usize];
    for number in 1..=acknowledged {
        for write in writes(number) {
            newest[write.start as usize..write.end as usize].fill(number);
        }
    }
    let sectors = disk.chunks(BLOCK_SIZE as usize).zip(newest);
    (0..).zip(sectors).find_map(|(sector, (bytes, newest))| match step_of(sector, bytes) {
        Some(number) if number >= newest => None,
        Some(number) => Some(format!("sector {sector} is of step {number}, not of {newest}")),
        None => {
            let text = String::from_utf8_lossy(&bytes[..LINE]);
            Some(format!("sector {sector} should be of step {newest}, and begins with {text:?}"))
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What step `number` writes: sectors and bytes.
    pub(in crate::cuts) fn written(number: u64) -> impl Iterator<Item = (u64, Vec<u8>)> {
        writes(number).map(move |write| {
            let size = ((write.end - write.start) * BLOCK_SIZE) as usize;
            (write.start, line(number, write.start).bytes().cycle().take(size).collect())
        })
    }

    /// The disk after these writes of these steps.
    fn disk(steps: impl Iterator<Item = (u64, usize)>) -> Vec<u8> {
        let mut disk = vec![0; BYTES as usize];
        for (number, k) in steps {
            let (sector, bytes) = written(number).nth(k).unwrap();
            disk[(sector * BLOCK_SIZE) as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        disk
    }

    fn all(steps: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
        steps.flat_map(|number| (0..WRITES as usize).map(move |k| (number, k)))
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let disk = disk(all(1..51));
        assert_eq!(check(&disk, 50), None);
        assert_eq!(check(&disk, 49), None, "the next step may have come that far");
        assert!(check(&disk, 51).unwrap().contains("not of 51"));
    }

    #[test]
    fn one_lost_write_is_seen() {
        for k in 0..WRITES as usize {
            let lost = check(&disk(all(1..51).filter(|write| *write != (50, k))), 50);
            assert!(lost.as_ref().is_some_and(|lost| lost.contains("not of 50")), "{k}: {lost:?}");
        }
    }

    #[test]
    fn one_lost_sector_of_a_write_is_seen() {
        let (mut after, before) = (disk(all(1..51)), disk(all(1..50)));
        let last = (writes(50).last().unwrap().end - 1) as usize * BLOCK_SIZE as usize;
        after[last..last + BLOCK_SIZE as usize].copy_from_slice(&before[last..last + BLOCK_SIZE as usize]);
        assert!(check(&after, 50).unwrap().contains("not of 50"));
    }

    #[test]
    fn what_nobody_wrote_there_is_seen() {
        let mut disk = disk(all(1..51));
        let place = writes(50).last().unwrap().start as usize * BLOCK_SIZE as usize;
        let sector = disk[place..place + BLOCK_SIZE as usize].to_vec();
        let empty = disk.chunks(BLOCK_SIZE as usize).position(|found| found.iter().all(|byte| *byte == 0));
        let empty = empty.unwrap() * BLOCK_SIZE as usize;
        disk[empty..empty + BLOCK_SIZE as usize].copy_from_slice(&sector);
        assert!(check(&disk, 50).unwrap().contains("begins with"));
        disk[empty..empty + BLOCK_SIZE as usize].fill(0);
        disk[place + BLOCK_SIZE as usize - 1] = 0;
        assert!(check(&disk, 50).is_some(), "a sector in two halves");
    }

    #[test]
    fn writes_are_within_the_region_and_lines_fill_sectors() {
        assert!((0..3000).flat_map(writes).all(|write| write.end <= REGION && !write.is_empty()));
        assert_eq!((line(3000, 4095).len(), BLOCK_SIZE as usize % LINE), (LINE, 0));
    }
}
