//! What a device needs to connect, taken when it is offered and kept until it is over: the slots of
//! its ring and an event channel. So a budget that is used up refuses the attach, where the
//! toolstack still looks, and not the connection. (An address for the ring page is there for every
//! device, see [`crate::limits::MAPPED_PAGES`].)

use core::fmt;

use super::slots::{OutOfMemory, Slots};
use crate::hal::{Hal, HypervisorError};
use crate::units::{DomId, Port};

/// A budget that is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shortage {
    Memory(OutOfMemory),
    Ports(HypervisorError),
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Ports(error) => {
                write!(f, "event channels: none is left ({error}); ")?;
                f.write_str("raise max_event_channels= in platter's configuration")
            }
        }
    }
}

/// What is reserved, and not lent to a connection.
#[derive(Debug)]
pub(super) struct Reserve {
    slots: Option<Slots>,
    /// Open to nobody but us: closed just before another is bound, it leaves room for that one.
    port: Option<Port>,
}

impl Reserve {
    pub(super) const NOTHING: Self = Self { slots: None, port: None };

    /// Reserves what is not reserved already. Nothing may be lent.
    ///
    /// # Errors
    /// Which budget is used up; nothing is reserved then.
    pub(super) fn fill(&mut self, hal: &mut impl Hal) -> Result<(), Shortage> {
        if self.slots.is_none() {
            self.slots = Some(Slots::take(hal).map_err(Shortage::Memory)?);
        }
        if self.port.is_none() {
            match hal.alloc_unbound(DomId::SELF) {
                Ok(port) => self.port = Some(port),
                Err(error) => {
                    self.empty(hal);
                    return Err(Shortage::Ports(error));
                }
            }
        }
        Ok(())
    }

    /// Gives everything back.
    pub(super) fn empty(&mut self, hal: &mut impl Hal) {
        if let Some(slots) = self.slots.take() {
            slots.give_back(hal);
        }
        if let Some(port) = self.port.take() {
            hal.close(port);
        }
    }

    /// Binds the port `remote` of `guest` in place of the reserved one, and lends the slots.
    ///
    /// # Errors
    /// The guest has no such port for us; everything stays reserved.
    ///
    /// # Panics
    /// When nothing is reserved.
    pub(super) fn bind(
        &mut self,
        hal: &mut impl Hal,
        guest: DomId,
        remote: Port,
    ) -> Result<(Port, Slots), HypervisorError> {
        if let Some(port) = self.port.take() {
            hal.close(port);
        }
        match hal.bind_interdomain(guest, remote) {
            Ok(port) => Ok((port, self.slots.take().expect("reserved when the device was offered"))),
            Err(error) => {
                self.reserve_port_again(hal);
                Err(error)
            }
        }
    }

    /// Closes a port and takes the slots that were lent.
    pub(super) fn unbind(&mut self, hal: &mut impl Hal, port: Port, slots: Slots) {
        hal.close(port);
        self.reserve_port_again(hal);
        self.slots = Some(slots);
    }

    /// Takes the place of a port that was just closed, so there is one.
    fn reserve_port_again(&mut self, hal: &mut impl Hal) {
        self.port = hal.alloc_unbound(DomId::SELF).ok();
    }
}
