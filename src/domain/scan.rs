//! Finds our devices in xenstore: `backend/vbd/<frontend>/<device>` below our home. The
//! directories come and go as the toolstack likes, parents included, so each notice walks the
//! whole tree and the result is compared with what is known.

use heapless::Vec;

use crate::blkback::DeviceId;
use crate::limits;
use crate::units::DomId;
use crate::wire::xenbus::{self, Answer, Job};

/// The token of the watch on `backend`.
pub(super) const TOKEN: &str = "backend";

/// Devices and frontends that one walk takes in: all that can be served, and as many again to be
/// refused.
const FOUND: usize = 2 * limits::VBDS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle,
    Frontends,
    /// Listing the devices of the frontend at this place.
    Devices(usize),
}

/// The walk.
pub(super) struct Scan {
    /// Something changed since the walk began.
    noticed: bool,
    asked: bool,
    state: State,
    frontends: Vec<DomId, FOUND>,
    found: Vec<DeviceId, FOUND>,
}

impl Scan {
    pub(super) const fn new() -> Self {
        Self { noticed: false, asked: false, state: State::Idle, frontends: Vec::new(), found: Vec::new() }
    }

    /// The tree may have changed.
    pub(super) fn notice(&mut self) {
        self.noticed = true;
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        if self.asked {
            return None;
        }
        if self.state == State::Idle && self.noticed {
            self.noticed = false;
            self.frontends.clear();
            self.found.clear();
            self.state = State::Frontends;
        }
        let path = match self.state {
            State::Idle => return None,
            State::Frontends => xenbus::path(format_args!("backend/vbd")),
            State::Devices(index) => xenbus::path(format_args!("backend/vbd/{}", self.frontends[index])),
        };
        self.asked = true;
        Some(Job::new(&path).list(""))
    }

    /// What a listing brought. A directory that is not there has no names.
    pub(super) fn job_done<'n>(&mut self, answers: &[Answer], names: impl Iterator<Item = &'n str>) {
        self.asked = false;
        if let Some(Err(error)) = answers.first()
            && *error != xenbus::StoreError::NotFound
        {
            log::warn!("xenstore: cannot list devices: {error:?}");
        }
        match self.state {
            State::Idle => {}
            State::Frontends => {
                self.frontends.extend(names.filter_map(xenbus::number).map(DomId).take(FOUND));
                self.state = self.devices_from(0);
            }
            State::Devices(index) => {
                let guest = self.frontends[index];
                let room = FOUND - self.found.len();
                let devices = names.filter_map(xenbus::number).map(|device| DeviceId { guest, device });
                self.found.extend(devices.take(room));
                self.state = self.devices_from(index + 1);
            }
        }
    }

    fn devices_from(&self, index: usize) -> State {
        if index < self.frontends.len() { State::Devices(index) } else { State::Idle }
    }

    /// Whether the walk has just ended.
    pub(super) fn complete(&self) -> bool {
        self.state == State::Idle && !self.asked
    }

    /// What the last complete walk found.
    pub(super) fn found(&self) -> impl Iterator<Item = DeviceId> {
        self.found.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Scan;

    #[test]
    fn walks_the_whole_tree() {
        let mut scan = Scan::new();
        assert!(scan.next_job().is_none());
        scan.notice();
        assert_eq!(scan.next_job().unwrap().base, "backend/vbd");
        assert!(scan.next_job().is_none(), "one job at a time");
        scan.job_done(&[], ["5", "junk", "7"].into_iter());
        assert_eq!(scan.next_job().unwrap().base, "backend/vbd/5");
        scan.notice();
        scan.job_done(&[], ["51712", "51728"].into_iter());
        assert!(!scan.complete());
        assert_eq!(scan.next_job().unwrap().base, "backend/vbd/7");
        scan.job_done(&[], ["51712"].into_iter());
        assert!(scan.complete());
        assert_eq!(scan.found().count(), 3);
        assert!(scan.next_job().is_some(), "noticed during the walk");
    }
}
