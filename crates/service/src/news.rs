//! Waiting for events.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The newest event's number, and those who wait for one.
#[derive(Debug, Default)]
pub(crate) struct News {
    newest: Mutex<u64>,
    rises: Condvar,
}

impl News {
    pub(crate) fn tell(&self, id: u64) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *newest = (*newest).max(id);
        self.rises.notify_all();
    }

    /// Waits until there is an event after `since`; answers the newest one's number.
    pub(crate) fn wait(&self, since: u64, patience: Duration) -> u64 {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let (newest, _) = self
            .rises
            .wait_timeout_while(newest, patience, |newest| *newest <= since)
            .unwrap_or_else(PoisonError::into_inner);
        *newest
    }
}
