//! The image of `tests/frontend` as a guest: a frontend of its own, which checks or attacks the backend of its disk.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{COMMAND_LIMIT, Machine};
use crate::paths;

/// The image, in target/image and in the shared folder.
const IMAGE: &str = "frontend";

/// A domain that runs the image.
pub(crate) struct Frontend<'m> {
    machine: &'m Machine,
    name: String,
    /// How long the console's log was before it.
    from: usize,
}

impl<'m> Frontend<'m> {
    /// Boots it with a disk, as a guest's configuration has it, and the image's options. A crash destroys it.
    ///
    /// # Errors
    /// There is no image, or `xl` refuses it.
    pub(crate) fn create(machine: &'m Machine, name: &str, disk: &str, options: &str) -> Result<Self> {
        let share = machine.run().share();
        fs::copy(paths::image().join(IMAGE), share.join(IMAGE)).context("no image of the frontend")?;
        let configuration = format!(
            "name=\"{name}\"\ntype=\"pv\"\nkernel=\"/share/{IMAGE}\"\nmemory=32\nvcpus=1\non_crash=\"destroy\"\n\
             extra=\"{options}\"\ndisk=[\"{disk}\"]\n"
        );
        fs::write(share.join(format!("{name}.cfg")), configuration)?;
        let from = machine.said(name).len();
        machine.dom0(&format!("xl create /share/{name}.cfg"))?;
        Ok(Self { machine, name: name.to_owned(), from })
    }

    /// What it has said on its console.
    pub(crate) fn said(&self) -> String {
        self.machine.said(&self.name).split_off(self.from)
    }

    /// Whether its domain is still there.
    ///
    /// # Errors
    /// dom0 does not answer.
    pub(crate) fn exists(&self) -> Result<bool> {
        Ok(self.machine.dom0_answer(&format!("xl domid {}", self.name), COMMAND_LIMIT)?.code == 0)
    }

    /// Waits until its domain is gone.
    ///
    /// # Errors
    /// It stays for longer than `limit`.
    pub(crate) fn wait_end(&self, limit: Duration) -> Result<()> {
        let script = format!("while xl domid {} >/dev/null 2>&1; do sleep 0.5; done", self.name);
        self.machine.dom0_answer(&script, limit)?.success("dom0", &script).map(drop)
    }

    /// Ends it, if it is still there.
    ///
    /// # Errors
    /// dom0 does not answer.
    pub(crate) fn destroy(self) -> Result<()> {
        self.machine.dom0_answer(&format!("xl destroy {}", self.name), COMMAND_LIMIT).map(drop)
    }
}
