//! What the service is told when it starts.

use std::path::PathBuf;
use std::time::Duration;

use lifeboat_model::BandwidthLimit;

/// What happens to a VM that shall run when this host starts and that replicates to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBoot {
    /// The peer is asked first whether it has taken over. Without an answer in this time the VM
    /// is held, because the peer may be running it.
    AskPeer { timeout: Duration },
    /// Started at once: this host may then run a VM that its peer runs, too.
    StartAnyway,
    /// Not started before an operator says so.
    Hold,
}

/// Where the service keeps things, and its limits.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// This host's name, as its certificate proves it.
    pub host: String,
    /// Where peers reach this host: `name:port`.
    pub peer_address: String,
    /// Images of new VMs, send-spools, overlays of tests.
    pub state: PathBuf,
    /// Captures and transfers of all VMs under way at once; at least 1.
    pub transfers: usize,
    /// The most bytes of one VM's delta in the send-spool.
    pub send_spool_limit: u64,
    /// To all peers together, by local time of day.
    pub bandwidth: BandwidthLimit,
    pub on_boot: OnBoot,
}
