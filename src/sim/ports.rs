//! Event channels of all domains (xen/include/public/event_channel.h): ports, their two ends, and
//! what is pending. An event takes a moment to be noticed by a simulated peer.

use core::time::Duration;
use std::collections::BTreeMap;

use super::machine::DRIVER;
use super::rng::Rng;
use crate::units::{DomId, Instant, Pirq, Port};

/// The slowest a peer is to notice an event, in nanoseconds.
const LATENCY: u64 = 50_000;

/// `-EINVAL`, what Xen answers to a port that is not open for the caller.
pub const EINVAL: i64 = -22;

/// `-ENOSPC`, what Xen answers when a domain has no port left.
pub const ENOSPC: i64 = -28;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Binding {
    Unbound(DomId),
    Interdomain(DomId, Port),
    Pirq(Pirq),
}

#[derive(Clone, Copy, Debug)]
struct End {
    binding: Binding,
    /// Since when it is pending, or rather, from when on its owner notices.
    pending: Option<Instant>,
}

/// All ports of all domains.
#[derive(Debug)]
pub struct Ports {
    ends: BTreeMap<(DomId, Port), End>,
    /// Ports a domain may have: Xen's `max_event_channels`, and port 0 is never used.
    pub limit: u32,
    /// How often an end of another domain than the driver domain became pending.
    events: u64,
}

impl Ports {
    /// No ports yet, and at most `limit` of them a domain.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        Self { ends: BTreeMap::new(), limit, events: 0 }
    }

    /// A port of `owner` that `peer` may bind to (`EVTCHNOP_alloc_unbound`).
    ///
    /// # Errors
    /// `-ENOSPC`.
    pub fn open(&mut self, owner: DomId, peer: DomId) -> Result<Port, i64> {
        self.add(owner, Binding::Unbound(peer))
    }

    /// Binds a new port of `owner` to `remote` of `peer`; it is pending at once
    /// (`EVTCHNOP_bind_interdomain`).
    ///
    /// # Errors
    /// `-EINVAL` when that port was not opened for `owner`, `-ENOSPC`.
    pub fn bind(&mut self, owner: DomId, peer: DomId, remote: Port, now: Instant) -> Result<Port, i64> {
        let open = self.ends.get(&(peer, remote)).is_some_and(|end| end.binding == Binding::Unbound(owner));
        if !open {
            return Err(EINVAL);
        }
        let port = self.add(owner, Binding::Interdomain(peer, remote))?;
        self.set_pending(owner, port, now);
        if let Some(end) = self.ends.get_mut(&(peer, remote)) {
            end.binding = Binding::Interdomain(owner, port);
        }
        Ok(port)
    }

    /// A port that is pending at each interrupt `pirq` (`EVTCHNOP_bind_pirq`).
    ///
    /// # Errors
    /// `-ENOSPC`.
    pub fn bind_pirq(&mut self, owner: DomId, pirq: Pirq) -> Result<Port, i64> {
        self.add(owner, Binding::Pirq(pirq))
    }

    /// Closes a port; its other end is open again for the same domain, and hears nothing of it.
    /// True when there was such a port.
    pub fn close(&mut self, owner: DomId, port: Port) -> bool {
        let Some(end) = self.ends.remove(&(owner, port)) else { return false };
        if let Binding::Interdomain(peer, remote) = end.binding
            && let Some(other) = self.ends.get_mut(&(peer, remote))
        {
            other.binding = Binding::Unbound(owner);
        }
        true
    }

    /// The domain dies: all its ports close.
    pub fn bury(&mut self, owner: DomId) {
        let ports: Vec<Port> = self.of(owner).map(|(port, _)| port).collect();
        for port in ports {
            self.close(owner, port);
        }
    }

    /// Makes the other end of a port pending, if there is one (`EVTCHNOP_send`).
    pub fn send(&mut self, owner: DomId, port: Port, now: Instant, rng: &mut Rng) {
        let Some(end) = self.ends.get(&(owner, port)) else { return };
        if let Binding::Interdomain(peer, remote) = end.binding {
            let noticed = now + Duration::from_nanos(rng.within(0..LATENCY));
            self.set_pending(peer, remote, noticed);
        }
    }

    /// An interrupt: every port bound to it is pending.
    pub fn interrupt(&mut self, pirq: Pirq, now: Instant) {
        for end in self.ends.values_mut().filter(|end| end.binding == Binding::Pirq(pirq)) {
            end.pending.get_or_insert(now);
        }
    }

    /// Whether a domain has such a port.
    #[must_use]
    pub fn is_open(&self, owner: DomId, port: Port) -> bool {
        self.ends.contains_key(&(owner, port))
    }

    /// When the owner of a port notices that it is pending, if it is.
    #[must_use]
    pub fn pending(&self, owner: DomId, port: Port) -> Option<Instant> {
        self.ends.get(&(owner, port))?.pending
    }

    /// Takes the event of a port; true when it was pending.
    pub fn take(&mut self, owner: DomId, port: Port) -> bool {
        self.ends.get_mut(&(owner, port)).is_some_and(|end| end.pending.take().is_some())
    }

    /// Any one of a domain's pending ports.
    #[must_use]
    pub fn any_pending(&self, owner: DomId, rng: &mut Rng) -> Option<Port> {
        let pending: Vec<Port> =
            self.of(owner).filter(|(_, end)| end.pending.is_some()).map(|(p, _)| p).collect();
        (!pending.is_empty()).then(|| pending[rng.index(pending.len())])
    }

    /// How often an end of another domain than the driver domain became pending so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// How many ports a domain has.
    #[must_use]
    pub fn count(&self, owner: DomId) -> usize {
        self.of(owner).count()
    }

    fn of(&self, owner: DomId) -> impl Iterator<Item = (Port, &End)> {
        self.ends.range((owner, Port(0))..=(owner, Port(u32::MAX))).map(|((_, port), end)| (*port, end))
    }

    fn add(&mut self, owner: DomId, binding: Binding) -> Result<Port, i64> {
        let free = (1..self.limit).map(Port).find(|port| !self.ends.contains_key(&(owner, *port)));
        let port = free.ok_or(ENOSPC)?;
        self.ends.insert((owner, port), End { binding, pending: None });
        Ok(port)
    }

    fn set_pending(&mut self, owner: DomId, port: Port, noticed: Instant) {
        if let Some(end) = self.ends.get_mut(&(owner, port)) {
            end.pending.get_or_insert(noticed);
            self.events += u64::from(owner != DRIVER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant(7);
    const GUEST: DomId = DomId(5);

    #[test]
    fn only_the_named_domain_binds_and_gets_one_event_for_it() {
        let mut ports = Ports::new(8);
        let theirs = ports.open(GUEST, DRIVER).unwrap();
        assert_eq!(ports.bind(DomId(6), GUEST, theirs, NOW), Err(EINVAL));
        let ours = ports.bind(DRIVER, GUEST, theirs, NOW).unwrap();
        assert_eq!(ports.bind(DRIVER, GUEST, theirs, NOW), Err(EINVAL), "a port is bound once");
        assert!(ports.take(DRIVER, ours));
        assert!(!ports.take(DRIVER, ours));
    }

    #[test]
    fn a_closed_port_hears_nothing_and_its_peer_does_not_notice() {
        let (mut ports, mut rng) = (Ports::new(8), Rng::new(1));
        let theirs = ports.open(GUEST, DRIVER).unwrap();
        let ours = ports.bind(DRIVER, GUEST, theirs, NOW).unwrap();
        ports.send(DRIVER, ours, NOW, &mut rng);
        assert!(ports.take(GUEST, theirs));
        assert!(ports.close(GUEST, theirs));
        ports.send(DRIVER, ours, NOW, &mut rng);
        assert_eq!(ports.pending(GUEST, theirs), None);
        assert_eq!(ports.count(DRIVER), 1);
    }

    #[test]
    fn a_domain_runs_out_of_ports() {
        let mut ports = Ports::new(3);
        assert!(ports.open(GUEST, DRIVER).is_ok());
        assert!(ports.open(GUEST, DRIVER).is_ok());
        assert_eq!(ports.open(GUEST, DRIVER), Err(ENOSPC));
        assert!(ports.open(DRIVER, GUEST).is_ok());
    }
}
