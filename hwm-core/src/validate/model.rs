//! The rules of where a model comes from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use super::reader::Field;
use super::{limits, path};

/// A path or `file://` under a model or volume root, or a URL that the operator's allow-list permits.
/// A URL may end in `#sha256=…`, which the fetched file must have. It is kept in its normal form, so that what
/// was checked is what is fetched.
pub(super) fn source(field: &Field<'_>) -> Option<String> {
    let text = field.text_that_is("a path or URL of the model")?;
    if let Some(path) = text.strip_prefix("file://") {
        if path.contains(['%', '?', '#']) {
            return field.refuse("must be file:// and a plain absolute path, without '%', '?' and '#'");
        }
        return local(field, path).map(|path| format!("file://{path}"));
    }
    if text.starts_with('/') {
        return local(field, text);
    }
    remote(field, text)
}

fn local(field: &Field<'_>, text: &str) -> Option<String> {
    let path = path::absolute_text(field, text)?;
    let rules = field.cx.rules;
    let roots: Vec<_> = rules.model_roots.iter().chain(&rules.volume_roots).collect();
    path::under(field, &path, &roots, "model root or volume root")?;
    Some(path)
}

fn remote(field: &Field<'_>, text: &str) -> Option<String> {
    if text.len() > limits::URL {
        return field.refuse(format!("must have at most {} characters", limits::URL));
    }
    // A URL parser drops tabs and newlines and turns backslashes round.
    if !text.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return field.refuse("must not contain spaces, backslashes, control or non-ASCII characters");
    }
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https" | "s3") && url.has_host() => url,
        _ => {
            return field.refuse(
                "must be an absolute path, or a URL that begins with file://, https://, http:// or s3://",
            );
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return field.refuse("must not contain credentials, as it can be read back");
    }
    let digest = |fragment: &str| {
        let hex = fragment.strip_prefix("sha256=").unwrap_or_default();
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())
    };
    if !url.fragment().is_none_or(digest) {
        return field.refuse(
            "must have nothing after '#' but the file's checksum: sha256= and 64 hexadecimal digits",
        );
    }
    let sources = &field.cx.rules.model_sources;
    if !sources.iter().any(|prefix| permits(prefix, &url)) {
        let allowed = if sources.is_empty() {
            "none: use a path under a model root".to_owned()
        } else {
            sources.join(", ")
        };
        return field.refuse(format!(
            "must come from a source that the operator allows, on a public address unless its host is \
             listed; allowed are {allowed}"
        ));
    }
    Some(url.into())
}

/// Whether a URL lies within a prefix of the allow-list. A prefix without a host, such as `https://`,
/// permits public hosts only; what a name resolves to must be checked again when it is fetched.
fn permits(prefix: &str, url: &Url) -> bool {
    let Some((scheme, rest)) = prefix.split_once("://") else {
        return false;
    };
    if scheme != url.scheme() {
        return false;
    }
    if rest.is_empty() {
        return scheme == "s3" || is_public_host(url);
    }
    let Ok(base) = Url::parse(prefix) else {
        return false;
    };
    let folder = base.path().trim_end_matches('/');
    let inside = url.path().strip_prefix(folder);
    base.host() == url.host()
        && base.port_or_known_default() == url.port_or_known_default()
        && inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_public_host(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_public(address.into()),
        Some(Host::Ipv6(address)) => is_public(address.into()),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            let inside = ["localhost", "local", "internal", "home.arpa"];
            // A name without a dot is resolved inside the operator's own domain.
            name.contains('.')
                && !inside
                    .iter()
                    .any(|zone| name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.')))
        }
        None => false,
    }
}

/// Whether an address is on the public Internet: not loopback, private, link-local, shared, reserved,
/// documentation or multicast, nor an IPv6 form that leads to IPv4. What fetches a URL given by a client
/// checks every address that its host resolves to, at every redirect.
///
/// ```
/// use hwm_core::validate::is_public;
///
/// assert!(is_public("1.1.1.1".parse().unwrap()));
/// assert!(!is_public("169.254.169.254".parse().unwrap()));
/// assert!(!is_public("::ffff:10.0.0.1".parse().unwrap()));
/// ```
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol = (a, b, c) == (192, 0, 0) || (a, b, c) == (192, 88, 99);
    let benchmark = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 224
        || shared
        || protocol
        || benchmark
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(mapped) = address.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    let [a, b, ..] = address.segments();
    // Global unicast is 2000::/3. Inside it, protocol assignments (with Teredo), documentation and 6to4
    // are not hosts of their own.
    let global = a & 0xe000 == 0x2000;
    let protocol = a == 0x2001 && b < 0x0200;
    let documentation = a == 0x2001 && b == 0x0db8 || a == 0x3fff && b < 0x1000;
    global && !protocol && !documentation && a != 0x2002
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for text in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "3fff::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_prefix_ends_at_a_boundary_of_host_port_and_path() {
        let url = |text: &str| Url::parse(text).unwrap();
        let prefix = "https://models.example.com/team";
        assert!(permits(prefix, &url("https://models.example.com/team/llama")));
        assert!(permits(prefix, &url("https://models.example.com:443/team")));
        for other in [
            "https://models.example.com.evil.org/team/x",
            "https://models.example.com:8443/team/x",
            "https://models.example.com/teams/x",
            "https://models.example.com/team/../other",
            "https://models.example.com/team/%2e%2e/other",
            "http://models.example.com/team/x",
        ] {
            assert!(!permits(prefix, &url(other)), "{other}");
        }
        assert!(permits("s3://bucket", &url("s3://bucket/key")));
        assert!(!permits("s3://bucket", &url("s3://bucket2/key")));
        assert!(permits("http://10.0.0.5:8080/", &url("http://10.0.0.5:8080/m")));
    }

    #[test]
    fn a_bare_scheme_reaches_public_hosts_only() {
        for text in [
            "https://huggingface.co/m",
            "https://1.1.1.1/m",
            "https://a.localhost.example.com/",
        ] {
            assert!(permits("https://", &Url::parse(text).unwrap()), "{text}");
        }
        for text in [
            "https://localhost/",
            "https://a.localhost/",
            "https://localhost./",
            "https://metadata/",
            "https://metadata.google.internal/",
            "https://printer.local./",
            "https://127.1/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://169.254.169.254/",
        ] {
            assert!(!permits("https://", &Url::parse(text).unwrap()), "{text}");
        }
    }
}
