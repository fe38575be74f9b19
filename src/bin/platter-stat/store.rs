//! xenstore, by the programs that Xen has for scripts: whichever daemon runs, they speak with it.

use std::io::ErrorKind;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The names below a node; none when it is not there.
///
/// # Errors
/// The program cannot be run.
pub(crate) fn list(path: &str) -> Result<Vec<String>> {
    let names = run("xenstore-list", &[path])?.unwrap_or_default();
    Ok(names.lines().map(str::to_owned).collect())
}

/// The values of some nodes, none of which has more than one line; nothing when one is not there.
///
/// # Errors
/// The program cannot be run.
pub(crate) fn read(paths: &[&str]) -> Result<Option<Vec<String>>> {
    let values = run("xenstore-read", paths)?;
    Ok(values.map(|values| values.split('\n').take(paths.len()).map(str::to_owned).collect()))
}

/// The value of one node; nothing when it is not there.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_one(path: &str) -> Result<Option<String>> {
    Ok(read(&[path])?.and_then(|values| values.into_iter().next()))
}

/// Writes a node.
///
/// # Errors
/// The program cannot be run, or may not write there.
pub(crate) fn write(path: &str, value: &str) -> Result<()> {
    run("xenstore-write", &[path, value])?.with_context(|| format!("cannot write {path} in xenstore"))?;
    Ok(())
}

/// What a program printed; nothing when it failed.
fn run(program: &str, arguments: &[&str]) -> Result<Option<String>> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no {program} here: run this in dom0, with Xen's xenstore-utils")
        }
        Err(error) => return Err(error).context(program.to_owned()),
    };
    if !output.status.success() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}
