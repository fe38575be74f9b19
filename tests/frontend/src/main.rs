//! The image: from boot/xen.S into the suite, then power off.
#![no_std]
#![no_main]

use core::panic::PanicInfo;

use platter::platform::xen::{Frame, Shutdown, Xen, epitaph, shutdown};

core::arch::global_asm!(include_str!("../../../boot/xen.S"));
// Twice as much stack as platter's (linker/xen.ld): a check holds long lists of pages and requests.
core::arch::global_asm!(".globl image_stack_size", ".set image_stack_size, 256 * 1024");

/// Entered from boot/xen.S with the address of start_info and the TSC at the first instruction.
#[unsafe(no_mangle)]
extern "C" fn platter_start(start_info: usize, tsc: u64) -> ! {
    // SAFETY: called once, by boot/xen.S, with what Xen passed.
    let (xen, given) = match unsafe { Xen::start(start_info, tsc) } {
        Ok(started) => started,
        Err(error) => epitaph(format_args!("cannot start: {error:?}"), None),
    };
    platter_frontend::run(xen, given);
    shutdown(Shutdown::Poweroff)
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
