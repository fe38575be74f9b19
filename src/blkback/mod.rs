//! The blkif backend: one [`Vbd`] a virtual disk, which follows the toolstack and the frontend
//! through xenstore, and one [`Ring`] a connected one, where its requests live. Neither makes the
//! calls that `domain` makes for all of them at once: xenstore traffic, grant batches, commands to
//! the disks.

mod connection;
mod handshake;
mod reserve;
mod ring;
mod slot;
mod slots;
#[cfg(test)]
mod testing;
mod vbd;

pub use handshake::DeviceId;
pub use ring::{Command, Counters, Ring, Tally};
pub use vbd::{Hold, Vbd};
