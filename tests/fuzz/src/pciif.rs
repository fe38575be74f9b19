//! pciback and the toolstack's nodes about it, honest and not: whatever they answer, pcifront asks only
//! what is legal of the functions it was told of, leaves their BARs as they were, hands out only what
//! can be a controller's registers, each function once, and takes one for isolated only when its bus
//! mastering was read as clear.

use platter::drivers::pci::{Event, Found, Pci};
use platter::mem::frame::Frame;
use platter::sim::pciback::{Function, Pciback};
use platter::units::{Instant, Pirq};
use platter::wire::pci::{Address, COMMAND_BUS_MASTER, COMMAND_MEMORY, register};
use platter::wire::pciif::{ACTIVE, command, offset};
use platter::wire::xenbus::{Answers, Job, Step, StoreError, Value};

use crate::host::Host;
use crate::input::{Input, store_error};
use crate::output;

/// Things done in one run.
const STEPS: usize = 400;

/// Operations that it takes at most to probe one function: each capability there is room for, and
/// some twenty others.
const OPERATIONS: usize = 48 + 24;

const FRONT: &str = "device/pci/0";
const BACK: &str = "/local/domain/0/backend/pci/3/0";

/// What the functions are, then what everybody does.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.byte();
    output::log(flags & 0x80 != 0);
    let mut functions = [Function::nvme(0xfe80_0000, 55), Function::nvme(0x12_fe80_0000, 56)];
    for _ in 0..flags & 7 {
        let place = usize::from(input.byte());
        functions[place >> 6 & 1].words[place & 63] = input.word();
    }
    functions[0].bar_len = 1 << (flags >> 3 & 0xf).max(1).saturating_mul(4);
    let mut bench = Bench::new(functions.to_vec());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
    }
    output::take_log();
}

/// What was asked of a function since it was asked who it is, or told to be isolated.
#[derive(Clone, Copy, Default)]
struct Probe {
    operations: usize,
    /// What each half of BAR0 was at first, and what was written to it last.
    bars: [(Option<u32>, Option<u32>); 2],
    /// The command register, as it was written last.
    command: u32,
}

struct Bench {
    pci: Pci,
    host: Host<()>,
    pciback: Pciback,
    now: Instant,
    /// The operation in the page, and the register it is about, once it was looked at.
    posted: Option<(u32, u8)>,
    /// Functions that were named to us, in all ways.
    named: Vec<Address>,
    /// Functions that were handed out, and those of them that are to be given back.
    used: Vec<Address>,
    leaving: Vec<Address>,
    probe: Probe,
    /// The last thing that was read, if that was a command register without an error.
    read_back: Option<u32>,
}

impl Bench {
    fn new(functions: Vec<Function>) -> Self {
        Self {
            pci: Pci::new(),
            host: Host::new(()),
            pciback: Pciback { functions, silent: false },
            now: Instant(1),
            posted: None,
            named: Vec::new(),
            used: Vec::new(),
            leaving: Vec::new(),
            probe: Probe::default(),
            read_back: None,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        if let Some(job) = self.pci.next_job() {
            let (result, answers) = self.answer(&job, input);
            self.pci.job_done(&mut self.host, result, &answers);
        } else {
            match input.byte() % 16 {
                0..10 => self.reply(input),
                10 => self.now.0 += u64::from(input.half()) << 16,
                11..13 => self.pci.notice(),
                13 => self.leaving.pop().into_iter().for_each(|address| self.pci.release(address)),
                _ => self.used.iter().for_each(|address| self.pci.isolate(*address)),
            }
        }
        // It says when it wants to go on, and goes on only so often without anything new.
        for _ in 0..4 {
            let event = self.pci.turn(&mut self.host, self.now);
            // What it tells is about operations before the one that it has posted now.
            let is_news = event.is_some();
            event.into_iter().for_each(|event| self.told(event));
            self.look();
            if !is_news {
                break;
            }
        }
    }

    /// Looks at the operation in the page, once.
    fn look(&mut self) {
        let Some(page) = self.host.granted() else { return };
        let is_posted = page.read_u32(offset::FLAGS) & ACTIVE != 0;
        if !is_posted {
            self.posted = None;
        }
        if !is_posted || self.posted.is_some() {
            return;
        }
        let word = |at| page.read_u32(at);
        let (command, at, size) = (word(offset::COMMAND), word(offset::OFFSET), word(offset::SIZE));
        let function = |address: &&Address| {
            u32::from(address.segment) == word(offset::DOMAIN)
                && u32::from(address.bus) == word(offset::BUS)
                && u32::from(address.devfn()) == word(offset::DEVFN)
        };
        assert!(self.named.iter().any(|address| function(&address)), "a function that nobody named");
        assert!(at.is_multiple_of(4) && at < 256, "outside configuration space");
        self.posted = Some((command, at as u8));
        self.probe.operations += 1;
        let value = word(offset::VALUE);
        match (command, at as u8) {
            (command::CONF_READ, register::IDS) => self.probe = Probe::default(),
            (command::CONF_READ, _) => assert_eq!(size, 4),
            (command::CONF_WRITE, register::BAR0) => self.probe.bars[0].1 = Some(value),
            (command::CONF_WRITE, register::BAR1) => self.probe.bars[1].1 = Some(value),
            (command::CONF_WRITE, register::COMMAND) => {
                assert_eq!(size, 2);
                self.probe.command = value;
            }
            (command::ENABLE_MSIX | command::DISABLE_MSIX, _) => {}
            _ => panic!("command {command} at {at:#x}"),
        }
        assert!(self.probe.operations <= OPERATIONS, "a probe without end");
    }

    /// pciback answers, as it does or as the input has it.
    fn reply(&mut self, input: &mut Input<'_>) {
        let (Some(page), Some(posted)) = (self.host.granted(), self.posted.take()) else { return };
        self.pciback.step(page);
        match input.byte() {
            0..0xc0 => {}
            0xc0..0xe0 => page.write_u32(offset::VALUE, input.word()),
            0xe0..0xf0 => page.write_u32(offset::ERROR, input.word()),
            0xf0..0xf8 => page.write(offset::MSIX_VECTOR, &input.array::<2>()),
            _ => page.write(offset::COMMAND + usize::from(input.byte() % 40), &[input.byte()]),
        }
        page.write_u32(offset::FLAGS, page.read_u32(offset::FLAGS) & !ACTIVE);
        self.note_answer(page, posted);
    }

    fn note_answer(&mut self, page: Frame, (command, at): (u32, u8)) {
        self.read_back = None;
        if command != command::CONF_READ || page.read_u32(offset::ERROR) != 0 {
            return;
        }
        let value = page.read_u32(offset::VALUE);
        match at {
            register::BAR0 => _ = self.probe.bars[0].0.get_or_insert(value),
            register::BAR1 => _ = self.probe.bars[1].0.get_or_insert(value),
            register::COMMAND => self.read_back = Some(value),
            _ => {}
        }
    }

    fn told(&mut self, event: Event) {
        self.probe.operations = 0;
        match event {
            Event::Found(found) => self.found(found),
            Event::Leaves(address) => {
                let place = self.used.iter().position(|used| *used == address);
                self.used.swap_remove(place.expect("what leaves was handed out"));
                self.leaving.push(address);
            }
            Event::Isolated(_, is_isolated) => {
                let is_clear = |value: u32| value & u32::from(COMMAND_BUS_MASTER) == 0;
                assert!(!is_isolated || self.read_back.is_some_and(is_clear), "isolated by nobody's word");
            }
        }
    }

    fn found(&mut self, Found { address, bar, bar_len, pirq, .. }: Found) {
        let is_new = !self.used.contains(&address) && !self.leaving.contains(&address);
        assert!(is_new && self.named.contains(&address), "handed out twice, or never named");
        assert!(bar_len.is_power_of_two() && bar_len >= 0x2000 && bar.0 != 0);
        assert!(bar.0.is_multiple_of(bar_len as u64) && bar.0.checked_add(bar_len as u64).is_some());
        assert_ne!(pirq, Some(Pirq(0)));
        for (first, last) in self.probe.bars {
            assert!(last.is_none() || first == last, "a BAR is not as it was");
        }
        let needed = u32::from(COMMAND_MEMORY | COMMAND_BUS_MASTER);
        assert_eq!(self.probe.command & needed, needed, "a driver could not use it");
        self.used.push(address);
    }

    /// xenstore answers, mostly with what the toolstack would have there.
    fn answer(&mut self, job: &Job, input: &mut Input<'_>) -> (Result<(), StoreError>, Answers) {
        let is_front = job.base == FRONT;
        let is_back =
            job.base.strip_prefix("/local/domain/").is_some_and(|rest| rest.contains("/backend/pci/"));
        assert!(is_front || is_back, "{}", job.base);
        output::assert_plain(&job.base);
        let control = input.byte();
        let result = if control < 0xf0 { Ok(()) } else { Err(store_error(control)) };
        let honest = control & 1 == 0;
        let answers = job.steps.iter().map(|step| match step {
            Step::Read(_) if !honest && input.byte() < 0x40 => Err(store_error(input.byte())),
            Step::Read(node) if honest => Ok(value(node, input)),
            Step::Read(_) => Ok(Value::try_from(input.text()).unwrap_or_default()),
            Step::Write(..) => {
                assert!(is_front, "pciback's nodes are written");
                Ok(Value::new())
            }
            Step::Remove(_) | Step::List(_) | Step::Watch(..) | Step::Unwatch(..) => Ok(Value::new()),
        });
        let answers: Answers = answers.collect();
        self.named.extend(answers.iter().flatten().filter_map(|text| Address::parse(text)));
        (result, if result.is_ok() { answers } else { Answers::new() })
    }
}

/// What the toolstack, or pciback, could have in a node.
fn value(node: &str, input: &mut Input<'_>) -> Value {
    let text = match node {
        "backend" => BACK,
        "backend-id" => "0",
        "num_devs" => "2",
        "vdev-0" => "0000:00:00.00",
        "vdev-1" => "0000:00:01.00",
        _ => input.choose(&["4", "7", "8", "1", "3", "5", "6", ""]),
    };
    Value::try_from(text).unwrap_or_default()
}
