//! The controllers' disks by the controllers' numbers. Where there is none, the number is free. Numbers that no
//! controller ever had are beyond the end, so that a turn looks at those alone that there may be.

use core::ops::{Deref, DerefMut};

use crate::drivers::Disk;
use crate::limits;

/// The disks.
pub(super) struct Disks {
    places: [Option<Disk>; limits::CONTROLLERS],
    end: usize,
}

impl Disks {
    pub(super) const NONE: Self = Self { places: [const { None }; limits::CONTROLLERS], end: 0 };

    /// The disks of the controller with this number, which is new.
    pub(super) fn put(&mut self, number: usize, disk: Disk) {
        self.places[number] = Some(disk);
        self.end = self.end.max(number + 1);
    }
}

impl Deref for Disks {
    type Target = [Option<Disk>];

    fn deref(&self) -> &[Option<Disk>] {
        &self.places[..self.end]
    }
}

impl DerefMut for Disks {
    fn deref_mut(&mut self) -> &mut [Option<Disk>] {
        &mut self.places[..self.end]
    }
}
