//! The log: what the `log` facade is given becomes lines in a fixed buffer, which the platform
//! writes to the console as fast as that takes them. Nothing here waits. While the console does
//! not drain, the oldest lines give way and are counted, and that is said in their place.
//!
//! Whatever a peer's string holds, one line stays one line of printable ASCII. Neighbours: `main`
//! installs it, `domain` sets its time, `platform` drains it. Lines about a guest are logged with a
//! [`GuestTarget`], so that no guest decides how much is written (`budget`).

mod budget;
mod buffer;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use heapless::String;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use self::budget::{Budgets, Verdict};
use self::buffer::Buffer;
use crate::limits;
use crate::units::{DomId, Instant};

static LOGGER: Logger = Logger::new();

/// Makes this the logger of the `log` facade. Lines carry the time since `started`.
pub fn install(level: LevelFilter, started: Instant) {
    LOGGER.started.store(started.0, Ordering::Relaxed);
    set_now(started);
    // It fails when there is a logger already, which can only be this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Sets the time that lines of the image's log carry from now on.
pub fn set_now(now: Instant) {
    LOGGER.set_now(now);
}

/// Hands the image's log to `sink`, see [`Logger::drain`].
pub fn drain(sink: &mut impl FnMut(&[u8]) -> usize) {
    LOGGER.drain(sink);
}

/// Shows the last lines once more, oldest first, in pieces: for the epitaph. Shows nothing when
/// the log itself was interrupted.
pub fn last_lines(show: &mut impl FnMut(&[u8])) {
    if let Some(buffer) = LOGGER.buffer.try_lock() {
        buffer.last_lines(show);
    }
}

/// A peer's bytes, fit to be shown between quotes: printable ASCII stays, quotes and backslashes
/// get a backslash, anything else becomes `\xNN`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            b'"' | b'\\' => write!(f, "\\{}", char::from(byte)),
            b' '..=b'~' => f.write_char(char::from(byte)),
            _ => write!(f, "\\x{byte:02x}"),
        })
    }
}

/// The target of log records about a guest, of which each has its budget.
#[derive(Clone, Debug)]
pub struct GuestTarget(String<11>);

impl GuestTarget {
    const PREFIX: &str = "guest/";

    /// For lines about this guest.
    #[must_use]
    pub fn new(guest: DomId) -> Self {
        let mut target = String::new();
        write!(target, "{}{guest}", Self::PREFIX).expect("a domain id has five digits at most");
        Self(target)
    }

    fn guest(target: &str) -> Option<DomId> {
        target.strip_prefix(Self::PREFIX)?.parse().ok().map(DomId)
    }
}

impl core::ops::Deref for GuestTarget {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A log of its own: the image has one, and each simulated world.
///
/// There is one processor and no interrupt handler logs, so the lock is only ever found taken by
/// a sink or a trap inside of this module. Waiting for it would then be for ever.
pub struct Logger {
    buffer: Mutex<Buffer>,
    budgets: Mutex<Budgets>,
    /// Lines that found the lock taken.
    missed: AtomicU32,
    started: AtomicU64,
    now: AtomicU64,
}

impl Logger {
    /// An empty log, at time 0.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "constant, for a static")]
    pub const fn new() -> Self {
        Self {
            buffer: Mutex::new(Buffer::new()),
            budgets: Mutex::new(Budgets::new()),
            missed: AtomicU32::new(0),
            started: AtomicU64::new(0),
            now: AtomicU64::new(0),
        }
    }

    /// Sets the time that lines carry from now on.
    pub fn set_now(&self, now: Instant) {
        self.now.store(now.0, Ordering::Relaxed);
    }

    /// Hands to `sink` what it has not been given yet, in order, until it takes less than it is
    /// offered. The sink says how many bytes it took; what it logs itself is lost and counted.
    pub fn drain(&self, sink: &mut impl FnMut(&[u8]) -> usize) {
        if let Some(mut buffer) = self.buffer.try_lock() {
            buffer.lost = buffer.lost.saturating_add(self.missed.swap(0, Ordering::Relaxed));
            buffer.drain(sink);
        }
    }

    fn now(&self) -> Instant {
        Instant(self.now.load(Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        self.now().since(Instant(self.started.load(Ordering::Relaxed)))
    }

    /// Adds a line, or counts it as missed.
    fn push(&self, level: Level, text: &fmt::Arguments<'_>) {
        // Formatted before the lock is taken: what is formatted may log as well.
        let line = Line::new(self.uptime(), level, text);
        match self.buffer.try_lock() {
            Some(mut buffer) => buffer.push(line.0.as_bytes()),
            None => {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether a line of this target may be logged; how many before it were not is said first.
    fn is_within_budget(&self, target: &str) -> bool {
        let Some(guest) = GuestTarget::guest(target) else { return true };
        let verdict = self.budgets.try_lock().map(|mut budgets| budgets.spend(guest, self.now()));
        match verdict {
            Some(Verdict::Drop) => return false,
            Some(Verdict::Say { dropped }) if dropped > 0 => {
                self.push(Level::Warn, &format_args!("guest {guest}: {dropped} lines about it were dropped"));
            }
            Some(Verdict::Say { .. }) | None => {}
        }
        true
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.is_within_budget(record.target()) {
            self.push(record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// One line with its end.
struct Line(String<{ limits::LOG_LINE }>);

impl Line {
    /// Ends each line; a line that is cut says so.
    const END: &str = "\n";
    const CUT: &str = "...\n";
    const ROOM: usize = limits::LOG_LINE - Self::CUT.len();

    fn new(uptime: Duration, level: Level, text: &fmt::Arguments<'_>) -> Self {
        let mut line = Self(String::new());
        let severity = match level {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        let (seconds, micros) = (uptime.as_secs(), uptime.subsec_micros());
        let written = write!(line, "[{seconds}.{micros:06}] {severity}{text}");
        // `push` refuses to write into the room that is kept for this.
        let _ = line.0.push_str(if written.is_ok() { Self::END } else { Self::CUT });
        line
    }

    fn push(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > Self::ROOM {
            return Err(fmt::Error);
        }
        self.0.push_str(text).map_err(|_| fmt::Error)
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().try_for_each(|byte| match byte {
            b' '..=b'~' => self.push(char::from(byte).encode_utf8(&mut [0; 4])),
            _ => {
                let mut code = String::<4>::new();
                write!(code, "\\x{byte:02x}")?;
                self.push(&code)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    fn drained(logger: &Logger) -> String {
        let mut console = Vec::new();
        logger.drain(&mut |piece| {
            console.extend_from_slice(piece);
            piece.len()
        });
        String::from_utf8(console).unwrap()
    }

    fn line(text: &str) -> String {
        Line::new(Duration::from_micros(12_000_345), Level::Info, &format_args!("{text}")).0.as_str().into()
    }

    #[test]
    fn a_line_has_time_severity_and_text() {
        let at = Duration::from_nanos(61_000_042_999);
        let of = |level| String::from(Line::new(at, level, &format_args!("ready")).0.as_str());
        assert_eq!(of(Level::Info), "[61.000042] ready\n");
        assert_eq!(of(Level::Warn), "[61.000042] warning: ready\n");
        assert_eq!(of(Level::Error), "[61.000042] error: ready\n");
        assert_eq!(of(Level::Debug), "[61.000042] debug: ready\n");
    }

    #[test]
    fn one_line_stays_one_line_of_printable_ascii() {
        assert_eq!(line("a\nb\r\x1b[2Jé\u{7f}"), "[12.000345] a\\x0ab\\x0d\\x1b[2J\\xc3\\xa9\\x7f\n");
    }

    #[test]
    fn a_long_line_is_cut_and_says_so() {
        let full = limits::LOG_LINE - Line::CUT.len() - "[12.000345] ".len();
        assert!(line(&"x".repeat(full)).ends_with("xx\n"));
        for long in [full + 1, full + 3, 10 * full] {
            let line = line(&"x".repeat(long));
            assert!(line.ends_with("x...\n") && line.len() == limits::LOG_LINE);
        }
        // No half of an escape at the cut.
        assert!(line(&"\n".repeat(full)).ends_with("\\x0a...\n"));
    }

    #[test]
    fn peers_bytes_are_escaped() {
        assert_eq!(format!("{}", Escaped(b"a\"b\\c\x00\xff~")), "a\\\"b\\\\c\\x00\\xff~");
    }

    #[test]
    fn a_sink_that_logs_loses_its_line_and_is_told() {
        let logger = Logger::new();
        let log = |text| {
            logger.log(&Record::builder().level(Level::Info).args(format_args!("{text}")).build());
        };
        log("one");
        logger.drain(&mut |piece| {
            log("from the sink");
            piece.len()
        });
        assert_eq!(drained(&logger), "(1 line lost)\n");
    }

    #[test]
    fn time_is_counted_from_the_start() {
        let logger = Logger::new();
        logger.started.store(5_000_000_000, Ordering::Relaxed);
        logger.set_now(Instant(7_000_001_000));
        logger.log(&Record::builder().level(Level::Info).args(format_args!("up")).build());
        assert_eq!(drained(&logger), "[2.000001] up\n");
    }

    #[test]
    fn a_guests_lines_are_dropped_when_there_are_too_many_and_that_is_said() {
        let logger = Logger::new();
        let log = |target: &str, text: &str| {
            logger.log(
                &Record::builder().level(Level::Info).target(target).args(format_args!("{text}")).build(),
            );
        };
        let guest = GuestTarget::new(DomId(65535));
        let mut logged = 0;
        for _ in 0..1000 {
            log(&guest, "again");
            logged += drained(&logger).lines().count();
        }
        assert!((100..1000).contains(&logged), "{logged}");
        log("platter", "others");
        log(&GuestTarget::new(DomId(6)), "too");
        assert_eq!(drained(&logger), "[0.000000] others\n[0.000000] too\n");
        logger.set_now(Instant(3_600_000_000_000));
        log(&guest, "later");
        let said = format!("warning: guest 65535: {} lines about it were dropped\n", 1000 - logged);
        assert!(drained(&logger).contains(&said));
    }
}
