//! What an emulated namespace keeps: a sparse raw file with a known pattern, which [`crate::oracle`] compares later.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Bytes of a namespace.
pub(crate) const DISK_SIZE: u64 = 512 << 20;
/// Bytes of a logical block, QEMU's default.
pub(crate) const BLOCK_SIZE: u64 = 512;
/// One stamp starts every so many bytes, and one ends the disk; between them are zeros.
pub(crate) const STAMP_DISTANCE: usize = 1 << 20;
const STAMP_SIZE: usize = 4096;

/// A namespace's file.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    path: PathBuf,
    namespace: u32,
}

impl Disk {
    pub(crate) fn new(path: PathBuf, namespace: u32) -> Self {
        Self { path, namespace }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where QEMU logs what is written to it, when it does.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.with_extension("log")
    }

    /// Its node in platter and in the Linux driver domain.
    pub(crate) fn target(&self) -> String {
        format!("/dev/nvme0n{}", self.namespace)
    }

    /// Makes the file, or puts the initial pattern back. Nothing may be in flight then.
    pub(crate) fn create(&self) -> Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(&self.path);
        let file = file.with_context(|| format!("cannot write {}", self.path.display()))?;
        file.set_len(DISK_SIZE)?;
        let mut chunk = vec![0_u8; STAMP_DISTANCE];
        for offset in (0..DISK_SIZE).step_by(STAMP_DISTANCE) {
            self.initial(offset, &mut chunk);
            file.write_all_at(&chunk[..STAMP_SIZE], offset)?;
        }
        let last = STAMP_DISTANCE - STAMP_SIZE;
        file.write_all_at(&chunk[last..], DISK_SIZE - STAMP_SIZE as u64)?;
        Ok(())
    }

    /// Writes a partition table, as the real sfdisk makes it of this description. Nothing may be in flight then.
    pub(crate) fn partition(&self, table: &str) -> Result<()> {
        let mut sfdisk = Command::new("/usr/sbin/sfdisk");
        sfdisk.args([
            "--quiet",
            "--no-reread",
            "--no-tell-kernel",
            "--wipe=never",
            "--wipe-partitions=never",
        ]);
        let mut child = sfdisk.arg(&self.path).stdin(Stdio::piped()).spawn().context("sfdisk")?;
        child.stdin.take().context("sfdisk takes no table")?.write_all(table.as_bytes())?;
        ensure!(child.wait()?.success(), "sfdisk failed");
        Ok(())
    }

    /// Puts a file's bytes over the disk's start, and gives the blocks they take. Nothing may be in flight then.
    pub(crate) fn overlay(&self, file: &Path) -> Result<Range<u64>> {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        OpenOptions::new().write(true).open(&self.path)?.write_all_at(&bytes, 0)?;
        Ok(0..(bytes.len() as u64).div_ceil(BLOCK_SIZE))
    }

    /// Fills `chunk` with what the disk holds at first at `offset`, a multiple of [`STAMP_DISTANCE`].
    pub(crate) fn initial(&self, offset: u64, chunk: &mut [u8]) {
        chunk.fill(0);
        let end = chunk.len();
        fill(&mut chunk[..STAMP_SIZE], &format!("namespace {} offset {offset}", self.namespace));
        if offset + end as u64 == DISK_SIZE {
            fill(&mut chunk[end - STAMP_SIZE..], &format!("the end of namespace {}", self.namespace));
        }
    }

    /// Reads the whole disk in chunks of [`STAMP_DISTANCE`] bytes.
    pub(crate) fn read(&self, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut file =
            File::open(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        let mut chunk = vec![0_u8; STAMP_DISTANCE];
        for offset in (0..DISK_SIZE).step_by(STAMP_DISTANCE) {
            file.read_exact(&mut chunk)?;
            each(offset, &chunk)?;
        }
        Ok(())
    }
}

/// The line `text` again and again, as `yes` prints it: easy to make in a guest too, and legible in a dump.
pub(crate) fn fill(bytes: &mut [u8], text: &str) {
    let line = text.bytes().chain(std::iter::once(b'\n'));
    for (byte, value) in bytes.iter_mut().zip(line.cycle()) {
        *byte = value;
    }
}
