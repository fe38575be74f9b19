//! Pages that nobody else looks at, and values that live in them. What a device needs while it is
//! attached comes from the pool of pages this way, with its size known when it is taken.

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use crate::units::PAGE_SIZE;

/// A page that is ours alone. Its contents mean nothing.
#[derive(Debug)]
pub struct PrivatePage {
    base: NonNull<u8>,
}

// SAFETY: nobody but its owner reaches the page, so the owner may change.
unsafe impl Send for PrivatePage {}

impl PrivatePage {
    /// The page at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned, and [`PAGE_SIZE`] bytes from it stay mapped readable and writable
    /// for as long as this value, or what it was made into, lives; nothing else reads or writes
    /// them meanwhile.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base }
    }

    /// Where the page is mapped.
    #[must_use]
    pub const fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// A page of the host's memory, which is never freed.
    #[cfg(any(test, feature = "sim"))]
    #[must_use]
    pub fn leaked() -> Self {
        let base = super::frame::Frame::new().base();
        // SAFETY: the page was just leaked, and nobody else was told of it.
        unsafe { Self::new(base) }
    }
}

/// A value in a page of its own. Dropped, it leaks the page: [`PageBox::into_page`] gives it back.
#[derive(Debug)]
pub struct PageBox<T> {
    page: PrivatePage,
    value: PhantomData<T>,
}

impl<T> PageBox<T> {
    const FITS: () = assert!(size_of::<T>() <= PAGE_SIZE && align_of::<T>() <= PAGE_SIZE);

    /// Moves a value into a page. That it fits is checked when this is compiled.
    #[must_use]
    pub fn new(page: PrivatePage, value: T) -> Self {
        const { Self::FITS };
        // SAFETY: the page is ours alone, and as large and as aligned as `T` needs.
        unsafe { page.base.cast::<T>().write(value) };
        Self { page, value: PhantomData }
    }

    /// Drops the value and gives its page back.
    #[must_use]
    pub fn into_page(self) -> PrivatePage {
        self.into_parts().0
    }

    /// Gives both back, the page and the value.
    #[must_use]
    pub fn into_parts(self) -> (PrivatePage, T) {
        // SAFETY: `new` put a value there, and as `self` is used up nobody sees it there again.
        let value = unsafe { self.page.base.cast::<T>().read() };
        (self.page, value)
    }
}

impl<T> Deref for PageBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` put a value there, and the page is reached through this box alone.
        unsafe { self.page.base.cast::<T>().as_ref() }
    }
}

impl<T> DerefMut for PageBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and this box is borrowed mutably.
        unsafe { self.page.base.cast::<T>().as_mut() }
    }
}

#[cfg(test)]
mod tests {
    use super::{PageBox, PrivatePage};
    use std::rc::Rc;

    #[test]
    fn a_value_lives_in_its_page_until_the_page_is_taken_back() {
        let page = PrivatePage::leaked();
        let base = page.base();
        let witness = Rc::new(());
        let mut boxed = PageBox::new(page, [(); 3].map(|()| Some(witness.clone())));
        assert_eq!((&raw const *boxed).addr(), base.addr().get());
        boxed[1] = None;
        assert_eq!(Rc::strong_count(&witness), 3);
        let page = boxed.into_page();
        assert_eq!((page.base(), Rc::strong_count(&witness)), (base, 1));
        assert_eq!(*PageBox::new(page, 7), 7, "the page takes another value");
    }
}
