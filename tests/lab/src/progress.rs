//! What a person sees while something takes long: a spinner a task on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The tasks under way.
#[derive(Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    start: Instant,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let target = if terminal { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), start: Instant::now(), terminal }
    }

    /// A new task; its line is gone when the returned step is dropped.
    pub(crate) fn task(&self, name: &str) -> Step {
        let style = ProgressStyle::with_template("{spinner} {prefix:.bold} {wide_msg} {elapsed}");
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Step { name: name.to_owned(), bar, progress: self.clone() }
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.bars.suspend(|| println!("{line}"));
    }
}

/// One task and the step it is at.
pub(crate) struct Step {
    name: String,
    bar: ProgressBar,
    progress: Progress,
}

impl Step {
    /// Names what is being done now.
    pub(crate) fn now(&self, doing: &str) {
        self.bar.set_message(doing.to_owned());
        if !self.progress.terminal {
            let seconds = self.progress.start.elapsed().as_secs_f32();
            println!("[{seconds:7.1} s] {}: {doing}", self.name);
        }
    }

    /// What was named last.
    pub(crate) fn doing(&self) -> String {
        self.bar.message()
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.progress.say(line);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
