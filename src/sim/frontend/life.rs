//! The xenbus life of a frontend: what it makes of the backend's state, and says of itself.

use super::{Frontend, Queue, Stage};
use crate::sim::abi::Abi;
use crate::sim::deal::{Deal, Features};
use crate::sim::front_ring::FrontRing;
use crate::sim::machine::{DRIVER, Machine, Violation};
use crate::sim::pages::{Page, Pool};

impl Frontend {
    /// Looks at xenstore, as blkfront's `blkback_changed` and the xenbus core do.
    pub(super) fn look(&mut self, machine: &mut Machine) {
        if !machine.tree.exists(&self.path) {
            self.remove(machine);
            return;
        }
        let backend = machine.tree.text(&format!("{}/state", self.backend)).unwrap_or("").to_string();
        self.backend_is_closed = backend == "6";
        match (self.stage, backend.as_str()) {
            (Stage::Waiting, "2") => self.offer(machine),
            (Stage::Waiting, _) if self.hasty => self.offer(machine),
            (Stage::Offered, "4") => self.connect(machine),
            (Stage::Finishing, _) if self.outstanding.is_empty() => self.enter(machine, Stage::Closing, 5),
            // blkfront 6.1 marks the disk dead, mounted or not, and skips state 5.
            (Stage::Offered | Stage::Connected | Stage::Finishing | Stage::Closing, "5" | "6") => {
                self.enter(machine, Stage::Closed, 6);
            }
            (Stage::Closed, "6") => {
                self.let_go(machine);
                if core::mem::take(&mut self.reopens) {
                    self.enter(machine, Stage::Waiting, 1);
                }
            }
            (Stage::Waiting | Stage::Offered | Stage::Connected | Stage::Finishing, _)
            | (Stage::Closing | Stage::Closed | Stage::Removed | Stage::Vanished, _) => {}
        }
    }

    pub(super) fn enter(&mut self, machine: &mut Machine, stage: Stage, state: u8) {
        self.stage = stage;
        machine.tree.write(&format!("{}/state", self.path), state);
    }

    /// Grants rings and opens event channels (`talk_to_blkback`). What it said before and does not
    /// say now goes.
    pub(super) fn offer(&mut self, machine: &mut Machine) {
        let deal = Deal::pick(machine, &self.backend, self.wish);
        let mut nodes: Vec<_> =
            deal.nodes().into_iter().map(|(node, value)| (node.to_string(), value)).collect();
        for queue in 0..deal.queues {
            nodes.extend(self.add_queue(machine, &deal, queue));
        }
        for node in machine.tree.children(&self.path).iter().filter(|node| is_ours(node)) {
            if !nodes.iter().any(|(name, _)| name == node) {
                machine.tree.remove(&format!("{}/{node}", self.path));
            }
        }
        for (node, value) in nodes {
            machine.tree.write(&format!("{}/{node}", self.path), value);
        }
        (self.deal, self.hasty) = (Some(deal), false);
        self.enter(machine, Stage::Offered, 3);
    }

    /// Makes a queue; returns its nodes.
    fn add_queue(&mut self, machine: &mut Machine, deal: &Deal, queue: u32) -> Vec<(String, String)> {
        let (guest, directory) = (self.guest(), deal.directory(queue));
        let pages: Vec<Page> = (0..1 << deal.order).map(|_| Page::grant(machine, guest, false)).collect();
        let port = machine.ports.open(guest, DRIVER).expect("a guest has ports");
        let frames = pages.iter().map(|page| machine.memory.frame(page.mfn)).collect();
        let ring = FrontRing::new(frames, Abi::of(deal.protocol));
        let rings = (0..)
            .zip(&pages)
            .map(|(number, page)| (format!("{directory}{}", deal.ring_ref(number)), page.gref.0.to_string()));
        let port_node = (format!("{directory}event-channel"), port.0.to_string());
        let nodes = rings.chain([port_node]).collect();
        self.queues.push(Queue { ring, pages, port, handling: None });
        nodes
    }

    /// Reads what the backend says of the disk (`blkfront_connect`, `blkif_recover`).
    fn connect(&mut self, machine: &mut Machine) {
        let number = |node: &str| {
            let text = machine.tree.text(&format!("{}/{node}", self.backend))?;
            text.parse::<u64>().ok()
        };
        let told = (number("sectors"), number("sector-size"), number("info"));
        let (Some(sectors), Some(_), Some(_)) = told else {
            machine.violated(Violation::BadDisk(self.guest()));
            return;
        };
        if sectors < self.load.first + self.load.sectors {
            machine.violated(Violation::BadDisk(self.guest()));
            return;
        }
        let deal = self.deal.expect("it has shown itself");
        self.features = Features::read(machine, &self.backend, &deal);
        self.pool = Pool::new(self.guest(), self.features.persistent);
        self.enter(machine, Stage::Connected, 4);
        if self.to_repeat.is_empty() {
            self.think(machine);
        } else {
            self.submit(machine);
        }
    }

    /// The toolstack removed the device. When it forced its way, the backend may have pages mapped, or map those yet
    /// that it finds in the ring: they stay granted, and their references are not used again.
    fn remove(&mut self, machine: &mut Machine) {
        if self.backend_is_closed {
            self.let_go(machine);
        } else {
            self.forget();
            self.unlink(machine);
            self.left.clear();
        }
        self.stage = Stage::Removed;
    }

    /// Gives up what is in flight and takes all pages back, none of which may be mapped any more.
    fn let_go(&mut self, machine: &mut Machine) {
        self.forget();
        self.unlink(machine);
        let guest = self.guest();
        self.left.drain(..).for_each(|page| page.revoke(machine, guest));
    }

    /// Nothing that is in flight will be answered; the pages stay granted.
    pub(super) fn forget(&mut self) {
        for sent in core::mem::take(&mut self.outstanding).into_values() {
            let (mut plan, pages) = sent.request.into_parts();
            plan.forget(&mut self.shadow);
            self.left.extend(pages);
        }
        self.to_repeat.drain(..).for_each(|mut plan| plan.forget(&mut self.shadow));
    }

    /// Keeps the rings' pages, and those of requests, for the backend, which may use them still.
    pub(super) fn unlink(&mut self, machine: &mut Machine) {
        for queue in self.queues.drain(..) {
            machine.ports.close(self.disk.guest, queue.port);
            self.left.extend(queue.pages);
        }
        self.left.extend(self.pool.drain());
    }
}

/// Whether a node of a frontend's directory is one that it writes when it shows itself.
fn is_ours(node: &str) -> bool {
    const NODES: [&str; 5] =
        ["protocol", "multi-queue-num-queues", "ring-page-order", "event-channel", "feature-persistent"];
    NODES.contains(&node) || node.starts_with("ring-ref") || node.starts_with("queue-")
}
