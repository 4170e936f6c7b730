//! Time, as the service asks for it: wall time for labels, monotonic time for waiting.

use std::fmt::Debug;
use std::time::Duration;

use lifeboat_model::{Timestamp, UtcOffset};
use lifeboat_sys::clock::{self, Stopwatch};

/// The service's clocks. Tests have their own.
pub trait Clock: Send + Sync + Debug {
    /// A label for people; may jump.
    fn wall(&self) -> Timestamp;

    /// Since some instant of the past; never goes back.
    fn monotonic(&self) -> Duration;

    /// How far local time is ahead of UTC now: windows of the day are local.
    fn utc_offset(&self) -> UtcOffset;
}

/// The clocks of this host.
#[derive(Debug)]
pub struct SystemClock {
    since: Stopwatch,
}

impl SystemClock {
    #[must_use]
    pub fn new() -> Self {
        Self {
            since: Stopwatch::start(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        clock::wall()
    }

    fn monotonic(&self) -> Duration {
        self.since.elapsed()
    }

    fn utc_offset(&self) -> UtcOffset {
        clock::utc_offset(self.wall())
    }
}
