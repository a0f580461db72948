//! `Prefer: wait=N`: the answer comes when the operation is over, or after N seconds.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use hwm_core::id::OperationId;

use crate::auth::Caller;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The longest wait, in seconds.
const LONGEST: u64 = 30;

/// How long the client would wait, at most 30 s. What is not understood is passed over (RFC 7240).
pub(crate) fn wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all(PREFER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .find_map(|preference| {
            // Parameters of a preference follow a semicolon.
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            let seconds = value.trim().trim_matches('"');
            let digits = !seconds.is_empty() && seconds.bytes().all(|b| b.is_ascii_digit());
            (name.trim().eq_ignore_ascii_case("wait") && digits)
                .then(|| Duration::from_secs(seconds.parse().unwrap_or(LONGEST).min(LONGEST)))
        })
}

/// Waits for an operation, as long as the client would. That it failed is no error of the request.
pub(crate) async fn await_operation(caller: &Caller, operation: Option<OperationId>, wait: Option<Duration>) {
    if let (Some(operation), Some(limit)) = (operation, wait) {
        // Whatever comes of it, the answer says how things then are.
        drop(caller.scoped.wait(operation, limit).await);
    }
}

/// Says in the answer that the preference was honoured.
pub(crate) fn applied(response: &mut Response, wait: Option<Duration>) {
    if let Some(wait) = wait
        && let Ok(value) = HeaderValue::from_str(&format!("wait={}", wait.as_secs()))
    {
        response.headers_mut().insert(PREFERENCE_APPLIED, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(value: &'static str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(PREFER, HeaderValue::from_static(value));
        wait(&headers).map(|d| d.as_secs())
    }

    #[test]
    fn a_wait_is_found_among_other_preferences_and_capped() {
        assert_eq!(waits("wait=5"), Some(5));
        assert_eq!(waits("respond-async, Wait = \"7\"; x=1"), Some(7));
        assert_eq!(waits("wait=31"), Some(30));
        assert_eq!(waits("wait=99999999999999999999999"), Some(30));
    }

    #[test]
    fn what_is_not_understood_is_passed_over() {
        for value in [
            "",
            "wait",
            "wait=",
            "wait=-1",
            "wait=1.5",
            "await=3",
            "respond-async",
        ] {
            assert_eq!(waits(value), None, "{value}");
        }
    }
}
