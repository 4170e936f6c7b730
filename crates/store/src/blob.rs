//! What a delta carries besides disks: VM definition, firmware variables, TPM state.
//!
//! A blob is kept once, under its BLAKE3, for as long as the newest moment or a recovery
//! point refers to it. A delta that carries none of a kind leaves the one in force.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_model::{DeltaId, Sequence};
use lifeboat_stream::{BlobKind, Entry, PayloadDecoder};
use lifeboat_sys::disk::{Access, DiskFile};
use serde::{Deserialize, Serialize};

use crate::damage::Damage;
use crate::error::{IoContext, StoreError};
use crate::files;
use crate::spool::{self, ScanError};
use crate::store::Store;

/// A blob that the store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlobRef {
    pub(crate) kind: KeptKind,
    /// The owner's version of the bytes.
    pub(crate) format: u16,
    pub(crate) len: u64,
    /// BLAKE3 of the bytes; also the name of the file.
    pub(crate) digest: DeltaId,
}

/// [`BlobKind`], as the journal writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeptKind {
    Nvram,
    Tpm,
    Definition,
}

impl From<BlobKind> for KeptKind {
    fn from(kind: BlobKind) -> Self {
        match kind {
            BlobKind::Nvram => Self::Nvram,
            BlobKind::Tpm => Self::Tpm,
            BlobKind::Definition => Self::Definition,
        }
    }
}

/// A blob's bytes with the owner's version of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub format: u16,
    pub bytes: Vec<u8>,
}

impl Store {
    /// The blob of a kind that belongs to a recovery point, if one was ever sent.
    ///
    /// # Errors
    /// [`Refused::NoPoint`](crate::Refused::NoPoint), or the file is missing or damaged.
    pub fn point_blob(
        &self,
        sequence: Sequence,
        kind: BlobKind,
    ) -> Result<Option<Blob>, StoreError> {
        let blobs = &self.point_segment(sequence)?.blobs;
        self.read_blob(blobs, kind)
    }

    /// The blob of a kind that belongs to what the heads hold.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn blob(&self, kind: BlobKind) -> Result<Option<Blob>, StoreError> {
        self.read_blob(&self.state.blobs, kind)
    }

    fn read_blob(&self, blobs: &[BlobRef], kind: BlobKind) -> Result<Option<Blob>, StoreError> {
        let Some(kept) = blobs.iter().find(|blob| blob.kind == kind.into()) else {
            return Ok(None);
        };
        let path = self.layout.blob(&kept.digest);
        let file = self
            .disk
            .open(&path, Access::ReadOnly)
            .context("open", &path)?;
        let found = file.len().context("measure", &path)?;
        if found != kept.len {
            let damage = Damage::Length {
                found,
                expected: kept.len,
            };
            return Err(StoreError::Damaged { path, damage });
        }
        let mut bytes = vec![0; kept.len as usize];
        file.read_at(&mut bytes, 0).context("read", &path)?;
        if digest_of(&bytes) != kept.digest {
            return Err(StoreError::Damaged {
                path,
                damage: Damage::Digest { block: 0 },
            });
        }
        Ok(Some(Blob {
            format: kept.format,
            bytes,
        }))
    }

    /// Keeps the blobs of a spooled delta, durably, and answers with those in force after it.
    pub(crate) fn keep_blobs(
        &self,
        spooled: &Arc<dyn DiskFile>,
    ) -> Result<Vec<BlobRef>, ScanOrStore> {
        let mut blobs = self.state.blobs.clone();
        for (kind, format, bytes) in blobs_of(spooled)? {
            let digest = digest_of(&bytes);
            let path = self.layout.blob(&digest);
            if self.disk.kind(&path).context("look up", &path)?.is_none() {
                files::replace(self.disk.as_ref(), &self.layout.new_blob(), &path, &bytes)?;
            }
            blobs.retain(|blob| blob.kind != kind);
            blobs.push(BlobRef {
                kind,
                format,
                len: bytes.len() as u64,
                digest,
            });
        }
        Ok(blobs)
    }

    /// The files of all blobs that something refers to.
    pub(crate) fn blobs_in_use(&self) -> Vec<PathBuf> {
        let of_points = self
            .state
            .segments
            .iter()
            .flat_map(|segment| &segment.blobs);
        let all = self.state.blobs.iter().chain(of_points);
        all.map(|blob| self.layout.blob(&blob.digest)).collect()
    }
}

/// Reading the spool failed, or writing to the store did.
pub(crate) enum ScanOrStore {
    Scan(ScanError),
    Store(StoreError),
}

impl From<ScanError> for ScanOrStore {
    fn from(error: ScanError) -> Self {
        Self::Scan(error)
    }
}

impl From<StoreError> for ScanOrStore {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn digest_of(bytes: &[u8]) -> DeltaId {
    DeltaId::from_bytes(*blake3::hash(bytes).as_bytes())
}

/// All blobs of a spooled delta. The format bounds them to 64 MiB in all.
fn blobs_of(file: &Arc<dyn DiskFile>) -> Result<Vec<(KeptKind, u16, Vec<u8>)>, ScanError> {
    let mut scan = spool::open_scan(file)?;
    let mut blobs: Vec<(KeptKind, u16, Vec<u8>)> = Vec::new();
    let mut decoder = PayloadDecoder::new().map_err(std::io::Error::other)?;
    let mut stored = Vec::new();
    // Blobs come before all ranges of disks.
    while let Some(Entry::Blob {
        kind,
        format,
        offset,
        payload,
        ..
    }) = scan.next_entry()?
    {
        stored.resize(payload.stored_len as usize, 0);
        file.read_at(&mut stored, payload.position)?;
        let plain = decoder
            .decode(&payload, &stored)
            .map_err(|source| spool::damaged_payload(&payload, source))?;
        match blobs.last_mut() {
            Some((_, _, bytes)) if offset > 0 => bytes.extend_from_slice(plain),
            _ => blobs.push((kind.into(), format, plain.to_vec())),
        }
    }
    Ok(blobs)
}
