//! An input taken apart from the front. What is missing at its end is zero, so that a shorter input
//! is a simpler one, and no input is refused.

use platter::wire::xenbus::StoreError;

/// The rest of an input.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether there is nothing more to come but zeroes.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many bytes, or fewer at the end.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub(crate) fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of these, of which there is one at least.
    pub(crate) fn choose<'c, T>(&mut self, from: &'c [T]) -> &'c T {
        &from[usize::from(self.byte()) % from.len()]
    }

    /// Text of up to 255 bytes, as far as it is UTF-8.
    pub(crate) fn text(&mut self) -> &'a str {
        let length = usize::from(self.byte());
        self.bytes(length).utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }
}

/// One of the ways in which xenstore fails.
pub(crate) fn store_error(choice: u8) -> StoreError {
    use StoreError::{Again, Denied, Gone, Malformed, NotFound, Other, Quota, TooLong};
    [NotFound, Denied, Quota, Again, TooLong, Malformed, Gone, Other][usize::from(choice % 8)]
}
