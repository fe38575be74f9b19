//! What is shown to people: the log as the image has it, and reasons. Whatever a peer has said, it is
//! printable ASCII.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use log::LevelFilter;
use platter::report;
use platter::units::Instant;

/// An hour later than the run before, so that no guest's budget of lines is used up by that one.
static NOW: AtomicU64 = AtomicU64::new(0);
const HOUR: u64 = 3_600_000_000_000;

/// Has the core log, or not.
pub(crate) fn log(is_on: bool) {
    let now = Instant(NOW.fetch_add(HOUR, Ordering::Relaxed));
    report::install(if is_on { LevelFilter::Info } else { LevelFilter::Off }, now);
}

/// Takes what was logged.
///
/// # Panics
/// When there is a byte in it that no console should get.
pub(crate) fn take_log() {
    report::drain(&mut |bytes| {
        let is_plain = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\r');
        assert!(bytes.iter().all(is_plain), "{}", bytes.escape_ascii());
        bytes.len()
    });
}

/// # Panics
/// When it has a byte that no console and no node should get.
pub(crate) fn assert_plain(shown: impl Display) {
    let text = shown.to_string();
    assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text:?}");
}
