//! Disks served over NBD with change tracking.
//!
//! A [`Volume`] is the disks of one VM, each a [`RawImage`] or another
//! [`GuestDisk`](lifeboat_sys::disk::GuestDisk), and a read-write NBD
//! export. It marks every block that is written, and freezes all disks at one instant:
//! a [`FrozenView`] is offered as read-only exports, with a bitmap of what has changed.
//!
//! ```text
//!   guest -> live export -> mark block -> view open and block not saved? save the old one -> disk
//!   capture -> frozen export -> block saved? scratch file : disk, then look again
//! ```
//!
//! Promised: a view shows every disk exactly as it was when [`Volume::freeze`] swapped the
//! maps, with all writes that had been answered by then and none that was begun
//! afterwards. Writers wait for that swap only. A marked block may hold what it held
//! before; a block that has changed is always marked. When old blocks cannot be saved any
//! more, the view breaks: its readers get errors, the guest goes on, nothing is forgotten.
//! [`Volume::move_disks`] lets the disks stand on something else while the guest goes on.
//!
//! Marks live in memory as long as a [`Volume::open`], or in files that a [`Tracker`] keeps over
//! the end of the process, and believes only when nothing can be missing from them.

mod error;
mod extents;
mod live;
mod map;
mod map_file;
mod marks;
mod moving;
mod note;
mod raw_image;
mod tracker;
mod view;
mod view_disk;
mod volume;

pub use error::{BreakReason, FreezeError, MoveError, ReleaseError, TrackerError, VolumeError};
pub use marks::{MapSet, Marking};
pub use moving::Mover;
pub use raw_image::{ImageError, RawImage};
pub use tracker::{TrackedDisk, Tracker, TrackerState};
pub use view::{Changes, FrozenView, Outcome};
pub use volume::{
    BITMAP, Freeze, ViewPlan, Volume, VolumeDevice, VolumeDisk, VolumePlan, create_disk,
};
