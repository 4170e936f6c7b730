//! Comparing disks with the guest's own record, byte for byte.

use std::io;

use lifeboat_model::DiskId;
use serde::Serialize;

use super::shadow::Shadow;

/// How much is read at a time: what fits into a processor's cache is compared twice as fast.
const STEP: usize = 128 << 10;

/// Fills a buffer from a disk, from an offset on.
pub type ReadDisk<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

/// What comparing one disk found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// Compared, in bytes.
    pub bytes: u64,
    pub wrong_bytes: u64,
    /// The first difference; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Difference>,
}

/// Where a disk is not what the guest wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Difference {
    #[error("disk {disk} has {found} bytes, not {expected}")]
    Size {
        disk: DiskId,
        found: u64,
        expected: u64,
    },
    #[error("disk {disk}, byte {offset}: {found:#04x} where the guest wrote {expected:#04x}")]
    Byte {
        disk: DiskId,
        offset: u64,
        found: u8,
        expected: u8,
    },
    #[error("disk {disk} cannot be read at {offset}: {why}")]
    Unreadable {
        disk: DiskId,
        offset: u64,
        why: String,
    },
    #[error("disk {disk} has no marker of a moment that the guest has been through")]
    NoMoment { disk: DiskId },
}

/// Reads all of a disk of `size` bytes and compares it with what the guest wrote.
pub fn compare(disk: &DiskId, size: u64, shadow: &Shadow, read: &mut ReadDisk<'_>) -> Compared {
    let mut compared = Compared {
        bytes: 0,
        wrong_bytes: 0,
        first: None,
    };
    if size != shadow.size() {
        compared.wrong_bytes = size.abs_diff(shadow.size());
        compared.first = Some(Difference::Size {
            disk: disk.clone(),
            found: size,
            expected: shadow.size(),
        });
        return compared;
    }
    let (mut found, mut expected) = (vec![0; STEP], vec![0; STEP]);
    while compared.bytes < size {
        let offset = compared.bytes;
        let step = (size - offset).min(STEP as u64) as usize;
        // What reading does not fill must not look right.
        found.fill(0xA5);
        if let Err(error) = read(offset, &mut found[..step]) {
            compared.wrong_bytes += step as u64;
            compared
                .first
                .get_or_insert_with(|| Difference::Unreadable {
                    disk: disk.clone(),
                    offset,
                    why: error.to_string(),
                });
        } else {
            shadow.read(offset, &mut expected[..step]);
            note_differences(
                disk,
                offset,
                &found[..step],
                &expected[..step],
                &mut compared,
            );
        }
        compared.bytes += step as u64;
    }
    compared
}

fn note_differences(
    disk: &DiskId,
    offset: u64,
    found: &[u8],
    expected: &[u8],
    compared: &mut Compared,
) {
    if found == expected {
        return;
    }
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        if found != expected {
            compared.wrong_bytes += 1;
            compared.first.get_or_insert_with(|| Difference::Byte {
                disk: disk.clone(),
                offset: offset + at as u64,
                found,
                expected,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 3 * STEP / 2 + 512;

    fn disk() -> DiskId {
        "sda".parse().unwrap()
    }

    fn compare_with(found: &[u8], shadow: &Shadow) -> Compared {
        compare(&disk(), found.len() as u64, shadow, &mut |offset, into| {
            let start = offset as usize;
            into.copy_from_slice(&found[start..start + into.len()]);
            Ok(())
        })
    }

    fn written() -> (Shadow, Vec<u8>) {
        let bytes = crate::demo::random::Random::new(1).bytes(SIZE);
        let mut shadow = Shadow::new(SIZE as u64);
        shadow.write(0, &bytes);
        (shadow, bytes)
    }

    #[test]
    fn equal_disks_have_no_wrong_byte() {
        let (shadow, bytes) = written();
        let compared = compare_with(&bytes, &shadow);
        assert_eq!((compared.bytes, compared.wrong_bytes), (SIZE as u64, 0));
        assert_eq!(compared.first, None);
    }

    #[test]
    fn every_wrong_byte_is_counted_and_the_first_one_named() {
        let (shadow, mut bytes) = written();
        for at in [0, STEP + 5, SIZE - 1] {
            bytes[at] ^= 0x10;
        }
        let compared = compare_with(&bytes, &shadow);
        assert_eq!(compared.wrong_bytes, 3);
        let first = Difference::Byte {
            disk: disk(),
            offset: 0,
            found: bytes[0],
            expected: bytes[0] ^ 0x10,
        };
        assert_eq!(compared.first, Some(first));
    }

    #[test]
    fn a_disk_of_another_size_is_wrong_although_it_begins_alike() {
        let (shadow, bytes) = written();
        let compared = compare_with(&bytes[..SIZE - 512], &shadow);
        assert_eq!(compared.wrong_bytes, 512);
        assert!(matches!(compared.first, Some(Difference::Size { .. })));
    }

    #[test]
    fn what_cannot_be_read_is_wrong() {
        let (shadow, _) = written();
        let mut fail = |_, _: &mut [u8]| Err(io::Error::other("no"));
        let compared = compare(&disk(), SIZE as u64, &shadow, &mut fail);
        assert_eq!(compared.wrong_bytes, SIZE as u64);
    }

    #[test]
    fn a_reader_that_fills_nothing_is_caught_on_a_disk_of_zeroes() {
        let shadow = Shadow::new(8192);
        let compared = compare(&disk(), 8192, &shadow, &mut |_, _| Ok(()));
        assert_eq!(compared.wrong_bytes, 8192);
    }
}
