//! What a VM's worker does at the moment, for progress and for cancelling.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use lifeboat_peer::Cancel;

use crate::api;

/// Told to whatever runs for a while; shared by the worker and those who watch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Cancel);

impl Stop {
    pub(crate) fn now(&self) {
        self.0.raise();
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.is_raised()
    }

    pub(crate) fn flag(&self) -> Cancel {
        self.0.clone()
    }
}

/// How far the present work is.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    what: Mutex<Option<&'static str>>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Meter {
    pub(crate) fn begin(&self, what: &'static str, total: u64) {
        *self.what.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
        self.done.store(0, Ordering::SeqCst);
        self.total.store(total, Ordering::SeqCst);
    }

    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::SeqCst);
    }

    pub(crate) fn report(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::SeqCst);
        self.set(done);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::SeqCst);
    }

    pub(crate) fn end(&self) {
        *self.what.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn view(&self) -> Option<api::Activity> {
        let what = (*self.what.lock().unwrap_or_else(PoisonError::into_inner))?;
        let total = self.total.load(Ordering::SeqCst);
        Some(api::Activity {
            what: what.to_owned(),
            done_bytes: self.done.load(Ordering::SeqCst).min(total.max(1)),
            total_bytes: total,
        })
    }

    /// 0 to 100.
    pub(crate) fn percent(&self) -> u16 {
        let total = self.total.load(Ordering::SeqCst);
        let done = self.done.load(Ordering::SeqCst).min(total);
        (done * 100).checked_div(total).unwrap_or(0) as u16
    }
}
