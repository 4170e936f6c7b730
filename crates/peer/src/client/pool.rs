//! Warm connections, a few to each peer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::pki_types::ServerName;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Patience;
use super::connection::{self, Connection};
use super::error::Failure;
use crate::address::PeerAddress;
use crate::tls::ReloadableTls;

/// Unused connections to one peer; several streams may run in parallel, and more
/// connections than these are closed after use.
const WARM: usize = 4;

/// Where a connection leads, and who proved to be there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) address: PeerAddress,
    pub(super) name: ServerName<'static>,
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) runtime: Handle,
    pub(super) tls: ReloadableTls,
    pub(super) patience: Patience,
    warm: Mutex<HashMap<Target, Vec<Connection>>>,
}

impl Pool {
    pub(super) fn new(runtime: Handle, tls: ReloadableTls, patience: Patience) -> Self {
        Self {
            runtime,
            tls,
            patience,
            warm: Mutex::new(HashMap::new()),
        }
    }

    /// A warm connection if there is one that is likely to be good yet.
    pub(super) fn warm(&self, target: &Target) -> Option<Connection> {
        let number = self.tls.number();
        let mut warm = self.lock();
        self.sweep(&mut warm, number);
        let connections = warm.get_mut(target)?;
        let found = connections.pop();
        if connections.is_empty() {
            warm.remove(target);
        }
        found
    }

    pub(super) async fn fresh(&self, target: &Target) -> Result<Connection, Failure> {
        // The number is read first: a configuration that is replaced meanwhile makes the
        // connection too old, never too new.
        let number = self.tls.number();
        let tls = self.tls.present();
        let name = target.name.clone();
        connection::open(&target.address, name, &tls, number, self.patience.connect).await
    }

    /// Keeps a connection whose last answer is complete.
    pub(super) fn keep(&self, target: &Target, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.used = true;
        connection.since = Instant::now();
        let number = self.tls.number();
        let mut warm = self.lock();
        self.sweep(&mut warm, number);
        let connections = warm.entry(target.clone()).or_default();
        if connections.len() < WARM && connection.number == number {
            connections.push(connection);
        }
    }

    /// Closes what was unused for long, is closed, or was made under another configuration.
    fn sweep(&self, warm: &mut HashMap<Target, Vec<Connection>>, number: u64) {
        warm.retain(|_, connections| {
            connections.retain(|connection| {
                connection.number == number
                    && !connection.sender.is_closed()
                    && connection.since.elapsed() < self.patience.idle
            });
            !connections.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Vec<Connection>>> {
        // Nothing panics while it holds the lock.
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
