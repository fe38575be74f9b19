//! `cargo lab shell`: the control domain's console under the user's hands, with platter running.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::machine::{self, Controller, Daemon, Disks, Machine, NAME, Platter, Settings, Spec};
use crate::progress::Progress;
use crate::{image, interrupt, setup};

/// Ctrl-\: Ctrl-] is `xl console`'s, which runs inside.
const LEAVE: u8 = 0x1c;
/// Guests that are ready to be created.
const GUESTS: [&str; 2] = ["alice", "bob"];

/// Sets everything up, boots the machine with platter, and joins the terminal to dom0's console.
///
/// # Errors
/// There is no terminal, or something does not come up.
pub(crate) fn run(progress: &Progress, daemon: Daemon) -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("the shell needs a terminal: its standard input is none");
    }
    setup::ensure(progress)?;
    image::build(progress)?;
    let step = progress.task("shell");
    step.now("booting Xen and dom0");
    let controllers = vec![Controller::PLATTER];
    let machine = Machine::boot(Spec {
        name: "shell".to_owned(),
        daemon,
        controllers,
        disks: Disks::Fresh,
        xen_options: "",
        processors: 1,
    })?;
    step.now("starting platter");
    let platter = Platter::create(&machine, Settings::usual())?;
    platter.wait_ready().map_err(|error| machine.explain(error))?;
    for guest in GUESTS {
        machine::offer_guest(&machine, guest)?;
    }
    drop(step);
    greet(&machine);
    talk(&machine)
}

fn greet(machine: &Machine) {
    println!("\nThis is dom0's console. Ctrl-\\ ends the machine; Ctrl-] leaves `xl console`.");
    println!("platter runs: `xl console {NAME}`, and /var/log/xen/guest-{NAME}.log has all it said.");
    println!("Once it has ended, this starts it again: xl create {}", Settings::usual().arguments());
    println!("Two Linux guests are ready to boot, and a disk for each:\n");
    for (guest, namespace) in GUESTS.iter().zip(1..) {
        let target = machine.disk(&Controller::PLATTER, namespace).target();
        println!("  xl create /share/{guest}.cfg");
        println!("  {}", machine::attach_command(guest, "xvdb", NAME, &target));
        println!("  xl console {guest}\n");
    }
    println!("logs: {}\n", machine.run().folder().display());
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
        interrupt::check()?;
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
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing more can be done for a terminal that refuses.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
