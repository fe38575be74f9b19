//! `cargo lab shell`: the control domain's console under the user's hands, with platter running.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::image;
use crate::machine::{Controller, Daemon, Machine, Platter, Settings, Spec};
use crate::progress::Progress;
use crate::setup;

/// Ctrl-], as in telnet and `xl console`.
const LEAVE: u8 = 0x1d;

/// Sets everything up, boots the machine with platter, and joins the terminal to dom0's console.
///
/// # Errors
/// Something does not come up.
pub(crate) fn run(progress: &Progress, daemon: Daemon) -> Result<()> {
    setup::ensure(progress)?;
    image::build(progress)?;
    let step = progress.task("shell");
    step.now("booting Xen and dom0");
    let controllers = vec![Controller::PLATTER];
    let machine = Machine::boot(Spec { name: "shell".to_owned(), daemon, controllers, xen_options: "" })?;
    step.now("starting platter");
    let platter = Platter::create(&machine, Settings::usual())?;
    platter.wait_ready().map_err(|error| machine.explain(error))?;
    step.say(&format!("logs: {}", machine.run().folder().display()));
    step.say("dom0's console; platter's is in /var/log/xen/guest-platter.log; Ctrl-] ends the machine");
    drop(step);
    talk(&machine)
}

fn talk(machine: &Machine) -> Result<()> {
    let mut console = UnixStream::connect(machine.console_socket()).context("dom0's console")?;
    console.set_read_timeout(Some(Duration::from_millis(100)))?;
    let _raw = RawTerminal::enter()?;
    let left = Arc::new(AtomicBool::new(false));
    let (keys, gone) = (console.try_clone()?, Arc::clone(&left));
    // Never joined: it may wait for a key when the machine has ended already.
    std::thread::spawn(move || {
        forward_keys(keys);
        gone.store(true, Ordering::Relaxed);
    });
    console.write_all(b"\r")?;
    let mut buffer = [0_u8; 4096];
    while !left.load(Ordering::Relaxed) {
        match console.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                io::stdout().write_all(&buffer[..count])?;
                io::stdout().flush()?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Until [`LEAVE`], the end of input, or the end of the machine.
fn forward_keys(mut console: UnixStream) {
    let mut key = [0_u8; 1];
    while io::stdin().read(&mut key).is_ok_and(|count| count == 1) && key[0] != LEAVE {
        if console.write_all(&key).is_err() {
            return;
        }
    }
}

/// The terminal without echo, lines and signals; as it was again on drop.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing more can be done for a terminal that refuses.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
