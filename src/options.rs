//! The command line, `extra=` in an xl configuration: a few words, of which each must be known.
//! `main` reads it before anything else and warns of what it did not understand.

use core::fmt;

use log::LevelFilter;

use crate::report::Escaped;

/// What the command line asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options<'a> {
    /// `log=error|warn|info|debug|trace`: which lines are logged; the last one counts.
    pub log: LevelFilter,
    line: &'a [u8],
}

/// A word that is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warning<'a> {
    /// There is no such option.
    Unknown(&'a [u8]),
    /// The option `log` has no such value.
    LogLevel(&'a [u8]),
}

impl<'a> Options<'a> {
    /// Reads a command line, which may hold any bytes and ends at the first zero.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Self {
        let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let log = words(line).filter_map(|word| level(word).ok()).last().unwrap_or(LevelFilter::Info);
        Self { log, line }
    }

    /// What was not understood and is ignored.
    pub fn warnings(&self) -> impl Iterator<Item = Warning<'a>> {
        words(self.line).filter_map(|word| level(word).err())
    }
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

fn level(word: &[u8]) -> Result<LevelFilter, Warning<'_>> {
    let level = word.strip_prefix(b"log=").ok_or(Warning::Unknown(word))?;
    Ok(match level {
        b"error" => LevelFilter::Error,
        b"warn" => LevelFilter::Warn,
        b"info" => LevelFilter::Info,
        b"debug" => LevelFilter::Debug,
        b"trace" => LevelFilter::Trace,
        _ => return Err(Warning::LogLevel(level)),
    })
}

impl fmt::Display for Warning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown option \"{}\"", Escaped(word)),
            Self::LogLevel(level) => {
                write!(f, "option log has no level \"{}\": error, warn, info, debug, trace", Escaped(level))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        assert_eq!(Options::parse(b"").log, LevelFilter::Info);
        for (line, level) in [
            (&b"log=error"[..], LevelFilter::Error),
            (b" log=warn ", LevelFilter::Warn),
            (b"log=debug log=info", LevelFilter::Info),
            (b"\tlog=debug\n", LevelFilter::Debug),
            (b"log=trace\0log=error", LevelFilter::Trace),
        ] {
            let options = Options::parse(line);
            assert_eq!(options.log, level);
            assert!(options.warnings().next().is_none());
        }
    }

    #[test]
    fn what_is_not_understood_is_named_and_ignored() {
        let options = Options::parse(b"foo log=loud log log=debug \xff\"");
        assert_eq!(options.log, LevelFilter::Debug);
        let warnings: Vec<_> = options.warnings().map(|warning| warning.to_string()).collect();
        assert_eq!(
            warnings,
            [
                "unknown option \"foo\"",
                "option log has no level \"loud\": error, warn, info, debug, trace",
                "unknown option \"log\"",
                "unknown option \"\\xff\\\"\"",
            ]
        );
    }

    #[test]
    fn any_bytes_are_read() {
        let mut line = [0; 1023];
        for seed in 0..=255_u8 {
            line.iter_mut().enumerate().for_each(|(i, byte)| *byte = seed.wrapping_mul(i as u8) | 1);
            let options = Options::parse(&line);
            assert_eq!(options.log, LevelFilter::Info);
            assert!(options.warnings().all(|warning| warning.to_string().is_ascii()));
        }
        assert_eq!(Options::parse(&b"x ".repeat(511)).warnings().count(), 511);
    }
}
