//! The OpenAPI document, put together from the types and the handlers.

use utoipa::openapi::Server;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use hwm_core::event::Event;

use crate::error::{ErrorBody, ErrorCode};
use crate::options::Options;
use crate::routes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "hwm",
        description = "Host workload manager: virtual machines, containers and model servers on one node, with its GPUs. \
            Every request but `/health`, `/ready` and this documentation needs a bearer token.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(ErrorBody, ErrorCode, Event)),
    security(("bearer" = [])),
    modifiers(&Bearer),
    tags(
        (name = "resources", description = "Make, list, read, change, remove"),
        (name = "actions", description = "Start, stop, restart"),
        (name = "observe", description = "State, log, figures"),
        (name = "interact", description = "Commands, terminals, consoles, tickets for them"),
        (name = "snapshots", description = "Of virtual machines"),
        (name = "operations", description = "What was accepted, and how far it is"),
        (name = "events", description = "What happens, as it happens"),
        (name = "nodes", description = "The machines that workloads run on"),
        (name = "server", description = "The server itself"),
    )
)]
struct Head;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// The OpenAPI 3.1 document of the API.
pub fn document() -> utoipa::openapi::OpenApi {
    OpenApiRouter::with_openapi(Head::openapi())
        .merge(routes::all())
        .into_openapi()
}

/// The document of a server: with its version, and the address under which clients reach it.
pub(crate) fn served(options: &Options) -> utoipa::openapi::OpenApi {
    let mut document = document();
    document.info.version.clone_from(&options.version);
    if let Some(url) = &options.public_url {
        document.servers = Some(vec![Server::new(url)]);
    }
    document
}

/// The document as it is served.
pub(crate) fn text(document: &utoipa::openapi::OpenApi) -> String {
    let mut text = document.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
