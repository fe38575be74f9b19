//! What happens in a storm, and when: drawn from its seed before it begins.

use core::time::Duration;

use platter::sim::lending::Manner;
use platter::sim::rng::Rng;

/// One thing that an administrator, a guest or the hardware does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// `xl create` with that many disks.
    Create {
        disks: usize,
    },
    /// `xl block-attach`.
    Attach {
        readonly: bool,
    },
    /// `xl block-attach` of a target that does not exist.
    AttachNothing,
    /// `xl block-attach` with `format=qcow2`.
    AttachQcow,
    /// `xl block-attach` to the control domain.
    AttachDom0,
    /// `xl block-detach`.
    Detach {
        force: bool,
    },
    /// The same a second time, while the first is under way.
    DetachTwice,
    /// `xl block-detach` and `xl block-attach` of one device, so often.
    BackToBack {
        times: u32,
    },
    /// The device's directories are removed and made anew in one transaction.
    Replace,
    /// `xl destroy`, or a crash.
    Destroy,
    /// The guest closes its disks and ends.
    ShutDown,
    Reboot,
    /// `xl save` and `xl restore`.
    Migrate,
    /// `xl save -c` of a guest that resumes as if it had been restored.
    Renew,
    /// The guest unloads its driver and loads it again.
    Reload,
    Kexec,
    /// The driver begins again without closing.
    Restart,
    /// The driver gives the device up with requests in flight, for good or not.
    Slam {
        reopens: bool,
    },
    /// `xl pause`, and `xl unpause` after so many milliseconds.
    Pause {
        full: bool,
        millis: u64,
    },
    /// `xl block-attach` of a disk that another guest may be writing to.
    AttachTaken,
    /// `xl pci-detach` of the controller that fails, and `xl pci-attach` a moment after.
    PciDetach {
        manner: Manner,
    },
    Fault(Fault),
    /// Nodes that we watch change again and again, and mean nothing.
    Uproar,
    /// Everything works again.
    Heal,
}

/// Something that goes wrong from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Errors,
    LostInterrupts,
    Doubled,
    Invented,
    Unanswered,
    /// Errors that a retry can mend.
    Busy,
    /// One that only a reset mends.
    Fatal,
    /// Nothing is answered, and nothing stops the controller but Xen.
    Stuck,
    /// Commands take up to seconds.
    Slow,
    /// A fatal error, and resets that come to nothing.
    Lame,
    /// The controller is gone from its bus.
    Gone,
    Maps,
    Conflicts,
    Quota,
}

impl Event {
    /// Whether requests may take longer after it than libxl has patience.
    pub(crate) const fn stalls(self) -> bool {
        self.breaks() || matches!(self, Self::Fault(Fault::Unanswered | Fault::Fatal | Fault::Slow))
    }

    /// Whether a controller may lose what was not flushed, and service until it is attached again.
    pub(crate) const fn breaks(self) -> bool {
        matches!(self, Self::PciDetach { .. } | Self::Fault(Fault::Stuck | Fault::Lame | Fault::Gone))
    }
}

/// An event, when it happens, and the number that decides to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cue {
    pub(crate) at: Duration,
    pub(crate) event: Event,
    pub(crate) pick: u64,
}

/// Up to thirty events: often at once or nearly so, sometimes with pauses for things to end.
pub(crate) fn script(rng: &mut Rng) -> Vec<Cue> {
    let mut at = Duration::from_millis(rng.within(0..700));
    let mut cues = Vec::new();
    for _ in 0..rng.within(5..31) {
        cues.push(Cue { at, event: event(rng), pick: rng.bits() });
        at += match rng.index(8) {
            0 | 1 => Duration::ZERO,
            2 | 3 => Duration::from_micros(rng.within(1..5_000)),
            4..7 => Duration::from_millis(rng.within(1..500)),
            _ => Duration::from_millis(rng.within(500..4_000)),
        };
    }
    cues.push(Cue { at, event: Event::Heal, pick: 0 });
    cues
}

fn event(rng: &mut Rng) -> Event {
    match rng.index(36) {
        0..3 => Event::Create { disks: 1 + rng.index(3) },
        3..6 => Event::Attach { readonly: rng.one_in(4) },
        6 => Event::AttachNothing,
        7 => Event::AttachQcow,
        8 => Event::AttachDom0,
        9 | 10 => Event::Detach { force: false },
        11 => Event::Detach { force: true },
        12 => Event::DetachTwice,
        13 => Event::BackToBack { times: 1 + rng.index(4) as u32 },
        14 => Event::Replace,
        15 | 16 => Event::Destroy,
        17 => Event::ShutDown,
        18 => Event::Reboot,
        19 => Event::Migrate,
        20 => Event::Renew,
        21 => Event::Reload,
        22 => Event::Kexec,
        23 => Event::Restart,
        24 => Event::Slam { reopens: rng.one_in(2) },
        25 => Event::Pause { full: rng.one_in(2), millis: rng.within(1..3_000) },
        26..32 => Event::Fault(fault(rng)),
        32 => Event::Uproar,
        33 => Event::AttachTaken,
        34 => Event::PciDetach { manner: [Manner::Reset, Manner::CutOff, Manner::Announced][rng.index(3)] },
        _ => Event::Heal,
    }
}

fn fault(rng: &mut Rng) -> Fault {
    const FAULTS: [Fault; 14] = [
        Fault::Errors,
        Fault::LostInterrupts,
        Fault::Doubled,
        Fault::Invented,
        Fault::Unanswered,
        Fault::Busy,
        Fault::Fatal,
        Fault::Stuck,
        Fault::Slow,
        Fault::Lame,
        Fault::Gone,
        Fault::Maps,
        Fault::Conflicts,
        Fault::Quota,
    ];
    FAULTS[rng.index(FAULTS.len())]
}
