//! The plain facts every part of Lifeboat shares: identifiers, sizes, moments.
//!
//! Nothing here does I/O, reads a clock or knows a wire format. A value of one
//! of these types has already been checked: whoever holds a [`DiskId`] may use it
//! as a file name, whoever holds a [`DiskSize`] may multiply without overflow.

pub mod authorization;
mod bandwidth;
mod calendar;
pub mod contract;
pub mod datetime;
mod day;
mod disk;
pub mod health;
mod hex;
mod host;
mod id;
mod invalid;
mod lineage;
mod moment;
pub mod relationship;
pub mod retention;
pub mod schedule;
pub mod service_settings;
pub mod settings;
pub mod statistics;

pub use bandwidth::{
    BandwidthLimit, MAX_BANDWIDTH, MAX_BANDWIDTH_WINDOWS, MIN_BANDWIDTH, Rate,
    UncheckedBandwidthLimit, UncheckedBandwidthWindow,
};
pub use day::{DayWindow, InvalidDayWindow, InvalidTimeOfDay, TimeOfDay, UtcOffset};
pub use disk::{
    BLOCK_SIZE, DiskId, DiskSize, InvalidDiskId, InvalidDiskSize, MAX_DISK_SIZE, MAX_DISKS,
    SECTOR_SIZE,
};
pub use host::{ConnectionPoint, HostName, InvalidHostName};
pub use id::{DeltaId, InvalidId, LineageId, RelationshipId, Sequence, VmId};
pub use invalid::{InvalidField, InvalidFields};
pub use lineage::{Lineage, Receipt};
pub use moment::{Consistency, Timestamp};
