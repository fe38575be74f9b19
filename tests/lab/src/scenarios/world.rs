//! What a story is told with: one machine, platter on it, and guests that boot when they are first named.

use std::cell::{Cell, OnceCell, RefCell};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Boot;
use crate::machine::{
    COMMAND_LIMIT, Controller, Disk, Disks, Holdings, Linux, Machine, Manner, NAME, Platter, Settings, Spec,
    disk_spec, poll, zombies,
};
use crate::progress::Step;

/// A machine with what stories have brought up on it so far.
pub(crate) struct World<'m> {
    machine: &'m Machine,
    step: &'m Step,
    story: Cell<&'static str>,
    alice: OnceCell<Linux<'m>>,
    bob: OnceCell<Linux<'m>>,
    platter: Cell<Option<Platter<'m>>>,
    /// What platter held when it had become ready.
    before: RefCell<Holdings>,
}

/// What libxl needs to take the devices of a dead domain back, and more.
const SETTLE_LIMIT: Duration = Duration::from_secs(40);

/// Boots the machine a boot asks for.
pub(crate) fn machine(boot: &Boot) -> Result<Machine> {
    let controllers = vec![Controller::PLATTER, Controller::LINUX];
    Machine::boot(Spec {
        name: boot.name.to_owned(),
        daemon: boot.daemon,
        controllers,
        disks: Disks::Fresh,
        xen_options: boot.xen_options,
        processors: 1,
    })
}

impl<'m> World<'m> {
    pub(crate) fn new(machine: &'m Machine, step: &'m Step) -> Self {
        Self {
            machine,
            step,
            story: Cell::new(""),
            alice: OnceCell::new(),
            bob: OnceCell::new(),
            platter: Cell::new(None),
            before: RefCell::default(),
        }
    }

    pub(crate) fn machine(&self) -> &'m Machine {
        self.machine
    }

    /// A story begins.
    pub(crate) fn story(&self, name: &'static str) {
        self.story.set(name);
    }

    /// Names the step of the story that begins.
    pub(crate) fn step(&self, doing: &str) {
        self.step.now(&format!("{}: {doing}", self.story.get()));
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.step.say(line);
    }

    /// A guest, booted the first time.
    pub(crate) fn alice(&self) -> Result<&Linux<'m>> {
        self.guest(&self.alice, "alice")
    }

    /// Another guest, booted the first time.
    pub(crate) fn bob(&self) -> Result<&Linux<'m>> {
        self.guest(&self.bob, "bob")
    }

    /// A guest that a story boots for itself, with disks from the start, and ends.
    pub(crate) fn carol(&self, disks: &[(&str, &Disk)], on_crash: &str) -> Result<Linux<'m>> {
        self.step("booting carol");
        let disks: Vec<String> =
            disks.iter().map(|(vdev, disk)| disk_spec(vdev, NAME, &disk.target())).collect();
        Linux::guest_with(self.machine, "carol", Manner { disks: &disks, on_crash, ..Manner::usual() })
    }

    /// A guest that a story boots for itself, of another manner, and ends.
    pub(crate) fn dave(&self, manner: Manner) -> Result<Linux<'m>> {
        self.step(&format!("booting dave: {:?}, {} vCPUs", manner.system, manner.vcpus));
        Linux::guest_with(self.machine, "dave", manner)
    }

    fn guest<'w>(&self, cell: &'w OnceCell<Linux<'m>>, name: &str) -> Result<&'w Linux<'m>> {
        if cell.get().is_none() {
            self.step(&format!("booting {name}"));
            // It was empty: nobody else can have filled it, the cell is not shared between threads.
            drop(cell.set(Linux::guest(self.machine, name)?));
        }
        cell.get().context("the guest has just been booted")
    }

    /// The platter that serves, started as its configuration says when there is none.
    pub(crate) fn platter(&self) -> Result<Platter<'m>> {
        match self.platter.get() {
            Some(platter) if platter.exists()? => Ok(platter),
            _ => self.fresh_platter(Settings::usual()),
        }
    }

    /// The platter that is domain `id`, which came up without us, when it serves.
    pub(crate) fn adopt(&self, id: u32) -> Result<Platter<'m>> {
        let platter = Platter::of_domain(self.machine, id);
        self.platter.set(Some(platter));
        platter.wait_ready()?;
        *self.before.borrow_mut() = Holdings::of(self.machine, id)?;
        Ok(platter)
    }

    /// The platter that takes the place of `last` by itself, when it serves.
    ///
    /// # Errors
    /// None does within `limit`.
    pub(crate) fn successor(&self, last: &Platter, limit: Duration) -> Result<Platter<'m>> {
        let next = poll("a new domain", limit, || {
            let id = self.machine.dom0_answer(&format!("xl domid {NAME}"), COMMAND_LIMIT)?;
            Ok(id.text.parse::<u32>().ok().filter(|next| id.code == 0 && *next != last.id()))
        })?;
        self.adopt(next).context("the new domain")
    }

    /// What platter, in all its domains, said on the console so far.
    pub(crate) fn log(&self) -> String {
        self.machine.said(NAME)
    }

    /// A new platter in place of the one there may be.
    pub(crate) fn fresh_platter(&self, settings: Settings) -> Result<Platter<'m>> {
        self.remove_platter()?;
        self.adopt(Platter::create(self.machine, settings)?.id())
    }

    /// A story has ended: whatever platter held for it must be given back, and no dead domain may stay.
    ///
    /// # Errors
    /// What is left, by name.
    pub(crate) fn settle(&self) -> Result<()> {
        self.step("nothing is left");
        let mut left = Vec::new();
        let settled = poll("an end without anything left", SETTLE_LIMIT, || {
            left = zombies(&self.machine.dom0("xl list")?);
            if let Some(platter) = self.platter.get().filter(|platter| platter.exists().unwrap_or(false)) {
                left.extend(Holdings::of(self.machine, platter.id())?.beyond(&self.before.borrow()));
            }
            Ok(left.is_empty().then_some(()))
        });
        settled.with_context(|| format!("left: {}", left.join(", ")))
    }

    /// Destroys whatever domain has platter's name, restarted ones too.
    pub(crate) fn remove_platter(&self) -> Result<()> {
        self.platter.set(None);
        self.machine
            .dom0(&format!("if xl domid {NAME} >/dev/null 2>&1; then xl destroy {NAME}; fi"))
            .map(drop)
    }

    /// A namespace of platter's controller, counted from 1, with its initial pattern.
    pub(crate) fn fresh_disk(&self, namespace: u32) -> Result<Disk> {
        let disk = self.machine.disk(&Controller::PLATTER, namespace);
        disk.create()?;
        Ok(disk)
    }
}
