//! What the demo did and found, for programs and for people.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_model::{DiskId, Sequence};
use serde::Serialize;

use super::check::Comparison;
use super::guest::DISKS;
use crate::size::Bytes;

/// Everything that the demo measured and compared.
#[derive(Debug, Serialize)]
pub struct Report {
    pub disks: Vec<Disk>,
    pub cycles: Vec<Cycle>,
    /// Processes that were killed while they applied a delta.
    pub kills: Vec<Kill>,
    /// Changed at the primary after the last moment that the replica has, in bytes.
    pub unreplicated_bytes: u64,
    pub failovers: Vec<Failover>,
    pub comparisons: Vec<Comparison>,
    pub total: Total,
    /// Where the disks and the store are; absent when they were removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
pub struct Disk {
    pub disk: DiskId,
    pub size: u64,
}

/// One turn of replication: one frozen moment, from the VM to the replica.
#[derive(Debug, Clone, Serialize)]
pub struct Cycle {
    pub sequence: Sequence,
    /// In whole blocks of 4 KiB; all of the disks in the first cycle.
    pub changed_bytes: u64,
    /// The length of the delta stream.
    pub travelled_bytes: u64,
    /// How long the guest was kept from writing.
    pub frozen_ms: f64,
    pub capture_ms: f64,
    pub receive_ms: f64,
    /// From the freeze to the replica's receipt: what a loss of the primary could cost.
    pub safe_after_ms: f64,
    /// Absent when the delta was left waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_ms: Option<f64>,
}

/// A process that was killed while it applied a delta.
#[derive(Debug, Clone, Serialize)]
pub struct Kill {
    /// Which of its changes to the file system it was about to make.
    pub call: u64,
    /// How long opening the store took afterwards.
    pub recovery_ms: f64,
    pub points_compared: usize,
    /// What comparing them found.
    pub verdict: String,
}

/// A failover and its end.
#[derive(Debug, Clone, Serialize)]
pub struct Failover {
    pub sequence: Sequence,
    /// From the order to images that a VM can be started on.
    pub ready_ms: f64,
    /// From the order to the first bytes read over NBD.
    pub served_ms: f64,
    pub end: End,
}

/// What became of a failover.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum End {
    Reverted {
        revert_ms: f64,
    },
    Committed {
        commit_ms: f64,
        written_bytes: u64,
        shared_bytes: u64,
    },
}

/// All comparisons together.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Total {
    pub comparisons: usize,
    pub bytes: u64,
    pub bytes_while_applying: u64,
    pub files: usize,
    pub wrong_bytes: u64,
    /// Comparisons that found a difference.
    pub failed: usize,
    pub seconds: f64,
}

impl Report {
    #[must_use]
    pub fn new() -> Self {
        let disk = |plan: &super::guest::DiskPlan| Disk {
            disk: plan.id(),
            size: plan.size,
        };
        Self {
            disks: DISKS.iter().map(disk).collect(),
            cycles: Vec::new(),
            kills: Vec::new(),
            unreplicated_bytes: 0,
            failovers: Vec::new(),
            comparisons: Vec::new(),
            total: Total::default(),
            folder: None,
        }
    }

    /// Adds everything up, when all is done.
    pub fn add_up(&mut self, elapsed: Duration) {
        let sum =
            |what: &dyn Fn(&Comparison) -> u64| -> u64 { self.comparisons.iter().map(what).sum() };
        self.total = Total {
            comparisons: self.comparisons.len(),
            bytes: sum(&|comparison| comparison.bytes),
            bytes_while_applying: sum(&|comparison| comparison.bytes_while_applying),
            files: self.comparisons.iter().map(|one| one.files).sum(),
            wrong_bytes: sum(&|comparison| comparison.wrong_bytes),
            failed: self.differences().count(),
            seconds: ms(elapsed) / 1000.0,
        };
    }

    /// The comparisons that found a difference.
    pub fn differences(&self) -> impl Iterator<Item = &Comparison> {
        let comparisons = self.comparisons.iter();
        comparisons.filter(|comparison| comparison.first.is_some())
    }

    /// What was shown, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let deltas = || self.cycles.iter().skip(1);
        let changed: u64 = deltas().map(|cycle| cycle.changed_bytes).sum();
        let travelled: u64 = deltas().map(|cycle| cycle.travelled_bytes).sum();
        let per_byte = travelled as f64 / changed.max(1) as f64;
        let longest = |what: &dyn Fn(&Cycle) -> f64| deltas().map(what).fold(0.0, f64::max);
        let mut text = format!(
            "  changed     {} in {} cycles after the first; {} travelled, {per_byte:.2} per changed byte\n",
            Bytes(changed),
            deltas().count(),
            Bytes(travelled),
        );
        text.push_str(&format!(
            "  guest       kept from writing for {:.1} ms at most; a moment is safe at the replica after\n              \
             {:.0} ms at most\n",
            longest(&|cycle| cycle.frozen_ms),
            longest(&|cycle| cycle.safe_after_ms),
        ));
        let total = &self.total;
        text.push_str(&format!(
            "  compared    {} times, {} ({} of it while a delta was applied), {} files\n",
            total.comparisons,
            Bytes(total.bytes),
            Bytes(total.bytes_while_applying),
            total.files,
        ));
        if total.failed == 0 {
            text.push_str("  wrong bytes 0\n");
        } else {
            text.push_str(&format!(
                "  wrong bytes {} in {} comparisons:\n",
                total.wrong_bytes, total.failed
            ));
        }
        for comparison in self.differences() {
            if let Some(first) = &comparison.first {
                text.push_str(&format!("    {}: {first}\n", comparison.what));
            }
        }
        text
    }
}

/// The headings of the table of cycles.
pub const CYCLE_HEADINGS: &str =
    "  cycle    changed  travelled   frozen   capture   receive     apply   recovery point\n";

impl Cycle {
    /// A line of the table of cycles.
    #[must_use]
    pub fn line(&self) -> String {
        let (apply, point) = match self.apply_ms {
            Some(apply) => (format!("{apply:6.0} ms"), self.sequence.to_string()),
            None => ("  waiting".to_owned(), "-".to_owned()),
        };
        format!(
            "  {:>5} {:>10} {:>10} {:5.1} ms {:6.0} ms {:6.0} ms {apply}   {point:>14}\n",
            self.sequence,
            Bytes(self.changed_bytes).to_string(),
            Bytes(self.travelled_bytes).to_string(),
            self.frozen_ms,
            self.capture_ms,
            self.receive_ms,
        )
    }
}

/// Milliseconds, to the microsecond.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
