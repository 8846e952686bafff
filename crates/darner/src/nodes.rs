//! Node ids: how the kernel addresses a [`Node`], and how often it holds each.
//!
//! A live object's node id is its object number, so it survives remounts (NFS handles). A past one is
//! `1 << 63 | view << 44 | object`, where a *view* is a small number for a tid, given back when the kernel has forgotten all of
//! its nodes. The virtual `@@` directory is `1 << 62 | object`. Invariant: an object that lost its last name is reaped only when
//! its count is 0: with OPEN declined, that is how the last close is known.

use std::sync::Arc;

use darner_fs::{Node, ObjectId, Tid};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

const PAST: u64 = 1 << 63;
const POINTS: u64 = 1 << 62;
const OBJECT_BITS: u32 = 44;
const OBJECT: u64 = (1 << OBJECT_BITS) - 1;
const VIEWS_MAX: usize = 1 << (62 - OBJECT_BITS);

#[derive(Default)]
struct State {
    /// Lookups of live nodes.
    live: FxHashMap<u64, u64>,
    views: Vec<View>,
    by_tid: FxHashMap<Tid, u64>,
    unused: Vec<u64>,
}

struct View {
    tid: Tid,
    lookups: u64,
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
    pub fn remove(&self, nodes: &Arc<Nodes>) -> Vec<ObjectId> {
        let mut all = self.0.write();
        all.retain(|n| !Arc::ptr_eq(n, nodes));
        let mut objects = nodes.forget_all();
        objects.retain(|o| !all.iter().any(|n| n.holds(*o)));
        // The next one to open the store does it.
        if all.is_empty() { Vec::new() } else { objects }
    }

    /// Whether any mount holds an object.
    pub fn hold(&self, object: ObjectId) -> bool {
        self.0.read().iter().any(|n| n.holds(object))
    }
}

/// The nodes that the kernel of one mount knows.
pub struct Nodes {
    /// As of when the whole mount is, if it is a mount of the past.
    base: Option<Tid>,
    state: Mutex<State>,
}

impl Nodes {
    /// For a mount of the live tree, or as of a tid.
    pub fn new(base: Option<Tid>) -> Nodes {
        Nodes { base, state: Mutex::default() }
    }

    /// As of when the mount is.
    pub fn base(&self) -> Option<Tid> {
        self.base
    }

    /// The inode number that users see.
    pub fn shown_ino(&self, node: Node) -> u64 {
        let own_device = matches!(node, Node::AsOf(_, tid) if self.base == Some(tid));
        node.shown_ino(own_device)
    }

    /// What a node id stands for; `None` for one that was never given out.
    pub fn node(&self, id: u64) -> Option<Node> {
        let object = ObjectId(id & OBJECT);
        if id & PAST != 0 {
            let view = (id & !PAST) >> OBJECT_BITS;
            return Some(Node::AsOf(object, self.state.lock().views.get(view as usize)?.tid));
        }
        if id & POINTS != 0 {
            return Some(Node::Points(object));
        }
        Some(match self.base {
            Some(tid) => Node::AsOf(ObjectId(id), tid),
            None => Node::Live(ObjectId(id)),
        })
    }

    /// The node id to give to the kernel, counted as one lookup; `None` when there are too many moments in use.
    pub fn looked_up(&self, node: Node) -> Option<u64> {
        let mut s = self.state.lock();
        match node {
            Node::Points(ino) => Some(POINTS | ino.0),
            Node::AsOf(ino, tid) if self.base != Some(tid) => {
                let view = s.view(tid)?;
                s.views[view as usize].lookups += 1;
                Some(PAST | view << OBJECT_BITS | ino.0)
            }
            Node::Live(ino) | Node::AsOf(ino, _) => {
                *s.live.entry(ino.0).or_insert(0) += 1;
                Some(ino.0)
            }
        }
    }

    /// Whether the kernel knows a live object through this mount.
    pub fn holds(&self, object: ObjectId) -> bool {
        self.base.is_none() && self.state.lock().live.contains_key(&object.0)
    }

    /// The mount has ended: everything is forgotten. Returns the live objects.
    pub fn forget_all(&self) -> Vec<ObjectId> {
        let state = std::mem::take(&mut *self.state.lock());
        if self.base.is_some() { Vec::new() } else { state.live.into_keys().map(ObjectId).collect() }
    }

    /// The kernel forgot `n` lookups of a node. Returns the object if it holds it no more and it is live.
    pub fn forget(&self, id: u64, n: u64) -> Option<ObjectId> {
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
        self.base.is_none().then_some(ObjectId(id))
    }
}

impl State {
    fn view(&mut self, tid: Tid) -> Option<u64> {
        if let Some(view) = self.by_tid.get(&tid) {
            return Some(*view);
        }
        let new = View { tid, lookups: 0 };
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
        self.by_tid.insert(tid, view);
        Some(view)
    }

    fn forget_view(&mut self, view: u64, n: u64) {
        let Some(v) = self.views.get_mut(view as usize) else { return };
        v.lookups = v.lookups.saturating_sub(n);
        if v.lookups == 0 && self.by_tid.remove(&v.tid).is_some() {
            self.unused.push(view);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_back_to_their_nodes_and_moments_are_given_back() {
        let nodes = Nodes::new(None);
        let past = Node::AsOf(ObjectId(9), Tid(77));
        let id = nodes.looked_up(past).unwrap();
        assert_eq!(nodes.node(id), Some(past));
        let again = nodes.looked_up(past).unwrap();
        assert_eq!(id, again);
        nodes.forget(id, 2);
        let other = nodes.looked_up(Node::AsOf(ObjectId(9), Tid(78))).unwrap();
        assert_eq!(nodes.node(other), Some(Node::AsOf(ObjectId(9), Tid(78))));
        assert_eq!(nodes.looked_up(Node::Live(ObjectId(5))), Some(5));
        assert_eq!(nodes.looked_up(Node::Live(ObjectId(5))), Some(5));
        assert_eq!(nodes.forget(5, 1), None, "still held once");
        assert_eq!(nodes.forget(5, 1), Some(ObjectId(5)));
    }
}
