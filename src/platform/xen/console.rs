//! The PV console ring (xen/include/public/io/console.h): output only, never waits. What the ring
//! has no room for stays in the log's own buffer.

use crate::mem::{SharedPage, write_barrier};

const OUT: usize = 1024;
const OUT_SIZE: u32 = 2048;
const OUT_CONS: usize = 3080;
const OUT_PROD: usize = 3084;

/// Copies what fits of `text` into the ring and returns how many bytes that was.
pub(super) fn write(ring: &SharedPage, text: &[u8]) -> usize {
    let prod = ring.read_u32(OUT_PROD);
    let used = prod.wrapping_sub(ring.read_u32(OUT_CONS)).min(OUT_SIZE);
    let count = text.len().min((OUT_SIZE - used) as usize);
    for (i, byte) in (0u32..).zip(&text[..count]) {
        ring.write_u8(OUT + (prod.wrapping_add(i) % OUT_SIZE) as usize, *byte);
    }
    write_barrier();
    ring.write_u32(OUT_PROD, prod.wrapping_add(count as u32));
    count
}
