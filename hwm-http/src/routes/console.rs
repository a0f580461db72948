//! `/resources/{id}/console`: a machine's screen or serial line.

use axum::Json;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use hwm_core::backend::ConsoleKind;
use hwm_core::id::ResourceId;

use super::BackendReadRefused;
use crate::auth::{Caller, Visitor};
use crate::body::ConsoleAnswer;
use crate::error::ApiError;
use crate::extract::{FromQuery, Id, Query, QueryReader};
use crate::state::{Api, Shared};
use crate::tickets::TicketPurpose;
use crate::ws::{self, console};

/// Which console.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ConsoleParameters {
    /// `vnc` for the screen (when absent), `serial` for the text console.
    #[param(rename = "type", inline)]
    kind: Option<ConsoleKind>,
}

impl FromQuery for ConsoleParameters {
    fn from_query(query: &mut QueryReader) -> Self {
        let kind = query.parsed("type", "vnc or serial", |text| match text {
            "vnc" => Some(ConsoleKind::Vnc),
            "serial" => Some(ConsoleKind::Serial),
            _ => None,
        });
        // They are the visitor's.
        query.text("ticket");
        query.text("token");
        Self { kind }
    }
}

/// Answers where a machine's console is. With a WebSocket handshake it is the console itself: RFB in binary
/// frames as noVNC reads it, or the serial line as xterm.js reads it.
#[utoipa::path(
    get,
    path = "/resources/{id}/console",
    tag = "interact",
    operation_id = "getResourceConsole",
    params(
        ("id" = ResourceId, Path, description = "The machine"),
        ConsoleParameters,
        ("token" = Option<String>, Query,
            description = "For the WebSocket: the ticket of `url`, or one for `console`")
    ),
    responses(
        (status = 200, description = "Where it is; `url` holds a ticket that is good once, within a minute",
            body = ConsoleAnswer),
        (status = 101, description = "The console itself (WebSocket)"),
        BackendReadRefused
    )
)]
pub(crate) async fn get(
    State(api): State<Shared>,
    visitor: Visitor,
    Id(id): Id<ResourceId>,
    Query(parameters): Query<ConsoleParameters>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let kind = parameters.kind.unwrap_or_default();
    let Ok(upgrade) = upgrade else {
        return locate(&api, &visitor.with_token()?, id, kind, uri.path(), &headers).await;
    };
    ws::check_origin(&api, &headers)?;
    let caller = visitor.may_open(id, TicketPurpose::Console)?;
    ws::connect(
        api,
        upgrade.protocols(console::PROTOCOLS),
        caller,
        id,
        console::Raw(kind),
        move |caller| async move { caller.scoped.open_console(id, kind).await },
    )
    .await
}

/// A ticket opens a console; only a token says where one is.
async fn locate(
    api: &Api,
    caller: &Caller,
    id: ResourceId,
    kind: ConsoleKind,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let access = caller.scoped.console(id, kind).await?;
    let issued = api
        .tickets
        .issue(&caller.identity, id, TicketPurpose::Console, None)?;
    let word = match access.kind {
        ConsoleKind::Vnc => "vnc",
        ConsoleKind::Serial => "serial",
    };
    let answer = ConsoleAnswer {
        resource_id: id,
        kind: access.kind,
        url: format!(
            "{}?type={word}&token={}",
            address(api, id, path, headers),
            issued.ticket
        ),
        password: access.password.map(|secret| secret.expose().to_owned()),
        expires_at: issued.expires,
    };
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(answer)).into_response())
}

/// The WebSocket's address, as the client reaches us.
fn address(api: &Api, id: ResourceId, path: &str, headers: &HeaderMap) -> String {
    if let Some(public) = &api.options.public_url {
        let base = match public.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => format!("wss://{rest}"),
            Some((_, rest)) => format!("ws://{rest}"),
            None => format!("ws://{public}"),
        };
        return format!("{}/resources/{id}/console", base.trim_end_matches('/'));
    }
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .filter(|host| {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
        })
        .unwrap_or("localhost");
    let scheme = if api.options.tls { "wss" } else { "ws" };
    format!("{scheme}://{host}{path}")
}
