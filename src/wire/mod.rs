//! Formats only: no I/O and no state. What a peer sent is bytes until a parse here returns a type.

pub mod blkif;
pub mod crc32;
pub mod gpt;
pub mod mbr;
pub mod nvme;
pub mod pci;
pub mod pciif;
pub mod ring;
pub mod xenbus;
pub mod xs;
