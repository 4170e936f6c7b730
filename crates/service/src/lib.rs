//! Replication as a service: one owner for each VM, jobs, schedules, rules.
//!
//! Promises
//! - What an operator was told is saved before: a state, a job, a setting. A crash between
//!   saving and acting is made good by acting again, on the ordinary path.
//! - Each VM has one owner (`Vm`): events are decided one after the other, saved,
//!   and only then acted upon. Work that takes time is done by one worker a VM, in order.
//! - A peer's word moves nothing that its certificate, its authorization entry and the
//!   lineages do not allow.
//!
//! Does not know HTTP or SOAP: front doors use [`api::Operations`], peers the trait
//! `lifeboat_peer::Host`. What runs VMs is behind `lifeboat_hypervisor::Hypervisor`.
//!
//! ```text
//! operator, peer, timer --event--> decide (model) --saved--> effects --> worker --event-->
//! ```

pub mod api;

mod activity;
mod adoption;
mod answers;
mod audit;
mod boot;
mod check;
mod clock;
mod config;
mod copy;
mod counters;
mod cycle;
mod failover;
mod health;
mod host;
mod jobs;
mod kept_replica;
mod ledger;
mod limits;
mod manage;
mod mending;
mod news;
mod note;
mod operations;
mod rebuild;
mod rejection;
mod relation;
mod replica;
mod requests;
mod scheduler;
mod service;
mod session;
mod survivor;
mod test_failover;
mod timing;
mod vm;
mod work;

pub use clock::{Clock, SystemClock};
pub use config::{OnBoot, ServiceConfig};
pub use rebuild::{
    LeftOut, OtherSide, Rebuild, RebuildError, Rebuilt, RebuiltPeer, RebuiltRelationship, RebuiltVm,
};
pub use service::{HostStanding, Service, StartError};
