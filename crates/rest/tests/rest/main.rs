//! The interface as its clients meet it, before a service that a test controls.

#[path = "../fake/mod.rs"]
mod fake;

mod document;
mod hostile;
mod listeners;
mod metrics;
mod roles;
mod routes;
mod streams;
mod support;
