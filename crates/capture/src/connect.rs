//! Opening the exports of a view.

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize};
use lifeboat_nbd::{Client, ClientOptions, ConnectError, ContextName};
use lifeboat_stream::Kind;

use crate::capture::{CapturePlan, Source};
use crate::error::CaptureError;

/// Bytes per read request: with 16 under way, 8 MiB of memory.
const REQUEST_SIZE: u32 = 512 << 10;

/// One disk of the view, open.
#[derive(Debug)]
pub(crate) struct OpenDisk {
    pub(crate) id: DiskId,
    pub(crate) size: DiskSize,
    pub(crate) client: Client,
    /// Absent when the server cannot tell; everything is read then.
    pub(crate) allocation: Option<ContextName>,
    /// Absent when the whole disk is wanted.
    pub(crate) changes: Option<ContextName>,
    /// What offsets and lengths of requests are multiples of: whole blocks, or more if
    /// the server demands it.
    pub(crate) unit: u64,
}

/// Opens every disk of the plan, or none.
pub(crate) fn open_disks(plan: &CapturePlan) -> Result<Vec<OpenDisk>, CaptureError> {
    for source in &plan.sources {
        if let (Kind::Initial, Some(bitmap)) = (plan.header.kind, &source.bitmap) {
            return Err(CaptureError::InitialByBitmap {
                disk: source.disk.clone(),
                bitmap: bitmap.clone(),
            });
        }
    }
    plan.sources
        .iter()
        .map(|source| open_disk(plan, source))
        .collect()
}

fn open_disk(plan: &CapturePlan, source: &Source) -> Result<OpenDisk, CaptureError> {
    let Source { disk, uri, bitmap } = source;
    let changes = bitmap
        .as_deref()
        .map(ContextName::dirty_bitmap)
        .transpose()
        .map_err(|source| CaptureError::BitmapName {
            disk: disk.clone(),
            source,
        })?;
    let allocation = ContextName::allocation();
    let mut options = ClientOptions {
        contexts: std::iter::once(allocation.clone())
            .chain(changes.clone())
            .collect(),
        tls: plan.tls.clone(),
        deadline: plan.deadline,
        max_in_flight: plan.depth.max(1),
        request_size: REQUEST_SIZE,
        ..ClientOptions::default()
    };
    let client = match Client::connect(uri, &options) {
        // A whole disk can be read from a server that knows no maps.
        Err(ConnectError::SimpleRepliesOnly | ConnectError::Contexts { .. })
            if changes.is_none() =>
        {
            options.contexts.clear();
            Client::connect(uri, &options)
        }
        other => other,
    }
    .map_err(|source| CaptureError::Connect {
        disk: disk.clone(),
        uri: Box::new(uri.clone()),
        source: Box::new(source),
    })?;
    let granted = |wanted: &ContextName| client.contexts().any(|context| context == wanted);
    if let (Some(context), Some(bitmap)) = (&changes, bitmap)
        && !granted(context)
    {
        return Err(CaptureError::BitmapMissing {
            disk: disk.clone(),
            uri: Box::new(uri.clone()),
            bitmap: bitmap.clone(),
        });
    }
    let size = DiskSize::try_from(client.size()).map_err(|source| CaptureError::Size {
        disk: disk.clone(),
        uri: Box::new(uri.clone()),
        source,
    })?;
    let allocation = granted(&allocation).then_some(allocation);
    let unit = BLOCK_SIZE.max(u64::from(client.block_sizes().minimum));
    Ok(OpenDisk {
        id: disk.clone(),
        size,
        client,
        allocation,
        changes,
        unit,
    })
}
