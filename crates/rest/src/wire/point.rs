//! Recovery points.

use lifeboat_service::api::PointView;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// The number of its moment.
    pub sequence: u64,
    /// `standard`, `application_consistent` or `planned_failover`: the schema has no number.
    pub kind: String,
    /// When the VM was frozen, by the clock of the host that ran it.
    pub creation_time: Time,
    /// When it became a recovery point, by the clock of the host that keeps it.
    pub opened_time: Time,
    /// It belongs to a history that was left behind: what the loser of a failover had written.
    pub abandoned: bool,
    /// Not so where a reversal has relied on maps, and the comparison of everything that follows
    /// had not ended when the point was made.
    pub verified: bool,
    /// Whether QEMU's own tools open it.
    pub sealed: bool,
    pub in_use: bool,
}

impl From<PointView> for Point {
    fn from(view: PointView) -> Self {
        use lifeboat_model::contract::PointKind;
        let kind = match view.kind {
            PointKind::Standard => "standard",
            PointKind::ApplicationConsistent => "application_consistent",
            PointKind::PlannedFailover => "planned_failover",
        };
        Self {
            sequence: view.sequence.number(),
            kind: kind.to_owned(),
            creation_time: view.captured_at.into(),
            opened_time: view.opened_at.into(),
            abandoned: view.abandoned,
            verified: view.verified,
            sealed: view.sealed,
            in_use: view.in_use,
        }
    }
}
