//! Replication as a service.

pub mod api;
