//! A controller's registers, and the commands that its queues hold: what it needs of the standard to
//! see what the driver wants. What it makes of that is the input's.

use platter::mem::frame::Frame;
use platter::units::{BusAddr, PAGE_SIZE};
use platter::wire::nvme::command::{COMPLETION_BYTES, COMPLETION_DW3, SUBMISSION_BYTES, admin};
use platter::wire::nvme::{
    ACQ, AQA, ASQ, CAP, CC, CC_ENABLE, CC_SHUT_DOWN, CC_SHUTDOWN_MASK, CSTS, INTMS, head_doorbell,
    tail_doorbell,
};

use crate::host::{Device, Host};

/// Queues that the driver has: the admin queue, and one for I/O.
pub(super) const QUEUES: usize = 2;

// The admin queues' addresses are four registers in a row.
const _: () = assert!(ACQ == ASQ + 8);

/// A queue pair as the controller knows it.
#[derive(Clone, Copy, Default)]
pub(super) struct Queue {
    submissions: u64,
    completions: u64,
    entries: u16,
    /// What was taken, and what there is to take.
    head: u16,
    tail: u16,
    /// Where the next completion goes, and whether the queue has wrapped.
    end: u16,
    wrapped: bool,
}

/// What the driver sees.
pub(super) struct Registers {
    capabilities: u64,
    pub(super) configuration: u32,
    /// What the status reads as, where it is not what it should be.
    pub(super) status: Option<u32>,
    /// What it was when it was read last.
    pub(super) seen_status: u32,
    admin: [u32; 4],
    attributes: u32,
    pub(super) queues: [Queue; QUEUES],
}

/// A command that was taken from a queue.
pub(super) struct Command {
    pub(super) queue: usize,
    pub(super) words: [u64; 8],
}

impl Command {
    pub(super) fn opcode(&self) -> u8 {
        self.words[0] as u8
    }

    pub(super) fn id(&self) -> u16 {
        (self.words[0] >> 16) as u16
    }

    pub(super) fn namespace(&self) -> u32 {
        (self.words[0] >> 32) as u32
    }

    pub(super) fn prps(&self) -> [u64; 2] {
        [self.words[3], self.words[4]]
    }

    /// Dword 10 and 11.
    pub(super) fn place(&self) -> u64 {
        self.words[5]
    }

    /// Dword 12.
    pub(super) fn count(&self) -> u32 {
        self.words[6] as u32
    }
}

impl Registers {
    pub(super) fn new(capabilities: u64, configuration: u32) -> Self {
        Self {
            capabilities,
            configuration,
            status: None,
            seen_status: 0,
            admin: [0; 4],
            attributes: 0,
            queues: [Queue::default(); QUEUES],
        }
    }

    fn stride(&self) -> u8 {
        (self.capabilities >> 32) as u8 & 0xf
    }

    fn enable(&mut self) {
        let base = |half: usize| u64::from(self.admin[half + 1]) << 32 | u64::from(self.admin[half]);
        let entries = (self.attributes & 0xfff) as u16 + 1;
        let (submissions, completions) = (base(0), base(2));
        self.queues = [Queue { submissions, completions, entries, ..Queue::default() }, Queue::default()];
    }

    /// Has the driver's I/O queue be where a command to create it says.
    pub(super) fn create(&mut self, command: &Command) {
        let queue = &mut self.queues[1];
        queue.entries = (command.place() >> 16) as u16 + 1;
        match command.opcode() {
            admin::CREATE_SUBMISSION_QUEUE => queue.submissions = command.prps()[0],
            admin::CREATE_COMPLETION_QUEUE => queue.completions = command.prps()[0],
            _ => {}
        }
    }
}

impl Device for Registers {
    fn read32(&mut self, offset: usize) -> u32 {
        match offset {
            CAP => self.capabilities as u32,
            0x04 => (self.capabilities >> 32) as u32,
            CC => self.configuration,
            CSTS => {
                let shut_down = self.configuration & CC_SHUTDOWN_MASK == CC_SHUT_DOWN;
                let honest = self.configuration & CC_ENABLE | u32::from(shut_down) << 3;
                self.seen_status = self.status.unwrap_or(honest);
                self.seen_status
            }
            _ => panic!("reads register {offset:#x}"),
        }
    }

    fn write32(&mut self, offset: usize, value: u32) {
        let stride = self.stride();
        match offset {
            CC => {
                let was_enabled = core::mem::replace(&mut self.configuration, value) & CC_ENABLE != 0;
                if !was_enabled && value & CC_ENABLE != 0 {
                    self.enable();
                }
            }
            AQA => self.attributes = value,
            ASQ.. if offset < ACQ + 8 => self.admin[(offset - ASQ) / 4] = value,
            INTMS => {}
            _ => {
                let is_tail = |queue: &u16| offset == tail_doorbell(*queue, stride);
                let is_head = |queue: u16| offset == head_doorbell(queue, stride);
                match [0, 1].iter().find(|queue| is_tail(queue)) {
                    Some(queue) => {
                        let queue = &mut self.queues[usize::from(*queue)];
                        assert!(value < queue.entries.into(), "submits beyond the queue");
                        queue.tail = value as u16;
                    }
                    None => assert!([0, 1].into_iter().any(is_head), "writes register {offset:#x}"),
                }
            }
        }
    }
}

/// Takes the next command of a queue, if the driver has told of one.
pub(super) fn fetch(host: &mut Host<Registers>, number: usize) -> Option<Command> {
    let queue = host.device.queues[number];
    if queue.head == queue.tail {
        return None;
    }
    let page = host.page(BusAddr(queue.submissions)).expect("a queue is a page of the driver's");
    let mut bytes = [0; SUBMISSION_BYTES];
    page.read(usize::from(queue.head) * SUBMISSION_BYTES, &mut bytes);
    let words: [u64; 8] =
        core::array::from_fn(|i| u64::from_le_bytes(*bytes[i * 8..].first_chunk().expect("eight bytes")));
    host.device.queues[number].head = (queue.head + 1) % queue.entries;
    Some(Command { queue: number, words })
}

/// Writes the next completion of a queue: an id, and a status without its phase.
pub(super) fn complete(host: &mut Host<Registers>, number: usize, id: u16, status: u16) {
    let queue = host.device.queues[number];
    let Some(page) = host.page(BusAddr(queue.completions)) else { return };
    let phase = u32::from(!queue.wrapped);
    let dw3 = u32::from(status) << 17 | phase << 16 | u32::from(id);
    write_dw3(page, queue.end, dw3);
    let queue = &mut host.device.queues[number];
    queue.end += 1;
    if queue.end >= queue.entries {
        (queue.end, queue.wrapped) = (0, !queue.wrapped);
    }
}

/// Writes any completion to any place of a queue.
pub(super) fn scribble(host: &Host<Registers>, number: usize, place: u16, dw3: u32) {
    if let Some(page) = host.page(BusAddr(host.device.queues[number].completions)) {
        write_dw3(page, place % (PAGE_SIZE / COMPLETION_BYTES) as u16, dw3);
    }
}

fn write_dw3(page: Frame, place: u16, dw3: u32) {
    page.write_u32(usize::from(place) * COMPLETION_BYTES + COMPLETION_DW3, dw3);
}
