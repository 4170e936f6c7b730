//! A daemon that is followed from call to call, as a debugger does, up to the step at which it
//! is killed or a call fails.
//!
//! A step is a call to the system that changes files. They are counted over all threads, in the
//! order in which they begin.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

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
    shared: Arc<Mutex<State>>,
    follower: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// Steps so far that count.
    steps: u64,
    planned: Option<(u64, Strike)>,
    /// Nothing counts, and nothing happens.
    spared: bool,
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
        let shared = Arc::new(Mutex::new(State {
            spared: true,
            ..State::default()
        }));
        let (tell, told) = channel();
        let follower = Follower {
            shared: Arc::clone(&shared),
            under_way: BTreeMap::new(),
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
        lock(&self.shared)
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
        state.spared = true;
    }

    /// The step that was struck, once.
    pub fn take_struck(&self) -> Option<String> {
        self.state().struck.take()
    }

    pub fn ended(&self) -> Option<ExitStatus> {
        self.state().ended
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
    shared: Arc<Mutex<State>>,
    /// Calls that have begun and whose end is of interest.
    under_way: BTreeMap<Pid, Strike>,
}

impl Follower {
    fn run(mut self, command: Command, tell: &Sender<io::Result<Pid>>) {
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
        lock(&self.shared).ended = Some(ended);
    }

    /// Leads every thread of the daemon from call to call, until it has ended.
    fn follow(&mut self, child: Pid) -> nix::Result<ExitStatus> {
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
                WaitStatus::PtraceSyscall(thread) => {
                    match self.call(child, thread) {
                        // It was killed meanwhile.
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(error) => return Err(error),
                    }
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                _ => continue,
            };
            match ptrace::syscall(thread, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A thread stands at the beginning or at the end of a call.
    fn call(&mut self, child: Pid, thread: Pid) -> nix::Result<()> {
        let mut registers = ptrace::getregs(thread)?;
        match self.under_way.remove(&thread) {
            Some(Strike::KillAfter) => return kill(child, Signal::SIGKILL),
            Some(Strike::Fail) => {
                registers.rax = (-i64::from(libc::EIO)).cast_unsigned();
                return ptrace::setregs(thread, registers);
            }
            Some(Strike::KillBefore) | None => {}
        }
        // Only at its beginning does every call say that there is none.
        let begins = registers.rax.cast_signed() == -i64::from(libc::ENOSYS);
        let Some(name) = begins.then(|| step(&registers)).flatten() else {
            return Ok(());
        };
        let strike = {
            let mut state = lock(&self.shared);
            if state.spared {
                return Ok(());
            }
            let number = state.steps;
            state.steps += 1;
            let planned = state.planned.filter(|(at, _)| *at == number);
            let Some((_, strike)) = planned else {
                return Ok(());
            };
            state.planned = None;
            state.struck = Some(format!("{strike:?} {name} {}", subject(thread, &registers)));
            strike
        };
        match strike {
            Strike::KillBefore => return kill(child, Signal::SIGKILL),
            Strike::KillAfter => {}
            Strike::Fail => {
                registers.orig_rax = u64::MAX;
                ptrace::setregs(thread, registers)?;
            }
        }
        self.under_way.insert(thread, strike);
        Ok(())
    }
}

/// Starts what waits for a word, seizes it and gives the word.
fn seize(mut command: Command) -> io::Result<Pid> {
    let mut child: Child = command.spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options)?;
    ptrace::interrupt(pid)?;
    let mut word = child.stdin.take().expect("it is piped");
    word.write_all(b"go\n")?;
    Ok(pid)
}

/// The name of a call that is a step.
fn step(registers: &user_regs_struct) -> Option<&'static str> {
    Some(match registers.orig_rax.cast_signed() {
        libc::SYS_pwrite64 => "pwrite",
        libc::SYS_pwritev => "pwritev",
        libc::SYS_pwritev2 => "pwritev2",
        libc::SYS_fsync => "fsync",
        libc::SYS_fdatasync => "fdatasync",
        libc::SYS_syncfs => "syncfs",
        libc::SYS_ftruncate => "ftruncate",
        libc::SYS_fallocate => "fallocate",
        libc::SYS_copy_file_range => "copy_file_range",
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => "rename",
        libc::SYS_link | libc::SYS_linkat => "link",
        libc::SYS_symlink | libc::SYS_symlinkat => "symlink",
        libc::SYS_unlink | libc::SYS_unlinkat => "unlink",
        libc::SYS_mkdir | libc::SYS_mkdirat => "mkdir",
        libc::SYS_rmdir => "rmdir",
        libc::SYS_ioctl if SHARE.contains(&registers.rsi) => "share",
        _ => return None,
    })
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
