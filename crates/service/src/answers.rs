//! What this host says to its peers, and what it takes from their messages.

use lifeboat_hypervisor::VmDefinition;
use lifeboat_model::Sequence;
use lifeboat_model::settings::ReplicationSettings;
use lifeboat_peer::{CopiedDisk, CopyKind, CopyProgress, PeerName, Refusal, RefusalCode};
use lifeboat_store::{CopyStatus, Heads, Store, StoreError};

use crate::vm::VmArc;

/// The largest definition or settings that a peer may send, in bytes of JSON.
const MAX_DOCUMENT: usize = 64 << 10;

/// A store's answer, or our own.
#[derive(Debug)]
pub(crate) enum StoreRefusal {
    Store(StoreError),
    Said(Refusal),
}

impl From<StoreError> for StoreRefusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Refuses as busy what is asked about a moment that the heads do not hold now.
pub(crate) fn refuse_unless_at(
    store: &Store,
    moment: Option<Sequence>,
) -> Result<(), StoreRefusal> {
    let Some(moment) = moment else { return Ok(()) };
    if store.heads() == Heads::Consistent(moment) {
        return Ok(());
    }
    Err(StoreRefusal::Said(refusal(
        RefusalCode::Busy,
        &format!("the replica's newest state is not moment {moment}; ask again when it is applied"),
    )))
}

/// What a store's error is to the peer.
pub(crate) fn code_of(error: &StoreError) -> RefusalCode {
    match error {
        StoreError::Refused(refused) => match refused {
            lifeboat_store::Refused::UnknownBase { .. }
            | lifeboat_store::Refused::OtherBase { .. }
            | lifeboat_store::Refused::OtherContent { .. }
            | lifeboat_store::Refused::TooOld { .. }
            | lifeboat_store::Refused::NotInitial => RefusalCode::NotContinuous,
            lifeboat_store::Refused::OtherLineage { .. } => RefusalCode::OtherLineage,
            _ => RefusalCode::InvalidState,
        },
        StoreError::DiskFull { .. } => RefusalCode::Full,
        StoreError::Delta { .. } => RefusalCode::Invalid,
        StoreError::Io { .. } | StoreError::Damaged { .. } => RefusalCode::Failed,
    }
}

pub(crate) fn progress_of(status: &CopyStatus) -> CopyProgress {
    CopyProgress {
        copy: status.sequence,
        kind: match status.kind {
            lifeboat_store::CopyKind::Initial => CopyKind::Initial,
            lifeboat_store::CopyKind::Resync => CopyKind::Resync,
            lifeboat_store::CopyKind::ByMaps => CopyKind::ByMaps,
        },
        disks: status
            .disks
            .iter()
            .map(|(id, done)| CopiedDisk {
                id: id.clone(),
                done: done.clone(),
            })
            .collect(),
    }
}

pub(crate) fn key_of(text: &str) -> Result<[u8; 32], Refusal> {
    let wrong = || refusal(RefusalCode::Invalid, "the key is not 64 hexadecimal digits");
    let mut key = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(wrong());
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(pair).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(key)
}

pub(crate) fn settings_of(value: &serde_json::Value) -> Result<ReplicationSettings, Refusal> {
    bounded(value)?;
    serde::Deserialize::deserialize(value)
        .map_err(|error| refusal(RefusalCode::Invalid, &format!("read the settings: {error}")))
}

pub(crate) fn definition_of(value: &serde_json::Value) -> Result<VmDefinition, Refusal> {
    bounded(value)?;
    serde::Deserialize::deserialize(value).map_err(|error| {
        refusal(
            RefusalCode::Invalid,
            &format!("read the VM's definition: {error}"),
        )
    })
}

fn bounded(value: &serde_json::Value) -> Result<(), Refusal> {
    if value.to_string().len() > MAX_DOCUMENT {
        return Err(refusal(
            RefusalCode::Invalid,
            "the settings and the definition may have 64 KiB each",
        ));
    }
    Ok(())
}

pub(crate) fn refusal(code: RefusalCode, message: &str) -> Refusal {
    Refusal {
        code,
        message: message.to_owned(),
    }
}

pub(crate) fn not_authorized(caller: &PeerName) -> Refusal {
    refusal(
        RefusalCode::NotAuthorized,
        &format!(
            "no authorization entry of this host lets {caller} in; add one here with `lifeboat authorization add {caller} --storage FOLDER --trust-group NAME`"
        ),
    )
}

/// Why nothing can be said of a store, with what its operator sees of it.
pub(crate) fn store_is_closed(vm: &VmArc) -> Refusal {
    let trouble = vm.core().facts.trouble.clone();
    let why = trouble.map_or_else(
        || "its operator must look".to_owned(),
        |trouble| trouble.what,
    );
    refusal(
        RefusalCode::Failed,
        &format!("the replica's store cannot be opened: {why}"),
    )
}

pub(crate) fn unknown_relationship() -> Refusal {
    refusal(
        RefusalCode::NotFound,
        "this host knows no such relationship",
    )
}
