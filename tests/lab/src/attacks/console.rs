//! What the image says of its attacks, read back. The image is `tests/frontend`, whose README defines these lines.

/// One attack that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attack {
    pub(crate) name: String,
    /// How often it acted.
    pub(crate) acts: u64,
    /// The rest of its line: rounds, and what ended the last of them.
    pub(crate) how: String,
}

/// Everything that a console says about one run of the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    /// How many attacks the image said it would play.
    pub(crate) announced: Option<usize>,
    /// The attack that began last.
    pub(crate) begun: Option<String>,
    /// How often the one that told it last had acted, before its end.
    pub(crate) so_far: u64,
    /// Those that are over, in the order in which they were played.
    pub(crate) done: Vec<Attack>,
    /// Whether the image has come to its end.
    pub(crate) over: bool,
}

impl Transcript {
    /// Reads the complete lines of a console; what else stands there is passed over.
    pub(crate) fn read(console: &str) -> Self {
        let mut transcript = Self::default();
        let complete = console.rfind('\n').map_or(0, |end| end + 1);
        for line in console.get(..complete).unwrap_or_default().lines() {
            if line == "torture over" {
                transcript.over = true;
            } else if let Some(rest) = line.strip_prefix("torture ") {
                transcript.announced = rest.split_once(" attacks").and_then(|(count, _)| count.parse().ok());
            } else if let Some(rest) = line.strip_prefix("attack ") {
                match rest.strip_suffix(" begins") {
                    Some(name) => transcript.begun = Some(name.to_owned()),
                    None => transcript.done.extend(attack(rest)),
                }
                transcript.so_far = so_far(rest).unwrap_or(transcript.so_far);
            }
        }
        transcript
    }
}

/// `NAME: N acts in N rounds…`
fn attack(rest: &str) -> Option<Attack> {
    let (name, said) = rest.split_once(": ")?;
    let (acts, how) = said.split_once(" acts in ")?;
    Some(Attack { name: name.to_owned(), acts: acts.parse().ok()?, how: how.to_owned() })
}

/// `NAME: N acts so far`
fn so_far(rest: &str) -> Option<u64> {
    rest.split_once(": ")?.1.strip_suffix(" acts so far")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "noise\ntorture 2 attacks of 5 s, seed 1, backend /x, 8 sectors\nattack ring/a begins\n\
                           attack ring/a: 9 acts so far\nattack ring/a: 17 acts in 2 rounds\nattack ring/b begins\n\
                           attack ring/b: 0 acts in 1 rounds, the last: skip: no: discard\ntorture over\n";

    #[test]
    fn a_whole_console_is_read() {
        let transcript = Transcript::read(CONSOLE);
        assert_eq!((transcript.announced, transcript.over), (Some(2), true));
        assert_eq!(transcript.begun.as_deref(), Some("ring/b"));
        let [first, second] = &transcript.done[..] else { panic!("{transcript:?}") };
        assert_eq!((first.name.as_str(), first.acts, first.how.as_str()), ("ring/a", 17, "2 rounds"));
        assert_eq!((second.acts, second.how.as_str()), (0, "1 rounds, the last: skip: no: discard"));
    }

    #[test]
    fn half_a_line_does_not_count_yet() {
        let cut = &CONSOLE[..CONSOLE.find(" in 2 rounds").unwrap()];
        let transcript = Transcript::read(cut);
        assert_eq!(transcript.begun.as_deref(), Some("ring/a"));
        assert!(transcript.done.is_empty() && !transcript.over);
        assert_eq!(transcript.so_far, 9);
    }
}
