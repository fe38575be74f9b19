//! `struct start_info`, the page that tells a PV domain what it was given
//! (xen/include/public/xen.h; offsets for x86_64).

use core::ptr::NonNull;

use crate::mem::SharedPage;
use crate::units::{Mfn, PAGE_SIZE, Port};

/// What the domain builder says.
pub(super) struct StartInfo {
    page: SharedPage,
}

impl StartInfo {
    /// # Safety
    /// `address` is what Xen passed in rsi at the entry point.
    pub(super) unsafe fn new(address: usize) -> Self {
        let base = NonNull::new(core::ptr::with_exposed_provenance_mut(address))
            .expect("start_info is not at address 0");
        // SAFETY: the builder maps start_info as one whole page and nothing else refers to it.
        Self { page: unsafe { SharedPage::new(base) } }
    }

    /// Pages of memory the domain has.
    pub(super) fn pages(&self) -> usize {
        usize::try_from(self.page.read_u64(32)).unwrap_or(usize::MAX)
    }

    /// Machine address of shared_info.
    pub(super) fn shared_info(&self) -> u64 {
        self.page.read_u64(40)
    }

    pub(super) fn store_mfn(&self) -> Mfn {
        Mfn(self.page.read_u64(56))
    }

    pub(super) fn store_port(&self) -> Port {
        Port(self.page.read_u32(64))
    }

    pub(super) fn console_mfn(&self) -> Mfn {
        Mfn(self.page.read_u64(72))
    }

    pub(super) fn console_port(&self) -> Port {
        Port(self.page.read_u32(80))
    }

    /// Virtual address of the top page table, the first of [`StartInfo::page_tables`] pages.
    pub(super) fn page_table(&self) -> usize {
        self.page.read_u64(88) as usize
    }

    pub(super) fn page_tables(&self) -> usize {
        self.page.read_u64(96) as usize
    }

    /// Virtual address of the list that gives the machine frame of each of our pages.
    pub(super) fn frame_list(&self) -> usize {
        self.page.read_u64(104) as usize
    }

    /// The `extra=` of the configuration, without its terminating zero.
    pub(super) fn command_line(&self) -> heapless::Vec<u8, 1024> {
        let mut bytes = [0; 1024];
        self.page.read_bytes(128, &mut bytes);
        bytes.into_iter().take_while(|byte| *byte != 0).collect()
    }
}

const _: () = assert!(128 + 1024 <= PAGE_SIZE);
