//! The last lines of the log, oldest first out: what the console has not taken yet, and what an
//! epitaph repeats.

use core::fmt::Write;

use heapless::String;

use crate::limits;

/// The last bytes of the log, some of which the console still has to take.
pub(super) struct Buffer {
    bytes: [u8; limits::LOG],
    /// Bytes ever pushed: the next goes to this place, modulo the size.
    pushed: u64,
    /// Bytes of them that the console has taken, or that were lost.
    drained: u64,
    /// Lines lost since that was last said.
    pub(super) lost: u32,
    /// Whether the console has taken the beginning of a line only.
    in_line: bool,
    /// What is said of lost lines, and how much of that the console has taken.
    notice: String<32>,
    noticed: usize,
}

const _: () =
    assert!(limits::LOG.is_power_of_two() && limits::EPITAPH_LINES * limits::LOG_LINE < limits::LOG);

impl Buffer {
    pub(super) const fn new() -> Self {
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
    pub(super) fn push(&mut self, line: &[u8]) {
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

    pub(super) fn drain(&mut self, sink: &mut impl FnMut(&[u8]) -> usize) {
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

    pub(super) fn last_lines(&self, show: &mut impl FnMut(&[u8])) {
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
        format!("[12.000345] {text}\n")
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
}
