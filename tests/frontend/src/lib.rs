//! A blkif frontend that checks its backend. `main` boots it as a domain of its own; everything
//! else is here. Neighbours: platter's platform and xenstore client, of which it is built; of
//! platter's blkif it uses nothing.
//!
//! | room | for |
//! |---|---|
//! | `protocol` | layouts and the ring, from Xen's headers |
//! | `host` | Xen and xenstore with waits that end |
//! | `terms`, `stage` | what is negotiated; connecting and closing |
//! | `shelf`, `pattern` | pages that are granted; data that tells where it belongs |
//! | `io`, `transfer`, `burst` | requests and responses; reads and writes of any shape, or many at once, with proof |
//! | `verdict`, `suite` | how checks end; playing them and telling the result |
//! | `checks` | the checks, a file a room |
//! | `attacks` | torture: what a guest can do to a backend, a file a room |
//!
//! There is one small stack: what has large frames is not inlined, so that they do not add up.
#![cfg_attr(not(test), no_std)]
#![expect(clippy::result_large_err, reason = "a check ends once, and there is no heap for its reason")]

mod attacks;
mod burst;
mod checks;
mod host;
mod io;
mod pattern;
mod protocol;
mod shelf;
mod stage;
mod suite;
mod terms;
mod transfer;
mod verdict;

pub use suite::run;
