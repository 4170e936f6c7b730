//! The rows of the benchmark.

mod apply;
mod capture;
mod commit_newest;
mod commit_oldest;
mod cycle;
mod digest;
mod failover_start;
mod fstrim;
mod idle;
mod initial_copy;
mod keep_up;
mod many_idle;
mod replica_io;
mod reversal;
mod start;
mod wire;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::place::Place;
use crate::report::RowReport;

/// Bytes in a MiB and a GiB.
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The recovery points that the budgets speak of.
const POINTS: usize = 24;

/// What a row has to work with.
#[derive(Debug)]
pub struct Setting {
    pub place: Place,
    /// On a file system that shares blocks.
    pub shared: Place,
    /// The program whose daemons are measured.
    pub program: PathBuf,
    pub runs: usize,
}

/// A row by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Start of a recovery point in QEMU
    Start,
    /// Commit of a failover to the newest point
    CommitNewest,
    /// Commit of a failover to the oldest of 24 points
    CommitOldest,
    /// Device reads and writes for each changed byte
    ReplicaIo,
    /// Speed of applying against the speed of receiving
    Apply,
    /// Reading a disk over NBD into a delta
    Capture,
    /// Bytes that travel for scattered small writes
    Wire,
    /// A cycle in which nothing changed, on 1 TiB
    Idle,
    /// Digests and the verification of a store
    Digest,
    /// A large discard
    Fstrim,
    /// Two hosts: the first copy of a disk
    InitialCopy,
    /// Two hosts: what one cycle costs
    Cycle,
    /// Two hosts: from the request of a failover to the running VM
    FailoverStart,
    /// Two hosts: reversal after a planned failover
    Reversal,
    /// Two hosts: applying keeps up with a VM that never rests
    KeepUp,
    /// Two hosts: 500 VMs that do nothing
    ManyIdle,
}

impl Row {
    /// Every row, in the order in which they are measured.
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::CommitNewest => "commit-newest",
            Self::CommitOldest => "commit-oldest",
            Self::ReplicaIo => "replica-io",
            Self::Apply => "apply",
            Self::Capture => "capture",
            Self::Wire => "wire",
            Self::Idle => "idle",
            Self::Digest => "digest",
            Self::Fstrim => "fstrim",
            Self::InitialCopy => "initial-copy",
            Self::Cycle => "cycle",
            Self::FailoverStart => "failover-start",
            Self::Reversal => "reversal",
            Self::KeepUp => "keep-up",
            Self::ManyIdle => "many-idle",
        }
    }

    /// Measures the row.
    pub fn measure(self, setting: &Setting) -> Result<RowReport> {
        let measure = match self {
            Self::Start => start::measure,
            Self::CommitNewest => commit_newest::measure,
            Self::CommitOldest => commit_oldest::measure,
            Self::ReplicaIo => replica_io::measure,
            Self::Apply => apply::measure,
            Self::Capture => capture::measure,
            Self::Wire => wire::measure,
            Self::Idle => idle::measure,
            Self::Digest => digest::measure,
            Self::Fstrim => fstrim::measure,
            Self::InitialCopy => initial_copy::measure,
            Self::Cycle => cycle::measure,
            Self::FailoverStart => failover_start::measure,
            Self::Reversal => reversal::measure,
            Self::KeepUp => keep_up::measure,
            Self::ManyIdle => many_idle::measure,
        };
        measure(setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_named_on_the_command_line_as_in_the_report() {
        for row in Row::all() {
            let value = row.to_possible_value().unwrap();
            assert_eq!(value.get_name(), row.name());
        }
    }
}
