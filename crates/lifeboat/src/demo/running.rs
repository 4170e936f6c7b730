//! The guest in a thread of its own, and the two things that may be asked of it there:
//! to do so much more, and to hold still for an instant.
//!
//! It holds still between two steps, so that its record and its disks are the same
//! instant's. The volume itself needs no such help to freeze; the record does.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::error::DemoError;
use super::guest::Guest;

/// A guest that works in its own thread.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), DemoError>>>,
}

#[derive(Debug)]
struct Shared {
    /// Locked for each step.
    guest: Mutex<Guest>,
    pace: Mutex<Pace>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Pace {
    /// Steps that the guest may do yet.
    granted: u64,
    /// Somebody wants the guest: no further step before.
    hold: bool,
    stop: bool,
    ended: bool,
}

impl Running {
    /// Lets a guest run; it does nothing before it is [granted](Self::grant) something.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(guest: Guest) -> Result<Self, DemoError> {
        let shared = Arc::new(Shared {
            guest: Mutex::new(guest),
            pace: Mutex::default(),
            changed: Condvar::new(),
        });
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("guest".to_owned())
            .spawn(move || {
                let _end = TellEnd(&inside);
                inside.run()
            })
            .map_err(|source| DemoError::System {
                what: "a thread",
                source,
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Lets the guest do `steps` more.
    pub fn grant(&self, steps: u64) {
        self.shared.pace().granted += steps;
        self.shared.changed.notify_all();
    }

    /// Waits until no more than `left` of what was granted is left to do.
    ///
    /// # Errors
    /// When the guest has ended; [`stop`](Self::stop) tells why.
    pub fn wait_for(&self, left: u64) -> Result<(), DemoError> {
        let pace = self.shared.wait(|pace| !pace.ended && pace.granted > left);
        if pace.ended {
            Err(DemoError::GuestEnded)
        } else {
            Ok(())
        }
    }

    /// Does something while the guest holds still between two steps.
    pub fn hold<T>(&self, work: impl FnOnce(&Guest) -> T) -> T {
        self.shared.pace().hold = true;
        let done = {
            let guest = lock(&self.shared.guest);
            work(&guest)
        };
        self.shared.pace().hold = false;
        self.shared.changed.notify_all();
        done
    }

    /// Ends the guest between two steps, as if its host had lost power.
    ///
    /// # Errors
    /// Why the guest had ended before.
    pub fn stop(mut self) -> Result<(), DemoError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), DemoError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.shared.pace().stop = true;
        self.shared.changed.notify_all();
        match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Only reached when something else has failed already, which is told.
            let _ = self.end();
        }
    }
}

impl Shared {
    fn run(&self) -> Result<(), DemoError> {
        loop {
            {
                let pace = self.wait(|pace| !pace.stop && (pace.hold || pace.granted == 0));
                if pace.stop {
                    return Ok(());
                }
            }
            lock(&self.guest).step()?;
            let mut pace = self.pace();
            pace.granted -= 1;
            drop(pace);
            self.changed.notify_all();
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        lock(&self.pace)
    }

    fn wait(&self, until_not: impl Fn(&Pace) -> bool) -> MutexGuard<'_, Pace> {
        self.changed
            .wait_while(self.pace(), |pace| until_not(pace))
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells whoever waits that the guest has ended, however it did.
struct TellEnd<'a>(&'a Shared);

impl Drop for TellEnd<'_> {
    fn drop(&mut self) {
        self.0.pace().ended = true;
        self.0.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
