//! `/resources/{id}/start`, `/stop`, `/restart`.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use hwm_core::id::ResourceId;
use hwm_core::lifecycle::Action;
use hwm_core::operation::Arguments;
use hwm_core::validate;

use super::headers::ActionHeaders;
use super::{ChangeRefused, name_operation};
use crate::auth::Caller;
use crate::body::{ActionAnswer, ActionWord, StopOptions};
use crate::error::ApiError;
use crate::extract::{Change, Id, NoQuery, Query};
use crate::prefer;

/// Brings a resource up. Starting what runs succeeds at once.
#[utoipa::path(
    post,
    path = "/resources/{id}/start",
    tag = "actions",
    operation_id = "startResource",
    params(("id" = ResourceId, Path, description = "The resource"), ActionHeaders),
    responses(
        (status = 200, description = "Accepted", body = ActionAnswer,
            headers(("Operation-Id", description = "What carries it out"))),
        ChangeRefused
    )
)]
pub(crate) async fn start(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    change.nothing()?;
    act(&caller, id, ActionWord::Start, Arguments::default(), &change).await
}

/// Brings a resource down. Stopping what is stopped succeeds at once; what has not begun is cancelled.
#[utoipa::path(
    post,
    path = "/resources/{id}/stop",
    tag = "actions",
    operation_id = "stopResource",
    params(("id" = ResourceId, Path, description = "The resource"), ActionHeaders),
    request_body(content = Option<StopOptions>, examples(
        ("With grace" = (value = json!({ "timeoutSeconds": 10 }))),
        ("At once" = (value = json!({ "force": true })))
    )),
    responses(
        (status = 200, description = "Accepted", body = ActionAnswer,
            headers(("Operation-Id", description = "What carries it out"))),
        ChangeRefused
    )
)]
pub(crate) async fn stop(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let arguments = stop_arguments(&change)?;
    act(&caller, id, ActionWord::Stop, arguments, &change).await
}

/// Brings a resource down and up again. It takes the options of stop.
#[utoipa::path(
    post,
    path = "/resources/{id}/restart",
    tag = "actions",
    operation_id = "restartResource",
    params(("id" = ResourceId, Path, description = "The resource"), ActionHeaders),
    request_body(content = Option<StopOptions>, examples(
        ("With grace" = (value = json!({ "timeoutSeconds": 10 })))
    )),
    responses(
        (status = 200, description = "Accepted", body = ActionAnswer,
            headers(("Operation-Id", description = "What carries it out"))),
        ChangeRefused
    )
)]
pub(crate) async fn restart(
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let arguments = stop_arguments(&change)?;
    act(&caller, id, ActionWord::Restart, arguments, &change).await
}

fn stop_arguments(change: &Change) -> Result<Arguments, ApiError> {
    validate::stop_arguments(&change.json_or_empty()?).map_err(|violations| ApiError::validation(&violations))
}

async fn act(
    caller: &Caller,
    id: ResourceId,
    word: ActionWord,
    arguments: Arguments,
    change: &Change,
) -> Result<Response, ApiError> {
    let (action, message) = match word {
        ActionWord::Start => (Action::Start, "Start requested"),
        ActionWord::Stop => (Action::Stop, "Stop requested"),
        ActionWord::Restart => (Action::Restart, "Restart requested"),
    };
    let options = change.options(caller, id).await?;
    let accepted = caller.scoped.act(id, action, arguments, options).await?;
    prefer::await_operation(caller, accepted.operation, change.wait).await;
    let mut response = Json(ActionAnswer {
        success: true,
        message: message.to_owned(),
        resource_id: id,
        action: word,
        timestamp: accepted.time,
        operation_id: accepted.operation,
    })
    .into_response();
    name_operation(&mut response, accepted.operation);
    prefer::applied(&mut response, change.wait);
    Ok(response)
}
