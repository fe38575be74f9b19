//! A device that the toolstack has made for another backend than ours: a disk whose format needs
//! QEMU (`backend/qdisk`), a network interface. Nobody will ever serve it here, and for some kinds
//! libxl does not even look: so its directory is removed, as it is for a disk that is refused, and
//! the reason is left where the administrator looks for it.

use core::fmt;

use crate::blkback::DeviceId;
use crate::wire::xenbus::{self, Job, Node, Path, StoreError, XenbusState};

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// The directory is to be removed.
    Remove,
    /// The reason is to be left.
    Complain,
}

/// One such device, on its way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Foreign {
    kind: Node,
    id: DeviceId,
    step: Step,
}

impl Foreign {
    /// The device of the directory `backend/KIND/GUEST/DEVICE`.
    pub(super) const fn new(kind: Node, id: DeviceId) -> Self {
        Self { kind, id, step: Step::Remove }
    }

    /// The next job for it.
    pub(super) fn job(&self) -> Job {
        match self.step {
            // One that has moved on is another backend's business after all.
            Step::Remove => Job::new(&xenbus::path(format_args!("backend/{}/{}", self.kind, self.id)))
                .while_state(&[XenbusState::Initialising, XenbusState::Closing])
                .remove(""),
            Step::Complain => Job::new(&xenbus::path(format_args!("{}/{}", self.errors(), self.id.device)))
                .write("error", self),
        }
    }

    /// The job was done, or not; returns what is left to do.
    pub(super) fn job_done(self, result: Result<(), StoreError>) -> Option<Self> {
        match (self.step, result) {
            (Step::Remove, Ok(())) => {
                log::warn!("{} {}: refused: {self}", self.kind, self.id);
                Some(Self { step: Step::Complain, ..self })
            }
            (Step::Remove, Err(_)) | (Step::Complain, _) => None,
        }
    }

    /// Where the reasons about this guest's devices of this kind are left.
    pub(super) fn errors(&self) -> Path {
        xenbus::path(format_args!("error/backend/{}/{}", self.kind, self.id.guest))
    }
}

impl fmt::Display for Foreign {
    /// Why it is refused.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.as_str() {
            "qdisk" | "vbd3" => {
                write!(f, "only disks with format=raw are served, not those of \"{}\"", self.kind)
            }
            _ => write!(f, "only disks are served, not \"{}\"", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Foreign;
    use crate::blkback::DeviceId;
    use crate::units::DomId;
    use crate::wire::xenbus::{Node, Step, StoreError};

    fn foreign(kind: &str) -> Foreign {
        Foreign::new(Node::try_from(kind).unwrap(), DeviceId { guest: DomId(5), device: 51728 })
    }

    #[test]
    fn it_is_removed_and_the_reason_left() {
        let device = foreign("qdisk");
        let job = device.job();
        assert_eq!(job.base, "backend/qdisk/5/51728");
        assert!(job.guard.is_some() && matches!(job.steps[..], [Step::Remove(_)]));
        let device = device.job_done(Ok(())).expect("the reason is still to be left");
        let job = device.job();
        assert_eq!(job.base, "error/backend/qdisk/5/51728");
        assert!(matches!(&job.steps[..], [Step::Write(_, why)] if why.contains("format=raw")));
        assert_eq!(device.job_done(Err(StoreError::Quota)), None);
    }

    #[test]
    fn one_that_has_gone_leaves_no_reason() {
        assert_eq!(foreign("vif").job_done(Err(StoreError::Gone)), None);
    }

    #[test]
    fn the_reason_fits_the_kind() {
        assert_eq!(foreign("vif").to_string(), "only disks are served, not \"vif\"");
        assert!(foreign("vbd3").to_string().contains("format=raw"));
    }

    #[test]
    fn the_longest_paths_fit() {
        let id = DeviceId { guest: DomId(u16::MAX), device: u32::MAX };
        let device = Foreign::new(Node::try_from("k".repeat(32).as_str()).unwrap(), id);
        let _ = device.job();
        let _ = device.job_done(Ok(())).expect("the reason is still to be left").job();
    }
}
