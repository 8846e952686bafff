//! Whether a mirror has what its source has: the side that follows compares digests, descends where they differ, and has the source
//! tell it anew what does.

use std::time::Duration;

use darner_fs::{Changed, Digest, Digesting, Digests, FilesetId, Following, ROOT, Tid, UNREADABLE, Wanted};
use darner_syslink::{Caller, Message};

use crate::parts::Parts;
use crate::protocol::{
    AT, ATTEMPT, DATA, DIGEST, END, FILESET, FOUND, FROM, ITEMS, LEN, MAX, OBJECT, OFFSET, PROVE, READ, RUN, SESSION,
    TID, TO, VERSIONS,
};
use crate::pull::{Failure, PATIENCE, Puller};

/// Keys to a digest: of all, of a range that differs, of one in that.
const RUNS: [u64; 3] = [4096, 64, 1];
/// Digests asked for at a time.
const DIGESTS: u64 = 64;
/// Differences that are named.
const NAMED_MAX: usize = 1000;

/// What comparing found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The source's moment that both were compared as of.
    pub at: Tid,
    /// Keys that were compared.
    pub keys: u64,
    /// What differed, by path; more of them are only counted.
    pub differences: Vec<String>,
    /// Ranges that differed.
    pub differing: u64,
    /// How many of them are the same now.
    pub mended: u64,
    /// What changed here by that.
    pub changed: Changed,
    /// Places that were damaged at the source.
    pub source_damaged: u64,
    /// How many of them are healed.
    pub source_healed: u64,
    /// Which, by path; more of them are only counted.
    pub healed: Vec<String>,
    /// What could not be compared or mended, and why; what is wrong in an index.
    pub failed: Vec<String>,
    /// Versions of which was proven that finding changes does not miss them, on both sides.
    pub proven: u64,
}

/// A comparison that goes on in steps, each as of the moment that is shown then, so that pulls can come in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Tails up to here are compared.
    pos: Vec<u8>,
    /// What was found so far.
    pub found: Verified,
}

struct Verifying<'p> {
    puller: &'p Puller,
    following: Following,
    data: bool,
    mend: bool,
    found: Verified,
}

impl Puller {
    /// Goes on with a comparison, for so many times 4096 keys, without bytes of files; mends what differs. Says whether there is more.
    /// Fails as [`Puller::verify`] does; then the same step can be tried again.
    pub fn verify_some(&self, walk: &mut Walk, digests: u64) -> Result<bool, Failure> {
        let found = Verified { at: self.whole()?.at, ..walk.found.clone() };
        let mut v = Verifying { puller: self, following: self.whole()?, data: false, mend: true, found };
        let mut pos = walk.pos.clone();
        let more = v.some(&mut pos, &[], 0, digests)?;
        *walk = Walk { pos, found: v.found };
        Ok(more)
    }

    fn whole(&self) -> Result<Following, Failure> {
        let following = self.fs.following().filter(|f| f.is_whole() && f.at != Tid::ZERO);
        following.ok_or_else(|| Failure::Other("there is no whole pull to compare".into()))
    }

    /// Compares a mirror that is as of a whole pull with its source, bytes of files too (`data`), and mends what differs (`mend`).
    /// `Failure::Source` with the code of a moment that is not kept: pull again first.
    pub fn verify(&self, data: bool, mend: bool) -> Result<Verified, Failure> {
        let following = self.whole()?;
        let found = Verified { at: following.at, ..Verified::default() };
        let mut v = Verifying { puller: self, following, data, mend, found };
        v.descend(&[], &[], 0)?;
        v.prove()?;
        let mut end = Message::new(END);
        end.uint(SESSION, self.session);
        // Should this be lost, the source forgets by itself.
        let _ = self.source.call(end, Some(PATIENCE));
        Ok(v.found)
    }
}

impl Verifying<'_> {
    fn descend(&mut self, from: &[u8], to: &[u8], level: usize) -> Result<(), Failure> {
        let mut pos = from.to_vec();
        while self.some(&mut pos, to, level, DIGESTS)? {}
        Ok(())
    }

    /// Compares so many digests from `pos` on; says whether there is more.
    fn some(&mut self, pos: &mut Vec<u8>, to: &[u8], level: usize, max: u64) -> Result<bool, Failure> {
        let (from, at) = (pos.clone(), self.following.at);
        let asked = Digesting { from, to: to.to_vec(), at, run: RUNS[level], max, data: self.data };
        let (told, healed) = digests(&*self.puller.source, self.puller.session, self.following.fileset, &asked)?;
        self.found.source_damaged += healed.len() as u64;
        self.found.source_healed += healed.len() as u64;
        let room = NAMED_MAX.saturating_sub(self.found.healed.len());
        self.found.healed.extend(healed.into_iter().take(room));
        for d in told.digests {
            let ahead = d.end.is_empty() || d.end > *pos;
            if !ahead || !to.is_empty() && (d.end.is_empty() || *d.end > *to) {
                return Err(Failure::Answer("digests of other keys than was asked for".into()));
            }
            // What can't be read here is not the same.
            let own = self.own(pos, &d.end);
            if level == 0 {
                self.found.keys += d.keys;
            }
            if own.is_err() || own.is_ok_and(|own| own != (d.keys, d.hash)) {
                match level + 1 < RUNS.len() {
                    true => self.descend(pos, &d.end, level + 1)?,
                    false if d.hash == UNREADABLE => self.unreadable(pos, &d)?,
                    false => self.differs(pos, &d)?,
                }
            }
            *pos = d.end;
            if !(self.puller.between)(0) {
                return Err(Failure::Other("it was told to stop".into()));
            }
        }
        match told.more {
            true if pos.is_empty() => Err(Failure::Answer("more digests, behind the end".into())),
            false if **pos != *to => Err(Failure::Answer("too few digests".into())),
            more => Ok(more),
        }
    }

    fn own(&self, from: &[u8], to: &[u8]) -> Result<(u64, u128), Failure> {
        let fs = &self.puller.fs;
        let at = fs.head().ok_or_else(|| Failure::Other("it was promoted meanwhile".into()))?;
        let asked = Digesting { from: from.into(), to: to.into(), at, run: u64::MAX, max: 1, data: self.data };
        let own = fs.digests(ROOT, &asked, None)?.digests;
        own.first().map(|d| (d.keys, d.hash)).ok_or_else(|| Failure::Other("no digest".into()))
    }

    /// A range of one key, which can't be read at the source, nor from anybody who follows it.
    fn unreadable(&mut self, from: &[u8], d: &Digest) -> Result<(), Failure> {
        let tail = d.end.split_last().map_or(&[][..], |(_, tail)| tail);
        let name = self.puller.fs.name_of_tail(tail).unwrap_or_else(|| "a file that is not here".into());
        self.found.source_damaged += 1;
        self.found.failed.push(format!("{name}: damaged at the source, and nobody was found who has it: not compared"));
        // Before it, there may be something that is only here.
        match self.own(from, tail) {
            Ok((0, _)) => Ok(()),
            _ if tail.is_empty() => Ok(()),
            _ => self.differs(from, &Digest { end: tail.to_vec(), keys: 0, hash: 0 }),
        }
    }

    /// A range of one key, at the source.
    fn differs(&mut self, from: &[u8], d: &Digest) -> Result<(), Failure> {
        let to = d.end.as_slice();
        let fs = &self.puller.fs;
        let head = fs.head().unwrap_or(Tid::MAX);
        let (mut tails, _) =
            fs.store().tails(darner_fs::MAIN, from, to, head, NAMED_MAX).map_err(darner_fs::FsError::from)?;
        let theirs = to.split_last().map(|(_, tail)| tail.to_vec()).filter(|_| d.keys > 0);
        tails.retain(|tail| Some(tail) != theirs.as_ref());
        let mut names: Vec<String> = tails.iter().filter_map(|tail| fs.name_of_tail(tail)).collect();
        // What is only here may be all that differs.
        let theirs = theirs.filter(|tail| self.own(tail, to).ok() != Some((d.keys, d.hash)));
        if self.mend {
            match self.anew(from, to) {
                Ok(()) => self.found.mended += 1,
                Err(e) => {
                    let name = theirs.as_ref().and_then(|tail| fs.name_of_tail(tail));
                    let name = name.unwrap_or_else(|| "what is only here".into());
                    self.found.failed.push(format!("{name}: {e}"));
                }
            }
        }
        names.extend(theirs.iter().filter_map(|tail| self.puller.fs.name_of_tail(tail)));
        self.found.differing += 1;
        let room = NAMED_MAX.saturating_sub(self.found.differences.len());
        self.found.differences.extend(names.into_iter().take(room));
        Ok(())
    }

    fn anew(&mut self, from: &[u8], to: &[u8]) -> Result<(), Failure> {
        let (f, p) = (&self.following, self.puller);
        let wanted = Wanted { from: from.into(), to: to.into(), since: Tid::ZERO, at: f.at, room: p.room as usize };
        let mut parts = Parts::new(&*p.source, p.session, f.fileset, wanted, 0);
        while let Some((wanted, part)) = parts.next()? {
            self.found.changed.extend(p.fs.mend(&wanted, &part)?);
        }
        self.own(from, to).map(drop)
    }

    /// That no block of an index says of itself to be older than what it has, on either side.
    fn prove(&mut self) -> Result<(), Failure> {
        let (versions, wrong) = self.puller.fs.store().prove_newest().map_err(darner_fs::FsError::from)?;
        self.found.failed.extend(wrong.into_iter().map(|what| format!("here: {what}")));
        let reply = self.puller.source.call(Message::new(PROVE), Some(PATIENCE))?;
        let told = reply.root();
        for what in told.all(FOUND) {
            self.found.failed.push(format!("at the source: {}", what.as_text()?));
        }
        self.found.proven = versions + told.uint(VERSIONS)?;
        Ok(())
    }
}

/// Digests, and what was damaged there and is healed by now.
fn digests(
    source: &dyn Caller,
    session: u64,
    fileset: FilesetId,
    asked: &Digesting,
) -> Result<(Digests, Vec<String>), Failure> {
    let mut ask = Message::new(DIGEST);
    ask.uint(SESSION, session).uint(FILESET, fileset.0.into()).bytes(FROM, &asked.from).bytes(TO, &asked.to);
    ask.uint(AT, asked.at.0).uint(RUN, asked.run).uint(MAX, asked.max).uint(DATA, asked.data.into());
    let mut reply = source.call(ask, Some(PATIENCE))?;
    let healed = reply.root().all(FOUND).map(|what| Ok(what.as_text()?.to_string())).collect::<Result<_, Failure>>()?;
    let digests = Digests::decode(&reply.take_buffer(ITEMS)?)
        .ok_or_else(|| Failure::Answer("digests that are in no known form".into()))?;
    Ok((digests, healed))
}

/// Asks for bytes of an object of a fileset, as transactions soon after `tid` had them. `attempt`: of several answers, which;
/// `None`: there are no more. What comes is to be verified by whoever has the checksum. Waits no longer than `patience`.
pub fn ask_for_bytes(
    source: &dyn Caller,
    fileset: FilesetId,
    (object, offset, len): (u64, u64, u64),
    tid: Tid,
    attempt: u64,
    patience: Duration,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut ask = Message::new(READ);
    ask.uint(FILESET, fileset.0.into()).uint(OBJECT, object).uint(OFFSET, offset).uint(LEN, len);
    ask.uint(TID, tid.0).uint(ATTEMPT, attempt);
    let mut reply = source.call(ask, Some(patience))?;
    if reply.root().find(ITEMS).is_none() {
        return Ok(None);
    }
    let bytes = reply.take_buffer(ITEMS)?;
    match bytes.len() as u64 == len {
        true => Ok(Some(bytes)),
        false => Err(Failure::Answer(format!("{} bytes instead of {len}", bytes.len()))),
    }
}
