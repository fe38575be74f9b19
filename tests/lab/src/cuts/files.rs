//! A guest that writes files on ext4. File `n` and what is in it follow from `n`, so the host can tell
//! whether all that was synced is there, by e2fsprogs and without mounting anything.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::machine::fill;

/// So many files are kept, the older ones are removed.
const KEPT: u64 = 24;
/// A file's size, in bytes, follows from its number and stays below this.
const SIZE_LIMIT: u64 = 24_000;
const SIZE_STEP: u64 = 7919;

/// Where the superblock is. ext4 relies on it being written as a whole: half an old and half a new one have a
/// wrong checksum, and so small a file system has no second one.
pub(super) const SUPER_BLOCK: usize = 4096;

/// Makes the file system. Blocks of 4 KiB, the size that all but the smallest ones have.
pub(super) const PREPARE: &str = "mkfs.ext4 -q -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 /dev/xvdb
mount /dev/xvdb /mnt
sync";

/// Recovers the file system after a power cut as a boot does, without anybody to ask, and looks for the files that
/// must be there.
pub(super) fn recover(acknowledged: u64) -> String {
    format!(
        "e2fsck -f -p /dev/xvdb || [ $? = 1 ]
mount /dev/xvdb /mnt
begun=$(ls /mnt | sort -n | tail -n 1)
for n in $(seq $((begun > {KEPT} ? begun - {KEPT} + 1 : 1)) {acknowledged}); do
yes \"file $n\" | head -c $((n * {SIZE_STEP} % {SIZE_LIMIT})) | cmp - /mnt/$n
done
seq {acknowledged} > /mnt/list"
    )
}

/// One step: writes file `$n`, adds to a list, removes an old file, and syncs.
pub(super) fn step() -> String {
    format!(
        "yes \"file $n\" | head -c $((n * {SIZE_STEP} % {SIZE_LIMIT})) > /mnt/$n
echo $n >> /mnt/list
rm -f /mnt/$((n - {KEPT}))
if [ $((n % 4)) = 0 ]; then sync; else sync /mnt/$n /mnt/list; fi"
    )
}

/// The files that must be there when step `acknowledged` was, and step `begun` removes one.
fn required(acknowledged: u64, begun: u64) -> RangeInclusive<u64> {
    (begun + 1).saturating_sub(KEPT).max(1)..=acknowledged
}

fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; (number * SIZE_STEP % SIZE_LIMIT) as usize];
    fill(&mut bytes, &format!("file {number}"));
    bytes
}

/// Recovers the file system in a copy of the disk and compares the files, in the folder `scratch`; what is
/// lost, if anything is.
///
/// # Errors
/// A file or a program of e2fsprogs cannot be used.
pub(super) fn check(disk: &[u8], acknowledged: u64, scratch: &Path) -> Result<Option<String>> {
    let (copy, tree) = (scratch.join("disk"), scratch.join("tree"));
    fs::write(&copy, disk).with_context(|| format!("cannot write {}", copy.display()))?;
    // 1: it has put everything right. After that there must be nothing to put right.
    for (mode, limit) in [("-p", 1), ("-n", 0)] {
        let mut e2fsck = Command::new("/usr/sbin/e2fsck");
        let output = e2fsck.args(["-f", mode]).arg(&copy).stdin(Stdio::null()).output().context("e2fsck")?;
        if output.status.code().is_none_or(|code| code > limit) {
            let said = String::from_utf8_lossy(&output.stdout).replace('\n', "; ");
            return Ok(Some(format!("e2fsck {mode} ends with {}: {said}", output.status)));
        }
    }
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir(&tree)?;
    let mut debugfs = Command::new("/usr/sbin/debugfs");
    debugfs.args(["-R", &format!("rdump / {}", tree.display())]).arg(&copy);
    debugfs.stdin(Stdio::null()).output().context("debugfs")?;
    Ok(compare(&tree, acknowledged))
}

/// What is missing or wrong in the files of a recovered file system.
fn compare(tree: &Path, acknowledged: u64) -> Option<String> {
    let list = fs::read_to_string(tree.join("list")).unwrap_or_default();
    let expected: String = (1..=acknowledged).map(|number| format!("{number}\n")).collect();
    if !list.starts_with(&expected) {
        let last = list.lines().next_back().unwrap_or("nothing");
        return Some(format!("the list should go to {acknowledged} and ends with {last}"));
    }
    // A step's removal is never on the disk without its file: they are journaled in this order.
    let names = fs::read_dir(tree).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let begun = names.filter_map(|name| name.to_str()?.parse().ok()).max().unwrap_or_default();
    required(acknowledged, begun).find_map(|number| match fs::read(tree.join(number.to_string())) {
        Err(error) => Some(format!("file {number} of {acknowledged}: {error}")),
        Ok(found) if found == content(number) => None,
        Ok(found) => Some(format!("file {number} of {acknowledged} holds {} other bytes", found.len())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    /// A file system with these files, made on the host.
    fn disk(folder: &Path, numbers: RangeInclusive<u64>) -> Vec<u8> {
        let path = folder.join("made.raw");
        let made = tempfile::tempdir().unwrap();
        let tree = made.path();
        let list: String = (1..=*numbers.end()).map(|number| format!("{number}\n")).collect();
        fs::write(tree.join("list"), list).unwrap();
        for number in numbers {
            fs::write(tree.join(number.to_string()), content(number)).unwrap();
        }
        let mut mkfs = Command::new("/usr/sbin/mke2fs");
        mkfs.args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(tree).arg(&path).arg("16M");
        process::output(&mut mkfs).unwrap();
        fs::read(path).unwrap()
    }

    #[test]
    fn files_that_were_synced_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let complete = disk(folder.path(), 9..=32);
        let lost = |disk: &[u8], acknowledged| check(disk, acknowledged, folder.path()).unwrap();
        assert_eq!((lost(&complete, 32), lost(&complete, 31)), (None, None));
        assert_eq!(lost(&complete, 33).unwrap(), "the list should go to 33 and ends with 32");
        let missing = disk(folder.path(), 10..=32);
        assert_eq!(lost(&missing, 32).unwrap(), "file 9 of 32: No such file or directory (os error 2)");
    }

    #[test]
    fn other_contents_are_a_loss() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = disk(folder.path(), 1..=3);
        assert_eq!(check(&disk, 3, folder.path()).unwrap(), None);
        let at = disk.windows(13).position(|bytes| bytes == b"file 2\nfile 2").unwrap();
        disk[at] = b'F';
        let lost = check(&disk, 3, folder.path()).unwrap().unwrap();
        assert_eq!(lost, "file 2 of 3 holds 15838 other bytes");
    }

    #[test]
    fn a_file_system_that_cannot_be_recovered_is_a_loss() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = disk(folder.path(), 1..=3);
        disk[..1 << 20].fill(0);
        let lost = check(&disk, 3, folder.path()).unwrap().unwrap();
        assert!(lost.starts_with("e2fsck -p ends with exit status: 8"), "{lost}");
    }

    #[test]
    fn a_file_may_be_gone_once_its_removal_has_begun() {
        assert!(required(0, 1).is_empty());
        assert_eq!(required(KEPT, KEPT), 1..=KEPT);
        assert_eq!(required(KEPT, KEPT + 1), 2..=KEPT, "the next step removes file 1");
    }
}
