//! `/resources/{id}/metrics`: what a workload uses.

use axum::Json;
use hwm_core::id::ResourceId;
use hwm_core::metrics::ResourceMetrics;

use super::BackendReadRefused;
use crate::auth::Caller;
use crate::error::ApiError;
use crate::extract::{Id, NoQuery, Query};

/// What a workload uses now. A figure that cannot be had is null.
#[utoipa::path(
    get,
    path = "/resources/{id}/metrics",
    tag = "observe",
    operation_id = "getResourceMetrics",
    params(("id" = ResourceId, Path, description = "The resource")),
    responses((status = 200, description = "What it uses", body = ResourceMetrics), BackendReadRefused)
)]
pub(crate) async fn get(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
) -> Result<Json<ResourceMetrics>, ApiError> {
    Ok(Json(caller.scoped.metrics(id).await?))
}
