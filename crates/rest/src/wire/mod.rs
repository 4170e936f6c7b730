//! What travels as JSON: the bodies of requests and answers.
//!
//! One rule for names everywhere: properties have the names of the CIM schema in snake case.
//! What the schema numbers is a number, with the words for people beside it in a property of
//! the same name and `_text`; requests give the number alone. What only this interface has is
//! a word in snake case. Times are RFC 3339 in UTC, sizes are bytes, identifiers are
//! hexadecimal digits, and what there is none of is left out.
//!
//! Requests refuse properties that they do not know. Answers may get new ones, so clients
//! ignore those that they do not know.

mod event;
mod health;
mod host;
mod job;
mod point;
mod relationship;
mod request;
mod settings;
mod time;
mod vm;

pub use event::{AuditRecord, Event, EventGap, severity};
pub use health::{Check, CheckFinding, Health, HealthReason, Loss, Start, Statistics};
pub use host::{AuthorizationEntry, Host, HostListener, ServiceSettings, ServiceSettingsChange};
pub use job::{Job, job_id, parse_job_id};
pub use point::Point;
pub use relationship::{Activity, Lineage, Relationship};
pub use request::{
    CancelPlannedFailover, Connection, DefineVm, DefineVmDisk, EnableReplication, InitiateFailover,
    InvalidRequest, NameSurvivor, Nothing, Resynchronize, ReverseReplication, StartReplication,
    StopHow, StopVm, Survivor, TestConnection, TestFailover, parse_vm,
};
pub use settings::{BandwidthLimit, BandwidthWindow, ReplicationSettings, SettingsChange};
pub use time::{InvalidTime, Time};
pub use vm::{Vm, VmDisk};
