//! What the document says of errors: the statuses that each kind of request can be refused with.

use std::collections::BTreeMap;

use utoipa::openapi::{ContentBuilder, HeaderBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::openapi::{ObjectBuilder, Type};

type Responses = BTreeMap<String, RefOr<Response>>;

/// Of lists and of what names no single thing.
pub(crate) enum ListRefused {}
/// Of reads of one thing.
pub(crate) enum ReadRefused {}
/// Of reads that ask the backend.
pub(crate) enum BackendReadRefused {}
/// Of requests that change something.
pub(crate) enum ChangeRefused {}
/// Of what needs no token.
pub(crate) enum OpenRefused {}
/// Of what is a WebSocket.
pub(crate) enum PlainRefused {}

const LIST: [u16; 7] = [400, 401, 403, 429, 500, 503, 504];

impl utoipa::IntoResponses for ListRefused {
    fn responses() -> Responses {
        refusals(&[])
    }
}

impl utoipa::IntoResponses for ReadRefused {
    fn responses() -> Responses {
        refusals(&[404])
    }
}

impl utoipa::IntoResponses for BackendReadRefused {
    fn responses() -> Responses {
        refusals(&[404, 409, 422, 502])
    }
}

impl utoipa::IntoResponses for ChangeRefused {
    fn responses() -> Responses {
        refusals(&[404, 409, 412, 413, 415, 422, 502])
    }
}

impl utoipa::IntoResponses for OpenRefused {
    fn responses() -> Responses {
        some(&[429, 500, 503, 504])
    }
}

impl utoipa::IntoResponses for PlainRefused {
    fn responses() -> Responses {
        some(&[426])
    }
}

fn refusals(more: &[u16]) -> Responses {
    some(&[&LIST, more].concat())
}

fn some(statuses: &[u16]) -> Responses {
    statuses
        .iter()
        .map(|status| (status.to_string(), RefOr::T(refusal(*status))))
        .collect()
}

/// One refusal, with the error body.
fn refusal(status: u16) -> Response {
    let (description, header) = match status {
        400 => ("Malformed, or it breaks rules; `errors` names every one", None),
        401 => (
            "No token, or one that is not accepted",
            Some(("WWW-Authenticate", Type::String)),
        ),
        403 => ("No role of the caller grants it", None),
        404 => ("There is no such thing, or the caller may not see it", None),
        409 => (
            "A conflict; `details` names what is in the way and what would free it",
            None,
        ),
        412 => ("The resource is not at the revision of If-Match", None),
        413 => ("The body is too large", None),
        415 => ("The body is not application/json", None),
        422 => (
            "The node or the resource cannot do that, or the Idempotency-Key was used before",
            None,
        ),
        426 => (
            "The path answers WebSocket handshakes only",
            Some(("Upgrade", Type::String)),
        ),
        429 => ("Too many requests", Some(("Retry-After", Type::Integer))),
        500 => ("The server failed", None),
        502 => ("The backend failed", None),
        503 => ("The backend is away", Some(("Retry-After", Type::Integer))),
        _ => ("It took longer than it may", None),
    };
    let body = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("ErrorBody")))
        .build();
    let mut response = ResponseBuilder::new()
        .description(description)
        .content("application/json", body);
    if let Some((name, kind)) = header {
        let schema = ObjectBuilder::new().schema_type(kind).build();
        response = response.header(name, HeaderBuilder::new().schema(Some(schema)).build());
    }
    response.build()
}
