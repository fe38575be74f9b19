//! Dataset Management of the simulated controller, strict about the ranges. Neighbour of
//! [`super::execute`], which takes the command.

use std::format;

use super::Controller;
use super::execute::{Command, INVALID_FIELD, INVALID_OPCODE, OUT_OF_RANGE, failed, gather, hopeless};
use crate::sim::Dma;
use crate::wire::nvme::command::{DEALLOCATE, ErrorStatus, RANGE_BYTES};

const SIZE_LIMIT_EXCEEDED: ErrorStatus = hopeless(1, 0x83);

impl Controller {
    pub(super) fn manage_dataset(
        &mut self,
        command: &Command,
        namespace: usize,
        dma: &mut impl Dma,
    ) -> Result<(), ErrorStatus> {
        if !self.settings.deallocates {
            self.violation("submits a command that is not there");
            return Err(INVALID_OPCODE);
        }
        let [last, attributes, ..] = command.dw;
        if attributes != DEALLOCATE {
            self.violation(format!("manages a data set in the way {attributes:#x}"));
            return Err(INVALID_FIELD);
        }
        let bytes = (u64::from(last & 0xff) + 1) * RANGE_BYTES as u64;
        let chunks = self.data_pages(command, bytes, dma)?;
        let ranges = gather(&chunks, dma).map_err(failed)?;
        ranges.as_chunks().0.iter().try_for_each(|range| self.deallocate(namespace, range))
    }

    fn deallocate(&mut self, namespace: usize, range: &[u8; RANGE_BYTES]) -> Result<(), ErrorStatus> {
        let word = |i: usize| u64::from_le_bytes(range.as_chunks().0[i]);
        let (first, blocks) = (word(1), word(0) >> 32);
        let most = match self.settings.deallocate_limit {
            None | Some(0) => u64::MAX,
            Some(limit) => limit.into(),
        };
        if blocks == 0 || blocks > most {
            self.violation(format!("deallocates {blocks} blocks at once"));
            return Err(SIZE_LIMIT_EXCEEDED);
        }
        let size = self.settings.namespaces[namespace].blocks;
        let Some(end) = first.checked_add(blocks).filter(|end| *end <= size) else {
            self.violation(format!("deallocates {blocks} blocks at {first}"));
            return Err(OUT_OF_RANGE);
        };
        self.discards.resize(self.disks.len(), [].into());
        self.discards[namespace].push(first..end);
        self.disks[namespace].discard(first..end, &mut self.rng);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use super::*;
    use crate::sim::DmaFault;
    use crate::sim::nvme::{Settings, Shape};
    use crate::units::BusAddr;
    use crate::wire::nvme::command::SUBMISSION_BYTES;

    /// Memory that holds these ranges, everywhere.
    struct Ranges(Vec<(u64, u32)>);

    impl Dma for Ranges {
        fn read(&mut self, _: BusAddr, to: &mut [u8]) -> Result<(), DmaFault> {
            let words = self.0.iter().flat_map(|(first, blocks)| [u64::from(*blocks) << 32, *first]);
            let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            to.copy_from_slice(&bytes[..to.len()]);
            Ok(())
        }

        fn write(&mut self, _: BusAddr, _: &[u8]) -> Result<(), DmaFault> {
            Err(DmaFault)
        }
    }

    /// What a disk of 100 blocks, of which 64 may be deallocated at once, says to these ranges.
    fn violations(attributes: u32, ranges: &[(u64, u32)]) -> Vec<String> {
        let shape = Shape { id: 1, blocks: 100, block_shift: 9, metadata: 0 };
        let settings =
            Settings { namespaces: [shape].into(), deallocate_limit: Some(64), ..Settings::new(0) };
        let mut controller = Controller::new(settings);
        let count = u32::try_from(ranges.len()).unwrap();
        let mut entry = [0; SUBMISSION_BYTES];
        entry[40..44].copy_from_slice(&(count - 1).to_le_bytes());
        entry[44..48].copy_from_slice(&attributes.to_le_bytes());
        let command = Command::parse(&entry);
        let result = controller.manage_dataset(&command, 0, &mut Ranges(ranges.to_vec()));
        assert_eq!(result.is_err(), !controller.violations().is_empty());
        controller.violations().to_vec()
    }

    #[test]
    fn legal_ranges_are_deallocated() {
        assert_eq!(violations(DEALLOCATE, &[(36, 64)]), [""; 0]);
        assert_eq!(violations(DEALLOCATE, &[(0, 64), (99, 1)]), [""; 0]);
    }

    #[test]
    fn illegal_ranges_are_violations() {
        assert_eq!(violations(DEALLOCATE, &[(0, 65)]), ["deallocates 65 blocks at once"]);
        assert_eq!(violations(DEALLOCATE, &[(7, 0)]), ["deallocates 0 blocks at once"]);
        assert_eq!(violations(DEALLOCATE, &[(0, 1), (99, 2)]), ["deallocates 2 blocks at 99"]);
        let last = [(u64::MAX, 1)];
        assert_eq!(violations(DEALLOCATE, &last), ["deallocates 1 blocks at 18446744073709551615"]);
        assert_eq!(violations(0, &[(0, 1)]), ["manages a data set in the way 0x0"]);
    }
}
