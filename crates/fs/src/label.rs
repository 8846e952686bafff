//! Labels: names for tids. A *snapshot* is a label on a tid; making one costs one small record. docs/format.md
//! §Labels.
//!
//! Each fileset has its own. Key: object 0, suffix: the name. Value: the tid (varint). A label's name is never itself a WHEN, so
//! `@@label` has one meaning.

use std::ops::ControlFlow;

use darner_store::{FilesetId, Kind, Tid};

use crate::change::SMALL;
use crate::codec::{Reader, put_varint};
use crate::error::{FsError, Result, refuse};
use crate::fs::Fs;
use crate::node::Inode;
use crate::when;

/// A label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// The moment it names.
    pub tid: Tid,
    /// The transaction that made it.
    pub made: Tid,
}

const LABEL_MAX: usize = 128;

impl Fs {
    /// Gives the newest moment (or `at`) a name and returns it. EEXIST if the name is taken.
    pub fn add_label(&self, fileset: FilesetId, name: &str, at: Option<Tid>, now_ns: u64) -> Result<Label> {
        self.check_label(name, now_ns)?;
        let plan = self.plan_own(fileset, SMALL)?;
        let newest = plan.newest;
        let tid = at.or(self.head()).unwrap_or(newest);
        if tid < self.store.birth() || tid > newest {
            return refuse(libc::EINVAL, "a label needs a moment between the filesystem's birth and now");
        }
        if self.label_tid(fileset, name)?.is_some() {
            return refuse(libc::EEXIST, "there is a label of this name");
        }
        let made = self.store.while_retained(|| {
            if self.shown(fileset, tid)? != Some(tid) {
                return refuse(libc::EINVAL, "this moment is not kept any more");
            }
            let mut change = plan.begin(now_ns)?;
            let mut value = Vec::new();
            put_varint(&mut value, tid.0);
            change.put(Inode::meta(fileset), Kind::LABEL, name.as_bytes(), &value);
            change.commit()
        })?;
        Ok(Label { name: name.to_string(), tid, made })
    }

    /// Takes a label away (the moment stays). ENOENT if there is none.
    pub fn remove_label(&self, fileset: FilesetId, name: &str, now_ns: u64) -> Result<()> {
        let plan = self.plan_own(fileset, 0)?;
        if self.label_tid(fileset, name)?.is_none() {
            return refuse(libc::ENOENT, "there is no label of this name");
        }
        let mut change = plan.begin(now_ns)?;
        change.delete(Inode::meta(fileset), Kind::LABEL, name.as_bytes());
        change.commit()?;
        Ok(())
    }

    /// All labels of a fileset, by name.
    pub fn labels(&self, fileset: FilesetId) -> Result<Vec<Label>> {
        let mut labels = Vec::new();
        let mut damaged = None;
        self.each(Inode::meta(fileset), Kind::LABEL, &[], Tid::MAX, |name, made, value| {
            match (decode(value), str::from_utf8(name)) {
                (Some(tid), Ok(name)) => {
                    labels.push(Label { name: name.to_string(), tid, made });
                    ControlFlow::Continue(())
                }
                _ => {
                    damaged = Some(malformed(name));
                    ControlFlow::Break(())
                }
            }
        })?;
        damaged.map_or(Ok(labels), Err)
    }

    /// The moment a label names.
    pub(crate) fn label_tid(&self, fileset: FilesetId, name: &str) -> Result<Option<Tid>> {
        if name.is_empty() || name.len() > LABEL_MAX {
            return Ok(None);
        }
        match self.store.get(&Inode::meta(fileset).key(Kind::LABEL, name.as_bytes()), Tid::MAX)? {
            Some(found) => decode(&found.value).map(Some).ok_or_else(|| malformed(name.as_bytes())),
            None => Ok(None),
        }
    }

    fn check_label(&self, name: &str, now_ns: u64) -> Result<()> {
        if name.is_empty() || name.len() > LABEL_MAX {
            return refuse(libc::EINVAL, "a label has 1 to 128 bytes");
        }
        if name.contains('/') || name.contains(char::is_control) || name.contains("@@") {
            return refuse(libc::EINVAL, "a label can't contain /, @@ or control characters");
        }
        if name.starts_with(['-', '@', '.']) || when::parse(name, now_ns, &self.zone).is_some() {
            return refuse(libc::EINVAL, "a label can't start with -, @ or a dot, nor look like a time");
        }
        Ok(())
    }
}

fn decode(value: &[u8]) -> Option<Tid> {
    let mut from = Reader(value);
    let tid = Tid(from.varint()?);
    from.end()?;
    Some(tid)
}

fn malformed(name: &[u8]) -> FsError {
    FsError::malformed(format!("the label {} is in no known form", name.escape_ascii()))
}
