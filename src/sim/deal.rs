//! What a frontend makes of a backend's offer: it reads what xenstore says and picks, by chance or
//! as a test wishes, a legal combination of ring, queues, layout and features, in a legal spelling
//! (xen/include/public/io/blkif.h, "Backend Device Properties" and "Frontend XenBus Nodes").

use super::machine::Machine;

/// What a test insists on; the rest is chance. What is not offered is not taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// `protocol`: a string, or no node.
    pub protocol: Option<Option<&'static str>>,
    /// `ring-page-order`.
    pub order: Option<u32>,
    /// `multi-queue-num-queues`.
    pub queues: Option<u32>,
    /// `feature-persistent`.
    pub persistent: Option<bool>,
}

/// How a frontend shows itself: what it says when it goes to state 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deal {
    /// The node `protocol`, if there is one.
    pub protocol: Option<&'static str>,
    /// The ring has 2^order pages.
    pub order: u32,
    /// `ring-page-order` and `ring-ref0` are there also with one page, and not `ring-ref`.
    pub is_numbered: bool,
    /// How many queues; one has its nodes at the top.
    pub queues: u32,
    /// `multi-queue-num-queues` is there also with one queue.
    pub is_counted: bool,
    /// `feature-persistent`.
    pub persistent: bool,
}

/// The protocols of guests on x86; one that says none means the 32-bit layout.
const PROTOCOLS: [Option<&str>; 3] = [Some("x86_64-abi"), Some("x86_32-abi"), None];

impl Deal {
    /// Picks from what the backend's directory offers now. A backend may not have said anything yet.
    pub fn pick(machine: &mut Machine, backend: &str, wish: Wish) -> Self {
        let orders = number(machine, backend, "max-ring-page-order");
        let queues = number(machine, backend, "multi-queue-max-queues");
        let rng = &mut machine.rng;
        let most = orders.unwrap_or(0).min(4);
        let order = wish.order.unwrap_or_else(|| if rng.one_in(2) { 0 } else { rng.within(0..5) as u32 });
        let count = wish.queues.unwrap_or_else(|| match rng.index(8) {
            0..4 => 1,
            4..7 => rng.within(1..5) as u32,
            _ => rng.within(1..17) as u32,
        });
        // Layouts are not offered in xenstore. A backend that offers larger rings knows them all.
        let any = wish.protocol.unwrap_or(PROTOCOLS[rng.index(PROTOCOLS.len())]);
        Self {
            protocol: if orders.is_some() { any } else { PROTOCOLS[0] },
            order: order.min(most),
            is_numbered: orders.is_some() && rng.one_in(2),
            queues: count.clamp(1, queues.unwrap_or(1).max(1)),
            is_counted: queues.is_some() && rng.one_in(2),
            persistent: wish.persistent.unwrap_or(rng.one_in(2)),
        }
    }

    /// The nodes of the frontend's directory that are the same for all queues.
    #[must_use]
    pub fn nodes(&self) -> Vec<(&'static str, String)> {
        let mut nodes = vec![("feature-persistent", u32::from(self.persistent).to_string())];
        nodes.extend(self.protocol.map(|protocol| ("protocol", protocol.to_string())));
        if self.queues > 1 || self.is_counted {
            nodes.push(("multi-queue-num-queues", self.queues.to_string()));
        }
        if self.order > 0 || self.is_numbered {
            nodes.push(("ring-page-order", self.order.to_string()));
        }
        nodes
    }

    /// Where a queue's nodes are, below the frontend's directory.
    #[must_use]
    pub fn directory(&self, queue: u32) -> String {
        if self.queues > 1 { format!("queue-{queue}/") } else { String::new() }
    }

    /// The node of a ring's page.
    #[must_use]
    pub fn ring_ref(&self, page: u32) -> String {
        if self.order > 0 || self.is_numbered { format!("ring-ref{page}") } else { "ring-ref".into() }
    }
}

/// What a connected backend serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features {
    /// Both ends keep grants.
    pub persistent: bool,
    /// Segments of an indirect request; 0 when there are none.
    pub segments: usize,
    /// Barriers.
    pub barrier: bool,
    /// Discards.
    pub discard: bool,
    /// And such as leave nothing behind.
    pub secure: bool,
}

impl Features {
    /// Reads them from the directory of a backend that is connected to a frontend of that deal.
    #[must_use]
    pub fn read(machine: &Machine, backend: &str, deal: &Deal) -> Self {
        let has = |node: &str| number(machine, backend, node) == Some(1);
        let discard = has("feature-discard");
        Self {
            persistent: deal.persistent && has("feature-persistent"),
            segments: number(machine, backend, "feature-max-indirect-segments").unwrap_or(0) as usize,
            barrier: has("feature-barrier"),
            discard,
            secure: discard && has("discard-secure"),
        }
    }
}

fn number(machine: &Machine, directory: &str, node: &str) -> Option<u32> {
    machine.tree.text(&format!("{directory}/{node}"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const BACK: &str = "/back";

    fn offering(nodes: &[(&str, u32)]) -> Machine {
        let mut machine = Machine::new(1, 8);
        nodes.iter().for_each(|(node, value)| machine.tree.write(&format!("{BACK}/{node}"), value));
        machine
    }

    #[test]
    fn what_is_not_offered_is_not_taken() {
        let mut machine = offering(&[]);
        for _ in 0..100 {
            let deal =
                Deal::pick(&mut machine, BACK, Wish { order: Some(4), queues: Some(16), ..Wish::default() });
            assert_eq!((deal.order, deal.queues, deal.ring_ref(0).as_str()), (0, 1, "ring-ref"));
            assert_eq!(deal.protocol, Some("x86_64-abi"));
            assert!(deal.nodes().iter().all(|(node, _)| ["protocol", "feature-persistent"].contains(node)));
            let kept = Features::read(&machine, BACK, &deal);
            assert_eq!(kept, Features::default());
        }
    }

    #[test]
    fn every_legal_shape_is_picked_and_no_other() {
        let mut machine = offering(&[("max-ring-page-order", 2), ("multi-queue-max-queues", 3)]);
        let deals: Vec<Deal> = (0..2000).map(|_| Deal::pick(&mut machine, BACK, Wish::default())).collect();
        let set = |of: fn(&Deal) -> u32| deals.iter().map(of).collect::<BTreeSet<u32>>();
        assert_eq!(set(|deal| deal.order), BTreeSet::from([0, 1, 2]));
        assert_eq!(set(|deal| deal.queues), BTreeSet::from([1, 2, 3]));
        let spelled = |deal: &&Deal| deal.order == 0 && deal.ring_ref(0) == "ring-ref0";
        assert!(
            deals.iter().any(|deal| spelled(&deal))
                && deals.iter().any(|deal| deal.ring_ref(0) == "ring-ref")
        );
        assert!(deals.iter().filter(|deal| deal.order > 0).all(|deal| deal.ring_ref(1) == "ring-ref1"));
        assert!(deals.iter().filter(|deal| deal.queues > 1).all(|deal| deal.directory(1) == "queue-1/"));
    }

    #[test]
    fn both_ends_must_want_to_keep_grants() {
        for (ours, theirs) in [(false, 1), (true, 0), (true, 1)] {
            let mut machine =
                offering(&[("feature-persistent", theirs), ("feature-max-indirect-segments", 256)]);
            let deal = Deal::pick(&mut machine, BACK, Wish { persistent: Some(ours), ..Wish::default() });
            let features = Features::read(&machine, BACK, &deal);
            assert_eq!((features.persistent, features.segments), (ours && theirs == 1, 256));
        }
    }
}
