//! Whose an event channel is.

use crate::limits;
use crate::units::Port;

/// Who is to be told of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Owner {
    Store,
    Pci,
    Disk,
    /// The vbd at this place of the table.
    Vbd(u16),
}

/// One entry a port.
pub(super) struct PortTable {
    owners: heapless::Vec<Option<Owner>, { limits::PORTS }>,
    /// For each vbd, of which of its changes the ports are.
    changes: heapless::Vec<u32, { limits::VBD_PLACES }>,
}

impl PortTable {
    pub(super) const fn new() -> Self {
        Self { owners: heapless::Vec::new(), changes: heapless::Vec::new() }
    }

    pub(super) fn owner(&self, port: Port) -> Option<Owner> {
        self.owners.get(port.0 as usize).copied().flatten()
    }

    /// Ports are numbered from 0 up to what `max_event_channels` allows; one beyond the table is
    /// never reported, and its owner looks for work in every turn all the same.
    pub(super) fn set(&mut self, port: Port, owner: Option<Owner>) {
        let index = port.0 as usize;
        if index >= self.owners.len() && self.owners.resize(index + 1, None).is_err() {
            return;
        }
        self.owners[index] = owner;
    }

    /// Follows the ports of a vbd, which are others after each change; returns whether they are.
    pub(super) fn set_vbd(&mut self, index: usize, changes: u32, ports: impl Iterator<Item = Port>) -> bool {
        if index >= self.changes.len() && self.changes.resize(index + 1, 0).is_err() {
            return false;
        }
        if core::mem::replace(&mut self.changes[index], changes) == changes {
            return false;
        }
        let owner = Some(Owner::Vbd(index as u16));
        self.owners.iter_mut().filter(|old| **old == owner).for_each(|old| *old = None);
        ports.for_each(|port| self.set(port, owner));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Owner, PortTable};
    use crate::units::Port;

    #[test]
    fn a_port_follows_its_vbd() {
        let mut table = PortTable::new();
        let mut set = |changes, ports: &[u32]| {
            let changed = table.set_vbd(3, changes, ports.iter().copied().map(Port));
            (changed, [7, 8, 9].map(|port| table.owner(Port(port)).is_some()))
        };
        assert_eq!(set(0, &[]), (false, [false, false, false]));
        assert_eq!(set(1, &[9, 8]), (true, [false, true, true]));
        assert_eq!(set(1, &[9, 8]), (false, [false, true, true]));
        assert_eq!(set(2, &[7, 9]), (true, [true, false, true]));
        assert_eq!(set(3, &[]), (true, [false, false, false]));
    }

    #[test]
    fn ports_out_of_range_have_no_owner() {
        let mut table = PortTable::new();
        table.set(Port(u32::MAX), Some(Owner::Store));
        assert_eq!(table.owner(Port(u32::MAX)), None);
    }
}
