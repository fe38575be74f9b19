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
    /// The port of each vbd.
    vbds: heapless::Vec<Option<Port>, { limits::VBD_PLACES }>,
}

impl PortTable {
    pub(super) const fn new() -> Self {
        Self { owners: heapless::Vec::new(), vbds: heapless::Vec::new() }
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

    /// Follows the port of a vbd; returns whether it has a new one.
    pub(super) fn set_vbd(&mut self, index: usize, port: Option<Port>) -> bool {
        if index >= self.vbds.len() && self.vbds.resize(index + 1, None).is_err() {
            return false;
        }
        let before = core::mem::replace(&mut self.vbds[index], port);
        if before == port {
            return false;
        }
        if let Some(before) = before {
            self.set(before, None);
        }
        if let Some(port) = port {
            self.set(port, Some(Owner::Vbd(index as u16)));
        }
        port.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::{Owner, PortTable};
    use crate::units::Port;

    #[test]
    fn a_port_follows_its_vbd() {
        let mut table = PortTable::new();
        assert!(table.set_vbd(3, Some(Port(9))));
        assert!(!table.set_vbd(3, Some(Port(9))));
        assert_eq!(table.owner(Port(9)), Some(Owner::Vbd(3)));
        assert!(table.set_vbd(3, Some(Port(7))));
        assert_eq!((table.owner(Port(9)), table.owner(Port(7))), (None, Some(Owner::Vbd(3))));
        assert!(!table.set_vbd(3, None));
        assert_eq!(table.owner(Port(7)), None);
    }

    #[test]
    fn ports_out_of_range_have_no_owner() {
        let mut table = PortTable::new();
        table.set(Port(u32::MAX), Some(Owner::Store));
        assert_eq!(table.owner(Port(u32::MAX)), None);
    }
}
