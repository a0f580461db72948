//! `/events`: what happens, as it happens.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use hwm_core::config::ResourceType;
use hwm_core::id::ResourceId;
use hwm_core::manager::EventFilter;

use super::ReadRefused;
use crate::auth::Visitor;
use crate::body::StreamEvent;
use crate::error::ApiError;
use crate::extract::{FromQuery, Query, QueryReader};
use crate::sse;
use crate::state::Shared;
use crate::tickets::TicketPurpose;

/// Which events.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventParameters {
    /// About this resource.
    #[param(rename = "resourceId", value_type = Option<String>, format = "uuid")]
    resource: Option<ResourceId>,
    /// About resources of this type.
    #[param(rename = "resourceType", inline)]
    resource_type: Option<ResourceType>,
    /// The same as the header Last-Event-ID, for browsers that begin anew; 0 for all that are kept.
    #[param(rename = "lastEventId", value_type = Option<u64>)]
    after: Option<u64>,
}

impl FromQuery for EventParameters {
    fn from_query(query: &mut QueryReader) -> Self {
        // It is the visitor's.
        query.text("ticket");
        Self {
            resource: query.parsed("resourceId", "the id of a resource", |text| text.parse().ok()),
            resource_type: query.parsed(
                "resourceType",
                "virtual-machine, application-container or inference-container",
                ResourceType::parse,
            ),
            after: query.integer("lastEventId", 0, i64::MAX as u64),
        }
    }
}

/// Streams events: what comes, and with `Last-Event-ID` what came since. When that is too old the first event
/// is `reset`: list again. Each event's name is its type.
#[utoipa::path(
    get,
    path = "/events",
    tag = "events",
    operation_id = "streamEvents",
    params(
        EventParameters,
        ("ticket" = Option<String>, Query,
            description = "One for `events`, in place of the Authorization header; the stream is of its resource"),
        ("Last-Event-ID" = Option<String>, Header, description = "Replays what came after this event")
    ),
    responses(
        (status = 200, description = "Events; the data of each is an Event", body = StreamEvent,
            content_type = "text/event-stream"),
        ReadRefused
    )
)]
pub(crate) async fn stream(
    State(api): State<Shared>,
    visitor: Visitor,
    Query(parameters): Query<EventParameters>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (caller, resource) = visitor.may_watch(parameters.resource, TicketPurpose::Events)?;
    let after = match sse::last_event_id(&headers)? {
        None => parameters.after,
        Some(text) => Some(
            text.parse::<u64>()
                .ok()
                .filter(|id| i64::try_from(*id).is_ok())
                .ok_or_else(|| ApiError::malformed("Last-Event-ID is none that this stream sent"))?,
        ),
    };
    let filter = EventFilter {
        resource,
        resource_type: parameters.resource_type,
    };
    let events = caller.scoped.events(filter, after).await?;
    // The stream outlives the resource, whose removal is itself an event.
    Ok(sse::events(&api, caller, events))
}
