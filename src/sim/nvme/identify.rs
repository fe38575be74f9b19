//! What the simulated controller says of itself and its namespaces. Neighbour of
//! [`super::execute`], which takes the command.

use super::execute::{Command, INVALID_FIELD, INVALID_NAMESPACE, INVALID_PRP_OFFSET, PAGE, failed};
use super::{Controller, Preferred, Settings, Shape, VERSION};
use crate::sim::Dma;
use crate::units::{BusAddr, PAGE_SIZE};
use crate::wire::nvme::command::ErrorStatus;

impl Controller {
    pub(super) fn identify(&mut self, command: &Command, dma: &mut impl Dma) -> Result<(), ErrorStatus> {
        let shape = self.settings.namespaces.iter().find(|shape| shape.id == command.namespace);
        let data = match (command.dw[0] & 0xff, shape) {
            (0x00, Some(shape)) => describe_namespace(shape, self.settings.preferred),
            (0x00, None) => return Err(INVALID_NAMESPACE),
            (0x01, _) => describe_controller(&self.settings),
            (0x02, _) => self.list_namespaces(command.namespace),
            (0x06, _) => describe_command_set(self.settings.deallocate_limit.ok_or(INVALID_FIELD)?),
            _ => return Err(INVALID_FIELD),
        };
        if !command.prp1.is_multiple_of(PAGE) {
            self.violation("identifies into parts of two pages");
            return Err(INVALID_PRP_OFFSET);
        }
        dma.write(BusAddr(command.prp1), &data).map_err(failed)
    }

    fn list_namespaces(&self, after: u32) -> [u8; PAGE_SIZE] {
        let mut data = [0; PAGE_SIZE];
        let active = self.settings.namespaces.iter().filter(|shape| shape.id > after);
        for (place, shape) in data.chunks_exact_mut(4).zip(active) {
            place.copy_from_slice(&shape.id.to_le_bytes());
        }
        data
    }
}

fn describe_controller(settings: &Settings) -> [u8; PAGE_SIZE] {
    let mut data = [0; PAGE_SIZE];
    data[4..24].fill(b' ');
    data[4..4 + settings.serial.len()].copy_from_slice(settings.serial.as_bytes());
    data[24..64].copy_from_slice(b"Simulated NVMe                          ");
    data[64..72].copy_from_slice(b"1.0     ");
    data[77] = settings.mdts;
    data[80..84].copy_from_slice(&VERSION.to_le_bytes());
    data[520] = u8::from(settings.deallocates) << 2;
    data[525] = settings.volatile_cache.into();
    if let Some(preferred) = settings.preferred {
        put_count(&mut data, 528, preferred.atomic);
    }
    data
}

fn describe_command_set(deallocate_limit: u32) -> [u8; PAGE_SIZE] {
    let mut data = [0; PAGE_SIZE];
    data[4..8].copy_from_slice(&deallocate_limit.to_le_bytes());
    data
}

fn describe_namespace(shape: &Shape, preferred: Option<Preferred>) -> [u8; PAGE_SIZE] {
    let mut data = [0; PAGE_SIZE];
    data[..8].copy_from_slice(&shape.blocks.to_le_bytes());
    data[128..130].copy_from_slice(&shape.metadata.to_le_bytes());
    data[130] = shape.block_shift;
    if let Some(preferred) = preferred {
        data[24] = 1 << 4;
        put_count(&mut data, 64, preferred.write);
        put_count(&mut data, 68, preferred.deallocate);
        put_count(&mut data, 70, preferred.deallocate_alignment);
    }
    data
}

/// Puts a count of blocks, which is sent minus one.
fn put_count(data: &mut [u8; PAGE_SIZE], offset: usize, count: u16) {
    data[offset..offset + 2].copy_from_slice(&(count - 1).to_le_bytes());
}
