//! The blkif backend: one [`Vbd`] a virtual disk, which follows the toolstack and the frontend
//! through xenstore, and the [`Requests`] of each connected one. Neither makes the
//! calls that `domain` makes for all of them at once: xenstore traffic, grant batches, commands to
//! the disks.

mod connection;
mod counters;
mod handshake;
mod keep;
mod link;
mod means;
mod requests;
mod reserve;
mod slot;
#[cfg(test)]
mod testing;
mod vbd;

pub use counters::{Counters, LATENCY_RANGES, Latencies, Tally};
pub use handshake::DeviceId;
pub use requests::{Admitted, Batch, Command, Completed, Issued, Part, Requests, Spans, Work};
pub use vbd::{Neighbour, Vbd};
