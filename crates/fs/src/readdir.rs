//! Listing a directory, a reply at a time.
//!
//! A listing goes on after a cookie, which is a hash of the last name given (`dirent.rs`), so every name that is
//! there throughout is listed exactly once whatever happens to the others. Entries of equal hash are never split over
//! two replies.

use std::ops::ControlFlow;

use darner_store::{Kind, Tid};

use crate::attr::Attr;
use crate::dirent::{Dirent, cookie, malformed, parse_dirent_suffix};
use crate::error::{Result, refuse};
use crate::fs::Fs;
use crate::lookup::stays;
use crate::node::{Inode, Node};

/// An entry of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Go on after this to get what follows.
    pub cookie: u64,
    /// Where it leads.
    pub node: Node,
    /// `DT_DIR`, …
    pub d_type: u8,
    /// Its attributes, if asked for (never for `.` and `..`).
    pub attr: Option<Attr>,
    /// As [`Entry::steady`](crate::Entry::steady).
    pub steady: bool,
}

const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// How many bytes a reply may take: each entry costs a head and its name, rounded up to eight.
struct Room {
    left: usize,
    head: usize,
}

impl Room {
    fn take(&mut self, name: &[u8]) -> bool {
        let cost = (self.head + name.len()).next_multiple_of(8);
        let fits = cost <= self.left;
        self.left -= if fits { cost } else { self.left };
        fits
    }
}

impl Fs {
    /// Entries after `after` (0: from the start), as many as fit `room` bytes where each takes `head` bytes and its
    /// name, rounded up to eight. `plus`: with attributes. An empty answer is the end.
    pub fn readdir(
        &self,
        dir: Node,
        after: u64,
        room: usize,
        head: usize,
        plus: bool,
        now_ns: u64,
    ) -> Result<Vec<DirEntry>> {
        let _live = self.look(dir)?;
        let mut room = Room { left: room, head };
        let mut entries = self.dots(dir, after, &mut room)?;
        match dir {
            Node::Points(object) => self.list_points(object, after, &mut room, &mut entries, now_ns)?,
            _ => self.list_dir(dir, after, &mut room, &mut entries)?,
        }
        for entry in entries.iter_mut().filter(|entry| entry.cookie > DOT_DOT) {
            entry.attr = match entry.attr.filter(|_| plus) {
                None if plus => self.attr_shown(entry.node.inode(), entry.node.at())?,
                known => known,
            };
        }
        Ok(entries)
    }

    fn dots(&self, dir: Node, after: u64, room: &mut Room) -> Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        if after >= DOT_DOT {
            return Ok(entries);
        }
        if !self.attr(dir)?.is_dir() {
            return refuse(libc::ENOTDIR, "not a directory");
        }
        let dots: [(&[u8], u64, Node); 2] = [(b".", DOT, dir), (b"..", DOT_DOT, self.parent(dir)?)];
        for (name, cookie, node) in dots {
            if cookie > after && room.take(name) {
                entries.push(DirEntry {
                    name: name.to_vec(),
                    cookie,
                    node,
                    d_type: libc::DT_DIR,
                    attr: None,
                    steady: true,
                });
            }
        }
        Ok(entries)
    }

    fn list_dir(&self, dir: Node, after: u64, room: &mut Room, entries: &mut Vec<DirEntry>) -> Result<()> {
        let from = after.max(DOT_DOT).saturating_add(1).to_be_bytes();
        let mut end = Ok(None);
        let past = matches!(dir, Node::AsOf(..));
        if self.is_left_out(dir.inode(), dir.at())? {
            return Ok(());
        }
        self.each(dir.inode(), Kind::DIRENT, &from, dir.at(), |suffix, tid, value| {
            let (Some((cookie, name)), Some(found)) =
                (parse_dirent_suffix(suffix), Dirent::decode(value, dir.inode().fileset))
            else {
                end = Err(malformed(dir.inode(), suffix, tid));
                return ControlFlow::Break(());
            };
            let shown = match past {
                true => self.shown_beside(dir, found.ino),
                false => Ok(Some((dir.beside(found.ino), None))),
            };
            let (node, attr) = match shown {
                Ok(Some(shown)) => shown,
                // Nothing is kept of it.
                Ok(None) => return ControlFlow::Continue(()),
                Err(e) => {
                    end = Err(e);
                    return ControlFlow::Break(());
                }
            };
            if !room.take(name) {
                end = Ok(Some(cookie));
                return ControlFlow::Break(());
            }
            let steady = attr.as_ref().is_none_or(|attr| stays(dir, node, attr));
            entries.push(DirEntry { name: name.to_vec(), cookie, node, d_type: found.d_type, attr, steady });
            ControlFlow::Continue(())
        })?;
        if let Some(cut) = end? {
            unsplit(entries, cut);
        }
        Ok(())
    }

    /// What an entry of a directory of the past leads to, and its attributes; `None` if nothing of it is kept.
    fn shown_beside(&self, dir: Node, ino: Inode) -> Result<Option<(Node, Option<Attr>)>> {
        let Some(node) = self.kept_beside(dir, ino)? else { return Ok(None) };
        Ok(self.attr_shown(ino, node.at())?.map(|attr| (node, Some(attr))))
    }

    fn list_points(
        &self,
        object: Inode,
        after: u64,
        room: &mut Room,
        entries: &mut Vec<DirEntry>,
        now_ns: u64,
    ) -> Result<()> {
        let points = self.points(object, now_ns)?.into_iter();
        let mut points: Vec<(u64, String, Tid)> =
            points.map(|(name, tid)| (cookie(&self.hash_key, name.as_bytes()), name, tid)).collect();
        points.sort();
        for (cookie, name, tid) in points.into_iter().filter(|(cookie, ..)| *cookie > after) {
            if !room.take(name.as_bytes()) {
                unsplit(entries, cookie);
                break;
            }
            entries.push(DirEntry {
                name: name.into_bytes(),
                cookie,
                node: Node::AsOf(object, tid),
                d_type: libc::DT_DIR,
                attr: None,
                steady: true,
            });
        }
        Ok(())
    }
}

/// The entry with cookie `cut` had no room: nor may others of that cookie be in this reply (unless they are all there
/// is).
fn unsplit(entries: &mut Vec<DirEntry>, cut: u64) {
    let whole = entries.partition_point(|entry| entry.cookie < cut);
    if whole > 0 {
        entries.truncate(whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cookie: u64) -> DirEntry {
        DirEntry {
            name: vec![],
            cookie,
            node: Node::Live(Inode::main(2)),
            d_type: libc::DT_REG,
            attr: None,
            steady: true,
        }
    }

    #[test]
    fn entries_of_equal_hash_are_not_split() {
        let cookies = |entries: Vec<DirEntry>| entries.iter().map(|entry| entry.cookie).collect::<Vec<_>>();
        let mut entries = vec![entry(5), entry(7), entry(7)];
        unsplit(&mut entries, 7);
        assert_eq!(cookies(entries), [5]);
        let mut entries = vec![entry(5), entry(7)];
        unsplit(&mut entries, 9);
        assert_eq!(cookies(entries), [5, 7]);
        let mut entries = vec![entry(7)];
        unsplit(&mut entries, 7);
        assert_eq!(cookies(entries), [7]);
    }
}
