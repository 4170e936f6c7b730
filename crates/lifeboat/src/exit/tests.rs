//! Every refusal has its exit code.

use lifeboat_model::{DeltaId, LineageId, RelationshipId, Sequence};

use super::*;

/// Every way in which a store refuses, with the exit code it must have.
fn every_refusal() -> Vec<(Refused, Exit)> {
    let path = PathBuf::from("/srv/vm");
    let relationship = RelationshipId::from_bytes([1; 16]);
    let lineage = LineageId::from_bytes([2; 16]);
    let sequence = Sequence::new(3);
    let delta = DeltaId::from_bytes([4; 32]);
    let not_found = [
        Refused::NoStore { path: path.clone() },
        Refused::NoPoint { sequence },
        Refused::NoBoundary { number: 3 },
        Refused::NoImage { path: path.clone() },
        Refused::NoDisk {
            disk: "sda".parse().unwrap(),
        },
    ];
    let unavailable = [
        Refused::InUse {
            holder: "somebody".to_owned(),
        },
        Refused::ImageInUse { path: path.clone() },
        Refused::PointInUse { sequence, users: 1 },
    ];
    let refused = [
        Refused::NotEmpty { path },
        Refused::Reopen,
        Refused::NoteTooLong { bytes: 1 },
        Refused::BadDisks,
        Refused::OtherRelationship {
            theirs: relationship,
            ours: relationship,
        },
        Refused::OtherLineage {
            theirs: lineage,
            ours: lineage,
        },
        Refused::UnknownBase {
            base: sequence,
            tip: sequence,
        },
        Refused::OtherBase {
            sequence,
            theirs: delta,
            ours: delta,
        },
        Refused::OtherContent {
            sequence,
            theirs: delta,
            ours: delta,
        },
        Refused::TooOld {
            sequence,
            tip: sequence,
        },
        Refused::NotInitial,
        Refused::OtherDisks {
            theirs: "sda".to_owned(),
            ours: "sdb".to_owned(),
        },
        Refused::NothingApplied { purpose: "show" },
        Refused::TooManySegments { limit: 32 },
        Refused::OldCopy {
            sequence,
            newest: sequence,
        },
        Refused::NotEmptyForCopy { applied: sequence },
        Refused::NotCopying,
        Refused::OtherCopy {
            theirs: sequence,
            ours: sequence,
        },
        Refused::CopyClosing,
        Refused::BadPiece {
            disk: "sda".parse().unwrap(),
            end: 1,
            size: 512,
        },
        Refused::ScatteredCopy,
        Refused::Mixed {
            purpose: "make a recovery point of",
        },
        Refused::Copying { sequence },
        Refused::CopyIncomplete { sequence },
        Refused::CopyNeeded,
        Refused::NotCommitted,
        Refused::NotDescended { from: lineage },
        Refused::BadImage {
            path: PathBuf::from("/srv/image"),
            bytes: 1,
        },
        Refused::OtherFailoverDisks,
        Refused::FailedOver,
        Refused::NotFailedOver { purpose: "show" },
        Refused::Committing,
        Refused::Committed,
    ];
    let with = |exit| move |refused| (refused, exit);
    let mut every: Vec<_> = not_found.into_iter().map(with(Exit::NotFound)).collect();
    every.extend(unavailable.into_iter().map(with(Exit::Unavailable)));
    every.extend(refused.into_iter().map(with(Exit::Refused)));
    every
}

#[test]
fn every_refusal_has_the_exit_code_of_its_kind() {
    let every = every_refusal();
    let kinds: std::collections::HashSet<_> = every
        .iter()
        .map(|(refused, _)| std::mem::discriminant(refused))
        .collect();
    assert_eq!(kinds.len(), every.len(), "each kind once");
    for (refused, exit) in every {
        let text = refused.to_string();
        let failure = Failure::from(StoreError::from(refused));
        assert_eq!(failure.exit(), exit, "{text}");
        assert!([3, 5, 6].contains(&failure.exit().code()), "{text}");
        assert!(failure.to_text().starts_with(&format!("error: {text}\n")));
    }
}

#[test]
fn every_return_code_of_a_host_has_an_exit_code_of_its_kind() {
    let exits: Vec<(u16, u8)> = ReturnCode::ALL
        .iter()
        .map(|&code| (code.number(), of_return_code(code).code()))
        .collect();
    assert_eq!(
        exits,
        [
            (0, 0),
            (4096, 1),
            (32768, 1),
            (32769, 4),
            (32770, 3),
            (32771, 1),
            (32772, 6),
            (32773, 2),
            (32774, 6),
            (32775, 3),
            (32776, 2),
            (32777, 6),
            (32778, 1),
            (32779, 5),
        ]
    );
}

#[test]
fn what_the_system_says_decides_where_it_is_about_a_name() {
    let of = |kind: io::ErrorKind| {
        let path = PathBuf::from("/srv/x");
        let what = "open";
        let source = io::Error::from(kind);
        Failure::File { what, path, source }.exit()
    };
    assert_eq!(of(io::ErrorKind::NotFound), Exit::NotFound);
    assert_eq!(of(io::ErrorKind::PermissionDenied), Exit::AccessDenied);
    assert_eq!(of(io::ErrorKind::ReadOnlyFilesystem), Exit::AccessDenied);
    assert_eq!(of(io::ErrorKind::AddrInUse), Exit::Unavailable);
    assert_eq!(of(io::ErrorKind::Other), Exit::Failed);
}

#[test]
fn an_error_on_a_terminal_has_no_control_characters_but_its_own() {
    let what = "the server said \u{1b}[2J\rdone\nerror: none".to_owned();
    let text = Failure::Usage { what }.to_text();
    assert_eq!(
        text,
        "error: the server said \u{fffd}[2J\u{fffd}done\u{fffd}error: none\n"
    );
}

#[test]
fn a_file_missing_inside_a_store_is_a_failure_and_no_wrong_name() {
    let missing = |kind: io::ErrorKind| {
        Failure::from(StoreError::Io {
            what: "open",
            path: PathBuf::from("/srv/vm/disks/sda/head.raw"),
            source: kind.into(),
        })
    };
    assert_eq!(missing(io::ErrorKind::NotFound).exit(), Exit::Failed);
    let denied = missing(io::ErrorKind::PermissionDenied);
    assert_eq!(denied.exit(), Exit::AccessDenied);
    assert_eq!(
        denied.to_text(),
        "error: open /srv/vm/disks/sda/head.raw\n  because: permission denied\n  \
         hint: run as the user who owns the file or folder\n"
    );
}
