//! The domain that is asked: who it is, which devices it has, and the conversation with it.

use std::collections::BTreeMap;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sample::{OPERATIONS, Sample, latencies};
use crate::store;

/// How long an answer may take: a busy platter and a slow xenstore need some milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long until the question is put again: somebody else may have asked at the same time.
const REPEAT: Duration = Duration::from_millis(300);

/// Between looks for the answer.
const LOOK: Duration = Duration::from_millis(2);

/// A virtual disk, in the order that reports show them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Device {
    /// The guest's number.
    pub(crate) guest: u16,
    /// The toolstack's number for it.
    pub(crate) device: u32,
    /// The guest's name.
    pub(crate) guest_name: String,
    /// What the toolstack called it, as xvdb.
    pub(crate) vdev: String,
}

/// A running platter.
pub(crate) struct Platter {
    /// Its number, as it was given or found.
    domain: String,
    home: String,
    questions: u64,
    /// Guests' names and devices', which do not change.
    names: BTreeMap<String, String>,
}

impl Platter {
    /// The platter in a domain of that name or number.
    ///
    /// # Errors
    /// There is no such domain, or it is no platter, or this is not dom0.
    pub(crate) fn find(domain: &str) -> Result<Self> {
        let number = number_of(domain)?;
        let home = format!("/local/domain/{number}/data/statistics");
        if store::read_one(&format!("{home}/ask"))?.is_none() {
            bail!("domain {domain} is no platter that serves, or this is not root in dom0");
        }
        Ok(Self { domain: number, home, questions: 0, names: BTreeMap::new() })
    }

    /// The devices that the toolstack has made for it.
    ///
    /// # Errors
    /// xenstore cannot be read.
    pub(crate) fn devices(&mut self) -> Result<Vec<Device>> {
        let backend = format!("/local/domain/{}/backend/vbd", self.domain);
        let mut devices = Vec::new();
        for guest in store::list(&backend)? {
            for device in store::list(&format!("{backend}/{guest}"))? {
                let guest_name = self.name(&format!("/local/domain/{guest}/name"), &guest)?;
                let vdev = self.name(&format!("{backend}/{guest}/{device}/dev"), &device)?;
                let (guest, device) = (guest.parse().ok(), device.parse().ok());
                if let (Some(guest), Some(device)) = (guest, device) {
                    devices.push(Device { guest, device, guest_name, vdev });
                }
            }
        }
        Ok(devices)
    }

    /// What a device has done; nothing when platter does not know it.
    ///
    /// # Errors
    /// platter does not answer, or not as it should.
    pub(crate) fn ask(&mut self, device: &Device) -> Result<Option<Sample>> {
        let nodes = ["device", OPERATIONS[0], OPERATIONS[1], OPERATIONS[2], OPERATIONS[3]];
        let Some([about, tallies @ ..]) = self.answer(device, "", nodes)? else { return Ok(None) };
        Sample::parse(&about, &tallies).map(Some)
    }

    /// How long requests of one operation took, by powers of two; nothing when platter does not know
    /// the device.
    ///
    /// # Errors
    /// As [`Platter::ask`].
    pub(crate) fn ask_latencies(&mut self, device: &Device, operation: &str) -> Result<Option<Vec<u64>>> {
        let Some([_, fast, slow]) = self.answer(device, operation, ["device", "fast", "slow"])? else {
            return Ok(None);
        };
        latencies(&[fast, slow]).map(Some)
    }

    /// Puts a question and waits for the answer in these nodes, the first of which is `device`.
    fn answer<const N: usize>(
        &mut self,
        device: &Device,
        operation: &str,
        nodes: [&str; N],
    ) -> Result<Option<[String; N]>> {
        self.questions += 1;
        let Device { guest, device, .. } = device;
        let question = format!("{guest}/{device} {}-{} {operation}", process::id(), self.questions);
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            store::write(&format!("{}/ask", self.home), &question)?;
            let put = Instant::now();
            while put.elapsed() < REPEAT {
                if let Some(answer) = self.look(&question, nodes)? {
                    return Ok(Some(answer).filter(|answer| !answer[0].starts_with("error=")));
                }
                thread::sleep(LOOK);
            }
        }
        bail!("domain {} does not answer", self.domain)
    }

    /// The nodes, if they answer this question: `for` has to say so before they are read and after, as
    /// somebody else may have asked meanwhile.
    fn look<const N: usize>(&self, question: &str, nodes: [&str; N]) -> Result<Option<[String; N]>> {
        let all = ["for"].into_iter().chain(nodes).chain(["for"]);
        let paths: Vec<String> = all.map(|node| format!("{}/{node}", self.home)).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let gone = || format!("domain {} has gone", self.domain);
        let values = store::read(&paths)?.with_context(gone)?;
        let [before, values @ .., after] = values.as_slice() else { return Ok(None) };
        let is_answer = before == question && after == question;
        Ok(is_answer.then(|| values.to_vec().try_into().ok()).flatten())
    }

    /// What a node calls something, or what it is called otherwise.
    fn name(&mut self, path: &str, otherwise: &str) -> Result<String> {
        if let Some(name) = self.names.get(path) {
            return Ok(name.clone());
        }
        let Some(name) = store::read_one(path)? else { return Ok(otherwise.to_owned()) };
        self.names.insert(path.to_owned(), name.clone());
        Ok(name)
    }
}

/// The number of a domain.
fn number_of(domain: &str) -> Result<String> {
    let numbers = store::list("/local/domain")?;
    if numbers.is_empty() {
        bail!("xenstore cannot be read: this is for root in dom0");
    }
    for number in numbers {
        let name = || store::read_one(&format!("/local/domain/{number}/name"));
        if number == domain || name()?.is_some_and(|name| name == domain) {
            return Ok(number);
        }
    }
    bail!("there is no domain {domain:?}: say which is platter's with --domain")
}
