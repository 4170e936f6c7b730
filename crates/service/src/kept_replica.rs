//! A replica that the other host has kept is taken up by a primary that knows nothing of it any
//! more, because its catalog was lost.
//!
//! Nothing is overwritten here: the replica hears of the new history, and its disks are compared
//! when somebody asks for it. Whoever crashes before the relationship is saved may ask again.

use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{Effect, Record};
use lifeboat_model::settings::ReplicationSettings;
use lifeboat_model::{LineageId, RelationshipId};
use lifeboat_peer::{ChangeSettings, SessionRequest};

use crate::adoption::first_lineage;
use crate::api::{Accepted, Rejection, Severity};
use crate::manage::random_id;
use crate::rejection::{failed, rejection_of_link};
use crate::relation::PeerPlace;
use crate::service::{Service, with_causes};
use crate::session::view_of;
use crate::vm::{Task, VmArc};

impl Service {
    pub(crate) fn take_up_replica(
        &self,
        vm: &VmArc,
        settings: ReplicationSettings,
        peer: PeerPlace,
        relationship: RelationshipId,
    ) -> Result<Accepted, Rejection> {
        let unreached = |error| rejection_of_link("take up the replica that is kept there", &error);
        let link = self.link(&peer).map_err(unreached)?;
        let lineage = LineageId::from_bytes(random_id()?);
        let report = link
            .begin_session(SessionRequest {
                relationship,
                lineage: first_lineage(lineage),
                ancestors: Vec::new(),
                last_receipt: None,
                wall_clock: self.now(),
            })
            .map_err(unreached)?;
        let view = view_of(&report);
        let refused = |what: &str, remedy: &str| Rejection {
            code: ReturnCode::InvalidState,
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        };
        if view.has_taken_over {
            return Err(refused(
                "the other host has taken the VM over",
                "revert the failover there, or replicate from there to here",
            ));
        }
        let Some((tip, _)) = view.tip else {
            return Err(refused(
                "the replica that is kept there holds nothing yet",
                "remove it there, and enable replication without naming it",
            ));
        };
        let definition = vm.core().definition.clone();
        // It is refused there for another VM.
        link.change_settings(ChangeSettings {
            relationship,
            settings: serde_json::to_value(&settings)
                .map_err(|error| failed(format!("write the settings: {error}")))?,
            definition: serde_json::to_value(&definition)
                .map_err(|error| failed(format!("write the definition: {error}")))?,
        })
        .map_err(unreached)?;
        // Maps of before the loss may have moments whose numbers are drawn again.
        self.inner
            .hypervisor
            .stop_tracking(vm.id)
            .map_err(|error| failed(format!("forget old maps: {}", with_causes(&error))))?;
        let record = Record::taking_up(vm.id, relationship, &view, tip, lineage);
        let to = peer.host.clone();
        self.begin_relation(vm, record, settings, peer)?;
        let message = format!(
            "{}: the replica that {to} has kept is taken up; it is compared and goes on with a resynchronization",
            vm.name()
        );
        self.report(Some(vm.id), Severity::Warning, "replica_taken_up", &message);
        // The replica hears of the new history, so that a comparison can begin at once.
        self.work_on(vm, [Task::Effect(Effect::OpenSession)]);
        Ok(Accepted::Completed)
    }
}
