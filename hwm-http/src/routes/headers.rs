//! What the document says of the headers that [`Change`](crate::extract::Change) reads.

use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ObjectBuilder, Required, Type};

/// Of requests that make something.
pub(crate) enum CreateHeaders {}
/// Of requests that change something that exists.
pub(crate) enum ActionHeaders {}
/// Of requests that only answer the same once more.
pub(crate) enum IdempotencyHeader {}

/// Of requests that may only be waited for.
pub(crate) enum WaitHeader {}

impl IntoParams for WaitHeader {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![prefer()]
    }
}

impl IntoParams for CreateHeaders {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![prefer(), idempotency_key()]
    }
}

impl IntoParams for ActionHeaders {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let if_match = header("If-Match", "The ETag that the resource must have").build();
        vec![if_match, prefer(), idempotency_key()]
    }
}

impl IntoParams for IdempotencyHeader {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![idempotency_key()]
    }
}

fn prefer() -> Parameter {
    header(
        "Prefer",
        "`wait=N`: answers when the operation is over, or after N seconds (at most 30)",
    )
    .build()
}

fn idempotency_key() -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(255));
    header(
        "Idempotency-Key",
        "The same key and body answer the first answer again",
    )
    .schema(Some(schema))
    .build()
}

fn header(name: &str, description: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
}
