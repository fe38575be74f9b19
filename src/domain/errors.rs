//! The error nodes, where vbds leave the reasons of their failures for the administrator. They cost
//! nodes of our xenstore quota and outlive the guests they are about, so those of the last few
//! guests are kept: a guest that fails and starts again for ever must not use the quota up.

use heapless::Vec;

use crate::limits;
use crate::wire::xenbus::{Job, Path};

/// Where they are.
pub(super) struct Errors {
    /// The directories with a guest's error nodes, the latest last.
    directories: Vec<Path, { limits::ERRORS }>,
    /// The directory that is to go.
    old: Option<Path>,
}

impl Errors {
    pub(super) const fn new() -> Self {
        Self { directories: Vec::new(), old: None }
    }

    /// A device leaves a reason below this directory, which is its guest's.
    pub(super) fn note(&mut self, directory: Path) {
        self.directories.retain(|known| *known != directory);
        if self.directories.is_full() {
            self.old = Some(self.directories.remove(0));
        }
        // There is room.
        let _ = self.directories.push(directory);
    }

    /// Whether there is a job now.
    pub(super) const fn has_job(&self) -> bool {
        self.old.is_some()
    }

    /// The removal that is due, if any, once.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        Some(Job::new(&self.old.take()?).remove(""))
    }
}

#[cfg(test)]
mod tests {
    use super::Errors;
    use crate::limits;
    use crate::wire::xenbus;

    #[test]
    fn the_errors_of_the_last_guests_are_kept() {
        let mut errors = Errors::new();
        let directory = |guest: usize| xenbus::path(format_args!("error/backend/vbd/{guest}"));
        for guest in (1..=limits::ERRORS).chain([1]) {
            errors.note(directory(guest));
            assert_eq!(errors.next_job(), None);
        }
        errors.note(directory(100));
        assert_eq!(errors.next_job().expect("one is too many").base, "error/backend/vbd/2");
        assert_eq!(errors.next_job(), None, "asked for once");
    }
}
