//! Event channels, two-level ABI, and sleep (xen/include/public/event_channel.h, sched.h).
//!
//! The upcall mask stays set: nothing ever runs in interrupt context. Pending ports are found by
//! scanning; SCHEDOP_block alone lifts the mask, checks for pending events under it and delivers
//! one empty upcall on its way back. So there is no limit on ports and no wake-up is lost.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::hypercall::{self, Nr, hypercall, op};
use crate::hal::HypervisorError;
use crate::mem::SharedPage;
use crate::units::{DomId, Instant, Pirq, Port};

const BIND_INTERDOMAIN: u64 = 0;
const BIND_VIRQ: u64 = 1;
const BIND_PIRQ: u64 = 2;
const CLOSE: u64 = 3;
const SEND: u64 = 4;
const ALLOC_UNBOUND: u64 = 6;
const UNMASK: u64 = 9;

const VIRQ_TIMER: u32 = 0;
const VCPUOP_STOP_PERIODIC_TIMER: u64 = 7;
/// `DOMID_SELF`.
const SELF: u16 = 0x7ff0;

/// Offsets in shared_info.
const UPCALL_PENDING: usize = 0;
const UPCALL_MASK: usize = 1;
const PENDING_SELECTOR: usize = 8;
const PENDING: usize = 2048;
const MASK: usize = 2560;
const WORDS: usize = 64;

#[repr(C)]
struct BindInterdomain {
    remote_dom: u16,
    remote_port: u32,
    local_port: u32,
}

#[repr(C)]
struct BindVirq {
    virq: u32,
    vcpu: u32,
    port: u32,
}

#[repr(C)]
struct BindPirq {
    pirq: u32,
    flags: u32,
    port: u32,
}

#[repr(C)]
struct AllocUnbound {
    dom: u16,
    remote_dom: u16,
    port: u32,
}

/// The ports of this domain.
pub(super) struct Ports {
    shared_info: SharedPage,
    timer: Port,
    /// When the timer will fire, if it is set.
    timer_at: Option<Instant>,
    /// Words of the pending bitmap still to be looked at in this scan.
    selected: u64,
    /// The word being looked at, and its bits still to be handed out.
    word: usize,
    bits: u64,
}

impl Ports {
    /// Masks every port, stops the periodic timer, and binds our own.
    ///
    /// # Errors
    /// Xen refused.
    pub(super) fn new(shared_info: SharedPage) -> Result<Self, HypervisorError> {
        for word in 0..WORDS {
            shared_info.write_u64(MASK + word * 8, u64::MAX);
        }
        // SAFETY: takes no argument; the first vCPU is number 0.
        unsafe { hypercall(Nr::VcpuOp, [VCPUOP_STOP_PERIODIC_TIMER, 0, 0, 0]) };
        let mut ports = Self { shared_info, timer: Port(0), timer_at: None, selected: 0, word: 0, bits: 0 };
        let mut bind = BindVirq { virq: VIRQ_TIMER, vcpu: 0, port: 0 };
        event_op(BIND_VIRQ, &mut bind, "EVTCHNOP_bind_virq")?;
        ports.timer = ports.open(Port(bind.port))?;
        Ok(ports)
    }

    pub(super) fn shared_info(&self) -> &SharedPage {
        &self.shared_info
    }

    /// Lets a bound port become pending.
    pub(super) fn open(&self, port: Port) -> Result<Port, HypervisorError> {
        event_op(UNMASK, &mut port.0.clone(), "EVTCHNOP_unmask")?;
        Ok(port)
    }

    pub(super) fn bind_interdomain(&self, peer: DomId, remote: Port) -> Result<Port, HypervisorError> {
        let mut bind = BindInterdomain { remote_dom: peer.0, remote_port: remote.0, local_port: 0 };
        event_op(BIND_INTERDOMAIN, &mut bind, "EVTCHNOP_bind_interdomain")?;
        self.open(Port(bind.local_port))
    }

    pub(super) fn alloc_unbound(&self, peer: DomId) -> Result<Port, HypervisorError> {
        let mut alloc = AllocUnbound { dom: SELF, remote_dom: peer.0, port: 0 };
        event_op(ALLOC_UNBOUND, &mut alloc, "EVTCHNOP_alloc_unbound")?;
        self.open(Port(alloc.port))
    }

    pub(super) fn bind_pirq(&self, pirq: Pirq) -> Result<Port, HypervisorError> {
        let mut bind = BindPirq { pirq: pirq.0, flags: 0, port: 0 };
        event_op(BIND_PIRQ, &mut bind, "EVTCHNOP_bind_pirq")?;
        self.open(Port(bind.port))
    }

    pub(super) fn close(&mut self, port: Port) {
        let (word, bit) = place(port);
        self.bitmap(MASK, word).fetch_or(bit, Ordering::SeqCst);
        self.bitmap(PENDING, word).fetch_and(!bit, Ordering::SeqCst);
        if self.word == word {
            self.bits &= !bit;
        }
        event_op(CLOSE, &mut port.0.clone(), "EVTCHNOP_close").expect("a port of ours can be closed");
    }

    pub(super) fn notify(&self, port: Port) {
        // A peer that has gone makes this fail or do nothing; either way there is nobody to tell.
        let _ = event_op(SEND, &mut port.0.clone(), "EVTCHNOP_send");
    }

    /// Takes one pending port.
    pub(super) fn next_pending(&mut self) -> Option<Port> {
        loop {
            if self.bits != 0 {
                let index = self.bits.trailing_zeros();
                let bit = 1 << index;
                self.bits &= !bit;
                self.bitmap(PENDING, self.word).fetch_and(!bit, Ordering::SeqCst);
                let port = Port(self.word as u32 * 64 + index);
                if port != self.timer {
                    return Some(port);
                }
                self.timer_at = None;
            } else if self.selected != 0 {
                self.word = self.selected.trailing_zeros() as usize;
                self.selected &= self.selected - 1;
                let masked = self.bitmap(MASK, self.word).load(Ordering::SeqCst);
                self.bits = self.bitmap(PENDING, self.word).load(Ordering::SeqCst) & !masked;
            } else {
                // Cleared before the selector is read: an event after this sets it again.
                self.byte(UPCALL_PENDING).store(0, Ordering::SeqCst);
                self.selected = self.selector().swap(0, Ordering::SeqCst);
                if self.selected == 0 {
                    return None;
                }
            }
        }
    }

    /// Sleeps until something is pending or the deadline has passed. The timer is set again only
    /// when it has to fire earlier: one that fires too early costs less than a hypercall a sleep.
    pub(super) fn block(&mut self, deadline: Option<Instant>) {
        if let Some(deadline) = deadline
            && self.timer_at.is_none_or(|at| deadline < at)
        {
            // SAFETY: the argument is a time.
            unsafe { hypercall(Nr::SetTimerOp, [deadline.0.max(1), 0, 0, 0]) };
            self.timer_at = Some(deadline);
        }
        // SAFETY: shared_info is mapped for good, and this is the first processor's mask in it.
        unsafe { hypercall::block(self.byte(UPCALL_MASK).as_ptr()) };
    }

    /// Whether upcalls are masked, as they are but for sleeps.
    pub(super) fn are_upcalls_masked(&self) -> bool {
        self.byte(UPCALL_MASK).load(Ordering::SeqCst) != 0
    }

    fn bitmap(&self, start: usize, word: usize) -> &AtomicU64 {
        self.atomic_u64(start + word % WORDS * 8)
    }

    fn selector(&self) -> &AtomicU64 {
        self.atomic_u64(PENDING_SELECTOR)
    }

    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        let place = self.shared_info.base().as_ptr().wrapping_add(offset).cast();
        // SAFETY: shared_info is mapped for good, the offset is aligned and inside it, and Xen
        // only ever changes it atomically.
        unsafe { AtomicU64::from_ptr(place) }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        let place = self.shared_info.base().as_ptr().wrapping_add(offset);
        // SAFETY: as above, for a byte.
        unsafe { AtomicU8::from_ptr(place) }
    }
}

fn place(port: Port) -> (usize, u64) {
    ((port.0 / 64) as usize % WORDS, 1 << (port.0 % 64))
}

fn event_op<T>(cmd: u64, arg: &mut T, name: &'static str) -> Result<i64, HypervisorError> {
    // SAFETY: each caller passes the structure of its command; nothing else is read or written.
    unsafe { op(Nr::EventChannelOp, cmd, arg, name) }
}
