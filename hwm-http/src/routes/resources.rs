//! `/resources`: make, read, change, remove.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hwm_core::access::Permission;
use hwm_core::id::ResourceId;
use hwm_core::manager::{Accepted, PlanReport, Versioned};
use hwm_core::resource::Resource;
use hwm_core::validate;

use super::headers::{ActionHeaders, CreateHeaders};
use super::{ChangeRefused, ReadRefused, name_operation};
use crate::auth::Caller;
use crate::body::{DeletedAnswer, NewResource, ResourceChange};
use crate::error::ApiError;
use crate::extract::{Change, FromQuery, Id, NoQuery, Query, QueryReader};
use crate::state::Shared;
use crate::{conditional, prefer};

/// How a create is meant.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct CreateQuery {
    /// Answers what would be done, and reserves nothing.
    #[param(rename = "dryRun")]
    dry_run: Option<bool>,
}

impl FromQuery for CreateQuery {
    fn from_query(query: &mut QueryReader) -> Self {
        Self {
            dry_run: query.flag("dryRun"),
        }
    }
}

/// Makes a resource. It deploys by itself unless `autoStart` is false.
#[utoipa::path(
    post,
    path = "/resources",
    tag = "resources",
    operation_id = "createResource",
    params(CreateQuery, CreateHeaders),
    request_body(content = NewResource, examples(
        ("A container" = (value = json!({
            "name": "web",
            "resourceType": "application-container",
            "config": {
                "type": "application-container",
                "registry": "docker-hub",
                "imageName": "nginx",
                "imageTag": "alpine",
                "containerPorts": [{ "containerPort": 80 }],
                "cpuCores": 0.5,
                "ramLimit": 0.25
            },
            "metadata": { "team": "web" }
        }))),
        ("A virtual machine" = (value = json!({
            "name": "build host",
            "resourceType": "virtual-machine",
            "config": {
                "type": "virtual-machine",
                "osImage": "debian-12",
                "vcpus": 2,
                "ramMB": 2048,
                "diskGB": 20,
                "networkConfig": { "mode": "bridge-vlan", "ipMode": "dhcp" },
                "cloudInit": { "hostname": "build-1" }
            }
        }))),
        ("A model server" = (value = json!({
            "name": "llm",
            "resourceType": "inference-container",
            "config": {
                "type": "inference-container",
                "modelId": "tiny",
                "modelPath": "https://models.example.org/tiny.gguf",
                "dockerImage": "ghcr.io/ggml-org/llama.cpp:server",
                "containerPort": 8080,
                "gpuConfig": { "enabled": true, "mode": "whole", "count": 1 }
            },
            "autoStart": false
        })))
    )),
    responses(
        (status = 201, description = "Accepted: it deploys", body = Resource, headers(
            ("Location" = String, description = "The resource's path"),
            ("ETag" = String, description = "Its revision"),
            ("Operation-Id", description = "What deploys it"))),
        (status = 200, description = "What would be done (dryRun)", body = PlanReport),
        ChangeRefused
    )
)]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    Query(query): Query<CreateQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let body = change.json()?;
    caller.require(Permission::Write, "creating a resource")?;
    let request = validate::create_request(&body, api.manager.rules())
        .map_err(|violations| ApiError::validation(&violations))?;
    if query.dry_run.unwrap_or(false) {
        return Ok(Json(caller.scoped.plan(request).await?).into_response());
    }
    let accepted = caller.scoped.create(request, change.options_for_new()).await?;
    let location = format!("/resources/{}", accepted.resource.id);
    let mut response = answer(&caller, &change, StatusCode::CREATED, accepted).await;
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Whether a deleted resource is shown.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct GetQuery {
    /// Shows it even if it is deleted; needs an owner role.
    #[param(rename = "includeDeleted")]
    include_deleted: Option<bool>,
}

impl FromQuery for GetQuery {
    fn from_query(query: &mut QueryReader) -> Self {
        Self {
            include_deleted: query.flag("includeDeleted"),
        }
    }
}

/// Reads a resource.
#[utoipa::path(
    get,
    path = "/resources/{id}",
    tag = "resources",
    operation_id = "getResource",
    params(
        ("id" = ResourceId, Path, description = "The resource"),
        GetQuery,
        ("If-None-Match" = Option<String>, Header, description = "Answers 304 when the resource is still at this ETag")
    ),
    responses(
        (status = 200, description = "The resource", body = Resource,
            headers(("ETag" = String, description = "Its revision"))),
        (status = 304, description = "It is still at the ETag of If-None-Match"),
        ReadRefused
    )
)]
pub(crate) async fn get(
    caller: Caller,
    Id(id): Id<ResourceId>,
    Query(query): Query<GetQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let found = caller
        .scoped
        .get(id, query.include_deleted.unwrap_or(false))
        .await?;
    if conditional::none_match(&headers, found.revision) {
        let tag = [(header::ETAG, conditional::etag(found.revision))];
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    Ok(show(StatusCode::OK, &found))
}

/// Changes a resource (merge patch). A config change that cannot be made live waits for the next start.
#[utoipa::path(
    patch,
    path = "/resources/{id}",
    tag = "resources",
    operation_id = "updateResource",
    params(("id" = ResourceId, Path, description = "The resource"), ActionHeaders),
    request_body(content = ResourceChange, examples(
        ("Another description" = (value = json!({ "description": "serves the shop" }))),
        ("Stop it" = (value = json!({ "status": "stopped" })))
    )),
    responses(
        (status = 200, description = "The resource as it then is", body = Resource, headers(
            ("ETag" = String, description = "Its revision"),
            ("Operation-Id", description = "What carries the change out, where something must"))),
        ChangeRefused
    )
)]
pub(crate) async fn update(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let body = change.json()?;
    let options = change.options(&caller, id).await?;
    let accepted = caller.scoped.update(id, body, options).await?;
    Ok(answer(&caller, &change, StatusCode::OK, accepted).await)
}

/// Removes a resource: the workload, its disks and its claims go, the record stays as deleted.
#[utoipa::path(
    delete,
    path = "/resources/{id}",
    tag = "resources",
    operation_id = "deleteResource",
    params(("id" = ResourceId, Path, description = "The resource"), ActionHeaders),
    responses(
        (status = 200, description = "Accepted: it is being removed", body = DeletedAnswer,
            headers(("Operation-Id", description = "What removes it"))),
        ChangeRefused
    )
)]
pub(crate) async fn delete(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let options = change.options(&caller, id).await?;
    let accepted = caller.scoped.delete(id, options).await?;
    prefer::await_operation(&caller, accepted.operation, change.wait).await;
    let mut response = Json(DeletedAnswer {
        id,
        deleted_at: accepted.resource.deleted_at.unwrap_or(accepted.time),
        operation_id: accepted.operation,
    })
    .into_response();
    name_operation(&mut response, accepted.operation);
    prefer::applied(&mut response, change.wait);
    Ok(response)
}

fn show(status: StatusCode, found: &Versioned) -> Response {
    let headers = [
        (header::ETAG, conditional::etag(found.revision)),
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ];
    // A resource takes more than the buffer that Json begins with.
    let mut body = Vec::with_capacity(4096);
    match serde_json::to_writer(&mut body, &found.resource) {
        Ok(()) => (status, headers, body).into_response(),
        Err(error) => ApiError::internal(error.to_string()).into_response(),
    }
}

/// The resource after a change: as it was accepted, or, where the client waited, as it then is.
async fn answer(caller: &Caller, change: &Change, status: StatusCode, accepted: Accepted) -> Response {
    let operation = accepted.operation;
    let mut found = Versioned {
        resource: accepted.resource,
        revision: accepted.revision,
    };
    if change.wait.is_some() {
        prefer::await_operation(caller, operation, change.wait).await;
        // One that was deleted meanwhile is answered as it was accepted.
        if let Ok(now) = caller.scoped.get(found.resource.id, false).await {
            found = now;
        }
    }
    let mut response = show(status, &found);
    name_operation(&mut response, operation);
    prefer::applied(&mut response, change.wait);
    response
}
