//! Page tables of a PV domain: the image's protection, its check, the memory that the builder did
//! not map, and a window of addresses to map others' frames at.
//!
//! The builder maps the image, its own structures and some spare memory as one run of pages from
//! the image's start ("the bootstrap window"): page `n` of our memory is at `_image_start + n *
//! 4096`. The rest of memory is mapped here to go on so, and the window follows. Tables are mapped read-only and change by hypercall. A PTE that is not present is all
//! zero: anything else would need shadow paging, which Debian's Xen does not have.

use core::ptr::NonNull;

use heapless::Vec;

use super::hypercall::{Nr, hypercall};
use super::pool::Pool;
use super::start_info::StartInfo;
use super::window::Window;
use crate::hal::{DmaPage, HypervisorError};
use crate::limits;
use crate::mem::SharedPage;
use crate::mem::private::PrivatePage;
use crate::units::{BusAddr, Mfn, PAGE_SIZE};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const DATA: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY | NO_EXECUTE;

/// `UVMF_INVLPG`: flush this one address.
const INVALIDATE: u64 = 2;
/// `DOMID_SELF`.
const SELF: u64 = 0x7ff0;
/// The read-only machine-to-physical table that Xen maps into every PV domain.
const MACHINE_TO_PHYSICAL: usize = 0xffff_8000_0000_0000;
/// Entries of the top table that belong to Xen.
const XEN_SLOTS: core::ops::Range<usize> = 256..272;
/// PTEs changed by one hypercall.
const BATCH: usize = 128;
/// Entries of a page table.
const ENTRIES: usize = 512;
/// Bytes of addresses behind one last-level table.
const TABLE_REACH: usize = ENTRIES * PAGE_SIZE;
/// Last-level tables of the map window.
const WINDOW_TABLES: usize = limits::MAPPED_PAGES.div_ceil(ENTRIES);
/// What the builder's one table of the level above reaches. Memory that does not fit below the
/// window is not used.
const MOST_ADDRESS: usize = (ENTRIES - WINDOW_TABLES) * TABLE_REACH;

unsafe extern "C" {
    static _image_start: u8;
    static _text_end: u8;
    static _rodata_end: u8;
    static _stack_guard: u8;
    static _image_end: u8;
}

/// The address of our first page.
pub(super) fn image_start() -> usize {
    (&raw const _image_start).addr()
}

/// One entry of `mmu_update`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MmuUpdate {
    /// Machine address of the PTE.
    ptr: u64,
    val: u64,
}

/// What is wrong with a mapping.
#[derive(Clone, Copy, Debug)]
pub enum Flaw {
    /// A page is both writable and executable.
    WritableAndExecutable(usize),
    /// A page outside the text is executable.
    Executable(usize),
    /// A page of text or read-only data is writable.
    Writable(usize),
    /// A page that must not be mapped is.
    Mapped(usize),
}

/// Page tables, free pages, and the window.
pub(super) struct Paging {
    top: usize,
    frame_list: usize,
    /// Pages of memory we have.
    pages: usize,
    /// Those of them in the bootstrap window.
    bootstrap: usize,
    pool: Pool,
    window: Window<{ WINDOW_TABLES * ENTRIES / 64 }>,
}

impl Paging {
    /// Takes over the builder's tables, maps the rest of memory, and adds the tables behind the map
    /// window.
    ///
    /// # Errors
    /// Xen refused a new table or mapping, or there is no memory for a table.
    pub(super) fn new(info: &StartInfo) -> Result<Self, HypervisorError> {
        let after_stack = info.page_table() + (info.page_tables() + 1) * PAGE_SIZE;
        let mut paging = Self {
            top: info.page_table(),
            frame_list: info.frame_list(),
            pages: info.pages(),
            bootstrap: 0,
            pool: Pool::new(0, 0),
            window: Window::new(0),
        };
        let end = (image_start()..)
            .step_by(PAGE_SIZE)
            .find(|at| paging.leaf(*at).is_none_or(|(_, pte)| pte & PRESENT == 0))
            .unwrap_or(after_stack);
        paging.bootstrap = ((end - image_start()) / PAGE_SIZE).min(info.pages());
        paging.pool = Pool::new((after_stack - image_start()) / PAGE_SIZE, paging.bootstrap);
        paging.map_rest()?;
        let window = (image_start() + paging.pool.end() * PAGE_SIZE).next_multiple_of(TABLE_REACH);
        paging.window = Window::new(window);
        for table in 0..WINDOW_TABLES {
            paging.add_table(window + table * TABLE_REACH)?;
        }
        Ok(paging)
    }

    /// Pages of the pool still free.
    pub(super) const fn free_pages(&self) -> usize {
        self.pool.len()
    }

    /// The page that holds machine frame `mfn` of ours.
    pub(super) fn page_of(&self, mfn: Mfn) -> usize {
        let entry = core::ptr::with_exposed_provenance::<u64>(MACHINE_TO_PHYSICAL + mfn.0 as usize * 8);
        // SAFETY: Xen maps this table readable for every frame of the host, and `mfn` is one.
        let page = unsafe { entry.read_volatile() };
        image_start() + page as usize * PAGE_SIZE
    }

    fn mfn_of(&self, address: usize) -> Mfn {
        let page = (address - image_start()) / PAGE_SIZE;
        assert!(page < self.pages, "not a page of ours");
        let entry = core::ptr::with_exposed_provenance::<u64>(self.frame_list + page * 8);
        // SAFETY: the builder's list has an entry for each of our pages.
        Mfn(unsafe { entry.read_volatile() })
    }

    /// A zeroed page of the pool.
    pub(super) fn take_page(&mut self) -> Option<DmaPage> {
        let address = self.pool.take()?;
        let page = shared_page(address);
        page.clear();
        Some(DmaPage { page, bus: BusAddr(self.mfn_of(address).0 * PAGE_SIZE as u64) })
    }

    /// Takes such a page back.
    pub(super) fn return_page(&mut self, page: &DmaPage) {
        self.pool.give_back(page.page.base().addr().get());
    }

    /// A page of the pool that nothing else refers to.
    pub(super) fn take_private(&mut self) -> Option<PrivatePage> {
        let base = shared_page(self.pool.take()?).base();
        // SAFETY: pages of the pool stay mapped, and this one is nobody else's until it is back.
        Some(unsafe { PrivatePage::new(base) })
    }

    /// Takes such a page back.
    pub(super) fn return_private(&mut self, page: &PrivatePage) {
        self.pool.give_back(page.base().addr().get());
    }

    /// Protects the image: see linker/xen.ld.
    ///
    /// # Errors
    /// Xen refused a change.
    pub(super) fn protect(&self) -> Result<(), HypervisorError> {
        let (text_end, rodata_end) = ((&raw const _text_end).addr(), (&raw const _rodata_end).addr());
        let guard = (&raw const _stack_guard).addr();
        let addresses = (0..self.bootstrap).map(|page| image_start() + page * PAGE_SIZE);
        update_all(addresses.filter_map(|address| {
            let (ptr, pte) = self.leaf(address)?;
            let val = if address == guard {
                0
            } else if address < text_end {
                pte & !WRITABLE
            } else if address < rodata_end {
                (pte & !WRITABLE) | NO_EXECUTE
            } else {
                pte | NO_EXECUTE
            };
            Some(MmuUpdate { ptr, val })
        }))
    }

    /// Walks every present entry outside Xen's own slots.
    ///
    /// # Errors
    /// The first mapping that is not as [`Paging::protect`] left it.
    pub(super) fn check(&self) -> Result<(), Flaw> {
        for unmapped in [0, (&raw const _stack_guard).addr()] {
            if self.leaf(unmapped).is_some_and(|(_, pte)| pte & PRESENT != 0) {
                return Err(Flaw::Mapped(unmapped));
            }
        }
        for l4 in (0..ENTRIES).filter(|slot| !XEN_SLOTS.contains(slot)) {
            let Some(l3_table) = self.below(self.top, l4) else { continue };
            for l3 in 0..ENTRIES {
                let Some(l2_table) = self.below(l3_table, l3) else { continue };
                for l2 in 0..ENTRIES {
                    let Some(l1_table) = self.below(l2_table, l2) else { continue };
                    let base = l4 << 39 | l3 << 30 | l2 << 21;
                    (0..ENTRIES).try_for_each(|l1| check_leaf(base | l1 << 12, read_pte(l1_table, l1)))?;
                }
            }
        }
        Ok(())
    }

    /// An address where a grant can be mapped: its PTE is empty.
    pub(super) fn reserve_page(&mut self) -> Option<usize> {
        self.window.reserve(1)
    }

    /// Gives back an address whose PTE is empty again.
    pub(super) fn release_page(&mut self, address: usize) {
        self.window.release(address, 1);
    }

    /// Maps machine memory that is not ours: shared_info, the grant table, device registers.
    ///
    /// # Errors
    /// The window is full, or Xen refused.
    pub(super) fn map_machine(
        &mut self,
        machine: u64,
        pages: usize,
        cached: bool,
    ) -> Result<usize, HypervisorError> {
        let full = HypervisorError { op: "map window", code: -12 };
        let address = self.window.reserve(pages).ok_or(full)?;
        let flags = if cached { DATA } else { DATA | UNCACHED };
        for page in 0..pages {
            let offset = page * PAGE_SIZE;
            if let Err(error) = update_va_mapping(address + offset, (machine + offset as u64) & FRAME | flags)
            {
                self.unmap_machine(address, pages);
                return Err(error);
            }
        }
        Ok(address)
    }

    /// Undoes [`Paging::map_machine`].
    pub(super) fn unmap_machine(&mut self, address: usize, pages: usize) {
        for page in 0..pages {
            update_va_mapping(address + page * PAGE_SIZE, 0).expect("a mapping of ours can be undone");
        }
        self.window.release(address, pages);
    }

    /// Maps our pages beyond the bootstrap window, all of them writable: only what is or was so is
    /// in the IOMMU's tables and can be shown to a device.
    fn map_rest(&mut self) -> Result<(), HypervisorError> {
        let end = self.pages.min((MOST_ADDRESS - image_start()) / PAGE_SIZE);
        while self.pool.end() < end {
            let start = image_start() + self.pool.end() * PAGE_SIZE;
            if self.table_at_level(start, 1).is_none() {
                self.add_table(start)?;
            }
            let in_table = (start + 1).next_multiple_of(TABLE_REACH) - start;
            let pages = (in_table / PAGE_SIZE).min(end - self.pool.end());
            update_all((0..pages).filter_map(|page| {
                let address = start + page * PAGE_SIZE;
                let (ptr, _) = self.leaf(address)?;
                Some(MmuUpdate { ptr, val: (self.mfn_of(address).0 * PAGE_SIZE as u64) | DATA })
            }))?;
            self.pool.extend(pages);
        }
        Ok(())
    }

    /// Adds the missing last-level table behind an address.
    fn add_table(&mut self, behind: usize) -> Result<(), HypervisorError> {
        let no_memory = HypervisorError { op: "page table", code: -12 };
        let table = self.take_page().ok_or(no_memory)?;
        let address = table.page.base().addr().get();
        update_va_mapping(address, table.bus.0 & FRAME | (DATA & !WRITABLE))?;
        let l2_table = self.table_at_level(behind, 2).ok_or(no_memory)?;
        let slot = behind >> 21 & (ENTRIES - 1);
        let ptr = self.mfn_of(l2_table).0 * PAGE_SIZE as u64 + slot as u64 * 8;
        let val = table.bus.0 | PRESENT | WRITABLE | USER | ACCESSED;
        mmu_update(&[MmuUpdate { ptr, val }])
    }

    /// Machine address and value of the last-level entry of `address`.
    fn leaf(&self, address: usize) -> Option<(u64, u64)> {
        let table = self.table_at_level(address, 1)?;
        let slot = address >> 12 & (ENTRIES - 1);
        Some((self.mfn_of(table).0 * PAGE_SIZE as u64 + slot as u64 * 8, read_pte(table, slot)))
    }

    fn table_at_level(&self, address: usize, level: u32) -> Option<usize> {
        (level..4)
            .rev()
            .try_fold(self.top, |table, above| self.below(table, address >> (12 + 9 * above) & (ENTRIES - 1)))
    }

    /// The table that entry `slot` of `table` points to.
    fn below(&self, table: usize, slot: usize) -> Option<usize> {
        let pte = read_pte(table, slot);
        (pte & PRESENT != 0).then(|| self.page_of(Mfn((pte & FRAME) / PAGE_SIZE as u64)))
    }
}

fn check_leaf(address: usize, pte: u64) -> Result<(), Flaw> {
    let text = image_start()..(&raw const _text_end).addr();
    let read_only = image_start()..(&raw const _rodata_end).addr();
    let (writable, executable) = (pte & WRITABLE != 0, pte & NO_EXECUTE == 0);
    if pte & PRESENT == 0 {
        Ok(())
    } else if writable && executable {
        Err(Flaw::WritableAndExecutable(address))
    } else if executable && !text.contains(&address) {
        Err(Flaw::Executable(address))
    } else if writable && read_only.contains(&address) {
        Err(Flaw::Writable(address))
    } else {
        Ok(())
    }
}

/// Bytes the image takes up, its stack included.
pub(super) fn image_bytes() -> usize {
    (&raw const _image_end).addr() - image_start()
}

/// The page at `address`, which is mapped and shared with Xen or another domain.
pub(super) fn shared_page(address: usize) -> SharedPage {
    let base =
        NonNull::new(core::ptr::with_exposed_provenance_mut(address)).expect("address 0 is not mapped");
    // SAFETY: callers pass pages of the pool, the builder's rings, or of the window, which stay
    // mapped and which nothing else refers to.
    unsafe { SharedPage::new(base) }
}

fn read_pte(table: usize, slot: usize) -> u64 {
    let entry = core::ptr::with_exposed_provenance::<u64>(table + slot * 8);
    // SAFETY: the builder maps every table readable, and a slot is below `ENTRIES`.
    unsafe { entry.read_volatile() }
}

fn update_va_mapping(address: usize, pte: u64) -> Result<(), HypervisorError> {
    // SAFETY: callers change addresses that no Rust object lives at, or only take access away.
    let code = unsafe { hypercall(Nr::UpdateVaMapping, [address as u64, pte, INVALIDATE, 0]) };
    if code < 0 { Err(HypervisorError { op: "update_va_mapping", code }) } else { Ok(()) }
}

/// Makes the changes, batch by batch.
fn update_all(changes: impl Iterator<Item = MmuUpdate>) -> Result<(), HypervisorError> {
    let mut changes = changes.peekable();
    while changes.peek().is_some() {
        let batch: Vec<MmuUpdate, BATCH> = changes.by_ref().take(BATCH).collect();
        mmu_update(&batch)?;
    }
    Ok(())
}

fn mmu_update(batch: &[MmuUpdate]) -> Result<(), HypervisorError> {
    let args = [batch.as_ptr() as u64, batch.len() as u64, 0, SELF];
    // SAFETY: the batch is valid for reads; callers add a table, map a page of ours at an address
    // where nothing was, or take access away.
    let code = unsafe { hypercall(Nr::MmuUpdate, args) };
    if code < 0 { Err(HypervisorError { op: "mmu_update", code }) } else { Ok(()) }
}
