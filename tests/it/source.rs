//! Reads Rust text well enough for `tidy`: what is code, what it imports, how long a function is.
//! Relies on rustfmt's layout, which is checked elsewhere.

/// The code alone: comments and the contents of strings are left out, lines stay where they are.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut at) = (String::new(), 0);
    while at < chars.len() {
        let rest = &chars[at..];
        let is_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let skipped = match rest {
            ['/', '/', ..] => until(rest, 0, &['\n']),
            ['/', '*', ..] => until(rest, 2, &['*', '/']) + 2,
            ['"', ..] => string(rest),
            ['r', '"' | '#', ..] if !is_word => raw_string(rest),
            ['\'', '\\', ..] => until(rest, 3, &['\'']) + 1,
            ['\'', _, '\'', ..] => 3,
            _ => {
                code.push(rest[0]);
                at += 1;
                continue;
            }
        };
        let skipped = skipped.min(rest.len());
        code.extend(rest[..skipped].iter().filter(|c| **c == '\n'));
        at += skipped;
    }
    code
}

fn until(text: &[char], from: usize, end: &[char]) -> usize {
    (from..text.len()).find(|at| text[*at..].starts_with(end)).unwrap_or(text.len())
}

fn string(text: &[char]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string(text: &[char]) -> usize {
    let hashes = text[1..].iter().take_while(|c| **c == '#').count();
    if text.get(1 + hashes) != Some(&'"') {
        return 1 + hashes;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    until(text, 2 + hashes, &end) + end.len()
}

/// The code without modules that only tests have, given what [`code`] returned.
pub(crate) fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        if !is_test_attribute(line) {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        if lines.next().is_some_and(|item| item.ends_with('{')) {
            let _ = lines.by_ref().find(|line| *line == "}");
        }
    }
    kept
}

/// The modules in files of their own that only tests have, given what [`code`] returned.
pub(crate) fn test_modules(code: &str) -> Vec<&str> {
    let lines: Vec<&str> = code.lines().collect();
    let declared = lines.windows(2).filter(|pair| is_test_attribute(pair[0]));
    declared.filter_map(|pair| pair[1].strip_suffix(';')?.rsplit_once("mod ")).map(|(_, name)| name).collect()
}

fn is_test_attribute(line: &str) -> bool {
    ["#[cfg(test)]", "#[cfg(all(test,", "#[cfg(any(test,"].iter().any(|start| line.starts_with(start))
}

/// The names that follow `root::` in code: the rooms it reaches into.
pub(crate) fn rooms<'a>(code: &'a str, root: &str) -> Vec<&'a str> {
    let mut rooms = Vec::new();
    for (at, found) in code.match_indices(&format!("{root}::")) {
        if code[..at].ends_with(is_name) {
            continue;
        }
        let rest = &code[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(group) => rooms.extend(group_heads(group)),
            None => rooms.push(head(rest)),
        }
    }
    rooms
}

/// The first names in `a::b, c::{d, e}, f}`.
fn group_heads(group: &str) -> Vec<&str> {
    let (mut heads, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                heads.push(head(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn head(path: &str) -> &str {
    path.split(|c| !is_name(c)).next().unwrap_or_default()
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a word stands alone somewhere in code.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    code.split(|c| !is_name(c)).any(|other| other == word)
}

/// The longest chain of `super::` in code.
pub(crate) fn climbs(code: &str) -> usize {
    (1..).take_while(|n| code.contains(&"super::".repeat(*n))).last().unwrap_or(0)
}

/// Each function's line, from 1, and its length in lines.
pub(crate) fn functions(code: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let starts = (0..lines.len()).filter(|at| is_function(lines[*at]));
    starts.map(|at| (at + 1, function_len(&lines[at..]))).collect()
}

fn is_function(line: &str) -> bool {
    let Some((before, _)) = line.trim_start().split_once("fn ") else { return false };
    let is_qualifier = |word: &str| matches!(word, "const" | "unsafe" | "extern" | "async");
    before.split_whitespace().all(|word| word.starts_with("pub") || is_qualifier(word))
}

fn function_len(lines: &[&str]) -> usize {
    let indent = &lines[0][..lines[0].len() - lines[0].trim_start().len()];
    let is_whole = |line: &str| line.ends_with(';') || line.ends_with('}');
    if is_whole(lines[0].trim_end()) {
        return 1;
    }
    let is_end = |line: &&str| {
        line.strip_prefix(indent)
            .is_some_and(|rest| rest == "}" || rest.starts_with(')') && rest.ends_with(';'))
    };
    lines.iter().position(is_end).map_or(lines.len(), |end| end + 1)
}

#[test]
fn code_is_what_is_left() {
    assert_eq!(code("a // unsafe\nb"), "a \nb");
    assert_eq!(code("a /* x\n y */ b"), "a \n b");
    assert_eq!(code(r#"f("unsafe \" {", 'x', '"', '\'', b'\\')"#), "f(, , , , b)");
    assert_eq!(code("r#\"unsafe \" \"#; for\"x\" <'a> r#type"), "; for <'a> type");
    assert_eq!(code("'unterminated \"string"), "'unterminated ");
}

#[test]
fn modules_for_tests_are_left_out() {
    let text =
        "use a;\n#[cfg(test)]\nmod tests {\n    x\n}\n#[cfg(all(test, feature = ))]\nmod other;\nlast\n";
    assert_eq!(without_tests(text), "use a;\nlast\n");
    assert_eq!(test_modules(text), ["other"]);
}

#[test]
fn rooms_are_found() {
    let text = "use crate::a::b; crate::c(); use crate::{d, e::{f, g},\n h::i}; mycrate::j; crate::K";
    assert_eq!(rooms(text, "crate"), ["a", "c", "d", "e", "h", "K"]);
    assert_eq!(climbs("use super::super::x; super::y"), 2);
    assert_eq!(climbs("none"), 0);
    assert!(has_word("a unsafe{", "unsafe") && !has_word("unsafe_op", "unsafe"));
}

#[test]
fn functions_are_measured() {
    let text = "fn one() {}\n    pub(crate) const fn two(\n        x: u8,\n    ) -> u8 {\n        x\n    }\n\
                fn three();\n    fn four(\n        x: u8,\n    ) -> u8;\nlet fn_ = 1;\ntype F = fn (u8);\n";
    assert_eq!(functions(text), [(1, 1), (2, 5), (7, 1), (8, 3)]);
}
