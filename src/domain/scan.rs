//! Finds our devices in xenstore: `backend/<kind>/<frontend>/<device>` below our home. The
//! directories come and go as the toolstack likes, parents included, so each notice walks the
//! whole tree and the result is compared with what is known.

use heapless::Vec;

use super::foreign::Foreign;
use crate::blkback::DeviceId;
use crate::limits;
use crate::units::DomId;
use crate::wire::xenbus::{self, Answer, Job, Node, Path, StoreError};

/// The token of the watch on `backend`.
pub(super) const TOKEN: &str = "backend";

/// The kind of device that is served.
const SERVED: &str = "vbd";

/// Devices and frontends that one walk takes in: all that can be served, and as many again to be
/// refused.
const FOUND: usize = 2 * limits::VBDS;

/// Kinds of devices that one walk takes in; libxl 4.20 knows some fifteen.
const KINDS: usize = 16;

/// A directory to be listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The kinds of devices.
    Top,
    /// The frontends with devices of the kind at this place.
    Kind(usize),
    /// The devices of that kind of this frontend.
    Frontend(usize, DomId),
}

/// The walk.
pub(super) struct Scan {
    /// Something changed since the walk began.
    noticed: bool,
    /// The directory that is being listed.
    asked: Option<Place>,
    /// Directories still to be listed, the next one last.
    places: Vec<Place, { FOUND + KINDS }>,
    kinds: Vec<Node, KINDS>,
    found: Vec<DeviceId, FOUND>,
    /// A device that is not for us, to be refused; the rest is found when it has gone.
    foreign: Option<Foreign>,
}

impl Scan {
    pub(super) const fn new() -> Self {
        Self {
            noticed: false,
            asked: None,
            places: Vec::new(),
            kinds: Vec::new(),
            found: Vec::new(),
            foreign: None,
        }
    }

    /// The tree may have changed.
    pub(super) fn notice(&mut self) {
        self.noticed = true;
    }

    /// Whether there is a job now.
    pub(super) fn has_job(&self) -> bool {
        self.asked.is_none() && (self.noticed || !self.places.is_empty())
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        if !self.has_job() {
            return None;
        }
        if self.places.is_empty() {
            self.noticed = false;
            self.kinds.clear();
            self.found.clear();
            self.places.push(Place::Top).expect("the list is empty");
        }
        let place = self.places.pop()?;
        self.asked = Some(place);
        Some(Job::new(&self.path(place)).list(""))
    }

    /// What a listing brought. A directory that is not there has no names.
    pub(super) fn job_done<'n>(&mut self, answers: &[Answer], names: impl Iterator<Item = &'n str>) {
        let Some(place) = self.asked.take() else { return };
        if let Some(Err(error)) = answers.first()
            && *error != StoreError::NotFound
        {
            log::warn!("xenstore: cannot list {}: {error:?}", self.path(place));
        }
        match place {
            Place::Top => {
                self.kinds.extend(names.filter_map(|name| Node::try_from(name).ok()).take(KINDS));
                self.places.extend((0..self.kinds.len()).map(Place::Kind));
            }
            Place::Kind(kind) => {
                let room = self.places.capacity() - self.places.len();
                let frontends = names.filter_map(xenbus::number).map(DomId);
                self.places.extend(frontends.map(|guest| Place::Frontend(kind, guest)).take(room));
            }
            Place::Frontend(kind, guest) => {
                let mut devices = names.filter_map(xenbus::number).map(|device| DeviceId { guest, device });
                if self.kinds[kind] == SERVED {
                    let room = FOUND - self.found.len();
                    self.found.extend(devices.take(room));
                } else if let Some(id) = devices.next() {
                    self.foreign.get_or_insert_with(|| Foreign::new(self.kinds[kind].clone(), id));
                }
            }
        }
    }

    fn path(&self, place: Place) -> Path {
        match place {
            Place::Top => xenbus::path(format_args!("backend")),
            Place::Kind(kind) => xenbus::path(format_args!("backend/{}", self.kinds[kind])),
            Place::Frontend(kind, guest) => {
                xenbus::path(format_args!("backend/{}/{guest}", self.kinds[kind]))
            }
        }
    }

    /// Whether the walk has just ended.
    pub(super) fn complete(&self) -> bool {
        self.places.is_empty() && self.asked.is_none()
    }

    /// What the last complete walk found.
    pub(super) fn found(&self) -> impl Iterator<Item = DeviceId> {
        self.found.iter().copied()
    }

    /// The device to be refused, once.
    pub(super) fn take_foreign(&mut self) -> Option<Foreign> {
        self.foreign.take()
    }
}

#[cfg(test)]
mod tests {
    use super::Scan;

    /// Answers the listing of `path` with `names`.
    fn listed(scan: &mut Scan, path: &str, names: &[&str]) {
        assert_eq!(scan.next_job().expect("there is more to list").base, path);
        assert!(scan.next_job().is_none(), "one job at a time");
        scan.job_done(&[], names.iter().copied());
    }

    #[test]
    fn walks_the_whole_tree() {
        let mut scan = Scan::new();
        assert!(scan.next_job().is_none());
        scan.notice();
        listed(&mut scan, "backend", &["vbd"]);
        listed(&mut scan, "backend/vbd", &["5", "junk", "7"]);
        listed(&mut scan, "backend/vbd/7", &["51712"]);
        scan.notice();
        assert!(!scan.complete());
        listed(&mut scan, "backend/vbd/5", &["51712", "51728"]);
        assert!(scan.complete());
        assert_eq!(scan.found().count(), 3);
        assert_eq!(scan.take_foreign(), None);
        assert!(scan.next_job().is_some(), "noticed during the walk");
    }

    #[test]
    fn devices_of_other_kinds_are_not_ours() {
        let mut scan = Scan::new();
        scan.notice();
        listed(&mut scan, "backend", &["qdisk", "vbd", "a-name-that-is-longer-than-any-kind-of-device"]);
        listed(&mut scan, "backend/vbd", &[]);
        listed(&mut scan, "backend/qdisk", &["5"]);
        listed(&mut scan, "backend/qdisk/5", &["51728", "51744"]);
        assert!(scan.complete());
        assert_eq!(scan.found().count(), 0);
        let foreign = scan.take_foreign().expect("it is to be refused");
        assert_eq!(foreign.job().base, "backend/qdisk/5/51728");
        assert_eq!(scan.take_foreign(), None);
    }

    #[test]
    fn a_crowd_is_cut() {
        let mut scan = Scan::new();
        scan.notice();
        let kinds: Vec<String> = (0..40).map(|n| format!("kind{n}")).collect();
        listed(&mut scan, "backend", &kinds.iter().map(String::as_str).collect::<Vec<_>>());
        let many: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        while let Some(job) = scan.next_job() {
            assert!(job.base.len() < 40);
            scan.job_done(&[], many.iter().copied());
        }
        assert!(scan.complete());
    }
}
