//! The numbers of the management contract, as named types.
//!
//! Every enumeration has the names and numbers of the CIM schema
//! (`root\virtualization\v2`); what the schema calls by several names has the one in
//! `GLOSSARY.md`. A number that the schema does not have is refused with a
//! [`UnknownNumber`] that names the property.

mod authentication;
mod error;
mod job;
mod number;
mod operation;
mod state;
mod virtual_system;

pub use authentication::{AllowedAuthenticationType, AuthenticationType};
pub use error::{ErrorType, PerceivedSeverity};
pub use job::{JobState, JobType};
pub use number::UnknownNumber;
pub use operation::{InitialReplicationType, RequestedState, ReturnCode};
pub use state::{FailoverType, PointKind, ReplicationHealth, ReplicationMode, ReplicationState};
pub use virtual_system::EnabledState;
