//! Host memory that stands for machine frames, for tests and the simulated world: what a real
//! machine has and safe Rust has not, a page that several parties look at at once.

use core::ptr::NonNull;
use std::boxed::Box;

use super::SharedPage;
use crate::units::PAGE_SIZE;

#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE]);

/// A page that is never freed, so that any number of [`SharedPage`]s may point to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame(NonNull<u8>);

impl Frame {
    /// A new zeroed page.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each call leaks a page, which a default must not")]
    pub fn new() -> Self {
        Self(NonNull::from(Box::leak(Box::new(Page([0; PAGE_SIZE])))).cast())
    }

    /// Where the page is mapped.
    #[must_use]
    pub fn base(self) -> NonNull<u8> {
        self.0
    }

    /// The page as the image's core sees it.
    #[must_use]
    pub fn shared(self) -> SharedPage {
        // SAFETY: the page was leaked, so it stays mapped, and no reference to it was kept.
        unsafe { SharedPage::new(self.0) }
    }

    /// Copies bytes out, as another processor or a device does: no hook runs.
    ///
    /// # Panics
    /// When the bytes are not all in the page.
    pub fn read(self, offset: usize, to: &mut [u8]) {
        assert!(offset <= PAGE_SIZE && to.len() <= PAGE_SIZE - offset, "read outside a frame");
        let from = self.0.as_ptr().wrapping_add(offset);
        // SAFETY: the bytes are in the leaked page, and nobody else can hold a reference to them.
        unsafe { core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    /// Copies bytes in, as another processor or a device does: no hook runs.
    ///
    /// # Panics
    /// When the bytes are not all in the page.
    pub fn write(self, offset: usize, from: &[u8]) {
        assert!(offset <= PAGE_SIZE && from.len() <= PAGE_SIZE - offset, "write outside a frame");
        let to = self.0.as_ptr().wrapping_add(offset);
        // SAFETY: the bytes are in the leaked page, and nobody else can hold a reference to them.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Reads a 32-bit little-endian number.
    #[must_use]
    pub fn read_u32(self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a 32-bit little-endian number.
    pub fn write_u32(self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Sets every byte of the page.
    pub fn fill(self, byte: u8) {
        self.write(0, &[byte; PAGE_SIZE]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_views_of_a_frame_are_one_page() {
        let frame = Frame::new();
        let (one, other) = (frame.shared(), frame.shared());
        one.write_u32(8, 0x1234_5678);
        assert_eq!(other.read_u32(8), 0x1234_5678);
        assert_eq!(frame.read_u32(8), 0x1234_5678);
        frame.fill(0xa5);
        assert_eq!(one.read_u8(PAGE_SIZE - 1), 0xa5);
    }
}
