//! Blocks that are given up: Dataset Management with one range a command (NVM Command Set 3.2.3).
//! Neighbour of [`super::prp`], which holds the range for the controller to read.

use super::Nvme;
use crate::drivers::{Namespace, Refusal, Token};
use crate::units::{Block, Discard};
use crate::wire::nvme::command::{Range, Submission};

/// The most that one command gives up, in bytes: little enough that a slow controller is done with it
/// long before it counts as late, and some pieces of the largest granularity that can be claimed.
const MAX_BYTES: u32 = 1 << 30;

impl Nvme {
    /// See [`crate::drivers::Disk::discard`].
    ///
    /// # Errors
    /// It was not taken.
    pub fn discard(
        &mut self,
        token: Token,
        namespace: usize,
        first: Block,
        blocks: Block,
    ) -> Result<Block, Refusal> {
        let disk = *self.disk_to_ask(namespace)?;
        let (Some(discard), Some(limit)) = (disk.discard, self.discard_limit) else {
            return Err(Refusal::Inexpressible);
        };
        let limit = limit.min(MAX_BYTES / disk.block_size);
        let part = front(&disk, discard, limit, first, blocks).ok_or(Refusal::Inexpressible)?;
        let (tag, command) = self.enter(token)?;
        let range = self.prp_lists.hold_range(tag, Range { first, blocks: part });
        self.issue(tag, Submission::deallocate(command, disk.id, range));
        Ok(Block(part.into()))
    }
}

/// How many of the blocks, from the front on, one command gives up that may give up `limit`, if
/// there are any. When that is not all, it ends where a piece of the granularity does, if it can: a
/// piece that is given up in two parts is not given up.
fn front(disk: &Namespace, discard: Discard, limit: u32, first: Block, blocks: Block) -> Option<u32> {
    if blocks.0 <= limit.into() {
        return u32::try_from(blocks.0).ok().filter(|blocks| *blocks != 0);
    }
    let in_blocks = |bytes: u32| u64::from(bytes / disk.block_size);
    let end = first.0.checked_add(limit.into())?;
    let begun = end.wrapping_sub(in_blocks(discard.alignment)) % in_blocks(discard.granularity);
    let whole = u64::from(limit).checked_sub(begun).filter(|blocks| *blocks != 0);
    whole.map_or(Some(limit), |blocks| u32::try_from(blocks).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Namespace = Namespace {
        id: 1,
        blocks: Block(1 << 40),
        block_size: 512,
        physical_block_size: 512,
        volatile_cache: true,
        discard: None,
    };

    /// The parts of so many blocks at `first`, in pieces of 8 of which the first starts at 3.
    fn parts(limit: u32, first: u64, blocks: u64) -> std::vec::Vec<u32> {
        let discard = Discard { granularity: 8 * 512, alignment: 3 * 512 };
        let mut done = 0;
        core::iter::from_fn(|| {
            let part = front(&DISK, discard, limit, Block(first + done), Block(blocks - done))?;
            done += u64::from(part);
            Some(part)
        })
        .collect()
    }

    #[test]
    fn what_fits_is_given_up_at_once_wherever_it_is() {
        assert_eq!(parts(100, 5, 100), [100]);
        assert_eq!(parts(u32::MAX, 0, u32::MAX.into()), [u32::MAX]);
        assert_eq!(parts(100, 5, 0), [0; 0]);
    }

    #[test]
    fn parts_end_where_pieces_do() {
        assert_eq!(parts(100, 0, 300), [99, 96, 96, 9]);
        assert_eq!(parts(100, 3, 300), [96, 96, 96, 12]);
        assert_eq!(parts(8, 2, 26), [1, 8, 8, 8, 1]);
        assert_eq!(parts(2, 0, 5), [2, 1, 2], "the first piece starts before its alignment is reached");
    }

    #[test]
    fn a_piece_larger_than_a_command_is_given_up_in_parts_all_the_same() {
        assert_eq!(parts(5, 3, 16), [5, 3, 5, 3]);
        assert_eq!(parts(1, 3, 4), [1, 1, 1, 1]);
    }

    #[test]
    fn no_number_overflows() {
        let discard = Discard { granularity: 1 << 28, alignment: 0 };
        assert_eq!(front(&DISK, discard, u32::MAX, Block(u64::MAX), Block(u64::MAX)), None);
        let last = Block(u64::MAX - u64::from(u32::MAX));
        assert!(front(&DISK, discard, u32::MAX, last, Block(u64::MAX)).is_some());
    }
}
