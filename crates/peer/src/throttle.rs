//! Bounds how many bytes a second leave this host.
//!
//! A [`Throttle`] is shared by all transfers it bounds, and a transfer may be bounded by
//! several: its VM's and the host's. Time comes from a [`Pace`], so that what is promised
//! here can be shown without waiting for it.

use std::fmt::Debug;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cancel::Cancel;

/// Time that passes, and a way to let it pass.
pub trait Pace: Send + Sync + Debug {
    /// Time since some fixed moment; never less than before.
    fn elapsed(&self) -> Duration;

    /// Returns when about so much more time has passed.
    fn wait(&self, time: Duration);
}

/// [`Pace`] by a clock of the caller's; waits by sleeping.
pub struct SleepingPace<C> {
    clock: C,
}

impl<C: Fn() -> Duration + Send + Sync> SleepingPace<C> {
    /// `clock` tells the time since some fixed moment, monotonic.
    pub fn new(clock: C) -> Self {
        Self { clock }
    }
}

impl<C> Debug for SleepingPace<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SleepingPace").finish_non_exhaustive()
    }
}

impl<C: Fn() -> Duration + Send + Sync> Pace for SleepingPace<C> {
    fn elapsed(&self) -> Duration {
        (self.clock)()
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// How fast bytes may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    Unlimited,
    BytesPerSecond(NonZeroU64),
}

/// A bound that several transfers share. Over any time at least as long as
/// [`Throttle::BURST`], they take together at most the rate times that time, plus one burst.
#[derive(Debug)]
pub struct Throttle {
    pace: Arc<dyn Pace>,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// What may go at once; below zero, what has gone too early. In bytes.
    tokens: i128,
    /// Up to when tokens were added. A part of a byte that remained is in `fraction`.
    filled: Duration,
    /// In billionths of a byte.
    fraction: u128,
}

/// The longest wait before the rate and the cancellation are looked at again.
const SLICE: Duration = Duration::from_millis(50);
const SMALLEST_BURST: u64 = 4 << 10;
/// A read is never cut into smaller parts than fit into this.
const LARGEST_READ: u64 = 1 << 20;
const NANOS: u128 = 1_000_000_000;

impl Throttle {
    /// How long bytes may be saved up while nothing goes.
    pub const BURST: Duration = Duration::from_millis(100);

    #[must_use]
    pub fn new(rate: Rate, pace: Arc<dyn Pace>) -> Self {
        let filled = pace.elapsed();
        Self {
            pace,
            bucket: Mutex::new(Bucket {
                rate,
                tokens: 0,
                filled,
                fraction: 0,
            }),
        }
    }

    #[must_use]
    pub fn rate(&self) -> Rate {
        self.lock().rate
    }

    /// Changes the rate, for transfers that run as well: they notice within 50 ms.
    pub fn change(&self, rate: Rate) {
        let now = self.pace.elapsed();
        let mut bucket = self.lock();
        bucket.fill(now);
        bucket.rate = rate;
        bucket.tokens = bucket.tokens.min(i128::from(burst(rate)));
    }

    /// The most that one read takes, so that transfers which share the rate take turns.
    fn portion(&self) -> u64 {
        burst(self.lock().rate).min(LARGEST_READ)
    }

    fn charge(&self, bytes: u64) {
        let now = self.pace.elapsed();
        let mut bucket = self.lock();
        bucket.fill(now);
        if bucket.rate != Rate::Unlimited {
            bucket.tokens -= i128::from(bytes);
        }
    }

    /// How long nothing more may go; nothing when something may.
    fn pause(&self) -> Option<Duration> {
        let now = self.pace.elapsed();
        let mut bucket = self.lock();
        bucket.fill(now);
        match bucket.rate {
            Rate::Unlimited => None,
            Rate::BytesPerSecond(_) if bucket.tokens >= 0 => None,
            Rate::BytesPerSecond(rate) => {
                let debt = bucket.tokens.unsigned_abs();
                let nanos = debt.saturating_mul(NANOS).div_ceil(u128::from(rate.get()));
                Some(Duration::from_nanos(
                    u64::try_from(nanos).unwrap_or(u64::MAX),
                ))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        // Nothing panics while it holds the lock.
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled);
        self.filled = self.filled.max(now);
        match self.rate {
            Rate::Unlimited => {
                self.tokens = 0;
                self.fraction = 0;
            }
            Rate::BytesPerSecond(rate) => {
                let grown = passed
                    .as_nanos()
                    .saturating_mul(u128::from(rate.get()))
                    .saturating_add(self.fraction);
                self.fraction = grown % NANOS;
                let whole = i128::try_from(grown / NANOS).unwrap_or(i128::MAX);
                self.tokens = self
                    .tokens
                    .saturating_add(whole)
                    .min(i128::from(burst(self.rate)));
            }
        }
    }
}

fn burst(rate: Rate) -> u64 {
    match rate {
        Rate::Unlimited => LARGEST_READ,
        Rate::BytesPerSecond(rate) => (rate.get() / 10).max(SMALLEST_BURST),
    }
}

/// A body that leaves no faster than all of its throttles allow, and ends when it is
/// cancelled.
#[derive(Debug)]
pub struct ThrottledRead<R> {
    body: R,
    throttles: Vec<Arc<Throttle>>,
    cancel: Cancel,
}

/// Why a read ended that was cancelled; the cause inside the [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transfer was cancelled")]
pub struct Cancelled;

impl<R: Read> ThrottledRead<R> {
    #[must_use]
    pub fn new(body: R, throttles: Vec<Arc<Throttle>>, cancel: Cancel) -> Self {
        Self {
            body,
            throttles,
            cancel,
        }
    }

    /// Waits until every throttle lets something go.
    fn wait(&self) -> io::Result<()> {
        loop {
            if self.cancel.is_raised() {
                return Err(io::Error::other(Cancelled));
            }
            let longest = self
                .throttles
                .iter()
                .filter_map(|throttle| Some((throttle.pause()?, throttle)))
                .max_by_key(|(pause, _)| *pause);
            match longest {
                None => return Ok(()),
                Some((pause, throttle)) => throttle.pace.wait(pause.min(SLICE)),
            }
        }
    }
}

impl<R: Read> Read for ThrottledRead<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.wait()?;
        let portion = self
            .throttles
            .iter()
            .map(|throttle| throttle.portion())
            .min()
            .and_then(|portion| usize::try_from(portion).ok())
            .unwrap_or(into.len());
        let length = into.len().min(portion);
        let read = self.body.read(&mut into[..length])?;
        for throttle in &self.throttles {
            throttle.charge(read as u64);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that passes only when somebody waits.
    #[derive(Debug, Default)]
    struct Frozen {
        now: Mutex<Duration>,
    }

    impl Pace for Frozen {
        fn elapsed(&self) -> Duration {
            *self.now.lock().unwrap()
        }

        fn wait(&self, time: Duration) {
            *self.now.lock().unwrap() += time;
        }
    }

    fn rate(bytes: u64) -> Rate {
        Rate::BytesPerSecond(NonZeroU64::new(bytes).unwrap())
    }

    fn throttle(bytes: u64, pace: &Arc<Frozen>) -> Arc<Throttle> {
        Arc::new(Throttle::new(
            rate(bytes),
            Arc::clone(pace) as Arc<dyn Pace>,
        ))
    }

    fn take(reader: &mut impl Read, mut bytes: u64) {
        let mut buffer = vec![0; 1 << 20];
        while bytes > 0 {
            let most = buffer.len().min(usize::try_from(bytes).unwrap());
            bytes -= reader.read(&mut buffer[..most]).unwrap() as u64;
        }
    }

    fn assert_about(took: Duration, expected: Duration) {
        let (took, expected) = (took.as_secs_f64(), expected.as_secs_f64());
        assert!(
            (took / expected - 1.0).abs() < 0.02,
            "{took} s instead of {expected} s"
        );
    }

    #[test]
    fn bytes_leave_at_the_rate() {
        for bytes in [1_000, 100_000, 125_000_000, 1_000_000_000] {
            let pace = Arc::new(Frozen::default());
            let mut reader =
                ThrottledRead::new(io::repeat(0), vec![throttle(bytes, &pace)], Cancel::new());
            // As much as ten seconds allow, and the debt of the last read is not waited for.
            take(&mut reader, bytes * 10);
            take(&mut reader, 1);
            assert_about(pace.elapsed(), Duration::from_secs(10));
        }
    }

    #[test]
    fn transfers_that_share_a_throttle_share_its_rate() {
        let pace = Arc::new(Frozen::default());
        let host = throttle(1_000_000, &pace);
        let mut one = ThrottledRead::new(io::repeat(0), vec![Arc::clone(&host)], Cancel::new());
        let mut other = ThrottledRead::new(io::repeat(0), vec![host], Cancel::new());
        for _ in 0..50 {
            take(&mut one, 100_000);
            take(&mut other, 100_000);
        }
        assert_about(pace.elapsed(), Duration::from_secs(10));
    }

    #[test]
    fn the_lower_one_of_two_rates_rules() {
        for (host, vm) in [(1_000_000, 300_000), (300_000, 1_000_000)] {
            let pace = Arc::new(Frozen::default());
            let throttles = vec![throttle(host, &pace), throttle(vm, &pace)];
            let mut reader = ThrottledRead::new(io::repeat(0), throttles, Cancel::new());
            take(&mut reader, 3_000_000);
            assert_about(pace.elapsed(), Duration::from_secs(10));
        }
    }

    #[test]
    fn a_rate_can_be_changed_while_a_transfer_runs() {
        let pace = Arc::new(Frozen::default());
        let throttle = throttle(100_000, &pace);
        let throttles = vec![Arc::clone(&throttle)];
        let mut reader = ThrottledRead::new(io::repeat(0), throttles, Cancel::new());
        take(&mut reader, 1_000_000);
        assert_about(pace.elapsed(), Duration::from_secs(10));
        throttle.change(rate(1_000_000));
        take(&mut reader, 10_000_000);
        assert_about(pace.elapsed(), Duration::from_secs(20));
        throttle.change(Rate::Unlimited);
        let before = pace.elapsed();
        take(&mut reader, 1_000_000_000);
        assert_eq!(pace.elapsed(), before);
    }

    /// Somebody changes the rate or cancels while a reader waits.
    struct Acting {
        frozen: Frozen,
        act: Box<dyn Fn() + Send + Sync>,
    }

    impl Debug for Acting {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Acting").finish_non_exhaustive()
        }
    }

    impl Pace for Acting {
        fn elapsed(&self) -> Duration {
            self.frozen.elapsed()
        }

        fn wait(&self, time: Duration) {
            (self.act)();
            self.frozen.wait(time);
        }
    }

    #[test]
    fn a_waiting_transfer_ends_within_a_slice_when_it_is_cancelled() {
        let cancel = Cancel::new();
        let flag = cancel.clone();
        let pace = Arc::new(Acting {
            frozen: Frozen::default(),
            act: Box::new(move || flag.raise()),
        });
        let throttle = Arc::new(Throttle::new(rate(1), Arc::clone(&pace) as Arc<dyn Pace>));
        let mut reader = ThrottledRead::new(io::repeat(0), vec![throttle], cancel);
        let mut buffer = [0; 4096];
        assert_eq!(reader.read(&mut buffer).unwrap(), 4096);
        let error = reader.read(&mut buffer).unwrap_err();
        assert!(error.get_ref().is_some_and(|cause| cause.is::<Cancelled>()));
        assert!(pace.elapsed() <= SLICE);
    }

    #[test]
    fn what_was_not_used_is_saved_for_a_burst_only() {
        let pace = Arc::new(Frozen::default());
        let throttles = vec![throttle(1_000_000, &pace)];
        let mut reader = ThrottledRead::new(io::repeat(0), throttles, Cancel::new());
        pace.wait(Duration::from_secs(3600));
        take(&mut reader, 1_100_001);
        let took = pace.elapsed() - Duration::from_secs(3600);
        assert_about(took, Duration::from_secs(1));
    }

    #[test]
    fn a_clock_that_stands_still_or_an_absurd_rate_does_not_panic() {
        let pace = Arc::new(Frozen::default());
        let throttle = throttle(u64::MAX, &pace);
        pace.wait(Duration::from_secs(u64::MAX / 2));
        let mut reader = ThrottledRead::new(io::repeat(0), vec![throttle], Cancel::new());
        take(&mut reader, 10 << 20);
    }
}
