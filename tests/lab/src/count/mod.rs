//! `cargo lab count`: how much code the image is, room by room, and how much of that is unsafe.
//! [`source`] reads one file; here is which files there are, and what they come to.

mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::source::Code;
use crate::{paths, report};

/// The roots of the crates that the image is linked from.
const ROOTS: [&str; 2] = ["src/lib.rs", "src/main.rs"];

/// The image's one file that is no Rust.
const ASSEMBLY: &str = "boot/xen.S";

/// Prints both tables.
///
/// # Errors
/// A source file cannot be found or read.
pub(crate) fn run() -> Result<()> {
    let files = image(&paths::workspace())?;
    print!("{}", rooms_table(&files));
    println!();
    print!("{}", unsafe_table(&files));
    Ok(())
}

/// The image's files by path, as its `mod` items lead from one to the next.
fn image(root: &Path) -> Result<BTreeMap<PathBuf, Code>> {
    let mut files = BTreeMap::new();
    let mut next: Vec<PathBuf> = ROOTS.map(PathBuf::from).to_vec();
    while let Some(path) = next.pop() {
        let text = read(root, &path)?;
        let code = source::read(&text).with_context(|| format!("{} is no Rust", path.display()))?;
        for module in &code.modules {
            let folder = folder(&path);
            let places = [folder.join(format!("{module}.rs")), folder.join(module).join("mod.rs")];
            let found = places.into_iter().find(|place| root.join(place).exists());
            next.push(found.with_context(|| format!("{}: where is {module}?", path.display()))?);
        }
        files.insert(path, code);
    }
    files.insert(ASSEMBLY.into(), source::read_assembly(&read(root, Path::new(ASSEMBLY))?));
    Ok(files)
}

fn read(root: &Path, path: &Path) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {}", path.display()))
}

/// Where the modules of a file are.
fn folder(path: &Path) -> PathBuf {
    let owns_its_folder = ["mod.rs", "lib.rs", "main.rs"].iter().any(|name| path.ends_with(name));
    if owns_its_folder {
        path.parent().map(Path::to_owned).unwrap_or_default()
    } else {
        path.with_extension("")
    }
}

/// `blkback` of `src/blkback/vbd/mod.rs`; `boot` of what is not below `src`.
fn room(path: &Path) -> String {
    let below = path.strip_prefix("src").unwrap_or(path);
    let first = below.components().next().map(|first| Path::new(first.as_os_str()).with_extension(""));
    first.unwrap_or_default().display().to_string()
}

/// Files, lines of code, and those of them in unsafe blocks.
type Sums = [usize; 3];

/// What each room comes to, and all of them.
fn sums(files: &BTreeMap<PathBuf, Code>) -> (BTreeMap<String, Sums>, Sums) {
    let (mut rooms, mut all) = (BTreeMap::<String, Sums>::new(), Sums::default());
    for (path, code) in files {
        let file = [1, code.lines.len(), code.unsafe_lines.len()];
        for sums in [rooms.entry(room(path)).or_default(), &mut all] {
            sums.iter_mut().zip(file).for_each(|(sum, more)| *sum += more);
        }
    }
    (rooms, all)
}

fn row(name: &str, numbers: &[usize]) -> Vec<String> {
    [name.to_owned()].into_iter().chain(numbers.iter().map(usize::to_string)).collect()
}

fn rooms_table(files: &BTreeMap<PathBuf, Code>) -> String {
    let (rooms, all) = sums(files);
    let mut rows: Vec<_> = rooms.iter().map(|(room, sums)| row(room, sums)).collect();
    rows.push(row("all", &all));
    report::table(&["room", "files", "lines of code", "in unsafe blocks"], &rows)
}

fn unsafe_table(files: &BTreeMap<PathBuf, Code>) -> String {
    let some = files.iter().filter(|(_, code)| code.blocks + code.declarations > 0);
    let rows: Vec<_> = some
        .map(|(path, code)| {
            row(&path.display().to_string(), &[code.blocks, code.unsafe_lines.len(), code.declarations])
        })
        .collect();
    report::table(&["file", "unsafe blocks", "their lines", "unsafe declarations"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_beside_and_below() {
        assert_eq!(folder(Path::new("src/lib.rs")), Path::new("src"));
        assert_eq!(folder(Path::new("src/blkback/mod.rs")), Path::new("src/blkback"));
        assert_eq!(folder(Path::new("src/wire/ring.rs")), Path::new("src/wire/ring"));
        assert_eq!(
            ["src/hal.rs", "src/wire/ring.rs", "boot/xen.S"].map(Path::new).map(room),
            ["hal", "wire", "boot"]
        );
    }

    #[test]
    fn the_image_is_counted_and_the_tests_are_not() {
        let files = image(&paths::workspace()).unwrap();
        let has = |path: &str| files.contains_key(Path::new(path));
        assert!(
            has("src/wire/ring.rs") && has("src/blkback/vbd/mod.rs") && has("src/platform/xen/grants.rs")
        );
        assert!(!has("src/sim/mod.rs") && !has("src/mem/frame.rs") && !has("src/blkback/keep/tests.rs"));
        assert!(!files.keys().any(|path| path.starts_with("src/bin")));
    }

    /// The rows of ARCHITECTURE.md's table: a room, its lines of code, those in unsafe blocks.
    fn stated() -> BTreeMap<String, [usize; 2]> {
        let text = read(&paths::workspace(), Path::new("ARCHITECTURE.md")).unwrap();
        let table = text.lines().skip_while(|line| !line.starts_with("| room | lines of code |")).skip(2);
        let rows = table.take_while(|line| line.starts_with('|')).map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].to_owned(), [cells[1], cells[2]].map(|cell| cell.parse().unwrap()))
        });
        rows.collect()
    }

    #[test]
    fn architecture_md_is_right_within_a_twentieth() {
        let (mut rooms, all) = sums(&image(&paths::workspace()).unwrap());
        rooms.insert("all".to_owned(), all);
        let stated = stated();
        assert_eq!(stated.keys().collect::<Vec<_>>(), rooms.keys().collect::<Vec<_>>());
        for (room, [_, counted @ ..]) in rooms {
            for (says, is) in stated[&room].into_iter().zip(counted) {
                // Of a small room a few lines are more than that.
                let allowed = (is / 20).max(5);
                assert!(says.abs_diff(is) <= allowed, "ARCHITECTURE.md has {says} for {room}, it is {is}");
            }
        }
    }
}
