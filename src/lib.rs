//! platter: a storage driver domain for Xen.
//!
//! The map of the house; imports point one way, downwards in this list never:
//!
//! | room | for |
//! |---|---|
//! | [`units`], [`limits`], [`mem`] | newtypes, capacities, memory that others write |
//! | [`wire`] | formats: no I/O, no state |
//! | [`hal`] | the traits at the seams: clock, events, grants, memory |
#![cfg_attr(not(any(test, feature = "sim")), no_std)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod hal;
pub mod limits;
pub mod mem;
pub mod units;
pub mod wire;
