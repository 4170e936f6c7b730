//! Time, for those at the edge who may ask for it.
//!
//! Wall time labels things for people. Waiting and measuring use [`Stopwatch`], which
//! a changed clock does not move. Code below the edge takes moments as arguments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lifeboat_model::Timestamp;

/// The wall clock's time now; the epoch if the clock stands before it.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "this is the edge that the ban points to"
)]
pub fn wall() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
}

/// Time passed since it was started, by the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the edge that the ban points to"
    )]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
