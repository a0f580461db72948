//! Images: what a config names, and having it on the engine.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use http::Method;
use http_body_util::BodyExt;
use hwm_core::backend::{BackendError, BackendErrorKind, ProgressSink, Result};
use hwm_core::config::{Config, PullPolicy, Registry, RegistryAuth};
use hwm_core::secret::Secret;
use oci_spec::distribution::Reference;
use serde::{Deserialize, Serialize};

use crate::client::{Client, Fault, kind_of, tidy, within};
use crate::flight::Flights;

/// A pull that reports nothing for so long is given up.
const STALL: Duration = Duration::from_secs(300);
const DOCKER_HUB: &str = "docker.io";
/// Where Docker keeps the Hub's credentials, for reasons of its own.
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";
/// Registries that take a token alone take any user name with it.
const TOKEN_USER: &str = "oauth2accesstoken";
const LINE_LIMIT: usize = 1 << 20;

/// The image that a config names, spelled out with registry and tag or digest.
pub(crate) fn reference(config: &Config) -> Result<Reference> {
    let (text, registry) = match config {
        Config::Container(c) => {
            let tag = if c.image_tag.is_empty() {
                "latest"
            } else {
                &c.image_tag
            };
            let name = match c.registry {
                Registry::Ghcr => format!(
                    "ghcr.io/{}",
                    c.image_name.strip_prefix("ghcr.io/").unwrap_or(&c.image_name)
                ),
                Registry::DockerHub | Registry::Private => c.image_name.clone(),
            };
            let mark = if tag.starts_with("sha256:") { '@' } else { ':' };
            (format!("{name}{mark}{tag}"), Some(c.registry))
        }
        Config::Inference(c) => (c.docker_image.clone(), None),
        Config::Machine(_) => {
            return Err(BackendError::new(
                BackendErrorKind::Unsupported,
                "looking for an image",
                "virtual machines do not run here",
            ));
        }
    };
    let doing = format!("reading the image reference {text:?}");
    let invalid = |message: &str| BackendError::new(BackendErrorKind::Invalid, doing.clone(), message);
    let reference: Reference = text.parse().map_err(|e| invalid(&format!("{e}")))?;
    match registry {
        Some(Registry::DockerHub) if reference.registry() != DOCKER_HUB => Err(invalid(
            "it names another registry than Docker Hub: use the registry \"private\"",
        )),
        Some(Registry::Private) if reference.registry() == DOCKER_HUB => Err(invalid(
            "a private registry needs its host in front: host[:port]/path",
        )),
        _ => Ok(reference),
    }
}

/// Credentials for one registry, in the form that the engine takes.
#[derive(Serialize)]
struct Login<'a> {
    username: &'a str,
    password: &'a str,
    serveraddress: &'a str,
}

/// The header that hands credentials to the engine, for the image's registry and no other.
fn login(reference: &Reference, auth: Option<&RegistryAuth>) -> Option<String> {
    let auth = auth?;
    let secret = auth.token.as_ref().or(auth.password.as_ref())?;
    let login = Login {
        username: auth.username.as_deref().unwrap_or(TOKEN_USER),
        password: secret.expose(),
        serveraddress: match reference.registry() {
            DOCKER_HUB => DOCKER_HUB_LOGIN,
            other => other,
        },
    };
    let json = serde_json::to_vec(&login).ok()?;
    Some(base64::engine::general_purpose::URL_SAFE.encode(json))
}

fn auth_of(config: &Config) -> Option<&RegistryAuth> {
    match config {
        Config::Container(c) => c.registry_auth.as_ref(),
        Config::Inference(c) => c.registry_auth.as_ref(),
        Config::Machine(_) => None,
    }
}

fn policy_of(config: &Config) -> PullPolicy {
    match config {
        Config::Container(c) => c.pull_policy,
        Config::Inference(c) => c.pull_policy,
        Config::Machine(_) => PullPolicy::Never,
    }
}

/// Has images on the engine, pulling each once however many ask.
#[derive(Default)]
pub(crate) struct Images {
    /// By reference and credentials: who has none must not profit from, or fail by, another's.
    pulls: Flights<(String, Option<String>), ()>,
}

impl Images {
    /// Has the image of a config on the engine, as its pull policy says, and answers its reference.
    pub(crate) async fn ensure(
        &self,
        client: &Client,
        config: &Config,
        progress: &ProgressSink,
    ) -> Result<String> {
        let reference = reference(config)?;
        let name = reference.whole();
        let policy = policy_of(config);
        if policy != PullPolicy::Always && exists(client, &name).await? {
            return Ok(name);
        }
        if policy == PullPolicy::Never {
            return Err(BackendError::new(
                BackendErrorKind::NotFound,
                format!("looking for image {name}"),
                "the engine does not have it, and pullPolicy is never: pull it, or use missing",
            ));
        }
        let auth = auth_of(config).cloned();
        let header = login(&reference, auth.as_ref());
        let key = (name.clone(), header.clone());
        self.pulls
            .join(key, progress, |progress| {
                let client = client.clone();
                Box::pin(async move {
                    pull(&client, &reference, header, &progress)
                        .await
                        .map_err(|e| scrub(e, auth.as_ref()))
                })
            })
            .await?;
        Ok(name)
    }
}

/// Whether the engine has the image.
async fn exists(client: &Client, name: &str) -> Result<bool> {
    #[derive(Deserialize)]
    struct Found {
        #[serde(rename = "Id")]
        _id: String,
    }
    let ask = async {
        match client.get::<Found>(&format!("/images/{name}/json"), &[]).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.is_absent() => Ok(false),
            Err(fault) => Err(fault),
        }
    };
    client.look(&format!("looking for image {name}"), ask).await
}

/// One line of what the engine says during a pull.
#[derive(Deserialize, Default)]
#[serde(default)]
struct PullLine {
    id: Option<String>,
    status: Option<String>,
    #[serde(rename = "progressDetail")]
    progress: Option<PullProgress>,
    error: Option<String>,
    #[serde(rename = "errorDetail")]
    detail: Option<PullError>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PullProgress {
    current: Option<u64>,
    total: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PullError {
    message: Option<String>,
}

/// Bytes downloaded of each layer.
#[derive(Default)]
struct Layers(HashMap<String, (u64, u64)>);

impl Layers {
    /// Takes a line in, and answers MB done, MB in all and percent if they changed.
    fn take(&mut self, line: &PullLine) -> Option<(u64, u64, u8)> {
        let id = line.id.as_deref()?;
        match line.status.as_deref()? {
            "Downloading" => {
                let progress = line.progress.as_ref()?;
                let total = progress.total.filter(|t| *t > 0)?;
                self.0
                    .insert(id.to_owned(), (progress.current.unwrap_or(0).min(total), total));
            }
            "Download complete" | "Pull complete" => {
                let (done, total) = self.0.get_mut(id)?;
                *done = *total;
            }
            _ => return None,
        }
        let (done, total) = self.0.values().fold((0u64, 0u64), |sum, layer| {
            (sum.0.saturating_add(layer.0), sum.1.saturating_add(layer.1))
        });
        let percent = u8::try_from(done.saturating_mul(100) / total.max(1)).unwrap_or(100);
        Some((done >> 20, total >> 20, percent))
    }
}

async fn pull(
    client: &Client,
    reference: &Reference,
    login: Option<String>,
    progress: &ProgressSink,
) -> Result<()> {
    let name = reference.whole();
    let doing = format!("pulling image {name}");
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    let tag = reference.digest().or(reference.tag()).unwrap_or("latest");
    let headers: Vec<_> = login.into_iter().map(|l| ("x-registry-auth", l)).collect();
    progress.report(format!("pulling {name}"), None);
    let query = [("fromImage", repository.as_str()), ("tag", tag)];
    let begin = client.send(Method::POST, "/images/create", &query, &headers, Vec::new());
    let mut body = within(STALL, &doing, begin).await?.into_body();
    let (mut layers, mut pending, mut complete) = (Layers::default(), Vec::new(), false);
    loop {
        let frame = match tokio::time::timeout(STALL, body.frame()).await {
            Err(_) => {
                let message = format!("the registry sent nothing for {} s", STALL.as_secs());
                return Err(BackendError::new(BackendErrorKind::Failed, doing, message));
            }
            Ok(None) => break,
            Ok(Some(frame)) => frame.map_err(|e| Fault::from(e).during(&doing))?,
        };
        let Ok(data) = frame.into_data() else { continue };
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            complete |= take_line(&line, &name, &doing, &mut layers, progress)?;
        }
        if pending.len() > LINE_LIMIT {
            return Err(Fault::Unreadable("a line of more than 1 MB".to_owned()).during(doing));
        }
    }
    complete |= take_line(&pending, &name, &doing, &mut layers, progress)?;
    // The stream may end early and look clean: only the image itself, and the last line of a whole
    // pull, are proof.
    if complete && exists(client, &name).await? {
        return Ok(());
    }
    Err(BackendError::new(
        BackendErrorKind::Failed,
        doing,
        "the pull ended early: try again",
    ))
}

/// Takes one line in; whether it is one of those that end a whole pull.
fn take_line(
    line: &[u8],
    name: &str,
    doing: &str,
    layers: &mut Layers,
    progress: &ProgressSink,
) -> Result<bool> {
    let Ok(line) = serde_json::from_slice::<PullLine>(line) else {
        return Ok(false);
    };
    let failure = line
        .detail
        .as_ref()
        .and_then(|d| d.message.clone())
        .or_else(|| line.error.clone());
    if let Some(message) = failure {
        return Err(pull_error(doing, &message));
    }
    if let Some((done, total, percent)) = layers.take(&line) {
        progress.report(format!("pulling {name}: {done} of {total} MB"), Some(percent));
    }
    let ends = |s: &str| s.starts_with("Status: ") || s.starts_with("Digest: ");
    // Podman ends with the id of the image alone.
    let podman = line.status.is_none() && line.id.as_ref().is_some_and(|id| id.len() == 64);
    Ok(podman || line.status.as_deref().is_some_and(ends))
}

fn pull_error(doing: &str, message: &str) -> BackendError {
    let kind = match kind_of(500, message) {
        BackendErrorKind::Failed if message.contains("not found") => BackendErrorKind::NotFound,
        kind => kind,
    };
    BackendError::new(kind, doing, tidy(message))
}

/// Takes credentials out of an error, should a registry have echoed them.
fn scrub(mut error: BackendError, auth: Option<&RegistryAuth>) -> BackendError {
    let secrets = auth
        .into_iter()
        .flat_map(|a| [a.password.as_ref(), a.token.as_ref()])
        .flatten()
        .map(Secret::expose)
        .filter(|s| !s.is_empty());
    for secret in secrets {
        let user = auth.and_then(|a| a.username.as_deref()).unwrap_or(TOKEN_USER);
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}"));
        error.message = error.message.replace(secret, "***").replace(&basic, "***");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn container(registry: &str, name: &str, tag: &str) -> Config {
        serde_json::from_value(serde_json::json!({
            "type": "application-container", "registry": registry, "imageName": name, "imageTag": tag,
        }))
        .unwrap()
    }

    fn whole(registry: &str, name: &str, tag: &str) -> Result<String> {
        reference(&container(registry, name, tag)).map(|r| r.whole())
    }

    #[test]
    fn each_registry_spells_its_images_out() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (registry, name, tag, expected) in [
            (
                "docker-hub",
                "nginx",
                "alpine",
                "docker.io/library/nginx:alpine".to_owned(),
            ),
            ("docker-hub", "me/app", "", "docker.io/me/app:latest".to_owned()),
            ("ghcr", "me/app", "v1", "ghcr.io/me/app:v1".to_owned()),
            ("ghcr", "ghcr.io/me/app", "v1", "ghcr.io/me/app:v1".to_owned()),
            (
                "private",
                "127.0.0.1:5000/a/b",
                "1",
                "127.0.0.1:5000/a/b:1".to_owned(),
            ),
            (
                "private",
                "reg.example/a",
                &digest,
                format!("reg.example/a@{digest}"),
            ),
        ] {
            assert_eq!(whole(registry, name, tag), Ok(expected));
        }
    }

    #[test]
    fn a_reference_that_leaves_its_registry_is_refused() {
        for (registry, name, tag) in [
            ("docker-hub", "evil.example/app", "1"),
            ("private", "me/app", "1"),
            ("private", "app", "1"),
            ("docker-hub", "../../volumes", "1"),
            ("docker-hub", "nginx", "a/../b"),
            ("docker-hub", "nginx", "sha256:short"),
            ("ghcr", "me/app?x=y", "1"),
        ] {
            let error = whole(registry, name, tag).unwrap_err();
            assert_eq!(error.kind, BackendErrorKind::Invalid, "{registry} {name} {tag}");
        }
    }

    proptest! {
        #[test]
        fn no_reference_escapes_the_path_it_is_put_in(name in "\\PC{0,40}", tag in "\\PC{0,20}") {
            for registry in ["docker-hub", "ghcr", "private"] {
                if let Ok(text) = whole(registry, &name, &tag) {
                    prop_assert!(!text.contains(".."), "{text}");
                    prop_assert!(
                        text.chars().all(|c| c.is_ascii_alphanumeric() || "./_-:@[]".contains(c)),
                        "{text}"
                    );
                    prop_assert!(!text.contains("//"), "{text}");
                }
            }
        }
    }

    #[test]
    fn credentials_name_their_registry_and_no_other() {
        let auth = RegistryAuth {
            username: Some("me".into()),
            password: Some("hunter2".into_secret()),
            token: None,
        };
        for (registry, name, server) in [
            ("docker-hub", "me/app", DOCKER_HUB_LOGIN),
            ("ghcr", "me/app", "ghcr.io"),
            ("private", "r.example:5000/a", "r.example:5000"),
        ] {
            let reference = reference(&container(registry, name, "1")).unwrap();
            let header = login(&reference, Some(&auth)).unwrap();
            let json = base64::engine::general_purpose::URL_SAFE.decode(header).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(json["serveraddress"], server);
            assert_eq!(json["password"], "hunter2");
            assert_eq!(login(&reference, None), None);
        }
    }

    trait IntoSecret {
        fn into_secret(self) -> Secret;
    }

    impl IntoSecret for &str {
        fn into_secret(self) -> Secret {
            Secret::new(self)
        }
    }

    #[test]
    fn an_echoed_secret_is_taken_out_of_the_error() {
        let auth = RegistryAuth {
            username: Some("me".into()),
            password: Some("hunter2".into_secret()),
            token: None,
        };
        let basic = base64::engine::general_purpose::STANDARD.encode("me:hunter2");
        let error = pull_error("pulling", &format!("no: hunter2, Basic {basic}"));
        assert_eq!(scrub(error, Some(&auth)).message, "no: ***, Basic ***");
    }

    #[test]
    fn layers_add_up() {
        let mut layers = Layers::default();
        let mut take = |json: &str| layers.take(&serde_json::from_str(json).unwrap());
        assert_eq!(take(r#"{"status":"Pulling fs layer","id":"a"}"#), None);
        let mb = 1 << 20;
        let line = |id, current| {
            format!(
                r#"{{"status":"Downloading","id":"{id}","progressDetail":{{"current":{},"total":{}}}}}"#,
                current * mb,
                10 * mb
            )
        };
        assert_eq!(take(&line("a", 5)), Some((5, 10, 50)));
        assert_eq!(take(&line("b", 0)), Some((5, 20, 25)));
        assert_eq!(
            take(r#"{"status":"Download complete","id":"a"}"#),
            Some((10, 20, 50))
        );
    }

    #[test]
    fn an_error_line_without_detail_is_an_error() {
        let mut layers = Layers::default();
        let sink = ProgressSink::default();
        let mut take = |line: &str| take_line(line.as_bytes(), "x", "pulling x", &mut layers, &sink);
        assert_eq!(
            take(r#"{"status":"Status: Downloaded newer image for x"}"#),
            Ok(true)
        );
        assert_eq!(take(r#"{"status":"Extracting","id":"a"}"#), Ok(false));
        assert_eq!(take("garbage"), Ok(false));
        let error = take(r#"{"error":"toomanyrequests: slow down"}"#).unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Failed);
        let error =
            take(r#"{"errorDetail":{"message":"manifest for x not found"},"error":"x"}"#).unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::NotFound);
    }
}
