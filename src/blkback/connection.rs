//! A connection: the rings of one frontend while it is served. It is made ring by ring, as the
//! frontend's directory is read.

use super::handshake::Terms;
use super::link::{ConnectError, Endpoint, Link};
use super::requests::Requests;
use super::reserve::Reserve;
use crate::hal::{GrantMapping, Hal};
use crate::mem::private::PageBox;
use crate::units::{DomId, Instant, Port};

/// Kept pages that are given back by one call.
const UNMAPS: usize = 64;

/// A frontend that is connected, or about to be.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its requests.
    pub(super) requests: PageBox<Requests>,
    /// What the frontend said, to notice when it says something else.
    pub(super) terms: Terms,
    guest: DomId,
}

impl Connection {
    /// A connection without rings, with what was reserved for its requests.
    ///
    /// # Panics
    /// When nothing is reserved.
    pub(super) fn new(guest: DomId, terms: Terms, reserve: &mut Reserve) -> Self {
        let mut requests = reserve.requests.take().expect("reserved when the device was offered");
        requests.open(terms.persistent);
        Self { requests, terms, guest }
    }

    /// The number of the ring to be connected next, if there is one.
    pub(super) fn next_ring(&self) -> Option<usize> {
        let rings = self.requests.means().links.len();
        (rings < self.terms.queues).then_some(rings)
    }

    /// Connects the next ring.
    pub(super) fn join(
        &mut self,
        hal: &mut impl Hal,
        endpoint: &Endpoint,
        reserve: &mut Reserve,
    ) -> Result<(), ConnectError> {
        let guest = self.guest;
        let link = Link::open(hal, guest, endpoint, self.terms.protocol, |hal, remote| {
            reserve.bind(hal, guest, remote)
        })?;
        self.requests.means_mut().links.push(link);
        Ok(())
    }

    /// The event channels.
    pub(super) fn ports(&self) -> impl Iterator<Item = Port> {
        self.requests.means().links.iter().map(|link| link.port)
    }

    /// Gives pages back that were idle for long.
    pub(super) fn unmap_idle(&mut self, hal: &mut impl Hal, now: Instant) {
        unmap_all(hal, || self.requests.means_mut().keep.as_mut()?.take_idle(now));
    }

    /// When there are such pages.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        self.requests.means().keep.as_ref()?.idle_at()
    }

    /// Gives all of it back. Nothing is in flight any more; the last answers are published.
    pub(super) fn close(mut self, hal: &mut impl Hal, reserve: &mut Reserve) {
        self.requests.publish(|port| hal.notify(port));
        unmap_all(hal, || self.requests.means_mut().keep.as_mut()?.take_oldest());
        self.requests.close();
        while let Some(link) = self.requests.means_mut().links.pop() {
            reserve.unbind(hal, link.port);
            link.close(hal);
        }
        reserve.requests = Some(self.requests);
    }
}

fn unmap_all(hal: &mut impl Hal, mut next: impl FnMut() -> Option<GrantMapping>) {
    loop {
        let batch: heapless::Vec<_, UNMAPS> = core::iter::from_fn(&mut next).take(UNMAPS).collect();
        if batch.is_empty() {
            return;
        }
        hal.unmap(&batch);
    }
}
