//! Asks a container over HTTP whether it is well.

use std::time::Duration;

use hwm_core::backend::{BackendError, BackendErrorKind, HealthReport, Result};
use hwm_core::config::{HealthCheck, Protocol};

use crate::observe::Container;
use crate::root_of;
use crate::spec::port_key;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Makes one request after the other, to our own node only.
pub(crate) struct Prober(reqwest::Client);

impl Prober {
    pub(crate) fn new() -> std::result::Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // It asks over http:// alone, and a host may have no certificates.
            .tls_certs_only([])
            // A container that was replaced must not be asked over a connection to its predecessor.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self(client))
    }

    /// Asks once. `node` is where published ports answer; a container's own address is tried where the
    /// engine is on this machine.
    pub(crate) async fn check(
        &self,
        container: &Container,
        check: &HealthCheck,
        node: &str,
        local: bool,
    ) -> Result<HealthReport> {
        let unhealthy = |detail: &str| HealthReport {
            healthy: false,
            detail: detail.to_owned(),
        };
        if !container.is_up() {
            return Ok(unhealthy("it does not run"));
        }
        let Some((host, port)) = target(container, check.port, node, local) else {
            return Ok(unhealthy("its port is not published"));
        };
        let url = url(&host, port, &check.path)?;
        Ok(match self.0.get(url).send().await {
            Ok(answer) => HealthReport {
                healthy: answer.status().is_success(),
                detail: format!("GET {} answered {}", check.path, answer.status()),
            },
            Err(error) if error.is_timeout() => unhealthy(&format!(
                "GET {} did not answer within {} s",
                check.path,
                TIMEOUT.as_secs()
            )),
            Err(error) if error.is_connect() => unhealthy(&format!("nothing listens on port {}", check.port)),
            Err(error) => unhealthy(&format!("GET {} failed: {}", check.path, root_of(&error))),
        })
    }
}

fn target(container: &Container, port: u16, node: &str, local: bool) -> Option<(String, u16)> {
    if container.uses_host_network() {
        return Some((node.to_owned(), port));
    }
    if let Some((address, published)) = container.published(&port_key(port, Protocol::Tcp)) {
        return Some((address.unwrap_or(node).to_owned(), published.parse().ok()?));
    }
    let address = container.address().filter(|_| local)?;
    Some((address.to_owned(), port))
}

/// The URL of a path on a host; the path cannot change the host.
fn url(host: &str, port: u16, path: &str) -> Result<reqwest::Url> {
    let doing = "checking a container's health";
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let mut url = reqwest::Url::parse(&format!("http://{host}:{port}/"))
        .map_err(|e| BackendError::new(BackendErrorKind::Failed, doing, e.to_string()))?;
    let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
    url.set_path(path);
    url.set_query(query);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_change_the_host() {
        for (path, expected) in [
            ("/health", "http://127.0.0.1:80/health"),
            ("/h?x=1&y=2", "http://127.0.0.1:80/h?x=1&y=2"),
            ("@evil/", "http://127.0.0.1:80/@evil/"),
            ("//evil/x", "http://127.0.0.1:80//evil/x"),
            ("/a b#c", "http://127.0.0.1:80/a%20b%23c"),
        ] {
            let url = url("127.0.0.1", 80, path).unwrap();
            assert_eq!(url.host_str(), Some("127.0.0.1"));
            assert_eq!(url.as_str().replace("127.0.0.1/", "127.0.0.1:80/"), expected);
        }
        assert_eq!(
            url("fe80::1", 8080, "/").unwrap().as_str(),
            "http://[fe80::1]:8080/"
        );
    }
}
