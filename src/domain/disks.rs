//! The controllers' disks by the controllers' numbers. Where there is none, the number is free. Numbers that no
//! controller ever had are beyond the end, so that a turn looks at those alone that there may be.

use core::ops::{Deref, DerefMut};

use heapless::Vec;

use crate::drivers::Disk;
use crate::limits;

/// The disks. Empty, they are all zeros, and take nothing of the image's file.
pub(super) struct Disks(Vec<Option<Disk>, { limits::CONTROLLERS }>);

impl Disks {
    pub(super) const NONE: Self = Self(Vec::new());

    /// The disks of the controller with this number, which is new.
    pub(super) fn put(&mut self, number: usize, disk: Disk) {
        while self.0.len() <= number {
            self.0.push(None).expect("a controller's number is below their limit");
        }
        self.0[number] = Some(disk);
    }
}

impl Deref for Disks {
    type Target = [Option<Disk>];

    fn deref(&self) -> &[Option<Disk>] {
        &self.0
    }
}

impl DerefMut for Disks {
    fn deref_mut(&mut self) -> &mut [Option<Disk>] {
        &mut self.0
    }
}
