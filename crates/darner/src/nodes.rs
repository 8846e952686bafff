//! Node ids: how the kernel addresses a [`Node`].
//!
//! A live object's node id is its [`Inode::number`], so it survives remounts (NFS handles) and the process; the root of the mount
//! is 1, whichever it is. A past one is `1 << 63 | view << 44 | object'`, where a *view* is a small number for one way into the
//! past: a tid, the directory that was named with it (or the fileset's root that was gone through), and the view from which.
//! (A directory may have one place only in the kernel's tree; `src@@T` and `@@T/src` are two. Files named with a moment have one
//! view for each moment and fileset.) `object'` is the object's number, moved on by the view: the kernel finds nodes by the low bits
//! of their ids, and one object as of many moments would all be in the same few places. A view is given back when the
//! kernel has forgotten all of its nodes; the generation of a past node, which handles have beside its id, tells views that had the
//! same number from one another. The virtual `@@` directory is `1 << 62 | ` the live id.
//!
//! Views are in memory that outlives the process. A process that is killed between a look-up and its answer may leave a lookup
//! too many: then that view's number is not used again as long as the mount lasts. Live nodes are not counted: whether the kernel
//! holds one it is asked, where that matters (`reaper.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use darner_fs::{FilesetId, Fs, Inode, Node, ObjectId, Tid};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::receipts::{MountMemory, VIEWS};

const PAST: u64 = 1 << 63;
const POINTS: u64 = 1 << 62;
const OBJECT_BITS: u32 = 44;
const OBJECT: u64 = (1 << OBJECT_BITS) - 1;
/// How far a view moves objects on; odd, so that the low bits of any two views differ.
const STRIDE: u64 = 0x779b_97f4_a7c1;
/// In `from`, where views are kept: objects are moved on. (Views of processes before did not.)
const MOVED: u64 = 1 << 63;
/// The kernel's id of what a mount shows.
const ROOT_ID: u64 = 1;

#[derive(Default)]
struct State {
    by_way: FxHashMap<Way, u64>,
    unused: Vec<u64>,
    /// It was told that there are no more.
    told: bool,
}

/// A way into the past.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Way {
    tid: Tid,
    /// The directory named with the moment; all that is seen this way is of its fileset.
    object: Inode,
    /// The directory's view and kind: what is above the object in its node id.
    from: u64,
}

impl Way {
    /// To what is no directory, from wherever.
    fn to_files(fileset: FilesetId, tid: Tid) -> Way {
        Way { tid, object: Inode { fileset, object: ObjectId(0) }, from: 0 }
    }
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
        Some(Way { tid: Tid(tid), object: Inode::from_number(object), from: from & !MOVED })
    }

    /// How far a view, which is in use, moves objects on.
    fn moves(&self, view: u64) -> u64 {
        let (_, _, from) = self.views.view(view as usize).read();
        if from & MOVED == 0 { 0 } else { view.wrapping_mul(STRIDE) }
    }

    /// The id of an object in a view.
    fn past_id(&self, view: u64, object: ObjectId) -> u64 {
        PAST | view << OBJECT_BITS | object.0.wrapping_add(self.moves(view)) & OBJECT
    }

    /// The id of an object that is live, or as of the mount's tid.
    pub fn id(&self, ino: Inode) -> u64 {
        if ino == self.root { ROOT_ID } else { ino.number() }
    }

    fn inode(&self, id: u64) -> Inode {
        if id == ROOT_ID { self.root } else { Inode::from_number(id) }
    }

    /// The inode number that users see of a node with its id. (What a mount shows of itself is not what it shows of the same moment by name:
    /// a mirror's moves on.)
    pub fn shown_ino(&self, node: Node, id: u64) -> u64 {
        node.shown_ino(id & PAST == 0)
    }

    /// The same of one that is listed in a directory, before it has an id.
    pub fn listed_ino(&self, node: Node, dir: u64) -> u64 {
        let is_own = matches!(node, Node::AsOf(_, tid) if self.is_base(tid));
        node.shown_ino(is_own && dir & (PAST | POINTS) == 0)
    }

    /// What a node id stands for; `None` for one that was never given out.
    pub fn node(&self, id: u64) -> Option<Node> {
        if id & PAST != 0 {
            let view = (id & !PAST) >> OBJECT_BITS;
            let way = self.way(view)?;
            let object = ObjectId(id.wrapping_sub(self.moves(view)) & OBJECT);
            return Some(Node::AsOf(Inode { object, ..way.object }, way.tid));
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
    pub fn looked_up(&self, node: Node, is_dir: bool, dir: u64, through_time: bool) -> Option<u64> {
        let through_time = through_time || dir & POINTS != 0;
        match node {
            Node::Points(ino) => Some(POINTS | self.id(ino)),
            Node::AsOf(ino, tid) if through_time || dir & PAST != 0 || !self.is_base(tid) => {
                let mut s = self.state.lock();
                let same = if through_time { None } else { self.view_of(dir, ino) };
                let view = match same {
                    Some(view) => view,
                    None if is_dir => self.view(&mut s, Way { tid, object: ino, from: dir >> OBJECT_BITS })?,
                    None => self.view(&mut s, Way::to_files(ino.fileset, tid))?,
                };
                self.views.view(view as usize).lookups.fetch_add(1, Ordering::AcqRel);
                Some(self.past_id(view, ino.object))
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
        let seen_by_name = (0..self.used()).filter(of_fileset).map(|view| self.past_id(view, ino.object));
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
                    if !std::mem::replace(&mut s.told, true) {
                        tracing::warn!(
                            "the kernel remembers directories and moments in {VIEWS} combinations: no more can be looked at until it forgets \
                             some (echo 2 > /proc/sys/vm/drop_caches)"
                        );
                    }
                    return None;
                }
                self.views.views_used().store(new + 1, Ordering::Release);
                new
            }
        };
        self.views.view(view as usize).write(way.tid.0, way.object.number(), way.from | MOVED);
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
    use darner_fs::ROOT;

    use super::*;

    fn new(root: Inode, base: Option<Tid>) -> Nodes {
        Nodes::new(root, base, &MountMemory::new().unwrap())
    }

    #[test]
    fn ids_lead_back_to_their_nodes_and_moments_are_given_back() {
        let nodes = new(ROOT, None);
        let past = Node::AsOf(Inode::main(9), Tid(77));
        let id = nodes.looked_up(past, true, 1, true).unwrap();
        assert_eq!(nodes.node(id), Some(past));
        let again = nodes.looked_up(past, true, 1, true).unwrap();
        assert_eq!(id, again);
        nodes.forget(id, 2);
        let other = nodes.looked_up(Node::AsOf(Inode::main(9), Tid(78)), true, 1, true).unwrap();
        assert_eq!(nodes.node(other), Some(Node::AsOf(Inode::main(9), Tid(78))));
        assert_eq!(nodes.looked_up(Node::Live(Inode::main(5)), true, 1, false), Some(5));
        assert_eq!(nodes.forget(5, 1), Some(Inode::main(5)));
    }

    #[test]
    fn a_past_id_that_means_another_moment_than_before_has_another_generation() {
        let generations: Vec<(u64, u64)> = [77, 78, 77]
            .map(|tid| {
                let nodes = new(ROOT, None);
                let id = nodes.looked_up(Node::AsOf(Inode::main(9), Tid(tid)), true, 1, true).unwrap();
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
        let told = (2..2000).step_by(7).map(|n| nodes.looked_up(Node::Live(Inode::main(n)), true, 1, false).unwrap());
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
        let direct = nodes.looked_up(dir, true, 1, true).unwrap();
        let root = nodes.looked_up(Node::AsOf(Inode::main(1), Tid(7)), true, 1, true).unwrap();
        let below = nodes.looked_up(dir, true, root, false).unwrap();
        let itself = nodes.looked_up(dir, true, direct, true).unwrap();
        assert!(direct != below && direct != itself);
        assert_eq!(nodes.looked_up(file, false, direct, false), nodes.looked_up(file, false, direct, false));
        let past = new(ROOT, Some(Tid(7)));
        assert_eq!(past.looked_up(dir, true, 1, false), Some(9));
        let again = past.looked_up(Node::AsOf(Inode::main(1), Tid(7)), true, 1, true).unwrap();
        assert_ne!(again, 1, "the root of a mount is not in itself");
        assert_eq!(past.node(again), Some(Node::AsOf(Inode::main(1), Tid(7))));
    }
    #[test]
    fn the_past_leads_into_another_fileset_and_each_mount_calls_its_root_1() {
        let other = |n| Inode { fileset: FilesetId(3), object: ObjectId(n) };
        let nodes = new(ROOT, None);
        assert_eq!(nodes.looked_up(Node::Live(other(9)), true, 1, false), Some(3 << OBJECT_BITS | 9));
        let root = nodes.looked_up(Node::AsOf(ROOT, Tid(7)), true, 1, true).unwrap();
        let fileset = nodes.looked_up(Node::AsOf(other(9), Tid(7)), true, root, false).unwrap();
        let file = nodes.looked_up(Node::AsOf(other(10), Tid(7)), false, fileset, false).unwrap();
        assert_eq!(nodes.node(fileset), Some(Node::AsOf(other(9), Tid(7))));
        assert_eq!(nodes.node(file), Some(Node::AsOf(other(10), Tid(7))));
        assert_eq!(nodes.node(root), Some(Node::AsOf(ROOT, Tid(7))));
        let own = new(other(9), None);
        assert_eq!(own.node(1), Some(Node::Live(other(9))));
        assert_eq!(own.looked_up(Node::Live(other(9)), true, 5, false), Some(1));
        assert_eq!(own.node(3 << OBJECT_BITS | 10), Some(Node::Live(other(10))));
    }

    #[test]
    fn files_of_one_moment_need_one_view_however_many_are_named() {
        let nodes = new(ROOT, None);
        let named = |object, tid, dir| {
            let node = Node::AsOf(Inode::main(object), Tid(tid));
            let id = nodes.looked_up(node, false, dir, true).unwrap();
            assert_eq!(nodes.node(id), Some(node));
            id
        };
        let ids: Vec<u64> = (2..300_000).map(|object| named(object, 7 + object % 3, object % 100)).collect();
        assert_eq!(nodes.used(), 3);
        let other = Node::AsOf(Inode { fileset: FilesetId(3), object: ObjectId(9) }, Tid(7));
        let elsewhere = nodes.looked_up(other, false, 1, true).unwrap();
        assert_eq!((nodes.node(elsewhere), nodes.used()), (Some(other), 4));
        assert_eq!(named(9, 7, 5), ids[7], "whichever of its names it was");
        for id in &ids {
            nodes.forget(*id, 1);
        }
        assert!(nodes.node(ids[7]).is_some() && nodes.node(ids[8]).is_none());
    }

    #[test]
    fn the_ids_of_one_object_as_of_many_moments_differ_in_their_low_bits() {
        let nodes = new(ROOT, None);
        let id = |tid| nodes.looked_up(Node::AsOf(Inode::main(9), Tid(tid)), true, 1, true).unwrap();
        let low: std::collections::HashSet<u64> = (1..=1 << 14).map(|tid| id(tid) & 0xffff).collect();
        assert_eq!(low.len(), 1 << 14);
    }

    #[test]
    fn ids_that_a_process_gave_out_which_did_not_move_objects_on_mean_what_they_meant() {
        let memory = MountMemory::new().unwrap();
        for (view, tid) in [(0, 7), (1, 8)] {
            memory.view(view).write(tid, Inode::main(9).number(), 0);
            memory.view(view).lookups.store(1, Ordering::Relaxed);
        }
        memory.views_used().store(2, Ordering::Relaxed);
        let nodes = Nodes::new(ROOT, None, &memory);
        let id = PAST | 1 << OBJECT_BITS | 9;
        assert_eq!(nodes.node(id), Some(Node::AsOf(Inode::main(9), Tid(8))));
        assert_eq!(nodes.looked_up(Node::AsOf(Inode::main(9), Tid(8)), true, 1, true), Some(id));
        assert_eq!(nodes.past_ids(Inode::main(5)), [PAST | 5, PAST | 1 << OBJECT_BITS | 5]);
        nodes.forget(id, 2);
        let moved = nodes.looked_up(Node::AsOf(Inode::main(9), Tid(10)), true, 1, true).unwrap();
        assert!(moved != id && moved >> OBJECT_BITS == id >> OBJECT_BITS);
        assert_eq!(nodes.node(moved), Some(Node::AsOf(Inode::main(9), Tid(10))));
    }

    #[test]
    fn what_a_mount_shows_of_its_own_moment_by_name_has_other_numbers() {
        let nodes = new(ROOT, Some(Tid(7)));
        let node = Node::AsOf(Inode::main(9), Tid(7));
        let (own, named) =
            (nodes.looked_up(node, false, 1, false).unwrap(), nodes.looked_up(node, false, 1, true).unwrap());
        assert_eq!((nodes.shown_ino(node, own), nodes.listed_ino(node, 1)), (9, 9));
        assert!(nodes.shown_ino(node, named) >> 63 == 1);
        let dir = nodes.looked_up(Node::AsOf(ROOT, Tid(7)), true, 1, true).unwrap();
        assert_eq!(nodes.listed_ino(node, dir), nodes.shown_ino(node, named));
    }

    #[test]
    fn the_next_process_finds_what_the_ids_of_the_past_meant() {
        let memory = MountMemory::new().unwrap();
        let nodes = Nodes::new(ROOT, None, &memory);
        let past = |tid| Node::AsOf(Inode::main(9), Tid(tid));
        let ids: Vec<u64> = (1..=3).map(|tid| nodes.looked_up(past(tid), true, 1, true).unwrap()).collect();
        nodes.forget(ids[1], 1);
        let next = Nodes::new(ROOT, None, &memory);
        assert_eq!((next.node(ids[0]), next.node(ids[1]), next.node(ids[2])), (Some(past(1)), None, Some(past(3))));
        assert_eq!(next.looked_up(past(3), true, 1, true), Some(ids[2]));
        let fourth = next.looked_up(past(4), true, 1, true).unwrap();
        assert_eq!((fourth, next.node(fourth)), (ids[1], Some(past(4))), "the number that was free");
        next.forget(ids[2], 2);
        assert_eq!(next.node(ids[2]), None);
    }
}
