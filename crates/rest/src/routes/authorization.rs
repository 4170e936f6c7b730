//! Who may replicate to this host.

use axum::Json;
use http::StatusCode;
use lifeboat_model::authorization as model;
use lifeboat_model::contract::ReturnCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Changed, Refused};
use crate::front::{Body, Call, InPath};
use crate::problem::Problem;
use crate::wire::{AuthorizationEntry, InvalidRequest, Nothing};

/// An entry in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct EntryInPath {
    /// Its `allowed_primary_host_system`.
    host: String,
}

fn checked(entry: AuthorizationEntry) -> Result<model::AuthorizationEntry, Problem> {
    model::AuthorizationEntry::try_from(entry).map_err(|invalid| {
        Problem::new(
            ReturnCode::InvalidParameter,
            invalid.to_string(),
            "correct the properties and ask again; nothing was changed",
        )
    })
}

/// All entries.
#[utoipa::path(get, path = "/v1/authorization-entries", tag = "authorization",
    operation_id = "authorization_list",
    responses((status = 200, body = [AuthorizationEntry]), Refused))]
pub(super) async fn list(call: Call) -> Result<Json<Vec<AuthorizationEntry>>, Problem> {
    let entries = call
        .ask(|operations, caller| operations.authorization_entries(caller))
        .await?;
    Ok(Json(
        entries.into_iter().map(AuthorizationEntry::from).collect(),
    ))
}

/// Adds an entry.
#[utoipa::path(post, path = "/v1/authorization-entries", tag = "authorization",
    operation_id = "authorization_add", request_body = AuthorizationEntry, responses(Changed))]
pub(super) async fn add(
    call: Call,
    Body(entry): Body<AuthorizationEntry>,
) -> Result<StatusCode, Problem> {
    let entry = checked(entry)?;
    call.change(move |operations, caller| operations.add_authorization_entry(caller, entry))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replaces an entry. A new storage location counts for replicas that are made later.
#[utoipa::path(put, path = "/v1/authorization-entries/{host}", tag = "authorization",
    operation_id = "authorization_modify", params(EntryInPath), request_body = AuthorizationEntry,
    responses(Changed))]
pub(super) async fn modify(
    call: Call,
    InPath(path): InPath<EntryInPath>,
    Body(entry): Body<AuthorizationEntry>,
) -> Result<StatusCode, Problem> {
    let entry = checked(entry)?;
    let named = path.host.parse::<model::AllowedHosts>();
    if named.as_ref().ok() != Some(&entry.allowed_primary_host_system) {
        let remedy = "it must be the allowed_primary_host_system of the body: add an entry for \
                      another host, and remove this one";
        return Err(InvalidRequest::new("host", &path.host, remedy).into());
    }
    call.change(move |operations, caller| operations.modify_authorization_entry(caller, entry))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes an entry. Replicas that exist stay.
#[utoipa::path(
    delete,
    path = "/v1/authorization-entries/{host}",
    tag = "authorization",
    operation_id = "authorization_remove",
    params(EntryInPath),
    responses(Changed)
)]
pub(super) async fn remove(
    call: Call,
    InPath(path): InPath<EntryInPath>,
    _: Body<Nothing>,
) -> Result<StatusCode, Problem> {
    call.change(move |operations, caller| {
        operations.remove_authorization_entry(caller, &path.host)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}
