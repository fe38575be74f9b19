//! The pages that a check has granted to the backend. All of them are taken back when it ends.

use heapless::Vec;
use platter::hal::{DeviceAccess, DmaPage, Memory as _};
use platter::mem::SharedPage;
use platter::platform::xen::Xen;
use platter::units::{DomId, GrantRef};

use crate::pattern;
use crate::verdict::{End, Verdict, ensure};

/// Pages granted at once.
pub(crate) const MOST: usize = 1800;

/// A page on the shelf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Buffer(usize);

struct Lent {
    page: DmaPage,
    gref: GrantRef,
}

/// The shelf.
pub(crate) struct Shelf {
    lent: Vec<Lent, MOST>,
}

impl Shelf {
    /// Nothing on it.
    pub(crate) const fn new() -> Self {
        Self { lent: Vec::new() }
    }

    /// Grants a page, filled with canaries.
    ///
    /// # Errors
    /// Memory or the grant table is used up.
    pub(crate) fn lend(&mut self, xen: &mut Xen, to: DomId, access: DeviceAccess) -> Verdict<Buffer> {
        ensure!(!self.lent.is_full(), "a check lends more than {MOST} pages");
        let page = xen.take_page().ok_or_else(End::no_memory)?;
        let gref = xen.grant_for(to, &page, access)?;
        pattern::blank(&page.page);
        let buffer = Buffer(self.lent.len());
        let _ = self.lent.push(Lent { page, gref });
        Ok(buffer)
    }

    /// Grants a page anew, under another reference.
    ///
    /// # Errors
    /// The backend still uses the old one.
    pub(crate) fn lend_again(
        &mut self,
        xen: &mut Xen,
        buffer: Buffer,
        to: DomId,
        access: DeviceAccess,
    ) -> Verdict {
        let lent = &mut self.lent[buffer.0];
        let gref = xen.grant_for(to, &lent.page, access)?;
        let old = core::mem::replace(&mut lent.gref, gref);
        ensure!(xen.end_grant(old), "the backend still uses a grant after its response");
        Ok(())
    }

    /// Takes a grant back and leaves the page where it is: its reference is now a bad one.
    pub(crate) fn revoke(&self, xen: &mut Xen, buffer: Buffer) -> bool {
        xen.end_grant(self.lent[buffer.0].gref)
    }

    pub(crate) fn page(&self, buffer: Buffer) -> &SharedPage {
        &self.lent[buffer.0].page.page
    }

    pub(crate) fn gref(&self, buffer: Buffer) -> GrantRef {
        self.lent[buffer.0].gref
    }

    /// Takes every page back, and says how many the backend still has mapped. Those are never used
    /// again.
    pub(crate) fn clear(&mut self, xen: &mut Xen) -> usize {
        let mut kept = 0;
        while let Some(lent) = self.lent.pop() {
            if xen.end_grant(lent.gref) {
                xen.return_page(lent.page);
            } else {
                kept += 1;
            }
        }
        kept
    }
}
