//! Reads one source file token by token: which lines have code, and which of it is unsafe. What only
//! tests have is left out, and so are comments, which the tokens show as `doc` attributes or not at all.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};

/// Features of programs and tests that the image is never built with.
const OTHER_FEATURES: [&str; 2] = ["\"sim\"", "\"stat\""];

/// What a file holds of the image.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Code {
    /// The lines with code on them.
    pub(super) lines: BTreeSet<usize>,
    /// The `unsafe { … }` blocks.
    pub(super) blocks: usize,
    /// The lines with code that are in these.
    pub(super) unsafe_lines: BTreeSet<usize>,
    /// `unsafe` elsewhere: functions, implementations, attributes.
    pub(super) declarations: usize,
    /// The modules that are in files of their own.
    pub(super) modules: Vec<String>,
}

/// Reads a file of Rust.
///
/// # Errors
/// It is none.
pub(super) fn read(text: &str) -> Result<Code> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{error}"))?;
    let mut code = Code::default();
    code.walk(&trees(tokens), false);
    Ok(code)
}

/// Reads a file of assembly, where a comment starts with `#`.
pub(super) fn read_assembly(text: &str) -> Code {
    let has_code = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let lines = (1..).zip(text.lines()).filter(|(_, line)| has_code(line)).map(|(number, _)| number);
    Code { lines: lines.collect(), ..Code::default() }
}

fn trees(tokens: TokenStream) -> Vec<TokenTree> {
    tokens.into_iter().collect()
}

impl Code {
    fn walk(&mut self, mut rest: &[TokenTree], is_unsafe: bool) {
        while let Some((first, after)) = rest.split_first() {
            if let Some((attribute, after)) = attribute(rest)
                && let Some(after) = left_out(attribute, after)
            {
                rest = after;
                continue;
            }
            match rest {
                [keyword, TokenTree::Ident(name), end, ..] if is(keyword, "mod") && is(end, ";") => {
                    self.modules.push(name.to_string());
                }
                [keyword, TokenTree::Group(block), after @ ..]
                    if is(keyword, "unsafe") && is_block(block) =>
                {
                    self.blocks += 1;
                    self.line(keyword.span(), true);
                    self.group(block, true);
                    rest = after;
                    continue;
                }
                [keyword, ..] if is(keyword, "unsafe") => self.declarations += 1,
                _ => {}
            }
            match first {
                TokenTree::Group(group) => self.group(group, is_unsafe),
                token => self.line(token.span(), is_unsafe),
            }
            rest = after;
        }
    }

    fn group(&mut self, group: &Group, is_unsafe: bool) {
        self.line(group.span_open(), is_unsafe);
        self.walk(&trees(group.stream()), is_unsafe);
        self.line(group.span_close(), is_unsafe);
    }

    fn line(&mut self, token: Span, is_unsafe: bool) {
        let lines = token.start().line..=token.end().line;
        if is_unsafe {
            self.unsafe_lines.extend(lines.clone());
        }
        self.lines.extend(lines);
    }
}

fn is(token: &TokenTree, text: &str) -> bool {
    match token {
        TokenTree::Ident(ident) => ident == text,
        TokenTree::Punct(punct) => text.chars().eq([punct.as_char()]),
        TokenTree::Group(_) | TokenTree::Literal(_) => false,
    }
}

fn is_block(group: &Group) -> bool {
    group.delimiter() == Delimiter::Brace
}

/// The attribute that comes first, and what follows it.
fn attribute(tokens: &[TokenTree]) -> Option<(&Group, &[TokenTree])> {
    match tokens {
        [hash, TokenTree::Group(group), after @ ..] if is(hash, "#") => Some((group, after)),
        [hash, inner, TokenTree::Group(group), after @ ..] if is(hash, "#") && is(inner, "!") => {
            Some((group, after))
        }
        _ => None,
    }
}

/// What is behind that which an attribute takes out of the image, if it does.
fn left_out<'t>(attribute: &Group, after: &'t [TokenTree]) -> Option<&'t [TokenTree]> {
    match &trees(attribute.stream())[..] {
        [name, ..] if is(name, "doc") => Some(after),
        [name, TokenTree::Group(predicate)] if is(name, "cfg") => {
            never_holds(&trees(predicate.stream())).then(|| behind_item(after))
        }
        _ => None,
    }
}

/// Whether a predicate of `cfg` holds in no build of the image.
fn never_holds(predicate: &[TokenTree]) -> bool {
    let parts = |group: &Group| -> Vec<bool> {
        let tokens = trees(group.stream());
        tokens.split(|token| is(token, ",")).filter(|part| !part.is_empty()).map(never_holds).collect()
    };
    match predicate {
        [name] => is(name, "test"),
        [name, _, TokenTree::Literal(value)] => {
            is(name, "feature") && OTHER_FEATURES.contains(&value.to_string().as_str())
        }
        [name, TokenTree::Group(group)] if is(name, "all") => parts(group).contains(&true),
        [name, TokenTree::Group(group)] if is(name, "any") => !parts(group).contains(&false),
        _ => false,
    }
}

/// What follows the item or the statement that comes first: it ends with a semicolon, a block, or both.
fn behind_item(tokens: &[TokenTree]) -> &[TokenTree] {
    let is_end =
        |token: &TokenTree| is(token, ";") || matches!(token, TokenTree::Group(group) if is_block(group));
    let end = tokens.iter().position(is_end).map_or(tokens.len(), |end| end + 1);
    let after = &tokens[end..];
    match after {
        [semicolon, after @ ..] if is(semicolon, ";") => after,
        after => after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        read(text).unwrap().lines.into_iter().collect()
    }

    #[test]
    fn comments_and_blank_lines_are_no_code() {
        let text = "//! about\n\n/// a function\n#[must_use]\nfn f() { // here\n/* and\n here */ g(\n\"two\nlines\") }\n";
        assert_eq!(lines(text), [4, 5, 7, 8, 9]);
        let assembly = read_assembly("# about\n\n_start:\n    ret # here\n");
        assert_eq!(assembly.lines.into_iter().collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn what_only_tests_have_is_left_out() {
        let text = "mod a;\n#[cfg(test)]\nmod tests;\n#[cfg(all(test, feature = \"sim\"))]\n#[path = \"x\"]\nmod b {\n}\n\
                    #[cfg(any(test, feature = \"sim\"))]\nuse c::{d};\nfn f() {\n#[cfg(feature = \"sim\")]\nhook();\n}\n\
                    #[cfg(not(test))]\nfn g() {}\n#[cfg(all(feature = \"image\", target_os = \"linux\"))]\nmod e;\n\
                    #[cfg(any(test, feature = \"image\"))]\nfn h() {}\n";
        let code = read(text).unwrap();
        assert_eq!(code.modules, ["a", "e"]);
        assert_eq!(lines(text), [1, 10, 13, 14, 15, 16, 17, 18, 19]);
    }

    #[test]
    fn unsafe_blocks_are_told_from_declarations() {
        let text = "unsafe impl Send for T {}\n#[unsafe(no_mangle)]\nunsafe fn f() {\n    unsafe { g() }\n}\n\
                    fn h() {\n    let x = unsafe {\n        // SAFETY: it is\n        asm!(\"hlt\",\n        )\n    };\n}\n";
        let code = read(text).unwrap();
        assert_eq!((code.blocks, code.declarations), (2, 3));
        assert_eq!(code.unsafe_lines.into_iter().collect::<Vec<_>>(), [4, 7, 9, 10, 11]);
    }
}
