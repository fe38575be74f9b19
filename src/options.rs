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

/// How disks are named in `/dev/disk/by-id/`.
const BY_ID: &str = "disk/by-id/nvme-";

/// A word that is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warning<'a> {
    /// There is no such option.
    Unknown(&'a [u8]),
    /// The option `log` has no such value.
    LogLevel(&'a [u8]),
    /// The option `opaque` lists what is no whole disk's name.
    Opaque(&'a [u8]),
}

impl<'a> Options<'a> {
    /// Reads a command line, which may hold any bytes and ends at the first zero.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Self {
        let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
        let levels = words(line).filter_map(|word| level(word.strip_prefix(b"log=")?).ok());
        Self { log: levels.last().unwrap_or(LevelFilter::Info), line }
    }

    /// `opaque=nvme0n1,/dev/disk/by-id/nvme-MODEL_SERIAL`: whole disks that belong to guests, whose
    /// blocks are never looked at; all such options count.
    pub fn opaque(&self) -> impl Iterator<Item = &'a str> {
        words(self.line)
            .filter_map(|word| word.strip_prefix(b"opaque="))
            .flat_map(list)
            .filter_map(Result::ok)
    }

    /// What was not understood and is ignored.
    pub fn warnings(&self) -> impl Iterator<Item = Warning<'a>> {
        words(self.line).flat_map(warnings)
    }
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// What is wrong with a word.
fn warnings(word: &[u8]) -> impl Iterator<Item = Warning<'_>> {
    let (names, warning) = if let Some(names) = word.strip_prefix(b"opaque=") {
        (Some(names), None)
    } else if let Some(value) = word.strip_prefix(b"log=") {
        (None, level(value).err())
    } else {
        (None, Some(Warning::Unknown(word)))
    };
    names.into_iter().flat_map(list).filter_map(Result::err).chain(warning)
}

fn level(level: &[u8]) -> Result<LevelFilter, Warning<'_>> {
    Ok(match level {
        b"error" => LevelFilter::Error,
        b"warn" => LevelFilter::Warn,
        b"info" => LevelFilter::Info,
        b"debug" => LevelFilter::Debug,
        b"trace" => LevelFilter::Trace,
        _ => return Err(Warning::LogLevel(level)),
    })
}

/// The names of whole disks in a list with commas.
fn list(names: &[u8]) -> impl Iterator<Item = Result<&str, Warning<'_>>> {
    names.split(|byte| *byte == b',').map(|name| {
        let text = core::str::from_utf8(name).ok().filter(|text| is_disk(text));
        text.ok_or(Warning::Opaque(name))
    })
}

/// Whether a name is one that a whole disk can have.
fn is_disk(name: &str) -> bool {
    let name = name.strip_prefix("/dev/").unwrap_or(name);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let node = name.strip_prefix("nvme").and_then(|numbers| numbers.split_once('n'));
    node.is_some_and(|(controller, namespace)| is_number(controller) && is_number(namespace))
        || name.strip_prefix(BY_ID).is_some_and(|id| !id.is_empty())
}

impl fmt::Display for Warning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(word) => write!(f, "unknown option \"{}\"", Escaped(word)),
            Self::LogLevel(level) => {
                write!(f, "option log has no level \"{}\": error, warn, info, debug, trace", Escaped(level))
            }
            Self::Opaque(name) => {
                let name = Escaped(name);
                write!(
                    f,
                    "option opaque lists \"{name}\", not a whole disk such as nvme0n1 or /dev/{BY_ID}..."
                )
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
        let options = Options::parse(b"foo log=loud log log=debug \xff\" opaque=nvme0n1,sda opaque=");
        assert_eq!(options.log, LevelFilter::Debug);
        assert_eq!(options.opaque().collect::<Vec<_>>(), ["nvme0n1"]);
        let warnings: Vec<_> = options.warnings().map(|warning| warning.to_string()).collect();
        assert_eq!(
            warnings,
            [
                "unknown option \"foo\"",
                "option log has no level \"loud\": error, warn, info, debug, trace",
                "unknown option \"log\"",
                "unknown option \"\\xff\\\"\"",
                "option opaque lists \"sda\", not a whole disk such as nvme0n1 or /dev/disk/by-id/nvme-...",
                "option opaque lists \"\", not a whole disk such as nvme0n1 or /dev/disk/by-id/nvme-...",
            ]
        );
    }

    #[test]
    fn opaque_disks_are_listed_by_any_name_of_a_whole_disk() {
        let line =
            b"opaque=nvme0n1,/dev/nvme12n3 log=warn opaque=disk/by-id/nvme-M_S,/dev/disk/by-id/nvme-M_S_2";
        let options = Options::parse(line);
        let expected = ["nvme0n1", "/dev/nvme12n3", "disk/by-id/nvme-M_S", "/dev/disk/by-id/nvme-M_S_2"];
        assert_eq!(options.opaque().collect::<Vec<_>>(), expected);
        assert_eq!((options.log, options.warnings().next()), (LevelFilter::Warn, None));
        for name in ["nvme0n1p2", "nvme0", "nvmen1", "nvme0n", "nvme-0n1", "disk/by-id/nvme-", "PARTUUID=a"] {
            let line = format!("opaque={name}");
            let options = Options::parse(line.as_bytes());
            assert_eq!((options.opaque().count(), options.warnings().count()), (0, 1), "{name}");
        }
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
