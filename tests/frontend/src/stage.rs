//! What a check is played on: one connection to the backend, made on the terms that it wants and
//! closed at its end, as a driver that comes and goes does (blkif.h, "State diagrams").

use heapless::Vec;
use platter::hal::{DeviceAccess, DmaPage, Events as _, Memory as _};
use platter::mem::SharedPage;
use platter::units::{DomId, GrantRef, Port};
use platter::wire::xenbus::{Job, Path, XenbusState, number, path};

use crate::host::Host;
use crate::protocol::ring::{MOST_PAGES, Ring};
use crate::shelf::{Buffer, Shelf};
use crate::terms::{Nodes, Offer, RingNodes, Terms};
use crate::verdict::{End, Verdict, ensure, needs};

/// Rings of one connection at most.
pub(crate) const MOST_QUEUES: usize = 16;

/// One ring and its event channel.
pub(crate) struct Queue {
    pub(crate) ring: Ring,
    pub(crate) port: Port,
    /// The references of its pages.
    pub(crate) grefs: Vec<GrantRef, MOST_PAGES>,
}

/// A connection.
pub(crate) struct Link {
    pub(crate) terms: Terms,
    pub(crate) queues: Vec<Queue, MOST_QUEUES>,
}

/// The device, and what the check at hand has made of it.
pub(crate) struct Stage<'s> {
    pub(crate) host: &'s mut Host,
    shelf: &'s mut Shelf,
    /// Our directory, and the backend's.
    pub(crate) frontend: Path,
    pub(crate) backend: Path,
    pub(crate) backend_id: DomId,
    pub(crate) offer: Offer,
    pub(crate) link: Option<Link>,
    /// The state that we are in.
    shown: XenbusState,
    /// The states that the backend was seen in since the connection was begun.
    pub(crate) seen: Vec<XenbusState, 16>,
    /// The first sector of the check's own area of the disk.
    pub(crate) area: u64,
    /// What makes this check's data differ from others'.
    pub(crate) seed: u64,
    /// The id of the last request.
    pub(crate) last_id: u64,
    /// Pages for plain reads and writes, once there was one.
    pub(crate) plain: Vec<Buffer, 11>,
}

impl<'s> Stage<'s> {
    /// Finds the domain's first vbd.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn new(host: &'s mut Host, shelf: &'s mut Shelf) -> Verdict<Self> {
        let (frontend, backend, backend_id) = find(host)?;
        Ok(Self {
            host,
            shelf,
            frontend,
            backend,
            backend_id,
            offer: Offer::default(),
            link: None,
            shown: XenbusState::Unknown,
            seen: Vec::new(),
            area: 0,
            seed: 0,
            last_id: 0,
            plain: Vec::new(),
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// The backend refuses, or takes too long.
    pub(crate) fn connect(&mut self, terms: Terms) -> Verdict {
        let connected = self.try_connect(terms)?;
        ensure!(connected, "the backend refuses to connect: its state is {:?}", self.last_seen());
        Ok(())
    }

    /// Connects with grants that stay.
    pub(crate) fn connect_persistent(&mut self) -> Verdict {
        needs!(self.offer.persistent, "the backend does not offer feature-persistent");
        self.connect(Terms::PERSISTENT)
    }

    /// Connects, or finds that the backend refuses these terms: whether it is connected.
    ///
    /// # Errors
    /// It does neither.
    #[inline(never)]
    pub(crate) fn try_connect(&mut self, terms: Terms) -> Verdict<bool> {
        self.seen.clear();
        self.show(XenbusState::Initialising)?;
        if !terms.eager {
            self.wait_state(&[XenbusState::InitWait])?;
        }
        let link = self.link(terms)?;
        let link = self.link.insert(link);
        publish(self.host, &self.frontend, link)?;
        self.show(terms.ready)?;
        let end = [XenbusState::Connected, XenbusState::Closing, XenbusState::Closed];
        // Closed may be what is left of the connection before, where nothing was waited for.
        let end = if terms.eager { &end[..1] } else { &end };
        let connected = self.wait_state(end)? == XenbusState::Connected;
        if connected {
            self.offer = Offer::read(self.host, &self.backend)?;
            self.show(XenbusState::Connected)?;
        }
        Ok(connected)
    }

    /// Finds that the backend refuses these terms, and serves the plain ones afterwards.
    #[inline(never)]
    pub(crate) fn refuses(&mut self, terms: Terms) -> Verdict {
        ensure!(!self.try_connect(terms)?, "the backend connects all the same");
        self.close()?;
        self.connect(Terms::PLAIN)?;
        self.works()
    }

    /// Closes the device, whatever state it is in, and takes back all that was granted.
    ///
    /// # Errors
    /// The backend does not close, or keeps what it was granted.
    #[inline(never)]
    pub(crate) fn close(&mut self) -> Verdict {
        // Who is Closed does not become Closing: a backend may see that late, and stay there.
        let closed = if self.shown == XenbusState::Closed { Ok(()) } else { self.close_states() };
        let taken = self.take_back();
        closed.and(taken)
    }

    /// Takes back all that was granted to a backend that is Closed.
    ///
    /// # Errors
    /// It keeps some of it.
    pub(crate) fn take_back(&mut self) -> Verdict {
        self.plain.clear();
        let mut kept = self.shelf.clear(&mut self.host.xen);
        if let Some(link) = self.link.take() {
            link.terms.forget(self.host, &self.frontend)?;
            kept += self.drop_link(link);
        }
        ensure!(kept == 0, "the backend is Closed and still uses {kept} grants");
        Ok(())
    }

    /// Goes through the states of closing, and leaves pages and rings as they are.
    pub(crate) fn close_states(&mut self) -> Verdict {
        self.show(XenbusState::Closing)?;
        self.wait_state(&[XenbusState::Closing, XenbusState::Closed])?;
        self.show(XenbusState::Closed)?;
        self.wait_state(&[XenbusState::Closed]).map(drop)
    }

    /// Our state becomes another.
    pub(crate) fn show(&mut self, state: XenbusState) -> Verdict {
        self.shown = state;
        self.host.job(Job::new(&self.frontend).write_state(state)).map(drop)
    }

    /// Waits until the backend is in one of these states: in which.
    ///
    /// # Errors
    /// It comes to none of them in time.
    pub(crate) fn wait_state(&mut self, states: &[XenbusState]) -> Verdict<XenbusState> {
        let deadline = self.host.deadline();
        loop {
            let state = self.host.state(&self.backend)?;
            if self.last_seen() != state {
                // What is beyond the room for them is not asked for.
                let _ = self.seen.push(state);
            }
            if states.contains(&state) {
                return Ok(state);
            }
            let woken = self.host.wait_change(deadline)?;
            ensure!(woken, "the backend stays at state {state:?}, not {states:?}");
        }
    }

    /// The backend's last state, as far as it was looked at.
    pub(crate) fn last_seen(&self) -> XenbusState {
        self.seen.last().copied().unwrap_or(XenbusState::Unknown)
    }

    /// A page that the backend can read and, with `Writes`, write; filled with canaries. On a
    /// connection with grants that stay it can always be written (blkif.h, note 8).
    pub(crate) fn lend(&mut self, access: DeviceAccess) -> Verdict<Buffer> {
        let access = self.access(access);
        self.shelf.lend(&mut self.host.xen, self.backend_id, access)
    }

    /// A page that another domain than the backend's is granted.
    pub(crate) fn lend_to(&mut self, dom: DomId) -> Verdict<Buffer> {
        self.shelf.lend(&mut self.host.xen, dom, DeviceAccess::Writes)
    }

    /// The same page under another reference.
    pub(crate) fn lend_again(&mut self, buffer: Buffer, access: DeviceAccess) -> Verdict {
        self.shelf.lend_again(&mut self.host.xen, buffer, self.backend_id, access)
    }

    /// Makes the reference of a page a bad one.
    pub(crate) fn revoke(&mut self, buffer: Buffer) -> Verdict {
        ensure!(
            self.shelf.revoke(&mut self.host.xen, buffer),
            "the backend uses a grant before a request does"
        );
        Ok(())
    }

    pub(crate) fn page(&self, buffer: Buffer) -> &SharedPage {
        self.shelf.page(buffer)
    }

    pub(crate) fn gref(&self, buffer: Buffer) -> u32 {
        self.shelf.gref(buffer).0
    }

    /// Whether the backend has the page mapped.
    pub(crate) fn is_in_use(&self, buffer: Buffer) -> bool {
        self.host.xen.is_in_use(self.shelf.gref(buffer))
    }

    fn access(&self, access: DeviceAccess) -> DeviceAccess {
        let persistent = self.link.as_ref().is_some_and(|link| link.terms.persistent);
        if persistent { DeviceAccess::Writes } else { access }
    }

    fn link(&mut self, terms: Terms) -> Verdict<Link> {
        let mut link = Link { terms, queues: Vec::new() };
        for _ in 0..terms.queues {
            let (mut pages, mut grefs) = (Vec::new(), Vec::new());
            for _ in 0..1 << terms.order {
                let page: DmaPage = self.host.xen.take_page().ok_or_else(End::no_memory)?;
                let gref = self.host.xen.grant_for(self.backend_id, &page, DeviceAccess::Writes)?;
                pages.push(page).map_err(|_| End::no_memory())?;
                grefs.push(gref).map_err(|_| End::no_memory())?;
            }
            let port = self.host.xen.alloc_unbound(self.backend_id)?;
            let queue = Queue { ring: Ring::new(pages, terms.abi, terms.start), port, grefs };
            link.queues.push(queue).map_err(|_| End::no_memory())?;
        }
        Ok(link)
    }

    /// Gives up what a connection consisted of: how many of its pages the backend still uses.
    fn drop_link(&mut self, link: Link) -> usize {
        let mut kept = 0;
        for queue in link.queues {
            self.host.xen.close(queue.port);
            for (page, gref) in queue.ring.into_pages().into_iter().zip(queue.grefs) {
                if self.host.xen.end_grant(gref) {
                    self.host.xen.return_page(page);
                } else {
                    kept += 1;
                }
            }
        }
        kept
    }
}

/// The first vbd: its directory, its backend's, and whose that is.
fn find(host: &mut Host) -> Verdict<(Path, Path, DomId)> {
    let devices = path(format_args!("device/vbd"));
    let names = host.list(&devices)?;
    let numbers = names.iter().filter_map(|name| number::<u32>(name));
    let Some(device) = numbers.min() else {
        return Err(End::fail(format_args!("this domain has no disk")));
    };
    let frontend = path(format_args!("device/vbd/{device}"));
    let text = host.read(&frontend, "backend")?.unwrap_or_default();
    let backend = Path::try_from(text.as_str()).map_err(|_| End::fail(format_args!("no backend")))?;
    let id = host.read(&frontend, "backend-id")?.and_then(|text| number(&text));
    let Some(id) = id else {
        return Err(End::fail(format_args!("the node backend-id makes no sense")));
    };
    host.job(Job::new(&backend).watch("state", "state"))?;
    Ok((frontend, backend, DomId(id)))
}

/// Writes the nodes that describe a connection.
fn publish(host: &mut Host, frontend: &Path, link: &Link) -> Verdict {
    let terms = &link.terms;
    let mut nodes = Nodes::new(host, frontend);
    if let Some(protocol) = terms.protocol {
        nodes.write(format_args!("protocol"), protocol)?;
    } else {
        // The toolstack may have written it.
        nodes.remove(format_args!("protocol"))?;
    }
    nodes.write(format_args!("feature-persistent"), u8::from(terms.persistent))?;
    if terms.queues > 1 || terms.says_one_queue {
        let said = terms.said_queues.unwrap_or(terms.queues);
        nodes.write(format_args!("multi-queue-num-queues"), said)?;
    }
    if terms.nodes != RingNodes::Single {
        nodes.write(format_args!("ring-page-order"), terms.said_order.unwrap_or(terms.order))?;
    }
    if terms.nodes == RingNodes::BothSpellings {
        nodes.write(format_args!("num-ring-pages"), 1 << terms.order)?;
    }
    for (index, queue) in link.queues.iter().enumerate() {
        let folder = if terms.queues > 1 { path(format_args!("queue-{index}/")) } else { Path::new() };
        let port = terms.event_channel.filter(|_| index == 0).unwrap_or(queue.port.0);
        nodes.write(format_args!("{folder}event-channel"), port)?;
        for (page, gref) in queue.grefs.iter().enumerate() {
            let gref = terms.ring_ref.filter(|_| index == 0 && page == 0).unwrap_or(gref.0);
            match terms.nodes {
                RingNodes::Single => nodes.write(format_args!("{folder}ring-ref"), gref)?,
                RingNodes::Numbered | RingNodes::BothSpellings => {
                    nodes.write(format_args!("{folder}ring-ref{page}"), gref)?;
                }
            }
        }
    }
    nodes.done()
}
