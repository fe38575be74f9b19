//! What dom0 asks about devices, and what it is told.

use core::time::Duration;

use platter::sim::machine::DRIVER;
use platter::sim::requests::Load;
use platter::sim::toolstack::Outcome;
use platter::sim::world::{State, World};
use platter::units::DomId;

use crate::host::{DEV, assert_outcome, attach, run, world};

const HOME: &str = "/local/domain/3/data/statistics";
const NODES: [&str; 9] = ["ask", "for", "device", "read", "write", "flush", "discard", "fast", "slow"];

fn node(world: &World, name: &str) -> String {
    world.state().machine.tree.text(&format!("{HOME}/{name}")).expect("the node is there").to_owned()
}

fn ask(state: &mut State, question: &str) {
    state.machine.tree.write(&format!("{HOME}/ask"), question);
}

/// The number of that name in a node.
#[track_caller]
fn number(world: &World, node_name: &str, name: &str) -> u64 {
    let text = node(world, node_name);
    let value = text.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name} in {text:?}")).parse().expect("a number")
}

fn latencies(world: &World) -> Vec<u64> {
    let halves = [node(world, "fast"), node(world, "slow")];
    halves.iter().flat_map(|half| half.split(' ')).map(|count| count.parse().expect("a number")).collect()
}

#[test]
fn all_requests_are_counted_and_shown_when_asked() {
    for seed in 0..2 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 300));
        run(&mut world, |world, act| {
            if act == 0 {
                assert!(NODES.iter().all(|name| node(world, name).is_empty()), "nothing was asked");
                ask(&mut world.state(), &format!("5/{DEV} 1 write"));
            }
            act == 0
        });
        assert_eq!(node(&world, "for"), format!("5/{DEV} 1 write"));
        let requests = ["read", "write", "flush", "discard"].map(|name| number(&world, name, "requests"));
        // Some ask for operations that there are not.
        let counted = requests.iter().sum::<u64>() + number(&world, "device", "rejected");
        assert_eq!(counted, world.state().frontends[0].answered().0);
        assert_eq!(latencies(&world).len(), 24);
        assert_eq!(latencies(&world).iter().sum::<u64>(), requests[1]);
        assert!(number(&world, "read", "sectors") >= requests[0], "a read has a sector at least");
        assert!(number(&world, "read", "took") > requests[0], "no read takes less than a microsecond");
        assert_eq!(number(&world, "read", "errors"), 0);
        let device = ["state", "in-flight"].map(|name| number(&world, "device", name));
        assert_eq!(device, [4, 0]);
        assert!(number(&world, "device", "time") > number(&world, "device", "since"));
        let free = world.state().free_pages as u64 * 4;
        assert_eq!(number(&world, "device", "free-memory"), free, "in KiB");
        assert!(node(&world, "device").ends_with(" volume=nvme0n1"));
    }
}

#[test]
fn only_dom0_may_read_them() {
    for seed in 0..2 {
        let mut world = world(seed);
        attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 10));
        run(&mut world, |_, _| false);
        let state = world.state();
        for name in NODES {
            let read = |who| state.machine.tree.get(who, &format!("{HOME}/{name}")).map(<[u8]>::len);
            assert_eq!((read(DRIVER), read(DomId(5))), (Ok(0), Err("EACCES")));
        }
        let below = state.machine.tree.paths_owned(DRIVER).filter(|path| path.starts_with(HOME));
        assert_eq!(below.count(), NODES.len() + 1, "as many as there always are");
    }
}

#[test]
fn questions_without_a_device_are_answered_too() {
    let missing = "error=no such device";
    let nonsense = "error=ask for GUEST/DEVICE, two numbers";
    let questions = [
        (format!("6/{DEV} 1"), missing),
        ("5/51712".to_string(), missing),
        ("5".to_string(), nonsense),
        (" ".to_string(), nonsense),
        ("99999/1 2".to_string(), nonsense),
        ("-5/1\n".to_string(), nonsense),
        ("ä".repeat(128), nonsense),
    ];
    let mut world = world(1);
    attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 10));
    run(&mut world, |world, act| {
        if let Some((question, answer)) = act.checked_sub(1).map(|last| &questions[last]) {
            assert_eq!((&node(world, "for"), node(world, "device").as_str()), (question, *answer));
        }
        if let Some((question, _)) = questions.get(act) {
            ask(&mut world.state(), question);
        }
        act < questions.len()
    });
}

#[test]
fn what_is_no_text_of_255_bytes_is_not_answered() {
    let mut world = world(0);
    attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 10));
    run(&mut world, |world, act| {
        let tree = &mut world.state().machine.tree;
        let path = format!("{HOME}/ask");
        match act {
            0 => tree.write(&path, "5/1 ".repeat(100)),
            1 => tree.put(DRIVER, &path, &[0xff; 8]).expect("its own node"),
            2 => tree.remove(HOME),
            _ => return false,
        }
        true
    });
    assert!(!world.state().machine.tree.exists(&format!("{HOME}/for")));
}

#[test]
fn asking_without_end_keeps_no_device_from_being_served() {
    for seed in 0..4 {
        let mut world = world(seed);
        for tick in 0..2_000 {
            let at = world.state().machine.now + Duration::from_millis(tick);
            world.state().at(at, move |state| ask(state, &format!("5/{DEV} {tick} read")));
        }
        let (job, _) = attach(&world, 5, "/dev/nvme0n1", Load::new(0, 4000, 100));
        run(&mut world, |_, _| false);
        assert_outcome(&world, job, Outcome::Done);
        assert!(node(&world, "for").ends_with(" 1999 read"));
        assert_eq!(world.state().frontends[0].answered().1, 0);
    }
}
