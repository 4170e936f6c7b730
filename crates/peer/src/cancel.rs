//! A flag by which somebody ends calls that run in other threads.

use std::sync::Arc;

use tokio::sync::watch;

/// Raised once, seen by everybody who has a clone.
#[derive(Debug, Clone)]
pub struct Cancel {
    raised: Arc<watch::Sender<bool>>,
}

impl Cancel {
    #[must_use]
    pub fn new() -> Self {
        Self {
            raised: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Ends what watches this flag, soon; what begins later ends at once.
    pub fn raise(&self) {
        self.raised.send_replace(true);
    }

    #[must_use]
    pub fn is_raised(&self) -> bool {
        *self.raised.borrow()
    }

    /// Ends when the flag is raised.
    pub(crate) async fn raised(&self) {
        // The sender is in `self`, so the wait ends with the flag and not otherwise.
        let _ = self.raised.subscribe().wait_for(|raised| *raised).await;
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}
