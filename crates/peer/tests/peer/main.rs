//! Hosts that talk over real sockets, and those who attack them.

mod calls;
mod certificates;
mod golden;
mod hostile_client;
mod hostile_server;
mod memory;
mod memory_links;
mod raw;
mod streams;
mod support;
mod trust;
