//! What a VM is, as it travels between hosts.
//!
//! Plain facts from fixed lists, all of them bounded. A replica builds what its own hypervisor
//! needs from them; extra arguments, paths and devices have no place here, so a definition from
//! elsewhere can make a host run nothing but a VM of this kind.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use lifeboat_model::{DiskId, DiskSize, MAX_DISKS, VmId};
use serde::{Deserialize, Serialize};

/// The newest format, which is the only one there is.
pub const FORMAT: u32 = 1;

/// The longest definition as JSON, in bytes; the largest one allowed takes less.
pub const MAX_JSON: usize = 256 << 10;

/// The longest name of a VM or network, in characters.
pub const MAX_LABEL: usize = 100;

/// 8 synthetic and 4 legacy adapters, as the contract has it.
pub const MAX_ADAPTERS: usize = 12;

/// Of one adapter.
pub const MAX_ADDRESSES: usize = 32;

/// Of one adapter, as the contract has it.
pub const MAX_GATEWAYS: usize = 5;

/// Of one adapter.
pub const MAX_DNS_SERVERS: usize = 16;

const MEMORY_MIB: std::ops::RangeInclusive<u64> = 1..=16 << 20;
const PROCESSORS: std::ops::RangeInclusive<u32> = 1..=2048;

/// A VM's settings, not checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSettings {
    /// [`FORMAT`].
    pub format: u32,
    pub vm: VmId,
    /// A label for people, never an identity.
    pub name: String,
    pub memory_mib: u64,
    pub processors: u32,
    pub firmware: Firmware,
    pub adapters: Vec<NetworkAdapter>,
    pub disks: Vec<DiskSettings>,
}

/// What the VM boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    Bios,
    Uefi,
    UefiSecureBoot,
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    Virtio,
    Scsi,
    Sata,
    Ide,
    Nvme,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSettings {
    pub id: DiskId,
    pub size: DiskSize,
    pub bus: DiskBus,
}

/// One network adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkAdapter {
    pub mac: MacAddress,
    /// The network it is on, by a label that each host maps to a network of its own.
    pub network: String,
    /// What the guest shall use after a failover; absent when it keeps what it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failover: Option<FailoverNetwork>,
}

/// The network settings of an adapter after a failover, as
/// `Msvm_FailoverNetworkAdapterSettingData` has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverNetwork {
    pub protocol: IpProtocol,
    pub ipv4: Ipv4Source,
    pub addresses: Vec<FailoverAddress>,
    pub gateways: Vec<IpAddr>,
    pub dns_servers: Vec<IpAddr>,
}

/// `ProtocolIFType` 4096, 4097 and 4098.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IpProtocol {
    Ipv4,
    Ipv6,
    Ipv4AndIpv6,
}

/// Where the IPv4 addresses come from (`DHCPEnabled`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ipv4Source {
    Dhcp,
    Static,
}

/// One address and the subnet it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverAddress {
    pub address: IpAddr,
    /// The length of the subnet's prefix in bits.
    pub prefix: u8,
}

/// The hardware address of an adapter, of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// A text that is no [`MacAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{start:?} is no MAC address of a station: use six pairs of hexadecimal digits with colons"
)]
pub struct InvalidMacAddress {
    start: String,
}

/// Settings that no VM may have.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDefinition {
    #[error("read a VM definition of {bytes} bytes: {MAX_JSON} are the most")]
    TooLong { bytes: usize },
    #[error("read the VM definition")]
    Json { source: serde_json::Error },
    #[error(
        "read a VM definition of format {format}: only format {FORMAT} is known, update Lifeboat"
    )]
    Format { format: u32 },
    #[error(
        "the VM's name must have 1 to {MAX_LABEL} characters, none of them a control character"
    )]
    Name,
    #[error("{memory_mib} MiB of memory are out of range: use {} to {}", MEMORY_MIB.start(), MEMORY_MIB.end())]
    Memory { memory_mib: u64 },
    #[error("{processors} processors are out of range: use {} to {}", PROCESSORS.start(), PROCESSORS.end())]
    Processors { processors: u32 },
    #[error("a VM has 1 to {MAX_DISKS} disks, not {count}")]
    DiskCount { count: usize },
    #[error("disk {disk} is there twice")]
    DiskTwice { disk: DiskId },
    #[error("a VM has at most {MAX_ADAPTERS} network adapters, not {count}")]
    AdapterCount { count: usize },
    #[error("adapter {mac} is there twice")]
    AdapterTwice { mac: MacAddress },
    #[error(
        "the network of adapter {mac} must have 1 to {MAX_LABEL} characters, none of them a control character"
    )]
    Network { mac: MacAddress },
    #[error("adapter {mac} has {count} {what}: {limit} are the most")]
    TooMany {
        mac: MacAddress,
        what: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("adapter {mac} cannot use {address}: it is no address of a station")]
    Address { mac: MacAddress, address: IpAddr },
    #[error("adapter {mac} cannot use {address}: its protocol is {protocol:?}")]
    Protocol {
        mac: MacAddress,
        address: IpAddr,
        protocol: IpProtocol,
    },
    #[error("adapter {mac} cannot use {address}/{prefix}: the prefix is longer than the address")]
    Prefix {
        mac: MacAddress,
        address: IpAddr,
        prefix: u8,
    },
}

/// Settings that have been checked: whoever holds them need not doubt them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "VmSettings", into = "VmSettings")]
pub struct VmDefinition(VmSettings);

impl VmDefinition {
    #[must_use]
    pub fn settings(&self) -> &VmSettings {
        &self.0
    }

    #[must_use]
    pub fn vm(&self) -> VmId {
        self.0.vm
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Reads what [`to_json`](Self::to_json) wrote, here or elsewhere.
    ///
    /// # Errors
    /// When the text is too long, no definition, or of settings that no VM may have.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidDefinition> {
        if json.len() > MAX_JSON {
            return Err(InvalidDefinition::TooLong { bytes: json.len() });
        }
        let settings: VmSettings =
            serde_json::from_slice(json).map_err(|source| InvalidDefinition::Json { source })?;
        Self::try_from(settings)
    }

    /// At most [`MAX_JSON`] bytes; equal definitions give equal bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("BUG: plain settings cannot be written")
    }
}

impl TryFrom<VmSettings> for VmDefinition {
    type Error = InvalidDefinition;

    fn try_from(settings: VmSettings) -> Result<Self, InvalidDefinition> {
        let VmSettings {
            format,
            vm: _,
            name,
            memory_mib,
            processors,
            firmware: _,
            adapters,
            disks,
        } = &settings;
        if *format != FORMAT {
            return Err(InvalidDefinition::Format { format: *format });
        }
        if !is_label(name) {
            return Err(InvalidDefinition::Name);
        }
        if !MEMORY_MIB.contains(memory_mib) {
            let memory_mib = *memory_mib;
            return Err(InvalidDefinition::Memory { memory_mib });
        }
        if !PROCESSORS.contains(processors) {
            let processors = *processors;
            return Err(InvalidDefinition::Processors { processors });
        }
        check_disks(disks)?;
        check_adapters(adapters)?;
        Ok(Self(settings))
    }
}

impl From<VmDefinition> for VmSettings {
    fn from(definition: VmDefinition) -> Self {
        definition.0
    }
}

fn is_label(text: &str) -> bool {
    let count = text.chars().take(MAX_LABEL + 1).count();
    (1..=MAX_LABEL).contains(&count) && !text.chars().any(char::is_control)
}

fn check_disks(disks: &[DiskSettings]) -> Result<(), InvalidDefinition> {
    let count = disks.len();
    if !(1..=MAX_DISKS).contains(&count) {
        return Err(InvalidDefinition::DiskCount { count });
    }
    let mut ids = BTreeSet::new();
    match disks.iter().find(|disk| !ids.insert(&disk.id)) {
        Some(disk) => Err(InvalidDefinition::DiskTwice {
            disk: disk.id.clone(),
        }),
        None => Ok(()),
    }
}

fn check_adapters(adapters: &[NetworkAdapter]) -> Result<(), InvalidDefinition> {
    let count = adapters.len();
    if count > MAX_ADAPTERS {
        return Err(InvalidDefinition::AdapterCount { count });
    }
    let mut macs = BTreeSet::new();
    for adapter in adapters {
        let mac = adapter.mac;
        if !macs.insert(mac) {
            return Err(InvalidDefinition::AdapterTwice { mac });
        }
        if !is_label(&adapter.network) {
            return Err(InvalidDefinition::Network { mac });
        }
        if let Some(failover) = &adapter.failover {
            check_failover(mac, failover)?;
        }
    }
    Ok(())
}

fn check_failover(mac: MacAddress, failover: &FailoverNetwork) -> Result<(), InvalidDefinition> {
    let counts = [
        ("addresses", failover.addresses.len(), MAX_ADDRESSES),
        ("gateways", failover.gateways.len(), MAX_GATEWAYS),
        ("DNS servers", failover.dns_servers.len(), MAX_DNS_SERVERS),
    ];
    for (what, count, limit) in counts {
        if count > limit {
            return Err(InvalidDefinition::TooMany {
                mac,
                what,
                count,
                limit,
            });
        }
    }
    let own = failover.addresses.iter().map(|own| own.address);
    let others = failover.gateways.iter().chain(&failover.dns_servers);
    for address in own.chain(others.copied()) {
        if address.is_unspecified() || address.is_multicast() {
            return Err(InvalidDefinition::Address { mac, address });
        }
        let protocol = failover.protocol;
        if !protocol.has(address) {
            return Err(InvalidDefinition::Protocol {
                mac,
                address,
                protocol,
            });
        }
    }
    for FailoverAddress { address, prefix } in failover.addresses.iter().copied() {
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most {
            return Err(InvalidDefinition::Prefix {
                mac,
                address,
                prefix,
            });
        }
    }
    Ok(())
}

impl IpProtocol {
    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
            Self::Ipv4AndIpv6 => true,
        }
    }
}

impl MacAddress {
    /// The address with these bytes, if it is that of one station.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 6]) -> Option<Self> {
        let group = bytes[0] & 1 == 1;
        (!group && bytes != [0; 6]).then_some(Self(bytes))
    }

    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    fn from_str(text: &str) -> Result<Self, InvalidMacAddress> {
        let parse = || {
            let mut bytes = [0; 6];
            let mut pairs = text.split(':');
            for byte in &mut bytes {
                let pair = pairs.next().filter(|pair| pair.len() == 2)?;
                let digits = pair.bytes().all(|digit| digit.is_ascii_hexdigit());
                *byte = u8::from_str_radix(pair, 16).ok().filter(|_| digits)?;
            }
            pairs.next().is_none().then_some(bytes)
        };
        let start = || text.chars().take(40).collect();
        parse()
            .and_then(Self::from_bytes)
            .ok_or_else(|| InvalidMacAddress { start: start() })
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidMacAddress;

    fn try_from(text: String) -> Result<Self, InvalidMacAddress> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests;
