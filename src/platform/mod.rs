//! The worlds the image runs in. The second of the two places where `unsafe` is allowed.

pub mod xen;

#[cfg(all(feature = "image", target_os = "linux"))]
mod freestanding;
