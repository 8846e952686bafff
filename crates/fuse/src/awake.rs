//! Keeping the CPUs from halting while requests come in: on a virtual machine, waking a halted CPU costs more than the
//! work it is woken for (tens of µs).
//!
//! One thread per CPU of scheduling class SCHED_IDLE spins until [`Awake::LINGER`] after the last request, then sleeps.
//! Such a thread gives way to everything else at once, so it takes only time that nobody wants; to the scheduler its CPU
//! counts as idle. (Measured first with /dev/cpu_dma_latency, which does the same to the whole machine and needs root.)
//! Absent on machines with many CPUs, where most would spin in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Beyond this many CPUs nothing spins.
const CPUS_MAX: usize = 8;

/// See the module.
pub(crate) struct Awake {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Shared {
    start: Instant,
    /// Nanoseconds since `start` until when to spin.
    until: AtomicU64,
    asleep: AtomicBool,
    ended: AtomicBool,
}

impl Awake {
    /// How long after a request the next one is expected.
    const LINGER: Duration = Duration::from_micros(500);

    /// Starts the threads, asleep; none where `wanted` is false or it makes no sense.
    pub(crate) fn start(wanted: bool) -> Awake {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            until: AtomicU64::new(0),
            asleep: AtomicBool::new(true),
            ended: AtomicBool::new(false),
        });
        let cpus = allowed_cpus();
        let sensible = wanted && cpus.len() <= CPUS_MAX;
        let spawn = |cpu: usize| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("awake-{cpu}")).spawn(move || shared.spin_on(cpu)).ok()
        };
        let threads = if sensible { cpus.into_iter().filter_map(spawn).collect() } else { Vec::new() };
        Awake { shared, threads }
    }

    /// A request came in.
    pub(crate) fn touch(&self) {
        if self.threads.is_empty() {
            return;
        }
        let s = &*self.shared;
        let until = s.start.elapsed() + Awake::LINGER;
        s.until.store(until.as_nanos() as u64, Ordering::Relaxed);
        if s.asleep.load(Ordering::Relaxed) && s.asleep.swap(false, Ordering::AcqRel) {
            self.threads.iter().for_each(|t| t.thread().unpark());
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        for t in self.threads.drain(..) {
            t.thread().unpark();
            let _ = t.join();
        }
    }
}

impl Shared {
    fn spin_on(&self, cpu: usize) {
        // Without its class it would take time from others: then rather not at all.
        if !become_idle_on(cpu) {
            return;
        }
        while !self.ended.load(Ordering::Acquire) {
            while self.start.elapsed().as_nanos() < u128::from(self.until.load(Ordering::Relaxed)) {
                for _ in 0..32 {
                    std::hint::spin_loop();
                }
            }
            self.asleep.store(true, Ordering::Release);
            thread::park();
        }
    }
}

fn allowed_cpus() -> Vec<usize> {
    // SAFETY: zeroes are a valid set; the call fills it, and its size is given.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        set
    };
    // SAFETY: the index is below the set's size.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Puts the calling thread on one CPU, in class SCHED_IDLE.
fn become_idle_on(cpu: usize) -> bool {
    // SAFETY: plain system calls on values that outlive them; thread 0 is the caller.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        let param = libc::sched_param { sched_priority: 0 };
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) == 0
            && libc::sched_setscheduler(0, libc::SCHED_IDLE, &param) == 0
    }
}
