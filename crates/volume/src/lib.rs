//! Disks served over NBD with change tracking.
//!
//! A [`Volume`] is the disks of one VM, each a sparse raw file and a read-write NBD
//! export. It marks every block that is written, and freezes all disks at one instant:
//! a [`FrozenView`] is offered as read-only exports, with a bitmap of what has changed
//! since the view before, while the guest writes on.
//!
//! ```text
//!   guest -> live export -> mark block -> view open and block not saved? save the old one -> file
//!   capture -> frozen export -> block saved? scratch file : file, then look again
//! ```
//!
//! Promised: a view shows every disk exactly as it was when [`Volume::freeze`] swapped the
//! maps, with all writes that had been answered by then and none that was begun
//! afterwards. Writers wait for that swap only. A marked block may hold what it held
//! before; a block that has changed is always marked. When old blocks cannot be saved any
//! more, the view breaks: its readers get errors, the guest goes on, nothing is forgotten.
//!
//! Not promised: the marks live in memory as long as the [`Volume`]. A new one knows nothing
//! of what happened before, so its first view has no bitmap and must be captured whole.

mod error;
mod live;
mod map;
mod view;
mod view_disk;
mod volume;

pub use error::{BreakReason, FreezeError, ReleaseError, VolumeError};
pub use view::{Changes, FrozenView, Outcome};
pub use volume::{BITMAP, Volume, VolumeDisk, VolumePlan, create_disk};
