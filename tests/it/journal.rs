//! What happened in a simulated world, for the reader of a test that failed: the events of its
//! script, and the lines that the image logged. Each thread runs one world and has one journal.

use core::cell::{Cell, RefCell};
use core::fmt::Display;
use std::sync::Once;

use log::{LevelFilter, Log, Metadata, Record};
use platter::units::Instant;

use crate::console;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static NOW: Cell<Instant> = const { Cell::new(Instant(0)) };
}

/// A journal, which is printed when it ends with the test's failure.
pub(crate) struct Journal {
    /// How to have the same again.
    replay: String,
}

impl Journal {
    /// Begins a journal of what this command replays.
    pub(crate) fn new(replay: String) -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            log::set_logger(&Lines).expect("nobody else logs in these tests");
            log::set_max_level(LevelFilter::Info);
        });
        LINES.with_borrow_mut(Vec::clear);
        Self { replay }
    }

    /// How many lines hold this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        LINES.with_borrow(|lines| lines.iter().filter(|line| line.contains(text)).count())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show();
            eprintln!("replay with: {}", self.replay);
        }
    }
}

/// Prints the journal, which is there until the next one begins.
pub(crate) fn show() {
    LINES.with_borrow(|lines| lines.iter().for_each(|line| eprintln!("{line}")));
}

/// What follows happens at this time, or a moment after.
pub(crate) fn set_now(now: Instant) {
    NOW.set(now);
    console::set_now(now);
}

/// Adds a line.
pub(crate) fn note(line: impl Display) {
    let seconds = NOW.get().since(Instant(0)).as_secs_f64();
    LINES.with_borrow_mut(|lines| lines.push(format!("{seconds:>10.6} {line}")));
}

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        note(format_args!("    {}", record.args()));
        console::log(record);
    }

    fn flush(&self) {}
}
