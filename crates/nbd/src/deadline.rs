//! A moment after which waiting is an error.

use std::io;
use std::time::{Duration, Instant};

/// A moment on the monotonic clock, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Waiting has no end.
    pub const NEVER: Self = Self(None);

    /// `wait` from now. A wait too long for the clock never ends.
    #[must_use]
    pub fn after(wait: Duration) -> Self {
        Self(now().checked_add(wait))
    }

    /// What is left: `None` for ever, zero when the moment has passed.
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|moment| moment.saturating_duration_since(now()))
    }

    /// True once the moment has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }

    /// The earlier of both.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }

    pub(crate) fn expired() -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, "the deadline has passed")
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the edge: how long a socket may keep us waiting is measured here and nowhere else"
)]
fn now() -> Instant {
    Instant::now()
}
