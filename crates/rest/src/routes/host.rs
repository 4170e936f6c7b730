//! This host.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use super::{Changed, Refused};
use crate::front::{Body, Call};
use crate::problem::Problem;
use crate::wire::{Connection, Host, ServiceSettings, ServiceSettingsChange, TestConnection};

/// This host, its settings and its listeners.
#[utoipa::path(get, path = "/v1/host", tag = "host", operation_id = "host",
    responses((status = 200, body = Host), Refused))]
pub(super) async fn host(call: Call) -> Result<Json<Host>, Problem> {
    let host = call
        .ask(|operations, caller| operations.host(caller))
        .await?;
    Ok(Json(host.into()))
}

/// The settings of this host.
#[utoipa::path(get, path = "/v1/host/settings", tag = "host", operation_id = "host_settings",
    responses((status = 200, body = ServiceSettings), Refused))]
pub(super) async fn settings(call: Call) -> Result<Json<ServiceSettings>, Problem> {
    let host = call
        .ask(|operations, caller| operations.host(caller))
        .await?;
    Ok(Json(host.settings.into()))
}

/// Changes settings of this host; what is absent stays.
#[utoipa::path(patch, path = "/v1/host/settings", tag = "host", operation_id = "host_settings_modify",
    request_body = ServiceSettingsChange, responses(Changed))]
pub(super) async fn modify_settings(
    call: Call,
    Body(change): Body<ServiceSettingsChange>,
) -> Result<StatusCode, Problem> {
    let change = change.try_into()?;
    call.change(move |operations, caller| operations.modify_service_settings(caller, change))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "host", operation_id = "openapi",
    responses((status = 200, description = "The OpenAPI document.", content_type = "application/json")))]
pub(super) async fn document(_call: Call) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (content_type, super::openapi_json()).into_response()
}

/// Tries whether replication to a host could be enabled now.
#[utoipa::path(post, path = "/v1/test-connection", tag = "host", operation_id = "test_connection",
    request_body = TestConnection, responses((status = 200, body = Connection), Refused))]
pub(super) async fn test_connection(
    call: Call,
    Body(test): Body<TestConnection>,
) -> Result<Json<Connection>, Problem> {
    let connection = call
        .change(move |operations, caller| {
            let what = operations.test_connection(caller, &test.recovery_connection_point)?;
            Ok(Connection {
                recovery_connection_point: test.recovery_connection_point,
                what,
            })
        })
        .await?;
    Ok(Json(connection))
}
