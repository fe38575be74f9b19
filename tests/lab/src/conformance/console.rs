//! What the conformance image prints, read back. The image is `tests/frontend`, whose README defines these lines.

/// What one check came to, with the image's reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pass,
    Fail(String),
    /// The backend does not offer what the check needs.
    Skip(String),
}

/// Everything a console says about one run of the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    /// How many checks the image said it would do; nothing before it has found a backend.
    pub(crate) announced: Option<usize>,
    /// Each check's name and outcome, in the order in which they were done.
    pub(crate) checks: Vec<(String, Outcome)>,
    /// Why the image could not even connect once.
    pub(crate) refused: Option<String>,
    /// The image's own counts of those that passed, failed and were skipped; its last line.
    pub(crate) end: Option<[usize; 3]>,
}

impl Transcript {
    /// Reads the complete lines of a console; what else stands there is passed over.
    pub(crate) fn read(console: &str) -> Self {
        let mut transcript = Self::default();
        let complete = console.rfind('\n').map_or(0, |end| end + 1);
        for line in console.get(..complete).unwrap_or_default().lines() {
            if let Some(rest) = line.strip_prefix("conformance ") {
                transcript.announced = transcript.announced.or(announced(rest));
            } else if let Some(rest) = line.strip_prefix("check ") {
                transcript.checks.extend(check(rest));
            } else if let Some(why) = line.strip_prefix("cannot begin: ") {
                transcript.refused = Some(why.to_owned());
            } else if let Some(rest) = line.strip_prefix("end: ") {
                transcript.end = transcript.end.or(end(rest));
            }
        }
        transcript
    }

    /// How many checks passed, failed and were skipped.
    pub(crate) fn counts(&self) -> [usize; 3] {
        let count = |kind: fn(&Outcome) -> bool| self.checks.iter().filter(|(_, found)| kind(found)).count();
        [
            count(|found| matches!(found, Outcome::Pass)),
            count(|found| matches!(found, Outcome::Fail(_))),
            count(|found| matches!(found, Outcome::Skip(_))),
        ]
    }

    /// Whether every check that was announced has its line, and the image counted the same.
    pub(crate) fn is_whole(&self) -> bool {
        self.announced == Some(self.checks.len()) && self.end == Some(self.counts())
    }

    /// How far the image is.
    pub(crate) fn progress(&self) -> String {
        let (done, last) = (self.checks.len(), self.checks.last().map_or("", |(name, _)| name));
        match self.announced {
            Some(all) => format!("{done} of {all} checks done {last}"),
            None => "the image starts".to_owned(),
        }
    }

    /// A check's outcome; nothing for one that was not done.
    pub(crate) fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.checks.iter().find(|(found, _)| found == name).map(|(_, outcome)| outcome)
    }
}

/// `N checks, …`
fn announced(rest: &str) -> Option<usize> {
    rest.split_once(" checks")?.0.parse().ok()
}

/// `NAME: pass`, `NAME: fail: WHY`, `NAME: skip: WHY`
fn check(rest: &str) -> Option<(String, Outcome)> {
    let (name, said) = rest.split_once(": ")?;
    let outcome = match said.split_once(": ") {
        None if said == "pass" => Outcome::Pass,
        Some(("fail", why)) => Outcome::Fail(why.to_owned()),
        Some(("skip", why)) => Outcome::Skip(why.to_owned()),
        _ => return None,
    };
    Some((name.to_owned(), outcome))
}

/// `P passed, F failed, S skipped`
fn end(rest: &str) -> Option<[usize; 3]> {
    let mut parts = rest.split(", ");
    let mut count = |unit: &str| parts.next()?.strip_suffix(unit)?.parse().ok();
    Some([count(" passed")?, count(" failed")?, count(" skipped")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "noise\nconformance 3 checks, backend /local/domain/1/backend/vbd/2/51712, 8 sectors\n\
                           check ring/a: pass\ncheck ring/b: fail: status -1: not 0\nmore noise: check\n\
                           check ring/c: skip: no feature-discard\nend: 1 passed, 1 failed, 1 skipped\n";

    #[test]
    fn a_whole_console_is_read() {
        let transcript = Transcript::read(CONSOLE);
        assert_eq!(transcript.counts(), [1, 1, 1]);
        assert!(transcript.is_whole());
        assert_eq!(transcript.outcome("ring/a"), Some(&Outcome::Pass));
        assert_eq!(transcript.outcome("ring/b"), Some(&Outcome::Fail("status -1: not 0".to_owned())));
        assert_eq!(transcript.outcome("ring/c"), Some(&Outcome::Skip("no feature-discard".to_owned())));
        assert_eq!(transcript.outcome("ring"), None);
    }

    #[test]
    fn half_a_line_does_not_count_yet() {
        let cut = &CONSOLE[..CONSOLE.find(": not 0").unwrap()];
        let transcript = Transcript::read(cut);
        assert_eq!((transcript.announced, transcript.checks.len(), transcript.end), (Some(3), 1, None));
        assert!(!transcript.is_whole());
    }

    #[test]
    fn a_lost_line_or_another_count_is_not_whole() {
        assert!(!Transcript::read(&CONSOLE.replace("check ring/a: pass\n", "")).is_whole());
        assert!(!Transcript::read(&CONSOLE.replace("end: 1", "end: 2")).is_whole());
        assert!(!Transcript::read(&CONSOLE.replace("conformance 3", "conformance 4")).is_whole());
    }

    #[test]
    fn a_backend_that_cannot_be_used_at_all_has_its_reason() {
        let transcript = Transcript::read("cannot begin: fail: no vbd\n");
        assert_eq!(transcript.refused.as_deref(), Some("fail: no vbd"));
        assert!(!transcript.is_whole());
    }

    #[test]
    fn what_is_not_in_the_format_is_no_outcome() {
        let transcript = Transcript::read("check a: passed\ncheck b: fail\ncheck c\nend: 1 passed\n");
        assert_eq!(transcript, Transcript::default());
    }
}
