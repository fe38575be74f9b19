//! Hypercalls of a 64-bit PV guest (xen/include/public/arch-x86/xen-x86_64.h): `syscall` with the
//! number in rax, arguments in rdi, rsi, rdx, r10; rcx and r11 are lost.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::hal::HypervisorError;

/// Hypercall numbers (xen.h, `__HYPERVISOR_*`).
#[derive(Clone, Copy)]
pub(super) enum Nr {
    SetTrapTable = 0,
    MmuUpdate = 1,
    UpdateVaMapping = 14,
    SetTimerOp = 15,
    XenVersion = 17,
    GrantTableOp = 20,
    VcpuOp = 24,
    SchedOp = 29,
    CallbackOp = 30,
    EventChannelOp = 32,
}

impl Nr {
    const ALL: [Self; 10] = [
        Self::SetTrapTable,
        Self::MmuUpdate,
        Self::UpdateVaMapping,
        Self::SetTimerOp,
        Self::XenVersion,
        Self::GrantTableOp,
        Self::VcpuOp,
        Self::SchedOp,
        Self::CallbackOp,
        Self::EventChannelOp,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::SetTrapTable => "set_trap_table",
            Self::MmuUpdate => "mmu_update",
            Self::UpdateVaMapping => "update_va_mapping",
            Self::SetTimerOp => "set_timer_op",
            Self::XenVersion => "xen_version",
            Self::GrantTableOp => "grant_table_op",
            Self::VcpuOp => "vcpu_op",
            Self::SchedOp => "sched_op",
            Self::CallbackOp => "callback_op",
            Self::EventChannelOp => "event_channel_op",
        }
    }
}

/// Hypercalls made, by number.
static COUNTS: [AtomicU64; 34] = [const { AtomicU64::new(0) }; 34];

/// How many hypercalls of each kind were made so far.
pub(super) fn counts() -> impl Iterator<Item = (&'static str, u64)> {
    Nr::ALL.into_iter().map(|nr| (nr.name(), COUNTS[nr as usize].load(Ordering::Relaxed)))
}

/// One hypercall.
///
/// There is no `nostack` here: Xen writes its upcall frame right below rsp, so the compiler must
/// not keep anything in a red zone across it.
///
/// # Safety
/// The arguments are what that hypercall expects; memory they point to is valid for what Xen reads
/// and writes there, and nothing Xen changes by it (page tables, grants) is relied upon otherwise.
pub(super) unsafe fn hypercall(nr: Nr, args: [u64; 4]) -> i64 {
    count(nr);
    let result: i64;
    // SAFETY: the caller vouches for the arguments; registers that Xen may change are declared.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr as u64 => result,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            lateout("r8") _, lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// Sleeps until an event is pending (sched.h, `SCHEDOP_block`). Xen lifts the upcall mask for that, and sets it again as it
/// delivers the upcall; but there are wake-ups without one (an NMI from dom0), so it is set here too, before anything
/// else runs that the upcall would disturb.
///
/// # Safety
/// `mask` is this processor's upcall mask (`evtchn_upcall_mask` of its `vcpu_info`).
pub(super) unsafe fn block(mask: *mut u8) {
    const BLOCK: u64 = 1;
    count(Nr::SchedOp);
    // SAFETY: takes no argument; the upcall is boot's, and loses rcx, r11 and the flags, as the hypercall does.
    unsafe {
        asm!(
            "syscall",
            "mov byte ptr [{mask}], 1",
            mask = in(reg) mask,
            inout("rax") Nr::SchedOp as u64 => _,
            inout("rdi") BLOCK => _,
            inout("rsi") 0_u64 => _,
            out("rdx") _, out("r10") _, out("r8") _, out("rcx") _, out("r11") _,
        );
    }
}

fn count(nr: Nr) {
    // One processor, so counting needs no atomic addition.
    let count = &COUNTS[nr as usize];
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A hypercall `op(cmd, &mut arg)`, as most are.
///
/// # Errors
/// The negative errno, under the operation's name.
///
/// # Safety
/// As for [`hypercall`]; `T` has the layout that the command expects.
pub(super) unsafe fn op<T>(
    nr: Nr,
    cmd: u64,
    arg: &mut T,
    name: &'static str,
) -> Result<i64, HypervisorError> {
    // SAFETY: `arg` is valid for reads and writes; the caller vouches for the rest.
    let code = unsafe { hypercall(nr, [cmd, core::ptr::from_mut(arg) as u64, 0, 0]) };
    if code < 0 { Err(HypervisorError { op: name, code }) } else { Ok(code) }
}
