//! Filesets that are kept twice, whatever the store has copies of: which segments hold something of them. docs/format.md §Copies.
//!
//! All filesets share one log. So what is new has two copies as long as any fileset is kept twice; of a sealed segment in which there is
//! nothing of such a one, a copy is given up (`copies.rs`), and the cleaner packs segments of one sort together. A segment is marked when a
//! transaction in it is of such a fileset, or when one refers to bytes in it (files may share them): at commit, in replay, and by a look
//! through the index when filesets are chosen. What a clone shows of its base is its own: the base is kept twice with it.

use std::collections::{BTreeSet, HashSet};

use crate::index::table::Table;
use crate::key::{Key, parse};
use crate::log::Tail;
use crate::maintain::State;
use crate::segment::Starts;
use crate::sieve::each_span;
use crate::store::{Store, Value};
use crate::volume::Wanted;
use crate::{FilesetId, Result, Tid};

/// What a tail knows of filesets that are kept twice.
#[derive(Default)]
pub struct Kept {
    /// These, and what they show of others.
    filesets: BTreeSet<FilesetId>,
    /// Segments that were marked since they were chosen.
    marked: HashSet<u64>,
}

impl Kept {
    /// The segments that are to be marked for a transaction in `region`, and are not yet.
    fn note(&mut self, region: u64, tid: Tid, entries: &[(Key, Option<Value>)]) -> Vec<u64> {
        let mut new = Vec::new();
        if self.filesets.is_empty() {
            return new;
        }
        for (key, value) in entries.iter().filter(|(key, _)| self.filesets.contains(&key.fileset())) {
            let mut note = |id| new.extend(self.marked.insert(id).then_some(id));
            note(region);
            each_span(key.as_bytes(), tid, value.as_deref(), |s| note(s.place.region));
        }
        new
    }
}

impl Store {
    /// The filesets that are kept twice.
    pub fn kept_twice(&self) -> BTreeSet<FilesetId> {
        self.volumes.superblock().kept_twice
    }

    /// From now on a fileset is kept twice, or as the store is. Copies that are missing are made by [`Store::step_copies`], which gives up
    /// those that are too many as well. Refused where there are not two volumes, or too little room. Takes time in proportion to what the
    /// index has of such filesets.
    pub fn keep_twice(&self, fileset: FilesetId, twice: bool) -> Result<()> {
        self.must_be_writable()?;
        let mut chosen = self.kept_twice();
        let changes = if twice { chosen.insert(fileset) } else { chosen.remove(&fileset) };
        if !changes {
            return Ok(());
        }
        if twice {
            self.must_have_two_volumes()?;
        }
        let mut state = self.maintenance.lock();
        let before: HashSet<u64> = self.segments.lock().iter().filter(|s| s.twice).map(|s| s.at.id).collect();
        let outcome = self.choose(&mut state, chosen);
        if outcome.is_err() {
            let mut tail = self.log.tail();
            tail.kept.filesets = self.with_bases(&self.kept_twice());
            self.mark_segments(&tail, &before);
        }
        outcome
    }

    fn choose(&self, state: &mut State, chosen: BTreeSet<FilesetId>) -> Result<()> {
        let wanted = Wanted { of_filesets: !chosen.is_empty(), ..self.volumes.wanted() };
        self.look_for_kept(state, &chosen)?;
        let lacking = self.lacking_of(wanted, state).1;
        if wanted.of_filesets {
            self.must_have_room_to_copy(lacking)?;
        }
        // The marks first: whoever finds the filesets named finds them whole.
        let levels = self.index.read().levels.clone();
        self.write_manifest(state, &levels)?;
        self.volumes.write_super(|sb| sb.kept_twice = chosen)?;
        self.copies_changed(wanted, lacking);
        Ok(())
    }

    /// Marks the segments that hold something of these filesets, and no others.
    fn look_for_kept(&self, state: &mut State, chosen: &BTreeSet<FilesetId>) -> Result<()> {
        let filesets = self.with_bases(chosen);
        {
            let mut tail = self.log.tail();
            tail.check()?;
            // What is committed from here on is marked as it is.
            tail.kept = Kept { filesets: filesets.clone(), marked: HashSet::new() };
        }
        let starts = Starts::of(&self.segments.lock());
        let mut found = HashSet::new();
        let of = |key: &[u8]| parse(key).map_or(FilesetId(0), |(fileset, ..)| fileset);
        let may_have = |t: &Table| filesets.iter().any(|f| (of(t.first_key())..=of(t.last_key())).contains(f));
        self.each_version(state, &may_have, &mut |key, tid, value| {
            if filesets.contains(&of(key)) {
                found.insert(starts.segment_of(tid));
                each_span(key, tid, value, |s| {
                    found.insert(s.place.region);
                });
            }
        })?;
        self.mark_segments(&self.log.tail(), &found);
        Ok(())
    }

    /// Marks these segments, and those that the tail has marked; no others.
    fn mark_segments(&self, tail: &Tail, marked: &HashSet<u64>) {
        for s in self.segments.lock().iter_mut() {
            s.twice = marked.contains(&s.at.id) || tail.kept.marked.contains(&s.at.id);
        }
    }

    /// Marks the segments that a transaction in `region` makes part of a fileset that is kept twice.
    pub(crate) fn mark_kept(&self, tail: &mut Tail, region: u64, tid: Tid, entries: &[(Key, Option<Value>)]) {
        let new = tail.kept.note(region, tid, entries);
        if !new.is_empty() {
            self.segments.lock().iter_mut().filter(|s| new.contains(&s.at.id)).for_each(|s| s.twice = true);
        }
    }

    /// What is replayed from now on is marked. Returns what was known to be kept twice, for [`Store::kept_is_replayed`].
    pub(crate) fn keep_replayed(&self) -> BTreeSet<FilesetId> {
        let known = self.with_bases(&self.kept_twice());
        self.log.tail().kept.filesets = known.clone();
        known
    }

    /// Everything was replayed; `known`: what was known to be kept twice before. Clones may have turned up since, or marks be lost.
    pub(crate) fn kept_is_replayed(&self, known: &BTreeSet<FilesetId>, derived: bool) -> Result<()> {
        let chosen = self.kept_twice();
        if chosen.is_empty() || self.read_only || !derived && self.with_bases(&chosen) == *known {
            return Ok(());
        }
        self.look_for_kept(&mut self.maintenance.lock(), &chosen)
    }

    fn with_bases(&self, chosen: &BTreeSet<FilesetId>) -> BTreeSet<FilesetId> {
        let index = self.index.read();
        let beneath = |(fileset, at): &(FilesetId, Tid)| index.filesets.beneath(*fileset, *at);
        chosen.iter().flat_map(|f| std::iter::successors(Some((*f, Tid::MAX)), beneath)).map(|(f, _)| f).collect()
    }
}
