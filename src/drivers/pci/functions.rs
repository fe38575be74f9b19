//! The functions that pciback lends us, and how far each is on its way in or out. Pure: `mod.rs`
//! and `handshake` act on what is here.

use heapless::Vec;

use crate::limits;
use crate::wire::pci::Address;

/// How far a function is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// To be probed.
    New,
    /// Handed out to its driver.
    Used,
    /// Nothing of ours drives it.
    Unused,
    /// The toolstack wants it back; its driver is to be told.
    Leaving,
    /// Its driver was told.
    Told,
    /// Its driver has let go of it; its interrupts are to be disabled.
    Released,
}

/// A function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Function {
    address: Address,
    stage: Stage,
    /// It is to be kept from memory.
    isolate: bool,
}

/// Every function that pciback lends us.
#[derive(Debug)]
pub(super) struct Functions(Vec<Function, { limits::PCI_FUNCTIONS }>);

impl Functions {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// A function that is lent to us, if it is not known already; there is room for all that are
    /// looked at.
    pub(super) fn lend(&mut self, address: Address) {
        if self.0.iter().all(|function| function.address != address) {
            // Those that left were removed before.
            let _ = self.0.push(Function { address, stage: Stage::New, isolate: false });
        }
    }

    /// The toolstack wants a function back.
    pub(super) fn want_back(&mut self, address: Address) {
        match self.find(address).map(|function| &mut function.stage) {
            Some(stage @ Stage::Used) => *stage = Stage::Leaving,
            Some(Stage::New | Stage::Unused) => self.remove(address),
            Some(Stage::Leaving | Stage::Told | Stage::Released) | None => {}
        }
    }

    /// All of them are to leave.
    pub(super) fn want_all_back(&mut self) {
        self.0.retain(|function| !matches!(function.stage, Stage::New | Stage::Unused));
        for function in self.0.iter_mut().filter(|function| function.stage == Stage::Used) {
            function.stage = Stage::Leaving;
        }
    }

    /// Its driver has let go of a function.
    pub(super) fn release(&mut self, address: Address) {
        if let Some(function) = self.find(address) {
            function.stage = Stage::Released;
        }
    }

    /// Asks that a function be kept from memory.
    pub(super) fn isolate(&mut self, address: Address) {
        if let Some(function) = self.find(address) {
            function.isolate = true;
        }
    }

    /// Takes one such request.
    pub(super) fn take_isolation(&mut self) -> Option<Address> {
        let function = self.0.iter_mut().find(|function| function.isolate)?;
        function.isolate = false;
        Some(function.address)
    }

    /// Whether there is such a request.
    pub(super) fn any_isolation(&self) -> bool {
        self.0.iter().any(|function| function.isolate)
    }

    /// Takes a function whose driver is to be told that it leaves.
    pub(super) fn take_leaving(&mut self) -> Option<Address> {
        let function = self.0.iter_mut().find(|function| function.stage == Stage::Leaving)?;
        function.stage = Stage::Told;
        Some(function.address)
    }

    /// The first function at a stage.
    pub(super) fn first(&self, stage: Stage) -> Option<Address> {
        self.0.iter().find(|function| function.stage == stage).map(|function| function.address)
    }

    /// A function was probed: whether it is used.
    pub(super) fn probed(&mut self, address: Address, used: bool) {
        if let Some(function) = self.find(address) {
            function.stage = if used { Stage::Used } else { Stage::Unused };
        }
    }

    /// A function is not ours any more.
    pub(super) fn remove(&mut self, address: Address) {
        self.0.retain(|function| function.address != address);
    }

    /// Whether any is to be probed.
    pub(super) fn any_new(&self) -> bool {
        self.first(Stage::New).is_some()
    }

    /// Whether any is on its way out.
    pub(super) fn any_leaving(&self) -> bool {
        let leaves = |stage| matches!(stage, Stage::Leaving | Stage::Told | Stage::Released);
        self.0.iter().any(|function| leaves(function.stage))
    }

    fn find(&mut self, address: Address) -> Option<&mut Function> {
        self.0.iter_mut().find(|function| function.address == address)
    }
}
