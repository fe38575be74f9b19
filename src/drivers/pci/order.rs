//! What pciback is asked to do for one function: to be probed, to be kept from memory, to have its
//! interrupts disabled. Pure, as `probe` is: `mod.rs` carries the operations and the replies.

use crate::wire::pci::{Address, COMMAND_BUS_MASTER, COMMAND_MEMORY, halves, register};
use crate::wire::pciif::{Operation, OperationError, Reply};

use super::probe::Probe;

/// An order under way.
#[derive(Debug)]
pub(super) enum Order {
    /// Ready it for its driver.
    Probe(Probe),
    /// Keep it from memory.
    Isolate(Isolation),
    /// Disable its MSI-X before it leaves.
    Silence(Address),
}

impl Order {
    /// Where the function is.
    pub(super) const fn address(&self) -> Address {
        match self {
            Self::Probe(probe) => probe.address,
            Self::Isolate(isolation) => isolation.address,
            Self::Silence(address) => *address,
        }
    }

    /// The operation to be done now.
    pub(super) fn operation(&self) -> Operation {
        match self {
            Self::Probe(probe) => probe.operation(),
            Self::Isolate(isolation) => isolation.operation(),
            Self::Silence(_) => Operation::DisableMsix,
        }
    }
}

/// Clears a function's bus mastering, then reads the register back: the answer to a read does not
/// overtake what the function had written before (PCI Express 5.0, 2.4.1), so that nothing of it is
/// still on its way when the answer is here.
#[derive(Debug)]
pub(super) struct Isolation {
    address: Address,
    /// Whether it was cleared, and is to be read back.
    cleared: bool,
}

impl Isolation {
    pub(super) const fn new(address: Address) -> Self {
        Self { address, cleared: false }
    }

    const fn operation(&self) -> Operation {
        if self.cleared {
            Operation::Read(register::COMMAND)
        } else {
            Operation::Write16(register::COMMAND, COMMAND_MEMORY)
        }
    }

    /// Takes the reply; whether the function is isolated, once that is known.
    pub(super) fn replied(&mut self, reply: Result<Reply, OperationError>) -> Option<bool> {
        match reply {
            Err(_) => Some(false),
            Ok(reply) if self.cleared => Some(halves(reply.value)[0] & COMMAND_BUS_MASTER == 0),
            Ok(_) => {
                self.cleared = true;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Pirq;

    #[test]
    fn what_the_register_says_when_it_is_read_back_counts() {
        let reply = |value| Ok(Reply { value, vector: Pirq(0) });
        let memory = u32::from(COMMAND_MEMORY);
        let refused = Err(OperationError(-3));
        for (read_back, isolated) in [
            (reply(memory), true),
            (reply(memory | u32::from(COMMAND_BUS_MASTER)), false),
            (reply(u32::MAX), false),
            (refused, false),
        ] {
            let mut isolation = Isolation::new(Address { segment: 0, bus: 0, slot: 1, function: 0 });
            assert_eq!(isolation.replied(reply(0)), None, "a write that was answered proves nothing");
            assert_eq!(isolation.operation(), Operation::Read(register::COMMAND));
            assert_eq!(isolation.replied(read_back), Some(isolated), "{read_back:?}");
        }
    }
}
