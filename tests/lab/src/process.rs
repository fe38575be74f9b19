//! Running the host's programs: every failure says which command it was and what it printed last.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end and gives its standard output.
///
/// # Errors
/// It cannot be started, or ends with another code than 0: the error carries the command line and what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let result =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", line(command)))?;
    check(command, &result)?;
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// Runs `program` with `input` on its standard input and gives its standard output.
///
/// # Errors
/// As [`output`].
pub(crate) fn pipe(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("no pipe to the child")?;
    let result = std::thread::scope(|scope| {
        // A child that ends early closes the pipe: its own error is the one worth telling.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output()
    })?;
    check(&command, &result)?;
    Ok(result.stdout)
}

/// The last `count` lines of a text.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn check(command: &Command, result: &Output) -> Result<()> {
    if !result.status.success() {
        let said = String::from_utf8_lossy(&result.stderr) + String::from_utf8_lossy(&result.stdout);
        bail!("{} failed ({}):\n{}", line(command), result.status, tail(&said, 20));
    }
    Ok(())
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo out; echo why >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("sh -c echo out;"), "{error}");
        assert!(error.contains("why") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn input_larger_than_a_pipe_goes_through() {
        let input = vec![7_u8; 1 << 20];
        assert_eq!(pipe("cat", &[], &input).unwrap(), input);
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }
}
