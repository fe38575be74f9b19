//! The console of a storm's world. What the core logs goes through `report` as in the image, to a console that takes
//! everything, a little now and then, nothing, or stops in the middle; and in the end each line must be there or be
//! counted as lost. Neighbours: `journal`, through which the lines come, and `host`, which lets it drain each turn.

use core::cell::RefCell;
use core::fmt::Debug;

use log::{Log as _, Record};
use platter::report::Logger;
use platter::sim::rng::Rng;
use platter::units::Instant;

/// Ends a line of which the console had taken the beginning only when it was lost: no other line holds it.
const CUT: char = '\t';

thread_local! {
    static CONNECTED: RefCell<Option<Console>> = const { RefCell::new(None) };
}

/// What a console takes.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Everything,
    /// So many bytes, in one of so many turns.
    Little {
        bytes: usize,
        one_in: u32,
    },
    Nothing,
    /// Everything, and then nothing.
    First {
        bytes: usize,
    },
}

/// A console at its log.
struct Console {
    log: Logger,
    mood: Mood,
    rng: Rng,
    /// What it took.
    out: String,
    /// A log of which each line is taken at once, so that nothing is ever lost.
    faithful: Logger,
    /// Its lines.
    logged: Vec<String>,
}

impl Console {
    fn new(seed: u64) -> Self {
        // Not the chance of the world, which is the same at any console.
        let mut rng = Rng::new(!seed);
        let mood = match rng.index(4) {
            0 => Mood::Everything,
            1 => Mood::Little { bytes: 1 + rng.index(8), one_in: 1 << rng.index(12) },
            2 => Mood::Nothing,
            _ => Mood::First { bytes: rng.index(1000) },
        };
        Self {
            log: Logger::new(),
            mood,
            rng,
            out: String::new(),
            faithful: Logger::new(),
            logged: Vec::new(),
        }
    }

    fn log(&mut self, record: &Record<'_>) {
        self.log.log(record);
        self.faithful.log(record);
        let mut text = String::new();
        self.faithful.drain(&mut |piece| {
            text.push_str(core::str::from_utf8(piece).expect("a log is ASCII"));
            piece.len()
        });
        let before = self.logged.len();
        self.logged.extend(text.split_inclusive('\n').map(str::to_owned));
        // Those of a guest can be too many, which is said when there is room for the next.
        assert!(self.logged.len() == before + 1 || record.target().starts_with("guest/"), "{text:?}");
    }

    /// Takes what its mood lets it.
    fn drain(&mut self) {
        let mut room = match self.mood {
            Mood::Everything => usize::MAX,
            Mood::Little { bytes, one_in } if self.rng.one_in(one_in) => bytes,
            Mood::Little { .. } | Mood::Nothing => 0,
            Mood::First { bytes } => bytes.saturating_sub(self.out.len()),
        };
        let out = &mut self.out;
        self.log.drain(&mut |piece| {
            let taken = &piece[..piece.len().min(room)];
            // What is said in the middle of a line begins with the end of it.
            if piece.starts_with(b"\n(") && !taken.is_empty() {
                out.push(CUT);
            }
            out.push_str(core::str::from_utf8(taken).expect("a log is ASCII"));
            room -= taken.len();
            taken.len()
        });
    }

    /// Each line that was logged is there, in its place, or was counted as lost there.
    fn check(&self) {
        let mut logged = self.logged.iter();
        for line in self.out.split_inclusive('\n') {
            if let Some(lost) = lost(line) {
                assert!(logged.by_ref().take(lost).count() == lost, "{line:?}: so many were not logged");
            } else if let Some((begun, _)) = line.split_once(CUT) {
                assert!(logged.as_slice().first().is_some_and(|line| line.starts_with(begun)), "{line:?}");
            } else {
                assert_eq!(logged.next().map(String::as_str), Some(line));
            }
        }
        assert_eq!(logged.next(), None);
        let is_printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        assert!(self.logged.iter().all(|line| line.strip_suffix('\n').is_some_and(is_printable)));
    }
}

/// How many lines this one says were lost.
fn lost(line: &str) -> Option<usize> {
    let (count, rest) = line.strip_prefix('(')?.split_once(' ')?;
    ["line lost)\n", "lines lost)\n"].contains(&rest).then(|| count.parse().ok())?
}

/// Connects a console, from a seed, to what this thread logs; says what it takes.
pub(crate) fn connect(seed: u64) -> impl Debug {
    let console = Console::new(seed);
    let mood = console.mood;
    CONNECTED.set(Some(console));
    mood
}

/// Disconnects it, once it has taken the rest: every line is accounted for.
pub(crate) fn disconnect() {
    let mut console = CONNECTED.take().expect("it was connected");
    console.mood = Mood::Everything;
    console.drain();
    console.check();
}

/// A record is logged.
pub(crate) fn log(record: &Record<'_>) {
    with(|console| console.log(record));
}

/// Lines carry this time from now on.
pub(crate) fn set_now(now: Instant) {
    with(|console| {
        console.log.set_now(now);
        console.faithful.set_now(now);
    });
}

/// The image has made a turn.
pub(crate) fn drain() {
    with(Console::drain);
}

fn with(act: impl FnMut(&mut Console)) {
    CONNECTED.with_borrow_mut(|console| console.iter_mut().for_each(act));
}
