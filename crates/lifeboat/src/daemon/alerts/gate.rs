//! No storms: the same is told once in a while, what is new at once.

use std::collections::BTreeMap;
use std::time::Duration;

use lifeboat_model::VmId;

use super::notice::{Alert, AlertKind};

/// Remembers what was told. Holds one entry for each VM, kind and degree of the last `repeat`.
#[derive(Debug)]
pub(super) struct Gate {
    repeat: Duration,
    told: BTreeMap<(Option<VmId>, AlertKind, &'static str), Duration>,
}

impl Gate {
    pub(super) const fn new(repeat: Duration) -> Self {
        Self {
            repeat,
            told: BTreeMap::new(),
        }
    }

    /// Whether people are told, at `elapsed` on a clock that only rises. One VM, kind and degree
    /// pass once in `repeat`: something that comes and goes tells nothing new.
    pub(super) fn admits(&mut self, alert: &Alert, elapsed: Duration) -> bool {
        let repeat = self.repeat;
        self.told
            .retain(|(_, kind, _), told| elapsed.saturating_sub(*told) < repeat_of(*kind, repeat));
        let key = (alert.vm, alert.kind, alert.degree);
        if self.told.contains_key(&key) {
            return false;
        }
        self.told.insert(key, elapsed);
        true
    }
}

/// A certificate is known to expire for weeks: once a day says enough.
fn repeat_of(kind: AlertKind, repeat: Duration) -> Duration {
    match kind {
        AlertKind::CertificateExpiring => repeat.max(Duration::from_secs(86_400)),
        AlertKind::ReplicationCritical
        | AlertKind::RpoMissed
        | AlertKind::DiskFilling
        | AlertKind::SplitBrain
        | AlertKind::ApplyFailed
        | AlertKind::OperationFailed => repeat,
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_model::Timestamp;
    use lifeboat_service::api::Severity;

    use super::*;

    fn alert(vm: u8, kind: AlertKind, degree: &'static str) -> Alert {
        Alert {
            kind,
            degree,
            severity: Severity::Error,
            vm: Some(VmId::from_bytes([vm; 16])),
            vm_name: None,
            at: Timestamp::from_micros(1),
            message: "something".to_owned(),
            remedy: String::new(),
        }
    }

    #[test]
    fn the_same_passes_once_in_the_time_and_again_after_it() {
        let mut gate = Gate::new(Duration::from_secs(3600));
        let critical = alert(1, AlertKind::ReplicationCritical, "");
        assert!(gate.admits(&critical, Duration::ZERO));
        for second in [0, 1, 30, 3599] {
            assert!(!gate.admits(&critical, Duration::from_secs(second)));
        }
        assert!(gate.admits(&critical, Duration::from_secs(3600)));
        assert!(!gate.admits(&critical, Duration::from_secs(3601)));
    }

    #[test]
    fn another_vm_another_kind_and_another_degree_pass_at_once() {
        let mut gate = Gate::new(Duration::from_secs(3600));
        assert!(gate.admits(&alert(1, AlertKind::DiskFilling, "low"), Duration::ZERO));
        for new in [
            alert(2, AlertKind::DiskFilling, "low"),
            alert(1, AlertKind::RpoMissed, "low"),
            alert(1, AlertKind::DiskFilling, "critical"),
        ] {
            assert!(gate.admits(&new, Duration::ZERO), "{new:?}");
        }
    }

    #[test]
    fn what_goes_back_and_forth_is_no_storm() {
        let mut gate = Gate::new(Duration::from_secs(3600));
        let passed = (0..1000_u64)
            .filter(|second| {
                let degree = if second % 2 == 0 { "low" } else { "critical" };
                let alert = alert(1, AlertKind::DiskFilling, degree);
                gate.admits(&alert, Duration::from_secs(*second))
            })
            .count();
        assert_eq!(passed, 2);
    }

    #[test]
    fn what_was_told_long_ago_is_forgotten() {
        let mut gate = Gate::new(Duration::from_secs(10));
        for vm in 0..200 {
            let second = Duration::from_secs(u64::from(vm));
            assert!(gate.admits(&alert(vm, AlertKind::RpoMissed, ""), second));
            assert!(gate.told.len() <= 10);
        }
    }

    #[test]
    fn a_certificate_is_told_once_a_day() {
        let mut gate = Gate::new(Duration::from_secs(3600));
        let passed = (0..72_u64)
            .filter(|hour| {
                let alert = alert(1, AlertKind::CertificateExpiring, "expires");
                gate.admits(&alert, Duration::from_secs(hour * 3600))
            })
            .count();
        assert_eq!(passed, 3);
    }
}
