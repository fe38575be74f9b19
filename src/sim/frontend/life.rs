//! The xenbus life of a frontend: what it makes of the backend's state, and says of itself.

use super::{Frontend, Link, Stage};
use crate::sim::front_ring::FrontRing;
use crate::sim::machine::{DRIVER, Machine, Violation};

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
                self.let_go(machine, true);
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

    /// Grants a ring and opens an event channel (`talk_to_blkback`).
    pub(super) fn offer(&mut self, machine: &mut Machine) {
        let guest = self.guest();
        let mfn = machine.memory.take();
        let gref = machine.grants.offer(guest, DRIVER, mfn, false);
        let port = machine.ports.open(guest, DRIVER).expect("a guest has ports");
        let ring = FrontRing::new(machine.memory.frame(mfn));
        self.link = Some(Link { ring, mfn, gref, port, handling: None });
        let nodes = [("ring-ref", gref.0.to_string()), ("event-channel", port.0.to_string())];
        let fixed = [("protocol", "x86_64-abi".to_string()), ("feature-persistent", "0".to_string())];
        for (node, value) in nodes.into_iter().chain(fixed) {
            machine.tree.write(&format!("{}/{node}", self.path), value);
        }
        self.hasty = false;
        self.enter(machine, Stage::Offered, 3);
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
        self.enter(machine, Stage::Connected, 4);
        self.repeat(machine);
        self.think(machine);
    }

    /// The toolstack removed the device. When it did so after the backend had closed, nothing may
    /// be mapped any more; when it forced its way, that is ours to put up with.
    fn remove(&mut self, machine: &mut Machine) {
        self.let_go(machine, self.backend_is_closed);
        self.stage = Stage::Removed;
    }

    /// Gives up what is in flight and takes all pages back; `unmapped` says that we must have let
    /// go of them.
    fn let_go(&mut self, machine: &mut Machine, unmapped: bool) {
        self.forget();
        let guest = self.guest();
        for request in self.left.drain(..) {
            request.give_back(machine, guest, unmapped);
        }
        self.unlink(machine);
        for link in self.old_links.drain(..) {
            if machine.grants.revoke(guest, link.gref) {
                machine.memory.give_back(link.mfn);
            } else if unmapped {
                machine.violated(Violation::StillMapped(guest, link.gref));
            }
        }
    }

    /// Nothing that is in flight will be answered; the pages stay granted.
    pub(super) fn forget(&mut self) {
        let outstanding = core::mem::take(&mut self.outstanding).into_values();
        for mut request in outstanding.chain(self.to_repeat.drain(..)) {
            request.forget(&mut self.shadow);
            self.left.push(request);
        }
    }

    /// Keeps the ring's page for the backend, which may use it still.
    pub(super) fn unlink(&mut self, machine: &mut Machine) {
        if let Some(link) = self.link.take() {
            machine.ports.close(self.disk.guest, link.port);
            self.old_links.push(link);
        }
    }
}
