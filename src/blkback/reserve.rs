//! What a device needs to connect, taken when it is offered and kept until it is over: the means for
//! its requests and event channels for its rings. So a budget that is used up refuses the attach,
//! where the toolstack still looks, and not the connection. (Addresses for the pages of all rings
//! are there, see [`crate::limits::MAPPED_PAGES`].)

use core::fmt;

use heapless::Vec;

use super::counters::Counters;
use super::handshake::Offers;
use super::means::{Allowance, Means, OutOfMemory};
use super::requests::{Requests, Service};
use crate::hal::{Hal, HypervisorError};
use crate::limits::{KEEPERS, MAPPINGS, QUEUES, RINGS, SHARE, VBDS};
use crate::mem::private::PageBox;
use crate::units::{DomId, Instant, Port};

/// What one device has of what all share.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Share {
    /// Rings that it was offered.
    rings: usize,
    /// Whether it keeps pages mapped.
    keeps: bool,
    /// Mappings for its requests in flight.
    mappings: usize,
}

impl Share {
    /// What another device may have, of what these leave: so many rings and mappings that the budgets for all last
    /// for ever more devices, and the least of them for each that there can be.
    fn left_by(others: impl Iterator<Item = Self>) -> Allowance {
        let (mut spare, mut spare_mappings, mut keepers) = (RINGS - VBDS, MAPPINGS - VBDS * SHARE, 0);
        for other in others {
            spare -= other.rings.saturating_sub(1).min(spare);
            spare_mappings -= other.mappings.saturating_sub(SHARE).min(spare_mappings);
            keepers += usize::from(other.keeps);
        }
        // A sixteenth of what is left, as a power of two.
        let rings = 1 << (spare / QUEUES).max(1).ilog2();
        let mappings = SHARE + spare_mappings / 8;
        Allowance { rings: rings.min(QUEUES), keeps: keepers < KEEPERS, mappings }
    }
}

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

/// What is reserved.
#[derive(Debug)]
pub(super) struct Reserve {
    /// In a page of its own; unless it is lent to a connection.
    pub(super) requests: Option<PageBox<Requests>>,
    share: Share,
    /// Open to nobody but us: closed just before another is bound, it leaves room for that one.
    ports: Vec<Port, QUEUES>,
}

impl Reserve {
    pub(super) const NOTHING: Self =
        Self { requests: None, share: Share { rings: 0, keeps: false, mappings: 0 }, ports: Vec::new() };

    /// What it has of what all devices share.
    pub(super) const fn share(&self) -> Share {
        self.share
    }

    /// What a frontend may be offered with it.
    ///
    /// # Panics
    /// When nothing is reserved, or the means are lent.
    pub(super) fn offers(&self) -> Offers {
        let means = self.requests.as_ref().expect("reserved before the device is offered").means();
        Offers { queues: means.links.most, indirect: means.is_full, persistent: means.keep.is_some() }
    }

    /// Counts from now on: the device is another one than before.
    pub(super) fn count_anew(&mut self, now: Instant) {
        if let Some(requests) = &mut self.requests {
            requests.means_mut().counters = Counters::new(now);
        }
    }

    /// Reserves what the others leave, if nothing is reserved already, for a device that is served so.
    /// Nothing may be lent.
    ///
    /// # Errors
    /// Which budget is used up; nothing is reserved then.
    pub(super) fn fill(
        &mut self,
        hal: &mut impl Hal,
        service: Service,
        others: impl Iterator<Item = Share>,
        now: Instant,
    ) -> Result<(), Shortage> {
        if let Some(requests) = self.requests.as_mut().filter(|_| !self.ports.is_empty()) {
            requests.serve(service);
            return Ok(());
        }
        self.empty(hal);
        let allowance = Share::left_by(others);
        let (page, mut means) = Means::take(hal, allowance, now).map_err(Shortage::Memory)?;
        for _ in 0..means.links.most {
            match hal.alloc_unbound(DomId::SELF) {
                Ok(port) => self.ports.push(port).expect("one for each ring"),
                Err(_) if !self.ports.is_empty() => break,
                Err(error) => {
                    means.give_back(hal);
                    hal.return_private(page);
                    return Err(Shortage::Ports(error));
                }
            }
        }
        means.links.most = self.ports.len();
        let (rings, keeps, mappings) = (self.ports.len(), means.keep.is_some(), means.mappings);
        self.share = Share { rings, keeps, mappings };
        self.requests = Some(PageBox::new(page, Requests::new(service, means)));
        Ok(())
    }

    /// Gives everything back.
    pub(super) fn empty(&mut self, hal: &mut impl Hal) {
        if let Some(requests) = self.requests.take() {
            let (page, requests) = requests.into_parts();
            requests.into_means().give_back(hal);
            hal.return_private(page);
        }
        while let Some(port) = self.ports.pop() {
            hal.close(port);
        }
        self.share = Share::default();
    }

    /// Binds the port `remote` of `guest` in place of a reserved one.
    ///
    /// # Errors
    /// The guest has no such port for us; what was reserved stays so.
    pub(super) fn bind(
        &mut self,
        hal: &mut impl Hal,
        guest: DomId,
        remote: Port,
    ) -> Result<Port, HypervisorError> {
        if let Some(port) = self.ports.pop() {
            hal.close(port);
        }
        hal.bind_interdomain(guest, remote).inspect_err(|_| self.reserve_port_again(hal))
    }

    /// Closes a port.
    pub(super) fn unbind(&mut self, hal: &mut impl Hal, port: Port) {
        hal.close(port);
        self.reserve_port_again(hal);
    }

    /// Takes the place of a port that was just closed, so there is one.
    fn reserve_port_again(&mut self, hal: &mut impl Hal) {
        if let Ok(port) = hal.alloc_unbound(DomId::SELF) {
            // There were as many before.
            let _ = self.ports.push(port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blkback::means::PLAIN;
    use crate::blkback::testing::Machine;
    use crate::hal::Events;
    use crate::volume::tests::volume;
    use std::vec::Vec;

    const MUCH_MEMORY: usize = 100_000;

    fn service() -> Service {
        Service { guest: DomId(5), volume: volume(512, 1000), read_only: false, discards: false }
    }

    /// A reserve of a device beside these.
    fn filled(machine: &mut Machine, others: &[Share]) -> (Reserve, Result<(), Shortage>) {
        let mut reserve = Reserve::NOTHING;
        let result = reserve.fill(machine, service(), others.iter().copied(), Instant(1));
        (reserve, result)
    }

    #[test]
    fn every_device_that_there_can_be_has_a_ring_and_the_first_have_more() {
        let mut shares = Vec::new();
        while shares.len() < VBDS {
            let Allowance { rings, keeps, mappings } = Share::left_by(shares.iter().copied());
            shares.push(Share { rings, keeps, mappings });
        }
        let mut sizes: Vec<_> = shares.iter().map(|share| share.rings).collect();
        assert!(sizes.is_sorted_by(|one, next| one >= next), "fewer as the budget shrinks");
        assert!(sizes.iter().sum::<usize>() <= RINGS);
        sizes.dedup();
        assert_eq!(sizes, [16, 8, 4, 2, 1]);
        assert_eq!(shares.iter().filter(|share| share.keeps).count(), KEEPERS);
        assert!(shares[KEEPERS - 1].keeps, "those that came first");
        let mappings: Vec<_> = shares.iter().map(|share| share.mappings).collect();
        assert!(mappings.is_sorted_by(|one, next| one >= next), "fewer as the budget shrinks");
        assert!(mappings.iter().sum::<usize>() <= MAPPINGS, "no mapping fails for want of a place");
        assert!((mappings[0], mappings[8], mappings[VBDS - 1]) > (2000, 900, SHARE - 1));
        // When the first goes, its share is there for the next.
        let left_by = |skip| {
            let Allowance { rings, keeps, mappings } = Share::left_by(shares.iter().copied().skip(skip));
            (rings, keeps, mappings > SHARE + 200)
        };
        assert_eq!(left_by(1), (2, true, true));
        assert_eq!(left_by(VBDS / 2), (16, true, true));
    }

    #[test]
    fn what_is_reserved_is_offered_and_given_back() {
        let offers = |ports, pages| {
            let mut machine = Machine::with(ports, pages);
            let (mut reserve, result) = filled(&mut machine, &[]);
            assert_eq!(result, Ok(()));
            let Offers { queues, indirect, persistent } = reserve.offers();
            let Share { rings, keeps, .. } = reserve.share();
            assert_eq!((rings, keeps), (queues, persistent));
            assert_eq!(machine.reserved.len(), queues);
            let (taken, reserved) = (machine.taken_pages, machine.reserved.clone());
            assert_eq!(reserve.fill(&mut machine, service(), [].into_iter(), Instant(2)), Ok(()));
            assert_eq!((machine.taken_pages, &machine.reserved), (taken, &reserved), "it is there already");
            reserve.empty(&mut machine);
            assert_eq!((machine.taken_pages, machine.reserved.len()), (0, 0));
            assert_eq!(reserve.share(), Share::default());
            (queues, indirect, persistent)
        };
        assert_eq!(offers(100, MUCH_MEMORY), (16, true, true));
        assert_eq!(offers(100, PLAIN), (1, false, false));
        assert_eq!(offers(5, MUCH_MEMORY), (5, true, true), "as many rings as there are event channels");
        assert_eq!(offers(1, MUCH_MEMORY), (1, true, true));
    }

    #[test]
    fn a_shortage_leaves_nothing_reserved() {
        let mut machine = Machine::with(0, MUCH_MEMORY);
        let (reserve, result) = filled(&mut machine, &[]);
        assert!(matches!(result, Err(Shortage::Ports(_))));
        assert_eq!((machine.taken_pages, reserve.share()), (0, Share::default()));
        let mut machine = Machine::with(100, PLAIN - 1);
        let (reserve, result) = filled(&mut machine, &[]);
        assert!(matches!(result, Err(Shortage::Memory(_))));
        assert!(
            (machine.taken_pages, machine.reserved.len()) == (0, 0) && reserve.share() == Share::default()
        );
    }

    #[test]
    fn a_port_takes_the_place_of_a_reserved_one_and_leaves_it() {
        let mut machine = Machine::with(2, PLAIN);
        machine.open = [(5, 15)].into();
        let (mut reserve, _) = filled(&mut machine, &[]);
        let mut other = filled(&mut machine, &[]).0;
        assert_eq!(machine.reserved.len(), 1, "there is memory for one alone");
        let other_port = machine.alloc_unbound(DomId::SELF).unwrap();
        assert!(reserve.bind(&mut machine, DomId(5), Port(16)).is_err());
        assert_eq!(machine.reserved.len(), 2, "what was reserved stays so");
        let port = reserve.bind(&mut machine, DomId(5), Port(15)).unwrap();
        assert_eq!((machine.bound.len(), machine.reserved.len()), (1, 1));
        reserve.unbind(&mut machine, port);
        assert_eq!((machine.bound.len(), machine.reserved.len()), (0, 2));
        machine.close(other_port);
        other.empty(&mut machine);
        reserve.empty(&mut machine);
        assert_eq!((machine.taken_pages, machine.reserved.len()), (0, 0));
    }
}
