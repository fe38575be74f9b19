//! The house rules that no compiler checks, read from the sources: which room may import which,
//! where `unsafe` may stand, how long files and functions are, what they must not speak of.

use std::fs;
use std::path::Path;

use crate::source;

/// What every room above the formats may import.
const BASE: &[&str] = &["units", "limits", "mem", "wire", "hal"];
/// The same, with the log.
const CORE: &[&str] = &["units", "limits", "mem", "wire", "hal", "report"];

/// Each room of `src`, and the rooms it may import. An arrow that is not here is wrong, or is
/// to be defended in ARCHITECTURE.md first.
const ARROWS: &[(&str, &[&[&str]])] = &[
    ("units", &[]),
    ("limits", &[&["units"]]),
    ("mem", &[&["units", "limits"]]),
    ("wire", &[&["units", "limits", "mem"]]),
    ("hal", &[&["units", "mem"]]),
    ("report", &[&["units", "limits"]]),
    ("options", &[&["report"]]),
    ("xenstore", &[CORE]),
    ("volume", &[CORE]),
    ("blkback", &[CORE, &["volume"]]),
    ("drivers", &[CORE]),
    ("domain", &[CORE, &["options", "xenstore", "volume", "blkback", "drivers"]]),
    ("sim", &[BASE]),
    // It writes the log to the console, also as the last words.
    ("platform", &[BASE, &["report"]]),
];

/// Files that see every room: the crate's root and the image's entry.
const ROOTS: &[&str] = &["src/lib.rs", "src/main.rs"];

/// Programs for dom0: crates of their own, none of them in the image.
const PROGRAMS: &str = "src/bin/";

/// Where `unsafe` may stand.
/// The last is a tool of the lab that asks the hypervisor for CPU times.
const UNSAFE: &[&str] = &[
    "src/mem/",
    "src/platform/",
    "src/main.rs",
    "tests/frontend/src/main.rs",
    "tests/lab/src/bin/domain-cpu-time.rs",
];

const FILE_LINES: usize = 700;
const FUNCTION_LINES: usize = 90;

/// A file of the project.
pub(crate) struct File {
    /// Its path below the project's root.
    pub(crate) path: String,
    /// What is in it.
    pub(crate) text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The room of `src` that it is in.
    fn room(&self) -> Option<&str> {
        let path = self.path.strip_prefix("src/")?;
        path.split('/').next().map(|name| name.trim_end_matches(".rs"))
    }

    /// How many modules its code is below the crate's root.
    fn depth(&self) -> usize {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').count()
    }
}

/// Every text file of the project but what is built.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_symlink() || name == "target" || name == ".git" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                files.push(File { path: name, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the sources are not where they were");
    files
}

/// Those with Rust in them.
pub(crate) fn rust_files() -> Vec<File> {
    files().into_iter().filter(File::is_rust).collect()
}

/// Files of the image's crate that are not for tests alone.
fn image_files() -> Vec<File> {
    let is_image = |file: &File| file.room().is_some() && !file.path.starts_with(PROGRAMS);
    let files: Vec<File> = rust_files().into_iter().filter(is_image).collect();
    let mut for_tests = Vec::new();
    for file in &files {
        let folder = match file.path.strip_suffix("/mod.rs") {
            Some(folder) => folder,
            None if ROOTS.contains(&file.path.as_str()) => "src",
            None => file.path.trim_end_matches(".rs"),
        };
        for name in source::test_modules(&source::code(&file.text)) {
            for_tests.extend([format!("{folder}/{name}.rs"), format!("{folder}/{name}/")]);
        }
    }
    let is_for_tests = |file: &File| for_tests.iter().any(|path| file.path.starts_with(path));
    files.into_iter().filter(|file| !is_for_tests(file)).collect()
}

/// Fails with what there is to complain of.
pub(crate) fn check(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The arrows out of one file that are not in the table.
fn wrong_arrows(file: &File) -> Vec<String> {
    let path = &file.path;
    if ROOTS.contains(&path.as_str()) {
        return Vec::new();
    }
    let room = file.room().unwrap_or_default();
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{path}: the room {room} is not in the table of arrows")];
    };
    let code = source::without_tests(&source::code(&file.text));
    let mut rooms = source::rooms(&code, "crate");
    rooms.extend(source::rooms(&code, "platter"));
    rooms.retain(|to| *to != room && !allowed.concat().contains(to));
    let mut complaints: Vec<_> = rooms.iter().map(|to| format!("{path}: {room} imports {to}")).collect();
    if source::climbs(&code) >= file.depth() {
        complaints.push(format!("{path}: super:: leads out of the room, say crate::"));
    }
    complaints
}

#[test]
fn imports_point_one_way() {
    check(image_files().iter().flat_map(wrong_arrows).collect());
}

#[test]
fn a_wrong_arrow_is_seen() {
    let complaints =
        |path: &str, text: &str| wrong_arrows(&File { path: path.into(), text: text.into() }).len();
    assert_eq!(complaints("src/drivers/pci.rs", "use crate::wire::pci; use crate::drivers::x;"), 0);
    assert_eq!(complaints("src/drivers/pci.rs", "use crate::{wire, blkback::Vbd};"), 1);
    assert_eq!(complaints("src/drivers/pci.rs", "use super::nvme;"), 0);
    assert_eq!(complaints("src/drivers/pci.rs", "use super::super::blkback;"), 1);
    assert_eq!(complaints("src/drivers/mod.rs", "use super::blkback;"), 1);
    assert_eq!(complaints("src/platform/xen/mod.rs", "use platter::domain;"), 1);
    assert_eq!(complaints("src/wire/pci.rs", "fn f() { crate::report::install() }"), 1);
    assert_eq!(complaints("src/blkback/ring.rs", "#[cfg(test)]\nmod tests {\n    use crate::sim;\n}\n"), 0);
    assert_eq!(complaints("src/attic.rs", ""), 1);
}

#[test]
fn the_frontend_has_a_blkif_of_its_own() {
    let (rooms, formats) = (["hal", "mem", "platform", "units", "wire", "xenstore"], ["xenbus"]);
    let files = rust_files().into_iter().filter(|file| file.path.starts_with("tests/frontend/src/"));
    let mut complaints = Vec::new();
    let mut seen = 0;
    for File { path, text } in files {
        let code = source::code(&text);
        let (used, read) = (source::rooms(&code, "platter"), source::rooms(&code, "platter::wire"));
        seen += read.len();
        let wrong = used.iter().filter(|room| !rooms.contains(room));
        complaints.extend(wrong.map(|room| format!("{path}: the frontend imports {room}")));
        let wrong = read.iter().filter(|format| !formats.contains(format));
        complaints.extend(wrong.map(|format| format!("{path}: the frontend imports wire::{format}")));
    }
    assert!(seen > 0, "the frontend is not where it was");
    check(complaints);
}

#[test]
fn the_frontend_explains_its_attacks() {
    let (files, folder) = (files(), "tests/frontend/");
    let readme = files.iter().find(|file| file.path == format!("{folder}README.md")).unwrap();
    let sources = files.iter().filter(|file| file.path.starts_with(&format!("{folder}src/attacks/")));
    let attacks: Vec<&str> = sources
        .flat_map(|file| file.text.split("Attack::new(\"").chain(file.text.split("Attack::last(\"")))
        .filter_map(|text| text.split('"').next().filter(|name| name.contains('/') && !name.contains(' ')))
        .collect();
    assert!(!attacks.is_empty(), "the attacks are not where they were");
    let is_missing = |name: &&&str| !readme.text.contains(&format!("`{name}`"));
    check(attacks.iter().filter(is_missing).map(|name| format!("no word on {name}")).collect());
}

#[test]
fn unsafe_stays_on_its_islands() {
    let is_outside = |file: &File| !UNSAFE.iter().any(|island| file.path.starts_with(island));
    let files = rust_files().into_iter().filter(is_outside);
    let wrong = files.filter(|file| source::has_word(&source::code(&file.text), "unsafe"));
    check(wrong.map(|file| format!("{}: unsafe", file.path)).collect());
}

#[test]
fn every_file_says_what_it_is_for() {
    let wrong = rust_files().into_iter().filter(|file| !file.text.starts_with("//! "));
    check(wrong.map(|file| format!("{}: does not start with //!", file.path)).collect());
}

#[test]
fn files_and_functions_are_short() {
    let mut complaints = Vec::new();
    for file in rust_files() {
        let lines = file.text.lines().count();
        if lines > FILE_LINES {
            complaints.push(format!("{}: {lines} lines", file.path));
        }
        if file.room().is_none() {
            continue;
        }
        let long = source::functions(&source::code(&file.text)).into_iter();
        for (line, lines) in long.filter(|(_, lines)| *lines > FUNCTION_LINES) {
            complaints.push(format!("{}:{line}: a function of {lines} lines", file.path));
        }
    }
    check(complaints);
}

#[test]
fn nothing_is_left_to_do() {
    let is_this = |file: &File| file.path.ends_with("it/tidy.rs");
    let mut complaints = Vec::new();
    for file in rust_files().iter().filter(|file| !is_this(file)) {
        for word in ["TODO", "FIXME", "XXX"] {
            if source::has_word(&file.text, word) {
                complaints.push(format!("{}: {word}", file.path));
            }
        }
    }
    for file in image_files() {
        let code = source::without_tests(&source::code(&file.text));
        for stub in ["todo!", "unimplemented!", "dbg!"] {
            if code.contains(stub) {
                complaints.push(format!("{}: {stub}", file.path));
            }
        }
    }
    check(complaints);
}

/// Whether text speaks of an issue by its number.
fn names_issue(text: &str) -> bool {
    let text = text.to_lowercase();
    text.match_indices("issue").any(|(at, word)| {
        let rest = text[at + word.len()..].trim_start_matches([' ', '#', '-', '/']);
        rest.starts_with(|c: char| c.is_ascii_digit())
    })
}

#[test]
fn the_sources_speak_of_the_program_only() {
    assert!(names_issue("see Issue #12") && names_issue("issue 3:") && !names_issue("issued 3 commands"));
    let folders = ["/home/", "/Users/", "/work/", "/workspace/", "/builds/"];
    let is_other = |file: &&File| !file.path.ends_with("it/tidy.rs") && !file.path.ends_with("Cargo.lock");
    let mut complaints = Vec::new();
    for file in files().iter().filter(is_other) {
        for folder in folders.iter().filter(|folder| file.text.contains(**folder)) {
            complaints.push(format!("{}: {folder} is a folder of somebody's machine", file.path));
        }
        if names_issue(&file.text) {
            complaints.push(format!("{}: an issue's number", file.path));
        }
    }
    check(complaints);
}

/// The lines of a manifest's section.
fn section<'a>(manifest: &'a str, name: &str) -> Vec<&'a str> {
    let lines = manifest.lines().skip_while(|line| *line != name).skip(1);
    lines.take_while(|line| !line.starts_with('[')).collect()
}

#[test]
fn every_member_inherits_the_lints() {
    let manifests = files().into_iter().filter(|file| file.path.ends_with("Cargo.toml"));
    let wrong = manifests.filter(|file| !section(&file.text, "[lints]").contains(&"workspace = true"));
    check(wrong.map(|file| format!("{}: no lints from the workspace", file.path)).collect());
}

#[test]
fn every_crate_in_the_image_has_its_reason() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let lines = section(&manifest, "[dependencies]");
    let is_crate = |line: &str| line.contains('=') && !line.starts_with('#');
    assert!(lines.iter().any(|line| is_crate(line)), "the section has moved");
    let has_reason = |at: usize| at > 0 && lines[at - 1].starts_with("# ");
    let wrong = (0..lines.len()).filter(|at| is_crate(lines[*at]) && !has_reason(*at));
    check(wrong.map(|at| format!("Cargo.toml: no reason for {}", lines[at])).collect());
}
