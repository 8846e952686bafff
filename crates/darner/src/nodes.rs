//! Node ids: how the kernel addresses a [`Node`].
//!
//! A live object's node id is its [`Inode::number`], so it survives remounts (NFS handles) and the process; the root of the mount
//! is 1, whichever it is. A past one is `1 << 63 | view << 44 | object`, where a *view* is a small number for one way into the
//! past: a tid, the object that was named with it (or the fileset's root that was gone through), and the view from which.
//! (A directory may have one place only in the kernel's tree; `src@@T` and `@@T/src` are two.) It is given back when the
//! kernel has forgotten all of its nodes; the generation of a past node, which handles have beside its id, tells views that had the
//! same number from one another. The virtual `@@` directory is `1 << 62 | ` the live id.
//!
//! Views are in memory that outlives the process. A process that is killed between a look-up and its answer may leave a lookup
//! too many: then that view's number is not used again as long as the mount lasts. Live nodes are not counted: whether the kernel
//! holds one it is asked, where that matters (`reaper.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use darner_fs::{Fs, Inode, Node, ObjectId, Tid};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::receipts::{MountMemory, VIEWS};

const PAST: u64 = 1 << 63;
const POINTS: u64 = 1 << 62;
const OBJECT_BITS: u32 = 44;
const OBJECT: u64 = (1 << OBJECT_BITS) - 1;
/// The kernel's id of what a mount shows.
const ROOT_ID: u64 = 1;

#[derive(Default)]
struct State {
    by_way: FxHashMap<Way, u64>,
    unused: Vec<u64>,
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

/// Which live nodes the kernel may know: a bit for many of them each, which stays once it was told of one.
struct MayKnow([AtomicU64; 1 << WORDS_BITS]);

const WORDS_BITS: u32 = 10;

impl MayKnow {
    fn nothing() -> Box<MayKnow> {
        Box::new(MayKnow(std::array::from_fn(|_| AtomicU64::new(0))))
    }

    fn place(&self, id: u64) -> (&AtomicU64, u64) {
        let hash = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - WORDS_BITS - 6);
        (&self.0[(hash >> 6) as usize], 1 << (hash & 63))
    }

    fn add(&self, id: u64) {
        let (word, bit) = self.place(id);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

/// The nodes that the kernel of one mount knows.
pub struct Nodes {
    root: Inode,
    /// As of when the whole mount is, if it is a mount of the past.
    base: Option<Tid>,
    /// A mirror, which is shown as of what it last pulled as a whole.
    follows: Option<Arc<Fs>>,
    views: MountMemory,
    may_know: Box<MayKnow>,
    state: Mutex<State>,
}

impl Nodes {
    /// For a mount of what is below a root, live or as of a tid; with the views that an earlier process left in `memory`.
    pub fn new(root: Inode, base: Option<Tid>, memory: &MountMemory) -> Nodes {
        let (views, may_know) = (memory.clone(), MayKnow::nothing());
        let nodes = Nodes { root, base, follows: None, views, may_know, state: Mutex::default() };
        let mut state = nodes.state.lock();
        for number in 0..nodes.used() {
            match nodes.way(number) {
                Some(way) => drop(state.by_way.insert(way, number)),
                None => state.unused.push(number),
            }
        }
        drop(state);
        nodes
    }

    fn used(&self) -> u64 {
        self.views.views_used().load(Ordering::Acquire).min(VIEWS as u64)
    }

    /// For a live mount of a mirror.
    pub fn following(self, fs: Option<Arc<Fs>>) -> Nodes {
        Nodes { follows: fs, ..self }
    }

    /// Of a mount that another process served before: nobody knows what the kernel knows.
    pub fn taken_over(self) -> Nodes {
        self.may_know.0.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        self
    }

    /// Whether the kernel may know a node that is live, or as of the mount's tid: if it was ever told of it.
    pub fn may_be_known(&self, id: u64) -> bool {
        let (word, bit) = self.may_know.place(id);
        id == ROOT_ID || word.load(Ordering::Relaxed) & bit != 0
    }

    /// Whether what it shows as a moment moves on.
    pub fn is_following(&self) -> bool {
        self.follows.is_some()
    }

    /// As of when the whole mount is now.
    fn base(&self) -> Option<Tid> {
        self.base.or_else(|| self.follows.as_ref()?.head())
    }

    /// Whether what is as of a tid is what the mount shows of itself.
    fn is_base(&self, tid: Tid) -> bool {
        self.base == Some(tid) || self.follows.as_ref().is_some_and(|fs| fs.is_head(tid))
    }

    /// Which way a view is; `None` for one that is not in use.
    fn way(&self, view: u64) -> Option<Way> {
        let view = (view < self.used()).then(|| self.views.view(view as usize))?;
        if view.lookups.load(Ordering::Acquire) == 0 {
            return None;
        }
        let (tid, object, from) = view.read();
        Some(Way { tid: Tid(tid), object: Inode::from_number(object), from })
    }

    /// The id of an object that is live, or as of the mount's tid.
    pub fn id(&self, ino: Inode) -> u64 {
        if ino == self.root { ROOT_ID } else { ino.number() }
    }

    fn inode(&self, id: u64) -> Inode {
        if id == ROOT_ID { self.root } else { Inode::from_number(id) }
    }

    /// The inode number that users see.
    pub fn shown_ino(&self, node: Node) -> u64 {
        let own_device = matches!(node, Node::AsOf(_, tid) if self.is_base(tid));
        node.shown_ino(own_device)
    }

    /// What a node id stands for; `None` for one that was never given out.
    pub fn node(&self, id: u64) -> Option<Node> {
        if id & PAST != 0 {
            let way = self.way((id & !PAST) >> OBJECT_BITS)?;
            return Some(Node::AsOf(Inode { object: ObjectId(id & OBJECT), ..way.object }, way.tid));
        }
        if id & POINTS != 0 {
            return Some(Node::Points(self.inode(id & !POINTS)));
        }
        Some(match self.base() {
            Some(tid) => Node::AsOf(self.inode(id), tid),
            None => Node::Live(self.inode(id)),
        })
    }

    /// What tells a node from others that had its id before, or in an earlier mount.
    pub fn generation(&self, id: u64) -> u64 {
        let way = if id & PAST == 0 { None } else { self.way((id & !PAST) >> OBJECT_BITS) };
        way.map_or(0, |way| (way.tid.0 ^ way.object.number().rotate_left(24)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32)
    }

    /// The node id to give to the kernel for what was found in directory `dir`, counted as one lookup of its view; `through_time`:
    /// by a name with a moment in it. `None` when there are too many moments in use.
    pub fn looked_up(&self, node: Node, dir: u64, through_time: bool) -> Option<u64> {
        let through_time = through_time || dir & POINTS != 0;
        match node {
            Node::Points(ino) => Some(POINTS | self.id(ino)),
            Node::AsOf(ino, tid) if through_time || dir & PAST != 0 || !self.is_base(tid) => {
                let mut s = self.state.lock();
                let same = if through_time { None } else { self.view_of(dir, ino) };
                let view = match same {
                    Some(view) => view,
                    None => self.view(&mut s, Way { tid, object: ino, from: dir >> OBJECT_BITS })?,
                };
                self.views.view(view as usize).lookups.fetch_add(1, Ordering::AcqRel);
                Some(PAST | view << OBJECT_BITS | ino.object.0)
            }
            Node::Live(ino) | Node::AsOf(ino, _) => {
                let id = self.id(ino);
                self.may_know.add(id);
                Some(id)
            }
        }
    }

    /// The ids under which the kernel may know the past of an object.
    pub fn past_ids(&self, ino: Inode) -> Vec<u64> {
        let of_fileset = |view: &u64| self.way(*view).is_some_and(|way| way.object.fileset == ino.fileset);
        let seen_by_name = (0..self.used()).filter(of_fileset).map(|view| PAST | view << OBJECT_BITS | ino.object.0);
        seen_by_name.chain(self.base().map(|_| self.id(ino))).collect()
    }

    /// The kernel forgot `n` lookups of a node. Returns the object if it is live.
    pub fn forget(&self, id: u64, n: u64) -> Option<Inode> {
        if id & PAST != 0 {
            self.forget_view((id & !PAST) >> OBJECT_BITS, n);
            return None;
        }
        (self.base().is_none() && id & POINTS == 0).then(|| self.inode(id))
    }

    /// The view of a past directory, if what is in it is seen the same way.
    fn view_of(&self, dir: u64, ino: Inode) -> Option<u64> {
        let view = (dir & !PAST) >> OBJECT_BITS;
        let way = self.way(view).filter(|_| dir & PAST != 0)?;
        (way.object.fileset == ino.fileset).then_some(view)
    }

    fn view(&self, s: &mut State, way: Way) -> Option<u64> {
        if let Some(view) = s.by_way.get(&way) {
            return Some(*view);
        }
        let view = match s.unused.pop() {
            Some(view) => view,
            None => {
                let new = self.used();
                if new >= VIEWS as u64 {
                    return None;
                }
                self.views.views_used().store(new + 1, Ordering::Release);
                new
            }
        };
        self.views.view(view as usize).write(way.tid.0, way.object.number(), way.from);
        s.by_way.insert(way, view);
        Some(view)
    }

    fn forget_view(&self, view: u64, n: u64) {
        let mut s = self.state.lock();
        let Some(way) = self.way(view) else { return };
        let lookups = &self.views.view(view as usize).lookups;
        let left = lookups.load(Ordering::Acquire).saturating_sub(n);
        lookups.store(left, Ordering::Release);
        if left == 0 && s.by_way.remove(&way).is_some() {
            s.unused.push(view);
        }
    }
}

#[cfg(test)]
mod tests {
    use darner_fs::{FilesetId, ROOT};

    use super::*;

    fn new(root: Inode, base: Option<Tid>) -> Nodes {
        Nodes::new(root, base, &MountMemory::new().unwrap())
    }

    #[test]
    fn ids_lead_back_to_their_nodes_and_moments_are_given_back() {
        let nodes = new(ROOT, None);
        let past = Node::AsOf(Inode::main(9), Tid(77));
        let id = nodes.looked_up(past, 1, true).unwrap();
        assert_eq!(nodes.node(id), Some(past));
        let again = nodes.looked_up(past, 1, true).unwrap();
        assert_eq!(id, again);
        nodes.forget(id, 2);
        let other = nodes.looked_up(Node::AsOf(Inode::main(9), Tid(78)), 1, true).unwrap();
        assert_eq!(nodes.node(other), Some(Node::AsOf(Inode::main(9), Tid(78))));
        assert_eq!(nodes.looked_up(Node::Live(Inode::main(5)), 1, false), Some(5));
        assert_eq!(nodes.forget(5, 1), Some(Inode::main(5)));
    }

    #[test]
    fn a_past_id_that_means_another_moment_than_before_has_another_generation() {
        let generations: Vec<(u64, u64)> = [77, 78, 77]
            .map(|tid| {
                let nodes = new(ROOT, None);
                let id = nodes.looked_up(Node::AsOf(Inode::main(9), Tid(tid)), 1, true).unwrap();
                assert_eq!(nodes.generation(9), 0, "the present has one only");
                (id, nodes.generation(id))
            })
            .into();
        assert_eq!(generations[0], generations[2]);
        assert!(generations[0].0 == generations[1].0 && generations[0].1 != generations[1].1, "{generations:?}");
    }

    #[test]
    fn the_kernel_may_know_what_it_was_told_of_and_anything_of_a_mount_that_another_process_served() {
        let nodes = new(ROOT, None);
        let told = (2..2000).step_by(7).map(|n| nodes.looked_up(Node::Live(Inode::main(n)), 1, false).unwrap());
        let told: Vec<u64> = told.collect();
        assert!(nodes.may_be_known(1) && told.iter().all(|id| nodes.may_be_known(*id)));
        let others = (2000..12_000).filter(|id| nodes.may_be_known(*id)).count();
        assert!(others < 200, "{others} of 10,000 that it was not told of");
        let nodes = new(ROOT, None).taken_over();
        assert!((2..2000).all(|id| nodes.may_be_known(id)));
    }

    #[test]
    fn a_directory_reached_in_two_ways_is_two_nodes_and_never_its_own_parent() {
        let nodes = new(ROOT, None);
        let (dir, file) = (Node::AsOf(Inode::main(9), Tid(7)), Node::AsOf(Inode::main(10), Tid(7)));
        let direct = nodes.looked_up(dir, 1, true).unwrap();
        let root = nodes.looked_up(Node::AsOf(Inode::main(1), Tid(7)), 1, true).unwrap();
        let below = nodes.looked_up(dir, root, false).unwrap();
        let itself = nodes.looked_up(dir, direct, true).unwrap();
        assert!(direct != below && direct != itself);
        assert_eq!(nodes.looked_up(file, direct, false), nodes.looked_up(file, direct, false));
        let past = new(ROOT, Some(Tid(7)));
        assert_eq!(past.looked_up(dir, 1, false), Some(9));
        let again = past.looked_up(Node::AsOf(Inode::main(1), Tid(7)), 1, true).unwrap();
        assert_ne!(again, 1, "the root of a mount is not in itself");
        assert_eq!(past.node(again), Some(Node::AsOf(Inode::main(1), Tid(7))));
    }
    #[test]
    fn the_past_leads_into_another_fileset_and_each_mount_calls_its_root_1() {
        let other = |n| Inode { fileset: FilesetId(3), object: ObjectId(n) };
        let nodes = new(ROOT, None);
        assert_eq!(nodes.looked_up(Node::Live(other(9)), 1, false), Some(3 << OBJECT_BITS | 9));
        let root = nodes.looked_up(Node::AsOf(ROOT, Tid(7)), 1, true).unwrap();
        let fileset = nodes.looked_up(Node::AsOf(other(9), Tid(7)), root, false).unwrap();
        let file = nodes.looked_up(Node::AsOf(other(10), Tid(7)), fileset, false).unwrap();
        assert_eq!(nodes.node(fileset), Some(Node::AsOf(other(9), Tid(7))));
        assert_eq!(nodes.node(file), Some(Node::AsOf(other(10), Tid(7))));
        assert_eq!(nodes.node(root), Some(Node::AsOf(ROOT, Tid(7))));
        let own = new(other(9), None);
        assert_eq!(own.node(1), Some(Node::Live(other(9))));
        assert_eq!(own.looked_up(Node::Live(other(9)), 5, false), Some(1));
        assert_eq!(own.node(3 << OBJECT_BITS | 10), Some(Node::Live(other(10))));
    }

    #[test]
    fn the_next_process_finds_what_the_ids_of_the_past_meant() {
        let memory = MountMemory::new().unwrap();
        let nodes = Nodes::new(ROOT, None, &memory);
        let past = |tid| Node::AsOf(Inode::main(9), Tid(tid));
        let ids: Vec<u64> = (1..=3).map(|tid| nodes.looked_up(past(tid), 1, true).unwrap()).collect();
        nodes.forget(ids[1], 1);
        let next = Nodes::new(ROOT, None, &memory);
        assert_eq!((next.node(ids[0]), next.node(ids[1]), next.node(ids[2])), (Some(past(1)), None, Some(past(3))));
        assert_eq!(next.looked_up(past(3), 1, true), Some(ids[2]));
        let fourth = next.looked_up(past(4), 1, true).unwrap();
        assert_eq!((fourth, next.node(fourth)), (ids[1], Some(past(4))), "the number that was free");
        next.forget(ids[2], 2);
        assert_eq!(next.node(ids[2]), None);
    }
}
