//! Replication of a VM.

use axum::Json;
use axum::response::Response;
use lifeboat_service::api::VmOperation;

use super::{Refused, Started, VmInPath};
use crate::front::{Body, OnVm};
use crate::problem::Problem;
use crate::wire::{
    EnableReplication, Nothing, Relationship, Resynchronize, ReverseReplication, SettingsChange,
    StartReplication,
};

/// The VM's relationships: none, one, or two with a third site.
#[utoipa::path(get, path = "/v1/vms/{vm}/replication", tag = "replication",
    operation_id = "replication_list", params(VmInPath),
    responses((status = 200, body = [Relationship]), Refused))]
pub(super) async fn list(vm: OnVm) -> Result<Json<Vec<Relationship>>, Problem> {
    let vm = vm
        .ask(|operations, caller, vm| operations.vm(caller, vm))
        .await?;
    Ok(Json(
        vm.relationships
            .into_iter()
            .map(Relationship::from)
            .collect(),
    ))
}

/// Enables replication to another host.
#[utoipa::path(post, path = "/v1/vms/{vm}/replication", tag = "replication",
    operation_id = "replication_enable", params(VmInPath), request_body = EnableReplication,
    responses(Started))]
pub(super) async fn enable(
    vm: OnVm,
    Body(enable): Body<EnableReplication>,
) -> Result<Response, Problem> {
    vm.request(enable.try_into()?).await
}

/// Changes settings of the relationship; what is absent stays.
#[utoipa::path(patch, path = "/v1/vms/{vm}/replication", tag = "replication",
    operation_id = "replication_modify", params(VmInPath), request_body = SettingsChange,
    responses(Started))]
pub(super) async fn modify(
    vm: OnVm,
    Body(change): Body<SettingsChange>,
) -> Result<Response, Problem> {
    vm.request(VmOperation::ModifySettings(change.into())).await
}

/// Removes the relationship on this host. The VM stays; its recovery points do not.
#[utoipa::path(
    delete,
    path = "/v1/vms/{vm}/replication",
    tag = "replication",
    operation_id = "replication_remove",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn remove(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::RemoveReplication).await
}

/// Starts the initial replication, now or later.
#[utoipa::path(post, path = "/v1/vms/{vm}/replication/start", tag = "replication",
    operation_id = "replication_start", params(VmInPath), request_body = StartReplication,
    responses(Started))]
pub(super) async fn start(
    vm: OnVm,
    Body(start): Body<StartReplication>,
) -> Result<Response, Problem> {
    vm.request(start.try_into()?).await
}

/// Cancels the initial replication that runs or waits.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/replication/cancel-initial",
    tag = "replication",
    operation_id = "replication_cancel_initial",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn cancel_initial(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::CancelInitialReplication).await
}

/// Suspends replication.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/replication/suspend",
    tag = "replication",
    operation_id = "replication_suspend",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn suspend(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::Suspend).await
}

/// Resumes replication.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/replication/resume",
    tag = "replication",
    operation_id = "replication_resume",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn resume(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::Resume).await
}

/// Compares both sides and sends what differs, now or later.
#[utoipa::path(post, path = "/v1/vms/{vm}/replication/resync", tag = "replication",
    operation_id = "replication_resync", params(VmInPath), request_body = Resynchronize,
    responses(Started))]
pub(super) async fn resynchronize(
    vm: OnVm,
    Body(resynchronize): Body<Resynchronize>,
) -> Result<Response, Problem> {
    vm.request(resynchronize.into()).await
}

/// Cancels the resynchronization that runs or waits.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/replication/cancel-resync",
    tag = "replication",
    operation_id = "replication_cancel_resync",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn cancel_resynchronize(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::CancelResynchronize).await
}

/// Replicates the other way round after a failover.
#[utoipa::path(post, path = "/v1/vms/{vm}/replication/reverse", tag = "replication",
    operation_id = "replication_reverse", params(VmInPath), request_body = ReverseReplication,
    responses(Started))]
pub(super) async fn reverse(
    vm: OnVm,
    Body(reverse): Body<ReverseReplication>,
) -> Result<Response, Problem> {
    vm.request(reverse.into()).await
}

/// Sends what has changed now, without waiting for the next cycle. The job ends when the replica
/// has it.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/replication/now",
    tag = "replication",
    operation_id = "replication_now",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn now(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::ReplicateNow).await
}
