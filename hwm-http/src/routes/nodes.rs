//! `/nodes`: the machines that workloads run on.

use axum::Json;
use axum::extract::State;
use hwm_core::id::{GpuUuid, NodeId};
use hwm_core::node::Node;

use super::headers::IdempotencyHeader;
use super::{ChangeRefused, ListRefused, ReadRefused};
use crate::auth::Caller;
use crate::body::NodeList;
use crate::error::ApiError;
use crate::extract::{Change, Id, Ids, NoQuery, Query};
use crate::state::Shared;

/// Lists the nodes. A holder that the caller may not see stays unnamed.
#[utoipa::path(
    get,
    path = "/nodes",
    tag = "nodes",
    operation_id = "listNodes",
    responses((status = 200, description = "The nodes", body = NodeList), ListRefused)
)]
pub(crate) async fn list(caller: Caller, _: Query<NoQuery>) -> Result<Json<NodeList>, ApiError> {
    let data = caller.scoped.nodes().await?;
    Ok(Json(NodeList { data }))
}

/// Reads a node.
#[utoipa::path(
    get,
    path = "/nodes/{id}",
    tag = "nodes",
    operation_id = "getNode",
    params(("id" = String, Path, description = "The node")),
    responses((status = 200, description = "The node", body = Node), ReadRefused)
)]
pub(crate) async fn get(
    caller: Caller,
    Id(id): Id<String>,
    _: Query<NoQuery>,
) -> Result<Json<Node>, ApiError> {
    Ok(Json(caller.scoped.node(&NodeId::new(id)).await?))
}

/// Has a quarantined GPU looked at again, once what was wrong with it was put right. Needs `universe.owner`.
#[utoipa::path(
    post,
    path = "/nodes/{id}/gpus/{gpu}/recover",
    tag = "nodes",
    operation_id = "recoverGpu",
    params(
        ("id" = String, Path, description = "The node"),
        ("gpu" = String, Path, description = "The GPU, by UUID or index"),
        IdempotencyHeader
    ),
    responses((status = 200, description = "The node as it then is", body = Node), ChangeRefused)
)]
pub(crate) async fn recover_gpu(
    State(api): State<Shared>,
    caller: Caller,
    Ids(node, gpu): Ids<String, String>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Json<Node>, ApiError> {
    change.nothing()?;
    let (node, gpu) = (NodeId::new(node), GpuUuid::new(gpu));
    let answer = api
        .in_flight
        .once(&caller, change.idempotency.as_ref(), || async {
            Ok(caller.scoped.recover_gpu(&node, &gpu).await?)
        })
        .await?;
    Ok(Json(answer))
}
