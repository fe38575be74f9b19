//! One ring of a connected frontend: its pages, mapped, and its event channel.

use core::fmt;

use heapless::Vec;

use crate::hal::{GrantMapping, GrantedPage, Hal, HypervisorError};
use crate::limits::RING_PAGES;
use crate::units::{DomId, GrantRef, Port};
use crate::wire::blkif::Protocol;
use crate::wire::ring::{BackRing, RingPages};

/// Where a frontend's ring is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Endpoint {
    /// The ring's pages, in order.
    pub(super) pages: Vec<GrantRef, RING_PAGES>,
    /// The frontend's event channel port.
    pub(super) port: Port,
}

/// Why a ring was not connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ConnectError {
    /// A page of it.
    Page(GrantRef, HypervisorError),
    /// The event channel.
    Port(Port, HypervisorError),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(gref, error) => write!(f, "cannot map its ring-ref {}: {error}", gref.0),
            Self::Port(port, error) => write!(f, "cannot bind its event-channel {}: {error}", port.0),
        }
    }
}

/// A connected ring.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) back: BackRing,
    /// Our end of its event channel.
    pub(super) port: Port,
    mappings: Vec<GrantMapping, RING_PAGES>,
}

impl Link {
    /// Maps the pages of a ring of `guest` and nobody else's, and binds its event channel with what
    /// is given for that.
    pub(super) fn open<H: Hal>(
        hal: &mut H,
        guest: DomId,
        endpoint: &Endpoint,
        protocol: Protocol,
        bind: impl FnOnce(&mut H, Port) -> Result<Port, HypervisorError>,
    ) -> Result<Self, ConnectError> {
        let (mut pages, mut mappings) = (RingPages::new(), Vec::new());
        for gref in &endpoint.pages {
            match hal.map_page(guest, *gref) {
                Ok(GrantedPage { page, mapping }) => {
                    pages.push(page).expect("an endpoint has no more pages");
                    mappings.push(mapping).expect("an endpoint has no more pages");
                }
                Err(error) => {
                    unmap(hal, pages, mappings);
                    return Err(ConnectError::Page(*gref, error));
                }
            }
        }
        match bind(hal, endpoint.port) {
            Ok(port) => Ok(Self { back: BackRing::attach(pages, protocol), port, mappings }),
            Err(error) => {
                unmap(hal, pages, mappings);
                Err(ConnectError::Port(endpoint.port, error))
            }
        }
    }

    /// Gives the pages back. The event channel is the caller's to close.
    pub(super) fn close(self, hal: &mut impl Hal) {
        unmap(hal, self.back.detach(), self.mappings);
    }
}

fn unmap(hal: &mut impl Hal, pages: RingPages, mappings: Vec<GrantMapping, RING_PAGES>) {
    for (page, mapping) in pages.into_iter().zip(mappings) {
        hal.unmap_page(GrantedPage { page, mapping });
    }
}
