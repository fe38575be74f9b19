//! How a volume may be named: as Linux and udev would name it in a driver domain of theirs. `table`
//! compares what it holds with a name that was taken apart here.

use core::fmt::{self, Write};

use crate::wire::gpt::Label;
use crate::wire::nvme::identify::Identity;

/// A name without `/dev/`, by what it goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Name<'a> {
    /// `nvme0n1p2`.
    Node(&'a str),
    /// What follows `/dev/disk/by-id/`.
    Id(&'a str),
    /// `PARTUUID=`, or what follows `/dev/disk/by-partuuid/`.
    PartUuid(&'a str),
    /// `PARTLABEL=`, or what follows `/dev/disk/by-partlabel/`.
    PartLabel(&'a str),
}

impl<'a> Name<'a> {
    pub(super) fn parse(target: &'a str) -> Self {
        let name = target.strip_prefix("/dev/").unwrap_or(target);
        let after = |prefixes: [&str; 2]| prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
        if let Some(id) = name.strip_prefix("disk/by-id/") {
            Self::Id(id)
        } else if let Some(uuid) = after(["PARTUUID=", "disk/by-partuuid/"]) {
            Self::PartUuid(uuid)
        } else if let Some(label) = after(["PARTLABEL=", "disk/by-partlabel/"]) {
            Self::PartLabel(label)
        } else {
            Self::Node(name)
        }
    }
}

/// What is left of `text` behind what `value` displays, if that is how it starts.
pub(super) fn behind(text: &str, value: impl fmt::Display) -> Option<&str> {
    struct Rest<'a>(&'a str);

    impl Write for Rest<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
            Ok(())
        }
    }

    let mut rest = Rest(text);
    write!(rest, "{value}").ok()?;
    Some(rest.0)
}

/// Whether `text` is what `value` displays.
pub(super) fn is(text: &str, value: impl fmt::Display) -> bool {
    behind(text, value) == Some("")
}

/// What udev calls a disk of a controller, without the namespace: `nvme-MODEL_SERIAL`.
pub(super) struct ById<'a>(pub(super) &'a Identity);

impl fmt::Display for ById<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nvme-")?;
        write_replaced(f, &self.0.model.0)?;
        f.write_char('_')?;
        write_replaced(f, &self.0.serial.0)
    }
}

/// Writes as udev does (`udev_replace_whitespace`, `udev_replace_chars`): no space around it, one
/// underscore for any space within, and for each character that it does not trust.
fn write_replaced(f: &mut fmt::Formatter<'_>, text: &[u8]) -> fmt::Result {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let words = text[..end].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    for (i, word) in words.enumerate() {
        if i > 0 {
            f.write_char('_')?;
        }
        for byte in word {
            let is_trusted = byte.is_ascii_alphanumeric() || b"#+-.:=@_/$%?,".contains(byte);
            f.write_char(if is_trusted { char::from(*byte) } else { '_' })?;
        }
    }
    Ok(())
}

/// Whether `text` is a label, as it is or with bytes as `\xNN`, as udev has them in links.
pub(super) fn is_label(text: &str, label: &Label) -> bool {
    let bytes = || {
        label.chars().flat_map(|char| {
            let mut buffer = [0; 4];
            let length = char.encode_utf8(&mut buffer).len();
            buffer.into_iter().take(length)
        })
    };
    !text.is_empty() && (text.bytes().eq(bytes()) || unescaped(text.as_bytes()).eq(bytes()))
}

/// The bytes with each `\xNN` as the byte it stands for.
fn unescaped(mut text: &[u8]) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let (byte, rest) = match text {
            [b'\\', b'x', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (digit(*high) << 4 | digit(*low), rest)
            }
            [byte, rest @ ..] => (*byte, rest),
            [] => return None,
        };
        text = rest;
        Some(byte)
    })
}

/// The value of a hexadecimal digit.
const fn digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;
    use crate::wire::nvme::identify::Text;

    fn label(text: &str) -> Label {
        let mut label = Label::NONE;
        label.0.iter_mut().zip(text.encode_utf16()).for_each(|(to, unit)| *to = unit);
        label
    }

    #[test]
    fn names_go_by_what_is_in_front_of_them() {
        for prefix in ["", "/dev/"] {
            let name = |rest: &str| std::format!("{prefix}{rest}");
            assert_eq!(Name::parse(&name("nvme0n1")), Name::Node("nvme0n1"));
            assert_eq!(Name::parse(&name("disk/by-id/nvme-x")), Name::Id("nvme-x"));
            assert_eq!(Name::parse(&name("disk/by-partuuid/a")), Name::PartUuid("a"));
            assert_eq!(Name::parse(&name("PARTLABEL=a b")), Name::PartLabel("a b"));
        }
        assert_eq!(Name::parse("/dev//dev/x"), Name::Node("/dev/x"));
        assert_eq!(Name::parse("partuuid=x"), Name::Node("partuuid=x"));
    }

    #[test]
    fn a_disk_has_the_id_that_udev_gives_it() {
        let mut identity = Identity { model: Text([b' '; 40]), serial: Text([0; 20]) };
        identity.model.0[1..22].copy_from_slice(b"Samsung  SSD\t980 (1*)");
        identity.serial.0[..4].copy_from_slice(b"S\xff/1");
        assert_eq!(ById(&identity).to_string(), "nvme-Samsung_SSD_980__1___S_/1");
    }

    #[test]
    fn a_label_is_found_raw_or_escaped() {
        assert!(is_label("root", &label("root")) && !is_label("root", &label("roo")));
        for text in ["my data", "my\\x20data", "my\\x20dat\\x61"] {
            assert!(is_label(text, &label("my data")), "{text}");
        }
        assert!(is_label("\u{fc}", &label("\u{fc}")) && is_label("\\xc3\\xBC", &label("\u{fc}")));
        assert!(is_label("a\\x2fb", &label("a\\x2fb")) && is_label("a\\x2Fb", &label("a/b")));
        for text in ["\\x", "\\xg0", "\\x0", "x\\", "\\", ""] {
            assert!(!is_label(text, &label("a")), "{text}");
        }
        assert!(!is_label("\\x6g", &label("p")), "one digit of two");
        assert!(!is_label("", &Label::NONE), "no label is no name");
        assert!(is_label("\u{fffd}", &Label(core::array::from_fn(|i| if i == 0 { 0xd800 } else { 0 }))));
    }
}
