//! What is read is what was written, for any disks and any changes.

use lifeboat_stream::{BlobKind, Compression, Kind, Layout, Options};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::sample::{Item, header, manifest, noise, read, read_by_scan, text, write};

const SECTOR: u64 = 512;

/// What a range becomes.
#[derive(Debug, Clone, Copy)]
enum Fill {
    Noise(u8),
    Text,
    Zero,
}

/// Sectors left as they are, then sectors changed.
type Step = (u64, u64, Fill);

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![
        any::<u8>().prop_map(Fill::Noise),
        Just(Fill::Text),
        Just(Fill::Zero)
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![8 => 1..20_u64, 1 => 120..300_u64];
    vec((0..20_u64, length, fill()), 0..12)
}

fn blobs() -> impl Strategy<Value = Vec<Item>> {
    let blob = |kind| {
        proptest::option::of((any::<u16>(), vec(any::<u8>(), 1..2000)))
            .prop_map(move |blob| blob.map(|(format, bytes)| Item::Blob(kind, format, bytes)))
    };
    (
        blob(BlobKind::Nvram),
        blob(BlobKind::Tpm),
        blob(BlobKind::Definition),
    )
        .prop_map(|(nvram, tpm, definition)| {
            [nvram, tpm, definition].into_iter().flatten().collect()
        })
}

fn options() -> impl Strategy<Value = Options> {
    let compression = prop_oneof![
        Just(Compression::None),
        (-7..=19).prop_map(Compression::Zstd)
    ];
    let layout = prop_oneof![Just(Layout::Shareable), Just(Layout::Compact)];
    (compression, layout).prop_map(|(compression, layout)| Options {
        compression,
        layout,
    })
}

/// The ranges that the steps make on a disk of `sectors`; what does not fit is left out.
fn ranges(disk: usize, sectors: u64, steps: &[Step]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut at = 0;
    for &(gap, length, fill) in steps {
        let start = at + gap;
        if start >= sectors {
            break;
        }
        let length = length.min(sectors - start);
        at = start + length;
        let (offset, length) = (start * SECTOR, length * SECTOR);
        items.push(match fill {
            Fill::Noise(seed) => Item::Data(disk, offset, noise(seed, length as usize)),
            Fill::Text => Item::Data(disk, offset, text(length as usize)),
            Fill::Zero => Item::Zero(disk, offset, length),
        });
    }
    items
}

/// Applies items to disks byte by byte.
fn apply(disks: &mut [Vec<u8>], items: &[Item]) {
    for item in items {
        match item {
            Item::Blob(..) => (),
            Item::Data(disk, offset, bytes) => {
                for (n, byte) in bytes.iter().enumerate() {
                    disks[*disk][*offset as usize + n] = *byte;
                }
            }
            Item::Zero(disk, offset, length) => {
                for n in 0..*length {
                    disks[*disk][(*offset + n) as usize] = 0;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_read_is_what_was_written(
        disks in vec((1..800_u64, steps()), 1..4),
        blobs in blobs(),
        options in options(),
    ) {
        let sizes: Vec<u64> = disks.iter().map(|(sectors, _)| sectors * SECTOR).collect();
        let mut items = blobs;
        for (disk, (sectors, steps)) in disks.iter().enumerate() {
            items.extend(ranges(disk, *sectors, steps));
        }
        let (footer, stream) = write(&header(Kind::Delta), &sizes, options, &items);
        let (read_header, read_manifest, read_items, read_footer) = read(&stream[..]).unwrap();
        prop_assert_eq!(read_header, header(Kind::Delta));
        prop_assert_eq!(read_manifest, manifest(&sizes));
        prop_assert_eq!(&read_items, &items);
        prop_assert_eq!(read_footer, footer);
        let (scanned_items, scanned_footer) = read_by_scan(&stream).unwrap();
        prop_assert_eq!(&scanned_items, &items);
        prop_assert_eq!(scanned_footer, footer);

        let before: Vec<Vec<u8>> = sizes.iter().map(|&size| noise(99, size as usize)).collect();
        let (mut expected, mut found) = (before.clone(), before);
        apply(&mut expected, &items);
        apply(&mut found, &read_items);
        prop_assert_eq!(expected, found);
    }

    #[test]
    fn an_initial_stream_makes_the_disks_whatever_they_held(
        disks in vec((1..500_u64, steps()), 1..4),
        options in options(),
    ) {
        let sizes: Vec<u64> = disks.iter().map(|(sectors, _)| sectors * SECTOR).collect();
        let mut items = Vec::new();
        for (disk, (sectors, steps)) in disks.iter().enumerate() {
            let dense: Vec<Step> = steps.iter().map(|&(_, length, fill)| (0, length, fill)).collect();
            let ranges = ranges(disk, *sectors, &dense);
            let covered: u64 = ranges.iter().map(|item| match item {
                Item::Data(_, _, bytes) => bytes.len() as u64,
                Item::Zero(_, _, length) => *length,
                Item::Blob(..) => 0,
            }).sum();
            items.extend(ranges);
            if covered < sizes[disk] {
                items.push(Item::Zero(disk, covered, sizes[disk] - covered));
            }
        }
        let (footer, stream) = write(&header(Kind::Initial), &sizes, options, &items);
        prop_assert_eq!(footer.data_bytes + footer.zero_bytes, sizes.iter().sum::<u64>());
        let read_items = read(&stream[..]).unwrap().2;
        let mut from_noise: Vec<Vec<u8>> = sizes.iter().map(|&size| noise(1, size as usize)).collect();
        let mut from_ones: Vec<Vec<u8>> = sizes.iter().map(|&size| vec![0xff; size as usize]).collect();
        apply(&mut from_noise, &read_items);
        apply(&mut from_ones, &read_items);
        prop_assert_eq!(from_noise, from_ones);
    }

    #[test]
    fn any_change_to_any_bytes_of_a_stream_is_refused(
        position in any::<prop::sample::Index>(),
        bytes in vec(any::<u8>(), 1..40),
        options in options(),
    ) {
        let original = crate::sample::delta(options);
        let mut changed = original.clone();
        let start = position.index(changed.len());
        for (place, byte) in changed[start..].iter_mut().zip(&bytes) {
            *place = *byte;
        }
        prop_assume!(changed != original);
        prop_assert!(read(&changed[..]).is_err());
    }
}
