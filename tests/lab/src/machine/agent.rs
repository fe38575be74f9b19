//! The protocol of `roots/agent`, the hand that runs commands inside a domain: one line there, one line back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::{interrupt, process};

/// A terminal takes 4095 bytes a line (Linux N_TTY); longer scripts go through a shared file.
const LINE_MAX: usize = 4000;

/// What a command in a domain came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its exit code; 143 when its time was up.
    pub(crate) code: i32,
    /// Standard output and error together, without the last line end.
    pub(crate) text: String,
}

impl Answer {
    /// The text of a command that must succeed.
    ///
    /// # Errors
    /// The exit code is not 0: `who` and the command are named, with the last lines it printed.
    pub(crate) fn success(self, who: &str, script: &str) -> Result<String> {
        if self.code != 0 {
            bail!("in {who}, `{script}` ended with {}:\n{}", self.code, process::tail(&self.text, 12));
        }
        Ok(self.text)
    }
}

/// The line that asks for `script` to be run within `limit`.
pub(super) fn request(id: u32, limit: Duration, script: &str) -> Result<String> {
    let line = format!("{id} {} {}", limit.as_secs().max(1), BASE64.encode(script));
    if line.len() > LINE_MAX {
        bail!("a script of {} bytes is too long for the agent", script.len());
    }
    Ok(line)
}

/// The answer to request `id`, if it stands in `said` as a whole line.
pub(super) fn answer(said: &str, id: u32) -> Result<Option<Answer>> {
    let Some(complete) = said.rfind('\n') else { return Ok(None) };
    let prefix = format!("@lab {id} ");
    let Some(rest) = said[..complete].lines().find_map(|line| line.strip_prefix(&prefix)) else {
        return Ok(None);
    };
    let (code, text) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
    let text = BASE64.decode(text).with_context(|| format!("the agent's answer {id} is damaged"))?;
    let text = String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned();
    Ok(Some(Answer { code: code.parse().context("the agent's exit code is no number")?, text }))
}

/// Asks again and again until there is something, with a pause between.
///
/// # Errors
/// Nothing within `limit` (`what` says of what), the user interrupts, or `look` fails.
pub(crate) fn poll<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        interrupt::check()?;
        if start.elapsed() > limit {
            bail!("{what}: nothing within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line() {
        let line = request(7, Duration::from_secs(20), "echo a\necho b").unwrap();
        assert_eq!(line, "7 20 ZWNobyBhCmVjaG8gYg==");
        assert!(request(7, Duration::from_secs(20), &"x".repeat(4000)).is_err());
    }

    #[test]
    fn an_answer_is_found_among_other_lines() {
        let said = "noise\r\n@lab 6 0 eA==\r\n@lab 7 3 aGkKCg==\r\n";
        assert_eq!(answer(said, 7).unwrap(), Some(Answer { code: 3, text: "hi".to_owned() }));
        assert_eq!(answer("@lab 8 0 \r\n", 8).unwrap(), Some(Answer { code: 0, text: String::new() }));
    }

    #[test]
    fn half_an_answer_is_none_and_a_damaged_one_an_error() {
        assert_eq!(answer("@lab 7 0 aGkKC", 7).unwrap(), None);
        assert_eq!(answer("@lab 70 0 aGk=\n", 7).unwrap(), None);
        assert!(answer("@lab 7 0 a[ 1.5] oops\n", 7).is_err());
    }

    #[test]
    fn a_failure_names_domain_command_and_output() {
        let answer = Answer { code: 1, text: "no such thing".to_owned() };
        let error = answer.success("dom0", "xl create").unwrap_err().to_string();
        assert_eq!(error, "in dom0, `xl create` ended with 1:\nno such thing");
    }

    #[test]
    fn polling_ends_with_what_was_awaited() {
        let error = poll::<()>("a light", Duration::ZERO, || Ok(None)).unwrap_err().to_string();
        assert_eq!(error, "a light: nothing within 0 s");
    }
}
