//! Memory that others write while we look at it: guests' rings, xenstored's, a controller's
//! queues. Reads and writes are volatile, whole, and bounds-checked; there are no references into
//! such memory. The first of the two places where `unsafe` is allowed (the other is `platform`).
//! Beside it, [`private`]: pages that are ours alone, with values in them.
//!
//! With the feature `sim` and debug assertions every access first calls a hook, so that simulated peers can act
//! *between* any two accesses. Without the assertions, an access costs what it costs in the image.

#[cfg(any(test, feature = "sim"))]
pub mod frame;
#[cfg(feature = "sim")]
pub mod hook;
pub mod private;

use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

use crate::units::PAGE_SIZE;

/// One page that somebody else may read and write at any moment.
#[derive(Debug)]
pub struct SharedPage {
    base: NonNull<u8>,
}

// SAFETY: every access is volatile and whole; a page that others write anyway may change hands.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// The page at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned, and [`PAGE_SIZE`] bytes from it stay mapped readable and writable
    /// for as long as this value lives, with no reference to them anywhere.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base }
    }

    /// Where the page is mapped.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Reads a byte.
    #[must_use]
    pub fn read_u8(&self, offset: usize) -> u8 {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u8>(offset).read_volatile() }
    }

    /// Reads a 16-bit little-endian number in one access.
    #[must_use]
    pub fn read_u16(&self, offset: usize) -> u16 {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u16>(offset).read_volatile() }
    }

    /// Reads a 32-bit little-endian number in one access.
    #[must_use]
    pub fn read_u32(&self, offset: usize) -> u32 {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u32>(offset).read_volatile() }
    }

    /// Reads a 64-bit little-endian number in one access.
    #[must_use]
    pub fn read_u64(&self, offset: usize) -> u64 {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u64>(offset).read_volatile() }
    }

    /// Writes a byte.
    pub fn write_u8(&self, offset: usize, value: u8) {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u8>(offset).write_volatile(value) }
    }

    /// Writes a 16-bit little-endian number in one access.
    pub fn write_u16(&self, offset: usize, value: u16) {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u16>(offset).write_volatile(value) }
    }

    /// Writes a 32-bit little-endian number in one access.
    pub fn write_u32(&self, offset: usize, value: u32) {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u32>(offset).write_volatile(value) }
    }

    /// Writes a 64-bit little-endian number in one access.
    pub fn write_u64(&self, offset: usize, value: u64) {
        // SAFETY: `place` checks bounds and alignment; `new`'s caller keeps the page mapped.
        unsafe { self.place::<u64>(offset).write_volatile(value) }
    }

    /// Copies bytes out, each read once.
    #[inline]
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        let words = if offset.is_multiple_of(8) { to.len() / 8 } else { 0 };
        let (head, tail) = to.split_at_mut(words * 8);
        for (i, word) in head.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.read_u64(offset + i * 8).to_le_bytes());
        }
        for (i, byte) in tail.iter_mut().enumerate() {
            *byte = self.read_u8(offset + words * 8 + i);
        }
    }

    /// Copies bytes in.
    #[inline]
    pub fn write_bytes(&self, offset: usize, from: &[u8]) {
        let words = if offset.is_multiple_of(8) { from.len() / 8 } else { 0 };
        let (head, tail) = from.split_at(words * 8);
        for (i, word) in head.chunks_exact(8).enumerate() {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            self.write_u64(offset + i * 8, u64::from_le_bytes(bytes));
        }
        for (i, byte) in tail.iter().enumerate() {
            self.write_u8(offset + words * 8 + i, *byte);
        }
    }

    /// Sets the whole page to zero.
    pub fn clear(&self) {
        for offset in (0..PAGE_SIZE).step_by(8) {
            self.write_u64(offset, 0);
        }
    }

    fn place<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(offset.is_multiple_of(size) && offset <= PAGE_SIZE - size, "access outside a shared page");
        #[cfg(all(feature = "sim", debug_assertions))]
        hook::touched(self.base, offset);
        self.base.as_ptr().wrapping_add(offset).cast()
    }
}

/// Orders everything before it against everything after it, writes against later reads included:
/// after arming an event index, before looking at the producer again.
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}

/// Orders reads before it against accesses after it: after reading a producer index, before
/// reading what it published.
pub fn read_barrier() {
    fence(Ordering::Acquire);
}

/// Orders accesses before it against writes after it: after writing entries, before the index
/// that publishes them.
pub fn write_barrier() {
    fence(Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::frame::Frame;
    use super::*;

    #[test]
    fn bytes_go_where_they_are_sent_and_nowhere_else() {
        let bytes: [u8; 24] = core::array::from_fn(|i| i as u8);
        for offset in (0..9).chain(PAGE_SIZE - 25..PAGE_SIZE) {
            for length in [0, 1, 7, 8, 9, 16, 24].into_iter().filter(|length| offset + length <= PAGE_SIZE) {
                let frame = Frame::new();
                frame.shared().write_bytes(offset, &bytes[..length]);
                let (mut page, mut expected) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
                frame.read(0, &mut page);
                expected[offset..offset + length].copy_from_slice(&bytes[..length]);
                assert!(page == expected, "{length} at {offset}");
                let mut back = [0xff; 24];
                frame.shared().read_bytes(offset, &mut back[..length]);
                assert_eq!(back[..length], bytes[..length], "{length} at {offset}");
            }
        }
    }

    #[test]
    fn a_number_of_any_width_lies_inside_the_page_or_is_not_touched() {
        let page = Frame::new().shared();
        let accesses: [(usize, &dyn Fn(usize)); 8] = [
            (1, &|at| page.write_u8(at, 1)),
            (2, &|at| page.write_u16(at, 1)),
            (4, &|at| page.write_u32(at, 1)),
            (8, &|at| page.write_u64(at, 1)),
            (1, &|at| _ = page.read_u8(at)),
            (2, &|at| _ = page.read_u16(at)),
            (4, &|at| _ = page.read_u32(at)),
            (8, &|at| _ = page.read_u64(at)),
        ];
        for (width, access) in accesses {
            for offset in (0..16).chain(PAGE_SIZE - 16..PAGE_SIZE + 16).chain([usize::MAX - 7, usize::MAX]) {
                let is_inside = offset.is_multiple_of(width) && offset < PAGE_SIZE;
                let access = core::panic::AssertUnwindSafe(|| access(offset));
                assert_eq!(std::panic::catch_unwind(access).is_ok(), is_inside, "{width} at {offset}");
            }
        }
    }
}
