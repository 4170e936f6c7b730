//! One watch over the service's events for everybody who waits for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_service::api::Operations;
use tokio::sync::watch;

/// How long the service is asked to wait for an event at a time: how late the watch can notice
/// that nobody waits any more.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells everybody who waits that there are new events. While nobody waits, nothing runs.
#[derive(Clone)]
pub(crate) struct EventFeed {
    operations: Arc<dyn Operations>,
    newest: watch::Sender<u64>,
    running: Arc<Mutex<bool>>,
}

impl EventFeed {
    pub(crate) fn new(operations: Arc<dyn Operations>) -> Self {
        Self {
            operations,
            newest: watch::Sender::new(0),
            running: Arc::new(Mutex::new(false)),
        }
    }

    /// Watches from now on. What the receiver shows is a hint that there may be more; the events
    /// themselves come from the service.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        let receiver = self.newest.subscribe();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if !*running {
            *running = true;
            let feed = self.clone();
            tokio::task::spawn_blocking(move || feed.watch());
        }
        receiver
    }

    /// Waits for events until nobody else does.
    fn watch(&self) {
        // Also when the service panics: the next who waits starts the watch again.
        let _stopped = Stopped(&self.running);
        loop {
            let seen = *self.newest.borrow();
            let newest = self.operations.wait_for_events(seen, PATIENCE);
            self.newest.send_if_modified(|known| {
                let changed = *known != newest;
                *known = newest;
                changed
            });
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if self.newest.receiver_count() == 0 {
                *running = false;
                return;
            }
        }
    }
}

struct Stopped<'a>(&'a Mutex<bool>);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
        }
    }
}
