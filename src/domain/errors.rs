//! The error nodes, where vbds leave the reasons of their failures for the administrator. They cost
//! nodes of our xenstore quota and outlive the guests they are about, so those of the last few
//! guests are kept: a guest that fails and starts again for ever must not use the quota up.

use heapless::Vec;

use crate::limits;
use crate::units::DomId;
use crate::wire::xenbus::{self, Job};

/// Whose they are.
pub(super) struct Errors {
    /// The guests with error nodes, the latest last.
    guests: Vec<DomId, { limits::ERRORS }>,
    /// The guest whose nodes are to go.
    old: Option<DomId>,
}

impl Errors {
    pub(super) const fn new() -> Self {
        Self { guests: Vec::new(), old: None }
    }

    /// A device of this guest leaves a reason.
    pub(super) fn note(&mut self, guest: DomId) {
        self.guests.retain(|known| *known != guest);
        if self.guests.is_full() {
            self.old = Some(self.guests.remove(0));
        }
        // There is room.
        let _ = self.guests.push(guest);
    }

    /// The removal that is due, if any, once.
    pub(super) fn next_job(&mut self) -> Option<Job> {
        let guest = self.old.take()?;
        Some(Job::new(&xenbus::path(format_args!("error/backend/vbd/{guest}"))).remove(""))
    }
}

#[cfg(test)]
mod tests {
    use super::Errors;
    use crate::limits;
    use crate::units::DomId;

    #[test]
    fn the_errors_of_the_last_guests_are_kept() {
        let mut errors = Errors::new();
        for guest in (1..).take(limits::ERRORS).chain([1]) {
            errors.note(DomId(guest));
            assert_eq!(errors.next_job(), None);
        }
        errors.note(DomId(100));
        assert_eq!(errors.next_job().expect("one is too many").base, "error/backend/vbd/2");
        assert_eq!(errors.next_job(), None, "asked for once");
    }
}
