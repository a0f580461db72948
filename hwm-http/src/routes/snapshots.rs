//! `/resources/{id}/snapshots`: take, list, restore, remove.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use hwm_core::id::{ResourceId, SnapshotId};
use hwm_core::manager::Accepted;
use hwm_core::validate;

use super::headers::ActionHeaders;
use super::{BackendReadRefused, ChangeRefused, name_operation};
use crate::auth::Caller;
use crate::body::{NewSnapshot, SnapshotAnswer, SnapshotChanged, SnapshotList};
use crate::error::ApiError;
use crate::extract::{Change, Id, Ids, NoQuery, Query};
use crate::prefer;

/// Takes a snapshot of a machine.
#[utoipa::path(
    post,
    path = "/resources/{id}/snapshots",
    tag = "snapshots",
    operation_id = "createSnapshot",
    params(("id" = ResourceId, Path, description = "The machine"), ActionHeaders),
    request_body(content = NewSnapshot, examples(
        ("Before an upgrade" = (value = json!({ "name": "before the upgrade", "memory": false })))
    )),
    responses(
        (status = 201, description = "Accepted: it is being taken", body = SnapshotAnswer,
            headers(("Operation-Id", description = "What takes it"))),
        ChangeRefused
    )
)]
pub(crate) async fn create(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let request = validate::snapshot_request(&change.json()?)
        .map_err(|violations| ApiError::validation(&violations))?;
    let options = change.options(&caller, id).await?;
    let accepted = caller.scoped.create_snapshot(id, request, options).await?;
    let operation = accepted.operation;
    let mut snapshot = accepted
        .snapshot
        .ok_or_else(|| ApiError::internal("a snapshot was accepted without one"))?;
    if change.wait.is_some() {
        prefer::await_operation(&caller, operation, change.wait).await;
        let now = caller.scoped.snapshots(id).await.unwrap_or_default();
        if let Some(now) = now.into_iter().find(|s| s.id == snapshot.id) {
            snapshot = now;
        }
    }
    let answer = SnapshotAnswer {
        success: true,
        snapshot,
        operation_id: operation,
    };
    let mut response = (StatusCode::CREATED, Json(answer)).into_response();
    name_operation(&mut response, operation);
    prefer::applied(&mut response, change.wait);
    Ok(response)
}

/// Lists the snapshots of a machine.
#[utoipa::path(
    get,
    path = "/resources/{id}/snapshots",
    tag = "snapshots",
    operation_id = "listSnapshots",
    params(("id" = ResourceId, Path, description = "The machine")),
    responses((status = 200, description = "Its snapshots, oldest first", body = SnapshotList), BackendReadRefused)
)]
pub(crate) async fn list(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
) -> Result<Json<SnapshotList>, ApiError> {
    let snapshots = caller.scoped.snapshots(id).await?;
    Ok(Json(SnapshotList {
        resource_id: id,
        snapshots,
    }))
}

/// Takes a machine back to a snapshot.
#[utoipa::path(
    post,
    path = "/resources/{id}/snapshots/{snapshotId}/restore",
    tag = "snapshots",
    operation_id = "restoreSnapshot",
    params(
        ("id" = ResourceId, Path, description = "The machine"),
        ("snapshotId" = SnapshotId, Path, description = "The snapshot"),
        ActionHeaders
    ),
    responses(
        (status = 200, description = "Accepted", body = SnapshotChanged,
            headers(("Operation-Id", description = "What carries it out"))),
        ChangeRefused
    )
)]
pub(crate) async fn restore(
    caller: Caller,
    Ids(id, snapshot): Ids<ResourceId, SnapshotId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    change.nothing()?;
    let options = change.options(&caller, id).await?;
    let accepted = caller.scoped.restore_snapshot(id, snapshot, options).await?;
    Ok(changed(&caller, &change, "Restore requested", snapshot, accepted).await)
}

/// Removes a snapshot.
#[utoipa::path(
    delete,
    path = "/resources/{id}/snapshots/{snapshotId}",
    tag = "snapshots",
    operation_id = "deleteSnapshot",
    params(
        ("id" = ResourceId, Path, description = "The machine"),
        ("snapshotId" = SnapshotId, Path, description = "The snapshot"),
        ActionHeaders
    ),
    responses(
        (status = 200, description = "Accepted", body = SnapshotChanged,
            headers(("Operation-Id", description = "What carries it out"))),
        ChangeRefused
    )
)]
pub(crate) async fn delete(
    caller: Caller,
    Ids(id, snapshot): Ids<ResourceId, SnapshotId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let options = change.options(&caller, id).await?;
    let accepted = caller.scoped.delete_snapshot(id, snapshot, options).await?;
    Ok(changed(
        &caller,
        &change,
        "Snapshot deletion requested",
        snapshot,
        accepted,
    )
    .await)
}

async fn changed(
    caller: &Caller,
    change: &Change,
    message: &str,
    snapshot: SnapshotId,
    accepted: Accepted,
) -> Response {
    prefer::await_operation(caller, accepted.operation, change.wait).await;
    let mut response = Json(SnapshotChanged {
        success: true,
        message: message.to_owned(),
        resource_id: accepted.resource.id,
        snapshot_id: snapshot,
        timestamp: accepted.time,
        operation_id: accepted.operation,
    })
    .into_response();
    name_operation(&mut response, accepted.operation);
    prefer::applied(&mut response, change.wait);
    response
}
