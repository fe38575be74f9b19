//! Formats only: no I/O and no state. What a peer sent is bytes until a parse here returns a type.

pub mod xenbus;
