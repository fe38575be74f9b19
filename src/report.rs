//! The log: what the `log` facade is given becomes lines in a fixed buffer, which the platform
//! writes to the console as fast as that takes them. Nothing here waits. While the console does
//! not drain, the oldest lines give way and are counted, and that is said in their place.
//!
//! Whatever a peer's string holds, one line stays one line of printable ASCII. Neighbours: `main`
//! installs it, `domain` sets its time, `platform` drains it.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use heapless::String;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;

use crate::limits;
use crate::units::Instant;

static LOGGER: Logger = Logger::new();

/// Makes this the logger of the `log` facade. Lines carry the time since `started`.
pub fn install(level: LevelFilter, started: Instant) {
    LOGGER.started.store(started.0, Ordering::Relaxed);
    set_now(started);
    // It fails when there is a logger already, which can only be this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Sets the time that lines carry from now on.
pub fn set_now(now: Instant) {
    LOGGER.now.store(now.0, Ordering::Relaxed);
}

/// Hands to `sink` what it has not been given yet, in order, until it takes less than it is
/// offered. The sink says how many bytes it took; what it logs itself is lost and counted.
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

/// There is one processor and no interrupt handler logs, so the lock is only ever found taken by
/// a sink or a trap inside of this module. Waiting for it would then be for ever.
struct Logger {
    buffer: Mutex<Buffer>,
    /// Lines that found the lock taken.
    missed: AtomicU32,
    started: AtomicU64,
    now: AtomicU64,
}

impl Logger {
    const fn new() -> Self {
        Self {
            buffer: Mutex::new(Buffer::new()),
            missed: AtomicU32::new(0),
            started: AtomicU64::new(0),
            now: AtomicU64::new(0),
        }
    }

    fn drain(&self, sink: &mut impl FnMut(&[u8]) -> usize) {
        if let Some(mut buffer) = self.buffer.try_lock() {
            buffer.lost = buffer.lost.saturating_add(self.missed.swap(0, Ordering::Relaxed));
            buffer.drain(sink);
        }
    }

    fn uptime(&self) -> Duration {
        let now = Instant(self.now.load(Ordering::Relaxed));
        now.since(Instant(self.started.load(Ordering::Relaxed)))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        // Formatted before the lock is taken: what is formatted may log as well.
        let line = Line::new(self.uptime(), record.level(), record.args());
        match self.buffer.try_lock() {
            Some(mut buffer) => buffer.push(line.0.as_bytes()),
            None => {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
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

/// The last bytes of the log, some of which the console still has to take.
struct Buffer {
    bytes: [u8; limits::LOG],
    /// Bytes ever pushed: the next goes to this place, modulo the size.
    pushed: u64,
    /// Bytes of them that the console has taken, or that were lost.
    drained: u64,
    /// Lines lost since that was last said.
    lost: u32,
    /// Whether the console has taken the beginning of a line only.
    in_line: bool,
    /// What is said of lost lines, and how much of that the console has taken.
    notice: String<32>,
    noticed: usize,
}

const _: () =
    assert!(limits::LOG.is_power_of_two() && limits::EPITAPH_LINES * limits::LOG_LINE < limits::LOG);

impl Buffer {
    const fn new() -> Self {
        Self {
            bytes: [0; limits::LOG],
            pushed: 0,
            drained: 0,
            lost: 0,
            in_line: false,
            notice: String::new(),
            noticed: 0,
        }
    }

    /// Adds a line; the oldest give way.
    fn push(&mut self, line: &[u8]) {
        while self.pushed - self.drained + line.len() as u64 > limits::LOG as u64 {
            self.lose_line();
        }
        for byte in line {
            self.bytes[place(self.pushed)] = *byte;
            self.pushed += 1;
        }
    }

    fn lose_line(&mut self) {
        let rest = self.drained..self.pushed;
        let end = rest.clone().find(|at| self.bytes[place(*at)] == b'\n');
        self.drained = end.map_or(rest.end, |at| at + 1);
        self.lost = self.lost.saturating_add(1);
    }

    fn drain(&mut self, sink: &mut impl FnMut(&[u8]) -> usize) {
        // What is lost is said once, then come the two pieces of a ring.
        for _ in 0..4 {
            self.say_lost();
            let from_notice = self.noticed < self.notice.len();
            let piece = if from_notice { &self.notice.as_bytes()[self.noticed..] } else { self.piece() };
            if piece.is_empty() {
                return;
            }
            let taken = sink(piece).min(piece.len());
            let is_all = taken == piece.len();
            if let Some(last) = piece[..taken].last() {
                self.in_line = *last != b'\n';
            }
            if from_notice {
                self.noticed += taken;
            } else {
                self.drained += taken as u64;
            }
            if !is_all {
                return;
            }
        }
    }

    /// Puts the number of lost lines where they are missing, once the number said before is out.
    fn say_lost(&mut self) {
        if self.lost == 0 || self.noticed < self.notice.len() {
            return;
        }
        self.notice.clear();
        let before = if self.in_line { "\n" } else { "" };
        let lines = if self.lost == 1 { "line" } else { "lines" };
        writeln!(self.notice, "{before}({} {lines} lost)", self.lost).expect("the number has room");
        self.noticed = 0;
        self.lost = 0;
    }

    /// What comes next for the console, as far as it lies in one piece.
    fn piece(&self) -> &[u8] {
        let start = place(self.drained);
        let left = usize::try_from(self.pushed - self.drained).unwrap_or(0);
        &self.bytes[start..limits::LOG.min(start + left)]
    }

    fn last_lines(&self, show: &mut impl FnMut(&[u8])) {
        let oldest = self.pushed.saturating_sub(limits::LOG as u64);
        let is_end = |at: &u64| self.bytes[place(*at)] == b'\n';
        let before = (oldest..self.pushed).rev().filter(is_end).nth(limits::EPITAPH_LINES);
        let (start, end) = (place(before.map_or(oldest, |at| at + 1)), place(self.pushed));
        if start <= end {
            show(&self.bytes[start..end]);
        } else {
            show(&self.bytes[start..]);
            show(&self.bytes[..end]);
        }
    }
}

/// Where in the buffer the byte of that number is.
const fn place(at: u64) -> usize {
    at as usize % limits::LOG
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    fn line(text: &str) -> String {
        Line::new(Duration::from_micros(12_000_345), Level::Info, &format_args!("{text}")).0.as_str().into()
    }

    fn drained(buffer: &mut Buffer) -> String {
        let mut console = Vec::new();
        buffer.drain(&mut |piece| {
            console.extend_from_slice(piece);
            piece.len()
        });
        String::from_utf8(console).unwrap()
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
    fn lines_come_out_in_order_however_little_the_console_takes() {
        for room in [1, 7, 4096] {
            let (mut buffer, mut console, mut expected) = (Buffer::new(), Vec::new(), String::new());
            for n in 0..2000 {
                let text = line(&format!("line {n}"));
                buffer.push(text.as_bytes());
                expected.push_str(&text);
                for _ in 0..100 {
                    let mut left = room;
                    buffer.drain(&mut |piece| {
                        let taken = piece.len().min(left);
                        console.extend_from_slice(&piece[..taken]);
                        left -= taken;
                        taken
                    });
                }
            }
            assert!(console == expected.as_bytes(), "a console that takes {room} bytes at a time");
        }
    }

    #[test]
    fn the_oldest_lines_give_way_and_are_counted() {
        let mut buffer = Buffer::new();
        let text = |n| line(&format!("line {n:04}"));
        for n in 0..1000 {
            buffer.push(text(n).as_bytes());
        }
        let kept = limits::LOG / text(0).len();
        let mut expected = format!("({} lines lost)\n", 1000 - kept);
        (1000 - kept..1000).for_each(|n| expected.push_str(&text(n)));
        assert_eq!(drained(&mut buffer), expected);
        assert_eq!(drained(&mut buffer), "");
        buffer.push(b"next\n");
        assert_eq!(drained(&mut buffer), "next\n");
    }

    #[test]
    fn a_line_lost_half_way_is_ended_before_that_is_said() {
        let mut buffer = Buffer::new();
        buffer.push(b"first\n");
        buffer.drain(&mut |_| 3);
        let big = vec![b'x'; limits::LOG - 2];
        buffer.push(&big);
        assert!(drained(&mut buffer).starts_with("\n(1 line lost)\nxxx"));
    }

    #[test]
    fn what_is_lost_while_that_is_said_is_said_next() {
        let mut buffer = Buffer::new();
        let text = line("x");
        let lose = |buffer: &mut Buffer| {
            for _ in 0..limits::LOG / text.len() + 1 {
                buffer.push(text.as_bytes());
            }
        };
        lose(&mut buffer);
        buffer.drain(&mut |piece| piece.len().min(5));
        lose(&mut buffer);
        let lost = limits::LOG / text.len() + 1;
        assert!(drained(&mut buffer).starts_with(&format!("ne lost)\n({lost} lines lost)\n[")));
    }

    #[test]
    fn a_sink_that_boasts_is_not_believed() {
        let mut buffer = Buffer::new();
        buffer.push(b"one\n");
        buffer.drain(&mut |_| usize::MAX);
        buffer.push(b"two\n");
        assert_eq!(drained(&mut buffer), "two\n");
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
        let mut console = Vec::new();
        logger.drain(&mut |piece| {
            console.extend_from_slice(piece);
            piece.len()
        });
        assert_eq!(console, b"(1 line lost)\n");
    }

    #[test]
    fn the_epitaph_has_the_last_lines_drained_or_not() {
        let mut buffer = Buffer::new();
        let shown = |buffer: &Buffer| {
            let mut shown = Vec::new();
            buffer.last_lines(&mut |piece| shown.extend_from_slice(piece));
            String::from_utf8(shown).unwrap()
        };
        assert_eq!(shown(&buffer), "");
        let text = |n: usize| line(&format!("line {n}"));
        for n in 0..1000 {
            buffer.push(text(n).as_bytes());
            if n % 3 == 0 {
                drained(&mut buffer);
            }
            let first = (n + 1).saturating_sub(limits::EPITAPH_LINES);
            let expected: String = (first..=n).map(text).collect();
            assert_eq!(shown(&buffer), expected);
        }
    }

    #[test]
    fn time_is_counted_from_the_start() {
        let logger = Logger::new();
        logger.started.store(5_000_000_000, Ordering::Relaxed);
        logger.now.store(7_000_001_000, Ordering::Relaxed);
        logger.log(&Record::builder().level(Level::Info).args(format_args!("up")).build());
        assert_eq!(drained(&mut logger.buffer.lock()), "[2.000001] up\n");
    }
}
