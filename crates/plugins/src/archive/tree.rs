//! A tree in memory, made of paths. Nodes are numbered as they come up, so the same archive has the same numbers.

use std::collections::HashMap;

use darner_vfs::{Attr, Errno, ROOT, Result};

/// What is in a node.
pub(super) enum Content {
    Dir(Dir),
    /// Bytes from there on, of the (unpacked) archive.
    Stored(u64),
    /// So many compressed bytes from there on, and the checksum.
    Deflated(u64, u64, u32),
    Link(Vec<u8>),
    /// A special file.
    Nothing,
    Unreadable(&'static str),
}

/// What a directory holds, in the order in which it came up.
#[derive(Default)]
pub(super) struct Dir {
    entries: Vec<(Vec<u8>, u64)>,
    by_name: HashMap<Vec<u8>, usize>,
}

impl Dir {
    pub fn get(&self, name: &[u8]) -> Option<u64> {
        self.by_name.get(name).map(|n| self.entries[*n].1)
    }

    /// Cookie, name and node of those behind a cookie.
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, &[u8], u64)> {
        let entries = self.entries.iter().enumerate().skip(cookie as usize);
        entries.map(|(n, (name, node))| (n as u64 + 1, name.as_slice(), *node))
    }

    fn put(&mut self, name: &[u8], node: u64) {
        match self.by_name.get(name) {
            Some(n) => self.entries[*n].1 = node,
            None => {
                self.by_name.insert(name.to_vec(), self.entries.len());
                self.entries.push((name.to_vec(), node));
            }
        }
    }
}

pub(super) struct Node {
    pub attr: Attr,
    pub content: Content,
}

pub(super) struct Tree(Vec<Node>);

const DIR: u32 = libc::S_IFDIR | 0o755;

impl Tree {
    pub fn new() -> Tree {
        let attr = Attr { node: ROOT, mode: DIR, nlink: 2, ..Attr::default() };
        Tree(vec![Node { attr, content: Content::Dir(Dir::default()) }])
    }

    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub fn get(&self, node: u64) -> Result<&Node> {
        node.checked_sub(ROOT).and_then(|n| self.0.get(n as usize)).ok_or(Errno(libc::ESTALE))
    }

    fn get_mut(&mut self, node: u64) -> &mut Node {
        &mut self.0[(node - ROOT) as usize]
    }

    pub fn dir(&self, node: u64) -> Result<&Dir> {
        match &self.get(node)?.content {
            Content::Dir(dir) => Ok(dir),
            _ => Err(Errno(libc::ENOTDIR)),
        }
    }

    fn dir_mut(&mut self, node: u64) -> Option<&mut Dir> {
        match &mut self.get_mut(node).content {
            Content::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    fn push(&mut self, attr: Attr, content: Content) -> u64 {
        let node = self.0.len() as u64 + ROOT;
        self.0.push(Node { attr: Attr { node, ..attr }, content });
        node
    }

    /// Adds what has a path; what had it before is replaced. Paths that lead out, or through what is no directory, are passed over.
    pub fn add(&mut self, path: &[u8], attr: Attr, content: Content) {
        let Some(names) = split(path) else { return };
        let Some((last, above)) = names.split_last() else {
            // The root itself.
            if matches!(content, Content::Dir(_)) {
                let root = &mut self.get_mut(ROOT).attr;
                *root = Attr { node: ROOT, nlink: root.nlink, ..attr };
            }
            return;
        };
        let Some(dir) = self.walk(above) else { return };
        let is_dir = matches!(content, Content::Dir(_));
        if let Some(there) = self.dir_mut(dir).and_then(|d| d.get(last)).filter(|_| is_dir)
            && self.dir_mut(there).is_some()
        {
            let known = &mut self.get_mut(there).attr;
            *known = Attr { node: there, nlink: known.nlink, ..attr };
            return;
        }
        let nlink = if is_dir { 2 } else { 1 };
        let node = self.push(Attr { nlink, ..attr }, content);
        self.put(dir, last, node, is_dir);
    }

    /// Another name for what has a path already.
    pub fn link(&mut self, path: &[u8], target: &[u8]) {
        let Some(node) = split(target).and_then(|names| self.find(&names)) else { return };
        let Some(names) = split(path) else { return };
        let Some((last, above)) = names.split_last() else { return };
        if self.dir_mut(node).is_some() {
            return;
        }
        if let Some(dir) = self.walk(above) {
            self.put(dir, last, node, false);
            self.get_mut(node).attr.nlink += 1;
        }
    }

    fn put(&mut self, dir: u64, name: &[u8], node: u64, is_dir: bool) {
        if let Some(d) = self.dir_mut(dir) {
            d.put(name, node);
            self.get_mut(dir).attr.nlink += u32::from(is_dir);
        }
    }

    fn find(&self, names: &[&[u8]]) -> Option<u64> {
        names.iter().try_fold(ROOT, |dir, name| self.dir(dir).ok()?.get(name))
    }

    /// The directory with that path, made if it is not there.
    fn walk(&mut self, names: &[&[u8]]) -> Option<u64> {
        names.iter().try_fold(ROOT, |dir, name| {
            if let Some(there) = self.dir_mut(dir)?.get(name) {
                return Some(there);
            }
            let attr = Attr { mode: DIR, nlink: 2, ..Attr::default() };
            let made = self.push(attr, Content::Dir(Dir::default()));
            self.put(dir, name, made, true);
            Some(made)
        })
    }
}

/// The names in a path; `None` if it leads out, or has a name that is none.
fn split(path: &[u8]) -> Option<Vec<&[u8]>> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    let bad = names.iter().any(|n| *n == b".." || n.len() > 255 || n.contains(&0));
    (!bad).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_make_directories_replace_and_never_lead_out() {
        let mut tree = Tree::new();
        let file = |size| Attr { mode: libc::S_IFREG | 0o644, size, ..Attr::default() };
        tree.add(b"./a/b/c", file(1), Content::Stored(10));
        tree.add(b"/a/b/c", file(2), Content::Stored(20));
        tree.add(b"a/b/c/d", file(3), Content::Stored(30));
        tree.add(b"../out", file(4), Content::Stored(40));
        tree.add(b"a/x/../../../y", file(5), Content::Stored(50));
        tree.link(b"hard", b"a/b/c");
        tree.add(b"a/", Attr { mode: libc::S_IFDIR | 0o700, ..Attr::default() }, Content::Dir(Dir::default()));
        let names = |dir: u64| tree.dir(dir).unwrap().after(0).map(|e| e.1.to_vec()).collect::<Vec<_>>();
        assert_eq!(names(ROOT), [b"a".to_vec(), b"hard".to_vec()]);
        let c = tree.find(&[b"a", b"b", b"c"]).unwrap();
        assert_eq!((tree.find(&[b"hard"]), tree.get(c).unwrap().attr.size), (Some(c), 2));
        assert_eq!(tree.get(c).unwrap().attr.nlink, 2);
        let a = tree.get(tree.find(&[b"a"]).unwrap()).unwrap();
        assert_eq!((a.attr.mode, a.attr.nlink), (libc::S_IFDIR | 0o700, 3));
    }
}
