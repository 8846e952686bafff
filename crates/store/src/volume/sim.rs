//! The simulator's disk: memory that remembers every write and flush, loses, tears and reorders what was not flushed,
//! fails the n-th operation, and flips bits. Several may stand side by side in one machine, of which the power fails.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Disk;

/// Unit of atomicity: a write is torn between sectors, never within one.
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

/// What the disk was asked to do.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes at an offset.
    Write(u64, Arc<[u8]>),
    /// The disk became so long.
    Length(u64),
    /// All earlier writes became durable.
    Flush,
}

/// How an operation is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
}

#[derive(Default, Clone)]
struct Pages(HashMap<u64, Box<[u8; PAGE as usize]>>);

impl Pages {
    fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let n = (PAGE as usize - within).min(bytes.len() - done);
            if !self.0.contains_key(&page) && bytes[done..done + n].iter().all(|b| *b == 0) {
                done += n;
                continue;
            }
            let page = self.0.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + n].copy_from_slice(&bytes[done..done + n]);
            done += n;
        }
    }

    /// What is behind so many bytes is gone.
    fn cut(&mut self, len: u64) {
        self.0.retain(|page, _| page * PAGE < len);
        if let Some(page) = self.0.get_mut(&(len / PAGE)) {
            page[(len % PAGE) as usize..].fill(0);
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let n = (PAGE as usize - within).min(buf.len() - done);
            match self.0.get(&page) {
                Some(page) => buf[done..done + n].copy_from_slice(&page[within..within + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
    }
}

#[derive(Default)]
struct State {
    pages: Pages,
    /// Events since recording began, and when they were, among those of all disks of the machine.
    events: Vec<(u64, Event)>,
}

/// What the disks of a machine have in common.
#[derive(Default)]
pub(super) struct Machine {
    record: AtomicBool,
    events: AtomicU64,
    operations: AtomicU64,
    bytes_read: AtomicU64,
    fail_at: Mutex<Option<(u64, Fault)>>,
}

/// A disk in memory. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    len: Arc<AtomicU64>,
    piece_max: u64,
    from_the_end: bool,
    dies_at: Arc<AtomicU64>,
    takes_no_writes: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
    machine: Arc<Machine>,
}

impl SimDisk {
    /// An empty (zero) disk of `len` bytes; memory is used for what is written.
    pub fn new(len: u64) -> SimDisk {
        SimDisk {
            len: Arc::new(len.into()),
            piece_max: u64::MAX,
            from_the_end: false,
            dies_at: alive(),
            takes_no_writes: Arc::default(),
            state: Arc::default(),
            machine: Arc::default(),
        }
    }

    /// As if its gaps were so small: every longer region is scattered.
    pub fn in_pieces(self, longest: u64) -> SimDisk {
        SimDisk { piece_max: longest, ..self }
    }

    /// Of which the end is filled first.
    pub fn from_the_end(self) -> SimDisk {
        SimDisk { from_the_end: true, ..self }
    }

    /// An empty disk in the same machine: events and operations of all its disks are counted together.
    pub fn beside(&self, len: u64) -> SimDisk {
        SimDisk { machine: self.machine.clone(), ..SimDisk::new(len) }
    }

    pub(super) fn machine(&self) -> Arc<Machine> {
        self.machine.clone()
    }

    /// From now on, remembers every write and flush for [`SimDisk::crashed`], on all disks of the machine.
    pub fn record(&self) {
        self.state.lock().events.clear();
        self.machine.events.store(0, Ordering::SeqCst);
        self.machine.record.store(true, Ordering::SeqCst);
    }

    /// Number of recorded events of the machine: the points at which the power may fail.
    pub fn events(&self) -> usize {
        self.machine.events.load(Ordering::SeqCst) as usize
    }

    /// Number of this disk's flushes among the first `n` events.
    pub fn flushes(&self, n: usize) -> usize {
        self.state.lock().events.iter().filter(|(at, e)| *at < n as u64 && matches!(e, Event::Flush)).count()
    }

    /// The disk as found after the power failed once `n` events were issued: what was flushed is there; of the
    /// sectors written since, each is there or not, as `keep` says (`keep(i)` for the i-th such sector), in any order.
    pub fn crashed(base: &SimDisk, log: &SimDisk, n: usize, keep: &mut dyn FnMut(usize) -> bool) -> SimDisk {
        let log = log.state.lock();
        let mut pages = base.state.lock().pages.clone();
        let events = &log.events[..log.events.partition_point(|(at, _)| *at < n as u64)];
        let durable = events.iter().rposition(|(_, e)| matches!(e, Event::Flush)).map_or(0, |i| i + 1);
        let mut len = base.length();
        for (_, e) in &events[..durable] {
            match e {
                Event::Write(at, bytes) => pages.write(bytes, *at),
                Event::Length(to) => {
                    len = *to;
                    pages.cut(len);
                }
                Event::Flush => {}
            }
        }
        let mut i = 0;
        for (_, e) in &events[durable..] {
            if let Event::Length(to) = e {
                if keep(i) {
                    len = *to;
                    pages.cut(len);
                }
                i += 1;
            }
            let Event::Write(at, bytes) = e else { continue };
            let mut done = 0u64;
            while done < bytes.len() as u64 {
                let n = (SECTOR - (at + done) % SECTOR).min(bytes.len() as u64 - done);
                if keep(i) {
                    pages.write(&bytes[done as usize..(done + n) as usize], at + done);
                }
                i += 1;
                done += n;
            }
        }
        SimDisk::of(pages, len, base)
    }

    /// A copy that shares nothing, in a machine of its own.
    pub fn fork(&self) -> SimDisk {
        SimDisk::of(self.state.lock().pages.clone(), self.length(), self)
    }

    fn of(pages: Pages, len: u64, like: &SimDisk) -> SimDisk {
        let state = Arc::new(Mutex::new(State { pages, ..State::default() }));
        SimDisk { state, piece_max: like.piece_max, from_the_end: like.from_the_end, ..SimDisk::new(len) }
    }

    fn length(&self) -> u64 {
        self.len.load(Ordering::SeqCst)
    }

    /// Operations of the machine so far.
    pub fn operations(&self) -> u64 {
        self.machine.operations.load(Ordering::SeqCst)
    }

    /// Bytes that were read from the machine's disks so far.
    pub fn bytes_read(&self) -> u64 {
        self.machine.bytes_read.load(Ordering::SeqCst)
    }

    /// The machine's n-th operation from now (1 = the next), and it alone, fails.
    pub fn fail_nth(&self, n: u64, fault: Fault) {
        *self.machine.fail_at.lock() = Some((self.operations() + n, fault));
    }

    /// From the machine's n-th operation from now (1 = the next) on, all that this disk is asked for fails.
    pub fn die_at(&self, n: u64) {
        self.dies_at.store(self.operations() + n, Ordering::SeqCst);
    }

    /// From now on, all that would change this disk fails.
    pub fn refuse_writes(&self) {
        self.takes_no_writes.store(true, Ordering::SeqCst);
    }

    fn operate_to_write(&self) -> Result<()> {
        self.operate()?;
        match self.takes_no_writes.load(Ordering::SeqCst) {
            true => Err(Error::from_raw_os_error(libc::EROFS)),
            false => Ok(()),
        }
    }

    fn operate(&self) -> Result<()> {
        self.machine.operate()?;
        match self.operations() >= self.dies_at.load(Ordering::SeqCst) {
            true => Err(Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    /// Flips one bit.
    pub fn flip(&self, offset: u64, bit: u8) {
        let mut b = [0];
        let mut s = self.state.lock();
        s.pages.read(&mut b, offset);
        b[0] ^= 1 << (bit & 7);
        s.pages.write(&b, offset);
    }

    /// Offsets of the 4 KiB pages that were ever written, ascending.
    pub fn written_pages(&self) -> Vec<u64> {
        let mut v: Vec<u64> = self.state.lock().pages.0.keys().map(|p| p * PAGE).collect();
        v.sort_unstable();
        v
    }
}

fn alive() -> Arc<AtomicU64> {
    Arc::new(u64::MAX.into())
}

impl Machine {
    pub(super) fn operate(&self) -> Result<()> {
        let now = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        match *self.fail_at.lock() {
            Some((at, fault)) if at == now => Err(match fault {
                Fault::Io => Error::from_raw_os_error(libc::EIO),
                Fault::NoSpace => Error::from_raw_os_error(libc::ENOSPC),
            }),
            _ => Ok(()),
        }
    }

    /// The number of an event, if they are recorded.
    pub(super) fn event(&self) -> Option<u64> {
        self.record.load(Ordering::SeqCst).then(|| self.events.fetch_add(1, Ordering::SeqCst))
    }

    fn note(&self, state: &mut State, event: impl FnOnce() -> Event) {
        if let Some(at) = self.event() {
            state.events.push((at, event()));
        }
    }
}

impl Disk for SimDisk {
    fn name(&self) -> String {
        "simulated disk".into()
    }

    fn hint(&self) -> Vec<u8> {
        Vec::new()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.length())
    }

    fn piece_max(&self) -> u64 {
        self.piece_max
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let s = self.state.lock();
        self.operate()?;
        if offset + buf.len() as u64 > self.length() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        s.pages.read(buf, offset);
        self.machine.bytes_read.fetch_add(buf.len() as u64, Ordering::SeqCst);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut s = self.state.lock();
        self.operate_to_write()?;
        if offset + bytes.len() as u64 > self.length() {
            return Err(Error::from_raw_os_error(libc::ENOSPC));
        }
        s.pages.write(bytes, offset);
        self.machine.note(&mut s, || Event::Write(offset, bytes.into()));
        Ok(())
    }

    /// As of an image file: a hint, which a crash may lose.
    fn discard(&self, offset: u64, len: u64) {
        let mut s = self.state.lock();
        let end = (offset + len).min(self.length());
        let pages = offset.div_ceil(PAGE)..end / PAGE;
        s.pages.0.retain(|page, _| !pages.contains(page));
        let edges = match pages.start <= pages.end {
            true => [(offset, pages.start * PAGE), (pages.end * PAGE, end)],
            false => [(offset, end), (end, end)],
        };
        for (from, to) in edges {
            s.pages.write(&vec![0; (to - from) as usize], from);
        }
    }

    fn fills_from_the_end(&self) -> bool {
        self.from_the_end
    }

    fn can_resize(&self) -> bool {
        true
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut s = self.state.lock();
        self.operate_to_write()?;
        self.len.store(len, Ordering::SeqCst);
        s.pages.cut(len);
        self.machine.note(&mut s, || Event::Length(len));
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut s = self.state.lock();
        self.operate_to_write()?;
        self.machine.note(&mut s, || Event::Flush);
        Ok(())
    }
}
