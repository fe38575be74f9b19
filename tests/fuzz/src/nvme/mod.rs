//! An NVMe controller that says what it likes of itself and completes what it likes: commands name the
//! blocks and the memory that were asked for, in entries that the standard allows; each is given back
//! once at most, as done only if the controller said so, and as lost in a reset only when the
//! controller is known to have let go of its memory. In the end all of them are back, and every page.

mod memory;
mod registers;

use platter::drivers::nvme::Nvme;
use platter::drivers::{Completion, DeviceError, Operation, Refusal, Status, Token};
use platter::hal::MmioRegion;
use platter::units::{Block, BusAddr, Instant, Span};
use platter::wire::nvme::command::{admin, io};
use platter::wire::nvme::{CC_CONFIGURATION, CC_ENABLE};

use self::memory::{pieces, spans};
use self::registers::{Command, QUEUES, Registers, complete, fetch, scribble};
use crate::host::Host;
use crate::input::Input;
use crate::output;

/// Things done in one run, and after it until all is given back.
const STEPS: usize = 400;
const LAST_STEPS: usize = 100;

/// Commands that are handed over in one run.
const COMMANDS: usize = 200;

/// Blocks between those of one command and the next, which tell them apart.
const APART: u64 = 1 << 20;

/// Capabilities of a common controller: 64 entries and more, half a second, the NVM command set.
const COMMON: u64 = 1 << 37 | 1 << 24 | 1 << 16 | 0x3ff;

const REGISTERS: MmioRegion = MmioRegion { base: 0, len: 0x4000 };

/// What the controller is, then what it and its user do.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.byte();
    output::log(flags & 0x80 != 0);
    let capabilities = if flags & 1 == 0 { COMMON } else { input.long() };
    let found = if flags & 2 == 0 { 0 } else { CC_CONFIGURATION | CC_ENABLE };
    let mut host = Host::new(Registers::new(capabilities, found));
    let Ok(nvme) = Nvme::new(&mut host, 0, REGISTERS, flags & 4 == 0) else {
        assert!(host.is_clear());
        return;
    };
    let mut bench = Bench::new(host, nvme);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
    }
    bench.end();
    output::take_log();
}

/// What was handed over, and not yet given back.
struct Asked {
    task: Task,
    /// Ids that it was issued under.
    ids: Vec<u16>,
    is_back: bool,
}

enum Task {
    Transfer { opcode: u8, spans: Vec<Span> },
    Flush,
    Discard { blocks: u64 },
}

struct Bench {
    host: Host<Registers>,
    nvme: Nvme,
    now: Instant,
    /// By token.
    asked: Vec<Asked>,
    /// Commands that the controller has taken and not completed.
    taken: Vec<Command>,
    /// Ids that the controller has called done, in flight or not.
    done: Vec<u16>,
    isolated: bool,
}

impl Bench {
    fn new(host: Host<Registers>, nvme: Nvme) -> Self {
        let (asked, taken, done) = (Vec::new(), Vec::new(), Vec::new());
        Self { host, nvme, now: Instant(1), asked, taken, done, isolated: false }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..6 => self.answer(input),
            6..9 => self.submit(input),
            9 => self.discard(input),
            10 => {
                let (place, dw3) = (input.half(), input.word());
                scribble(&self.host, usize::from(place >> 15), place & 0xff, dw3);
                self.note_done(dw3);
            }
            11 => self.now.0 += u64::from(input.word()) << 4,
            12 => self.now = self.nvme.deadline().unwrap_or(self.now).max(self.now),
            13 => self.host.device.status = Some(input.word()),
            14 => self.host.device.status = None,
            _ => match input.byte() {
                // In good order means with nothing in flight.
                0 if self.asked.iter().all(|asked| asked.is_back) => self.nvme.shut_down(&mut self.host),
                1 => self.nvme.abandon(),
                2 => self.isolate(),
                _ => {}
            },
        }
        self.turn();
    }

    /// Lets the driver turn, and takes what it gives back.
    fn turn(&mut self) {
        for _ in 0..8 {
            let mut done: heapless::Vec<Completion, 5> = heapless::Vec::new();
            let progress = self.nvme.turn(&mut self.host, self.now, &mut done);
            done.into_iter().for_each(|completion| self.given_back(completion));
            self.fetch();
            if !progress {
                return;
            }
        }
    }

    fn given_back(&mut self, Completion { token, result }: Completion) {
        let asked = self.asked.get_mut(token.0 as usize).expect("nobody asked for it");
        assert!(!core::mem::replace(&mut asked.is_back, true), "given back twice");
        match result {
            Ok(()) => {
                let is_done = asked.ids.iter().any(|id| self.done.contains(id));
                assert!(is_done, "done, says only the driver");
            }
            Err(DeviceError::Reset) => {
                let is_quiet = self.host.device.seen_status & 1 == 0 || self.isolated;
                assert!(is_quiet, "given back while the controller may write to its memory");
            }
            Err(_) => {}
        }
    }

    /// Takes commands from the queues, and looks at them.
    fn fetch(&mut self) {
        for queue in 0..QUEUES {
            while let Some(command) = fetch(&mut self.host, queue) {
                match queue {
                    0 => self.host.device.create(&command),
                    _ => self.check(&command),
                }
                self.taken.push(command);
            }
        }
    }

    /// A command is one that was asked for: its blocks, its memory.
    fn check(&mut self, command: &Command) {
        let [first, second] = command.prps();
        let place = match command.opcode() {
            io::FLUSH => return self.note(None, command.id()),
            // The place of one range is in the range.
            io::DATASET_MANAGEMENT => self.read_word(first + 8),
            _ => command.place(),
        };
        let namespaces = self.nvme.namespaces().iter().flatten();
        let mut shift = namespaces.filter(|disk| disk.id == command.namespace()).map(|disk| disk.block_size);
        let block_size = shift.next().expect("a namespace that is served");
        let asked = self.asked.get((place / APART) as usize).expect("blocks that nobody asked for");
        match &asked.task {
            Task::Transfer { opcode, spans } => {
                assert_eq!(*opcode, command.opcode());
                let bytes = (u64::from(command.count() & 0xffff) + 1) * u64::from(block_size);
                let named = pieces(first, second, bytes, |bus| self.read_word(bus));
                assert!(named.iter().eq(spans.iter()), "{named:?} of {spans:?}");
            }
            Task::Discard { blocks } => assert_eq!(self.read_word(first) >> 32, *blocks),
            Task::Flush => panic!("a flush of blocks"),
        }
        self.note(Some((place / APART) as usize), command.id());
    }

    /// Notes under which id a command was issued. Flushes name no blocks, so any of them is meant.
    fn note(&mut self, token: Option<usize>, id: u16) {
        for (place, asked) in self.asked.iter_mut().enumerate() {
            let is_meant = token.map_or(matches!(asked.task, Task::Flush), |token| token == place);
            if is_meant && !asked.is_back {
                asked.ids.push(id);
            }
        }
    }

    fn read_word(&self, bus: u64) -> u64 {
        let page = self.host.page(BusAddr(bus & !0xfff)).expect("a list is in a page of the driver's");
        let mut bytes = [0; 8];
        page.read((bus & 0xfff) as usize, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The controller completes a command, mostly without an error.
    fn answer(&mut self, input: &mut Input<'_>) {
        if self.taken.is_empty() {
            return;
        }
        let command = self.taken.swap_remove(usize::from(input.byte()) % self.taken.len());
        let control = input.byte();
        let status = if control < 0xe0 { 0 } else { input.half() & 0x7fff };
        if command.queue == 0 && command.opcode() == admin::IDENTIFY && control != 0 {
            self.identify(&command, input);
        }
        let id = command.id() ^ if control == 0xdf { input.half() } else { 0 };
        self.note_done(u32::from(status) << 17 | u32::from(id));
        complete(&mut self.host, command.queue, id, status);
    }

    /// A completion is there to be seen.
    fn note_done(&mut self, dw3: u32) {
        if dw3 >> 17 & 0x7ff == 0 {
            self.done.push(dw3 as u16);
        }
    }

    /// Writes what the controller says of itself: a common one, with some bytes of the input's.
    fn identify(&mut self, command: &Command, input: &mut Input<'_>) {
        let Some(page) = self.host.page(BusAddr(command.prps()[0])) else { return };
        page.fill(0);
        match command.place() as u8 {
            0x00 => {
                page.write(0, &(1_u64 << 40).to_le_bytes());
                page.write(130, &[9 + input.byte() % 4]);
            }
            0x01 => {
                page.write(77, &[input.byte() % 8]);
                page.write(80, &[1]);
                page.write(520, &[4]);
                page.write(525, &[1]);
            }
            0x02 => {
                (1..=u32::from(input.byte() % 20)).for_each(|id| page.write_u32((id as usize - 1) * 4, id))
            }
            _ => {}
        }
        for _ in 0..input.byte() % 8 {
            page.write(usize::from(input.half()) % 4096, &[input.byte()]);
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let control = input.byte();
        let namespace = usize::from(control >> 4) % self.nvme.namespaces().len().max(1);
        let Some(Ok(disk)) = self.nvme.namespaces().get(namespace).copied() else { return };
        if self.asked.len() == COMMANDS {
            return;
        }
        let (operation, opcode) = match control & 3 {
            0 => (Operation::Read, io::READ),
            1 => (Operation::Write, io::WRITE),
            2 => (Operation::WriteFua, io::WRITE),
            _ => (Operation::Flush, io::FLUSH),
        };
        let spans = if opcode == io::FLUSH { Vec::new() } else { spans(input, disk.block_size) };
        let (token, first) = (self.asked.len() as u32, Block(self.asked.len() as u64 * APART));
        match self.nvme.submit(Token(token), namespace, operation, first, &spans) {
            Ok(count) => {
                let spans = spans[..count].to_vec();
                assert_eq!(spans.is_empty(), opcode == io::FLUSH);
                let task = if spans.is_empty() { Task::Flush } else { Task::Transfer { opcode, spans } };
                self.ask(task);
            }
            Err(refusal) => self.refused(refusal),
        }
    }

    fn discard(&mut self, input: &mut Input<'_>) {
        let (namespace, blocks) = (usize::from(input.byte() & 1), u64::from(input.half()) + 1);
        let Some(Ok(disk)) = self.nvme.namespaces().get(namespace).copied() else { return };
        if self.asked.len() == COMMANDS || disk.discard.is_none() {
            return;
        }
        let (token, first) = (self.asked.len() as u32, Block(self.asked.len() as u64 * APART));
        match self.nvme.discard(Token(token), namespace, first, Block(blocks)) {
            Ok(taken) => {
                assert!((1..=blocks).contains(&taken.0));
                self.ask(Task::Discard { blocks: taken.0 });
            }
            Err(refusal) => self.refused(refusal),
        }
    }

    fn ask(&mut self, task: Task) {
        self.asked.push(Asked { task, ids: Vec::new(), is_back: false });
        self.nvme.kick(&mut self.host);
        self.fetch();
    }

    fn refused(&self, refusal: Refusal) {
        match refusal {
            Refusal::Full => assert!(self.asked.iter().any(|asked| !asked.is_back)),
            Refusal::Inexpressible => panic!("every page alone can be expressed"),
            Refusal::NotReady => assert_eq!(self.nvme.status(), Status::Starting),
            Refusal::Dead => assert_ne!(self.nvme.status(), Status::Ready),
        }
    }

    fn isolate(&mut self) {
        if self.nvme.must_be_isolated() {
            self.isolated = true;
            self.nvme.isolated();
        }
    }

    /// The controller is taken away: everything comes back.
    fn end(mut self) {
        self.nvme.abandon();
        for _ in 0..LAST_STEPS {
            self.isolate();
            self.turn();
        }
        assert!(self.asked.iter().all(|asked| asked.is_back), "something was never given back");
        self.nvme.release(&mut self.host);
        assert!(self.host.is_clear());
    }
}
