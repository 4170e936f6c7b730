//! Test tooling, never part of the product.
//!
//! A [`ShadowVm`] is what a test knows of a VM by its own writing: the bytes of its disks now
//! and at every moment it was captured. It makes delta streams from its own log of what it
//! wrote, never by asking code under test, and compares what a store says with what it knows.

mod compare;
mod copy;
mod folder;
mod operation;
mod qemu;
mod random;
mod shadow;
mod volume;

pub use compare::{compare_point, compare_points, read_failover_disk, read_file};
pub use copy::{copy_piece, copy_rest, decode_piece};
pub use folder::copy_folder;
pub use operation::{Depth, Facts, Operation, Prepared};
pub use qemu::{check_image, compare_image, qemu_io, run_tool};
pub use random::Random;
pub use shadow::{Activity, ShadowVm};
pub use volume::{Filler, SmallVolume};
