//! System time from the page Xen updates (xen.h, `struct vcpu_time_info`): the TSC, scaled.

use core::arch::x86_64::_rdtsc;

use crate::mem::{SharedPage, read_barrier};
use crate::units::Instant;

/// Offset of vCPU 0's time information in shared_info.
const TIME: usize = 32;

/// The time now.
pub(super) fn now(shared_info: &SharedPage) -> Instant {
    // SAFETY: the instruction is there; where `tsc_mode` has it trapped, Xen does it for us.
    let tsc = unsafe { _rdtsc() };
    at(shared_info, tsc)
}

/// The time at which the TSC read `tsc`.
pub(super) fn at(shared_info: &SharedPage, tsc: u64) -> Instant {
    loop {
        let version = shared_info.read_u32(TIME);
        read_barrier();
        let stamp = shared_info.read_u64(TIME + 8);
        let system = shared_info.read_u64(TIME + 16);
        let mul = shared_info.read_u32(TIME + 24);
        let shift = shared_info.read_u8(TIME + 28).cast_signed();
        read_barrier();
        // Odd while Xen updates it. Xen finishes its update before we run again.
        if version.is_multiple_of(2) && shared_info.read_u32(TIME) == version {
            return Instant(scale(tsc, stamp, system, mul, shift));
        }
    }
}

fn scale(tsc: u64, stamp: u64, system: u64, mul: u32, shift: i8) -> u64 {
    let magnitude = |ticks: u64| {
        let shifted = if shift >= 0 { ticks << shift } else { ticks >> shift.unsigned_abs() };
        ((u128::from(shifted) * u128::from(mul)) >> 32) as u64
    };
    // The stamp may be ahead of a TSC read before it, and either may have wrapped: Xen shifts the
    // TSC by an offset of the domain's own, which can put the stamp below zero.
    match tsc.wrapping_sub(stamp).cast_signed() {
        ahead @ 0.. => system.saturating_add(magnitude(ahead.unsigned_abs())),
        behind => system.saturating_sub(magnitude(behind.unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn a_gigahertz_and_a_half() {
        // 1.5 GHz: a tick is 2/3 ns; mul is a 0.32 fixed-point factor.
        let mul = ((2u64 << 32) / 3) as u32;
        assert_eq!(scale(1_000_003_000, 1_000_000_000, 7_000, mul, 0), 7_000 + 1_999);
        assert_eq!(scale(1_000_000_000, 1_000_003_000, 7_000, mul, 0), 7_000 - 1_999);
    }

    #[test]
    fn a_stamp_below_zero_is_in_the_past() {
        let stamp = 0u64.wrapping_sub(1_000);
        assert_eq!(scale(2_000, stamp, 5_000, 1 << 31, 1), 5_000 + 3_000);
        assert_eq!(scale(stamp, 2_000, 5_000, 1 << 31, 1), 5_000 - 3_000);
    }

    #[test]
    fn shifts_both_ways() {
        assert_eq!(scale(1_016, 1_000, 0, 1 << 31, 1), 16);
        assert_eq!(scale(1_016, 1_000, 0, 1 << 31, -1), 4);
    }
}
