//! Traps: every one is fatal here. The handler prints an epitaph and ends the domain with
//! SHUTDOWN_crash, so that the toolstack's `on_crash` takes over. A stack overflow is the exception:
//! Xen cannot push its frame onto the unmapped guard page and ends the domain itself.

use core::arch::asm;

use super::hypercall::{Nr, hypercall, op};
use crate::hal::HypervisorError;

const SCHEDOP_SHUTDOWN: u64 = 2;
/// Offset of vCPU 0's `arch.cr2` in shared_info.
pub(super) const CR2: usize = 16;

unsafe extern "C" {
    static xen_trap_table: u8;
    fn xen_event_upcall();
    fn xen_failsafe();
}

/// Why a domain ends (sched.h, `SHUTDOWN_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// `on_poweroff`.
    Poweroff = 0,
    /// `on_reboot`.
    Reboot = 1,
    /// `on_crash`.
    Crash = 3,
}

/// What boot/xen.S saves at a trap: general registers, then the rest of Xen's frame.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// r15 down to r8, rbp, rdi, rsi, rdx, rcx, rbx, rax.
    pub registers: [u64; 15],
    /// Exception number; 256 for the failsafe callback.
    pub vector: u64,
    /// Zero where the exception has none.
    pub error_code: u64,
    /// Where it happened.
    pub rip: u64,
    /// Code selector.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack selector.
    pub ss: u64,
}

const NAMES: [&str; 15] =
    ["r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8", "rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax"];

impl Frame {
    /// Registers with their names.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.registers).rev()
    }

    /// The exception's name (Intel SDM volume 3, table 6-1).
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.vector {
            0 => "divide error",
            1 => "debug exception",
            3 => "breakpoint",
            4 => "overflow",
            5 => "bound range exceeded",
            6 => "invalid opcode",
            7 => "device not available",
            10 => "invalid TSS",
            11 => "segment not present",
            12 => "stack-segment fault",
            13 => "general protection fault",
            14 => "page fault",
            16 => "x87 floating-point error",
            17 => "alignment check",
            18 => "machine check",
            19 => "SIMD floating-point error",
            256 => "failsafe callback",
            _ => "unknown trap",
        }
    }
}

#[repr(C)]
struct CallbackRegister {
    kind: u16,
    flags: u16,
    address: u64,
}

/// Tells Xen where to enter us.
///
/// # Errors
/// Xen refused.
pub(super) fn install() -> Result<(), HypervisorError> {
    // SAFETY: boot's table is well-formed and ends with a zero handler.
    let code = unsafe { hypercall(Nr::SetTrapTable, [(&raw const xen_trap_table) as u64, 0, 0, 0]) };
    if code < 0 {
        return Err(HypervisorError { op: "set_trap_table", code });
    }
    for (kind, entry) in [(0, xen_event_upcall as *const ()), (1, xen_failsafe as *const ())] {
        let mut register = CallbackRegister { kind, flags: 0, address: entry as u64 };
        // SAFETY: the structure is CALLBACKOP_register's; the entries are boot's stubs.
        unsafe { op(Nr::CallbackOp, 0, &mut register, "CALLBACKOP_register") }?;
    }
    Ok(())
}

/// Crashes on purpose (`xl sysrq <domain> c`): a store to address 0, which is not mapped, so that
/// what follows is what follows on any wild pointer.
pub fn crash() -> ! {
    // SAFETY: the store traps, and the trap handler does not come back.
    unsafe { asm!("mov dword ptr [0], 0", "ud2", options(noreturn)) }
}

/// Ends the domain.
pub fn shutdown(reason: Shutdown) -> ! {
    let mut reason = reason as u32;
    loop {
        // SAFETY: the structure is one 32-bit reason. The call does not return.
        let _ = unsafe { op(Nr::SchedOp, SCHEDOP_SHUTDOWN, &mut reason, "SCHEDOP_shutdown") };
    }
}
