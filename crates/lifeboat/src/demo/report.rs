//! What the drill did and found, for programs and for people.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::check::Comparison;
use super::history::Lost;
use crate::output::Table;
use crate::size::Bytes;

/// Everything that the drill measured and proved.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub phases: Vec<Phase>,
    pub cycles: Vec<Cycle>,
    pub failovers: Vec<Failover>,
    pub reversals: Vec<Reversal>,
    /// Disks that were compared byte for byte with what the guest wrote.
    pub comparisons: Vec<Comparison>,
    /// What else must hold.
    pub proofs: Vec<Proof>,
    pub total: Total,
    /// Where everything is; absent when it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

/// A part of the drill.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub seconds: f64,
    /// What passed between the two hosts, both ways, with everything that TLS adds.
    pub wire_bytes: u64,
}

/// A moment that reached the replica.
#[derive(Debug, Clone, Serialize)]
pub struct Cycle {
    pub sequence: u64,
    /// What the guest wrote since the moment before was seen to arrive, in bytes.
    pub written_bytes: u64,
    /// What passed between the hosts in that time, in bytes.
    pub wire_bytes: u64,
    /// From the arrival of the moment before to this one's, as they were seen.
    pub after_seconds: f64,
}

/// A failover, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Failover {
    pub what: &'static str,
    /// The host that took over.
    pub to: &'static str,
    /// From the order to the first bytes that a guest read from the started VM.
    pub rto_ms: f64,
    /// What the guest had been answered and is not there.
    pub lost: Loss,
    pub end: End,
}

/// What a failover lost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Loss {
    /// From the first lost request to the end of the host.
    pub rpo_seconds: f64,
    pub requests: usize,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum End {
    Reverted { revert_ms: f64 },
    CommittedRunning { commit_ms: f64 },
    CommittedOff { commit_ms: f64 },
    Reversed,
}

/// A swap of the two roles.
#[derive(Debug, Clone, Serialize)]
pub struct Reversal {
    pub what: &'static str,
    pub by: By,
    pub seconds: f64,
    pub wire_bytes: u64,
    /// All of both disks.
    pub disk_bytes: u64,
}

/// How it was found out what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Maps,
    Digests,
}

/// Something that must hold, and whether it did.
#[derive(Debug, Clone, Serialize)]
pub struct Proof {
    pub what: &'static str,
    pub holds: bool,
    pub found: String,
}

#[derive(Debug, Default, Clone, Serialize)]
pub struct Total {
    pub comparisons: usize,
    pub bytes: u64,
    pub wrong_bytes: u64,
    pub proofs: usize,
    /// Comparisons and proofs that failed.
    pub failed: usize,
    pub wire_bytes: u64,
    pub seconds: f64,
}

impl From<Lost> for Loss {
    fn from(lost: Lost) -> Self {
        Self {
            rpo_seconds: lost.time.as_secs_f64(),
            requests: lost.requests,
            bytes: lost.bytes,
        }
    }
}

impl By {
    const fn word(self) -> &'static str {
        match self {
            Self::Maps => "maps",
            Self::Digests => "digests",
        }
    }
}

impl End {
    fn text(self) -> String {
        match self {
            Self::Reverted { revert_ms } => format!("reverted in {revert_ms:.0} ms"),
            Self::CommittedRunning { commit_ms } => {
                format!("committed in {commit_ms:.0} ms, the VM running")
            }
            Self::CommittedOff { commit_ms } => {
                format!("committed in {commit_ms:.0} ms, the VM off")
            }
            Self::Reversed => "kept by the reversal".to_owned(),
        }
    }
}

impl Report {
    /// Adds everything up, when all is done.
    pub fn add_up(&mut self, elapsed: Duration) {
        self.total = Total {
            comparisons: self.comparisons.len(),
            bytes: self.comparisons.iter().map(|one| one.bytes).sum(),
            wrong_bytes: self.comparisons.iter().map(|one| one.wrong_bytes).sum(),
            proofs: self.proofs.len(),
            failed: self.failures().len(),
            wire_bytes: self.phases.iter().map(|phase| phase.wire_bytes).sum(),
            seconds: elapsed.as_secs_f64(),
        };
    }

    /// What failed, in words.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let comparisons = self.comparisons.iter().filter_map(|one| {
            let first = one.first.as_ref()?;
            Some(format!("{}: {first}", one.what))
        });
        let proofs = self.proofs.iter().filter(|proof| !proof.holds);
        let proofs = proofs.map(|proof| format!("{}: {}", proof.what, proof.found));
        comparisons.chain(proofs).collect()
    }

    /// What was shown, for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut phases = Table::new(&["PHASE", "TIME", "ON THE WIRE"]);
        for phase in &self.phases {
            phases.row([
                phase.name.to_owned(),
                format!("{:.1} s", phase.seconds),
                Bytes(phase.wire_bytes).to_string(),
            ]);
        }
        let mut failovers = Table::new(&["FAILOVER", "TO", "RPO", "LOST", "RTO", "END"]);
        for failover in &self.failovers {
            failovers.row([
                failover.what.to_owned(),
                failover.to.to_owned(),
                format!("{:.1} s", failover.lost.rpo_seconds),
                Bytes(failover.lost.bytes).to_string(),
                format!("{:.0} ms", failover.rto_ms),
                failover.end.text(),
            ]);
        }
        let mut reversals = Table::new(&["REVERSAL", "BY", "TIME", "ON THE WIRE", "DISKS"]);
        for reversal in &self.reversals {
            reversals.row([
                reversal.what.to_owned(),
                reversal.by.word().to_owned(),
                format!("{:.1} s", reversal.seconds),
                Bytes(reversal.wire_bytes).to_string(),
                Bytes(reversal.disk_bytes).to_string(),
            ]);
        }
        let mut compared = Table::new(&["COMPARED BYTE FOR BYTE", "REQUESTS", "BYTES", "WRONG"]);
        for one in &self.comparisons {
            compared.row([
                one.what.clone(),
                one.requests.to_string(),
                Bytes(one.bytes).to_string(),
                one.wrong_bytes.to_string(),
            ]);
        }
        let mut proofs = Table::new(&["PROVED", "HOLDS", "FOUND"]);
        for proof in &self.proofs {
            proofs.row([
                proof.what.to_owned(),
                crate::output::yes_no(proof.holds).to_owned(),
                proof.found.clone(),
            ]);
        }
        let tables = [phases, failovers, reversals, compared, proofs];
        let tables: Vec<String> = tables.iter().map(Table::render).collect();
        format!("{}\n{}", tables.join("\n"), self.verdict())
    }

    fn verdict(&self) -> String {
        let total = &self.total;
        let mut text = format!(
            "{} compared in {} comparisons, {} wrong bytes; {} of {} proofs and comparisons hold\n",
            Bytes(total.bytes),
            total.comparisons,
            total.wrong_bytes,
            total.comparisons + total.proofs - total.failed,
            total.comparisons + total.proofs,
        );
        for failure in self.failures() {
            text.push_str(&format!("  FAILED  {failure}\n"));
        }
        text
    }
}

/// The headings of the table of cycles.
pub const CYCLE_HEADINGS: &str =
    "  moment   the guest wrote   on the wire   after the one before\n";

impl Cycle {
    /// A line of the table of cycles.
    #[must_use]
    pub fn line(&self) -> String {
        format!(
            "  {:>6} {:>17} {:>13} {:>20.1} s\n",
            self.sequence,
            Bytes(self.written_bytes).to_string(),
            Bytes(self.wire_bytes).to_string(),
            self.after_seconds,
        )
    }
}

/// Milliseconds, to the microsecond.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
