//! What the service notes beside each store, so that a lost catalog can be made again from the
//! stores: the VM's definition, and of its relationship what the store itself does not know.
//!
//! The catalog is what counts; a note may be behind it by the last change before a crash, and
//! is brought after it when the store is opened.

use lifeboat_hypervisor::VmDefinition;
use lifeboat_model::RelationshipId;
use lifeboat_model::retention::HistoryPromises;
use lifeboat_model::settings::ReplicationSettings;
use serde::{Deserialize, Serialize};

use crate::relation::{PeerPlace, Relation};
use crate::service::{Service, with_causes};
use crate::vm::{Core, Task, Vm, VmArc};

const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    format: u32,
    pub(crate) definition: VmDefinition,
    /// Absent for a VM that is not replicated.
    pub(crate) relationship: Option<NotedRelationship>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotedRelationship {
    pub(crate) id: RelationshipId,
    /// The name that the other host's certificate proves.
    pub(crate) peer_host: String,
    /// `host:port`.
    pub(crate) peer_address: String,
    pub(crate) trust_group: String,
    pub(crate) settings: ReplicationSettings,
    pub(crate) promises: HistoryPromises,
}

/// A note that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusableNote {
    #[error("read the note")]
    Json { source: serde_json::Error },
    #[error("it is of format {format}, and this version knows {FORMAT}")]
    Format { format: u32 },
}

impl Note {
    pub(crate) fn new(definition: &VmDefinition, relation: Option<&Relation>) -> Self {
        Self {
            format: FORMAT,
            definition: definition.clone(),
            relationship: relation.map(|relation| NotedRelationship {
                id: relation.record().relationship,
                peer_host: relation.peer.host.clone(),
                peer_address: relation.peer.address.clone(),
                trust_group: relation.trust_group.clone(),
                settings: relation.settings.clone(),
                promises: relation.saved.promises.clone(),
            }),
        }
    }

    fn of(core: &Core) -> Self {
        Self::new(&core.definition, core.relation())
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let text = serde_json::to_vec_pretty(self);
        text.expect("BUG: a note can be written as JSON")
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, UnusableNote> {
        #[derive(Deserialize)]
        struct AnyFormat {
            format: u32,
        }
        let json = |source| UnusableNote::Json { source };
        let AnyFormat { format } = serde_json::from_slice(bytes).map_err(json)?;
        if format != FORMAT {
            return Err(UnusableNote::Format { format });
        }
        serde_json::from_slice(bytes).map_err(json)
    }
}

impl NotedRelationship {
    pub(crate) fn peer(&self) -> PeerPlace {
        PeerPlace {
            host: self.peer_host.clone(),
            address: self.peer_address.clone(),
        }
    }
}

impl Service {
    /// Notes beside a VM's open store what the catalog says of the VM now. Replication goes on
    /// without a note, so a failure is told only.
    pub(crate) fn note_beside_store(&self, vm: &Vm) {
        let note = Note::of(&vm.core());
        let held = vm.store();
        if let Some(replica) = held.as_ref()
            && let Err(error) = replica.store.keep_note(&note.to_bytes())
        {
            tracing::warn!(vm = %vm.id, "note what the VM is beside its store: {}", with_causes(&error));
        }
    }

    /// Has the worker do that, where somebody waits for an answer.
    pub(crate) fn note_soon(&self, vm: &VmArc) {
        self.work_on(vm, [Task::Note]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        let text = r#"{
            "format": 1,
            "definition": {
                "format": 1,
                "vm": "0102030405060708090a0b0c0d0e0f10",
                "name": "web",
                "memory_mib": 64,
                "processors": 1,
                "firmware": "bios",
                "adapters": [],
                "disks": [{"id": "vda", "size": 1048576, "bus": "virtio"}]
            },
            "relationship": null
        }"#;
        Note::from_bytes(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_note_reads_back_as_it_was_written() {
        assert_eq!(Note::from_bytes(&note().to_bytes()).unwrap(), note());
    }

    #[test]
    fn a_note_of_another_version_or_with_names_that_are_paths_is_not_used() {
        let text = String::from_utf8(note().to_bytes()).unwrap();
        let newer = text.replacen("\"format\": 1", "\"format\": 2", 1);
        let newer = Note::from_bytes(newer.as_bytes()).unwrap_err();
        assert!(matches!(newer, UnusableNote::Format { format: 2 }));
        for (from, to) in [
            ("\"vda\"", "\"../../etc/shadow\""),
            ("\"web\"", "\"we\\u001bb\""),
            (
                "\"relationship\": null",
                "\"relationship\": null, \"run\": \"sh\"",
            ),
            ("0102030405", "zz02030405"),
        ] {
            let wrong = text.replacen(from, to, 1);
            assert_ne!(wrong, text);
            let wrong = Note::from_bytes(wrong.as_bytes());
            assert!(matches!(wrong, Err(UnusableNote::Json { .. })), "{to}");
        }
    }
}
