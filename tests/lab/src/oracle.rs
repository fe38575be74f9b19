//! The disk as an oracle: what guests wrote must be where it belongs, and no other byte may have changed.

use std::ops::Range;

use anyhow::{Result, bail};

use crate::machine::{BLOCK_SIZE, Disk, fill};

/// What a disk must hold.
pub(crate) struct Expected<'d> {
    disk: &'d Disk,
    written: Vec<Written>,
}

struct Written {
    bytes: Range<u64>,
    content: Content,
}

enum Content {
    /// This line again and again.
    Line(String),
    /// Whatever the guest's tool put there.
    Anything,
}

impl<'d> Expected<'d> {
    /// The initial pattern and nothing else.
    pub(crate) fn untouched(disk: &'d Disk) -> Self {
        Self { disk, written: Vec::new() }
    }

    /// `blocks` now hold `line`, repeated from the first of them on. Later calls go over earlier ones.
    pub(crate) fn line(mut self, blocks: Range<u64>, line: &str) -> Self {
        self.written.push(Written { bytes: to_bytes(blocks), content: Content::Line(line.to_owned()) });
        self
    }

    /// `blocks` may hold anything.
    pub(crate) fn anything(mut self, blocks: Range<u64>) -> Self {
        self.written.push(Written { bytes: to_bytes(blocks), content: Content::Anything });
        self
    }

    /// Compares every byte.
    ///
    /// # Errors
    /// The first byte that is wrong, with its block and what is there instead.
    pub(crate) fn check(&self) -> Result<()> {
        let mut expected = Vec::new();
        self.disk.read(|offset, found| {
            expected.resize(found.len(), 0);
            self.disk.initial(offset, &mut expected);
            self.overlay(offset, found, &mut expected);
            if let Some(at) = first_difference(&expected, found) {
                bail!(
                    "{}: byte {} (block {}) is {:?}, expected {:?}",
                    self.disk.target(),
                    offset + at as u64,
                    (offset + at as u64) / BLOCK_SIZE,
                    excerpt(found, at),
                    excerpt(&expected, at)
                );
            }
            Ok(())
        })
    }

    fn overlay(&self, offset: u64, found: &[u8], expected: &mut [u8]) {
        let chunk = offset..offset + expected.len() as u64;
        for Written { bytes, content } in &self.written {
            let (start, end) = (bytes.start.max(chunk.start), bytes.end.min(chunk.end));
            if start >= end {
                continue;
            }
            let part = (start - offset) as usize..(end - offset) as usize;
            match content {
                Content::Anything => expected[part.clone()].copy_from_slice(&found[part]),
                Content::Line(line) => {
                    let skipped = (start - bytes.start) as usize;
                    let mut whole = vec![0; (end - bytes.start) as usize];
                    fill(&mut whole, line);
                    expected[part].copy_from_slice(&whole[skipped..]);
                }
            }
        }
    }
}

fn to_bytes(blocks: Range<u64>) -> Range<u64> {
    blocks.start * BLOCK_SIZE..blocks.end * BLOCK_SIZE
}

fn first_difference(expected: &[u8], found: &[u8]) -> Option<usize> {
    if expected == found {
        return None;
    }
    expected.iter().zip(found).position(|(left, right)| left != right)
}

fn excerpt(bytes: &[u8], at: usize) -> String {
    String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 40)]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::machine::DISK_SIZE;

    fn fresh_disk(folder: &tempfile::TempDir) -> Disk {
        let disk = Disk::new(folder.path().join("disk"), 1);
        disk.create().unwrap();
        disk
    }

    fn write(disk: &Disk, block: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(disk.path()).unwrap();
        file.write_all_at(bytes, block * BLOCK_SIZE).unwrap();
    }

    fn lines(text: &str, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        fill(&mut bytes, text);
        bytes
    }

    #[test]
    fn an_untouched_disk_is_as_expected() {
        let folder = tempfile::tempdir().unwrap();
        Expected::untouched(&fresh_disk(&folder)).check().unwrap();
    }

    #[test]
    fn a_write_across_two_chunks_is_found_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let disk = fresh_disk(&folder);
        write(&disk, 2047, &lines("hello world", 1024));
        Expected::untouched(&disk).line(2047..2049, "hello world").check().unwrap();
        Expected::untouched(&disk).anything(2000..2100).check().unwrap();
        assert!(Expected::untouched(&disk).line(2047..2050, "hello world").check().is_err());
    }

    #[test]
    fn a_stray_byte_is_named_by_its_block() {
        let folder = tempfile::tempdir().unwrap();
        let disk = fresh_disk(&folder);
        write(&disk, 70_000, b"x");
        let error = Expected::untouched(&disk).line(0..8, "xx").check().unwrap_err().to_string();
        assert!(error.contains("byte 0 (block 0)"), "{error}");
        let error = Expected::untouched(&disk).check().unwrap_err().to_string();
        assert!(error.contains("(block 70000)"), "{error}");
    }

    #[test]
    fn losing_the_last_block_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let disk = fresh_disk(&folder);
        write(&disk, DISK_SIZE / BLOCK_SIZE - 1, &[0; 512]);
        assert!(Expected::untouched(&disk).check().is_err());
    }
}
