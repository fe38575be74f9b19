//! The table of all backends side by side, what lies behind its cells, and what it says about platter.

use std::fmt::{self, Display, Formatter};

use super::Backend;
use super::console::{Outcome, Transcript};
use crate::report;

/// How a run of the image ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It did every check it announced, and powered off.
    Whole,
    /// Its domain went before that.
    Died,
    /// It was ended because it said nothing for long, or took too long.
    Hung,
    /// It never ran: the backend did not come up, or refused the disk.
    Untried(String),
}

impl Display for Ending {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => out.write_str("all checks done"),
            Self::Died => out.write_str("the image ended before its last check"),
            Self::Hung => out.write_str("the image hung and was ended"),
            Self::Untried(why) => write!(out, "not tried: {why}"),
        }
    }
}

/// One backend's results.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) backend: Backend,
    pub(crate) transcript: Transcript,
    pub(crate) ending: Ending,
}

impl Column {
    fn cell(&self, check: &str) -> String {
        let cell = match self.transcript.outcome(check) {
            None => "none",
            Some(Outcome::Pass) => "pass",
            Some(Outcome::Fail(_)) => "FAIL",
            Some(Outcome::Skip(_)) => "skip",
        };
        cell.to_owned()
    }

    /// Each check that failed, and the image's reason, as lines; of platter also what it does not offer.
    fn reasons(&self) -> String {
        let line = |(name, outcome): &(String, Outcome)| match outcome {
            Outcome::Fail(why) => Some(format!("  FAIL {name}: {why}\n")),
            Outcome::Skip(why) if self.backend == Backend::Platter => Some(format!("  skip {name}: {why}\n")),
            Outcome::Pass | Outcome::Skip(_) => None,
        };
        self.transcript.checks.iter().filter_map(line).collect()
    }

    fn fails(&self) -> impl Iterator<Item = (&str, &str)> {
        self.transcript.checks.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Fail(why) => Some((name.as_str(), why.as_str())),
            Outcome::Pass | Outcome::Skip(_) => None,
        })
    }

    fn summary(&self) -> String {
        let [passed, failed, skipped] = self.transcript.counts();
        let name = self.backend.name();
        format!("{name}: {passed} passed, {failed} failed, {skipped} skipped; {}\n", self.ending)
    }

    /// What is wrong with platter, or with the checks: one that Linux fails counts only when it cites what Linux breaks.
    fn complaints(&self) -> Vec<String> {
        let name = self.backend.name();
        let mut complaints: Vec<String> = match self.backend {
            Backend::Platter => self.fails().map(|(check, _)| format!("{name} fails {check}")).collect(),
            Backend::DriverDomain | Backend::ControlDomain => self
                .fails()
                .filter(|(_, why)| !cites(why))
                .map(|(check, _)| format!("{name} fails {check}, which cites no source against it"))
                .collect(),
            Backend::Qdisk => Vec::new(),
        };
        let untried = matches!(self.ending, Ending::Untried(_));
        if untried || (self.ending != Ending::Whole && self.backend != Backend::Qdisk) {
            complaints.push(format!("{name} did not come to the end"));
        }
        complaints
    }
}

/// All backends' results.
pub(crate) struct Verdict(Vec<Column>);

impl Verdict {
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        Self(columns)
    }

    /// Why the suite has not passed; nothing when platter passes every check, and every check counts.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.0.iter().flat_map(Column::complaints).collect()
    }

    /// Every check that any backend came to, in the image's order.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        // The longest first: the others stopped early.
        let mut columns: Vec<&Column> = self.0.iter().collect();
        columns.sort_by_key(|column| std::cmp::Reverse(column.transcript.checks.len()));
        for (name, _) in columns.iter().flat_map(|column| &column.transcript.checks) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

impl Display for Verdict {
    /// The table, each backend's reasons, the counts, and what is to be complained of.
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let head: Vec<&str> =
            std::iter::once("check").chain(self.0.iter().map(|column| column.backend.name())).collect();
        let row = |name: &str| {
            let cells = self.0.iter().map(|column| column.cell(name));
            std::iter::once(name.to_owned()).chain(cells).collect()
        };
        let rows: Vec<Vec<String>> = self.names().into_iter().map(row).collect();
        out.write_str(&report::table(&head, &rows))?;
        for column in &self.0 {
            let reasons = column.reasons();
            if !reasons.is_empty() {
                write!(out, "\n{}:\n{reasons}", column.backend.name())?;
            }
        }
        writeln!(out)?;
        self.0.iter().try_for_each(|column| out.write_str(&column.summary()))?;
        self.complaints().iter().try_for_each(|complaint| writeln!(out, "failed: {complaint}"))
    }
}

/// Whether a check's reason says who demands it: the image puts that behind a dash.
fn cites(why: &str) -> bool {
    why.contains(" -- ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(backend: Backend, checks: &[&str], ending: Ending) -> Column {
        let console: String = checks.iter().map(|check| format!("check {check}\n")).collect();
        Column { backend, transcript: Transcript::read(&console), ending }
    }

    fn verdict(platter: &[&str], linux: &[&str], qdisk: &[&str]) -> Verdict {
        Verdict::new(vec![
            column(Backend::Platter, platter, Ending::Whole),
            column(Backend::DriverDomain, linux, Ending::Whole),
            column(Backend::Qdisk, qdisk, Ending::Died),
        ])
    }

    #[test]
    fn the_table_has_every_check_with_reasons_and_counts() {
        let shown = verdict(
            &["a: pass", "b: fail: late", "c: skip: none"],
            &["a: pass", "b: fail: never -- blkif.h", "c: skip: none", "d: pass"],
            &[],
        )
        .to_string();
        let expected = "check  platter  Linux driver domain  qdisk\n\
                        -----  -------  -------------------  -----\n\
                        a         pass                 pass   none\n\
                        b         FAIL                 FAIL   none\n\
                        c         skip                 skip   none\n\
                        d         none                 pass   none\n\
                        \nplatter:\n  FAIL b: late\n  skip c: none\n\
                        \nLinux driver domain:\n  FAIL b: never -- blkif.h\n\n\
                        platter: 1 passed, 1 failed, 1 skipped; all checks done\n\
                        Linux driver domain: 2 passed, 1 failed, 1 skipped; all checks done\n\
                        qdisk: 0 passed, 0 failed, 0 skipped; the image ended before its last check\n\
                        failed: platter fails b\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn platter_may_fail_nothing_and_others_may() {
        assert_eq!(verdict(&["a: fail: x -- blkif.h"], &["a: pass"], &[]).complaints(), ["platter fails a"]);
        assert!(verdict(&["a: pass"], &["a: pass"], &["a: fail: x"]).complaints().is_empty());
    }

    #[test]
    fn what_linux_fails_must_cite_a_source() {
        let cited = verdict(&["a: pass"], &["a: fail: status 0 -- blkif.h: must be an error"], &[]);
        assert!(cited.complaints().is_empty());
        let bare = verdict(&["a: pass"], &["a: fail: status 0"], &[]);
        assert_eq!(bare.complaints(), ["Linux driver domain fails a, which cites no source against it"]);
    }

    #[test]
    fn platter_and_linux_must_come_to_the_end_and_all_must_be_tried() {
        for backend in [Backend::Platter, Backend::DriverDomain, Backend::ControlDomain] {
            assert_eq!(column(backend, &["a: pass"], Ending::Died).complaints().len(), 1);
            assert_eq!(column(backend, &["a: pass"], Ending::Hung).complaints().len(), 1);
        }
        assert!(column(Backend::Qdisk, &["a: pass"], Ending::Hung).complaints().is_empty());
        assert_eq!(
            column(Backend::Qdisk, &[], Ending::Untried("no disk".to_owned())).complaints(),
            ["qdisk did not come to the end"]
        );
    }
}
