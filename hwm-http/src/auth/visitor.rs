//! The caller of a stream, who may come with a ticket in place of a token.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use hwm_core::id::ResourceId;

use super::{Caller, Identity};
use crate::error::ApiError;
use crate::state::Shared;
use crate::tickets::{Taken, TicketPurpose};

/// Where a query may hold a ticket; `token` is what a console's URL calls it.
const PARAMETERS: [&str; 2] = ["ticket", "token"];

/// Who asks for a stream: by the Authorization header, else by a ticket of the query. Extract it first, so that
/// nobody who is not known learns what is wrong with the rest of the request. A WebSocket handshake may say
/// neither: then the socket's first message has to.
pub(crate) enum Visitor {
    /// By the header.
    Token(Caller),
    /// By a ticket, which is used up.
    Ticket(Caller, Taken),
    /// Not yet.
    Unknown,
}

impl Visitor {
    /// The caller, where this stream is one that a ticket may open; none where the first message has to tell.
    pub(crate) fn may_open(
        self,
        resource: ResourceId,
        purpose: TicketPurpose,
    ) -> Result<Option<Caller>, ApiError> {
        match self {
            Self::Token(caller) => Ok(Some(caller)),
            Self::Ticket(caller, ticket) => ticket.opens(Some(resource), purpose).map(|_| Some(caller)),
            Self::Unknown => Ok(None),
        }
    }

    /// The caller, and the resource that a ticket binds it to.
    pub(crate) fn may_watch(
        self,
        resource: Option<ResourceId>,
        purpose: TicketPurpose,
    ) -> Result<(Caller, Option<ResourceId>), ApiError> {
        match self {
            Self::Token(caller) => Ok((caller, resource)),
            Self::Ticket(caller, ticket) => {
                let bound = ticket.opens(resource, purpose)?;
                Ok((caller, Some(bound)))
            }
            Self::Unknown => Err(ApiError::unauthorized(None)),
        }
    }

    /// The caller, who must have come with a token.
    pub(crate) fn with_token(self) -> Result<Caller, ApiError> {
        match self {
            Self::Token(caller) => Ok(caller),
            Self::Ticket(..) | Self::Unknown => Err(ApiError::unauthorized(None)),
        }
    }
}

impl FromRequestParts<Shared> for Visitor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        if let Some(identity) = Identity::from_headers(api, &parts.headers)? {
            return Caller::admit(api, identity).map(Self::Token);
        }
        let query = parts.uri.query().unwrap_or_default();
        let ticket = form_urlencoded::parse(query.as_bytes())
            .find_map(|(name, value)| PARAMETERS.contains(&&*name).then_some(value));
        match ticket {
            Some(ticket) => {
                let (identity, ticket) = api.tickets.take(&ticket)?;
                Ok(Self::Ticket(Caller::admit(api, identity)?, ticket))
            }
            None if is_handshake(&parts.headers) => Ok(Self::Unknown),
            None => Err(ApiError::unauthorized(None)),
        }
    }
}

fn is_handshake(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}
