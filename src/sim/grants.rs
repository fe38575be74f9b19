//! Grant tables with Xen's rules (xen/common/grant_table.c): who granted what to whom, what the
//! driver domain has mapped, and what the IOMMU therefore lets its devices reach.

use std::collections::BTreeMap;

use super::machine::DRIVER;
use super::memory::{self, Memory, bus};
use crate::units::{BusAddr, DomId, GrantHandle, GrantRef, Mfn};

/// `GNTST_general_error`: among others, a writable mapping of a read-only grant.
pub const GENERAL_ERROR: i64 = -1;
/// `GNTST_bad_gntref`: no such grant to the caller.
pub const BAD_GNTREF: i64 = -3;
/// `GNTST_bad_handle`.
pub const BAD_HANDLE: i64 = -4;
/// `GNTST_bad_dev_addr`: the handle is right and the address is not, so nothing is undone.
pub const BAD_DEV_ADDR: i64 = -6;
/// `GNTST_no_space`: the table of mappings is full.
pub const NO_SPACE: i64 = -13;

/// Mappings of one kind that a grant can bear: an 8-bit pin counter with a guard bit.
const PINS: u32 = 127;

/// Grant references below this are Xen's own.
const FIRST_REF: u32 = 8;

#[derive(Debug)]
struct Entry {
    to: DomId,
    mfn: Mfn,
    readonly: bool,
    readers: u32,
    writers: u32,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    dom: DomId,
    gref: GrantRef,
    mfn: Mfn,
    write: bool,
}

/// The grant tables of all domains, and the mappings of the driver domain.
#[derive(Debug, Default)]
pub struct Grants {
    entries: BTreeMap<(u16, u32), Entry>,
    mappings: BTreeMap<u32, Mapping>,
    /// Whose frames are mapped, or were: no frame's number is another's later.
    owners: BTreeMap<u64, DomId>,
    handles: u32,
    /// References that were given up, for their domain to use again, the last one first.
    free: Vec<(DomId, GrantRef)>,
}

impl Grants {
    /// Grants a frame of `owner` to `to`; references are used again as soon as they are free.
    pub fn offer(&mut self, owner: DomId, to: DomId, mfn: Mfn, readonly: bool) -> GrantRef {
        let free = self.free.iter().rposition(|(dom, _)| *dom == owner);
        let gref = match free {
            Some(at) => self.free.remove(at).1,
            None => self.next_ref(owner),
        };
        self.entries.insert((owner.0, gref.0), Entry { to, mfn, readonly, readers: 0, writers: 0 });
        gref
    }

    fn next_ref(&self, owner: DomId) -> GrantRef {
        let last = self.entries.range((owner.0, 0)..=(owner.0, u32::MAX)).next_back();
        GrantRef(last.map_or(FIRST_REF, |((_, gref), _)| gref + 1))
    }

    /// Takes a grant back; false when it is still mapped, and then it stays as it is.
    pub fn revoke(&mut self, owner: DomId, gref: GrantRef) -> bool {
        let pinned = self.is_mapped(owner, gref);
        if !pinned && self.entries.remove(&(owner.0, gref.0)).is_some() {
            self.free.push((owner, gref));
        }
        !pinned
    }

    /// Whether the driver domain has the grant mapped.
    #[must_use]
    pub fn is_mapped(&self, owner: DomId, gref: GrantRef) -> bool {
        self.entries.get(&(owner.0, gref.0)).is_some_and(|entry| entry.readers + entry.writers > 0)
    }

    /// The domain whose page lies at a bus address; none, when it is the driver domain's own.
    #[must_use]
    pub fn owner(&self, at: BusAddr) -> Option<DomId> {
        self.owners.get(&memory::mfn(at).0).copied()
    }

    /// The frame that `owner` granted to `to`, for a peer of the driver domain that maps it.
    #[must_use]
    pub fn granted(&self, owner: DomId, gref: GrantRef, to: DomId) -> Option<Mfn> {
        self.entries.get(&(owner.0, gref.0)).filter(|entry| entry.to == to).map(|entry| entry.mfn)
    }

    /// Maps a grant into the driver domain; its devices reach the frame from here on.
    ///
    /// # Errors
    /// A `GNTST_*` status.
    pub fn map(
        &mut self,
        memory: &mut Memory,
        dom: DomId,
        gref: GrantRef,
        write: bool,
    ) -> Result<(GrantHandle, Mfn), i64> {
        let entry = self.entries.get_mut(&(dom.0, gref.0)).filter(|entry| entry.to == DRIVER);
        let entry = entry.ok_or(BAD_GNTREF)?;
        let pins = if write { &mut entry.writers } else { &mut entry.readers };
        if (write && entry.readonly) || *pins >= PINS {
            return Err(GENERAL_ERROR);
        }
        *pins += 1;
        memory.expose(entry.mfn, write);
        self.owners.insert(entry.mfn.0, dom);
        self.handles += 1;
        self.mappings.insert(self.handles, Mapping { dom, gref, mfn: entry.mfn, write });
        Ok((GrantHandle(self.handles), entry.mfn))
    }

    /// Undoes a mapping: exactly once, and exactly as it was made.
    ///
    /// # Errors
    /// A `GNTST_*` status; then nothing was undone.
    pub fn unmap(&mut self, memory: &mut Memory, handle: GrantHandle, at: BusAddr) -> Result<(), i64> {
        let mapping = *self.mappings.get(&handle.0).ok_or(BAD_HANDLE)?;
        if at != bus(mapping.mfn) {
            return Err(BAD_DEV_ADDR);
        }
        self.mappings.remove(&handle.0);
        memory.conceal(mapping.mfn, mapping.write);
        if let Some(entry) = self.entries.get_mut(&(mapping.dom.0, mapping.gref.0)) {
            let pins = if mapping.write { &mut entry.writers } else { &mut entry.readers };
            *pins -= 1;
        }
        Ok(())
    }

    /// The domain dies: what is not mapped is gone.
    pub fn bury(&mut self, owner: DomId) {
        self.entries.retain(|(dom, _), entry| *dom != owner.0 || entry.readers + entry.writers > 0);
    }

    /// How many mappings the driver domain holds.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.mappings.len()
    }

    /// How many mappings the driver domain holds of a domain's pages.
    #[must_use]
    pub fn mapped_from(&self, dom: DomId) -> usize {
        self.mappings.values().filter(|mapping| mapping.dom == dom).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(5);

    fn one_grant(readonly: bool) -> (Grants, Memory, GrantRef, Mfn) {
        let (mut grants, mut memory) = (Grants::default(), Memory::default());
        let mfn = memory.take();
        let gref = grants.offer(GUEST, DRIVER, mfn, readonly);
        (grants, memory, gref, mfn)
    }

    #[test]
    fn a_readonly_grant_refuses_a_writable_mapping() {
        let (mut grants, mut memory, gref, mfn) = one_grant(true);
        assert_eq!(grants.map(&mut memory, GUEST, gref, true), Err(GENERAL_ERROR));
        assert!(grants.map(&mut memory, GUEST, gref, false).is_ok());
        assert!(memory.reach(bus(mfn), false).is_some());
        assert!(memory.reach(bus(mfn), true).is_none());
    }

    #[test]
    fn a_handle_is_undone_once_and_with_its_own_address() {
        let (mut grants, mut memory, gref, mfn) = one_grant(false);
        let (handle, _) = grants.map(&mut memory, GUEST, gref, true).unwrap();
        assert_eq!(grants.unmap(&mut memory, handle, BusAddr(0)), Err(BAD_DEV_ADDR));
        assert!(!grants.revoke(GUEST, gref), "still mapped");
        assert_eq!(grants.unmap(&mut memory, handle, bus(mfn)), Ok(()));
        assert_eq!(grants.unmap(&mut memory, handle, bus(mfn)), Err(BAD_HANDLE));
        assert!(memory.reach(bus(mfn), false).is_none());
        assert!(grants.revoke(GUEST, gref));
        assert_eq!(grants.map(&mut memory, GUEST, gref, true), Err(BAD_GNTREF));
    }

    #[test]
    fn a_frame_stays_reachable_until_its_last_mapping_goes() {
        let (mut grants, mut memory, gref, mfn) = one_grant(false);
        let (one, _) = grants.map(&mut memory, GUEST, gref, true).unwrap();
        let (other, _) = grants.map(&mut memory, GUEST, gref, true).unwrap();
        grants.unmap(&mut memory, one, bus(mfn)).unwrap();
        assert!(memory.reach(bus(mfn), true).is_some());
        grants.unmap(&mut memory, other, bus(mfn)).unwrap();
        assert!(memory.reach(bus(mfn), true).is_none());
    }

    #[test]
    fn pins_run_out_and_other_domains_grants_are_not_ours() {
        let (mut grants, mut memory, gref, mfn) = one_grant(false);
        for _ in 0..PINS {
            assert!(grants.map(&mut memory, GUEST, gref, false).is_ok());
        }
        assert_eq!(grants.map(&mut memory, GUEST, gref, false), Err(GENERAL_ERROR));
        assert!(grants.map(&mut memory, GUEST, gref, true).is_ok(), "the kinds count apart");
        let foreign = grants.offer(GUEST, DomId(9), mfn, false);
        assert_eq!(grants.map(&mut memory, GUEST, foreign, false), Err(BAD_GNTREF));
    }
}
