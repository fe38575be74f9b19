//! Xenstore's contents: a tree of nodes with owners, as far as a backend meets them. The toolstack
//! and the frontends act on it directly, as dom0; the driver domain comes through `xenstored` and
//! its permissions are checked here.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use super::machine::DOM0;
use crate::units::DomId;

/// Longest absolute path (xs_wire.h, `XENSTORE_ABS_PATH_MAX`).
const PATH_MAX: usize = 3072;

/// An error's name as xenstored sends it.
pub type Errno = &'static str;

/// As [`Perms::reader`]: every domain.
pub const ANYONE: DomId = DomId(0x7ff4);

/// Who may do what with a node: its owner (and dom0) everything, one other domain may read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Perms {
    /// Counts the node in its quota.
    pub owner: DomId,
    /// May read it.
    pub reader: DomId,
}

impl Perms {
    fn may_read(self, who: DomId) -> bool {
        who == DOM0 || who == self.owner || who == self.reader || self.reader == ANYONE
    }

    fn may_write(self, who: DomId) -> bool {
        who == DOM0 || who == self.owner
    }
}

#[derive(Clone, Debug)]
struct Node {
    value: Vec<u8>,
    perms: Perms,
}

/// A change to a node, for the watches on it or above it.
#[derive(Clone, Debug)]
pub struct Change {
    /// The node that was written, made or removed.
    pub path: String,
    perms: Perms,
    /// It was removed with one above it: only watches on exactly this node are told.
    exact: bool,
}

impl Change {
    /// Whether a watch of `who` on `watched` is told.
    #[must_use]
    pub fn fires(&self, who: DomId, watched: &str) -> bool {
        let below = self.path.strip_prefix(watched).is_some_and(|rest| rest.starts_with('/'));
        self.perms.may_read(who) && (self.path == watched || (below && !self.exact))
    }
}

/// The tree. Every change counts it one generation up.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Shared with the trees that transactions see, which differ in a few nodes.
    nodes: BTreeMap<Rc<str>, Rc<Node>>,
    generation: u64,
    changes: Vec<Change>,
    /// The path of each change, one a generation; a transaction's are those of its own.
    history: Vec<Rc<str>>,
    /// Nodes a domain other than dom0 may own, and the error when it has them.
    pub quota: (usize, Errno),
    /// C xenstored says EACCES of a missing node when the closest one above it cannot be read;
    /// oxenstored says ENOENT.
    pub hides_missing: bool,
}

impl Default for Tree {
    fn default() -> Self {
        let perms = Perms { owner: DOM0, reader: ANYONE };
        let nodes = BTreeMap::from([("".into(), Rc::new(Node { value: Vec::new(), perms }))]);
        Self {
            nodes,
            generation: 0,
            changes: Vec::new(),
            history: Vec::new(),
            quota: (1000, "EQUOTA"),
            hides_missing: false,
        }
    }
}

impl Tree {
    /// The text of a node; nothing when it is missing or not UTF-8.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        core::str::from_utf8(&self.nodes.get(path)?.value).ok()
    }

    /// Whether there is such a node.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Writes a node as dom0; missing parents are made, with the permissions of theirs.
    ///
    /// # Panics
    /// When the path is not one.
    pub fn write(&mut self, path: &str, value: impl ToString) {
        self.put(DOM0, path, value.to_string().as_bytes()).expect("dom0 may write a good path");
    }

    /// Writes a node as dom0 and sets its permissions, which its children inherit.
    ///
    /// # Panics
    /// When the path is not one.
    pub fn write_for(&mut self, path: &str, value: impl ToString, perms: Perms) {
        self.write(path, value);
        if let Some(node) = self.nodes.get_mut(path) {
            Rc::make_mut(node).perms = perms;
        }
        if let Some(change) = self.changes.last_mut() {
            change.perms = perms;
        }
    }

    /// Removes a node and all below it, as dom0.
    pub fn remove(&mut self, path: &str) {
        // That it is gone already is what the toolstack wants, too.
        let _ = self.delete(DOM0, path);
    }

    /// The names of a node's children.
    #[must_use]
    pub fn children(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let below = self.below(&prefix).map(|(child, _)| &child[prefix.len()..]);
        below.filter(|name| !name.contains('/')).map(str::to_string).collect()
    }

    /// How many nodes count in a domain's quota.
    #[must_use]
    pub fn owned(&self, who: DomId) -> usize {
        self.paths_owned(who).count()
    }

    /// The paths of those.
    pub fn paths_owned(&self, who: DomId) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(move |(_, node)| node.perms.owner == who).map(|(path, _)| &**path)
    }

    /// How often the tree has changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a directory, what is in it or what it is in was changed after that generation.
    #[must_use]
    pub fn changed_since(&self, generation: u64, directory: &str) -> bool {
        let is_in = |path: &str, above: &str| {
            path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let news = &self.history[generation as usize..];
        news.iter().any(|path| is_in(path, directory) || is_in(directory, path))
    }

    /// What has changed since this was last asked.
    pub fn take_changes(&mut self) -> Vec<Change> {
        core::mem::take(&mut self.changes)
    }

    /// The tree as a transaction sees it that starts now.
    #[must_use]
    pub fn fork(&self) -> Self {
        let (nodes, generation) = (self.nodes.clone(), self.generation);
        let Self { quota, hides_missing, .. } = *self;
        Self { nodes, generation, changes: Vec::new(), history: Vec::new(), quota, hides_missing }
    }

    /// Makes a transaction's changes ours, if nobody changed anything since its fork was taken at
    /// generation `started`; false otherwise.
    pub fn merge(&mut self, started: u64, fork: Self) -> bool {
        let undisturbed = self.generation == started;
        if undisturbed {
            let changes = [self.take_changes(), fork.changes].concat();
            let history = [core::mem::take(&mut self.history), fork.history].concat();
            *self = Self { changes, history, ..fork };
        }
        undisturbed
    }

    /// What another domain reads in a node.
    ///
    /// # Errors
    /// ENOENT, EACCES, EINVAL.
    pub fn get(&self, who: DomId, path: &str) -> Result<&[u8], Errno> {
        check(path)?;
        let node = self.nodes.get(path).ok_or(self.missing(who, path))?;
        if node.perms.may_read(who) { Ok(&node.value) } else { Err("EACCES") }
    }

    /// Writes a node for a domain.
    ///
    /// # Errors
    /// EACCES, EINVAL, or the quota's error.
    pub fn put(&mut self, who: DomId, path: &str, value: &[u8]) -> Result<(), Errno> {
        check(path)?;
        if !self.exists(path) {
            self.make(who, path)?;
        }
        let node = Rc::make_mut(self.nodes.get_mut(path).ok_or("ENOENT")?);
        if !node.perms.may_write(who) {
            return Err("EACCES");
        }
        node.value = value.to_vec();
        let perms = node.perms;
        self.changed(path, perms, false);
        Ok(())
    }

    /// Makes a node for a domain; one that is there already is left alone.
    ///
    /// # Errors
    /// EACCES, EINVAL, or the quota's error.
    pub fn make_dir(&mut self, who: DomId, path: &str) -> Result<(), Errno> {
        check(path)?;
        if self.exists(path) { Ok(()) } else { self.make(who, path) }
    }

    /// Removes a node and all below it for a domain.
    ///
    /// # Errors
    /// ENOENT when its parent is missing too, EACCES, EINVAL.
    pub fn delete(&mut self, who: DomId, path: &str) -> Result<(), Errno> {
        check(path)?;
        let Some(node) = self.nodes.get(path) else {
            return if self.exists(parent(path)) { Ok(()) } else { Err("ENOENT") };
        };
        let perms = node.perms;
        if !perms.may_write(who) {
            return Err("EACCES");
        }
        let prefix = format!("{path}/");
        let below: Vec<_> = self.below(&prefix).map(|(path, node)| (path.clone(), node.perms)).collect();
        for (path, perms) in below {
            self.nodes.remove(&path);
            self.changed(&path, perms, true);
        }
        self.nodes.remove(path);
        self.changed(path, perms, false);
        Ok(())
    }

    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a Rc<str>, &'a Rc<Node>)> {
        let start = (Bound::Included(prefix), Bound::Unbounded);
        self.nodes.range::<str, _>(start).take_while(move |(path, _)| path.starts_with(prefix))
    }

    fn missing(&self, who: DomId, path: &str) -> Errno {
        let mut above = parent(path);
        while !above.is_empty() && !self.exists(above) {
            above = parent(above);
        }
        let readable = self.nodes.get(above).is_none_or(|node| node.perms.may_read(who));
        if self.hides_missing && !readable { "EACCES" } else { "ENOENT" }
    }

    fn make(&mut self, who: DomId, path: &str) -> Result<(), Errno> {
        let above = parent(path);
        if !self.exists(above) {
            self.make(who, above)?;
        }
        let perms = self.nodes.get(above).ok_or("ENOENT")?.perms;
        if !perms.may_write(who) {
            return Err("EACCES");
        }
        // Counting takes long; nobody owns more nodes than there are.
        if who != DOM0 && self.nodes.len() >= self.quota.0 && self.owned(who) >= self.quota.0 {
            return Err(self.quota.1);
        }
        self.nodes.insert(path.into(), Rc::new(Node { value: Vec::new(), perms }));
        self.changed(path, perms, false);
        Ok(())
    }

    fn changed(&mut self, path: &str, perms: Perms, exact: bool) {
        self.generation += 1;
        self.history.push(path.into());
        self.changes.push(Change { path: path.to_string(), perms, exact });
    }
}

/// The path above; the root's is the empty text.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

fn check(path: &str) -> Result<(), Errno> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
    let good = path.len() <= PATH_MAX
        && path.starts_with('/')
        && !path.ends_with('/')
        && !path.contains("//")
        && path.chars().all(allowed);
    if good { Ok(()) } else { Err("EINVAL") }
}

#[cfg(test)]
mod tests {
    use super::super::machine::DRIVER;
    use super::*;

    const LEAF: &str = "/local/domain/3/backend/vbd/5/51728";

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.write_for("/local/domain/3", "", Perms { owner: DOM0, reader: DRIVER });
        tree.write_for(LEAF, "", Perms { owner: DRIVER, reader: DomId(5) });
        tree.write(&format!("{LEAF}/state"), 1);
        tree
    }

    #[test]
    fn a_backend_writes_below_its_leaf_and_cannot_make_it_again() {
        let mut tree = tree();
        assert_eq!(tree.put(DRIVER, &format!("{LEAF}/state"), b"2"), Ok(()));
        assert_eq!(tree.put(DRIVER, &format!("{LEAF}/info"), b"0"), Ok(()));
        assert_eq!(tree.delete(DRIVER, LEAF), Ok(()));
        assert!(!tree.exists(&format!("{LEAF}/info")));
        assert_eq!(tree.put(DRIVER, &format!("{LEAF}/state"), b"6"), Err("EACCES"));
        assert_eq!(tree.get(DRIVER, &format!("{LEAF}/state")), Err("ENOENT"));
    }

    #[test]
    fn guests_read_what_they_are_shown_and_write_nothing_there() {
        let mut tree = tree();
        let state = format!("{LEAF}/state");
        assert_eq!(tree.get(DomId(5), &state), Ok(&b"1"[..]));
        assert_eq!(tree.get(DomId(6), &state), Err("EACCES"));
        assert_eq!(tree.put(DomId(5), &state, b"4"), Err("EACCES"));
    }

    #[test]
    fn a_missing_node_below_an_unreadable_one_is_hidden_by_one_daemon() {
        let mut tree = tree();
        tree.write_for("/local/domain/5", "", Perms { owner: DOM0, reader: DomId(5) });
        let gone = "/local/domain/5/device/vbd/51728/state";
        assert_eq!(tree.get(DRIVER, gone), Err("ENOENT"));
        tree.hides_missing = true;
        assert_eq!(tree.get(DRIVER, gone), Err("EACCES"));
        assert_eq!(tree.get(DRIVER, &format!("{LEAF}/online")), Err("ENOENT"));
    }

    #[test]
    fn a_quota_stops_new_nodes_and_not_old_ones() {
        let mut tree = tree();
        tree.quota = (2, "ENOSPC");
        assert_eq!(tree.put(DRIVER, &format!("{LEAF}/info"), b"0"), Err("ENOSPC"));
        assert_eq!(tree.put(DRIVER, &format!("{LEAF}/state"), b"2"), Ok(()));
    }

    #[test]
    fn children_are_listed_without_their_own() {
        let tree = tree();
        assert_eq!(tree.children("/local/domain/3/backend"), ["vbd"]);
        assert_eq!(tree.children(LEAF), ["state"]);
        assert_eq!(tree.children("/local/domain/3/back"), [""; 0]);
    }

    #[test]
    fn watches_are_told_of_what_is_below_and_of_their_own_removal() {
        let mut tree = tree();
        tree.take_changes();
        tree.write(&format!("{LEAF}/state"), 5);
        let told = |tree: &mut Tree, path: &str| {
            tree.changes.iter().filter(|change| change.fires(DRIVER, path)).count()
        };
        assert_eq!(told(&mut tree, "/local/domain/3/backend"), 1);
        assert_eq!(told(&mut tree, &format!("{LEAF}/online")), 0);
        assert_eq!(told(&mut tree, "/local/domain/3/back"), 0);
        tree.take_changes();
        tree.remove("/local/domain/3/backend");
        assert_eq!(told(&mut tree, &format!("{LEAF}/state")), 1, "removed with what was above it");
        assert_eq!(told(&mut tree, "/local/domain/3"), 1, "one removal, not one for each node");
    }

    #[test]
    fn a_disturbed_transaction_changes_nothing() {
        let mut tree = tree();
        let (started, mut fork) = (tree.generation(), tree.fork());
        fork.put(DRIVER, &format!("{LEAF}/state"), b"2").unwrap();
        tree.write("/local/domain/5/name", "guest");
        assert!(!tree.merge(started, fork.clone()));
        assert_eq!(tree.text(&format!("{LEAF}/state")), Some("1"));
        assert!(tree.merge(tree.generation(), fork));
        assert_eq!(tree.text(&format!("{LEAF}/state")), Some("2"));
    }

    #[test]
    fn bad_paths_are_refused() {
        let mut tree = tree();
        for path in ["", "/", "/a//b", "/a/", "a/b", "/a b"] {
            assert_eq!(tree.put(DOM0, path, b""), Err("EINVAL"), "{path:?}");
        }
    }
}
