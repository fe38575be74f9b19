//! Holds SECURITY.md to the sources: each of its rows names files that are there and tests that are
//! run. What those tests show is theirs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::tidy::{check, rust_files};

/// A row of a table of advisories.
struct Row {
    /// The advisories, as they are written.
    name: String,
    /// What keeps the bug away, and where.
    why: String,
    /// The tests.
    shown: String,
}

fn rows(text: &str) -> Vec<Row> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let tables = text.lines().filter(|line| line.starts_with('|')).map(cells);
    let rows = tables.filter(|cells| cells[0].contains("XSA-") || cells[0].contains("CVE-"));
    rows.map(|cells| match &cells[..] {
        [name, _, why, shown] => Row { name: name.clone(), why: why.clone(), shown: shown.clone() },
        _ => panic!("not four cells: {cells:?}"),
    })
    .collect()
}

fn security_md() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md");
    let rows = rows(&fs::read_to_string(path).unwrap());
    assert!(rows.len() > 20, "the tables are not where they were");
    rows
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The functions that are tests.
fn tests(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let starts = (0..lines.len()).filter(|at| lines[*at] == "#[test]");
    let name = |at: usize| lines[at..].iter().find_map(|line| line.strip_prefix("fn ")?.split('(').next());
    starts.filter_map(name).collect()
}

#[test]
fn every_test_that_security_md_names_is_run() {
    let files = rust_files();
    let tests: BTreeSet<&str> = files.iter().flat_map(|file| tests(&file.text)).collect();
    let frontend: Vec<_> = files.iter().filter(|file| file.path.starts_with("tests/frontend/src/")).collect();
    let is_check = |name: &str| frontend.iter().any(|file| file.text.contains(&format!("\"{name}\"")));
    let exists = |name: &str| if name.contains('/') { is_check(name) } else { tests.contains(name) };
    let mut complaints = Vec::new();
    for Row { name, shown, .. } in security_md() {
        let named = quoted(&shown);
        if named.is_empty() {
            complaints.push(format!("{name}: nothing shows it"));
        }
        let missing = named.into_iter().filter(|test| !exists(test));
        complaints.extend(missing.map(|test| format!("{name}: no test and no check is called {test}")));
    }
    check(complaints);
}

#[test]
fn every_file_that_security_md_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut complaints = Vec::new();
    for Row { name, why, .. } in security_md() {
        let files: Vec<_> = quoted(&why).into_iter().filter(|word| word.ends_with(".rs")).collect();
        if files.is_empty() {
            complaints.push(format!("{name}: no file is named"));
        }
        let missing = files.into_iter().filter(|file| !root.join(file).exists());
        complaints.extend(missing.map(|file| format!("{name}: there is no {file}")));
    }
    check(complaints);
}

#[test]
fn rows_and_tests_are_read() {
    let text = "# x\n| advisory | a | b | c |\n|---|---|---|---|\n| [XSA-1](y) | bug | in `src/a.rs`, `w` | `one` `two/three` |\n";
    let rows = rows(text);
    assert_eq!((rows.len(), rows[0].name.as_str()), (1, "[XSA-1](y)"));
    assert_eq!(
        (quoted(&rows[0].why), quoted(&rows[0].shown)),
        (vec!["src/a.rs", "w"], vec!["one", "two/three"])
    );
    let code = "    #[test]\n    #[should_panic(expected = \"x\")]\n    fn a() {}\n#[cfg(x)]\n#[test]\nfn b_c() {\nfn d() {}\n";
    assert_eq!(tests(code), ["a", "b_c"]);
}
