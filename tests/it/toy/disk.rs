//! The toy's disk: sectors in host memory, behind a cache that a power cut takes.

use std::collections::BTreeMap;

const SECTOR: usize = 512;

type Sectors = BTreeMap<u64, [u8; SECTOR]>;

#[derive(Default)]
pub(super) struct Disk {
    cache: Sectors,
    dirty: Sectors,
    durable: Sectors,
}

impl Disk {
    pub(super) fn read(&self, sector: u64) -> [u8; SECTOR] {
        self.cache.get(&sector).copied().unwrap_or([0; SECTOR])
    }

    pub(super) fn write(&mut self, sector: u64, bytes: [u8; SECTOR]) {
        self.cache.insert(sector, bytes);
        self.dirty.insert(sector, bytes);
    }

    /// Every other sector is zero afterwards.
    pub(super) fn discard(&mut self, first: u64, count: u64) {
        (first..first + count)
            .filter(|sector| sector % 2 == 0)
            .for_each(|sector| self.write(sector, [0; SECTOR]));
    }

    pub(super) fn flush(&mut self) {
        self.durable.extend(core::mem::take(&mut self.dirty));
    }

    pub(super) fn read_safe(&self, sector: u64) -> [u8; SECTOR] {
        self.durable.get(&sector).copied().unwrap_or([0; SECTOR])
    }
}
