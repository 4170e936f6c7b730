//! The edge to the operating system.
//!
//! Everything that the rest of Lifeboat asks of the kernel passes here: files and
//! folders ([`disk`], [`stamp`]), files as shared memory ([`mapping`]), large memory ([`memory`]), time ([`clock`]), programs
//! that are run ([`process`]), randomness and the identity of this boot ([`host`]). The only `unsafe` code of the project is in this crate, in the private
//! module `raw`.
//!
//! Knows nothing of replication, NBD or image formats.

pub mod clock;
pub mod disk;
pub mod host;
pub mod mapping;
pub mod memory;
pub mod process;
mod raw;
pub mod stamp;
