use super::*;
use crate::UtcOffset;
use crate::service_settings::ReplicationServiceSettings;
use crate::statistics::MonitoringCycle;

/// 2026-11-25T12:00:00Z.
const NOON: u64 = 1_795_608_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn cycle() -> MonitoringCycle {
    MonitoringCycle::of(&ReplicationServiceSettings::with_defaults(UtcOffset::UTC))
}

fn statistics() -> ReplicationStatistics {
    ReplicationStatistics::begin(at(NOON - 7000), &cycle())
}

/// A primary with nothing to complain about.
fn well(statistics: &ReplicationStatistics) -> Facts<'_> {
    Facts {
        now: at(NOON),
        mode: ReplicationMode::Primary,
        state: ReplicationState::Replicating,
        direction: Direction::Sends,
        statistics,
        last_exchange: Some(at(NOON - 60)),
        cannot_send: None,
        unfinished: None,
        cause: None,
        catalog: Catalog::Usable,
        verification: Verification::Verified,
        space: Some(Space {
            free: 50,
            total: 100,
        }),
        reserve: Reserve::Held,
        clocks: Some((at(NOON - 60), at(NOON - 60))),
        certificate_expires: Some(at(NOON + 365 * 86_400)),
        backlog: Some(Backlog {
            estimate: Duration::from_secs(3),
            limit: Duration::from_secs(60),
        }),
    }
}

fn reasons(facts: &Facts<'_>) -> Vec<HealthReason> {
    assess(facts).reasons
}

#[test]
fn a_relationship_that_is_well_has_no_reasons() {
    let statistics = statistics();
    for direction in [Direction::Sends, Direction::Receives] {
        let facts = Facts {
            direction,
            ..well(&statistics)
        };
        assert_eq!(
            assess(&facts),
            Health {
                value: ReplicationHealth::Ok,
                reasons: Vec::new()
            }
        );
    }
}

#[test]
fn a_vm_without_replication_has_no_health() {
    let statistics = statistics();
    for (mode, state) in [
        (ReplicationMode::None, ReplicationState::Disabled),
        (ReplicationMode::TestReplica, ReplicationState::Critical),
        (ReplicationMode::Primary, ReplicationState::Disabled),
    ] {
        let facts = Facts {
            mode,
            state,
            cannot_send: Some("the link is down".to_owned()),
            ..well(&statistics)
        };
        let health = assess(&facts);
        assert_eq!(
            (health.value, health.reasons),
            (ReplicationHealth::NotApplicable, Vec::new())
        );
    }
}

#[test]
fn every_state_has_the_health_of_the_contract_on_both_sides() {
    use ReplicationHealth::{Critical, Ok, Warning};
    let statistics = statistics();
    let expected = |state: ReplicationState| match state.number() {
        1 | 2 => (Warning, Warning),
        5 | 6 | 12 => (Warning, Warning),
        7 => (Warning, Critical),
        8 | 9 | 11 | 16 | 17 => (Critical, Critical),
        10 => (Warning, Warning),
        _ => (Ok, Ok),
    };
    for &state in ReplicationState::ALL
        .iter()
        .filter(|state| state.number() != 0)
    {
        let value = |direction| {
            assess(&Facts {
                state,
                direction,
                ..well(&statistics)
            })
            .value
        };
        assert_eq!(
            (value(Direction::Sends), value(Direction::Receives)),
            expected(state),
            "{state}"
        );
    }
}

#[test]
fn a_critical_state_says_its_cause() {
    let statistics = statistics();
    let facts = Facts {
        state: ReplicationState::Critical,
        cause: Some("the replica's folder is gone".to_owned()),
        ..well(&statistics)
    };
    let health = assess(&facts);
    assert_eq!(health.reasons.len(), 1);
    assert!(
        health.reasons[0]
            .to_string()
            .ends_with("the replica's folder is gone")
    );
}

#[test]
fn more_than_a_fifth_of_the_cycles_missed_is_a_warning() {
    let mut statistics = statistics();
    for _ in 0..4 {
        statistics.succeeded(1, Duration::from_secs(1));
    }
    statistics.missed(1);
    assert_eq!(reasons(&well(&statistics)), []);
    statistics.missed(1);
    assert_eq!(
        reasons(&well(&statistics)),
        [HealthReason::CyclesMissed { missed: 2, due: 6 }]
    );
    assert_eq!(assess(&well(&statistics)).value, ReplicationHealth::Warning);
}

#[test]
fn an_average_transfer_of_more_than_five_minutes_is_a_warning() {
    let mut statistics = statistics();
    statistics.succeeded(1, Duration::from_secs(300));
    assert_eq!(reasons(&well(&statistics)), []);
    statistics.succeeded(1, Duration::from_secs(303));
    assert_eq!(
        reasons(&well(&statistics)),
        [HealthReason::TransfersSlow {
            average_seconds: 301
        }]
    );
}

#[test]
fn more_than_an_hour_of_silence_is_a_warning_on_each_side() {
    let statistics = statistics();
    let silent = |direction, seconds| {
        reasons(&Facts {
            direction,
            last_exchange: Some(at(NOON - seconds)),
            ..well(&statistics)
        })
    };
    assert_eq!(silent(Direction::Sends, 3600), []);
    assert_eq!(
        silent(Direction::Sends, 3601),
        [HealthReason::NothingSent { seconds: 3601 }]
    );
    assert_eq!(
        silent(Direction::Receives, 3601),
        [HealthReason::NothingReceived { seconds: 3601 }]
    );
}

#[test]
fn silence_before_the_first_exchange_or_by_a_clock_set_back_is_none() {
    let statistics = statistics();
    for last_exchange in [None, Some(at(NOON + 9000))] {
        assert_eq!(
            reasons(&Facts {
                last_exchange,
                ..well(&statistics)
            }),
            []
        );
    }
}

#[test]
fn a_prepared_or_failed_over_vm_is_not_silent() {
    let statistics = statistics();
    for (state, count) in [
        (ReplicationState::SyncedReplicationComplete, 0),
        (ReplicationState::Committed, 1),
        (ReplicationState::Suspended, 2),
    ] {
        let facts = Facts {
            state,
            last_exchange: Some(at(NOON - 9000)),
            ..well(&statistics)
        };
        assert_eq!(reasons(&facts).len(), count, "{state}");
    }
}

#[test]
fn a_reset_turns_a_warning_of_statistics_into_ok_and_no_other() {
    let mut before = statistics();
    before.succeeded(1, Duration::from_secs(999));
    before.missed(50);
    let silent = |statistics| Facts {
        last_exchange: Some(at(NOON - 4000)),
        ..well(statistics)
    };
    assert_eq!(reasons(&silent(&before)).len(), 3);
    let after = before.reset(at(NOON - 1), &cycle());
    assert_eq!(assess(&silent(&after)).value, ReplicationHealth::Ok);
    let later = Facts {
        now: at(NOON + 3600),
        ..silent(&after)
    };
    assert_eq!(
        reasons(&later),
        [HealthReason::NothingSent { seconds: 3601 }],
        "it arises anew"
    );
    for state in [
        ReplicationState::WaitingToCompleteInitialReplication,
        ReplicationState::Suspended,
        ReplicationState::Recovered,
    ] {
        let facts = Facts {
            state,
            ..well(&after)
        };
        assert_eq!(assess(&facts).value, ReplicationHealth::Warning, "{state}");
    }
}

#[test]
fn trouble_of_the_host_is_named_with_its_measure() {
    let statistics = statistics();
    let well = || well(&statistics);
    let expires = at(NOON + 29 * 86_400);
    for (facts, reason) in [
        (
            Facts {
                cannot_send: Some("connection refused".to_owned()),
                ..well()
            },
            HealthReason::CannotSend {
                cause: "connection refused".to_owned(),
            },
        ),
        (
            Facts {
                verification: Verification::Unverified,
                ..well()
            },
            HealthReason::Unverified,
        ),
        (
            Facts {
                space: Some(Space {
                    free: 9,
                    total: 100,
                }),
                ..well()
            },
            HealthReason::SpaceLow {
                free: 9,
                total: 100,
            },
        ),
        (
            Facts {
                space: Some(Space {
                    free: 2,
                    total: 100,
                }),
                ..well()
            },
            HealthReason::SpaceCritical {
                free: 2,
                total: 100,
            },
        ),
        (
            Facts {
                reserve: Reserve::Missing { bytes: 7 },
                ..well()
            },
            HealthReason::ReserveMissing { bytes: 7 },
        ),
        (
            Facts {
                clocks: Some((at(NOON), at(NOON + 31))),
                ..well()
            },
            HealthReason::ClocksDiffer { seconds: 31 },
        ),
        (
            Facts {
                clocks: Some((at(NOON + 31), at(NOON))),
                ..well()
            },
            HealthReason::ClocksDiffer { seconds: 31 },
        ),
        (
            Facts {
                certificate_expires: Some(expires),
                ..well()
            },
            HealthReason::CertificateExpires { at: expires },
        ),
        (
            Facts {
                certificate_expires: Some(at(NOON)),
                ..well()
            },
            HealthReason::CertificateExpired { at: at(NOON) },
        ),
        (
            Facts {
                unfinished: Some("the store cannot be opened".to_owned()),
                ..well()
            },
            HealthReason::OperationUnfinished {
                cause: "the store cannot be opened".to_owned(),
            },
        ),
        (
            Facts {
                catalog: Catalog::Stopped,
                ..well()
            },
            HealthReason::CatalogStopped,
        ),
        (
            Facts {
                backlog: Some(Backlog {
                    estimate: Duration::from_secs(61),
                    limit: Duration::from_secs(60),
                }),
                ..well()
            },
            HealthReason::BacklogTooLong {
                seconds: 61,
                limit_seconds: 60,
            },
        ),
    ] {
        let health = assess(&facts);
        assert_eq!(health.value, reason.health());
        assert_eq!(health.reasons, [reason]);
    }
}

#[test]
fn at_its_limit_nothing_is_wrong_yet() {
    let statistics = statistics();
    let facts = Facts {
        space: Some(Space {
            free: 10,
            total: 100,
        }),
        clocks: Some((at(NOON), at(NOON + 30))),
        certificate_expires: Some(at(NOON + 30 * 86_400)),
        backlog: Some(Backlog {
            estimate: Duration::from_secs(60),
            limit: Duration::from_secs(60),
        }),
        ..well(&statistics)
    };
    assert_eq!(reasons(&facts), []);
    let unknown = Facts {
        space: None,
        clocks: None,
        certificate_expires: None,
        backlog: None,
        ..well(&statistics)
    };
    assert_eq!(reasons(&unknown), []);
    let no_space_at_all = Facts {
        space: Some(Space { free: 0, total: 0 }),
        ..well(&statistics)
    };
    assert_eq!(reasons(&no_space_at_all), []);
    let large = Facts {
        space: Some(Space {
            free: u64::MAX,
            total: u64::MAX,
        }),
        ..well(&statistics)
    };
    assert_eq!(reasons(&large), []);
}

#[test]
fn the_worst_reason_comes_first_and_gives_the_value() {
    let mut statistics = statistics();
    statistics.missed(9);
    let facts = Facts {
        state: ReplicationState::Suspended,
        reserve: Reserve::Missing { bytes: 1 },
        ..well(&statistics)
    };
    let health = assess(&facts);
    assert_eq!(health.value, ReplicationHealth::Critical);
    let severities: Vec<_> = health
        .reasons
        .iter()
        .map(|reason| reason.health().number())
        .collect();
    assert_eq!(severities, [3, 2, 2]);
}

#[test]
fn a_reason_is_written_with_a_stable_name_and_its_measures() {
    let json = |reason: HealthReason| serde_json::to_string(&reason).unwrap();
    assert_eq!(
        json(HealthReason::CyclesMissed { missed: 2, due: 6 }),
        r#"{"reason":"cycles_missed","missed":2,"due":6}"#
    );
    assert_eq!(
        json(HealthReason::PausedOnReplica),
        r#"{"reason":"paused_on_replica"}"#
    );
}
