//! The replica's store: one folder that holds a VM's replica and its recovery points.
//!
//! Promises
//! - A delta for which [`Store::receive`] gave a receipt is never lost and can be applied.
//! - Applying is all or nothing over all disks, whatever crashes when.
//! - Every recovery point reads byte for byte as the VM was at its moment, also while
//!   later deltas are being applied.
//! - [`Store::commit`] has one point of no return; from then on it always completes.
//!
//! Does not know hosts, networks, schedules or policy: who calls decides when a point is
//! due and which one may go. One process owns a store at a time.
//!
//! The only commit point is the journal (`journal.rs`); everything else is written before
//! the record that speaks of it. Opening a store always runs the same recovery, after a
//! crash or not. The file formats are described in `docs/store.md`.

mod apply;
mod blob;
mod boundary;
mod chunk;
mod chunk_memory;
mod commit;
mod copy;
mod damage;
mod digest;
mod divergence;
mod error;
mod failover;
mod files;
mod flatten;
mod image;
mod index;
mod journal;
mod keyed;
mod layered;
mod layout;
mod lineage;
mod live;
mod merge;
mod mixed;
mod note;
mod pin;
mod reader;
mod receive;
mod record;
mod recover;
mod reversal;
mod segment;
mod slice;
mod spool;
mod status;
mod store;
mod summary;
mod verifier;
mod verify;

pub use blob::Blob;
pub use boundary::Pin;
pub use chunk::{Chunk, ChunkError, ChunkPlace, MAX_CHUNK_BYTES, decode_chunk};
pub use chunk_memory::ChunkMemory;
pub use commit::Committed;
pub use copy::{CopyStatus, Heads, NewCopy};
pub use damage::Damage;
pub use divergence::DiskRanges;
pub use error::{Refused, StoreError};
pub use failover::{FailoverDisk, FailoverTarget, StartedDisk, StartedFailover};
pub use keyed::{
    DigestUnit, HeadDigester, KEYED_DIGEST_LEN, MAX_DIGESTED_BYTES, UnknownUnit, keyed_digest,
};
pub use live::LiveCommit;
pub use mixed::CopyKind;
pub use note::MAX_NOTE;
pub use pin::{BoundaryPin, ScratchDisk};
pub use reader::{PointReader, RangeKind};
pub use receive::{Intake, Part, Received, Receiving};
pub use record::History;
pub use reversal::{Adopted, Adoption, Reversal};
pub use status::{AppliedDelta, DiskStatus, Pending, Point, PointDisk, Role, SetApart, Status};
pub use store::{NewStore, Store};
pub use summary::{Peek, Standing, Summary};
pub use verifier::{Checked, Unread, Verifier, VerifyProgress};
pub use verify::{Finding, Rescanned, Verification};
