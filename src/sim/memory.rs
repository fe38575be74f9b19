//! The machine's memory as page frames, and the IOMMU in front of it: which frames the driver
//! domain's devices may read or write at this instant.

use core::cell::RefCell;
use std::collections::BTreeMap;

use crate::mem::frame::Frame;
use crate::units::{BusAddr, Mfn, PAGE_SIZE};

/// Above 4 GiB, so that a bus address cut to 32 bits finds nothing.
const FIRST_MFN: u64 = 0x12_3456;

/// No two frames are neighbours: what runs over the end of a page is found.
const MFN_STEP: u64 = 2;

thread_local! {
    /// Frames of worlds that are gone: they are never freed, so the next world takes them.
    static SPARE: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

/// How many reasons there are to let devices at a frame.
#[derive(Clone, Copy, Default, Debug)]
struct Reach {
    read: u32,
    write: u32,
}

#[derive(Debug)]
struct Slot {
    frame: Frame,
    reach: Reach,
}

/// All frames, by machine frame number.
#[derive(Debug, Default)]
pub struct Memory {
    slots: BTreeMap<u64, Slot>,
    taken: u64,
}

impl Memory {
    /// A zeroed frame.
    pub fn take(&mut self) -> Mfn {
        let frame = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(Frame::new);
        frame.fill(0);
        let mfn = FIRST_MFN + MFN_STEP * self.taken;
        self.taken += 1;
        self.slots.insert(mfn, Slot { frame, reach: Reach::default() });
        Mfn(mfn)
    }

    /// Gives a frame back.
    ///
    /// # Panics
    /// When it is not in use.
    pub fn give_back(&mut self, mfn: Mfn) {
        let slot = self.slots.remove(&mfn.0).expect("a frame in use");
        SPARE.with_borrow_mut(|spare| spare.push(slot.frame));
    }

    /// The contents of a frame in use.
    ///
    /// # Panics
    /// When it is not in use.
    #[must_use]
    pub fn frame(&self, mfn: Mfn) -> Frame {
        self.slots.get(&mfn.0).expect("a frame in use").frame
    }

    /// One more reason to let devices read a frame, and write it when `write`.
    pub fn expose(&mut self, mfn: Mfn, write: bool) {
        if let Some(slot) = self.slots.get_mut(&mfn.0) {
            let count = if write { &mut slot.reach.write } else { &mut slot.reach.read };
            *count += 1;
        }
    }

    /// Takes such a reason back.
    ///
    /// # Panics
    /// When there was none.
    pub fn conceal(&mut self, mfn: Mfn, write: bool) {
        if let Some(slot) = self.slots.get_mut(&mfn.0) {
            let count = if write { &mut slot.reach.write } else { &mut slot.reach.read };
            *count = count.checked_sub(1).expect("each exposure is taken back once");
        }
    }

    /// The frame that a device reaches at `bus`, if it may.
    #[must_use]
    pub fn reach(&self, bus: BusAddr, write: bool) -> Option<Frame> {
        let slot = self.slots.get(&(bus.0 / PAGE_SIZE as u64))?;
        let allowed = slot.reach.write > 0 || (!write && slot.reach.read > 0);
        allowed.then_some(slot.frame)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let frames = core::mem::take(&mut self.slots).into_values().map(|slot| slot.frame);
        // No thread-local is left when the thread itself ends; then the frames are simply leaked.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().extend(frames));
    }
}

/// The bus address of a frame's first byte.
#[must_use]
pub const fn bus(mfn: Mfn) -> BusAddr {
    BusAddr(mfn.0 * PAGE_SIZE as u64)
}

/// The frame in which a bus address lies.
#[must_use]
pub const fn mfn(bus: BusAddr) -> Mfn {
    Mfn(bus.0 / PAGE_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reaches_a_frame_while_it_is_exposed_and_only_as_allowed() {
        let mut memory = Memory::default();
        let mfn = memory.take();
        let may = |memory: &Memory| (memory.reach(bus(mfn), false), memory.reach(bus(mfn), true));
        let frame = Some(memory.frame(mfn));
        assert_eq!(may(&memory), (None, None));
        memory.expose(mfn, false);
        assert_eq!(may(&memory), (frame, None));
        memory.expose(mfn, true);
        assert_eq!(may(&memory), (frame, frame));
        memory.conceal(mfn, true);
        assert_eq!(may(&memory), (frame, None));
        memory.conceal(mfn, false);
        assert_eq!(may(&memory), (None, None));
    }

    #[test]
    fn frames_that_are_taken_one_after_the_other_are_not_neighbours() {
        let mut memory = Memory::default();
        let (one, other) = (memory.take(), memory.take());
        memory.expose(one, true);
        memory.expose(other, true);
        assert!(memory.reach(bus(one).offset(4095), true).is_some());
        assert!(memory.reach(bus(one).offset(4096), true).is_none());
    }
}
