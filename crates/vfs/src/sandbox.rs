//! What a plug-in's process may do: compute, use its link, its arena and the files that it was handed.
//!
//! | | |
//! |---|---|
//! | namespaces | of its own: users, network (empty), processes, IPC; root becomes *nobody* first |
//! | Landlock | no files but those that programs are started from (read only), no TCP, no signals to others |
//! | seccomp | no sockets, no memory that no limit counts, no further processes (unless asked for), nothing of the kernel's administration |
//! | limits | address space, threads and processes, descriptors, no core dumps, no locked memory |
//!
//! What the machine's kernel refuses is told, and the rest holds. Runs in a process with a single thread, and forks.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Who root becomes.
const NOBODY: u32 = 65534;
/// Threads of a plug-in, beside the processes that it may have.
const THREADS_MAX: u64 = 64;
const DESCRIPTORS_MAX: u64 = 256;

/// What programs are started from.
const SYSTEM: [&str; 7] = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives"];
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// How much a plug-in may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of address space, of each of its processes.
    pub memory: u64,
    /// Processes at a time.
    pub processes: u32,
}

fn check(rc: impl Into<i64>) -> io::Result<i64> {
    let rc = rc.into();
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// What could not be had.
#[derive(Default)]
struct Lacks(Vec<String>);

impl Lacks {
    /// Notes a failure and what it means.
    fn note<E: std::fmt::Display>(&mut self, outcome: Result<(), E>, what: &str, means: &str) -> bool {
        if let Err(e) = &outcome {
            self.0.push(format!("{what}: {e}; {means}"));
        }
        outcome.is_ok()
    }
}

/// Confines this process, which goes on in a child: `started` is told that one's number, in the parent, which ends with it and
/// in the same way. `program`: what is to be started then, if anything. Returns what the kernel refused.
pub fn enter(limits: &Limits, program: Option<&Path>, started: impl FnOnce(u32)) -> io::Result<Vec<String>> {
    let mut lacks = Lacks::default();
    let apart = namespaces(&mut lacks)?;
    // Only now: set before, it would count in the namespace above as well, and others with it.
    set_limits(limits)?;
    fork(apart, started)?;
    // SAFETY: plain system calls.
    unsafe { check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))? };
    let restricted = landlock(program).map_err(|e| e.to_string());
    lacks.note(restricted.and_then(|full| full), "landlock", "it can read what its user can");
    drop_capabilities()?;
    let filtered = filters(limits)
        .and_then(|all| all.iter().try_for_each(|f| seccompiler::apply_filter(f).map_err(|e| e.to_string())));
    lacks.note(filtered, "seccomp", "it can make sockets and processes");
    Ok(lacks.0)
}

/// Keeps this process off one CPU, if there are several: whatever it does, others need not wait for the end of its slices there. (Priorities
/// alone do not bring that about: a kernel without preemption ends no system call of it for them.) To be called between fork and exec: what a
/// start takes, namespaces above all, is most of what others notice of a plug-in that is killed again and again.
pub fn leave_a_cpu() {
    // SAFETY: a set of CPUs is plain bits, and the pointers are valid. What can't be had or changed stays.
    unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of_val(&cpus), &mut cpus) == 0 && libc::CPU_COUNT(&cpus) > 1 {
            let first = (0..libc::CPU_SETSIZE as usize).find(|n| libc::CPU_ISSET(*n, &cpus)).expect("there are some");
            libc::CPU_CLR(first, &mut cpus);
            libc::sched_setaffinity(0, size_of_val(&cpus), &cpus);
        }
    }
}

fn set_limits(limits: &Limits) -> io::Result<()> {
    let set = |what, most: u64| {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: a valid pointer.
        check(unsafe { libc::setrlimit(what, &limit) }).map(drop)
    };
    set(libc::RLIMIT_AS, limits.memory)?;
    set(libc::RLIMIT_NPROC, THREADS_MAX + u64::from(limits.processes))?;
    set(libc::RLIMIT_NOFILE, DESCRIPTORS_MAX)?;
    set(libc::RLIMIT_CORE, 0)?;
    set(libc::RLIMIT_MEMLOCK, 0)?;
    set(libc::RLIMIT_MSGQUEUE, 0)
}

/// Says whether there is a namespace of processes for the next child.
fn namespaces(lacks: &mut Lacks) -> io::Result<bool> {
    let rest = libc::CLONE_NEWNET | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    // SAFETY: plain system calls.
    let unshare = |flags| check(unsafe { libc::unshare(flags) }).map(drop);
    let means = "it shares network and processes with its user";
    // SAFETY: this call can't fail.
    let root = unsafe { libc::geteuid() } == 0;
    let mut apart = false;
    if root {
        apart = lacks.note(unshare(rest), "namespaces", "it shares network and processes with root");
        become_nobody()?;
    }
    // For users too: so that its processes are counted by themselves. (Without it for root, nobody's count.)
    let (user, group) = ids();
    if lacks.note(
        unshare(libc::CLONE_NEWUSER),
        "namespaces of users",
        if root { "others may count as its processes" } else { means },
    ) {
        let map = |file: &str, text: &str| std::fs::write(format!("/proc/self/{file}"), text);
        map("setgroups", "deny")?;
        map("uid_map", &format!("{user} {user} 1"))?;
        map("gid_map", &format!("{group} {group} 1"))?;
        if !root {
            apart = lacks.note(unshare(rest), "namespaces", means);
        }
    }
    Ok(apart)
}

fn ids() -> (u32, u32) {
    // SAFETY: these calls can't fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

fn become_nobody() -> io::Result<()> {
    // SAFETY: plain system calls; no groups.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
        check(libc::setresuid(NOBODY, NOBODY, NOBODY))?;
        // What its own /proc says is its own, too; and that it dies with its host was lost with the change of user.
        check(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0))?;
    }
    die_with_parent()
}

/// This process is killed when the one above it ends.
fn die_with_parent() -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        // (It may have ended just before; then somebody adopted us.)
        if libc::getppid() == 1 { Err(io::Error::other("the host has ended")) } else { Ok(()) }
    }
}

/// Goes on in a child, which is the first of its namespace, if there is one.
fn fork(apart: bool, started: impl FnOnce(u32)) -> io::Result<()> {
    // SAFETY: there is one thread.
    let child = unsafe { check(libc::fork())? } as i32;
    if child == 0 {
        // SAFETY: a plain system call. (The parent has no number where it is not seen.)
        unsafe { check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))? };
        return if apart { Ok(()) } else { die_with_parent() };
    }
    started(child as u32);
    // SAFETY: plain system calls; nothing of this process is used any more.
    unsafe {
        // The link is to end with the child.
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
        let mut status = 0;
        while libc::waitpid(child, &mut status, 0) < 0 {}
        if libc::WIFSIGNALED(status) {
            libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
            libc::raise(libc::WTERMSIG(status));
        }
        libc::_exit(libc::WEXITSTATUS(status));
    }
}

/// `Ok(Err)`: only in part.
fn landlock(program: Option<&Path>) -> Result<Result<(), String>, landlock::RulesetError> {
    let abi = ABI::V6;
    let (read, all) = (AccessFs::from_read(abi), AccessFs::from_all(abi));
    let file_only = AccessFs::from_file(abi);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    if let Some(program) = program {
        for path in SYSTEM.iter().map(Path::new).chain([program]) {
            let Ok(fd) = PathFd::new(path) else { continue };
            let access = if path.is_dir() { read } else { read & file_only };
            rules = rules.add_rule(PathBeneath::new(fd, access))?;
        }
        for device in DEVICES {
            let Ok(fd) = PathFd::new(device) else { continue };
            rules = rules.add_rule(PathBeneath::new(fd, AccessFs::ReadFile | AccessFs::WriteFile))?;
        }
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => Err("this kernel's is an older one".into()),
        RulesetStatus::NotEnforced => Err("this kernel has none".into()),
    })
}

fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header(u32, i32);
    #[repr(C)]
    struct Data([u32; 6]);
    const VERSION_3: u32 = 0x2008_0522;
    let (header, none) = (Header(VERSION_3, 0), Data([0; 6]));
    // SAFETY: the structures are as the kernel has them.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) }).map(drop)
}

/// No CPU that was left to others, no sockets, no memory beside the address space, nobody else's processes, no administration.
const REFUSED: [i64; 71] = [
    libc::SYS_sched_setaffinity,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_syslog,
    libc::SYS_personality,
    libc::SYS_fanotify_init,
    libc::SYS_inotify_init1,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_set_mempolicy,
    libc::SYS_seccomp,
];

fn when(arg: u8, op: SeccompCmpOp, value: u64) -> Result<Vec<SeccompRule>, String> {
    let condition = SeccompCondition::new(arg, SeccompCmpArgLen::Qword, op, value).map_err(|e| e.to_string())?;
    Ok(vec![SeccompRule::new(vec![condition]).map_err(|e| e.to_string())?])
}

fn filters(limits: &Limits) -> Result<Vec<BpfProgram>, String> {
    let mut refused: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|n| (*n, vec![])).collect();
    // It is to end with its host.
    refused.insert(libc::SYS_prctl, when(0, SeccompCmpOp::Eq, libc::PR_SET_PDEATHSIG as u64)?);
    let threads_only = libc::CLONE_THREAD as u64;
    if limits.processes <= 1 {
        refused.insert(libc::SYS_clone, when(0, SeccompCmpOp::MaskedEq(threads_only), 0)?);
        #[cfg(target_arch = "x86_64")]
        refused.extend([(libc::SYS_fork, vec![]), (libc::SYS_vfork, vec![])]);
    } else {
        refused.insert(
            libc::SYS_clone,
            when(0, SeccompCmpOp::MaskedEq(libc::CLONE_NEWUSER as u64), libc::CLONE_NEWUSER as u64)?,
        );
    }
    // Its arguments can't be looked at; without it libraries use the others.
    let missing = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    let filter = |rules, errno: i32| -> Result<BpfProgram, String> {
        let arch = std::env::consts::ARCH.try_into().map_err(|_| "an unknown kind of CPU".to_string())?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch);
        filter.map_err(|e| e.to_string())?.try_into().map_err(|e: seccompiler::BackendError| e.to_string())
    };
    // (The last one takes away the right to add another.)
    Ok(vec![filter(missing, libc::ENOSYS)?, other_numbers(), filter(refused, libc::EPERM)?])
}

/// Refuses the second set of numbers that some kernels for x86-64 have for the same calls (x32).
fn other_numbers() -> BpfProgram {
    use seccompiler::sock_filter;
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    vec![
        sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: 0x4000_0000 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: refuse },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}
