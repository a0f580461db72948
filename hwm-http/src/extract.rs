//! Reads requests: path ids, queries that name every violation, and bodies within limits.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{FromRequest, FromRequestParts, OriginalUri, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use hwm_core::error::Violation;
use hwm_core::id::ResourceId;
use hwm_core::manager::{Idempotency, RequestOptions};
use serde_json::Value;

use crate::auth::Caller;
use crate::conditional::IfMatch;
use crate::error::{ApiError, ErrorCode};
use crate::state::Shared;
use crate::{idempotency, prefer};

/// One id of the path. What cannot be one names nothing: 404.
pub(crate) struct Id<T>(pub(crate) T);

impl<T: FromStr> FromRequestParts<Shared> for Id<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, api).await.ok();
        text.and_then(|Path(text)| text.parse().ok())
            .map(Self)
            .ok_or_else(|| ApiError::not_found("this id"))
    }
}

/// Two ids of the path.
pub(crate) struct Ids<A, B>(pub(crate) A, pub(crate) B);

impl<A: FromStr, B: FromStr> FromRequestParts<Shared> for Ids<A, B> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let texts = Path::<(String, String)>::from_request_parts(parts, api)
            .await
            .ok();
        texts
            .and_then(|Path((a, b))| Some(Self(a.parse().ok()?, b.parse().ok()?)))
            .ok_or_else(|| ApiError::not_found("this id"))
    }
}

/// Query parameters that know how to read themselves.
pub(crate) trait FromQuery {
    /// Takes every parameter it knows; what is wrong with them the reader collects.
    fn from_query(query: &mut QueryReader) -> Self;
}

/// No parameters at all.
pub(crate) struct NoQuery;

impl FromQuery for NoQuery {
    fn from_query(_: &mut QueryReader) -> Self {
        Self
    }
}

/// The query, with every violation named at once: wrong values, repeated and unknown parameters.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: FromQuery> FromRequestParts<Shared> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, ApiError> {
        let mut reader = QueryReader::new(parts.uri.query().unwrap_or_default());
        let value = T::from_query(&mut reader);
        let violations = reader.finish();
        if violations.is_empty() {
            Ok(Self(value))
        } else {
            Err(ApiError::validation(&violations))
        }
    }
}

/// Takes parameters out of a query and collects what is wrong with them.
pub(crate) struct QueryReader {
    given: BTreeMap<String, Vec<String>>,
    violations: Vec<Violation>,
}

impl QueryReader {
    pub(crate) fn new(query: &str) -> Self {
        let mut given: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            given
                .entry(name.into_owned())
                .or_default()
                .push(value.into_owned());
        }
        Self {
            given,
            violations: Vec::new(),
        }
    }

    pub(crate) fn refuse(&mut self, name: &str, message: impl Into<String>) {
        self.violations.push(Violation::new(name, message));
    }

    /// All values of a parameter that may be repeated.
    pub(crate) fn all(&mut self, name: &str) -> Vec<String> {
        self.given.remove(name).unwrap_or_default()
    }

    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let mut values = self.all(name);
        if values.len() > 1 {
            self.refuse(name, "must be given once");
        }
        values.pop()
    }

    /// A value that `read` understands; `expected` says what would be right.
    pub(crate) fn parsed<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let value = read(&text);
        if value.is_none() {
            self.refuse(name, format!("must be {expected}"));
        }
        value
    }

    pub(crate) fn flag(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, "true or false", |text| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    pub(crate) fn integer(&mut self, name: &str, min: u64, max: u64) -> Option<u64> {
        let expected = format!("an integer between {min} and {max}");
        self.parsed(name, &expected, |text| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| text.parse::<u64>().ok()).flatten()?;
            (min..=max).contains(&number).then_some(number)
        })
    }

    pub(crate) fn finish(mut self) -> Vec<Violation> {
        for name in self.given.into_keys() {
            let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
            self.violations
                .push(Violation::new(name, "is not a known parameter"));
        }
        self.violations
    }
}

/// What comes with a request that changes something.
pub(crate) struct Change {
    body: Bytes,
    json: bool,
    if_match: IfMatch,
    pub(crate) idempotency: Option<Idempotency>,
    /// How long the answer may wait for the operation.
    pub(crate) wait: Option<Duration>,
}

impl FromRequest<Shared> for Change {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, ApiError> {
        let headers = request.headers();
        let if_match = IfMatch::read(headers)?;
        let key = idempotency::key(headers)?;
        let wait = prefer::wait(headers);
        let json = is_json(headers);
        let method = request.method().clone();
        let uri = request
            .extensions()
            .get::<OriginalUri>()
            .map_or_else(|| request.uri().clone(), |uri| uri.0.clone());
        let limit = api.options.body_limit;
        let body = tokio::time::timeout(api.options.body_time, Bytes::from_request(request, api))
            .await
            .map_err(|_| ApiError::timeout("reading the body", api.options.body_time))?
            .map_err(|rejection| match rejection {
                BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
                    ApiError::too_large(limit)
                }
                _ => ApiError::malformed("the body cannot be read to its end"),
            })?;
        let idempotency = key.map(|key| Idempotency {
            fingerprint: idempotency::fingerprint(&method, &uri, &body),
            key,
        });
        Ok(Self {
            body,
            json,
            if_match,
            idempotency,
            wait,
        })
    }
}

impl Change {
    /// The body, which must be JSON.
    pub(crate) fn json(&self) -> Result<Value, ApiError> {
        if !self.json {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ErrorCode::UnsupportedMediaType,
                "the body must be application/json",
            ));
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| ApiError::malformed(format!("the body is no JSON: {error}")))
    }

    /// The body, where leaving it out is the same as `{}`.
    pub(crate) fn json_or_empty(&self) -> Result<Value, ApiError> {
        if self.body.is_empty() {
            Ok(Value::Object(serde_json::Map::new()))
        } else {
            self.json()
        }
    }

    /// Refuses a body that says anything.
    pub(crate) fn nothing(&self) -> Result<(), ApiError> {
        let violations: Vec<_> = match self.json_or_empty()? {
            Value::Object(fields) => fields
                .keys()
                .map(|name| Violation::new(name, "is not a known field"))
                .collect(),
            _ => vec![Violation::new("", "must be an object")],
        };
        if violations.is_empty() {
            Ok(())
        } else {
            Err(ApiError::validation(&violations))
        }
    }

    /// What the manager is to observe: If-Match, judged for this resource, and Idempotency-Key.
    pub(crate) async fn options(&self, caller: &Caller, id: ResourceId) -> Result<RequestOptions, ApiError> {
        Ok(RequestOptions {
            if_match: self.if_match.revision(caller, id).await?,
            idempotency: self.idempotency.clone(),
        })
    }

    /// The same for a request that makes a resource.
    pub(crate) fn options_for_new(&self) -> RequestOptions {
        RequestOptions {
            if_match: None,
            idempotency: self.idempotency.clone(),
        }
    }
}

/// Whether the body says that it is JSON, merge patches included.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let mut parts = value.split(';');
    let media = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"));
    json && parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content_type(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
        is_json(&headers)
    }

    #[test]
    fn json_is_known_by_its_media_type() {
        for good in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/merge-patch+json",
            "application/json; charset=\"utf-8\"; q=1",
        ] {
            assert!(content_type(good), "{good}");
        }
        for bad in [
            "text/json",
            "text/plain",
            "application/json; charset=latin1",
            "application/jsonp",
            "multipart/form-data",
        ] {
            assert!(!content_type(bad), "{bad}");
        }
    }

    #[test]
    fn a_query_names_every_violation() {
        let mut query = QueryReader::new("page=0&limit=201&limit=3&open=maybe&who=x&%FF=1");
        assert_eq!(query.integer("page", 1, 9), None);
        query.integer("limit", 1, 200);
        assert_eq!(query.flag("open"), None);
        let text: Vec<_> = query.finish().iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "page: must be an integer between 1 and 9",
                "limit: must be given once",
                "open: must be true or false",
                "who: is not a known parameter",
                "\u{fffd}: is not a known parameter",
            ]
        );
    }

    #[test]
    fn integers_are_digits_and_nothing_else() {
        for bad in ["+1", "-1", "1.0", "0x1", " 1", "", "99999999999999999999999"] {
            let mut query = QueryReader {
                given: BTreeMap::from([("n".to_owned(), vec![bad.to_owned()])]),
                violations: Vec::new(),
            };
            assert_eq!(query.integer("n", 0, u64::MAX), None, "{bad}");
            assert_eq!(query.finish().len(), 1, "{bad}");
        }
    }
}
