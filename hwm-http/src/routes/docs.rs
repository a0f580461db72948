//! `/api-docs` and `/api-docs-json`: Swagger UI, served from the binary, and the document.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use utoipa_swagger_ui::Config;

use crate::error::ApiError;
use crate::state::Shared;

/// Where the page finds the document, relative to its files, so that it works behind a path prefix too.
const DOCUMENT: &str = "../api-docs-json";

/// The routes of the documentation, which need no token.
pub(crate) fn router(document: &utoipa::openapi::OpenApi) -> Router<Shared> {
    let json = Bytes::from(crate::openapi::text(document));
    let config = Arc::new(
        Config::from(DOCUMENT)
            .persist_authorization(true)
            .display_request_duration(true)
            .try_it_out_enabled(true),
    );
    let (page, files) = (config.clone(), config);
    Router::new()
        .route(
            "/api-docs-json",
            get(move || async move {
                let media = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
                (media, json).into_response()
            }),
        )
        .route(
            "/api-docs",
            get(move || async move { file("index.html", page, Some("api-docs/")) }),
        )
        .route("/api-docs/", {
            let files = files.clone();
            get(move || async move { file("index.html", files, None) })
        })
        .route(
            "/api-docs/{*file}",
            get(move |Path(path): Path<String>| async move { file(&path, files, None) }),
        )
}

/// One file of the page; `base` is where its relative links point to.
fn file(path: &str, config: Arc<Config<'static>>, base: Option<&str>) -> Result<Response, ApiError> {
    let file = utoipa_swagger_ui::serve(path, config)
        .map_err(|error| ApiError::internal(format!("serving the documentation: {error}")))?
        .ok_or_else(|| ApiError::not_found("file"))?;
    let mut bytes = Bytes::from(file.bytes.into_owned());
    if let Some(base) = base {
        let page = String::from_utf8_lossy(&bytes);
        bytes = page
            .replacen("<head>", &format!("<head><base href=\"{base}\">"), 1)
            .into();
    }
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&file.content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    if file.gzpipped {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
