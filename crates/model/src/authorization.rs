//! Who may replicate to this host, and where to (`Msvm_ReplicationAuthorizationSettingData`).
//!
//! A caller's name comes from its certificate. The most specific entry that fits it counts, and
//! only that one: a host with an entry of its own does not also get what `*` allows. Nothing here
//! looks at a certificate or at a folder.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::invalid::{Findings, quoted};
use crate::retention::{RetentionFloor, UncheckedRetentionFloor};
use crate::{HostName, InvalidFields};

/// The most entries that one host has.
pub const MAX_ENTRIES: usize = 1024;

/// Which primary hosts an entry is for: one name, all hosts of a domain (`*.example.com`), or
/// all (`*`). Compared without regard to case.
///
/// The asterisk stands for exactly one label, as it does in certificates: `*.example.com` is
/// neither `example.com` nor `a.b.example.com`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowedHosts {
    // The order is from the most specific to the least.
    Host(HostName),
    Domain(HostName),
    Any,
}

/// Text that says no set of hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names no primary hosts: use a full name such as alpha.example.com, *.example.com for all hosts of a domain, or * for all"
)]
pub struct InvalidAllowedHosts {
    text: String,
}

impl AllowedHosts {
    #[must_use]
    pub fn includes(&self, host: &HostName) -> bool {
        match self {
            Self::Host(name) => name == host,
            Self::Domain(domain) => host.domain() == Some(domain.as_str()),
            Self::Any => true,
        }
    }
}

impl FromStr for AllowedHosts {
    type Err = InvalidAllowedHosts;

    fn from_str(text: &str) -> Result<Self, InvalidAllowedHosts> {
        if text == "*" {
            return Ok(Self::Any);
        }
        // Certificates prove names; an address would never match.
        let name = |text: &str| {
            text.parse()
                .ok()
                .filter(|name: &HostName| !name.is_address())
        };
        match text.strip_prefix("*.") {
            Some(domain) => name(domain).map(Self::Domain),
            None => name(text).map(Self::Host),
        }
        .ok_or_else(|| InvalidAllowedHosts { text: quoted(text) })
    }
}

impl TryFrom<String> for AllowedHosts {
    type Error = InvalidAllowedHosts;

    fn try_from(text: String) -> Result<Self, InvalidAllowedHosts> {
        text.parse()
    }
}

impl From<AllowedHosts> for String {
    fn from(hosts: AllowedHosts) -> String {
        hosts.to_string()
    }
}

impl fmt::Display for AllowedHosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => name.fmt(f),
            Self::Domain(domain) => write!(f, "*.{domain}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// The name of a group of primary hosts that trust each other with their VMs. Free text, compared
/// letter by letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustGroup(String);

/// Text that names no trust group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} cannot name a trust group: use 1 to {} characters without control characters and without spaces at the ends",
    TrustGroup::MAX_CHARS
)]
pub struct InvalidTrustGroup {
    text: String,
}

impl TrustGroup {
    /// The longest name, in characters.
    pub const MAX_CHARS: usize = 64;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustGroup {
    type Err = InvalidTrustGroup;

    fn from_str(text: &str) -> Result<Self, InvalidTrustGroup> {
        let length = text.chars().take(Self::MAX_CHARS + 1).count();
        let plain = !text.chars().take(Self::MAX_CHARS).any(char::is_control);
        if (1..=Self::MAX_CHARS).contains(&length) && plain && text.trim() == text {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidTrustGroup { text: quoted(text) })
        }
    }
}

impl TryFrom<String> for TrustGroup {
    type Error = InvalidTrustGroup;

    fn try_from(text: String) -> Result<Self, InvalidTrustGroup> {
        text.parse()
    }
}

impl From<TrustGroup> for String {
    fn from(group: TrustGroup) -> String {
        group.0
    }
}

impl fmt::Display for TrustGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An absolute path below which replicas are stored, without `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StorageLocation(String);

/// Text that is no place for replicas.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no place for replicas: use an absolute path to a folder other than /, without . and .., of at most {} bytes",
    StorageLocation::MAX_LEN
)]
pub struct InvalidStorageLocation {
    text: String,
}

impl StorageLocation {
    /// The longest path, in bytes; leaves room for what a store adds within the system's limit.
    pub const MAX_LEN: usize = 2048;

    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for StorageLocation {
    type Err = InvalidStorageLocation;

    fn from_str(text: &str) -> Result<Self, InvalidStorageLocation> {
        let invalid = || InvalidStorageLocation { text: quoted(text) };
        if text.len() > Self::MAX_LEN || text.chars().any(char::is_control) {
            return Err(invalid());
        }
        // Components would swallow a single dot, so it is looked for in the text.
        let dotted = text.split('/').any(|part| part == "." || part == "..");
        let path = Path::new(text);
        let below_root = path
            .components()
            .any(|part| matches!(part, Component::Normal(_)));
        if !path.is_absolute() || dotted || !below_root {
            return Err(invalid());
        }
        let normal: PathBuf = path.components().collect();
        normal
            .to_str()
            .map(|text| Self(text.to_owned()))
            .ok_or_else(invalid)
    }
}

impl TryFrom<String> for StorageLocation {
    type Error = InvalidStorageLocation;

    fn try_from(text: String) -> Result<Self, InvalidStorageLocation> {
        text.parse()
    }
}

impl From<StorageLocation> for String {
    fn from(location: StorageLocation) -> String {
        location.0
    }
}

impl fmt::Display for StorageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Some primary hosts, with what they may do here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedEntry", into = "UncheckedEntry")]
pub struct AuthorizationEntry {
    /// The entry's key.
    pub allowed_primary_host_system: AllowedHosts,
    pub trust_group: TrustGroup,
    /// Where replicas are made from now on; those that exist stay where they are.
    pub replica_storage_location: StorageLocation,
    pub retention_floor: RetentionFloor,
}

/// An [`AuthorizationEntry`] as people and files give it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncheckedEntry {
    pub allowed_primary_host_system: String,
    pub trust_group: String,
    pub replica_storage_location: String,
    #[serde(default)]
    pub retention_floor: UncheckedRetentionFloor,
}

impl UncheckedEntry {
    /// # Errors
    /// Every field that is not acceptable.
    pub fn validate(&self) -> Result<AuthorizationEntry, InvalidFields> {
        let mut findings = Findings::default();
        let hosts = findings.text(
            "allowed_primary_host_system",
            &self.allowed_primary_host_system,
        );
        let group = findings.text("trust_group", &self.trust_group);
        let location = findings.text("replica_storage_location", &self.replica_storage_location);
        let floor = self.retention_floor.check(&mut findings);
        let entry = (|| {
            Some(AuthorizationEntry {
                allowed_primary_host_system: hosts?,
                trust_group: group?,
                replica_storage_location: location?,
                retention_floor: floor?,
            })
        })();
        findings.finish(entry)
    }
}

impl TryFrom<UncheckedEntry> for AuthorizationEntry {
    type Error = InvalidFields;

    fn try_from(unchecked: UncheckedEntry) -> Result<Self, InvalidFields> {
        unchecked.validate()
    }
}

impl From<AuthorizationEntry> for UncheckedEntry {
    fn from(entry: AuthorizationEntry) -> Self {
        Self {
            allowed_primary_host_system: entry.allowed_primary_host_system.into(),
            trust_group: entry.trust_group.into(),
            replica_storage_location: entry.replica_storage_location.into(),
            retention_floor: entry.retention_floor.into(),
        }
    }
}

/// Why a caller may not do what it asks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAuthorized {
    #[error(
        "no authorization entry of this host names {host}: add one for it, or for its domain, on this host"
    )]
    NoEntry { host: HostName },
    #[error(
        "{host} belongs to the trust group {of_host}, the replica to {of_vm}: give the host's entry ({entry}) the replica's trust group if it may write this replica"
    )]
    OtherTrustGroup {
        host: HostName,
        entry: AllowedHosts,
        of_host: TrustGroup,
        of_vm: TrustGroup,
    },
}

/// Why the table cannot be changed like that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryRefused {
    #[error("there is an authorization entry for {hosts} already: change that one")]
    Exists { hosts: AllowedHosts },
    #[error("there is no authorization entry for {hosts}")]
    Missing { hosts: AllowedHosts },
    #[error("a host has at most {MAX_ENTRIES} authorization entries: use *.domain for many hosts")]
    TooMany,
}

/// All entries of a host. No two are for the same hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<AuthorizationEntry>", into = "Vec<AuthorizationEntry>")]
pub struct AuthorizationTable {
    /// The most specific first, by key.
    entries: Vec<AuthorizationEntry>,
}

impl AuthorizationTable {
    /// The most specific first.
    #[must_use]
    pub fn entries(&self) -> &[AuthorizationEntry] {
        &self.entries
    }

    /// # Errors
    /// An entry for these hosts exists, or the table is full.
    pub fn with_added(&self, entry: AuthorizationEntry) -> Result<Self, EntryRefused> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(EntryRefused::TooMany);
        }
        match self.position(&entry.allowed_primary_host_system) {
            Ok(_) => Err(EntryRefused::Exists {
                hosts: entry.allowed_primary_host_system,
            }),
            Err(place) => {
                let mut entries = self.entries.clone();
                entries.insert(place, entry);
                Ok(Self { entries })
            }
        }
    }

    /// The table with the entry for these hosts replaced.
    ///
    /// # Errors
    /// There is none.
    pub fn with_changed(&self, entry: AuthorizationEntry) -> Result<Self, EntryRefused> {
        match self.position(&entry.allowed_primary_host_system) {
            Ok(place) => {
                let mut entries = self.entries.clone();
                entries[place] = entry;
                Ok(Self { entries })
            }
            Err(_) => Err(EntryRefused::Missing {
                hosts: entry.allowed_primary_host_system,
            }),
        }
    }

    /// # Errors
    /// There is no entry for these hosts.
    pub fn with_removed(&self, hosts: &AllowedHosts) -> Result<Self, EntryRefused> {
        match self.position(hosts) {
            Ok(place) => {
                let mut entries = self.entries.clone();
                entries.remove(place);
                Ok(Self { entries })
            }
            Err(_) => Err(EntryRefused::Missing {
                hosts: hosts.clone(),
            }),
        }
    }

    /// The entry that counts for a new replica of this host.
    ///
    /// # Errors
    /// No entry names the host.
    pub fn entry_for(&self, host: &HostName) -> Result<&AuthorizationEntry, NotAuthorized> {
        self.entries
            .iter()
            .find(|entry| entry.allowed_primary_host_system.includes(host))
            .ok_or_else(|| NotAuthorized::NoEntry { host: host.clone() })
    }

    /// The entry by which this host may go on with a replica that was created under `group`.
    ///
    /// # Errors
    /// No entry names the host, or the one that counts has another trust group.
    pub fn entry_for_replica(
        &self,
        host: &HostName,
        group: &TrustGroup,
    ) -> Result<&AuthorizationEntry, NotAuthorized> {
        let entry = self.entry_for(host)?;
        if entry.trust_group == *group {
            Ok(entry)
        } else {
            Err(NotAuthorized::OtherTrustGroup {
                host: host.clone(),
                entry: entry.allowed_primary_host_system.clone(),
                of_host: entry.trust_group.clone(),
                of_vm: group.clone(),
            })
        }
    }

    fn position(&self, hosts: &AllowedHosts) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|entry| entry.allowed_primary_host_system.cmp(hosts))
    }
}

impl TryFrom<Vec<AuthorizationEntry>> for AuthorizationTable {
    type Error = EntryRefused;

    fn try_from(entries: Vec<AuthorizationEntry>) -> Result<Self, EntryRefused> {
        if entries.len() > MAX_ENTRIES {
            return Err(EntryRefused::TooMany);
        }
        let mut table = Self { entries };
        let key = |entry: &AuthorizationEntry| entry.allowed_primary_host_system.clone();
        table.entries.sort_by_cached_key(key);
        let twice = table
            .entries
            .windows(2)
            .find(|pair| key(&pair[0]) == key(&pair[1]));
        match twice {
            Some(pair) => Err(EntryRefused::Exists {
                hosts: key(&pair[0]),
            }),
            None => Ok(table),
        }
    }
}

impl From<AuthorizationTable> for Vec<AuthorizationEntry> {
    fn from(table: AuthorizationTable) -> Self {
        table.entries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn group(name: &str) -> TrustGroup {
        name.parse().unwrap()
    }

    fn entry(hosts: &str, group: &str) -> AuthorizationEntry {
        UncheckedEntry {
            allowed_primary_host_system: hosts.to_owned(),
            trust_group: group.to_owned(),
            replica_storage_location: "/srv/replicas".to_owned(),
            retention_floor: UncheckedRetentionFloor::default(),
        }
        .validate()
        .unwrap()
    }

    fn table(entries: &[(&str, &str)]) -> AuthorizationTable {
        let entries: Vec<_> = entries
            .iter()
            .map(|(hosts, group)| entry(hosts, group))
            .collect();
        entries.try_into().unwrap()
    }

    #[test]
    fn an_asterisk_is_only_allowed_as_the_whole_first_label() {
        for text in ["alpha", "alpha.example.com", "*.example.com", "*.lan", "*"] {
            assert_eq!(text.parse::<AllowedHosts>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "**",
            "*.",
            "*example.com",
            "a*.example.com",
            "*a.example.com",
            "a.*.com",
            "*.*",
            "*.*.com",
            "a.*",
            "192.0.2.1",
            "*.192.0.2.1",
            "::1",
            " *",
            "a b",
        ] {
            assert!(text.parse::<AllowedHosts>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn hosts_are_matched_without_case_and_one_label_deep() {
        let includes =
            |hosts: &str, name: &str| hosts.parse::<AllowedHosts>().unwrap().includes(&host(name));
        assert!(includes("Alpha.Example.com", "alpha.EXAMPLE.com."));
        assert!(includes("*.EXAMPLE.com", "alpha.example.com"));
        assert!(!includes("*.example.com", "example.com"));
        assert!(!includes("*.example.com", "a.b.example.com"));
        assert!(!includes("*.example.com", "alpha.badexample.com"));
        assert!(includes("*", "alpha"));
    }

    #[test]
    fn the_most_specific_entry_counts_and_only_that_one() {
        let table = table(&[
            ("*", "DEFAULT"),
            ("*.example.com", "domain"),
            ("alpha.example.com", "own"),
        ]);
        let of = |name: &str| {
            table
                .entry_for(&host(name))
                .unwrap()
                .trust_group
                .to_string()
        };
        assert_eq!(of("ALPHA.example.com"), "own");
        assert_eq!(of("beta.example.com"), "domain");
        assert_eq!(of("alpha.other.com"), "DEFAULT");
        let refused = table.entry_for_replica(&host("alpha.example.com"), &group("DEFAULT"));
        assert!(matches!(
            refused,
            Err(NotAuthorized::OtherTrustGroup { .. })
        ));
    }

    #[test]
    fn a_replica_takes_deltas_from_any_host_of_its_trust_group_and_no_other() {
        let table = table(&[
            ("alpha.lan", "tenant 1"),
            ("beta.lan", "tenant 1"),
            ("gamma.lan", "tenant 2"),
        ]);
        let may = |name: &str| {
            table
                .entry_for_replica(&host(name), &group("tenant 1"))
                .is_ok()
        };
        assert!(may("alpha.lan") && may("beta.lan"));
        assert!(!may("gamma.lan") && !may("delta.lan"));
        let case = table.entry_for_replica(&host("alpha.lan"), &group("Tenant 1"));
        assert!(case.is_err());
    }

    #[test]
    fn an_empty_table_lets_nobody_in() {
        let error = AuthorizationTable::default()
            .entry_for(&host("alpha.lan"))
            .unwrap_err();
        assert!(error.to_string().contains("add one"), "{error}");
    }

    #[test]
    fn two_entries_for_the_same_hosts_are_refused() {
        let table = table(&[("*.Example.com", "a")]);
        let again = table.with_added(entry("*.example.COM", "b"));
        assert!(matches!(again, Err(EntryRefused::Exists { .. })));
        let stored =
            serde_json::to_string(&vec![entry("a.lan", "x"), entry("A.lan", "y")]).unwrap();
        assert!(serde_json::from_str::<AuthorizationTable>(&stored).is_err());
    }

    #[test]
    fn a_table_is_changed_as_a_whole_or_not_at_all() {
        let one = table(&[("alpha.lan", "a")]);
        let changed = one.with_changed(entry("alpha.lan", "b")).unwrap();
        assert_eq!(changed.entries()[0].trust_group, group("b"));
        assert_eq!(one.entries()[0].trust_group, group("a"));
        assert!(matches!(
            one.with_changed(entry("beta.lan", "b")),
            Err(EntryRefused::Missing { .. })
        ));
        let hosts = |text: &str| text.parse::<AllowedHosts>().unwrap();
        assert!(one.with_removed(&hosts("*")).is_err());
        assert_eq!(one.with_removed(&hosts("ALPHA.lan")).unwrap().entries(), []);
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let entries: Vec<_> = (0..MAX_ENTRIES)
            .map(|at| entry(&format!("h{at}.lan"), "g"))
            .collect();
        let table = AuthorizationTable::try_from(entries.clone()).unwrap();
        assert_eq!(
            table.with_added(entry("one.more", "g")),
            Err(EntryRefused::TooMany)
        );
        let more: Vec<_> = entries
            .into_iter()
            .chain([entry("one.more", "g")])
            .collect();
        assert_eq!(
            AuthorizationTable::try_from(more),
            Err(EntryRefused::TooMany)
        );
    }

    #[test]
    fn replicas_are_stored_below_an_absolute_path_only() {
        let location = |text: &str| text.parse::<StorageLocation>().map(String::from);
        assert_eq!(location("/srv//replicas/").as_deref(), Ok("/srv/replicas"));
        assert_eq!(location("/srv/a b/ü").as_deref(), Ok("/srv/a b/ü"));
        let long = format!("/{}", "a".repeat(StorageLocation::MAX_LEN));
        for text in [
            "",
            "/",
            "//",
            "srv",
            "./srv",
            "/srv/..",
            "/srv/../etc",
            "/./srv",
            "/srv/./a",
            "/srv\0",
            "/srv\n",
            long.as_str(),
        ] {
            assert!(location(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_wrong_field_of_an_entry_is_named() {
        let json = r#"{"allowed_primary_host_system": "a.*", "trust_group": " x",
            "replica_storage_location": "srv", "retention_floor": {"points": 25, "hours": 721}}"#;
        let unchecked: UncheckedEntry = serde_json::from_str(json).unwrap();
        let error = unchecked.validate().unwrap_err();
        let fields: Vec<_> = error.fields().iter().map(|field| field.field).collect();
        assert_eq!(
            fields,
            [
                "allowed_primary_host_system",
                "trust_group",
                "replica_storage_location",
                "retention_floor.points",
                "retention_floor.hours",
            ]
        );
        assert!(serde_json::from_str::<AuthorizationEntry>(json).is_err());
        assert!(serde_json::from_str::<UncheckedEntry>(r#"{"group": "x"}"#).is_err());
    }

    proptest! {
        /// The oracle looks at every entry and keeps the best.
        #[test]
        fn the_choice_is_the_most_specific_of_all_that_fit(
            names in prop::collection::btree_set("([ab]|\\*)(\\.[cd]){0,2}", 0..12),
            caller in "[ab](\\.[cd]){0,2}",
        ) {
            let entries: Vec<_> = names
                .iter()
                .filter(|name| name.parse::<AllowedHosts>().is_ok())
                .map(|name| entry(name, "g"))
                .collect();
            let best = names.iter().filter_map(|name| {
                let rank = if *name == caller {
                    0
                } else if name == "*" {
                    2
                } else if name.strip_prefix('*').is_some_and(|domain| caller[1..] == *domain) {
                    1
                } else {
                    return None;
                };
                Some((rank, name))
            }).min();
            let table = AuthorizationTable::try_from(entries).unwrap();
            let chosen = table.entry_for(&host(&caller)).ok()
                .map(|entry| entry.allowed_primary_host_system.to_string());
            prop_assert_eq!(chosen.as_ref(), best.map(|(_, name)| name));
        }

        #[test]
        fn any_text_is_an_entry_or_an_error(
            hosts in "\\PC{0,20}", group in "\\PC{0,80}", location in "\\PC{0,40}", points: u64, hours: u64,
        ) {
            let unchecked = UncheckedEntry {
                allowed_primary_host_system: hosts,
                trust_group: group,
                replica_storage_location: location,
                retention_floor: UncheckedRetentionFloor { points, hours },
            };
            if let Ok(entry) = unchecked.validate() {
                let json = serde_json::to_string(&entry).unwrap();
                prop_assert_eq!(serde_json::from_str::<AuthorizationEntry>(&json).unwrap(), entry);
            }
        }
    }
}
