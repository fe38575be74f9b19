//! Host integration tests.

mod host;
mod hostile;
mod hotplug;
mod many;
mod oracles;
mod recovery;
mod rogue;
mod source;
mod storms;
mod tidy;
mod toy;
mod volumes;
