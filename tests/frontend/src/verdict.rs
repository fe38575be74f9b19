//! How a check ends: it passes, fails, or has nothing to look at; and the checks as data.

use core::fmt::{self, Write};

use heapless::String;
use platter::hal::HypervisorError;

use crate::stage::Stage;

/// A reason, cut where it is longer than a line should be.
pub(crate) type Reason = String<220>;

/// Why a check did not pass.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// The backend does not offer what it is about.
    Skip(Reason),
    /// The backend did what it should not.
    Fail(Reason),
}

/// A check's result, or a step's of it.
pub(crate) type Verdict<T = ()> = Result<T, End>;

/// One check: what it does to the backend, and where its demand comes from when that is not plain.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    /// `room/check`.
    pub(crate) name: &'static str,
    /// What is demanded by whom; empty where nobody disagrees.
    pub(crate) why: &'static str,
    /// Plays it.
    pub(crate) run: fn(&mut Stage) -> Verdict,
}

impl Check {
    /// A check that needs no reason.
    pub(crate) const fn new(name: &'static str, run: fn(&mut Stage) -> Verdict) -> Self {
        Self { name, why: "", run }
    }

    /// A check whose demand is in this text.
    pub(crate) const fn because(
        name: &'static str,
        why: &'static str,
        run: fn(&mut Stage) -> Verdict,
    ) -> Self {
        Self { name, why, run }
    }
}

impl End {
    /// A failure.
    pub(crate) fn fail(reason: fmt::Arguments<'_>) -> Self {
        Self::Fail(cut(reason))
    }

    /// The check cannot be played in this domain.
    pub(crate) fn no_memory() -> Self {
        Self::fail(format_args!("no memory is left: give this domain more"))
    }

    /// Nothing to look at.
    pub(crate) fn skip(reason: fmt::Arguments<'_>) -> Self {
        Self::Skip(cut(reason))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skip(reason) => write!(f, "skip: {reason}"),
            Self::Fail(reason) => write!(f, "fail: {reason}"),
        }
    }
}

impl From<HypervisorError> for End {
    fn from(error: HypervisorError) -> Self {
        Self::fail(format_args!("{error}"))
    }
}

struct Cut(Reason);

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.0.push(c)).map_err(|_| fmt::Error)
    }
}

fn cut(reason: fmt::Arguments<'_>) -> Reason {
    let mut cut = Cut(Reason::new());
    // What does not fit is left out.
    let _ = cut.write_fmt(reason);
    cut.0
}

/// Ends a check as failed unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::verdict::End::fail(format_args!($($why)+)));
        }
    };
}

/// Ends a check as skipped unless a condition holds.
macro_rules! needs {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::verdict::End::skip(format_args!($($why)+)));
        }
    };
}

pub(crate) use {ensure, needs};
