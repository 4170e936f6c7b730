//! A volume from cycle to cycle: frozen, captured, received, released.

use lifeboat_capture::{CapturePlan, Captured, DEFAULT_DEPTH, Source, capture};
use lifeboat_model::{Consistency, LineageId, RelationshipId, Sequence, Timestamp};
use lifeboat_stream::{Base, Decoder, Ending, Frame, Header, Kind, Limits, Options};
use lifeboat_volume::{BITMAP, Changes, FrozenView, Outcome};

use super::fixture::{Dice, Fixture, PATIENCE, PLENTY, Stop, id, random_change};

const DISKS: [(&str, usize); 2] = [("sda", (5 << 20) + 512), ("sdb", 2 << 20)];

fn plan(fixture: &Fixture, view: &FrozenView, base: Option<Base>, sequence: u64) -> CapturePlan {
    let bitmap = match view.changes() {
        Changes::Unknown => None,
        Changes::Tracked => Some(BITMAP.to_owned()),
    };
    let sources = DISKS
        .iter()
        .map(|(name, _)| Source {
            disk: id(name),
            uri: fixture.uri(&FrozenView::export_name(&id(name))),
            bitmap: bitmap.clone(),
        })
        .collect();
    CapturePlan {
        header: Header {
            relationship: RelationshipId::from_bytes([1; 16]),
            lineage: LineageId::from_bytes([2; 16]),
            base,
            sequence: Sequence::new(sequence),
            kind: if base.is_some() {
                Kind::Delta
            } else {
                Kind::Initial
            },
        },
        captured_at: Timestamp::from_micros(0),
        consistency: Consistency::Crash,
        sources,
        options: Options::default(),
        tls: None,
        deadline: PATIENCE,
        depth: DEFAULT_DEPTH,
    }
}

/// What a replica does with a stream.
fn apply(stream: &[u8], disks: &mut [Vec<u8>]) {
    let limits = Limits {
        stream_bytes: u64::MAX,
        ending: Ending::EndOfInput,
    };
    let mut decoder = Decoder::new(stream, &limits).unwrap();
    while let Some(frame) = decoder.next_frame().unwrap() {
        match frame {
            Frame::Blob { .. } => panic!("nobody gave a blob"),
            Frame::Data {
                disk,
                offset,
                bytes,
            } => disks[disk][offset as usize..][..bytes.len()].copy_from_slice(bytes),
            Frame::Zero {
                disk,
                offset,
                length,
            } => disks[disk][offset as usize..][..length as usize].fill(0),
        }
    }
}

#[test]
fn a_replica_that_applies_every_capture_has_the_frozen_disks() {
    let fixture = Fixture::new(&DISKS, PLENTY);
    let stop = Stop::default();
    let mut replica: Vec<Vec<u8>> = DISKS.iter().map(|(_, size)| vec![0xee; *size]).collect();
    let mut base: Option<(Base, Captured)> = None;
    std::thread::scope(|scope| {
        let _end = stop.at_end();
        for (index, (name, _)) in DISKS.iter().enumerate() {
            let (fixture, stop) = (&fixture, &stop);
            scope.spawn(move || {
                let client = fixture.client(name);
                let mut dice = Dice::new(index as u64);
                while !stop.has_come() {
                    random_change(&mut dice, &client, 0..client.size());
                }
            });
        }
        let mut dice = Dice::new(1000);
        for sequence in 1..15 {
            let view = fixture.volume.freeze().unwrap();
            let expected = DISKS.map(|(name, _)| fixture.frozen(name));
            let mut stream = Vec::new();
            let plan = plan(
                &fixture,
                &view,
                base.as_ref().map(|(base, _)| *base),
                sequence,
            );
            let captured = capture(&plan, &mut stream, &mut |_| {}).unwrap();
            assert_eq!(captured.bytes, stream.len() as u64);
            if view.changes() == Changes::Tracked {
                assert_eq!(
                    captured.dirty_bytes.next_multiple_of(4096),
                    view.dirty_bytes()
                );
            }
            if dice.roll(4) == 0 {
                view.release(Outcome::Failed, PATIENCE).unwrap();
                continue;
            }
            apply(&stream, &mut replica);
            for (have, want) in replica.iter().zip(&expected) {
                assert!(have == want, "sequence {sequence}");
            }
            let next = Base {
                sequence: Sequence::new(sequence),
                id: captured.footer.id,
            };
            base = Some((next, captured));
            view.release(Outcome::Received, PATIENCE).unwrap();
        }
    });
    assert!(base.is_some());
}
