//! What a story is told with: one machine, platter on it, and guests that boot when they are first named.

use std::cell::{Cell, OnceCell};

use anyhow::{Context, Result};

use super::Boot;
use crate::machine::{Controller, Disk, Linux, Machine, NAME, Platter, Settings, Spec};
use crate::progress::Step;

/// A machine with what stories have brought up on it so far.
pub(crate) struct World<'m> {
    machine: &'m Machine,
    step: &'m Step,
    story: Cell<&'static str>,
    alice: OnceCell<Linux<'m>>,
    bob: OnceCell<Linux<'m>>,
    platter: Cell<Option<Platter<'m>>>,
}

/// Boots the machine a boot asks for.
pub(crate) fn machine(boot: &Boot) -> Result<Machine> {
    let controllers = vec![Controller::PLATTER, Controller::LINUX];
    Machine::boot(Spec {
        name: boot.name.to_owned(),
        daemon: boot.daemon,
        controllers,
        xen_options: boot.xen_options,
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

    /// The platter that is domain `id`, which came up without us.
    pub(crate) fn adopt(&self, id: u32) -> Platter<'m> {
        let platter = Platter::of_domain(self.machine, id);
        self.platter.set(Some(platter));
        platter
    }

    /// What platter, in all its domains, said on the console so far.
    pub(crate) fn log(&self) -> String {
        self.machine.said(NAME)
    }

    /// A new platter in place of the one there may be.
    pub(crate) fn fresh_platter(&self, settings: Settings) -> Result<Platter<'m>> {
        self.remove_platter()?;
        let platter = Platter::create(self.machine, settings)?;
        self.platter.set(Some(platter));
        platter.wait_ready()?;
        Ok(platter)
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
