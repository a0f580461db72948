//! Where models may be fetched from: the operator's allow-list, and public addresses only.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Why a URL is not fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlRefusal {
    #[error("is not a URL")]
    NotUrl,
    #[error("must not hold a user name or a password")]
    HasUser,
    #[error("is not among the sources that this node allows: {0}")]
    NotAllowed(String),
    #[error("names an address that is not public, and no source of this node names its host")]
    NotPublic,
}

/// One allowed prefix. Without a host it allows every host with a public address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prefix {
    scheme: String,
    host: Option<String>,
    port: Option<u16>,
    path: String,
}

/// URL prefixes that an operator allows, such as `s3://`, `https://` or `http://models.lan:8080/public/`.
/// A prefix that names a host allows private addresses for that host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    prefixes: Vec<Prefix>,
}

impl Prefix {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = scheme.to_ascii_lowercase();
        if !matches!(scheme.as_str(), "http" | "https" | "s3") {
            return None;
        }
        if rest.is_empty() {
            return Some(Self {
                scheme,
                host: None,
                port: None,
                path: String::new(),
            });
        }
        let url = Url::parse(text).ok()?;
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        Some(Self {
            scheme,
            host: Some(url.host_str().filter(|h| plain && !h.is_empty())?.to_owned()),
            port: url.port_or_known_default(),
            path: url.path().trim_end_matches('/').to_owned(),
        })
    }

    fn allows(&self, url: &Url) -> bool {
        let under = |path: &str| {
            path.strip_prefix(self.path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        url.scheme() == self.scheme
            && self.host.as_deref().is_none_or(|host| {
                url.host_str() == Some(host) && url.port_or_known_default() == self.port && under(url.path())
            })
    }
}

impl Sources {
    /// Reads prefixes; the answer to one that is none is that prefix.
    pub(crate) fn parse(prefixes: &[String]) -> Result<Self, String> {
        let read = prefixes.iter().map(|p| Prefix::parse(p).ok_or_else(|| p.clone()));
        Ok(Self {
            prefixes: read.collect::<Result<_, _>>()?,
        })
    }

    /// Reads a URL that may be fetched. Names are resolved, and looked at, when they are connected to.
    pub(crate) fn admit(&self, text: &str) -> Result<Url, UrlRefusal> {
        let url = Url::parse(text).map_err(|_| UrlRefusal::NotUrl)?;
        self.judge(&url)?;
        Ok(url)
    }

    fn judge(&self, url: &Url) -> Result<(), UrlRefusal> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlRefusal::HasUser);
        }
        if !self.prefixes.iter().any(|p| p.allows(url)) {
            return Err(UrlRefusal::NotAllowed(self.names()));
        }
        let host = url.host_str().unwrap_or_default();
        let literal = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        match literal {
            Ok(address) if url.scheme() != "s3" && !is_public(address) && !self.names_host(url) => {
                Err(UrlRefusal::NotPublic)
            }
            _ => Ok(()),
        }
    }

    fn names_host(&self, url: &Url) -> bool {
        self.prefixes.iter().any(|p| p.host.is_some() && p.allows(url))
    }

    fn names(&self) -> String {
        let name = |p: &Prefix| match (&p.host, p.port) {
            (None, _) => format!("{}://", p.scheme),
            (Some(host), Some(port)) => format!("{}://{host}:{port}{}", p.scheme, p.path),
            (Some(host), None) => format!("{}://{host}{}", p.scheme, p.path),
        };
        match self.prefixes.is_empty() {
            true => "none".to_owned(),
            false => self.prefixes.iter().map(name).collect::<Vec<_>>().join(", "),
        }
    }

    /// Follows redirects only to where a first request could have gone.
    pub(crate) fn redirects(&self) -> reqwest::redirect::Policy {
        let sources = self.clone();
        reqwest::redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > 5 {
                return attempt.error("too many redirects");
            }
            match sources.judge(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(refusal) => {
                    let host = attempt.url().host_str().unwrap_or_default().to_owned();
                    attempt.error(format!("it redirects to {host}, which {refusal}"))
                }
            }
        })
    }

    /// Resolves names to public addresses, and those of named hosts to any.
    pub(crate) fn resolver(&self) -> Arc<PublicResolver> {
        let named = self.prefixes.iter().filter_map(|p| p.host.clone()).collect();
        Arc::new(PublicResolver { named })
    }
}

/// Resolves names when a connection is made, so that no answer changes between the check and its use.
pub(crate) struct PublicResolver {
    named: BTreeSet<String>,
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let any = self.named.contains(&host);
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|a| any || is_public(a.ip())).collect();
            if allowed.is_empty() {
                return Err(format!("{host} has no public address").into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is one of the public Internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    match s {
        // NAT64 and 6to4 lead to the IPv4 address inside.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, ORCHID and documentation.
        [0x2001, second, ..] if second < 0x0200 || second == 0x0db8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(prefixes: &[&str]) -> Sources {
        Sources::parse(&prefixes.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_default_allows_public_https_and_s3_only() {
        let sources = sources(&["s3://", "https://"]);
        for good in [
            "https://huggingface.co/x/model.bin",
            "s3://bucket/llm/",
            "https://93.184.216.34/x",
        ] {
            assert!(sources.admit(good).is_ok(), "{good}");
        }
        for bad in [
            "http://huggingface.co/x",
            "ftp://x/y",
            "https://user:pw@host/x",
            "https://127.0.0.1/x",
            "https://0x7f.1/x",
            "https://2130706433/x",
            "https://[::1]/x",
            "https://[::ffff:10.0.0.1]/x",
            "https://[64:ff9b::a00:1]/x",
            "https://[2002:0a00:0001::]/x",
            "https://[fe80::1]/x",
            "https://[fd00::1]/x",
            "https://169.254.169.254/latest/meta-data",
            "https://10.0.0.1/x",
            "https://100.64.0.1/x",
            "https://0.0.0.0/x",
            "https://198.18.0.1/x",
            "https://224.0.0.1/x",
            "https://255.255.255.255/x",
            "file:///etc/passwd",
            "not a url",
            "https://",
        ] {
            assert!(sources.admit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_named_host_may_be_private_and_its_prefix_ends_at_a_component() {
        let sources = sources(&["http://127.0.0.1:8080/public/", "https://good.example"]);
        for good in [
            "http://127.0.0.1:8080/public/m.bin",
            "http://127.0.0.1:8080/public",
            "https://good.example/x",
        ] {
            assert!(sources.admit(good).is_ok(), "{good}");
        }
        for bad in [
            "http://127.0.0.1:8080/public-not/m.bin",
            "http://127.0.0.1:8080/public/../private",
            "http://127.0.0.1:8080/public/%2e%2e/private",
            "http://127.0.0.1:9090/public/m.bin",
            "http://127.0.0.1/public/m.bin",
            "https://good.example.evil.com/x",
            "https://good.example:444/x",
            "https://good.example@evil.com/x",
            "http://good.example/x",
        ] {
            assert!(sources.admit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_that_is_none_is_named() {
        let parse = |p: &str| Sources::parse(&[p.to_owned()]);
        for bad in ["", "https", "ftp://x/", "https://u:p@h/", "http:///x?y"] {
            assert_eq!(parse(bad), Err(bad.to_owned()));
        }
    }

    #[tokio::test]
    async fn a_name_with_a_private_address_is_not_connected_to() {
        let of = |prefixes: &[&str]| {
            let sources = sources(prefixes);
            reqwest::Client::builder()
                .dns_resolver(sources.resolver())
                .no_proxy()
                .build()
                .unwrap()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("http://localhost:{port}/");
        let refused = of(&["http://"]).get(&url).send().await.unwrap_err();
        assert!(
            format!("{refused:?}").contains("no public address"),
            "{refused:?}"
        );
        let named = of(&[&url]);
        let asked = tokio::spawn(async move { named.get(url).send().await });
        assert!(
            tokio::time::timeout(std::time::Duration::from_secs(5), listener.accept())
                .await
                .is_ok(),
            "a host that the operator names is connected to"
        );
        asked.abort();
    }
}
