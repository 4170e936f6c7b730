//! How many things happen at once.

use std::sync::{Condvar, Mutex, PoisonError};

/// A number of places; who has none waits.
#[derive(Debug)]
pub(crate) struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One place, until dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    places: &'a Places,
}

impl Places {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count.max(1)),
            freed: Condvar::new(),
        }
    }

    /// Waits for a place.
    pub(crate) fn take(&self) -> Place<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self
                .freed
                .wait(free)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Place { places: self }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self
            .places
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += 1;
        self.places.freed.notify_one();
    }
}
