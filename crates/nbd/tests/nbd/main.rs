//! The client and the server against each other, against real peers, and against
//! peers that are odd or hostile.

mod hostile_client;
mod hostile_server;
mod memory;
mod odd_server;
mod own;
mod peers;
mod real_clients;
mod real_servers;
mod script;
mod tls;
