//! The image: from boot/xen.S into the event loop.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use platter::domain::{Domain, End, Tables, Turn};
use platter::hal::{Clock as _, Events as _};
use platter::options::Options;
use platter::platform::xen::{Frame, Shutdown, Xen, crash, epitaph, shutdown};
use platter::report;

core::arch::global_asm!(include_str!("../boot/xen.S"));

static TABLES: spin::Mutex<Tables> = spin::Mutex::new(Tables::new());

/// Entered from boot/xen.S with the address of start_info and the TSC at the first instruction.
#[unsafe(no_mangle)]
extern "C" fn platter_start(start_info: usize, tsc: u64) -> ! {
    // SAFETY: called once, by boot/xen.S, with what Xen passed.
    let (mut xen, given) = match unsafe { Xen::start(start_info, tsc) } {
        Ok(started) => started,
        Err(error) => epitaph(format_args!("cannot start: {error:?}"), None),
    };
    let options = Options::parse(&given.command_line);
    let started = xen.started();
    report::install(options.log, started);
    xen.now();
    log::info!("platter {} on {}", env!("CARGO_PKG_VERSION"), Xen::version());
    log::info!("memory: {}", xen.memory());
    for warning in options.warnings() {
        log::warn!("{warning}");
    }

    let mut tables = TABLES.lock();
    let mut domain = Domain::new(&mut tables, options, given.store, given.store_port, started);
    loop {
        match domain.turn(&mut xen) {
            Turn::Again => xen.alive(),
            Turn::Sleep(deadline) => xen.wait(deadline),
            Turn::End(end) => {
                log::debug!("{}", Xen::hypercalls());
                xen.flush_log();
                match end {
                    End::Crash => crash(),
                    End::Poweroff => shutdown(Shutdown::Poweroff),
                    End::Reboot => shutdown(Shutdown::Reboot),
                }
            }
        }
    }
}

/// Entered from boot/xen.S with what it saved.
#[unsafe(no_mangle)]
extern "C" fn platter_trap(frame: &Frame) -> ! {
    epitaph(frame.name(), Some(frame))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    epitaph(info, None)
}
