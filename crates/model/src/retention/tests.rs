use proptest::prelude::*;

use super::*;

const HOUR: u64 = 3600;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

fn history(points: u8) -> RecoveryHistory {
    RecoveryHistory::new(points).unwrap()
}

fn floor(points: u64, hours: u64) -> RetentionFloor {
    UncheckedRetentionFloor { points, hours }
        .validate()
        .unwrap()
}

fn policy(points: u8) -> RetentionPolicy {
    RetentionPolicy {
        history: history(points),
        spacing: Duration::from_secs(HOUR),
        floor: RetentionFloor::NONE,
        promises: HistoryPromises::default(),
    }
}

fn point(sequence: u64, kind: PointKind, opened: u64) -> ExistingPoint {
    ExistingPoint {
        sequence: Sequence::new(sequence),
        kind,
        opened_at: at(opened),
        usage: PointUsage::Free,
    }
}

/// A replica that applies one delta after the other and does what the policy says.
struct Replica {
    policy: RetentionPolicy,
    points: Vec<ExistingPoint>,
    sequence: u64,
    removed: Vec<Sequence>,
}

impl Replica {
    fn new(policy: RetentionPolicy) -> Self {
        Self {
            policy,
            points: Vec::new(),
            sequence: 0,
            removed: Vec::new(),
        }
    }

    fn apply(&mut self, kind: PointKind, now: u64) -> PointDecision {
        self.sequence += 1;
        let decision = self.policy.decide(&self.points, kind, at(now));
        if decision == PointDecision::Open {
            self.points.push(point(self.sequence, kind, now));
        }
        let expired = self.policy.expired(&self.points, at(now));
        self.points
            .retain(|point| !expired.contains(&point.sequence));
        self.removed.extend(expired);
        decision
    }

    fn change_history(&mut self, points: u8) {
        let (old, new) = (self.policy.history, history(points));
        let newest = Sequence::new(self.sequence);
        self.policy.promises = self.policy.promises.after_change(newest, old, new);
        self.policy.history = new;
    }

    fn opened(&self) -> Vec<u64> {
        self.points
            .iter()
            .map(|point| point.opened_at.as_micros() / 1_000_000)
            .collect()
    }
}

const STANDARD: PointKind = PointKind::Standard;
const CONSISTENT: PointKind = PointKind::ApplicationConsistent;
const PLANNED: PointKind = PointKind::PlannedFailover;

#[test]
fn the_first_moment_is_a_point_and_the_next_one_an_hour_later() {
    let mut replica = Replica::new(policy(24));
    for (now, decision) in [
        (100, PointDecision::Open),
        (400, PointDecision::TooSoon),
        (3699, PointDecision::TooSoon),
        (3700, PointDecision::Open),
        (3701, PointDecision::TooSoon),
    ] {
        assert_eq!(replica.apply(STANDARD, now), decision, "{now}");
    }
}

#[test]
fn with_a_history_of_24_a_day_of_cycles_leaves_24_points_an_hour_apart() {
    let mut replica = Replica::new(policy(24));
    for cycle in 0..3 * 24 * 12 {
        replica.apply(STANDARD, cycle * 300);
    }
    let expected: Vec<u64> = (48..72).map(|hour| hour * HOUR).collect();
    assert_eq!(replica.opened(), expected);
    assert_eq!(replica.removed.len(), 48);
}

#[test]
fn without_a_history_and_a_floor_no_point_is_opened() {
    for &kind in PointKind::ALL {
        assert_eq!(policy(0).decide(&[], kind, at(0)), PointDecision::NoneKept);
    }
    let mut floored = policy(0);
    floored.floor = floor(2, 0);
    assert_eq!(floored.decide(&[], STANDARD, at(0)), PointDecision::Open);
    floored.floor = floor(0, 5);
    assert_eq!(floored.decide(&[], STANDARD, at(0)), PointDecision::Open);
}

#[test]
fn application_consistent_and_planned_moments_are_points_between_the_hours() {
    let points = [point(1, STANDARD, 0)];
    let decide = |kind| policy(24).decide(&points, kind, at(60));
    assert_eq!(decide(STANDARD), PointDecision::TooSoon);
    assert_eq!(decide(CONSISTENT), PointDecision::Open);
    assert_eq!(decide(PLANNED), PointDecision::Open);
}

#[test]
fn a_standard_point_waits_for_its_spacing_after_a_point_of_any_kind() {
    let decide = |points: &[ExistingPoint], now| policy(24).decide(points, STANDARD, at(now));
    let consistent = [point(1, CONSISTENT, 1800)];
    assert_eq!(decide(&consistent, 5399), PointDecision::TooSoon);
    assert_eq!(decide(&consistent, 5400), PointDecision::Open);
    // Two points within the last two hours are as many as there should be.
    let both = [point(1, STANDARD, 0), point(2, CONSISTENT, 1800)];
    assert_eq!(decide(&both, 7199), PointDecision::TooSoon);
    assert_eq!(decide(&both, 7200), PointDecision::Open);
}

#[test]
fn hourly_application_consistent_points_come_each_hour_even_if_a_cycle_is_early() {
    let mut replica = Replica::new(policy(24));
    for hour in 0..48 {
        let early = if hour % 2 == 0 { 0 } else { 240 };
        assert_eq!(
            replica.apply(CONSISTENT, (hour + 1) * HOUR - early),
            PointDecision::Open
        );
    }
    // By count 24; the 25th waits for being a day old.
    assert!(
        (24..=25).contains(&replica.points.len()),
        "{}",
        replica.points.len()
    );
}

#[test]
fn a_flood_of_deltas_of_any_kind_prunes_nothing_early() {
    for &kind in PointKind::ALL {
        let mut replica = Replica::new(policy(24));
        for hour in 0..24 {
            replica.apply(STANDARD, hour * HOUR);
        }
        let before = replica.points.clone();
        for second in 0..3000 {
            replica.apply(kind, 23 * HOUR + 1 + second);
        }
        assert_eq!(replica.removed, [], "{kind}");
        assert_eq!(replica.points[..24], before, "{kind}");
        assert!(replica.points.len() <= MAX_POINTS, "{kind}");
    }
}

#[test]
fn a_full_store_opens_points_again_when_the_oldest_are_old_enough() {
    let mut replica = Replica::new(policy(24));
    for second in 0..60 {
        replica.apply(PLANNED, second);
    }
    assert_eq!(replica.points.len(), MAX_POINTS);
    assert_eq!(replica.apply(PLANNED, 23 * HOUR), PointDecision::Full);
    assert_eq!(replica.apply(STANDARD, 24 * HOUR + 60), PointDecision::Open);
    assert_eq!(replica.points.len(), 24);
}

#[test]
fn a_smaller_history_counts_for_new_points_only() {
    let mut replica = Replica::new(policy(24));
    for hour in 0..10 {
        replica.apply(STANDARD, hour * HOUR);
    }
    replica.change_history(0);
    assert_eq!(replica.apply(STANDARD, 10 * HOUR), PointDecision::NoneKept);
    assert_eq!(replica.points.len(), 10, "promised for a day");
    replica.apply(STANDARD, 24 * HOUR);
    assert_eq!(replica.opened()[0], HOUR, "the oldest has had its day");
    replica.apply(STANDARD, 33 * HOUR);
    assert!(replica.points.is_empty());
}

#[test]
fn a_history_that_is_lowered_and_raised_keeps_the_larger_promise() {
    let (day, few, none) = (history(24), history(3), history(0));
    let moment = Sequence::new;
    let lowered = HistoryPromises::default().after_change(moment(10), day, few);
    let twice = lowered.after_change(moment(20), few, none);
    assert_eq!(twice.to(moment(10), none), day);
    assert_eq!(twice.to(moment(11), none), few);
    assert_eq!(twice.to(moment(21), none), none);
    let raised = twice.after_change(moment(30), none, few);
    assert_eq!(raised.to(moment(5), few), day);
    assert_eq!(raised.to(moment(25), few), few);
    let all = raised.after_change(moment(40), few, day);
    assert_eq!(all, HistoryPromises::default());
    let flapping = lowered
        .after_change(moment(10), few, day)
        .after_change(moment(10), day, none);
    assert_eq!(flapping.to(moment(10), none), day);
    assert_eq!(flapping.to(moment(11), none), none);
}

#[test]
fn promises_out_of_order_are_refused_when_they_are_read() {
    let read = |json: &str| serde_json::from_str::<HistoryPromises>(json);
    assert!(read("[]").is_ok());
    assert!(read("[[3, 24], [9, 5]]").is_ok());
    for json in [
        "[[9, 24], [3, 5]]",
        "[[3, 5], [9, 24]]",
        "[[3, 5], [3, 4]]",
        "[[3, 25]]",
    ] {
        assert!(read(json).is_err(), "{json}");
    }
}

#[test]
fn the_floor_holds_by_points_and_by_hours_whatever_the_primary_asks() {
    let points: Vec<ExistingPoint> = (0..10)
        .map(|hour| point(hour + 1, STANDARD, hour * HOUR))
        .collect();
    let mut policy = policy(0);
    let left = |policy: &RetentionPolicy, now: u64| 10 - policy.expired(&points, at(now)).len();
    assert_eq!(left(&policy, 10 * HOUR), 0);
    policy.floor = floor(4, 0);
    assert_eq!(left(&policy, 1000 * HOUR), 4);
    policy.floor = floor(0, 5);
    assert_eq!(
        left(&policy, 10 * HOUR),
        4,
        "6, 7, 8 and 9 are younger than five hours"
    );
    assert_eq!(left(&policy, 1000 * HOUR), 1);
}

#[test]
fn a_floor_of_days_spreads_the_points_over_them() {
    let mut wide = policy(24);
    wide.floor = floor(0, 72);
    let mut replica = Replica::new(wide);
    for cycle in 0..2000 {
        replica.apply(STANDARD, cycle * 300);
    }
    let opened = replica.opened();
    assert!(1999 * 300 - opened[0] >= 69 * HOUR, "{opened:?}");
    assert!(
        opened.is_sorted_by(|older, newer| newer - older == 3 * HOUR),
        "{opened:?}"
    );
}

#[test]
fn ordinary_cycles_never_fill_the_store_whatever_the_settings() {
    for hours in [0, 24, 30, 72, 100, 720] {
        for consistent_hours in 1..=12 {
            for (history, spacing) in [(24, HOUR), (1, 300), (2, 300), (7, 1200), (5, 86_400)] {
                let mut policy = policy(history);
                policy.floor = floor(0, hours);
                policy.spacing = Duration::from_secs(spacing);
                let mut replica = Replica::new(policy);
                let mut consistent = 0;
                let cycles = (hours.max(24) * 2 + 50) * 12;
                for now in (0..cycles).map(|cycle| cycle * 301) {
                    let kind = if now >= consistent {
                        consistent = now + consistent_hours * HOUR;
                        CONSISTENT
                    } else {
                        STANDARD
                    };
                    let decision = replica.apply(kind, now);
                    assert_ne!(
                        decision,
                        PointDecision::Full,
                        "{hours} {consistent_hours} {now}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_point_in_use_stays_and_counts() {
    let mut points: Vec<ExistingPoint> = (0..5)
        .map(|hour| point(hour + 1, STANDARD, hour * HOUR))
        .collect();
    points[0].usage = PointUsage::InUse;
    let expired = policy(2).expired(&points, at(100 * HOUR));
    assert_eq!(expired, [Sequence::new(2), Sequence::new(3)]);
}

#[test]
fn a_clock_far_ahead_takes_no_more_than_the_count_allows() {
    let mut replica = Replica::new(policy(24));
    for hour in 0..24 {
        replica.apply(STANDARD, hour * HOUR);
    }
    let a_year = 365 * 24 * HOUR;
    replica.apply(STANDARD, a_year);
    assert_eq!(replica.removed, [Sequence::new(1)]);
    // Back in the present, points go on and nothing more is lost for a day.
    let present = 25 * HOUR;
    assert_eq!(replica.apply(STANDARD, present), PointDecision::Open);
    for cycle in 1..200 {
        replica.apply(STANDARD, present + cycle * 300);
    }
    assert!(replica.points.len() >= 24);
    // The point dated a year ahead goes like any other once newer ones tell its age.
    for cycle in 200..1200 {
        replica.apply(STANDARD, present + cycle * 300);
    }
    assert!(
        replica
            .points
            .iter()
            .all(|point| point.opened_at < at(a_year))
    );
    assert_eq!(replica.points.len(), 24);
}

#[test]
fn a_clock_set_back_a_little_delays_a_point_and_opens_none_too_many() {
    let points = [point(1, STANDARD, 10_000)];
    assert_eq!(
        policy(24).decide(&points, STANDARD, at(9_999)),
        PointDecision::TooSoon
    );
    assert_eq!(
        policy(24).decide(&points, STANDARD, at(6_401)),
        PointDecision::TooSoon
    );
    assert_eq!(
        policy(24).decide(&points, STANDARD, at(6_400)),
        PointDecision::Open
    );
    assert_eq!(policy(24).expired(&points, at(0)), []);
}

#[test]
fn the_order_of_the_list_does_not_matter() {
    let mut points: Vec<ExistingPoint> = (0..6)
        .map(|hour| point(hour + 1, STANDARD, hour * HOUR))
        .collect();
    let expected = policy(2).expired(&points, at(50 * HOUR));
    points.reverse();
    points.swap(1, 4);
    assert_eq!(policy(2).expired(&points, at(50 * HOUR)), expected);
}

#[derive(Debug, Clone)]
enum Action {
    Apply(PointKind),
    Pass(u64),
    Jump(i64),
    History(u8),
    Use(usize),
    Release,
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop::sample::select(PointKind::ALL).prop_map(Action::Apply),
        4 => (1..4000u64).prop_map(Action::Pass),
        1 => (-400_000..400_000i64).prop_map(Action::Jump),
        1 => (0..=24u8).prop_map(Action::History),
        1 => (0..30usize).prop_map(Action::Use),
        1 => Just(Action::Release),
    ]
}

fn any_policy() -> impl Strategy<Value = RetentionPolicy> {
    (0..=24u8, 0..=24u64, 0..=100u64, 300..10_000u64).prop_map(|(points, least, hours, spacing)| {
        RetentionPolicy {
            history: history(points),
            spacing: Duration::from_secs(spacing),
            floor: floor(least, hours),
            promises: HistoryPromises::default(),
        }
    })
}

proptest! {
    /// True time runs beside the clock, which jumps. Whatever happens: the count stays, nothing in
    /// use goes, and while the clock has not jumped nothing goes before its promised age.
    #[test]
    fn no_history_of_events_takes_a_point_that_was_promised(
        policy in any_policy(),
        actions in prop::collection::vec(any_action(), 1..250),
    ) {
        let mut replica = Replica::new(policy);
        let (mut clock, mut jumped) = (10_000_000i64, false);
        // What each point may count on, noted by other means than the policy's.
        let mut promised: std::collections::HashMap<u64, (i64, u64)> = std::collections::HashMap::new();
        for action in actions {
            let before = replica.points.clone();
            match action {
                Action::Apply(kind) => {
                    let hours = u64::from(replica.policy.history.points());
                    if replica.apply(kind, clock.cast_unsigned()) == PointDecision::Open {
                        promised.insert(replica.sequence, (clock, hours));
                    }
                }
                Action::Pass(seconds) => clock += seconds.cast_signed(),
                Action::Jump(seconds) => {
                    clock += seconds;
                    jumped = true;
                }
                Action::History(points) => replica.change_history(points),
                Action::Use(at) => {
                    let count = replica.points.len().max(1);
                    if let Some(point) = replica.points.get_mut(at % count) {
                        point.usage = PointUsage::InUse;
                    }
                }
                Action::Release => {
                    for point in &mut replica.points {
                        point.usage = PointUsage::Free;
                    }
                }
            }
            prop_assert!(replica.points.len() <= MAX_POINTS);
            let keep = usize::from(replica.policy.history.points().max(replica.policy.floor.points()));
            prop_assert!(replica.points.len() >= keep.min(before.len()));
            for gone in before.iter().filter(|point| !replica.points.iter().any(|one| one.sequence == point.sequence)) {
                prop_assert_eq!(gone.usage, PointUsage::Free);
                if !jumped {
                    let (opened, hours) = promised[&gone.sequence.number()];
                    let least = hours.max(replica.policy.floor.hours().as_secs() / HOUR) * HOUR;
                    prop_assert!((clock - opened).cast_unsigned() >= least);
                }
            }
            // Bounded, and readable again.
            let promises = serde_json::to_string(&replica.policy.promises).unwrap();
            prop_assert_eq!(
                &serde_json::from_str::<HistoryPromises>(&promises).unwrap(),
                &replica.policy.promises
            );
            prop_assert!(replica.policy.promises.earlier.len() <= 24);
        }
    }

    /// The oracle looks at each point alone, against all others.
    #[test]
    fn what_expires_is_what_a_look_at_each_point_says(
        policy in any_policy(),
        stamps in prop::collection::vec(0..500_000u64, 0..40),
        used in prop::collection::vec(any::<bool>(), 40),
        lowered in prop::option::of((0..40u64, 0..=24u8)),
        now in 0..1_000_000u64,
    ) {
        let mut policy = policy;
        if let Some((moment, old)) = lowered {
            policy.promises = HistoryPromises::default()
                .after_change(Sequence::new(moment), history(old), policy.history);
        }
        let points: Vec<ExistingPoint> = stamps
            .iter()
            .zip(&used)
            .enumerate()
            .map(|(index, (&opened, &used))| ExistingPoint {
                usage: if used { PointUsage::InUse } else { PointUsage::Free },
                ..point(index as u64 + 1, STANDARD, opened)
            })
            .collect();
        let keep = [u64::from(policy.history.points()), policy.floor.points().into(), u64::from(policy.floor.hours > 0)]
            .into_iter().max().unwrap();
        let expected: Vec<Sequence> = points.iter().filter(|point| {
            let number = point.sequence.number();
            let newer = points.iter().filter(|other| other.sequence > point.sequence).count() as u64;
            let stamp = points.iter().filter(|other| other.sequence >= point.sequence)
                .map(|other| other.opened_at.as_micros() / 1_000_000).min().unwrap();
            let age = now.saturating_sub(stamp);
            let hours = match lowered {
                Some((moment, old)) if number <= moment => old.max(policy.history.points()),
                _ => policy.history.points(),
            };
            let least = u64::from(hours).max(u64::from(policy.floor.hours)) * HOUR;
            newer >= keep && age >= least && point.usage == PointUsage::Free
        }).map(|point| point.sequence).collect();
        prop_assert_eq!(policy.expired(&points, at(now)), expected);
    }

    #[test]
    fn no_stamp_overflows(stamps in prop::collection::vec(any::<u64>(), 0..40), now: u64) {
        let points: Vec<ExistingPoint> = stamps.iter().enumerate().map(|(index, &stamp)| ExistingPoint {
            opened_at: Timestamp::from_micros(stamp),
            ..point(index as u64, CONSISTENT, 0)
        }).collect();
        let now = Timestamp::from_micros(now);
        for &kind in PointKind::ALL {
            let _ = policy(24).decide(&points, kind, now);
        }
        prop_assert!(policy(24).expired(&points, now).len() + 24 <= points.len().max(24));
    }
}
