//! A 64-bit PV domain on Xen: boot in order, then `hal`'s traits by hypercalls. One vCPU, one
//! thread, upcalls masked (see `events`).

mod clock;
mod console;
mod epitaph;
mod events;
mod grants;
mod hypercall;
mod paging;
mod pool;
mod start_info;
mod traps;
mod watchdog;
mod window;

use core::fmt;

use self::events::Ports;
use self::grants::GrantTable;
use self::hypercall::{Nr, hypercall};
use self::paging::{Flaw, Paging, shared_page};
use self::start_info::StartInfo;
use self::watchdog::Watchdog;
use crate::hal::{
    Clock, DeviceAccess, DmaPage, Events, GrantCopy, GrantMap, GrantMapping, GrantedPage, Grants,
    HypervisorError, Memory, MmioRegion,
};
use crate::mem::private::PrivatePage;
use crate::mem::{SharedPage, write_barrier};
use crate::report;
use crate::units::{BusAddr, DomId, GrantRef, Instant, PAGE_SIZE, Pirq, Port};

pub use self::epitaph::epitaph;
pub use self::traps::{Frame, Shutdown, crash, shutdown};

/// Xen, as one domain sees it.
pub struct Xen {
    ports: Ports,
    paging: Paging,
    grant_table: GrantTable,
    watchdog: Watchdog,
    console: SharedPage,
    console_port: Port,
    started: Instant,
    /// The time as it was last read.
    latest: Instant,
    pages: usize,
}

/// What the domain was given at boot.
pub struct Given {
    /// xenstored's ring.
    pub store: SharedPage,
    /// Its event channel.
    pub store_port: Port,
    /// The `extra=` of the configuration.
    pub command_line: heapless::Vec<u8, 1024>,
}

/// The image cannot run.
#[derive(Debug)]
pub enum StartError {
    /// Xen refused something that boot needs.
    Refused(HypervisorError),
    /// The page tables do not protect the image as they should.
    Unprotected(Flaw),
}

impl From<HypervisorError> for StartError {
    fn from(error: HypervisorError) -> Self {
        Self::Refused(error)
    }
}

impl Xen {
    /// Boots: to be called once, first of all, with what boot/xen.S got from Xen.
    ///
    /// # Errors
    /// See [`StartError`]. Before the console is up nobody can be told, afterwards an epitaph can.
    ///
    /// # Safety
    /// `start_info` is the address Xen passed at the entry point, and no `Xen` exists.
    pub unsafe fn start(start_info: usize, tsc: u64) -> Result<(Self, Given), StartError> {
        // SAFETY: the caller passes Xen's address.
        let info = unsafe { StartInfo::new(start_info) };
        let mut paging = Paging::new(&info)?;
        let console = shared_page(paging.page_of(info.console_mfn()));
        let shared_info = paging.map_machine(info.shared_info(), 1, true)?;
        epitaph::prepare(&console, info.console_port(), shared_info);
        traps::install()?;
        paging.protect()?;
        paging.check().map_err(StartError::Unprotected)?;
        let ports = Ports::new(shared_page(shared_info))?;
        ports.open(info.console_port())?;
        ports.open(info.store_port())?;
        let started = clock::at(ports.shared_info(), tsc);
        let xen = Self {
            grant_table: GrantTable::new(&mut paging)?,
            ports,
            paging,
            watchdog: Watchdog::default(),
            console,
            console_port: info.console_port(),
            started,
            latest: started,
            pages: info.pages(),
        };
        let given = Given {
            store: shared_page(xen.paging.page_of(info.store_mfn())),
            store_port: info.store_port(),
            command_line: info.command_line(),
        };
        Ok((xen, given))
    }

    /// When the image's first instruction ran.
    #[must_use]
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// Tells the watchdog that the loop did something, and lets the console have what the log holds.
    pub fn alive(&mut self) {
        self.watchdog.alive(self.latest);
        self.flush_log();
    }

    /// The memory as a line for the log.
    pub fn memory(&self) -> impl fmt::Display {
        let kib = |bytes: usize| bytes / 1024;
        let (total, image, free) =
            (self.pages * PAGE_SIZE, paging::image_bytes(), self.paging.free_pages() * PAGE_SIZE);
        fmt::from_fn(move |f| {
            write!(f, "{} MiB, image {} KiB, free for I/O {} KiB", kib(total) / 1024, kib(image), kib(free))
        })
    }

    /// The hypervisor's version, as a line for the log.
    pub fn version() -> impl fmt::Display {
        // SAFETY: XENVER_version takes no argument and returns major << 16 | minor.
        let version = unsafe { hypercall(Nr::XenVersion, [0; 4]) };
        fmt::from_fn(move |f| write!(f, "Xen {}.{}", version >> 16, version & 0xffff))
    }

    /// How many hypercalls of each kind were made so far, as a line for the log.
    pub fn hypercalls() -> impl fmt::Display {
        fmt::from_fn(|f| {
            f.write_str("hypercalls:")?;
            hypercall::counts().try_for_each(|(name, count)| write!(f, " {name} {count}"))
        })
    }

    /// Grants a page of ours to `dom`, which may read it, or write it too.
    ///
    /// # Errors
    /// The grant table is full.
    pub fn grant_for(
        &mut self,
        dom: DomId,
        page: &DmaPage,
        access: DeviceAccess,
    ) -> Result<GrantRef, HypervisorError> {
        self.grant_table.grant(&mut self.paging, dom, page, access)
    }

    /// Whether the page of a grant of ours is mapped by the domain it was granted to.
    #[must_use]
    pub fn is_in_use(&self, gref: GrantRef) -> bool {
        self.grant_table.is_in_use(gref)
    }

    /// Takes a grant of ours back. Does nothing and returns false while it is in use.
    #[must_use]
    pub fn end_grant(&mut self, gref: GrantRef) -> bool {
        self.grant_table.end(gref)
    }

    /// Hands the console what it has room for of a text that is not the log's: how many bytes.
    pub fn print(&mut self, text: &[u8]) -> usize {
        let written = console::write(&self.console, text);
        if written > 0 {
            self.ports.notify(self.console_port);
        }
        written
    }

    /// Hands the console what the log holds and the ring has room for.
    pub fn flush_log(&mut self) {
        let console = &self.console;
        let mut written = 0;
        report::drain(&mut |text| {
            let count = console::write(console, text);
            written += count;
            count
        });
        if written > 0 {
            self.ports.notify(self.console_port);
        }
    }
}

impl Clock for Xen {
    /// Lines of the log have this time until it is asked for again.
    fn now(&mut self) -> Instant {
        self.latest = clock::now(self.ports.shared_info());
        report::set_now(self.latest);
        self.latest
    }
}

impl Events for Xen {
    fn bind_interdomain(&mut self, peer: DomId, remote: Port) -> Result<Port, HypervisorError> {
        self.ports.bind_interdomain(peer, remote)
    }

    fn alloc_unbound(&mut self, peer: DomId) -> Result<Port, HypervisorError> {
        self.ports.alloc_unbound(peer)
    }

    fn bind_pirq(&mut self, pirq: Pirq) -> Result<Port, HypervisorError> {
        self.ports.bind_pirq(pirq)
    }

    fn close(&mut self, port: Port) {
        self.ports.close(port);
    }

    fn notify(&mut self, port: Port) {
        self.ports.notify(port);
    }

    fn next_pending(&mut self) -> Option<Port> {
        loop {
            let port = self.ports.next_pending()?;
            if port != self.console_port {
                return Some(port);
            }
            self.flush_log();
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        self.flush_log();
        let deadline = self.watchdog.before_sleep(self.latest, deadline);
        self.ports.block(deadline);
        if self.watchdog.is_off() {
            assert!(self.ports.are_upcalls_masked(), "an upcall could come at any time");
            let now = self.now();
            self.watchdog.alive(now);
        }
    }
}

impl Grants for Xen {
    fn map(&mut self, batch: &mut [GrantMap]) {
        grants::map(batch);
    }

    fn unmap(&mut self, batch: &[GrantMapping]) {
        grants::unmap(batch);
    }

    fn copy(&mut self, batch: &mut [GrantCopy]) {
        grants::copy(batch);
    }

    fn map_page(&mut self, dom: DomId, gref: GrantRef) -> Result<GrantedPage, HypervisorError> {
        grants::map_page(&mut self.paging, dom, gref)
    }

    fn unmap_page(&mut self, page: GrantedPage) {
        grants::unmap_page(&mut self.paging, page);
    }

    fn grant(&mut self, dom: DomId, page: &DmaPage) -> Result<GrantRef, HypervisorError> {
        self.grant_for(dom, page, DeviceAccess::Writes)
    }
}

impl Memory for Xen {
    fn free_pages(&self) -> usize {
        self.paging.free_pages()
    }

    fn take_page(&mut self) -> Option<DmaPage> {
        self.paging.take_page()
    }

    fn return_page(&mut self, page: DmaPage) {
        self.paging.return_page(&page);
    }

    fn take_private(&mut self) -> Option<PrivatePage> {
        self.paging.take_private()
    }

    fn return_private(&mut self, page: PrivatePage) {
        self.paging.return_private(&page);
    }

    fn map_mmio(&mut self, bar: BusAddr, len: usize) -> Result<MmioRegion, HypervisorError> {
        let base = self.paging.map_machine(bar.0, len.div_ceil(PAGE_SIZE), false)?;
        Ok(MmioRegion { base, len })
    }

    fn unmap_mmio(&mut self, region: MmioRegion) {
        self.paging.unmap_machine(region.base, region.len.div_ceil(PAGE_SIZE));
    }

    fn read32(&mut self, region: MmioRegion, offset: usize) -> u32 {
        // SAFETY: `register` checks that the offset is inside the mapped region.
        unsafe { register(region, offset).read_volatile() }
    }

    fn write32(&mut self, region: MmioRegion, offset: usize, value: u32) {
        write_barrier();
        // SAFETY: `register` checks that the offset is inside the mapped region.
        unsafe { register(region, offset).write_volatile(value) }
    }
}

fn register(region: MmioRegion, offset: usize) -> *mut u32 {
    assert!(offset.is_multiple_of(4) && offset + 4 <= region.len, "access outside a register region");
    core::ptr::with_exposed_provenance_mut(region.base + offset)
}
