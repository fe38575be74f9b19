//! Every capacity of the image, in one place, with its reason. Nothing is allocated while
//! serving: what is not within these numbers is refused when it is asked for.

use crate::units::PAGE_SIZE;

/// Virtual block devices served at once. What else one needs (memory, an event channel, nodes and
/// a watch of xenstore) is decided when it is attached.
pub const VBDS: usize = 512;

/// Places in the table of virtual block devices: one more, for a device to be refused in.
pub const VBD_PLACES: usize = VBDS + 1;

/// Guests whose error nodes are kept: each costs three nodes or more of the same quota.
pub const ERRORS: usize = 16;

/// Pages of a ring: 2 to the power of 4, the order that is offered.
pub const RING_PAGES: usize = 16;

/// Rings that one device is offered at most (`multi-queue-max-queues`).
pub const QUEUES: usize = 16;

/// Rings that all devices are offered together: one each, and as many again for those that have
/// several.
pub const RINGS: usize = 2 * VBDS;

/// Requests that one device has in flight: twice as many as it may have commands at a controller that it shares
/// with nobody, so that the next are ready when those end.
pub const SLOTS: usize = QUEUE_ENTRIES;

/// Segments of a direct request (blkif.h, `BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const SEGMENTS: usize = 11;

/// Segments of an indirect request, as Linux offers: 1 MiB.
pub const INDIRECT_SEGMENTS: usize = 256;

/// Indirect requests that one device has in flight: with 256 segments each, 16 MiB.
pub const INDIRECT_SLOTS: usize = 16;

/// Pages of a guest that one device keeps mapped: more than the 1056 that Linux's frontend has for all requests of a
/// one-page ring when each has 32 segments, its default, and a page that lists them.
pub const KEPT: usize = 1152;

/// Devices that keep pages mapped: about as many as memory is enough for by default. With them three eighths of all
/// mappings that there may be are spoken for.
pub const KEEPERS: usize = 84;

/// Requests taken from one device before the next has its turn.
pub const ADMIT_BATCH: usize = 32;

/// Grants mapped or unmapped in one go: one full indirect request. Whoever else has requests waits for that
/// long.
pub const GRANT_BATCH: usize = 256;

/// Indirect requests whose segments are fetched in one go.
pub const COPY_BATCH: usize = INDIRECT_SLOTS;

/// Storage controllers owned at once.
pub const CONTROLLERS: usize = 8;

/// Namespaces or disks behind one controller.
pub const NAMESPACES: usize = 16;

/// Disks that a `target=` can name.
pub const DISKS: usize = CONTROLLERS * NAMESPACES;

/// Partitions of all disks together that a `target=` can name: each takes some 200 bytes of the
/// image, and all of them 100 KiB.
pub const PARTITIONS: usize = 512;

/// Entries of a GUID partition table: eight times as many as are common, read a page at a time.
pub const GPT_ENTRIES: u32 = 1024;

/// Boot records of one disk that are read: the master boot record, and one for each logical
/// partition.
pub const BOOT_RECORDS: usize = 128;

/// Bytes of a controller's registers that are mapped: NVMe's first four doorbells with the widest
/// stride that real controllers have.
pub const REGISTERS: usize = 64 * 1024;

/// Entries of an NVMe I/O queue: a page of 64-byte submission entries.
pub const QUEUE_ENTRIES: usize = 64;

/// Spans of one command: one page itself, and those of a list of 32.
pub const COMMAND_SPANS: usize = 33;

/// Event channels: all that the two-level ABI has (event_channel.h, `EVTCHN_2L_NR_CHANNELS`).
/// `max_event_channels` may allow fewer.
pub const PORTS: usize = 4096;

/// Mappings of grants that Xen keeps track of for a domain (256 a frame, of which
/// `max_maptrack_frames` allows 1024 by default).
const MAPTRACK: usize = 256 * 1024;

/// Those that are left for requests in flight, of all devices together: what rings and kept pages may take is not
/// theirs. Each device has some that nobody else can take; see `SHARE`.
pub const MAPPINGS: usize = MAPTRACK - RINGS * RING_PAGES - KEEPERS * KEPT;

/// Mappings that every device has for its requests in flight: enough for any one of them.
pub const SHARE: usize = INDIRECT_SEGMENTS;

/// Pages of others that are mapped for the CPU: shared_info, the grant table, every controller's
/// registers, every ring. So an address never runs out.
pub const MAPPED_PAGES: usize = 2 + CONTROLLERS * (REGISTERS / PAGE_SIZE) + RINGS * RING_PAGES;

/// Devices that memory is kept free for when others take more than they need: more than twice
/// as many as a domain's quotas allow by default.
pub const LATECOMERS: usize = 96;

/// Pages that a controller's queues and lists take up: kept free for each that may yet come.
pub const CONTROLLER_PAGES: usize = 16;

/// Bytes of a xenstore path that is used here: the longest is
/// `error/backend/vbd/65535/4294967295/error` or a frontend's.
pub const PATH: usize = 128;

/// Bytes of a xenstore node's name.
pub const NODE: usize = 32;

/// Bytes of a xenstore value that is read or written here: a `target=` names a partition label of
/// 36 characters, or a model and serial of 60, and leaves room.
pub const VALUE: usize = 256;

/// Steps of one xenstore job: the nodes of one ring of 16 pages are the longest list.
pub const JOB_STEPS: usize = 18;

/// Payload of a xenstore message (xs_wire.h, `XENSTORE_PAYLOAD_MAX`).
pub const STORE_PAYLOAD: usize = 4096;

/// PCI functions that are looked at: no more than one xenstore job reads beside their number.
pub const PCI_FUNCTIONS: usize = 15;

/// Bytes of the log that are kept: some sixty lines for a console that does not drain, and for
/// the last words of an image that dies.
pub const LOG: usize = 8192;

/// Bytes of a line of the log; what is longer is cut.
pub const LOG_LINE: usize = 400;

/// Guests whose lines in the log are counted at once: all that can have devices.
pub const LOG_GUESTS: usize = VBDS;

/// Lines of the log that an epitaph repeats.
pub const EPITAPH_LINES: usize = 16;

/// Attempts at a xenstore transaction that others keep disturbing (EAGAIN).
pub const TRANSACTION_TRIES: usize = 32;

const _: () = assert!(PCI_FUNCTIONS < JOB_STEPS);
// Any request can be mapped when its device has no other, and the first device has enough for all commands that a
// controller takes of it.
const _: () = assert!(INDIRECT_SEGMENTS <= GRANT_BATCH && SEGMENTS <= SHARE && VBDS * SHARE <= MAPPINGS);
const _: () = assert!((MAPPINGS - VBDS * SHARE) / 8 >= QUEUE_ENTRIES / 2 * COMMAND_SPANS);
const _: () =
    assert!(RING_PAGES.is_power_of_two() && QUEUES.is_power_of_two() && QUEUE_ENTRIES.is_power_of_two());
