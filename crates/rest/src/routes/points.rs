//! Recovery points of a VM.

use axum::Json;
use axum::response::Response;
use lifeboat_model::Sequence;
use lifeboat_service::api::VmOperation;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Refused, Started, VmInPath};
use crate::front::{Body, InPath, OnVm};
use crate::problem::Problem;
use crate::wire::{InvalidRequest, Nothing, Point};

/// The recovery point in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct PointInPath {
    /// The sequence of a recovery point; where one is verified, also `newest`.
    sequence: String,
}

impl PointInPath {
    fn sequence(&self) -> Result<Sequence, InvalidRequest> {
        let remedy = "use the sequence of a recovery point";
        let parsed = self.sequence.parse();
        parsed.map_err(|_| InvalidRequest::new("sequence", &self.sequence, remedy))
    }

    /// `None` for the newest.
    fn sequence_or_newest(&self) -> Result<Option<Sequence>, InvalidRequest> {
        if self.sequence == "newest" {
            return Ok(None);
        }
        self.sequence().map(Some)
    }
}

/// The recovery points, oldest first.
#[utoipa::path(get, path = "/v1/vms/{vm}/points", tag = "points", operation_id = "point_list",
    params(VmInPath), responses((status = 200, body = [Point]), Refused))]
pub(super) async fn list(vm: OnVm) -> Result<Json<Vec<Point>>, Problem> {
    let points = vm
        .ask(|operations, caller, vm| operations.points(caller, vm))
        .await?;
    Ok(Json(points.into_iter().map(Point::from).collect()))
}

/// Makes a recovery point now, besides the schedule.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/points",
    tag = "points",
    operation_id = "point_make",
    params(VmInPath),
    responses(Started)
)]
pub(super) async fn make(vm: OnVm, _: Body<Nothing>) -> Result<Response, Problem> {
    vm.request(VmOperation::MakePoint).await
}

/// Removes a recovery point.
#[utoipa::path(
    delete,
    path = "/v1/vms/{vm}/points/{sequence}",
    tag = "points",
    operation_id = "point_remove",
    params(VmInPath, PointInPath),
    responses(Started)
)]
pub(super) async fn remove(
    vm: OnVm,
    InPath(point): InPath<PointInPath>,
    _: Body<Nothing>,
) -> Result<Response, Problem> {
    let point = point.sequence()?;
    vm.request(VmOperation::RemovePoint { point }).await
}

/// Reads everything that a recovery point stands on and compares it with its digests.
#[utoipa::path(
    post,
    path = "/v1/vms/{vm}/points/{sequence}/verify",
    tag = "points",
    operation_id = "point_verify",
    params(VmInPath, PointInPath),
    responses(Started)
)]
pub(super) async fn verify(
    vm: OnVm,
    InPath(point): InPath<PointInPath>,
    _: Body<Nothing>,
) -> Result<Response, Problem> {
    let point = point.sequence_or_newest()?;
    vm.request(VmOperation::VerifyPoint { point }).await
}
