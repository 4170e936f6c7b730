//! What a server offers, and who is using it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::context::ContextName;
use crate::extent::Extent;
use crate::protocol::{MAX_PAYLOAD, MAX_STRING};
use crate::wire::Wire;

/// Who may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// Whether zeroing may free the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holes {
    Allowed,
    /// The space stays allocated: later writes there cannot fail for want of it.
    Forbidden,
}

/// In which units an export is used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granularity {
    /// A power of two from 1 to 64 KiB; clients are held to it.
    pub minimum: u32,
    /// A power of two from 512 (and `minimum`) to 32 MiB.
    pub preferred: u32,
}

impl Default for Granularity {
    /// Any byte, best 4 KiB.
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
        }
    }
}

/// A disk to be served. Methods are called from several threads at once, with ranges
/// that lie inside the disk and keep to its granularity. An error is told to the
/// client with the closest NBD error and its text.
pub trait Export: Send + Sync {
    /// In bytes; asked once, when the export is added.
    fn size(&self) -> u64;

    /// Asked once, when the export is added. Nothing that changes the disk is called
    /// on an export that is read-only.
    fn access(&self) -> Access;

    /// Asked once, when the export is added.
    fn granularity(&self) -> Granularity;

    /// The maps on offer; asked once, when the export is added. With
    /// `base:allocation` among them, what it calls zero is not read.
    fn contexts(&self) -> Vec<ContextName>;

    /// Fills `into`, whose old content has no meaning.
    ///
    /// # Errors
    /// When any byte of it cannot be read.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Visible to every connection when it returns, durable after [`Export::flush`].
    ///
    /// # Errors
    /// Any part may then have been written.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// As [`Export::write`] with zeroes.
    ///
    /// # Errors
    /// Any part may then have been zeroed.
    fn write_zeroes(&self, offset: u64, length: u64, holes: Holes) -> io::Result<()>;

    /// The range is not needed any more; what it reads as afterwards is open.
    ///
    /// # Errors
    /// Any part may then have been discarded.
    fn trim(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Returns when every change that had returned before the call, on any
    /// connection, is durable.
    ///
    /// # Errors
    /// Nothing is then known to be durable.
    fn flush(&self) -> io::Result<()>;

    /// The first extents of one of [`Export::contexts`] from `offset` on: without gaps,
    /// none empty, at least 1 and at most `limit`. They may end before the range does,
    /// and the last may go beyond it.
    ///
    /// # Errors
    /// When the map cannot be told.
    fn extents(
        &self,
        context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>>;
}

/// The exports of a server, by name. Clones share the same set; it may change while
/// servers run.
#[derive(Debug, Clone, Default)]
pub struct ExportSet {
    entries: Arc<RwLock<BTreeMap<String, Arc<Entry>>>>,
}

/// An export could not be added or removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportSetError {
    #[error("add export {name:?}: the name is taken")]
    NameTaken { name: String },
    #[error("add an export: its name must have at most {MAX_STRING} bytes and no NUL")]
    Name,
    #[error("add export {name:?}: {size} bytes are larger than any offset")]
    Size { name: String, size: u64 },
    #[error("add export {name:?}: impossible granularity {granularity:?}")]
    Granularity {
        name: String,
        granularity: Granularity,
    },
    #[error("remove export {name:?}: there is none")]
    Unknown { name: String },
    #[error("remove export {name:?}: {users} of its users did not end in time")]
    Busy {
        name: String,
        /// Connections, and calls of this process.
        users: usize,
    },
}

/// An export, with the answers it gave once.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) export: Arc<dyn Export>,
    pub(super) size: u64,
    pub(super) access: Access,
    pub(super) granularity: Granularity,
    pub(super) contexts: Vec<ContextName>,
    retired: AtomicBool,
    roster: Arc<Roster>,
}

/// Who uses an export.
#[derive(Debug, Default)]
struct Roster {
    users: Mutex<Users>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Users {
    /// Connections.
    sessions: HashMap<u64, Arc<dyn Wire>>,
    /// Calls of this process.
    visits: usize,
}

impl Users {
    fn count(&self) -> usize {
        self.sessions.len() + self.visits
    }
}

/// A connection that uses an export, until it is dropped. The order of the fields
/// matters: the export is let go before the roster says so.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) entry: Arc<Entry>,
    _place: Place,
}

/// A call of this process into an export, until it is dropped. The order of the fields matters
/// as it does for a [`Session`].
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) entry: Arc<Entry>,
    _place: Place,
}

/// A line in a roster.
#[derive(Debug)]
struct Place {
    roster: Arc<Roster>,
    /// Of a connection; a visit has none.
    id: Option<u64>,
}

impl ExportSet {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers `export` under `name`; the empty name is the default export.
    ///
    /// # Errors
    /// When the name is taken or impossible, or the export contradicts the protocol.
    pub fn add(&self, name: &str, export: Arc<dyn Export>) -> Result<(), ExportSetError> {
        if name.len() > MAX_STRING || name.contains('\0') {
            return Err(ExportSetError::Name);
        }
        let (size, granularity) = (export.size(), export.granularity());
        let name = name.to_owned();
        if i64::try_from(size).is_err() {
            return Err(ExportSetError::Size { name, size });
        }
        let Granularity { minimum, preferred } = granularity;
        let possible = minimum.is_power_of_two()
            && minimum <= 65_536
            && preferred.is_power_of_two()
            && preferred >= minimum.max(512)
            && preferred <= MAX_PAYLOAD;
        if !possible {
            return Err(ExportSetError::Granularity { name, granularity });
        }
        let entry = Entry {
            name: name.clone(),
            size,
            granularity,
            access: export.access(),
            contexts: export.contexts(),
            export,
            retired: AtomicBool::new(false),
            roster: Arc::default(),
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.contains_key(&name) {
            return Err(ExportSetError::NameTaken { name });
        }
        entries.insert(name, Arc::new(entry));
        Ok(())
    }

    /// Withdraws an export: new clients do not find it, connections that use it answer
    /// what they have received and end; after `grace` they are cut. When this returns
    /// `Ok`, no connection holds the export any more, and no call of a [`LocalExport`] is in it.
    ///
    /// [`LocalExport`]: crate::LocalExport
    ///
    /// # Errors
    /// When there is no such export, or a call into it does not return; it is withdrawn
    /// nevertheless.
    pub fn remove(&self, name: &str, grace: Duration) -> Result<(), ExportSetError> {
        let entry = self
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name)
            .ok_or_else(|| ExportSetError::Unknown {
                name: name.to_owned(),
            })?;
        entry.retire(grace)
    }

    /// The names on offer, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Entry>> {
        self.entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }
}

impl Entry {
    /// Registers a connection; nothing when the export has been withdrawn.
    pub(super) fn enter(self: &Arc<Self>, id: u64, wire: Arc<dyn Wire>) -> Option<Session> {
        let mut users = self.roster.users();
        if self.is_retired() {
            return None;
        }
        users.sessions.insert(id, wire);
        Some(Session {
            entry: Arc::clone(self),
            _place: self.place(Some(id)),
        })
    }

    /// Registers a call of this process; nothing when the export has been withdrawn.
    pub(super) fn visit(self: &Arc<Self>) -> Option<Visit> {
        let mut users = self.roster.users();
        if self.is_retired() {
            return None;
        }
        users.visits += 1;
        Some(Visit {
            entry: Arc::clone(self),
            _place: self.place(None),
        })
    }

    fn place(&self, id: Option<u64>) -> Place {
        Place {
            roster: Arc::clone(&self.roster),
            id,
        }
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    fn retire(&self, grace: Duration) -> Result<(), ExportSetError> {
        let mut users = self.roster.users();
        self.retired.store(true, Ordering::Release);
        for wire in users.sessions.values() {
            wire.stop_receiving();
        }
        users = self.roster.wait_until_empty(users, grace);
        for wire in users.sessions.values() {
            wire.close();
        }
        users = self.roster.wait_until_empty(users, grace);
        match users.count() {
            0 => Ok(()),
            left => Err(ExportSetError::Busy {
                name: self.name.clone(),
                users: left,
            }),
        }
    }
}

impl Roster {
    fn wait_until_empty<'a>(
        &self,
        users: MutexGuard<'a, Users>,
        grace: Duration,
    ) -> MutexGuard<'a, Users> {
        self.left
            .wait_timeout_while(users, grace, |users| users.count() > 0)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.roster.users();
        match self.id {
            Some(id) => {
                users.sessions.remove(&id);
            }
            None => users.visits -= 1,
        }
        drop(users);
        self.roster.left.notify_all();
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
