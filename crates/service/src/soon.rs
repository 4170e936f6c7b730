//! Parts of the store that are being built.
#![allow(dead_code, missing_debug_implementations)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{DiskId, Lineage, RelationshipId, Sequence, Timestamp, VmId};
use lifeboat_store::{FailoverDisk, Refused, StartedDisk, Store, StoreError};
use lifeboat_sys::disk::DiskPort;

pub(crate) struct StoreAdoption {
    pub relationship: RelationshipId,
    pub lineage: Lineage,
    pub ancestors: Vec<Lineage>,
    pub abandoned: Lineage,
    pub drawn: Sequence,
}

#[derive(Debug)]
pub(crate) struct LiveCommit;

impl LiveCommit {
    pub(crate) fn copy(&self, _: Option<&[(DiskId, Range<u64>)]>) -> Result<(), StoreError> {
        Err(Refused::Reopen.into())
    }
}

pub(crate) trait Soon: Sized {
    fn divergence(&self) -> Result<Option<Vec<(DiskId, Vec<Range<u64>>)>>, StoreError> {
        Err(Refused::Reopen.into())
    }
    fn rejoin(&mut self, _: &StoreAdoption, _: Timestamp) -> Result<(), StoreError> {
        Err(Refused::Reopen.into())
    }
    fn adopt(
        _: Arc<dyn DiskPort>,
        _: &Path,
        _: VmId,
        _: &StoreAdoption,
        _: &[(DiskId, PathBuf)],
        _: Timestamp,
        _: &str,
    ) -> Result<Self, StoreError> {
        Err(Refused::Reopen.into())
    }
    fn begin_live_commit(
        &mut self,
        _: &[(DiskId, Arc<FailoverDisk>)],
    ) -> Result<LiveCommit, StoreError> {
        Err(Refused::Reopen.into())
    }
    fn finish_live_commit(
        &mut self,
        _: LiveCommit,
        _: &[(DiskId, Range<u64>)],
    ) -> Result<Vec<StartedDisk>, StoreError> {
        Err(Refused::Reopen.into())
    }
    fn flatten(&mut self, _: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        Err(Refused::Reopen.into())
    }
}

impl Soon for Store {}
