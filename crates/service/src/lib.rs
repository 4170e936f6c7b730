//! Replication as a service.
