//! VMs, and how they are doing.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use lifeboat_service::api::{NewVm, VmOperation};

use super::{Changed, Refused, Started, VmInPath};
use crate::front::{Body, Call, OnVm};
use crate::problem::Problem;
use crate::wire::{Check, DefineVm, Health, Nothing, Statistics, StopVm, Vm};

/// All VMs that this host knows.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", operation_id = "vm_list",
    responses((status = 200, body = [Vm]), Refused))]
pub(super) async fn list(call: Call) -> Result<Json<Vec<Vm>>, Problem> {
    let vms = call
        .ask(|operations, caller| operations.vms(caller))
        .await?;
    Ok(Json(vms.into_iter().map(Vm::from).collect()))
}

/// Makes a VM of the embedded driver.
#[utoipa::path(post, path = "/v1/vms", tag = "vms", operation_id = "vm_define",
    request_body = DefineVm, responses((status = 201, body = Vm), Refused))]
pub(super) async fn define(call: Call, Body(vm): Body<DefineVm>) -> Result<Response, Problem> {
    let vm = NewVm::try_from(vm)?;
    let vm = call
        .change(move |operations, caller| operations.define_vm(caller, vm))
        .await?;
    let location = HeaderValue::try_from(format!("/v1/vms/{}", vm.id));
    let location = location.expect("BUG: digits fit into a header");
    let mut response = (StatusCode::CREATED, Json(Vm::from(vm))).into_response();
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// One VM.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms", operation_id = "vm_show", params(VmInPath),
    responses((status = 200, body = Vm), Refused))]
pub(super) async fn show(vm: OnVm) -> Result<Json<Vm>, Problem> {
    let vm = vm
        .ask(|operations, caller, vm| operations.vm(caller, vm))
        .await?;
    Ok(Json(vm.into()))
}

/// Forgets a VM that is off and not replicated; its disks stay.
#[utoipa::path(
    delete,
    path = "/v1/vms/{vm}",
    tag = "vms",
    operation_id = "vm_undefine",
    params(VmInPath),
    responses(Changed)
)]
pub(super) async fn undefine(vm: OnVm, _: Body<Nothing>) -> Result<StatusCode, Problem> {
    vm.change(|operations, caller, vm| operations.undefine_vm(caller, vm))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a VM.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/start",
    tag = "vms",
    operation_id = "vm_start",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn start(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::StartVm).await
}

/// Stops a VM.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", tag = "vms", operation_id = "vm_stop",
    params(VmInPath), request_body = StopVm, responses(Started))]
pub(super) async fn stop(vm: OnVm, Body(stop): Body<StopVm>) -> Result<Response, Problem> {
    vm.request(stop.into()).await
}

/// How the VM's replication is doing, and why.
#[utoipa::path(get, path = "/v1/vms/{vm}/health", tag = "vms", operation_id = "vm_health",
    params(VmInPath), responses((status = 200, body = Health), Refused))]
pub(super) async fn health(vm: OnVm) -> Result<Json<Health>, Problem> {
    let health = vm
        .ask(|operations, caller, vm| operations.health(caller, vm))
        .await?;
    Ok(Json(health.into()))
}

/// Whether a failover would work now, what it would lose, and what stops it.
#[utoipa::path(get, path = "/v1/vms/{vm}/check", tag = "vms", operation_id = "vm_check",
    params(VmInPath), responses((status = 200, body = Check), Refused))]
pub(super) async fn check(vm: OnVm) -> Result<Json<Check>, Problem> {
    let check = vm
        .ask(|operations, caller, vm| operations.check(caller, vm))
        .await?;
    Ok(Json(check.into()))
}

/// Statistics of the running monitoring cycle.
#[utoipa::path(get, path = "/v1/vms/{vm}/statistics", tag = "vms", operation_id = "vm_statistics",
    params(VmInPath), responses((status = 200, body = Statistics), Refused))]
pub(super) async fn statistics(vm: OnVm) -> Result<Json<Statistics>, Problem> {
    let statistics = vm
        .ask(|operations, caller, vm| operations.statistics(caller, vm))
        .await?;
    Ok(Json(statistics.into()))
}

/// Starts the statistics anew.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/statistics/reset",
    tag = "vms",
    operation_id = "vm_statistics_reset",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn reset_statistics(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::ResetStatistics).await
}
