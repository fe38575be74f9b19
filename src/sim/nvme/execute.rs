//! Commands of the simulated controller: fetched from submission queues, executed after a while,
//! completed. Neighbour of [`super`], which has the registers, of [`super::identify`] and
//! [`super::dataset`].

use std::format;
use std::vec;
use std::vec::Vec;

use super::{Controller, Transfer, halves16};
use crate::sim::{Dma, DmaFault};
use crate::units::{BusAddr, Instant, PAGE_SIZE};
use crate::wire::nvme::command::{
    COMPLETION_BYTES, ErrorStatus, FORCE_UNIT_ACCESS, SUBMISSION_BYTES, admin, io,
};

pub(super) const PAGE: u64 = PAGE_SIZE as u64;

/// Commands that have ended and are remembered, fewer than what it takes for their ids to come back.
const ENDED: usize = 64;

pub(super) const fn hopeless(kind: u8, code: u8) -> ErrorStatus {
    ErrorStatus { kind, code, do_not_retry: true }
}

const fn passing(kind: u8, code: u8) -> ErrorStatus {
    ErrorStatus { kind, code, do_not_retry: false }
}

pub(super) const INVALID_OPCODE: ErrorStatus = hopeless(0, 0x01);
pub(super) const INVALID_FIELD: ErrorStatus = hopeless(0, 0x02);
const DATA_TRANSFER: ErrorStatus = passing(0, 0x04);
pub(super) const INVALID_NAMESPACE: ErrorStatus = hopeless(0, 0x0b);
pub(super) const INVALID_PRP_OFFSET: ErrorStatus = hopeless(0, 0x13);
pub(super) const OUT_OF_RANGE: ErrorStatus = hopeless(0, 0x80);
const INVALID_QUEUE: ErrorStatus = hopeless(1, 0x01);
const UNRECOVERED: ErrorStatus = passing(2, 0x81);

/// A command that was fetched and not completed.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// When it is executed; never, when it is left unanswered.
    pub(super) due: Option<Instant>,
    queue: u16,
    command: Command,
}

/// A submission queue entry, taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    opcode: u8,
    flags: u8,
    id: u16,
    pub(super) namespace: u32,
    pub(super) prp1: u64,
    prp2: u64,
    /// Dwords 10 to 15.
    pub(super) dw: [u32; 6],
}

impl Command {
    pub(super) fn parse(entry: &[u8; SUBMISSION_BYTES]) -> Self {
        let dw = |i: usize| u32::from_le_bytes(entry[i * 4..][..4].try_into().expect("four bytes"));
        let qw = |i: usize| u64::from(dw(i + 1)) << 32 | u64::from(dw(i));
        Self {
            opcode: entry[0],
            flags: entry[1],
            id: u16::from_le_bytes([entry[2], entry[3]]),
            namespace: dw(1),
            prp1: qw(6),
            prp2: qw(8),
            dw: [10, 11, 12, 13, 14, 15].map(dw),
        }
    }

    fn first_block(&self) -> u64 {
        u64::from(self.dw[1]) << 32 | u64::from(self.dw[0])
    }
}

impl Controller {
    /// Takes what was submitted.
    pub(super) fn fetch(&mut self, now: Instant, dma: &mut impl Dma) {
        if !self.ready {
            return;
        }
        let numbers: Vec<u16> = self.submission_queues.keys().copied().collect();
        for number in numbers {
            while let Some(command) = self.fetch_one(number, dma) {
                self.accept(number, command, now);
            }
        }
    }

    fn fetch_one(&mut self, number: u16, dma: &mut impl Dma) -> Option<Command> {
        let queue = self.submission_queues.get_mut(&number)?;
        if queue.head == queue.tail {
            return None;
        }
        let at = BusAddr(queue.base + u64::from(queue.head) * SUBMISSION_BYTES as u64);
        queue.head = (queue.head + 1) % queue.entries;
        let mut entry = [0; SUBMISSION_BYTES];
        if dma.read(at, &mut entry).is_err() {
            self.faults.fatal = true;
            return None;
        }
        Some(Command::parse(&entry))
    }

    fn accept(&mut self, queue: u16, command: Command, now: Instant) {
        if self.running.iter().any(|other| other.queue == queue && other.command.id == command.id) {
            self.violation(format!("uses id {:#x} twice", command.id));
        }
        if command.flags != 0 || command.id == u16::MAX {
            self.violation("submits a fused command, a scatter-gather list or a reserved id");
        }
        let unanswered = queue != 0 && self.is_to_be_lost(&command);
        let due = now + self.delay();
        self.running.push(Running { due: (!unanswered).then_some(due), queue, command });
    }

    /// Whether an I/O command is never answered.
    fn is_to_be_lost(&mut self, command: &Command) -> bool {
        let poisonous = command.opcode != io::FLUSH && self.faults.poison == Some(command.first_block());
        self.faults.fatal |= poisonous;
        let forgotten = self.faults.forgets > 0;
        self.faults.forgets = self.faults.forgets.saturating_sub(1);
        poisonous || forgotten || self.rng.one_in(self.faults.unanswered)
    }

    /// Works off some of the commands at once, answered or not: what a controller may do after
    /// CC.EN was cleared, while CSTS.RDY is set.
    pub(super) fn hurry(&mut self, now: Instant) {
        for running in &mut self.running {
            if self.rng.one_in(2) {
                running.due = Some(now);
            }
        }
    }

    /// Executes and completes what is due; returns whether that raises an interrupt.
    pub(super) fn execute_due(&mut self, now: Instant, dma: &mut impl Dma) -> bool {
        let mut interrupt = false;
        while let Some(next) = self.next_due(now) {
            let Running { queue, command, .. } = self.running.swap_remove(next);
            let result = match queue {
                0 => self.execute_admin(&command, dma),
                _ if self.rng.one_in(self.faults.error) => Err(self.error()),
                _ => self.execute_io(&command, dma),
            };
            interrupt |= self.complete(queue, command.id, result, dma);
            self.ended.push_front((queue, command.id));
            self.ended.truncate(ENDED);
            if self.rng.one_in(self.faults.doubled) {
                interrupt |= self.complete(queue, command.id, result, dma);
            }
            if self.rng.one_in(self.faults.invented) {
                interrupt |= self.invent(queue, dma);
            }
        }
        interrupt
    }

    fn error(&mut self) -> ErrorStatus {
        let statuses = &self.faults.statuses;
        if statuses.is_empty() { UNRECOVERED } else { statuses[self.rng.index(statuses.len())] }
    }

    /// The command that is due first, of those whose completion has room.
    fn next_due(&mut self, now: Instant) -> Option<usize> {
        let (mut due, mut stuck) = (None, false);
        for (i, running) in self.running.iter().enumerate() {
            let Some(at) = running.due.filter(|at| *at <= now) else { continue };
            if self.has_room(running) {
                due = due.into_iter().chain([(at, i)]).min();
            } else {
                stuck = true;
            }
        }
        if stuck && self.faults.doubled == 0 && self.faults.invented == 0 {
            self.violation("submits more than the completion queue holds");
        }
        due.map(|(_, i)| i)
    }

    /// Whether the command could be completed.
    pub(super) fn has_room(&self, running: &Running) -> bool {
        self.completion_queues.get(&running.queue).is_some_and(|queue| !queue.is_full())
    }

    /// Completes a command once more that has ended before. Any other id could be that of a command
    /// which is about to be submitted, and nobody could tell.
    fn invent(&mut self, queue: u16, dma: &mut impl Dma) -> bool {
        let ended: Vec<u16> = self.ended.iter().filter(|(of, _)| *of == queue).map(|(_, id)| *id).collect();
        if ended.is_empty() {
            return false;
        }
        let id = ended[self.rng.index(ended.len())];
        self.complete(queue, id, Ok(()), dma)
    }

    fn complete(
        &mut self,
        number: u16,
        id: u16,
        result: Result<(), ErrorStatus>,
        dma: &mut impl Dma,
    ) -> bool {
        let head = self.submission_queues.get(&number).map_or(0, |queue| queue.head);
        let Some(queue) = self.completion_queues.get_mut(&number) else { return false };
        if queue.is_full() {
            return false;
        }
        let status = result.err().map_or(0, |error| {
            u16::from(error.do_not_retry) << 14 | u16::from(error.kind) << 8 | u16::from(error.code)
        });
        let words = [0, 0, 0, 0, head, number, id, status << 1 | u16::from(queue.phase)];
        let entry: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = BusAddr(queue.base + u64::from(queue.tail) * COMPLETION_BYTES as u64);
        queue.tail = (queue.tail + 1) % queue.entries;
        queue.phase ^= queue.tail == 0;
        let interrupts = queue.interrupts;
        if dma.write(at, &entry).is_err() {
            self.faults.fatal = true;
        }
        if interrupts && !self.settings.msix && self.interrupt_mask & 1 == 0 {
            self.violation("lets the pin be raised, which nobody serves");
        }
        interrupts && !self.rng.one_in(self.faults.lost_interrupt)
    }

    fn execute_admin(&mut self, command: &Command, dma: &mut impl Dma) -> Result<(), ErrorStatus> {
        const NUMBER_OF_QUEUES: u32 = 0x07;
        match command.opcode {
            admin::IDENTIFY => self.identify(command, dma),
            admin::SET_FEATURES if command.dw[0] == NUMBER_OF_QUEUES => Ok(()),
            admin::CREATE_COMPLETION_QUEUE => {
                let (number, entries) = self.new_queue(command)?;
                let taken = self.completion_queues.contains_key(&number);
                let (vector, interrupts) = (command.dw[1] >> 16, command.dw[1] & 2 != 0);
                if taken || vector != 0 {
                    return Err(INVALID_QUEUE);
                }
                self.create_completion_queue(number, command.prp1, entries, interrupts);
                Ok(())
            }
            admin::CREATE_SUBMISSION_QUEUE => {
                let (number, entries) = self.new_queue(command)?;
                let taken = self.submission_queues.contains_key(&number);
                // Completions go to the queue of the same number here.
                if taken
                    || command.dw[1] >> 16 != number.into()
                    || !self.completion_queues.contains_key(&number)
                {
                    return Err(INVALID_QUEUE);
                }
                self.create_submission_queue(number, command.prp1, entries);
                Ok(())
            }
            _ => Err(INVALID_OPCODE),
        }
    }

    /// The number and size of a queue to be made, if they are allowed.
    fn new_queue(&mut self, command: &Command) -> Result<(u16, u16), ErrorStatus> {
        let [number, last] = halves16(command.dw[0]);
        let contiguous = command.dw[1] & 1 != 0;
        let bytes = (u64::from(last) + 1) * SUBMISSION_BYTES as u64;
        if !contiguous || !command.prp1.is_multiple_of(PAGE) || bytes > PAGE {
            self.violation("places a queue off a page");
            return Err(INVALID_FIELD);
        }
        let fits = number != 0 && last > 0 && last < self.settings.queue_entries;
        if fits { Ok((number, last + 1)) } else { Err(INVALID_QUEUE) }
    }

    fn execute_io(&mut self, command: &Command, dma: &mut impl Dma) -> Result<(), ErrorStatus> {
        let namespaces = &self.settings.namespaces;
        let index = namespaces.iter().position(|shape| shape.id == command.namespace);
        let index = index.ok_or(INVALID_NAMESPACE)?;
        match command.opcode {
            io::FLUSH => {
                self.flushes += 1;
                self.disks[index].flush();
                Ok(())
            }
            io::READ | io::WRITE => self.transfer(command, index, dma),
            io::DATASET_MANAGEMENT => self.manage_dataset(command, index, dma),
            _ => Err(INVALID_OPCODE),
        }
    }

    fn transfer(&mut self, command: &Command, index: usize, dma: &mut impl Dma) -> Result<(), ErrorStatus> {
        let shape = &self.settings.namespaces[index];
        let first = command.first_block();
        let blocks = u64::from(command.dw[2] & 0xffff) + 1;
        if first.checked_add(blocks).is_none_or(|end| end > shape.blocks) {
            return Err(OUT_OF_RANGE);
        }
        let chunks = self.data_pages(command, blocks << shape.block_shift, dma)?;
        let pages = chunks.iter().map(|(bus, _)| *bus).collect();
        self.transfers.push(Transfer { namespace: index, blocks: first..first + blocks, pages });
        let disk = &mut self.disks[index];
        if command.opcode == io::READ {
            self.reads.resize(self.settings.namespaces.len(), Vec::new());
            self.reads[index].push(first);
            return scatter(&disk.read(first, blocks), &chunks, dma).map_err(failed);
        }
        let data = gather(&chunks, dma).map_err(failed)?;
        let through = command.dw[2] & FORCE_UNIT_ACCESS != 0;
        self.forced_writes += u64::from(through);
        if through {
            disk.write_through(first, &data)
        } else {
            disk.write(first, &data)
        }
        Ok(())
    }

    /// The pieces of memory that a command's PRP entries name, by the strict rules of Base 4.1.1.
    pub(super) fn data_pages(
        &mut self,
        command: &Command,
        bytes: u64,
        dma: &mut impl Dma,
    ) -> Result<Vec<(BusAddr, u64)>, ErrorStatus> {
        if self.settings.mdts != 0 && bytes > PAGE << self.settings.mdts {
            self.violation(format!("transfers {bytes} bytes"));
            return Err(INVALID_FIELD);
        }
        let in_first = bytes.min(PAGE - command.prp1 % PAGE);
        let mut chunks = vec![(BusAddr(command.prp1), in_first)];
        let others = match (bytes - in_first).div_ceil(PAGE) {
            0 if command.prp2 != 0 => return Err(self.bad_prp("names a page too many", command.prp2)),
            0 => Vec::new(),
            1 => vec![command.prp2],
            pages => self.prp_list(command.prp2, pages, dma)?,
        };
        if !command.prp1.is_multiple_of(4) {
            return Err(self.bad_prp("starts off a dword", command.prp1));
        }
        let mut left = bytes - in_first;
        for page in others {
            if !page.is_multiple_of(PAGE) || page == 0 {
                return Err(self.bad_prp("goes on inside a page", page));
            }
            chunks.push((BusAddr(page), left.min(PAGE)));
            left -= left.min(PAGE);
        }
        Ok(chunks)
    }

    fn prp_list(&mut self, at: u64, entries: u64, dma: &mut impl Dma) -> Result<Vec<u64>, ErrorStatus> {
        // A list that goes on in another page is legal, but nothing that a driver of ours does.
        if !at.is_multiple_of(8) || at % PAGE + entries * 8 > PAGE {
            return Err(self.bad_prp("places a list badly", at));
        }
        let mut list = vec![0; usize::try_from(entries * 8).expect("less than a page")];
        dma.read(BusAddr(at), &mut list).map_err(failed)?;
        Ok(list.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect())
    }

    fn bad_prp(&mut self, what: &str, prp: u64) -> ErrorStatus {
        self.violation(format!("PRP {what}: {prp:#x}"));
        INVALID_PRP_OFFSET
    }
}

pub(super) fn failed(DmaFault: DmaFault) -> ErrorStatus {
    DATA_TRANSFER
}

fn scatter(data: &[u8], chunks: &[(BusAddr, u64)], dma: &mut impl Dma) -> Result<(), DmaFault> {
    let mut rest = data;
    for (bus, bytes) in chunks {
        let (piece, others) = rest.split_at(usize::try_from(*bytes).expect("at most a page"));
        dma.write(*bus, piece)?;
        rest = others;
    }
    Ok(())
}

pub(super) fn gather(chunks: &[(BusAddr, u64)], dma: &mut impl Dma) -> Result<Vec<u8>, DmaFault> {
    let mut data = Vec::new();
    for (bus, bytes) in chunks {
        let mut piece = vec![0; usize::try_from(*bytes).expect("at most a page")];
        dma.read(*bus, &mut piece)?;
        data.append(&mut piece);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::nvme::Settings;

    /// Memory that holds one list of pages, everywhere.
    struct List(Vec<u64>);

    impl Dma for List {
        fn read(&mut self, _: BusAddr, to: &mut [u8]) -> Result<(), DmaFault> {
            let bytes: Vec<u8> = self.0.iter().flat_map(|page| page.to_le_bytes()).collect();
            to.copy_from_slice(&bytes[..to.len()]);
            Ok(())
        }

        fn write(&mut self, _: BusAddr, _: &[u8]) -> Result<(), DmaFault> {
            Err(DmaFault)
        }
    }

    /// The pieces of a transfer of so many bytes, unless that breaks a rule.
    fn pieces(prp1: u64, prp2: u64, list: &[u64], bytes: u64) -> Option<Vec<(u64, u64)>> {
        let mut controller = Controller::new(Settings { mdts: 2, ..Settings::new(0) });
        let command = Command { opcode: 0, flags: 0, id: 0, namespace: 1, prp1, prp2, dw: [0; 6] };
        let pages = controller.data_pages(&command, bytes, &mut List(list.to_vec()));
        assert_eq!(pages.is_err(), controller.violations().len() == 1);
        Some(pages.ok()?.into_iter().map(|(bus, bytes)| (bus.0, bytes)).collect())
    }

    #[test]
    fn legal_prp_entries_name_their_pieces() {
        assert_eq!(pieces(0x1200, 0, &[], 512), Some([(0x1200, 512)].into()));
        assert_eq!(pieces(0x1e00, 0x3000, &[], 1024), Some([(0x1e00, 512), (0x3000, 512)].into()));
        let expected = [(0x1e00, 512), (0x5000, 4096), (0x7000, 1024)].into();
        assert_eq!(pieces(0x1e00, 0x3100, &[0x5000, 0x7000], 5632), Some(expected));
    }

    #[test]
    fn illegal_prp_entries_are_violations() {
        assert_eq!(pieces(0x1202, 0, &[], 512), None, "off a dword");
        assert_eq!(pieces(0x1000, 0x3000, &[], 4096), None, "a page too many");
        assert_eq!(pieces(0x1000, 0x3200, &[], 8192), None, "goes on inside a page");
        assert_eq!(pieces(0x1000, 0, &[], 8192), None, "no second page");
        assert_eq!(pieces(0x1000, 0x3004, &[0x5000, 0x7000], 12288), None, "list off a qword");
        assert_eq!(pieces(0x1000, 0x3ff8, &[0x5000, 0x7000], 12288), None, "list over a page's end");
        assert_eq!(pieces(0x1000, 0x3000, &[0x5000, 0x7200], 12288), None, "list entry inside a page");
        assert_eq!(pieces(0x1000, 0x3000, &[0x5000; 4], 16384 + 512), None, "more than MDTS");
    }
}
