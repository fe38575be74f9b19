//! Grant tables (xen/include/public/grant_table.h): mapping others' grants, and our own table of
//! version 1 for the pages we share: pcifront's one, and all that a frontend's backend is to reach.

use core::sync::atomic::{AtomicU16, Ordering};

use heapless::Vec;

use super::hypercall::{Nr, hypercall};
use super::paging::{Paging, shared_page};
use crate::hal::{DeviceAccess, DmaPage, GrantCopy, GrantMap, GrantMapping, GrantedPage, HypervisorError};
use crate::mem::{SharedPage, write_barrier};
use crate::units::{BusAddr, DomId, GrantHandle, GrantRef, PAGE_SIZE};

const MAP: u64 = 0;
const UNMAP: u64 = 1;
const SETUP_TABLE: u64 = 2;
const COPY: u64 = 5;

const DEVICE_MAP: u32 = 1;
const HOST_MAP: u32 = 2;
const READ_ONLY: u32 = 4;

/// `GNTCOPY_source_gref`.
const SOURCE_GREF: u16 = 1;

/// `GTF_permit_access`.
const PERMIT_ACCESS: u16 = 1;
/// `GTF_readonly`.
const GRANTED_READ_ONLY: u16 = 1 << 2;
/// `GTF_reading` and `GTF_writing`: Xen sets them while the page is mapped.
const IN_USE: u16 = 1 << 3 | 1 << 4;
/// References below are the toolstack's (console, xenstore).
const FIRST_REF: u32 = 8;
/// Bytes of a version 1 entry.
const ENTRY: usize = 8;
/// Entries of a frame.
const ENTRIES: usize = PAGE_SIZE / ENTRY;
/// Frames that our table can grow to: 2040 pages granted at once.
const FRAMES: usize = 4;
/// `DOMID_SELF`.
const SELF: u16 = 0x7ff0;
/// No entry is free.
const FULL: HypervisorError = HypervisorError { op: "grant table", code: -28 };
/// Operations of one hypercall: Xen flushes once for each 32 unmapped.
const BATCH: usize = 32;

#[repr(C)]
#[derive(Clone, Copy)]
struct MapOp {
    host_addr: u64,
    flags: u32,
    gref: u32,
    dom: u16,
    status: i16,
    handle: u32,
    dev_bus_addr: u64,
}

impl MapOp {
    fn new(host_addr: u64, flags: u32, gref: GrantRef, dom: DomId) -> Self {
        Self { host_addr, flags, gref: gref.0, dom: dom.0, status: 0, handle: 0, dev_bus_addr: 0 }
    }

    fn result(&self) -> Result<GrantMapping, HypervisorError> {
        if self.status == 0 {
            Ok(GrantMapping { handle: GrantHandle(self.handle), bus: BusAddr(self.dev_bus_addr) })
        } else {
            Err(HypervisorError { op: "GNTTABOP_map_grant_ref", code: self.status.into() })
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UnmapOp {
    host_addr: u64,
    dev_bus_addr: u64,
    handle: u32,
    status: i16,
}

/// `struct gnttab_copy_ptr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CopyEnd {
    /// A grant reference, or a frame of ours.
    page: u64,
    dom: u16,
    offset: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CopyOp {
    source: CopyEnd,
    dest: CopyEnd,
    len: u16,
    flags: u16,
    status: i16,
}

impl CopyOp {
    fn new(copy: &GrantCopy) -> Self {
        let page_size = PAGE_SIZE as u64;
        let offset = (copy.to.0 % page_size) as u16;
        Self {
            source: CopyEnd { page: copy.gref.0.into(), dom: copy.dom.0, offset: 0 },
            dest: CopyEnd { page: copy.to.0 / page_size, dom: SELF, offset },
            len: copy.bytes as u16,
            flags: SOURCE_GREF,
            status: 0,
        }
    }
}

#[repr(C)]
struct SetupTable {
    dom: u16,
    nr_frames: u32,
    status: i16,
    frame_list: *mut u64,
}

/// Our own grant table. It grows when it is full.
pub(super) struct GrantTable {
    frames: Vec<SharedPage, FRAMES>,
    /// Where the search for a free entry goes on, so that none is soon used again.
    next: usize,
}

impl GrantTable {
    /// Maps the table's first frame.
    ///
    /// # Errors
    /// Xen refused, or the map window is full.
    pub(super) fn new(paging: &mut Paging) -> Result<Self, HypervisorError> {
        let mut table = Self { frames: Vec::new(), next: FIRST_REF as usize };
        table.grow(paging)?;
        Ok(table)
    }

    /// Grants `dom` a page of ours, to read or to write as well.
    ///
    /// # Errors
    /// The table is full and Xen lets it grow no further.
    pub(super) fn grant(
        &mut self,
        paging: &mut Paging,
        dom: DomId,
        page: &DmaPage,
        access: DeviceAccess,
    ) -> Result<GrantRef, HypervisorError> {
        let gref = match self.free_entry() {
            Some(gref) => gref,
            None => {
                self.grow(paging)?;
                self.free_entry().ok_or(FULL)?
            }
        };
        self.next = gref.0 as usize + 1;
        let (frame, entry) = self.place(gref);
        frame.write_u16(entry + 2, dom.0);
        frame.write_u32(entry + 4, (page.bus.0 / PAGE_SIZE as u64) as u32);
        let read_only = if access == DeviceAccess::Reads { GRANTED_READ_ONLY } else { 0 };
        // The entry is complete before it permits anything.
        write_barrier();
        frame.write_u16(entry, PERMIT_ACCESS | read_only);
        Ok(gref)
    }

    /// Whether somebody has the page of this grant mapped.
    pub(super) fn is_in_use(&self, gref: GrantRef) -> bool {
        self.flags(gref).load(Ordering::SeqCst) & IN_USE != 0
    }

    /// Takes a grant back, which works unless it is in use.
    pub(super) fn end(&mut self, gref: GrantRef) -> bool {
        let flags = self.flags(gref);
        let idle = flags.load(Ordering::SeqCst) & !IN_USE;
        // Xen may be mapping the page at this moment.
        flags.compare_exchange(idle, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn free_entry(&self) -> Option<GrantRef> {
        let (first, end) = (FIRST_REF as usize, self.frames.len() * ENTRIES);
        let grefs = (self.next..end).chain(first..self.next.min(end));
        grefs.map(|entry| GrantRef(entry as u32)).find(|gref| self.flags(*gref).load(Ordering::SeqCst) == 0)
    }

    fn grow(&mut self, paging: &mut Paging) -> Result<(), HypervisorError> {
        const NAME: &str = "GNTTABOP_setup_table";
        if self.frames.is_full() {
            return Err(FULL);
        }
        let (mut list, last) = ([0u64; FRAMES], self.frames.len());
        let nr_frames = last as u32 + 1;
        let mut setup = SetupTable { dom: SELF, nr_frames, status: 0, frame_list: list.as_mut_ptr() };
        grant_op(SETUP_TABLE, core::slice::from_mut(&mut setup), NAME)?;
        if setup.status != 0 {
            return Err(HypervisorError { op: NAME, code: setup.status.into() });
        }
        let frame = shared_page(paging.map_machine(list[last] * PAGE_SIZE as u64, 1, true)?);
        self.frames.push(frame).map_err(|_| FULL)
    }

    /// The frame of an entry, and the entry's offset in it.
    fn place(&self, gref: GrantRef) -> (&SharedPage, usize) {
        let entry = gref.0 as usize;
        (&self.frames[entry / ENTRIES], entry % ENTRIES * ENTRY)
    }

    fn flags(&self, gref: GrantRef) -> &AtomicU16 {
        let (frame, entry) = self.place(gref);
        let place = frame.base().as_ptr().wrapping_add(entry).cast();
        // SAFETY: the frame is mapped for good, the entry is aligned and inside it, and Xen only
        // ever changes flags atomically.
        unsafe { AtomicU16::from_ptr(place) }
    }
}

/// Maps for devices only: no page table entry of ours is touched.
pub(super) fn map(batch: &mut [GrantMap]) {
    for chunk in batch.chunks_mut(BATCH) {
        let mut ops: Vec<MapOp, BATCH> = chunk
            .iter()
            .map(|map| {
                let read_only = if map.access == DeviceAccess::Reads { READ_ONLY } else { 0 };
                MapOp::new(0, DEVICE_MAP | read_only, map.gref, map.dom)
            })
            .collect();
        let done = grant_op(MAP, &mut ops, "GNTTABOP_map_grant_ref");
        for (map, op) in chunk.iter_mut().zip(&ops) {
            map.result = done.and_then(|()| op.result());
        }
    }
}

/// Undoes [`map`]. A failure would leave a device able to reach a guest's page, and is our bug.
pub(super) fn unmap(batch: &[GrantMapping]) {
    for chunk in batch.chunks(BATCH) {
        let mut ops: Vec<UnmapOp, BATCH> = chunk
            .iter()
            .map(|map| UnmapOp { host_addr: 0, dev_bus_addr: map.bus.0, handle: map.handle.0, status: 0 })
            .collect();
        unmap_all(&mut ops);
    }
}

/// Copies from granted pages.
pub(super) fn copy(batch: &mut [GrantCopy]) {
    const NAME: &str = "GNTTABOP_copy";
    for chunk in batch.chunks_mut(BATCH) {
        let mut ops: Vec<CopyOp, BATCH> = chunk.iter().map(CopyOp::new).collect();
        let done = grant_op(COPY, &mut ops, NAME);
        for (copy, op) in chunk.iter_mut().zip(&ops) {
            let refused = HypervisorError { op: NAME, code: op.status.into() };
            copy.result = done.and(if op.status == 0 { Ok(()) } else { Err(refused) });
        }
    }
}

/// Maps one page for the CPU at an address of the window.
pub(super) fn map_page(
    paging: &mut Paging,
    dom: DomId,
    gref: GrantRef,
) -> Result<GrantedPage, HypervisorError> {
    let full = HypervisorError { op: "map window", code: -12 };
    let address = paging.reserve_page().ok_or(full)?;
    let mut op = MapOp::new(address as u64, HOST_MAP, gref, dom);
    let done = grant_op(MAP, core::slice::from_mut(&mut op), "GNTTABOP_map_grant_ref");
    match done.and_then(|()| op.result()) {
        Ok(mapping) => Ok(GrantedPage { page: shared_page(address), mapping }),
        Err(error) => {
            paging.release_page(address);
            Err(error)
        }
    }
}

/// Undoes [`map_page`].
pub(super) fn unmap_page(paging: &mut Paging, page: GrantedPage) {
    let address = page.page.base().addr().get();
    let handle = page.mapping.handle.0;
    unmap_all(&mut [UnmapOp { host_addr: address as u64, dev_bus_addr: 0, handle, status: 0 }]);
    paging.release_page(address);
}

fn unmap_all(ops: &mut [UnmapOp]) {
    grant_op(UNMAP, ops, "GNTTABOP_unmap_grant_ref").expect("our own operations are well-formed");
    for op in ops {
        assert!(op.status == 0, "GNTTABOP_unmap_grant_ref: status {} for handle {}", op.status, op.handle);
    }
}

fn grant_op<T>(cmd: u64, ops: &mut [T], name: &'static str) -> Result<(), HypervisorError> {
    let args = [cmd, ops.as_mut_ptr() as u64, ops.len() as u64, 0];
    // SAFETY: each caller passes structures of its command, valid for reads and writes; mappings
    // are made at unused addresses of the window or for devices only.
    let code = unsafe { hypercall(Nr::GrantTableOp, args) };
    if code < 0 { Err(HypervisorError { op: name, code }) } else { Ok(()) }
}

const _: () =
    assert!(size_of::<MapOp>() == 32 && size_of::<UnmapOp>() == 24 && size_of::<SetupTable>() == 24);
const _: () = assert!(size_of::<CopyOp>() == 40);
