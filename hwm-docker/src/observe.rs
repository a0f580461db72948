//! What is of our containers, and hints that it changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use http_body_util::BodyExt;
use hwm_core::backend::{BackendEvent, LogQuery, Observed, ObservedState, Result, Stream};
use hwm_core::id::ResourceId;
use hwm_core::units::Timestamp;
use serde::Deserialize;
use tokio::io::AsyncBufReadExt;
use tokio_util::io::StreamReader;

use crate::client::{Client, Fault};
use crate::logs;
use crate::spec::{GENERATION, OWNER, PORT, RESOURCE, SPEC, container_name};

/// How many containers are looked at together.
const TOGETHER: usize = 16;
const LAST_WORDS_LINES: u32 = 10;
const LAST_WORDS_BYTES: usize = 1000;
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);
/// How many last words are remembered before all are asked for again.
const CROWD: usize = 4096;

/// A container as `/containers/ID/json` shows it, as far as it matters here.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Container {
    pub(crate) id: String,
    state: State,
    #[serde(default)]
    config: ContainerConfig,
    #[serde(default)]
    pub(crate) host_config: HostConfig,
    #[serde(default)]
    network_settings: NetworkSettings,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    status: Option<String>,
    running: Option<bool>,
    paused: Option<bool>,
    pid: Option<u32>,
    #[serde(rename = "OOMKilled")]
    oom_killed: Option<bool>,
    exit_code: Option<i64>,
    error: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ContainerConfig {
    labels: Option<HashMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    network_mode: Option<String>,
    #[serde(rename = "NanoCpus")]
    pub(crate) nano_cpus: Option<i64>,
    pub(crate) memory: Option<i64>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    #[serde(rename = "IPAddress")]
    address: Option<String>,
    ports: Option<BTreeMap<String, Option<Vec<Binding>>>>,
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Network {
    #[serde(rename = "IPAddress")]
    address: Option<String>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Binding {
    host_ip: Option<String>,
    host_port: Option<String>,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    Created,
    Running,
    Paused,
    Ended,
}

impl Container {
    fn label(&self, name: &str) -> Option<&str> {
        self.config.labels.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether it carries the owner and that resource.
    pub(crate) fn is_ours(&self, owner: &str, id: ResourceId) -> bool {
        self.label(OWNER) == Some(owner) && self.label(RESOURCE) == Some(id.to_string().as_str())
    }

    pub(crate) fn spec(&self) -> Option<&str> {
        self.label(SPEC)
    }

    pub(crate) fn generation(&self) -> Option<u64> {
        self.label(GENERATION)?.parse().ok()
    }

    pub(crate) fn activity(&self) -> Activity {
        let state = &self.state;
        if state.paused == Some(true) {
            return Activity::Paused;
        }
        if state.running == Some(true) {
            return Activity::Running;
        }
        match state.status.as_deref() {
            // The last two are Podman's.
            Some("created" | "configured" | "initialized") => Activity::Created,
            Some("running" | "restarting") => Activity::Running,
            _ => Activity::Ended,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.activity(), Activity::Running | Activity::Paused)
    }

    /// The port of the node that leads to a TCP port of the container, with the address if it is one.
    pub(crate) fn published(&self, key: &str) -> Option<(Option<&str>, &str)> {
        let binding = self
            .network_settings
            .ports
            .as_ref()?
            .get(key)?
            .as_ref()?
            .first()?;
        let ip = binding.host_ip.as_deref();
        let ip = ip.filter(|ip| !matches!(*ip, "" | "0.0.0.0" | "::"));
        Some((ip, binding.host_port.as_deref().filter(|p| !p.is_empty())?))
    }

    /// Its first process, as this machine sees it.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.state.pid.filter(|pid| *pid > 0)
    }

    pub(crate) fn uses_host_network(&self) -> bool {
        self.host_config.network_mode.as_deref() == Some("host")
    }

    /// The container's own address, reachable from this machine only.
    pub(crate) fn address(&self) -> Option<&str> {
        let settings = &self.network_settings;
        let networks = settings.networks.iter().flat_map(BTreeMap::values);
        settings
            .address
            .as_deref()
            .into_iter()
            .chain(networks.filter_map(|n| n.address.as_deref()))
            .find(|a| !a.is_empty())
    }

    /// Where it answers, towards clients that know the node as `advertise`.
    fn endpoint(&self, advertise: &str) -> Option<String> {
        let key = self.label(PORT)?;
        let host = |address: &str, port: &str| match address.contains(':') {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        };
        if self.uses_host_network() {
            let (port, _) = key.split_once('/')?;
            return Some(host(advertise, port));
        }
        let (address, port) = self.published(key)?;
        Some(host(address.unwrap_or(advertise), port))
    }
}

/// Reads the engine's time; it writes the year 1 for never.
fn moment(text: Option<&String>) -> Option<Timestamp> {
    Timestamp::parse(text?).filter(|t| t.as_millis() > 0)
}

/// What there is under a resource's name or labels.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    Ours(Box<Container>),
    /// Something that is not ours has our name.
    Foreign,
}

/// One container by name or id.
pub(crate) async fn container(client: &Client, name: &str) -> std::result::Result<Option<Container>, Fault> {
    match client.get(&format!("/containers/{name}/json"), &[]).await {
        Ok(container) => Ok(Some(container)),
        Err(fault) if fault.is_absent() => Ok(None),
        Err(fault) => Err(fault),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
    #[serde(default)]
    ports: Option<Vec<ListedPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedPort {
    #[serde(default)]
    public_port: Option<u16>,
    #[serde(rename = "Type", default)]
    protocol: String,
}

async fn list(client: &Client, labels: &[String]) -> std::result::Result<Vec<Listed>, Fault> {
    let filters = serde_json::json!({ "label": labels }).to_string();
    client
        .get("/containers/json", &[("all", "true"), ("filters", &filters)])
        .await
}

/// The ids of an owner's containers of one resource, whatever they are called now.
pub(crate) async fn ids_of(
    client: &Client,
    owner: &str,
    id: ResourceId,
) -> std::result::Result<Vec<String>, Fault> {
    let listed = list(client, &[format!("{OWNER}={owner}"), format!("{RESOURCE}={id}")]).await?;
    Ok(listed.into_iter().map(|l| l.id).collect())
}

/// The ports of the node that an owner's running containers hold.
pub(crate) async fn held_ports(
    client: &Client,
    owner: &str,
) -> std::result::Result<Vec<(u16, String)>, Fault> {
    let listed = list(client, &[format!("{OWNER}={owner}")]).await?;
    let ports = listed.into_iter().filter_map(|l| l.ports).flatten();
    Ok(ports.filter_map(|p| Some((p.public_port?, p.protocol))).collect())
}

/// Looks for a resource's container.
pub(crate) async fn find(client: &Client, owner: &str, id: ResourceId) -> std::result::Result<Found, Fault> {
    let named = container(client, &container_name(id)).await?;
    if let Some(container) = named.as_ref().filter(|c| c.is_ours(owner, id)) {
        return Ok(Found::Ours(Box::new(container.clone())));
    }
    // Someone may have renamed it.
    for other in ids_of(client, owner, id).await? {
        if let Some(container) = container(client, &other).await? {
            return Ok(Found::Ours(Box::new(container)));
        }
    }
    Ok(match named {
        Some(_) => Found::Foreign,
        None => Found::Nothing,
    })
}

/// The last words of containers that ended badly: asked for once per end.
#[derive(Default)]
pub(crate) struct LastWords {
    known: Mutex<HashMap<End, Option<String>>>,
}

/// One end of one container: its id and when it ended.
type End = (String, Option<String>);

impl LastWords {
    async fn of(&self, client: &Client, container: &Container) -> Option<String> {
        let key = (container.id.clone(), container.state.finished_at.clone());
        let known = |map: &Mutex<HashMap<End, Option<String>>>| {
            map.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&key)
                .cloned()
        };
        if let Some(words) = known(&self.known) {
            return words;
        }
        let query = LogQuery {
            tail: Some(LAST_WORDS_LINES),
            ..LogQuery::default()
        };
        let read = async {
            let lines = logs::read(client, &container.id, query).await.ok()?;
            let lines = lines.filter_map(|l| async { l.ok() }).map(|l| l.message);
            Some(lines.collect::<Vec<_>>().await)
        };
        let lines = tokio::time::timeout(LAST_WORDS_DEADLINE, read)
            .await
            .ok()
            .flatten()?;
        let words = shorten(&lines);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CROWD {
            known.clear();
        }
        known.insert(key, words.clone());
        words
    }
}

/// The end of some lines, of bounded length.
fn shorten(lines: &[String]) -> Option<String> {
    let text = lines.join("\n");
    let text = text.trim();
    let mut from = text.len().saturating_sub(LAST_WORDS_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let cut = if from > 0 { "…" } else { "" };
    (!text.is_empty()).then(|| format!("{cut}{}", &text[from..]))
}

/// What the manager is told of a container.
pub(crate) async fn observe(
    client: &Client,
    words: &LastWords,
    advertise: &str,
    id: ResourceId,
    container: &Container,
) -> Observed {
    let state = match container.activity() {
        Activity::Created => ObservedState::Created,
        Activity::Running | Activity::Paused => ObservedState::Running,
        Activity::Ended => {
            let exit_code = container.state.exit_code;
            let badly = exit_code != Some(0) || container.state.oom_killed == Some(true);
            ObservedState::Ended {
                exit_code,
                cause: if badly {
                    cause(client, words, container).await
                } else {
                    None
                },
            }
        }
    };
    Observed {
        id,
        runtime_id: container.id.clone(),
        state,
        started_at: moment(container.state.started_at.as_ref()),
        ended_at: moment(container.state.finished_at.as_ref()).filter(|_| !container.is_up()),
        endpoint: container.is_up().then(|| container.endpoint(advertise)).flatten(),
        generation: container.generation(),
    }
}

async fn cause(client: &Client, words: &LastWords, container: &Container) -> Option<String> {
    let memory = (container.state.oom_killed == Some(true)).then(|| "out of memory".to_owned());
    let error = container.state.error.clone().filter(|e| !e.is_empty());
    let words = words.of(client, container).await;
    let parts: Vec<_> = [memory, error, words].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(": "))
}

/// What is of these resources now.
pub(crate) async fn inspect(
    client: &Client,
    owner: &str,
    ids: &[ResourceId],
) -> Result<Vec<(ResourceId, Container)>> {
    let looks = ids.iter().copied().map(|id| async move {
        let doing = format!("looking at container {}", container_name(id));
        Ok(match client.look(&doing, find(client, owner, id)).await? {
            Found::Ours(container) => Some((id, *container)),
            Found::Nothing | Found::Foreign => None,
        })
    });
    collect(looks).await
}

/// Everything that carries the owner's label, one container per resource.
pub(crate) async fn owned(client: &Client, owner: &str) -> Result<Vec<(ResourceId, Container)>> {
    let doing = "listing containers";
    let listed = client
        .look(doing, list(client, &[format!("{OWNER}={owner}")]))
        .await?;
    let looks = listed.into_iter().filter_map(|listed| {
        let id: ResourceId = listed.labels?.get(RESOURCE)?.parse().ok()?;
        Some(async move {
            let look = container(client, &listed.id);
            Ok(client.look(doing, look).await?.map(|c| (id, c)))
        })
    });
    let mut all = collect(looks).await?;
    // Should there be two, the one that runs counts.
    all.sort_by_key(|(id, c)| (*id, !c.is_up()));
    all.dedup_by_key(|(id, _)| *id);
    Ok(all)
}

async fn collect<T>(
    looks: impl IntoIterator<Item = impl Future<Output = Result<Option<T>>>>,
) -> Result<Vec<T>> {
    let found: Vec<Result<Option<T>>> = stream::iter(looks).buffer_unordered(TOGETHER).collect().await;
    found.into_iter().filter_map(Result::transpose).collect()
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Event {
    action: Option<String>,
    #[serde(rename = "status")]
    status: Option<String>,
    actor: Actor,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Actor {
    attributes: Option<HashMap<String, String>>,
}

impl Event {
    /// The resource that it is about, if it changes what is observed.
    fn about(self) -> Option<ResourceId> {
        let action = self.action.or(self.status)?;
        let matters = [
            "create", "start", "die", "died", "stop", "kill", "oom", "pause", "unpause", "destroy", "remove",
            "rename", "update", "restart",
        ];
        if !matters.contains(&action.as_str()) && !action.starts_with("health_status") {
            return None;
        }
        self.actor.attributes?.get(RESOURCE)?.parse().ok()
    }
}

/// Hints about an owner's containers, from the moment this returns until the connection is lost.
pub(crate) async fn events(client: &Client, owner: &str) -> Result<Stream<BackendEvent>> {
    let filters = serde_json::json!({ "type": ["container"], "label": [format!("{OWNER}={owner}")] });
    let filters = filters.to_string();
    let options = [("filters", filters.as_str())];
    let answer = client
        .look(
            "listening to the engine's events",
            client.open("/events", &options),
        )
        .await?;
    let body = answer
        .into_body()
        .into_data_stream()
        .map(|c| c.map_err(std::io::Error::other));
    let lines = StreamReader::new(body).lines();
    let events = stream::unfold(lines, |mut lines| async move {
        loop {
            let line = lines.next_line().await.ok().flatten()?;
            let event = serde_json::from_str::<Event>(&line).ok();
            if let Some(id) = event.and_then(Event::about) {
                return Some((BackendEvent { id }, lines));
            }
        }
    });
    Ok(events.boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01900000-0000-7000-8000-000000000001";

    fn container(state: serde_json::Value, rest: serde_json::Value) -> Container {
        let mut json = serde_json::json!({
            "Id": "abc", "State": state, "New": 1,
            "Config": {"Labels": {OWNER: "me", RESOURCE: ID, GENERATION: "7", PORT: "80/tcp"}},
        });
        json.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn both_engines_words_for_a_state_are_known() {
        for (state, activity) in [
            (serde_json::json!({"Status": "created"}), Activity::Created),
            (serde_json::json!({"Status": "initialized"}), Activity::Created),
            (
                serde_json::json!({"Status": "running", "Running": true}),
                Activity::Running,
            ),
            (
                serde_json::json!({"Status": "paused", "Running": true, "Paused": true}),
                Activity::Paused,
            ),
            (serde_json::json!({"Status": "exited"}), Activity::Ended),
            (serde_json::json!({"Status": "stopped"}), Activity::Ended),
            (
                serde_json::json!({"Status": "something new", "Running": true}),
                Activity::Running,
            ),
        ] {
            let json = state.to_string();
            assert_eq!(
                container(state, serde_json::json!({})).activity(),
                activity,
                "{json}"
            );
        }
    }

    #[test]
    fn only_both_labels_make_a_container_ours() {
        let found = container(serde_json::json!({}), serde_json::json!({}));
        let id: ResourceId = ID.parse().unwrap();
        assert!(found.is_ours("me", id));
        assert!(!found.is_ours("you", id));
        assert!(!found.is_ours("me", ResourceId::from_u128(2)));
        assert_eq!(found.generation(), Some(7));
    }

    #[test]
    fn the_endpoint_is_the_first_port_as_published() {
        let of = |rest| container(serde_json::json!({"Running": true}), rest).endpoint("node.example");
        let published = |ip| {
            serde_json::json!({"NetworkSettings": {"Ports": {
                "53/udp": null, "80/tcp": [{"HostIp": ip, "HostPort": "8080"}]}}})
        };
        assert_eq!(of(published("0.0.0.0")).unwrap(), "node.example:8080");
        assert_eq!(of(published("10.0.0.1")).unwrap(), "10.0.0.1:8080");
        assert_eq!(of(published("fe80::1")).unwrap(), "[fe80::1]:8080");
        assert_eq!(
            of(serde_json::json!({"HostConfig": {"NetworkMode": "host"}})).unwrap(),
            "node.example:80"
        );
        assert_eq!(of(serde_json::json!({})), None);
    }

    #[test]
    fn last_words_are_the_end_of_the_log() {
        assert_eq!(shorten(&[]), None);
        assert_eq!(shorten(&[" ".into()]), None);
        assert_eq!(shorten(&["a".into(), "b".into()]).unwrap(), "a\nb");
        let long = shorten(&["ä".repeat(900), "end".into()]).unwrap();
        assert!(long.starts_with('…') && long.ends_with("end") && long.len() <= LAST_WORDS_BYTES + 3);
    }

    #[test]
    fn the_year_one_is_never() {
        assert_eq!(moment(Some(&"0001-01-01T00:00:00Z".to_owned())), None);
        assert!(moment(Some(&"2026-01-01T00:00:00.123456789+02:00".to_owned())).is_some());
    }

    #[test]
    fn events_of_execs_and_strangers_are_no_hints() {
        let about = |json: serde_json::Value| serde_json::from_value::<Event>(json).unwrap().about();
        let of = |action: &str, resource: &str| {
            about(
                serde_json::json!({"Action": action, "Actor": {"Attributes": {RESOURCE: resource}}, "x": 1}),
            )
        };
        assert_eq!(of("die", ID), Some(ID.parse().unwrap()));
        assert_eq!(of("health_status: healthy", ID), Some(ID.parse().unwrap()));
        assert_eq!(of("exec_start: sh", ID), None);
        assert_eq!(of("die", "../x"), None);
        assert_eq!(about(serde_json::json!({"Action": "die"})), None);
    }
}
