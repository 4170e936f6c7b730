//! The service as a whole: several hosts in one process, with real stores, real disks over NBD,
//! and a network and hosts that fail where a test says. What a guest wrote is kept by the test
//! itself, and compared byte by byte.

mod crashes;
mod deaths;
mod failed_store;
mod faults;
mod flows;
mod gate;
mod hostile;
mod interrupted;
mod links;
mod lost_catalogs;
mod lost_maps;
mod reversal;
mod site;
mod survivor;
mod verification;
mod world;
