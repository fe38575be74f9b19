//! Host integration tests.

mod host;
mod oracles;
mod source;
mod storms;
mod tidy;
mod toy;
