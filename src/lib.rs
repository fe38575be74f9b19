//! platter: a storage driver domain for Xen.
//!
//! The map of the house. Imports point upwards in this list only, and a test holds them to it:
//!
//! | room | for |
//! |---|---|
//! | [`units`], [`limits`], [`mem`] | newtypes, capacities, memory that others write |
//! | [`wire`] | formats: no I/O, no state |
//! | [`hal`] | the traits at the seams: clock, events, grants, memory |
//! | [`report`], [`options`] | the log and its buffer; the command line |
//! | [`xenstore`] | the store client: requests, replies, watches over a byte ring |
//! | [`volume`] | names to volumes, sectors to blocks |
//! | [`drivers`] | pcifront and the disks' controllers |
//! | [`blkback`] | virtual block devices: handshake, rings, requests in flight |
//! | [`domain`] | the event loop that joins these |
//! | [`platform`] | Xen behind `hal`'s traits |
//! | `sim` | the simulated world that tests run the core in (feature `sim`, never in the image) |
#![cfg_attr(not(any(test, feature = "sim")), no_std)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod blkback;
pub mod domain;
pub mod drivers;
pub mod hal;
pub mod limits;
pub mod mem;
pub mod options;
pub mod platform;
pub mod report;
#[cfg(feature = "sim")]
pub mod sim;
pub mod units;
pub mod volume;
pub mod wire;
pub mod xenstore;
