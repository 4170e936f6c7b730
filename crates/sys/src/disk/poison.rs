//! The memory of a failed sync.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// The handle may not be written any more: a sync failed before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "write to a file whose sync failed before; what reached the disk is unknown until the store is opened again"
)]
pub struct Poisoned;

/// Set by the first failed sync of a handle, never cleared.
#[derive(Debug, Default)]
pub(super) struct Poison(AtomicBool);

impl Poison {
    /// Fails if a sync failed before.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Acquire) {
            Err(io::Error::other(Poisoned))
        } else {
            Ok(())
        }
    }

    /// Passes on the outcome of a sync and remembers a failure.
    pub(super) fn after_sync(&self, outcome: io::Result<()>) -> io::Result<()> {
        if outcome.is_err() {
            self.0.store(true, Ordering::Release);
        }
        outcome
    }
}
