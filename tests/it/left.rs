//! What guests leave behind when they are gone: nothing. A world that served many is compared with
//! one that never had a guest.

use platter::limits;
use platter::sim::machine::DRIVER;
use platter::sim::world::World;

const ERRORS: &str = "/local/domain/3/error/backend";

/// All that the image holds of others' or could run out of.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Footprint {
    mapped: usize,
    /// Controllers whose registers are mapped.
    registers: usize,
    ports: usize,
    watches: Vec<String>,
    transactions: usize,
    free_pages: usize,
    /// Its xenstore nodes, but for the reasons that it leaves to administrators.
    nodes: Vec<String>,
    /// Whether anything but an event wakes it up.
    has_deadline: bool,
}

impl Footprint {
    /// Of a world at rest.
    pub(crate) fn of(world: &World) -> Self {
        let state = world.state();
        let is_error = |path: &&str| path.starts_with(ERRORS);
        let mut watches: Vec<String> = state.xenstored.watched().map(str::to_owned).collect();
        watches.sort();
        Self {
            mapped: state.machine.grants.mapped(),
            registers: state.lent.mapped(),
            ports: state.machine.ports.count(DRIVER),
            watches,
            transactions: state.xenstored.open_transactions(),
            free_pages: state.free_pages,
            nodes: state
                .machine
                .tree
                .paths_owned(DRIVER)
                .filter(|path| !is_error(path))
                .map(str::to_owned)
                .collect(),
            has_deadline: state.slept_until.is_some(),
        }
    }
}

/// All guests are gone: nothing of theirs is left, `fresh` being the same world without any guest.
#[track_caller]
pub(crate) fn nothing_is_left(world: &World, fresh: &Footprint) {
    assert_eq!(&Footprint::of(world), fresh);
    let state = world.state();
    let reasons =
        ["vbd", "qdisk"].iter().flat_map(|kind| state.machine.tree.children(&format!("{ERRORS}/{kind}")));
    assert!(reasons.count() <= limits::ERRORS, "error nodes are bounded");
}
