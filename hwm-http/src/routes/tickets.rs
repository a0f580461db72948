//! `/resources/{id}/tickets`: for browsers, which cannot set a header on a stream.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hwm_core::access::Permission;
use hwm_core::error::Violation;
use hwm_core::id::ResourceId;
use serde_json::Value;

use super::ChangeRefused;
use super::headers::IdempotencyHeader;
use crate::auth::Caller;
use crate::body::{NewTicket, TicketAnswer};
use crate::error::ApiError;
use crate::extract::{Change, Id, NoQuery, Query};
use crate::state::Shared;
use crate::tickets::TicketPurpose;

/// Makes a ticket that opens one stream of this resource, once, within a minute, as `?ticket=`.
#[utoipa::path(
    post,
    path = "/resources/{id}/tickets",
    tag = "interact",
    operation_id = "createTicket",
    params(
        ("id" = ResourceId, Path, description = "The resource"),
        IdempotencyHeader
    ),
    request_body(content = NewTicket, examples(("For the log" = (value = json!({ "for": "logs" }))))),
    responses((status = 201, description = "The ticket", body = TicketAnswer), ChangeRefused)
)]
pub(crate) async fn create(
    State(api): State<Shared>,
    caller: Caller,
    Id(id): Id<ResourceId>,
    _: Query<NoQuery>,
    change: Change,
) -> Result<Response, ApiError> {
    let purpose = purpose(&change.json()?).map_err(|violations| ApiError::validation(&violations))?;
    let found = caller.scoped.get(id, false).await?;
    let needed = match purpose {
        TicketPurpose::Exec | TicketPurpose::Console => Permission::Write,
        TicketPurpose::Logs | TicketPurpose::Events => Permission::Read,
    };
    if !caller.principal().may(needed, &found.resource.owner) {
        return Err(ApiError::forbidden(format!(
            "a ticket for {} is not allowed: it needs a role such as member.editor",
            purpose.as_str()
        )));
    }
    let issued = api
        .tickets
        .issue(&caller.identity, id, purpose, change.idempotency.as_ref())?;
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    let answer = TicketAnswer {
        ticket: issued.ticket,
        expires_at: issued.expires,
    };
    Ok((StatusCode::CREATED, no_store, Json(answer)).into_response())
}

fn purpose(body: &Value) -> Result<TicketPurpose, Vec<Violation>> {
    let Value::Object(fields) = body else {
        return Err(vec![Violation::new("", "must be an object")]);
    };
    let mut violations: Vec<_> = fields
        .keys()
        .filter(|name| *name != "for")
        .map(|name| Violation::new(name, "is not a known field"))
        .collect();
    let wanted = fields.get("for").and_then(Value::as_str);
    let purpose = TicketPurpose::ALL
        .into_iter()
        .find(|purpose| Some(purpose.as_str()) == wanted);
    match purpose {
        Some(purpose) if violations.is_empty() => Ok(purpose),
        Some(_) => Err(violations),
        None => {
            violations.push(Violation::new("for", "must be exec, console, logs or events"));
            Err(violations)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_ticket_is_for_one_of_four_things() {
        assert_eq!(purpose(&json!({ "for": "exec" })), Ok(TicketPurpose::Exec));
        let texts = |body: Value| -> Vec<String> {
            purpose(&body)
                .unwrap_err()
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(texts(json!([])), ["must be an object"]);
        assert_eq!(texts(json!({ "for": 1 })).len(), 1);
        assert_eq!(
            texts(json!({ "for": "shell", "ttl": 9 })),
            [
                "ttl: is not a known field",
                "for: must be exec, console, logs or events"
            ]
        );
    }
}
