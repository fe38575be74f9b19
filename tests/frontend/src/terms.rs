//! What a frontend and a backend agree on through xenstore: what the backend offers, the terms a
//! frontend asks for, and the nodes that say so (blkif.h, "Xenstore nodes").

use core::fmt;

use platter::wire::xenbus::{Job, Node, Path, Step, Value, XenbusState, cut, number};

use crate::host::Host;
use crate::protocol::abi::Abi;
use crate::verdict::Verdict;

/// Which nodes name the ring's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RingNodes {
    /// `ring-ref`.
    Single,
    /// `ring-page-order`, `ring-ref0`, ...
    Numbered,
    /// The same, and `num-ring-pages`, as FreeBSD's blkfront does.
    BothSpellings,
}

/// What a frontend asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Terms {
    /// The layout of the ring.
    pub(crate) abi: Abi,
    /// The `protocol` node, if it is written.
    pub(crate) protocol: Option<&'static str>,
    pub(crate) nodes: RingNodes,
    /// Each ring has two to the power of this pages.
    pub(crate) order: u32,
    pub(crate) queues: u32,
    /// Whether `multi-queue-num-queues` is written even for one queue.
    pub(crate) says_one_queue: bool,
    pub(crate) persistent: bool,
    /// Where the rings' indexes start.
    pub(crate) start: u32,
    /// Does not wait for the backend's InitWait.
    pub(crate) eager: bool,
    /// The state that says that the nodes are there.
    pub(crate) ready: XenbusState,
    /// Said instead of the order and the number of rings that there are.
    pub(crate) said_order: Option<u32>,
    pub(crate) said_queues: Option<u32>,
    /// Named instead of the first ring's page.
    pub(crate) ring_ref: Option<u32>,
    /// Named instead of the first ring's event channel.
    pub(crate) event_channel: Option<u32>,
}

impl Terms {
    /// One ring of one page, as every backend must take it.
    pub(crate) const PLAIN: Self = Self {
        abi: Abi::X64,
        protocol: Some("x86_64-abi"),
        nodes: RingNodes::Single,
        order: 0,
        queues: 1,
        says_one_queue: false,
        persistent: false,
        start: 0,
        eager: false,
        ready: XenbusState::Initialised,
        said_order: None,
        said_queues: None,
        ring_ref: None,
        event_channel: None,
    };

    /// The same with grants that stay.
    pub(crate) const PERSISTENT: Self = Self { persistent: true, ..Self::PLAIN };

    /// As drivers that came before every negotiation connect: at once, and without Initialised.
    pub(crate) const BLUNT: Self = Self { eager: true, ready: XenbusState::Connected, ..Self::PLAIN };

    /// Rings of this order.
    pub(crate) const fn order(order: u32) -> Self {
        Self { order, nodes: RingNodes::Numbered, ..Self::PLAIN }
    }

    /// This many rings.
    pub(crate) const fn queues(queues: u32) -> Self {
        Self { queues, ..Self::PLAIN }
    }

    /// Removes every node that terms like these may have written.
    pub(crate) fn forget(&self, host: &mut Host, device: &Path) -> Verdict {
        let mut nodes = Nodes::new(host, device);
        for node in [
            "ring-ref",
            "event-channel",
            "protocol",
            "ring-page-order",
            "num-ring-pages",
            "feature-persistent",
            "multi-queue-num-queues",
        ] {
            nodes.remove(format_args!("{node}"))?;
        }
        for queue in 0..if self.queues > 1 { self.queues } else { 0 } {
            nodes.remove(format_args!("queue-{queue}"))?;
        }
        for page in 0..if self.nodes == RingNodes::Single { 0 } else { 1 << self.order } {
            nodes.remove(format_args!("ring-ref{page}"))?;
        }
        nodes.done()
    }
}

/// What the backend's nodes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Offer {
    /// The disk's size in sectors of 512 bytes.
    pub(crate) sectors: u64,
    /// Bytes of a logical block.
    pub(crate) sector_size: u64,
    pub(crate) info: Option<u32>,
    pub(crate) flush: bool,
    pub(crate) barrier: bool,
    pub(crate) discard: bool,
    pub(crate) secure: bool,
    pub(crate) persistent: bool,
    pub(crate) max_segments: u32,
    pub(crate) max_order: u32,
    pub(crate) max_queues: u32,
}

impl Offer {
    /// Reads it.
    pub(crate) fn read(host: &mut Host, backend: &Path) -> Verdict<Self> {
        let names = [
            "sectors",
            "sector-size",
            "info",
            "feature-flush-cache",
            "feature-barrier",
            "feature-discard",
            "discard-secure",
            "feature-persistent",
            "feature-max-indirect-segments",
            "max-ring-page-order",
            "multi-queue-max-queues",
        ];
        let mut job = Job::new(backend);
        job.steps.extend(names.map(|name| Step::Read(text(format_args!("{name}")))));
        let answers = host.job(job)?;
        let text = |index: usize| answers.get(index).and_then(|answer| answer.as_ref().ok());
        let value = |index| text(index).and_then(|text: &Value| number::<u64>(text));
        let flag = |index| value(index) == Some(1);
        let count = |index| value(index).and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
        Ok(Self {
            sectors: value(0).unwrap_or(0),
            sector_size: value(1).unwrap_or(512),
            info: value(2).and_then(|value| u32::try_from(value).ok()),
            flush: flag(3),
            barrier: flag(4),
            discard: flag(5),
            secure: flag(6),
            persistent: flag(7),
            max_segments: count(8),
            max_order: count(9),
            max_queues: count(10),
        })
    }

    /// Sectors of a logical block: what requests must be multiples of.
    pub(crate) const fn block(&self) -> u64 {
        if self.sector_size <= 512 { 1 } else { self.sector_size / 512 }
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [
            ("flush", self.flush),
            ("barrier", self.barrier),
            ("discard", self.discard),
            ("discard-secure", self.secure),
            ("persistent", self.persistent),
        ];
        for (name, _) in flags.iter().filter(|(_, offered)| *offered) {
            write!(f, "{name} ")?;
        }
        let (segments, order, queues) = (self.max_segments, self.max_order, self.max_queues);
        write!(f, "max-indirect-segments={segments} max-ring-page-order={order} max-queues={queues}")
    }
}

/// Writes and removals below one path, sent whenever a job is full.
pub(crate) struct Nodes<'h> {
    host: &'h mut Host,
    base: Path,
    job: Job,
}

impl<'h> Nodes<'h> {
    pub(crate) fn new(host: &'h mut Host, base: &Path) -> Self {
        Self { host, base: base.clone(), job: Job::new(base) }
    }

    pub(crate) fn write(&mut self, name: fmt::Arguments<'_>, value: impl fmt::Display) -> Verdict {
        self.add(Step::Write(text(name), cut(value)))
    }

    pub(crate) fn remove(&mut self, name: fmt::Arguments<'_>) -> Verdict {
        self.add(Step::Remove(text(name)))
    }

    /// Sends what was not sent yet.
    pub(crate) fn done(&mut self) -> Verdict {
        let job = core::mem::replace(&mut self.job, Job::new(&self.base));
        self.host.job(job).map(drop)
    }

    // A job is large and the stack is not, so steps are added in place.
    fn add(&mut self, step: Step) -> Verdict {
        if self.job.steps.is_full() {
            self.done()?;
        }
        let _ = self.job.steps.push(step);
        Ok(())
    }
}

fn text(name: fmt::Arguments<'_>) -> Node {
    heapless::format!("{name}").unwrap_or_default()
}
