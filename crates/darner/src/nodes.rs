//! Node ids: how the kernel addresses a [`Node`], and how often it holds each.
//!
//! A live object's node id is its [`Inode::number`], so it survives remounts (NFS handles); the root of the mount is 1,
//! whichever it is. A past one is `1 << 63 | view << 44 | object`, where a *view* is a small number for one way into the
//! past: a tid, the object that was named with it (or the fileset's root that was gone through), and the view from which.
//! (A directory may have one place only in the kernel's tree; `src@@T` and `@@T/src` are two.) It is given back when the
//! kernel has forgotten all of its nodes. The virtual `@@` directory is `1 << 62 | ` the live id. Invariant: an object that
//! lost its last name is reaped only when its count is 0: with OPEN declined, that is how the last close is known.

use std::sync::Arc;

use darner_fs::{Inode, Node, ObjectId, Tid};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

const PAST: u64 = 1 << 63;
const POINTS: u64 = 1 << 62;
const OBJECT_BITS: u32 = 44;
const OBJECT: u64 = (1 << OBJECT_BITS) - 1;
/// The kernel's id of what a mount shows.
const ROOT_ID: u64 = 1;
const VIEWS_MAX: usize = 1 << (62 - OBJECT_BITS);

#[derive(Default)]
struct State {
    /// Lookups of live nodes.
    live: FxHashMap<u64, u64>,
    views: Vec<View>,
    by_way: FxHashMap<Way, u64>,
    unused: Vec<u64>,
}

struct View {
    way: Way,
    lookups: u64,
}

/// A way into the past.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Way {
    tid: Tid,
    /// The object named with the moment; all that is seen this way is of its fileset.
    object: Inode,
    /// The directory's view and kind: what is above the object in its node id.
    from: u64,
}

/// The nodes of all live mounts: an object without a name stays as long as one of them holds it.
#[derive(Clone, Default)]
pub struct Holders(Arc<RwLock<Vec<Arc<Nodes>>>>);

impl Holders {
    /// A mount begins.
    pub fn add(&self, nodes: &Arc<Nodes>) {
        self.0.write().push(nodes.clone());
    }

    /// A mount has ended. Returns the objects that only it held, if others go on.
    pub fn remove(&self, nodes: &Arc<Nodes>) -> Vec<Inode> {
        let mut all = self.0.write();
        all.retain(|n| !Arc::ptr_eq(n, nodes));
        let mut objects = nodes.forget_all();
        objects.retain(|o| !all.iter().any(|n| n.holds(*o)));
        // The next one to open the store does it.
        if all.is_empty() { Vec::new() } else { objects }
    }

    /// Whether any mount holds an object.
    pub fn hold(&self, object: Inode) -> bool {
        self.0.read().iter().any(|n| n.holds(object))
    }
}

/// The nodes that the kernel of one mount knows.
pub struct Nodes {
    root: Inode,
    /// As of when the whole mount is, if it is a mount of the past.
    base: Option<Tid>,
    state: Mutex<State>,
}

impl Nodes {
    /// For a mount of what is below a root, live or as of a tid.
    pub fn new(root: Inode, base: Option<Tid>) -> Nodes {
        Nodes { root, base, state: Mutex::default() }
    }

    /// The id of an object that is live, or as of the mount's tid.
    fn id(&self, ino: Inode) -> u64 {
        if ino == self.root { ROOT_ID } else { ino.number() }
    }

    fn inode(&self, id: u64) -> Inode {
        if id == ROOT_ID { self.root } else { Inode::from_number(id) }
    }

    /// The inode number that users see.
    pub fn shown_ino(&self, node: Node) -> u64 {
        let own_device = matches!(node, Node::AsOf(_, tid) if self.base == Some(tid));
        node.shown_ino(own_device)
    }

    /// What a node id stands for; `None` for one that was never given out.
    pub fn node(&self, id: u64) -> Option<Node> {
        if id & PAST != 0 {
            let view = (id & !PAST) >> OBJECT_BITS;
            let way = self.state.lock().views.get(view as usize)?.way;
            return Some(Node::AsOf(Inode { object: ObjectId(id & OBJECT), ..way.object }, way.tid));
        }
        if id & POINTS != 0 {
            return Some(Node::Points(self.inode(id & !POINTS)));
        }
        Some(match self.base {
            Some(tid) => Node::AsOf(self.inode(id), tid),
            None => Node::Live(self.inode(id)),
        })
    }

    /// The node id to give to the kernel for what was found in directory `dir`, counted as one lookup; `through_time`: by a
    /// name with a moment in it. `None` when there are too many moments in use.
    pub fn looked_up(&self, node: Node, dir: u64, through_time: bool) -> Option<u64> {
        let mut s = self.state.lock();
        let through_time = through_time || dir & POINTS != 0;
        match node {
            Node::Points(ino) => Some(POINTS | self.id(ino)),
            Node::AsOf(ino, tid) if through_time || dir & PAST != 0 || self.base != Some(tid) => {
                let same = if through_time { None } else { s.view_of(dir, ino) };
                let view = match same {
                    Some(view) => view,
                    None => s.view(Way { tid, object: ino, from: dir >> OBJECT_BITS })?,
                };
                s.views.get_mut(view as usize)?.lookups += 1;
                Some(PAST | view << OBJECT_BITS | ino.object.0)
            }
            Node::Live(ino) | Node::AsOf(ino, _) => {
                let id = self.id(ino);
                *s.live.entry(id).or_insert(0) += 1;
                Some(id)
            }
        }
    }

    /// The ids under which the kernel may know the past of an object.
    pub fn past_ids(&self, ino: Inode) -> Vec<u64> {
        let state = self.state.lock();
        let views =
            state.views.iter().enumerate().filter(|(_, v)| v.lookups > 0 && v.way.object.fileset == ino.fileset);
        let seen_by_name = views.map(|(view, _)| PAST | (view as u64) << OBJECT_BITS | ino.object.0);
        seen_by_name.chain(self.base.map(|_| self.id(ino))).collect()
    }

    /// Whether the kernel knows a live object through this mount.
    pub fn holds(&self, object: Inode) -> bool {
        self.base.is_none() && self.state.lock().live.contains_key(&self.id(object))
    }

    /// The mount has ended: everything is forgotten. Returns the live objects.
    pub fn forget_all(&self) -> Vec<Inode> {
        let state = std::mem::take(&mut *self.state.lock());
        if self.base.is_some() { Vec::new() } else { state.live.into_keys().map(|id| self.inode(id)).collect() }
    }

    /// The kernel forgot `n` lookups of a node. Returns the object if it holds it no more and it is live.
    pub fn forget(&self, id: u64, n: u64) -> Option<Inode> {
        let mut s = self.state.lock();
        if id & PAST != 0 {
            s.forget_view((id & !PAST) >> OBJECT_BITS, n);
            return None;
        }
        let left = s.live.get_mut(&id)?;
        *left = left.saturating_sub(n);
        if *left > 0 {
            return None;
        }
        s.live.remove(&id);
        self.base.is_none().then(|| self.inode(id))
    }
}

impl State {
    /// The view of a past directory, if what is in it is seen the same way.
    fn view_of(&self, dir: u64, ino: Inode) -> Option<u64> {
        let view = (dir & !PAST) >> OBJECT_BITS;
        let way = self.views.get(view as usize).filter(|_| dir & PAST != 0)?.way;
        (way.object.fileset == ino.fileset).then_some(view)
    }

    fn view(&mut self, way: Way) -> Option<u64> {
        if let Some(view) = self.by_way.get(&way) {
            return Some(*view);
        }
        let new = View { way, lookups: 0 };
        let view = match self.unused.pop() {
            Some(view) => {
                self.views[view as usize] = new;
                view
            }
            None if self.views.len() >= VIEWS_MAX => return None,
            None => {
                self.views.push(new);
                self.views.len() as u64 - 1
            }
        };
        self.by_way.insert(way, view);
        Some(view)
    }

    fn forget_view(&mut self, view: u64, n: u64) {
        let Some(v) = self.views.get_mut(view as usize) else { return };
        v.lookups = v.lookups.saturating_sub(n);
        if v.lookups == 0 && self.by_way.remove(&v.way).is_some() {
            self.unused.push(view);
        }
    }
}

#[cfg(test)]
mod tests {
    use darner_fs::{FilesetId, ROOT};

    use super::*;

    #[test]
    fn ids_lead_back_to_their_nodes_and_moments_are_given_back() {
        let nodes = Nodes::new(ROOT, None);
        let past = Node::AsOf(Inode::main(9), Tid(77));
        let id = nodes.looked_up(past, 1, true).unwrap();
        assert_eq!(nodes.node(id), Some(past));
        let again = nodes.looked_up(past, 1, true).unwrap();
        assert_eq!(id, again);
        nodes.forget(id, 2);
        let other = nodes.looked_up(Node::AsOf(Inode::main(9), Tid(78)), 1, true).unwrap();
        assert_eq!(nodes.node(other), Some(Node::AsOf(Inode::main(9), Tid(78))));
        assert_eq!(nodes.looked_up(Node::Live(Inode::main(5)), 1, false), Some(5));
        assert_eq!(nodes.looked_up(Node::Live(Inode::main(5)), 1, false), Some(5));
        assert_eq!(nodes.forget(5, 1), None, "still held once");
        assert_eq!(nodes.forget(5, 1), Some(Inode::main(5)));
    }

    #[test]
    fn a_directory_reached_in_two_ways_is_two_nodes_and_never_its_own_parent() {
        let nodes = Nodes::new(ROOT, None);
        let (dir, file) = (Node::AsOf(Inode::main(9), Tid(7)), Node::AsOf(Inode::main(10), Tid(7)));
        let direct = nodes.looked_up(dir, 1, true).unwrap();
        let root = nodes.looked_up(Node::AsOf(Inode::main(1), Tid(7)), 1, true).unwrap();
        let below = nodes.looked_up(dir, root, false).unwrap();
        let itself = nodes.looked_up(dir, direct, true).unwrap();
        assert!(direct != below && direct != itself);
        assert_eq!(nodes.looked_up(file, direct, false), nodes.looked_up(file, direct, false));
        let past = Nodes::new(ROOT, Some(Tid(7)));
        assert_eq!(past.looked_up(dir, 1, false), Some(9));
        let again = past.looked_up(Node::AsOf(Inode::main(1), Tid(7)), 1, true).unwrap();
        assert_ne!(again, 1, "the root of a mount is not in itself");
        assert_eq!(past.node(again), Some(Node::AsOf(Inode::main(1), Tid(7))));
    }
    #[test]
    fn the_past_leads_into_another_fileset_and_each_mount_calls_its_root_1() {
        let other = |n| Inode { fileset: FilesetId(3), object: ObjectId(n) };
        let nodes = Nodes::new(ROOT, None);
        assert_eq!(nodes.looked_up(Node::Live(other(9)), 1, false), Some(3 << OBJECT_BITS | 9));
        let root = nodes.looked_up(Node::AsOf(ROOT, Tid(7)), 1, true).unwrap();
        let fileset = nodes.looked_up(Node::AsOf(other(9), Tid(7)), root, false).unwrap();
        let file = nodes.looked_up(Node::AsOf(other(10), Tid(7)), fileset, false).unwrap();
        assert_eq!(nodes.node(fileset), Some(Node::AsOf(other(9), Tid(7))));
        assert_eq!(nodes.node(file), Some(Node::AsOf(other(10), Tid(7))));
        assert_eq!(nodes.node(root), Some(Node::AsOf(ROOT, Tid(7))));
        let own = Nodes::new(other(9), None);
        assert_eq!(own.node(1), Some(Node::Live(other(9))));
        assert_eq!(own.looked_up(Node::Live(other(9)), 5, false), Some(1));
        assert_eq!(own.node(3 << OBJECT_BITS | 10), Some(Node::Live(other(10))));
    }
}
