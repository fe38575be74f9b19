//! The last words of the image: cause, registers, the last events, straight to the console ring;
//! then SHUTDOWN_crash. Used by panics, traps and `xl sysrq <domain> c`.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use core::time::Duration;

use super::hypercall::{Nr, hypercall, op};
use super::paging::shared_page;
use super::traps::{CR2, Frame, Shutdown, shutdown};
use super::{clock, console};
use crate::mem::SharedPage;
use crate::report;
use crate::units::{Instant, Port};

/// The longest that the epitaph waits for a console that does not drain.
const PATIENCE: Duration = Duration::from_secs(1);

const EVTCHNOP_SEND: u64 = 4;
const SCHEDOP_YIELD: u64 = 0;

static CONSOLE: AtomicUsize = AtomicUsize::new(0);
static CONSOLE_PORT: AtomicU32 = AtomicU32::new(0);
static SHARED_INFO: AtomicUsize = AtomicUsize::new(0);

/// Says where the console is, so that an epitaph can be written from anywhere from now on.
pub(super) fn prepare(console: &SharedPage, port: Port, shared_info: usize) {
    CONSOLE.store(console.base().addr().get(), Ordering::SeqCst);
    CONSOLE_PORT.store(port.0, Ordering::SeqCst);
    SHARED_INFO.store(shared_info, Ordering::SeqCst);
}

/// Prints the epitaph and crashes the domain.
pub fn epitaph(cause: impl fmt::Display, frame: Option<&Frame>) -> ! {
    if CONSOLE.load(Ordering::SeqCst) == 0 {
        shutdown(Shutdown::Crash);
    }
    let mut console = DirectConsole::new();
    // Writing to the console ring cannot fail, and nobody is left to tell.
    let _ = write_all(&mut console, &cause, frame);
    shutdown(Shutdown::Crash)
}

fn write_all(out: &mut DirectConsole, cause: &dyn fmt::Display, frame: Option<&Frame>) -> fmt::Result {
    writeln!(out, "\nepitaph: {cause}")?;
    if let Some(frame) = frame {
        writeln!(out, "{} (vector {}, error code {:#x})", frame.name(), frame.vector, frame.error_code)?;
        writeln!(out, "cr2 {:016x}", out.shared_info.read_u64(CR2))?;
        writeln!(out, "rip {:016x} rsp {:016x} rflags {:016x}", frame.rip, frame.rsp, frame.rflags)?;
        for (index, (name, value)) in frame.named().enumerate() {
            write!(out, "{name:>3} {value:016x}{}", if index % 4 == 3 { '\n' } else { ' ' })?;
        }
        writeln!(out)?;
    }
    writeln!(out, "last events:")?;
    report::last_lines(&mut |line| out.write(line));
    writeln!(out, "end of epitaph")
}

/// Writes to the console ring and gives the other end some time when the ring is full.
struct DirectConsole {
    ring: SharedPage,
    shared_info: SharedPage,
    give_up: Instant,
}

impl DirectConsole {
    fn new() -> Self {
        let shared_info = shared_page(SHARED_INFO.load(Ordering::SeqCst));
        let give_up = clock::now(&shared_info) + PATIENCE;
        Self { ring: shared_page(CONSOLE.load(Ordering::SeqCst)), shared_info, give_up }
    }
}

impl Write for DirectConsole {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

impl DirectConsole {
    fn write(&mut self, text: &[u8]) {
        let mut rest = text;
        loop {
            rest = &rest[console::write(&self.ring, rest)..];
            let mut port = CONSOLE_PORT.load(Ordering::SeqCst);
            // SAFETY: the structure of EVTCHNOP_send is one port.
            let _ = unsafe { op(Nr::EventChannelOp, EVTCHNOP_SEND, &mut port, "EVTCHNOP_send") };
            if rest.is_empty() || clock::now(&self.shared_info) > self.give_up {
                return;
            }
            // SAFETY: takes no argument.
            unsafe { hypercall(Nr::SchedOp, [SCHEDOP_YIELD, 0, 0, 0]) };
        }
    }
}
