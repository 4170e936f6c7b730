//! The manifest: what the moment is, and the disks that the frames count by index.

use std::collections::HashSet;

use lifeboat_model::{Consistency, DiskId, DiskSize, MAX_DISKS, Timestamp};
use serde::{Deserialize, Serialize};

/// The version of the manifest's text that this build writes and reads.
const FORMAT: u32 = 1;

/// The most bytes a manifest may take: [`MAX_DISKS`] disks with the longest names
/// take half of it.
pub(crate) const MAX_MANIFEST_LEN: u32 = 64 << 10;

/// One disk at the frozen moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub id: DiskId,
    pub size: DiskSize,
}

/// What a stream says about the moment it carries, besides the bytes.
///
/// It has at least one disk and at most [`MAX_DISKS`], no two with the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    captured_at: Timestamp,
    consistency: Consistency,
    disks: Vec<Disk>,
}

/// Why a manifest cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest names {count} disks; a VM has 1 to {MAX_DISKS}")]
    DiskCount { count: usize },
    #[error("the manifest names the disk {id} twice")]
    DuplicateDisk { id: DiskId },
    #[error(
        "the manifest has format {found} and this build reads format {FORMAT}: run the same release on both sides"
    )]
    Format { found: u32 },
    #[error("the manifest is not the JSON text it must be")]
    Json { source: serde_json::Error },
}

impl Manifest {
    /// A manifest of these disks, in the order in which frames count them.
    ///
    /// # Errors
    ///
    /// No disks, more than [`MAX_DISKS`], or one id twice.
    pub fn new(
        captured_at: Timestamp,
        consistency: Consistency,
        disks: Vec<Disk>,
    ) -> Result<Self, ManifestError> {
        if disks.is_empty() || disks.len() > MAX_DISKS {
            return Err(ManifestError::DiskCount { count: disks.len() });
        }
        let mut seen = HashSet::new();
        if let Some(twice) = disks.iter().find(|disk| !seen.insert(&disk.id)) {
            return Err(ManifestError::DuplicateDisk {
                id: twice.id.clone(),
            });
        }
        Ok(Self {
            captured_at,
            consistency,
            disks,
        })
    }

    /// When the moment was frozen, by the primary's clock: a label for people.
    #[must_use]
    pub const fn captured_at(&self) -> Timestamp {
        self.captured_at
    }

    /// What the moment promises to the software inside the guest.
    #[must_use]
    pub const fn consistency(&self) -> Consistency {
        self.consistency
    }

    /// The disks; a frame names one by its index in this list.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let wire = Wire {
            format: FORMAT,
            captured_at: self.captured_at,
            consistency: self.consistency,
            disks: self
                .disks
                .iter()
                .map(|disk| WireDisk {
                    id: disk.id.clone(),
                    size: disk.size,
                })
                .collect(),
        };
        serde_json::to_vec(&wire).expect("BUG: numbers and checked names always serialize")
    }

    pub(crate) fn from_json(text: &[u8]) -> Result<Self, ManifestError> {
        let json = |source| ManifestError::Json { source };
        // A later format may have fields unknown here, so the format is read on its own first.
        let Format { format } = serde_json::from_slice(text).map_err(json)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let wire: Wire = serde_json::from_slice(text).map_err(json)?;
        let disks = wire
            .disks
            .into_iter()
            .map(|disk| Disk {
                id: disk.id,
                size: disk.size,
            })
            .collect();
        Self::new(wire.captured_at, wire.consistency, disks)
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    format: u32,
    captured_at: Timestamp,
    consistency: Consistency,
    disks: Vec<WireDisk>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireDisk {
    id: DiskId,
    size: DiskSize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(id: &str, size: u64) -> Disk {
        Disk {
            id: id.parse().unwrap(),
            size: DiskSize::try_from(size).unwrap(),
        }
    }

    fn manifest(disks: Vec<Disk>) -> Result<Manifest, ManifestError> {
        Manifest::new(Timestamp::from_micros(7), Consistency::Crash, disks)
    }

    #[test]
    fn the_text_of_a_manifest_is_stable() {
        let manifest = manifest(vec![disk("sda", 4096), disk("sdb", 512)]).unwrap();
        let text = r#"{"format":1,"captured_at":7,"consistency":"crash","disks":[{"id":"sda","size":4096},{"id":"sdb","size":512}]}"#;
        assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), text);
        assert_eq!(Manifest::from_json(text.as_bytes()).unwrap(), manifest);
    }

    #[test]
    fn the_largest_manifest_fits_its_bound() {
        let disks = (0..MAX_DISKS)
            .map(|n| disk(&format!("{n:064}"), lifeboat_model::MAX_DISK_SIZE))
            .collect();
        let largest = Manifest::new(
            Timestamp::from_micros(u64::MAX),
            Consistency::Application,
            disks,
        )
        .unwrap();
        assert!(largest.to_json().len() < MAX_MANIFEST_LEN as usize);
    }

    #[test]
    fn manifests_that_cannot_be_counted_by_index_are_refused() {
        assert!(matches!(
            manifest(Vec::new()),
            Err(ManifestError::DiskCount { count: 0 })
        ));
        let many = (0..=MAX_DISKS).map(|n| disk(&n.to_string(), 512)).collect();
        assert!(matches!(
            manifest(many),
            Err(ManifestError::DiskCount { count: 257 })
        ));
        assert!(matches!(
            manifest(vec![disk("sda", 512), disk("sda", 1024)]),
            Err(ManifestError::DuplicateDisk { .. })
        ));
    }

    #[test]
    fn a_newer_format_is_named_even_when_it_has_new_fields() {
        let error =
            Manifest::from_json(br#"{"format":2,"captured":{"by":"x"},"disks":[]}"#).unwrap_err();
        assert!(
            matches!(error, ManifestError::Format { found: 2 }),
            "{error}"
        );
    }

    #[test]
    fn text_that_is_not_exactly_a_manifest_is_refused() {
        for text in [
            "",
            "{}",
            "null",
            r#"{"format":1}"#,
            r#"{"format":1,"captured_at":7,"consistency":"crash","disks":[{"id":"../x","size":512}]}"#,
            r#"{"format":1,"captured_at":7,"consistency":"crash","disks":[{"id":"sda","size":513}]}"#,
            r#"{"format":1,"captured_at":7,"consistency":"perfect","disks":[{"id":"sda","size":512}]}"#,
            r#"{"format":1,"captured_at":7,"consistency":"crash","disks":[{"id":"sda","size":512}],"extra":1}"#,
            r#"{"format":1,"captured_at":7,"consistency":"crash","disks":[{"id":"sda","size":512}]} x"#,
        ] {
            assert!(
                matches!(
                    Manifest::from_json(text.as_bytes()),
                    Err(ManifestError::Json { .. })
                ),
                "{text}"
            );
        }
    }
}
