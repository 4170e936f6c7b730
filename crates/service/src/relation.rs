//! One relationship as the service holds it: the record, and what belongs to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lifeboat_model::relationship::{Record, Role};
use lifeboat_model::retention::HistoryPromises;
use lifeboat_model::settings::ReplicationSettings;
use lifeboat_model::{DiskId, Lineage, Receipt, Sequence, Timestamp};
use lifeboat_peer::ChangedSince;
use serde::{Deserialize, Serialize};

/// The format of [`Saved`] in the catalogue.
pub(crate) const FORMAT: u32 = 1;

/// What is saved together, at every step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    pub(crate) record: Record,
    /// What people see of the last replication; labels only.
    pub(crate) last: LastReplication,
    /// What the old primary's maps say; used by the copy that follows a swap of the roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reversal: Option<Reversal>,
    /// The replica's side: this moment is the last one of a planned failover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) planned_moment: Option<Sequence>,
    /// The replica's side: what points were promised by settings that are no longer so.
    #[serde(default)]
    pub(crate) promises: HistoryPromises,
    /// The newest moment that the survivor had when it failed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tip_at_failover: Option<Sequence>,
    /// Images that are to become the heads of a store; while this is set, that is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) adopting: Option<Adopting>,
    /// The primary's side: a reversal has relied on maps, and the comparison of everything that
    /// follows has come so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verifying: Option<Verifying>,
}

/// A comparison of everything that goes on in the background.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verifying {
    /// Of each disk, how many bytes from its beginning on are compared; a disk that is missing
    /// was not begun.
    pub(crate) done: BTreeMap<DiskId, u64>,
}

/// When things happened, by this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LastReplication {
    pub(crate) replicated_at: Option<Timestamp>,
    pub(crate) applied_at: Option<Timestamp>,
    pub(crate) application_consistent_at: Option<Timestamp>,
    pub(crate) planned: bool,
    /// When the newest moment that the replica has was frozen, by the primary's clock.
    pub(crate) captured_at: Option<Timestamp>,
    pub(crate) tested_at: Option<Timestamp>,
}

/// An old primary's disks on their way into a replica's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Adopting {
    /// Raw images; empty where the disks are in a store already.
    pub(crate) images: Vec<(DiskId, PathBuf)>,
    /// The moment that names what they hold.
    pub(crate) moment: Sequence,
    /// The lineage that was left behind.
    pub(crate) abandoned: Lineage,
}

/// What a reversal works with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reversal {
    /// The old primary's maps; absent when they are not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) changed: Option<ChangedSince>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) why_unknown: Option<String>,
}

/// A relationship of a VM.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    pub(crate) saved: Saved,
    /// By which the next save proves that nothing was saved between.
    pub(crate) version: lifeboat_catalog::RecordVersion,
    pub(crate) settings: ReplicationSettings,
    pub(crate) peer: PeerPlace,
    /// The store's folder, on the replica's side and wherever the VM's disks are in one.
    pub(crate) storage: Option<PathBuf>,
    /// Of the authorization entry under which the replica was made; empty on the primary.
    pub(crate) trust_group: String,
}

/// The other host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerPlace {
    /// The name that its certificate proves.
    pub(crate) host: String,
    /// `host:port`.
    pub(crate) address: String,
}

impl Saved {
    /// A new record with nothing known yet.
    pub(crate) fn new(record: Record) -> Self {
        Self {
            record,
            last: LastReplication::default(),
            reversal: None,
            planned_moment: None,
            promises: HistoryPromises::default(),
            tip_at_failover: None,
            adopting: None,
            verifying: None,
        }
    }
}

impl Relation {
    pub(crate) fn record(&self) -> &Record {
        &self.saved.record
    }

    pub(crate) fn is_primary(&self) -> bool {
        match self.saved.record.role {
            Role::Primary(_) => true,
            Role::Replica(_) => false,
        }
    }

    /// The last receipt, on the primary's side.
    pub(crate) fn last_receipt(&self) -> Option<Receipt> {
        match &self.saved.record.role {
            Role::Primary(primary) => primary.last_receipt(),
            Role::Replica(_) => None,
        }
    }
}
