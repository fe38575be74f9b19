//! QEMU's trace as an oracle: each flush a guest asked for must have reached the device.

use anyhow::{Context, Result};

use crate::machine::{Linux, Machine};

/// The trace event of QEMU's NVMe device for one namespace flushed.
const EVENT: &str = "pci_nvme_flush_ns ";

/// How many flush commands the emulated controllers have carried out so far.
pub(crate) fn at_device(machine: &Machine) -> Result<u64> {
    Ok(count(&machine.trace()?))
}

/// How many flushes a guest's block layer has completed on `device` so far (Linux `Documentation/block/stat.rst`).
pub(crate) fn of_guest(guest: &Linux, device: &str) -> Result<u64> {
    completed(&guest.run(&format!("cat /sys/block/{device}/stat"))?)
}

fn count(trace: &str) -> u64 {
    trace.lines().filter(|line| line.contains(EVENT)).count() as u64
}

fn completed(stat: &str) -> Result<u64> {
    let field = stat.split_whitespace().nth(15).context("the kernel's disk statistics have no flushes")?;
    field.parse().context("the kernel's count of flushes is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flushed_namespaces_count() {
        let trace = "pci_nvme_flush_ns nsid 0x1\nqemu: warning\n17@1.2:pci_nvme_flush_ns nsid 0x2\n";
        assert_eq!(count(trace), 2);
    }

    #[test]
    fn the_flush_field_is_the_sixteenth() {
        let stat = "  3 0 24 457 0 0 0 0 0 456 457 0 0 0 0 19 5";
        assert_eq!(completed(stat).unwrap(), 19);
        assert!(completed("1 2 3").is_err());
    }
}
