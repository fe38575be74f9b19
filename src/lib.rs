//! platter: a storage driver domain for Xen.
#![cfg_attr(not(any(test, feature = "sim")), no_std)]
