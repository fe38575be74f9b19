//! What xenstored says, cut at any byte: the client hears the same however the bytes are cut, takes
//! all of them or says that they make no sense, and asks in whole messages. Payloads, and the values
//! of nodes, mean what the protocol has them mean.

use platter::blkback::DeviceId;
use platter::limits;
use platter::mem::frame::Frame;
use platter::units::{DomId, Port};
use platter::wire::xenbus::{self, Answers, Job, Node, Path, Value, XenbusState};
use platter::wire::xs::{
    self, HEADER, Header, MessageType, NodePath, REQ, REQ_CONS, REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD,
    Request, RequestId, TransactionId,
};
use platter::xenstore::{Store, StoreEvent};

use crate::frames;
use crate::host::Host;
use crate::input::Input;

/// Bytes that come at once where they are not cut. The requests that so many can bring about fit the
/// other ring.
const WHOLE: usize = 512;

/// Jobs that are done in one run.
const JOBS: usize = 2;

thread_local! {
    /// Both kinds, made once: they are large.
    static KINDS: [Job; 2] = [false, true].map(job);
}

/// Which jobs, how the bytes are cut, and the bytes.
///
/// # Panics
/// When something is not as it must be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (jobs, cuts) = (input.byte(), input.array::<4>());
    let stream = input.rest();
    let whole = Talk::new(jobs, stream).listen(|_| WHOLE);
    let cut = Talk::new(jobs, stream).listen(|step| 1 + usize::from(cuts[step % cuts.len()]));
    assert_eq!(whole, cut, "what is heard depends on where it was cut");
    payload(stream);
    text(stream);
    encoding(stream);
}

/// What the client told, and what it held when a job was done.
#[derive(PartialEq, Debug)]
struct Heard(StoreEvent, Option<Box<(Answers, Vec<String>)>>);

/// A client and a daemon that says what it is given to say.
struct Talk<'a> {
    host: Host<()>,
    frame: Frame,
    store: Store,
    /// One bit a job: whether it is a transaction.
    jobs: u8,
    started: usize,
    left: &'a [u8],
    heard: Vec<Heard>,
    asked: Vec<u8>,
}

impl<'a> Talk<'a> {
    fn new(jobs: u8, stream: &'a [u8]) -> Self {
        let frame = frames::cleared(1)[0];
        // Indexes run freely, and wrap here.
        for index in [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS] {
            frame.write_u32(index, u32::MAX - 100);
        }
        let mut host = Host::new(());
        let store = Store::new(frame.shared(), open(&mut host));
        Self { host, frame, store, jobs, started: 0, left: stream, heard: Vec::new(), asked: Vec::new() }
    }

    /// Lets the daemon say everything, at each step as many bytes at most.
    fn listen(mut self, bytes_at: impl Fn(usize) -> usize) -> Vec<Heard> {
        for step in 0.. {
            self.turn();
            let is_over = self.left.is_empty() || !self.is_sound();
            if is_over {
                break;
            }
            let said = self.say(bytes_at(step));
            assert!(said > 0, "the client leaves the ring full");
        }
        if self.is_sound() {
            assert_whole(&self.asked);
        }
        self.heard
    }

    fn is_sound(&self) -> bool {
        !matches!(self.heard.last(), Some(Heard(StoreEvent::Broken(_), _)))
    }

    /// Turns until there is nothing more to be told, with a job whenever there can be one.
    fn turn(&mut self) {
        loop {
            if self.store.idle() && self.started < JOBS {
                let kind = usize::from(self.jobs >> self.started & 1);
                self.store.start(KINDS.with(|kinds| kinds[kind].clone()));
                self.started += 1;
            }
            let event = self.store.turn(&mut self.host);
            self.take();
            let Some(event) = event else { return };
            let is_done = matches!(event, StoreEvent::Done(_));
            let held = is_done.then(|| {
                let names: Vec<String> = self.store.listing().map(str::to_owned).collect();
                assert!(names.iter().all(|name| !name.is_empty() && !name.contains('\0')));
                Box::new((self.store.answers().clone(), names))
            });
            self.heard.push(Heard(event, held));
        }
    }

    /// The daemon takes all requests.
    fn take(&mut self) {
        let (cons, prod) = (self.frame.read_u32(REQ_CONS), self.frame.read_u32(REQ_PROD));
        let count = prod.wrapping_sub(cons) as usize;
        assert!(count <= RING_SIZE, "the client overruns the ring");
        let (at, old) = (cons as usize % RING_SIZE, self.asked.len());
        self.asked.resize(old + count, 0);
        let (first, rest) = self.asked[old..].split_at_mut(count.min(RING_SIZE - at));
        self.frame.read(REQ + at, first);
        self.frame.read(REQ, rest);
        self.frame.write_u32(REQ_CONS, prod);
    }

    /// The daemon says as much as there is room for.
    fn say(&mut self, most: usize) -> usize {
        let (cons, prod) = (self.frame.read_u32(RSP_CONS), self.frame.read_u32(RSP_PROD));
        let room = RING_SIZE - prod.wrapping_sub(cons) as usize;
        let (now, later) = self.left.split_at(most.min(room).min(self.left.len()));
        let at = prod as usize % RING_SIZE;
        let (first, rest) = now.split_at(now.len().min(RING_SIZE - at));
        self.frame.write(RSP + at, first);
        self.frame.write(RSP, rest);
        self.frame.write_u32(RSP_PROD, prod.wrapping_add(now.len() as u32));
        self.left = later;
        now.len()
    }
}

fn open(host: &mut Host<()>) -> Port {
    use platter::hal::Events as _;
    host.alloc_unbound(DomId(0)).expect("the first port")
}

/// A job with every kind of step that it can have.
fn job(guarded: bool) -> Job {
    let base = xenbus::path(format_args!("/a"));
    let job = Job::new(&base);
    if guarded {
        job.while_state(&[XenbusState::Initialising]).read("b").write("c", 1)
    } else {
        job.list("").read("b").watch("state", "t")
    }
}

/// Requests are whole messages of known types, one name after the other.
fn assert_whole(mut asked: &[u8]) {
    for id in 1.. {
        let Some((header, rest)) = asked.split_first_chunk::<HEADER>() else { break };
        let header = Header::parse(header).expect("a header");
        assert_eq!(header.id, RequestId(id));
        assert!(rest[..header.len].contains(&0), "every request has text that ends");
        asked = &rest[header.len..];
    }
    assert!(asked.is_empty(), "half a request was left");
}

/// What a payload means to each of those who may get it.
fn payload(bytes: &[u8]) {
    let text = str::from_utf8(bytes).ok();
    let as_text = |most: usize| text.filter(|text| text.len() <= most);
    assert_eq!(xs::value(bytes).ok().as_deref(), as_text(limits::VALUE));
    assert_eq!(xs::names(bytes).ok().as_deref(), as_text(limits::STORE_PAYLOAD));
    let digits = text.map(|text| text.strip_suffix('\0').unwrap_or(text));
    let number = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
    let number = number.and_then(|digits| digits.parse().ok()).filter(|number| *number != 0);
    assert_eq!(xs::transaction_id(bytes), number.map(TransactionId));
    let _any = xs::error(bytes);
    event(bytes);
    if let Some(first) = bytes.first_chunk()
        && let Some(header) = Header::parse(first)
    {
        assert!(header.len <= limits::STORE_PAYLOAD);
        let words = [header.kind as u32, header.id.0, header.transaction.0, header.len as u32];
        assert_eq!(words.map(u32::to_le_bytes).as_flattened(), first);
    }
}

/// A watch event: path and token as they are where they fit, an ancestor and nothing where not.
fn event(bytes: &[u8]) {
    let mut strings = bytes.split(|byte| *byte == 0);
    let (path, token, rest) = (strings.next().unwrap_or_default(), strings.next(), strings.next());
    let heard = xs::watch_event(bytes);
    assert_eq!(heard.is_some(), rest.is_some());
    let (Some((heard_path, heard_token)), Some(token)) = (heard, token) else { return };
    let fits = |text: &[u8], most| text.len() <= most && str::from_utf8(text).is_ok();
    let is_ancestor = path.starts_with(heard_path.as_bytes())
        && (heard_path.is_empty() || path.get(heard_path.len()) == Some(&b'/'));
    let is_path = if fits(path, limits::PATH) { heard_path.as_bytes() == path } else { is_ancestor };
    let is_token = heard_token.as_bytes() == if fits(token, limits::NODE) { token } else { b"" };
    assert!(is_path && is_token, "{heard_path:?}, {heard_token:?}");
}

/// Values of nodes: a number is digits, and what is taken for a device says the same when it is shown.
fn text(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let expected = text.parse::<u32>().ok().filter(|_| digits);
    assert_eq!(xenbus::number::<u32>(text), expected);
    let state = match text.as_bytes() {
        [digit @ b'1'..=b'8'] => digit - b'0',
        _ => 0,
    };
    assert_eq!(XenbusState::parse(text) as u8, state);
    if let Some(device) = DeviceId::parse(text) {
        assert_eq!(DeviceId::parse(&device.to_string()), Some(device));
    }
}

/// A request says what it is given to say, and no more.
fn encoding(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (Ok(base), Ok(node), Ok(value)) =
        (Path::try_from(input.text()), Node::try_from(input.text()), Value::try_from(input.text()))
    else {
        return;
    };
    let path = NodePath { base: &base, node: &node };
    let message = Request::Write(path, &value).encode(RequestId(7), TransactionId(9));
    let (header, rest) = message.split_first_chunk::<HEADER>().expect("a header");
    let header = Header::parse(header).expect("one of ours");
    let expected = (MessageType::Write, RequestId(7), TransactionId(9), rest.len());
    assert_eq!((header.kind, header.id, header.transaction, header.len), expected);
    let slash = if base.is_empty() || node.is_empty() { "" } else { "/" };
    let parts = [&base, slash, &node, "\0", &value].map(str::as_bytes);
    assert!(rest.iter().eq(parts.iter().copied().flatten()), "{rest:?}");
}
