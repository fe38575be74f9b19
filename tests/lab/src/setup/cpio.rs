//! Writes an initramfs: the `newc` cpio format the Linux kernel unpacks (kernel
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). [`super::roots`] says what goes in.
//!
//! Written here rather than by `cpio` so that files need not exist on the host as they will in the domain: no
//! root, no intermediate tree.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An initramfs being built. Every path is absolute as seen from inside; parent directories come by themselves.
pub(super) struct Initramfs {
    bytes: Vec<u8>,
    made: BTreeSet<String>,
}

impl Initramfs {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), made: BTreeSet::new() }
    }

    /// Adds a directory and the ones above it.
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.made.contains(path) {
            return;
        }
        self.parent_of(path);
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file with these contents and permission bits; a second file of the same path is ignored.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        let path = path.trim_matches('/');
        if !self.made.contains(path) {
            self.parent_of(path);
            self.entry(path, FILE | mode, contents);
        }
    }

    /// Copies a file of the host, following links.
    pub(super) fn copy(&mut self, from: &Path, path: &str) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, &contents);
        Ok(())
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        let path = path.trim_matches('/');
        if !self.made.contains(path) {
            self.parent_of(path);
            self.entry(path, SYMLINK | 0o777, target.as_bytes());
        }
    }

    fn parent_of(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.made.insert(name.to_owned());
        let inode = self.made.len();
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let header = [inode, mode as usize, 0, 0, links, 0, contents.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in header {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_archive_ends_with_the_trailer() {
        let mut archive = Initramfs::new();
        archive.file("/a/b", 0o755, b"hello");
        archive.symlink("/a/c", "b");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let headers = bytes.windows(6).filter(|window| *window == b"070701").count();
        assert_eq!(headers, 4, "the directory a, b, c and the trailer");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn a_path_is_added_once() {
        let mut archive = Initramfs::new();
        archive.file("/etc/x", 0o644, b"first");
        archive.file("/etc/x", 0o644, b"second");
        archive.directory("/etc");
        let bytes = archive.finish();
        assert!(bytes.windows(5).any(|window| window == b"first"));
        assert!(!bytes.windows(6).any(|window| window == b"second"));
    }
}
