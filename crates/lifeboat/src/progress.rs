//! A progress indicator on the error output, if that is a terminal and people are to read.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::printable;

/// Shows how far a long operation is. Removes itself when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Counts bytes of an operation whose end is not known.
    #[must_use]
    pub fn bytes(what: &'static str) -> Self {
        // Draws nothing unless the error output is a terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{spinner} {msg} {bytes} ({bytes_per_sec})");
        bar.set_style(style.expect("BUG: the template is well formed"));
        bar.set_message(what);
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar }
    }

    /// Counts bytes up to `total`.
    #[must_use]
    pub fn bytes_of(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes} ({bytes_per_sec}, {eta})",
        );
        bar.set_style(style.expect("BUG: the template is well formed"));
        bar.set_message(what);
        Self { bar }
    }

    /// Counts hundredths of something, and says what it is doing.
    #[must_use]
    pub fn percent(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos} % {msg}");
        bar.set_style(style.expect("BUG: the template is well formed"));
        bar.set_prefix(printable(what));
        Self { bar }
    }

    /// So much is done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// What is done at the moment.
    pub fn say(&self, what: &str) {
        self.bar.set_message(printable(what));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
