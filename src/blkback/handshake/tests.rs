//! What nodes mean, as texts.

use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use super::*;
use crate::volume::tests::volume;
use crate::wire::xenbus::Step;

fn answers(texts: &[&str]) -> Vec<Answer> {
    let answer = |text: &&str| match *text {
        "-" => Err(StoreError::NotFound),
        "#" => Err(StoreError::Denied),
        "!" => Err(StoreError::TooLong),
        "?" => Err(StoreError::Other),
        text => Ok(Value::try_from(text).unwrap()),
    };
    texts.iter().map(answer).collect()
}

const ID: DeviceId = DeviceId { guest: DomId(5), device: 51728 };

/// What libxl writes.
const PLAIN: [&str; 8] = ["1", "1", "/dev/nvme0n1", "w", "5", "0", "disk", "-"];

fn ours(texts: &[&str; 8]) -> Result<Option<Ours>, StoreError> {
    Ours::parse(&answers(texts))
}

#[test]
fn our_directory_is_read_as_libxl_writes_it() {
    let said = ours(&PLAIN).unwrap().unwrap();
    assert_eq!((said.state, said.online), (XenbusState::Initialising, true));
    assert_eq!((said.wish.writable, said.wish.frontend_id, said.wish.info()), (true, Some(5), 0));
    let said = ours(&["5", "0", "x", "r", "-", "1", "cdrom", "0"]).unwrap().unwrap();
    assert_eq!((said.state, said.online), (XenbusState::Closing, false));
    assert_eq!((said.wish.writable, said.wish.frontend_id, said.wish.info()), (false, None, 7));
}

#[test]
fn what_is_missing_is_harmless() {
    assert_eq!(ours(&["-", "1", "x", "w", "5", "0", "disk", "-"]), Ok(None));
    let said = ours(&["1", "-", "!", "-", "-", "-", "-", "-"]).unwrap().unwrap();
    assert!(said.online && !said.wish.writable);
    assert_eq!(said.wish.target, Err(StoreError::TooLong));
}

#[test]
fn a_failing_store_says_nothing_about_the_device() {
    for at in 0..8 {
        let mut texts = PLAIN;
        texts[at] = "?";
        assert_eq!(ours(&texts), Err(StoreError::Other), "node {at}");
    }
    assert_eq!(Ours::parse(&[]), Err(StoreError::Other));
}

/// A frontend's nodes: those that say how it is served, and where its first ring is.
fn theirs(state: &str, how: [&str; 4], rings: [&str; 6]) -> Theirs {
    let texts: Vec<_> = [state].into_iter().chain(how).chain(rings).collect();
    Theirs::parse(&answers(&texts))
}

/// What a ready frontend says of how it is served.
fn terms(how: [&str; 4]) -> Result<Terms, Unserved> {
    match theirs("3", how, ["8", "-", "15", "8", "-", "15"]) {
        Theirs::Ready(terms) => terms,
        other => panic!("not ready: {other:?}"),
    }
}

#[test]
fn the_frontends_state_decides() {
    let theirs = |state| theirs(state, ["x86_64-abi", "-", "-", "-"], ["8", "-", "15", "-", "-", "-"]);
    let terms = terms(["x86_64-abi", "-", "-", "-"]);
    assert_eq!(theirs("-"), Theirs::Gone);
    assert_eq!(theirs("#"), Theirs::Gone);
    assert_eq!(theirs("1"), Theirs::Starting);
    assert_eq!(theirs("3"), Theirs::Ready(terms));
    assert_eq!(theirs("4"), Theirs::Ready(terms));
    assert_eq!(theirs("5"), Theirs::Closing);
    assert_eq!(theirs("6"), Theirs::Closed);
    for state in ["0", "2", "7", "8", "9", "", "04", "4 ", "!", "?"] {
        assert_eq!(theirs(state), Theirs::Other, "{state}");
    }
    assert_eq!(Theirs::parse(&[]), Theirs::Other);
    assert_eq!(Theirs::parse(&answers(&["3"])), Theirs::Ready(Err(Unserved::NoRing)));
}

#[test]
fn a_frontend_says_how_it_is_served() {
    let said = terms(["-", "-", "-", "-"]).unwrap();
    assert_eq!((said.protocol, said.queues, said.pages), (Protocol::X86_32, 1, None));
    assert!(!said.persistent);
    let said = terms(["x86_64-abi", "16", "4", "1"]).unwrap();
    assert_eq!((said.protocol, said.queues, said.pages), (Protocol::X86_64, 16, Some(16)));
    assert!(said.persistent);
    assert_eq!(terms(["x86_32-abi", "1", "0", "0"]).unwrap().pages, Some(1));
    assert_eq!(terms(["arm-abi", "-", "-", "-"]), Err(Unserved::Protocol));
    for odd in ["0", "-1", "+2", " 2", "4294967296", "two"] {
        assert_eq!(terms(["-", odd, "-", "-"]), Err(Unserved::Queues), "{odd:?}");
    }
    for odd in ["5", "32", "-1", "+1", "1 ", "4294967295", "99999999999"] {
        assert_eq!(terms(["-", "-", odd, "-"]), Err(Unserved::RingOrder), "{odd:?}");
    }
}

#[test]
fn a_frontend_without_a_first_ring_is_not_ready() {
    let at = |ring, port| theirs("3", ["-"; 4], [ring, "-", port, "-", "-", "-"]);
    assert_eq!(at("none", "15"), Theirs::Ready(Err(Unserved::NoRing)));
    assert_eq!(at("8", "-"), Theirs::Ready(Err(Unserved::NoPort)));
}

#[test]
fn a_frontend_with_another_first_ring_has_other_terms() {
    for (how, ring_at, port_at) in [
        (["-", "-", "-", "-"], 0, 2),
        (["-", "1", "0", "-"], 1, 2),
        (["-", "1", "0", "-"], 0, 2),
        (["-", "2", "-", "-"], 3, 5),
        (["-", "2", "1", "-"], 4, 5),
    ] {
        let at = |ring, port, others| {
            // What is left from one that was served another way.
            let mut rings = [others; 6];
            if how[2] == "0" && ring_at == 0 {
                rings[1] = "-";
            }
            (rings[ring_at], rings[port_at]) = (ring, port);
            theirs("4", how, rings)
        };
        assert_eq!(at("8", "15", "1"), at("8", "15", "2"), "{how:?}");
        assert_ne!(at("8", "15", "1"), at("9", "15", "1"), "{how:?}");
        assert_ne!(at("8", "15", "1"), at("8", "16", "1"), "{how:?}");
    }
}

/// The nodes that a job reads.
fn reads(job: &Job) -> Vec<&str> {
    job.steps
        .iter()
        .map(|step| match step {
            Step::Read(node) => node.as_str(),
            other => panic!("not a read: {other:?}"),
        })
        .collect()
}

#[test]
fn a_ring_is_looked_for_where_frontends_put_it() {
    let job = |how, ring| Endpoint::job(ID, &terms(how).unwrap(), ring);
    assert_eq!(job(["-", "-", "-", "-"], 0).base.as_str(), "/local/domain/5/device/vbd/51728");
    assert_eq!(reads(&job(["-", "-", "-", "-"], 0)), ["state", "event-channel", "ring-ref"]);
    // One queue has no directory of its own.
    assert_eq!(reads(&job(["-", "1", "0", "-"], 0)), ["state", "event-channel", "ring-ref0", "ring-ref"]);
    assert_eq!(reads(&job(["-", "1", "1", "-"], 0)), ["state", "event-channel", "ring-ref0", "ring-ref1"]);
    let last = job(["-", "16", "4", "-"], 15);
    assert_eq!(reads(&last)[..3], ["state", "queue-15/event-channel", "queue-15/ring-ref0"]);
    assert_eq!((reads(&last).len(), reads(&last)[17]), (18, "queue-15/ring-ref15"));
}

#[test]
fn a_ring_is_found_where_frontends_put_it() {
    let found = |order, texts: &[&str]| {
        let said = Endpoint::parse(&terms(["-", "-", order, "-"]).unwrap(), &answers(texts));
        said.map(|said| {
            said.map(|said| (said.port.0, said.pages.iter().map(|gref| gref.0).collect::<Vec<_>>()))
        })
    };
    assert_eq!(found("-", &["3", "15", "8"]), Ok(Some((15, vec![8]))));
    assert_eq!(found("0", &["4", "15", "9", "8"]), Ok(Some((15, vec![9]))));
    assert_eq!(found("0", &["4", "15", "-", "8"]), Ok(Some((15, vec![8]))));
    assert_eq!(found("0", &["4", "15", "-", "-"]), Err(Unserved::NoRing));
    assert_eq!(found("1", &["3", "15", "9", "10"]), Ok(Some((15, vec![9, 10]))));
    assert_eq!(found("1", &["3", "15", "9", "-"]), Err(Unserved::NoRing));
    assert_eq!(found("1", &["3", "15", "-", "9"]), Err(Unserved::NoRing));
    assert_eq!(found("-", &["3", "15", "-"]), Err(Unserved::NoRing));
    assert_eq!(found("-", &["3", "-", "8"]), Err(Unserved::NoPort));
    assert_eq!(found("-", &[]), Err(Unserved::NoRing));
    for odd in ["", "+8", " 8", "8 ", "-8", "0x8", "4294967296", "8\n", "99999999999999999999999"] {
        assert_eq!(found("-", &["3", "15", odd]), Err(Unserved::NoRing), "{odd:?}");
        assert_eq!(found("-", &["3", odd, "8"]), Err(Unserved::NoPort), "{odd:?}");
    }
    assert_eq!(found("-", &["3", "0", "4294967295"]), Ok(Some((0, vec![u32::MAX]))));
    let pages: Vec<_> = (0..16).map(|page| page.to_string()).collect();
    let all: Vec<_> = ["3", "15"].into_iter().chain(pages.iter().map(String::as_str)).collect();
    assert_eq!(found("4", &all), Ok(Some((15, (0..16).collect()))));
    for state in ["-", "#", "1", "2", "5", "6", "", "x"] {
        assert_eq!(found("-", &[state, "-", "-"]), Ok(None), "not ready in state {state}");
    }
}

/// What is written when a disk is offered, but for its size.
fn offered(volume: &Volume, offers: Offers, discard_enable: &str) -> Vec<String> {
    let mut texts = PLAIN;
    texts[7] = discard_enable;
    let wish = ours(&texts).unwrap().unwrap().wish;
    let job = offer(ID, XenbusState::Initialising, &wish, volume, offers);
    let guard = job.guard.expect("an offer holds while the state does");
    assert_eq!((guard.node.as_str(), &guard.states[..]), ("state", &[XenbusState::Initialising][..]));
    let writes = job.steps.iter().map(|step| match step {
        Step::Write(node, value) => format!("{node}={value}"),
        other => panic!("not a write: {other:?}"),
    });
    let writes: Vec<_> = writes.collect();
    assert_eq!(writes.last().unwrap(), "state=2", "the last that is written");
    writes[..writes.len() - 1].to_vec()
}

const NOTHING: Offers = Offers { queues: 1, indirect: false, persistent: false };
const EVERYTHING: Offers = Offers { queues: 8, indirect: true, persistent: true };

#[test]
fn a_plain_disk_is_offered_with_as_few_nodes_as_can_be() {
    let mut disk = volume(512, 1000);
    disk.volatile_cache = false;
    let least = ["sectors=1000", "sector-size=512", "info=0", "max-ring-page-order=4"];
    assert_eq!(offered(&disk, NOTHING, "-"), least);
    let cached = ["feature-flush-cache=1", "feature-barrier=1"];
    assert_eq!(offered(&volume(512, 1000), NOTHING, "-"), [&least[..], &cached].concat());
}

#[test]
fn a_disk_is_offered_with_all_that_it_can_do() {
    let mut disk = volume(512, 1000);
    disk.physical_block_size = 4096;
    disk.discard = Some(Discard { granularity: 1 << 20, alignment: 512 });
    let all = [
        "sectors=1000",
        "sector-size=512",
        "info=0",
        "max-ring-page-order=4",
        "physical-sector-size=4096",
        "feature-flush-cache=1",
        "feature-barrier=1",
        "multi-queue-max-queues=8",
        "feature-max-indirect-segments=256",
        "feature-persistent=1",
        "feature-discard=1",
        "discard-granularity=1048576",
        "discard-alignment=512",
    ];
    assert_eq!(offered(&disk, EVERYTHING, "-"), all);
    assert_eq!(offered(&disk, EVERYTHING, "1"), all);
    assert_eq!(offered(&disk, EVERYTHING, "0"), all[..10], "the toolstack said no");
    disk.discard = Some(Discard { granularity: 4096, alignment: 0 });
    let both = ["feature-discard=1", "discard-granularity=4096", "discard-alignment=0"];
    assert_eq!(offered(&disk, EVERYTHING, "-")[10..], both);
}

#[test]
fn the_longest_paths_fit() {
    let id = DeviceId { guest: DomId(u16::MAX), device: u32::MAX };
    assert_eq!(id.errors().as_str(), "error/backend/vbd/65535/4294967295");
    assert_eq!(id.frontend().as_str(), "/local/domain/65535/device/vbd/4294967295");
    let _ = Theirs::job(id).watch("state", &id.token());
    let _ = Ours::job(id);
}

#[test]
fn paths_and_tokens_name_devices() {
    let id = Some(DeviceId { guest: DomId(5), device: 51728 });
    assert_eq!(DeviceId::in_path("backend/vbd/5/51728/state"), id);
    assert_eq!(DeviceId::in_path("backend/vbd/5/51728"), id);
    assert_eq!(DeviceId::in_token("fe/5/51728"), id);
    for other in ["backend", "backend/vbd", "backend/vbd/5", "backend/qdisk/5/1", "backend/vbd/70000/1"] {
        assert_eq!(DeviceId::in_path(other), None, "{other}");
    }
    assert_eq!(DeviceId::in_path("backend/vbd/+5/1"), None);
    assert_eq!(ID.guest_errors(), "error/backend/vbd/5");
}
