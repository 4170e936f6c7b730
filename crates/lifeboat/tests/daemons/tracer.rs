//! A daemon that is followed from call to call, as a debugger does, up to the step at which it
//! is killed or a call fails.
//!
//! A step is a call to the system that changes files. They are counted over all threads, in the
//! order in which they begin. A filter in the kernel stops threads at these calls alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// `FICLONE` and `FICLONERANGE`: the requests to a file that share blocks.
const SHARE: [u64; 2] = [0x4004_9409, 0x4020_940d];

/// What is to happen at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    KillBefore,
    KillAfter,
    /// The call does nothing and reports that the device failed.
    Fail,
}

/// A daemon that is followed.
#[derive(Debug)]
pub struct Followed {
    child: Pid,
    shared: Arc<Shared>,
    follower: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when the daemon has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Steps so far that count.
    steps: u64,
    planned: Option<(u64, Strike)>,
    /// Every step on a file whose path has this in it fails.
    failing: Option<&'static str>,
    /// Nothing counts, and nothing happens.
    spared: bool,
    /// It was killed, or is killed at the end of a call: it ends soon.
    dying: bool,
    /// The step that was struck.
    struck: Option<String>,
    ended: Option<ExitStatus>,
}

impl Followed {
    /// Starts a program whose standard error goes to a log. It has made no step yet.
    pub fn start(program: &Path, arguments: &[&str], log: File) -> io::Result<Self> {
        // It waits for a word until it is followed.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "read -r go && exec \"$@\" < /dev/null", "sh"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        let shared = Arc::new(Shared::default());
        lock(&shared.state).spared = true;
        let (tell, told) = channel();
        let follower = Follower {
            shared: Arc::clone(&shared),
        };
        // Who seized a process is the only thread that may lead it.
        let follower = std::thread::spawn(move || follower.run(command, &tell));
        let child = told.recv().map_err(io::Error::other)??;
        Ok(Self {
            child,
            shared,
            follower: Some(follower),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    /// Steps that counted so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Plans what happens, by steps counted from now on.
    pub fn strike_at(&self, step: u64, strike: Strike) {
        let mut state = self.state();
        state.planned = Some((state.steps + step, strike));
        state.spared = false;
    }

    /// From now on the device fails at files whose path has this in it; at none with nothing.
    pub fn fail_at(&self, part: Option<&'static str>) {
        let mut state = self.state();
        state.failing = part;
        state.spared = false;
    }

    /// Until [`expose`](Self::expose) nothing happens, and no step counts.
    pub fn spare(&self) {
        self.state().spared = true;
    }

    pub fn expose(&self) {
        self.state().spared = false;
    }

    /// Nothing is planned any more, and no step counts.
    pub fn live_on(&self) {
        let mut state = self.state();
        state.planned = None;
        state.failing = None;
        state.spared = true;
    }

    /// The step that was struck, once.
    pub fn take_struck(&self) -> Option<String> {
        self.state().struck.take()
    }

    /// How it ended. One that is about to end is waited for.
    pub fn ended(&self) -> Option<ExitStatus> {
        let lives_on = |state: &mut State| state.dying && state.ended.is_none();
        let state = self.shared.ended.wait_while(self.state(), lives_on);
        state.unwrap_or_else(PoisonError::into_inner).ended
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if self.ended().is_none() {
            // It may end at this very moment.
            let _ = kill(self.child, Signal::SIGKILL);
        }
        if let Some(follower) = self.follower.take() {
            // What it panicked about has been printed.
            let _ = follower.join();
        }
    }
}

/// What runs in the thread that leads the daemon.
struct Follower {
    shared: Arc<Shared>,
}

impl Follower {
    fn run(self, command: Command, tell: &Sender<io::Result<Pid>>) {
        let child = match seize(command) {
            Ok(child) => child,
            Err(error) => {
                // Whoever waited is told; nobody else does.
                let _ = tell.send(Err(error));
                return;
            }
        };
        let _ = tell.send(Ok(child));
        let ended = self.follow(child).expect("follow the daemon");
        lock(&self.shared.state).ended = Some(ended);
        self.shared.ended.notify_all();
    }

    /// Leads every thread of the daemon from call to call, until it has ended.
    fn follow(&self, child: Pid) -> nix::Result<ExitStatus> {
        let anyone = Pid::from_raw(-1);
        // Children of other threads are not for this one.
        let ours = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (thread, signal) = match waitpid(anyone, Some(ours))? {
                WaitStatus::Exited(thread, code) if thread == child => {
                    return Ok(ExitStatus::from_raw(code << 8));
                }
                WaitStatus::Signaled(thread, signal, _) if thread == child => {
                    return Ok(ExitStatus::from_raw(signal as i32));
                }
                WaitStatus::PtraceEvent(thread, _, libc::PTRACE_EVENT_SECCOMP) => {
                    if unless_killed(self.begins(child, thread))? == Some(Until::ItsEnd) {
                        unless_killed(ptrace::syscall(thread, None))?;
                        continue;
                    }
                    (thread, None)
                }
                // The end of a call after which the daemon dies.
                WaitStatus::PtraceSyscall(thread) => {
                    unless_killed(kill(child, Signal::SIGKILL))?;
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                _ => continue,
            };
            unless_killed(ptrace::cont(thread, signal))?;
        }
    }

    /// A thread stands at the beginning of a step. Answers up to where it is led from there.
    fn begins(&self, child: Pid, thread: Pid) -> nix::Result<Until> {
        let mut registers = ptrace::getregs(thread)?;
        let strike = {
            let mut state = lock(&self.shared.state);
            if state.spared {
                return Ok(Until::NextStep);
            }
            let number = state.steps;
            state.steps += 1;
            let is_failing = |part| subject(thread, &registers).contains(part);
            let strike = match state.planned {
                Some((at, strike)) if at == number => {
                    state.planned = None;
                    strike
                }
                _ if state.failing.is_some_and(is_failing) => Strike::Fail,
                _ => return Ok(Until::NextStep),
            };
            let name = name(registers.orig_rax.cast_signed());
            state.dying = strike != Strike::Fail;
            state.struck = Some(format!("{strike:?} {name} {}", subject(thread, &registers)));
            strike
        };
        match strike {
            Strike::KillBefore => kill(child, Signal::SIGKILL)?,
            Strike::KillAfter => return Ok(Until::ItsEnd),
            Strike::Fail => {
                // No call has this number: it is left out, and this is its result.
                registers.orig_rax = u64::MAX;
                registers.rax = (-i64::from(libc::EIO)).cast_unsigned();
                ptrace::setregs(thread, registers)?;
            }
        }
        Ok(Until::NextStep)
    }
}

/// Up to where a thread is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    NextStep,
    /// The end of the step at whose beginning it stands.
    ItsEnd,
}

/// What is done with a thread that may have been killed meanwhile.
fn unless_killed<T>(outcome: nix::Result<T>) -> nix::Result<Option<T>> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(Errno::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts what waits for a word, seizes it and gives the word. This thread, and whatever it
/// starts, makes no steps any more but those of which somebody who follows is told.
fn seize(mut command: Command) -> io::Result<Pid> {
    seccompiler::apply_filter(&stops_at_steps()).map_err(io::Error::other)?;
    let mut child: Child = command.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options)?;
    ptrace::interrupt(pid)?;
    let mut word = child.stdin.take().expect("it is piped");
    word.write_all(b"go\n")?;
    Ok(pid)
}

/// The calls that are steps.
const STEPS: [(i64, &str); 22] = [
    (libc::SYS_pwrite64, "pwrite"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_pwritev2, "pwritev2"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_syncfs, "syncfs"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "rename"),
    (libc::SYS_renameat2, "rename"),
    (libc::SYS_link, "link"),
    (libc::SYS_linkat, "link"),
    (libc::SYS_symlink, "symlink"),
    (libc::SYS_symlinkat, "symlink"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlink"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdir"),
    (libc::SYS_rmdir, "rmdir"),
    (libc::SYS_ioctl, "share"),
];

fn name(call: i64) -> &'static str {
    let known = STEPS.iter().find(|(number, _)| *number == call);
    known.map_or("an unknown call", |(_, name)| name)
}

/// Stops a thread that is followed at the beginning of each step.
fn stops_at_steps() -> BpfProgram {
    let shares = |request| {
        let is_request =
            SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request);
        SeccompRule::new(vec![is_request?])
    };
    let rules: Result<BTreeMap<_, _>, _> = STEPS
        .into_iter()
        .map(|(call, _)| {
            let rules: Result<Vec<_>, _> = match call {
                libc::SYS_ioctl => SHARE.into_iter().map(shares).collect(),
                _ => Ok(Vec::new()),
            };
            rules.map(|rules| (call, rules))
        })
        .collect();
    let filter = SeccompFilter::new(
        rules.expect("the requests are numbers"),
        SeccompAction::Allow,
        SeccompAction::Trace(0),
        TargetArch::x86_64,
    );
    let program = filter.and_then(BpfProgram::try_from);
    program.expect("the filter is small")
}

/// The file that a call is about, if it is an open one.
fn subject(thread: Pid, registers: &user_regs_struct) -> String {
    let open = format!("/proc/{thread}/fd/{}", registers.rdi);
    let path = std::fs::read_link(open).unwrap_or_default();
    path.display().to_string()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
