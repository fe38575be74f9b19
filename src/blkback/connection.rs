//! A connection: the ring page and the event channel of one frontend while it is served.

use core::fmt;

use super::handshake::Endpoint;
use super::reserve::Reserve;
use super::ring::Ring;
use crate::hal::{GrantMapping, GrantedPage, Hal, HypervisorError};
use crate::units::{DomId, Port};
use crate::volume::Volume;

/// A connected frontend.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its requests.
    pub(super) ring: Ring,
    /// Our end of its event channel.
    pub(super) port: Port,
    /// What the frontend said, to notice when it says something else.
    pub(super) endpoint: Endpoint,
    mapping: GrantMapping,
}

/// Why a connection was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ConnectError {
    /// The ring page.
    Ring(Endpoint, HypervisorError),
    /// The event channel.
    Port(Endpoint, HypervisorError),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(said, error) => write!(f, "cannot map its ring-ref {}: {error}", said.ring.0),
            Self::Port(said, error) => write!(f, "cannot bind its event-channel {}: {error}", said.port.0),
        }
    }
}

impl Connection {
    /// Maps the ring page and binds the event channel, both of `guest` and nobody else, with what was
    /// reserved for that.
    pub(super) fn open(
        hal: &mut impl Hal,
        guest: DomId,
        endpoint: Endpoint,
        volume: Volume,
        read_only: bool,
        reserve: &mut Reserve,
    ) -> Result<Self, ConnectError> {
        let GrantedPage { page, mapping } =
            hal.map_page(guest, endpoint.ring).map_err(|error| ConnectError::Ring(endpoint, error))?;
        match reserve.bind(hal, guest, endpoint.port) {
            Ok((port, slots)) => {
                let ring = Ring::attach(page, guest, volume, read_only, slots);
                Ok(Self { ring, port, endpoint, mapping })
            }
            Err(error) => {
                hal.unmap_page(GrantedPage { page, mapping });
                Err(ConnectError::Port(endpoint, error))
            }
        }
    }

    /// Gives all of it back. Nothing is in flight any more; the last answers are published.
    pub(super) fn close(mut self, hal: &mut impl Hal, reserve: &mut Reserve) {
        if self.ring.publish() {
            hal.notify(self.port);
        }
        let (page, slots) = self.ring.detach();
        reserve.unbind(hal, self.port, slots);
        hal.unmap_page(GrantedPage { page, mapping: self.mapping });
    }
}
