//! Failovers of a VM.

use axum::response::Response;
use lifeboat_service::api::VmOperation;

use super::{Started, VmInPath};
use crate::front::{Body, OnVm};
use crate::problem::Problem;
use crate::wire::{CancelPlannedFailover, InitiateFailover, NameSurvivor, Nothing, TestFailover};

/// Starts a copy of the VM beside the replica, which goes on.
#[utoipa::path(post, path = "/v1/vms/{vm}/failover/test", tag = "failover",
    operation_id = "failover_test", params(VmInPath), request_body = TestFailover,
    responses(Started))]
pub(super) async fn test(vm: OnVm, Body(test): Body<TestFailover>) -> Result<Response, Problem> {
    vm.request(test.into()).await
}

/// Ends the test failover, and forgets what its VM wrote.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/failover/test-end",
    tag = "failover",
    operation_id = "failover_test_end",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn test_end(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::EndTestFailover).await
}

/// Prepares a planned failover: on the primary, with the VM off, what is left is sent.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/failover/prepare",
    tag = "failover",
    operation_id = "failover_prepare",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn prepare(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::PreparePlannedFailover).await
}

/// Gives up the planned failover that was prepared.
#[utoipa::path(post, path = "/v1/vms/{vm}/failover/cancel-prepare", tag = "failover",
    operation_id = "failover_cancel_prepare", params(VmInPath),
    request_body = CancelPlannedFailover, responses(Started))]
pub(super) async fn cancel_prepare(
    vm: OnVm,
    Body(cancel): Body<CancelPlannedFailover>,
) -> Result<Response, Problem> {
    vm.request(cancel.into()).await
}

/// Lets the replica's VM take over, from the newest moment or a recovery point.
#[utoipa::path(post, path = "/v1/vms/{vm}/failover/start", tag = "failover",
    operation_id = "failover_start", params(VmInPath), request_body = InitiateFailover,
    responses(Started))]
pub(super) async fn start(
    vm: OnVm,
    Body(failover): Body<InitiateFailover>,
) -> Result<Response, Problem> {
    vm.request(failover.into()).await
}

/// Gives up the failover and what the VM wrote since: a replica again.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/failover/revert",
    tag = "failover",
    operation_id = "failover_revert",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn revert(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::RevertFailover).await
}

/// Keeps the failover for good: every recovery point goes, there is no way back.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/failover/commit",
    tag = "failover",
    operation_id = "failover_commit",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn commit(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::CommitFailover).await
}

/// Says whose history of the VM is kept, where both hosts have gone on with it.
#[utoipa::path(post, path = "/v1/vms/{vm}/failover/survivor", tag = "failover",
    operation_id = "failover_survivor", params(VmInPath), request_body = NameSurvivor,
    responses(Started))]
pub(super) async fn survivor(
    vm: OnVm,
    Body(named): Body<NameSurvivor>,
) -> Result<Response, Problem> {
    vm.request(named.into()).await
}
