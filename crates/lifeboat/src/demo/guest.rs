//! The VM of the drill: a writer that changes two disks over NBD without a pause, and keeps a
//! [`History`] of its own of every byte.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lifeboat_model::{DiskId, SECTOR_SIZE};
use lifeboat_nbd::{Client, RequestError};
use lifeboat_sys::clock::Stopwatch;

use super::error::DemoError;
use super::history::{Change, History, MARKER_BYTES, MARKER_DISK};
use super::random::Random;

/// One guest disk, as it is planned.
#[derive(Debug, Clone, Copy)]
pub struct DiskPlan {
    pub name: &'static str,
    /// In bytes.
    pub size: u64,
    /// What the installation writes, in mebibytes.
    pub installed: u64,
}

/// The disks of the VM. The second is neither whole mebibytes nor whole blocks.
pub const DISKS: [DiskPlan; 2] = [
    DiskPlan {
        name: "sda",
        size: 128 << 20,
        installed: 48,
    },
    DiskPlan {
        name: "sdb",
        size: (64 << 20) + 1536,
        installed: 16,
    },
];

/// The guest asks for durability once in so many steps.
const FLUSH_EVERY: u64 = 16;

/// The last block of the first disk is never written: zeroes must stay zeroes.
const UNTOUCHED: u64 = 4096;

/// The guest's rest between two steps: some megabytes per second are written in the end.
const REST: Duration = Duration::from_millis(15);

/// A writer, ready to work.
#[derive(Debug)]
pub struct Guest {
    clients: Vec<Client>,
    history: Arc<Mutex<History>>,
    random: Random,
    watch: Stopwatch,
    steps: u64,
}

/// A guest that works in a thread of its own.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    history: Arc<Mutex<History>>,
    thread: Option<JoinHandle<Result<(), DemoError>>>,
}

#[derive(Debug)]
struct Shared {
    /// Locked for each step.
    guest: Mutex<Guest>,
    wish: Mutex<Wish>,
    changed: Condvar,
}

/// What the guest is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Work,
    /// Somebody looks at it.
    HoldStill,
    Stop,
}

impl DiskPlan {
    /// # Panics
    /// Never: the names in this file are valid.
    #[must_use]
    pub fn id(&self) -> DiskId {
        self.name.parse().expect("BUG: the name of a disk is valid")
    }
}

impl Guest {
    /// A guest that goes on where `history` ends. `clients` are its disks in their order;
    /// `watch` runs since the drill began.
    #[must_use]
    pub fn new(clients: Vec<Client>, history: History, seed: u64, watch: Stopwatch) -> Self {
        Self {
            clients,
            history: Arc::new(Mutex::new(history)),
            random: Random::new(seed),
            watch,
            steps: 0,
        }
    }

    /// Fills the new disks.
    ///
    /// # Errors
    /// When a disk cannot be written.
    pub fn install(&mut self) -> Result<(), DemoError> {
        for (disk, plan) in DISKS.iter().enumerate() {
            for _ in 0..plan.installed {
                let bytes = self.random.bytes(1 << 20);
                let offset = self.place(disk, 1 << 20, 4096);
                self.write(disk, offset, bytes)?;
            }
        }
        self.mark()?;
        self.flush()
    }

    /// Changes one to four ranges, and writes the marker.
    ///
    /// # Errors
    /// When a disk cannot be written.
    pub fn step(&mut self) -> Result<(), DemoError> {
        self.steps += 1;
        for _ in 0..=self.random.below(3) {
            let disk = self.random.below(DISKS.len() as u64) as usize;
            match self.random.below(100) {
                0..60 => {
                    let bytes = self.random.bytes(4096);
                    let offset = self.place(disk, 4096, 4096);
                    self.write(disk, offset, bytes)?;
                }
                60..82 => {
                    let length = SECTOR_SIZE * (1 + self.random.below(160));
                    let bytes = self.random.bytes(length as usize);
                    let offset = self.place(disk, length, SECTOR_SIZE);
                    self.write(disk, offset, bytes)?;
                }
                82..92 => {
                    let length = SECTOR_SIZE * (1 + self.random.below(256));
                    let offset = self.place(disk, length, SECTOR_SIZE);
                    self.write_zeroes(disk, offset, length)?;
                }
                _ => {
                    let length = 4096 * (1 + self.random.below(48));
                    let offset = self.place(disk, length, 4096);
                    self.trim(disk, offset, length)?;
                }
            }
        }
        self.mark()?;
        if self.steps.is_multiple_of(FLUSH_EVERY) {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes `mebibytes` at once.
    ///
    /// # Errors
    /// When a disk cannot be written.
    pub fn burst(&mut self, mebibytes: u64) -> Result<(), DemoError> {
        for _ in 0..mebibytes {
            let bytes = self.random.bytes(1 << 20);
            let offset = self.place(0, 1 << 20, 4096);
            self.write(0, offset, bytes)?;
        }
        self.mark()
    }

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// When a disk cannot promise it.
    pub fn flush(&self) -> Result<(), DemoError> {
        for (disk, client) in self.clients.iter().enumerate() {
            client.flush().map_err(|source| failed(disk, source))?;
        }
        Ok(())
    }

    fn mark(&mut self) -> Result<(), DemoError> {
        let marker = lock(&self.history).marker();
        self.write(MARKER_DISK, 0, marker)
    }

    fn write(&mut self, disk: usize, offset: u64, bytes: Vec<u8>) -> Result<(), DemoError> {
        let bytes: Arc<[u8]> = bytes.into();
        let change = Change::Write(Arc::clone(&bytes));
        lock(&self.history).begin(disk, offset, change);
        let written = self.clients[disk].write(offset, &bytes);
        written.map_err(|source| failed(disk, source))?;
        lock(&self.history).end(self.watch.elapsed(), None);
        Ok(())
    }

    fn write_zeroes(&mut self, disk: usize, offset: u64, length: u64) -> Result<(), DemoError> {
        lock(&self.history).begin(disk, offset, Change::Zero(length));
        let zeroed = self.clients[disk].write_zeroes(offset, length);
        zeroed.map_err(|source| failed(disk, source))?;
        lock(&self.history).end(self.watch.elapsed(), None);
        Ok(())
    }

    /// Gives a range up. What it reads as afterwards is the disk's choice, so the guest looks
    /// once; it must not change from then on.
    fn trim(&mut self, disk: usize, offset: u64, length: u64) -> Result<(), DemoError> {
        lock(&self.history).begin(disk, offset, Change::Zero(length));
        let client = &self.clients[disk];
        let mut left = vec![0; length as usize];
        let trimmed = client.trim(offset, length);
        trimmed
            .and_then(|()| client.read(offset, &mut left))
            .map_err(|source| failed(disk, source))?;
        let is_zero = left.iter().all(|&byte| byte == 0);
        let left = (!is_zero).then(|| Change::Write(left.into()));
        lock(&self.history).end(self.watch.elapsed(), left);
        Ok(())
    }

    /// A place for `length` bytes, at a multiple of `alignment`, clear of the marker and of what is
    /// never written.
    fn place(&mut self, disk: usize, length: u64, alignment: u64) -> u64 {
        let size = DISKS[disk].size;
        let (first, end) = if disk == MARKER_DISK {
            ((MARKER_BYTES as u64).next_multiple_of(alignment), size)
        } else {
            (0, size - UNTOUCHED)
        };
        let places = (end - first - length) / alignment + 1;
        first + alignment * self.random.below(places)
    }
}

fn failed(disk: usize, source: RequestError) -> DemoError {
    DemoError::Request {
        disk: DISKS[disk].id(),
        source,
    }
}

impl Running {
    /// Lets a guest work.
    ///
    /// # Errors
    /// When there can be no further thread.
    pub fn start(guest: Guest) -> Result<Self, DemoError> {
        let history = Arc::clone(&guest.history);
        let shared = Arc::new(Shared {
            guest: Mutex::new(guest),
            wish: Mutex::new(Wish::Work),
            changed: Condvar::new(),
        });
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("guest".to_owned())
            .spawn(move || inside.run())
            .map_err(|source| DemoError::System {
                what: "a thread",
                source,
            })?;
        Ok(Self {
            shared,
            history,
            thread: Some(thread),
        })
    }

    /// What the guest has written so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    /// Does something while the guest holds still between two steps.
    pub fn hold<T>(&self, work: impl FnOnce(&mut Guest) -> T) -> T {
        self.shared.wish(Wish::HoldStill);
        let done = work(&mut lock(&self.shared.guest));
        self.shared.wish(Wish::Work);
        done
    }

    /// Ends the guest between two steps.
    ///
    /// # Errors
    /// Why the guest had ended before.
    pub fn stop(mut self) -> Result<History, DemoError> {
        self.end()?;
        Ok(self.history().clone())
    }

    /// Ends a guest whose host has died under it.
    #[must_use]
    pub fn lost(mut self) -> History {
        // That its disks are gone is what its last request has found out.
        let _ = self.end();
        self.history().clone()
    }

    fn end(&mut self) -> Result<(), DemoError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.shared.wish(Wish::Stop);
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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
                let wish = lock(&self.wish);
                let waited = self
                    .changed
                    .wait_timeout_while(wish, REST, |wish| *wish == Wish::Work);
                let (wish, _) = waited.unwrap_or_else(PoisonError::into_inner);
                let waited = self
                    .changed
                    .wait_while(wish, |wish| *wish == Wish::HoldStill);
                if *waited.unwrap_or_else(PoisonError::into_inner) == Wish::Stop {
                    return Ok(());
                }
            }
            lock(&self.guest).step()?;
        }
    }

    fn wish(&self, wish: Wish) {
        *lock(&self.wish) = wish;
        self.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
