//! The port to whatever runs VMs, and its embedded driver.
//!
//! [`Hypervisor`] is what the rest of Lifeboat knows of VMs; [`VmDefinition`] is what a VM is.
//! [`VolumeDriver`] serves the disks of VMs over NBD to whoever runs their guests, with change
//! tracking of its own. Knows nothing of replicas, schedules or policy.

mod definition;
mod error;
mod port;
mod volume_driver;

pub use definition::{
    DiskBus, DiskSettings, FORMAT, FailoverAddress, FailoverNetwork, Firmware, InvalidDefinition,
    InvalidMacAddress, IpProtocol, Ipv4Source, MAX_ADAPTERS, MAX_ADDRESSES, MAX_DNS_SERVERS,
    MAX_GATEWAYS, MAX_JSON, MAX_LABEL, MacAddress, NetworkAdapter, VmDefinition, VmSettings,
};
pub use error::HypervisorError;
pub use port::{
    Backing, DiskMover, DiskRanges, DiskSource, FrozenView, Hypervisor, PowerState, StopMode,
    Tracking,
};
pub use volume_driver::{QuiesceHook, VolumeDriver, VolumeDriverOptions};
