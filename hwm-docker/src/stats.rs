//! What containers use.
//!
//! The engine samples once a second and lets whoever asks in between wait, so where the engine is on
//! this machine the kernel is asked instead. Rates are those between a reading that was kept and the
//! present one; where there is none to compare with, a second one is taken a moment later.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use hwm_core::backend::Result;
use hwm_core::id::ResourceId;
use hwm_core::metrics::{CpuMetrics, MemoryMetrics, Metrics, NetworkMetrics};
use hwm_core::units::{Bytes, Cores};
use serde::Deserialize;

use crate::cgroup::{Kernel, Reading};
use crate::client::Client;
use crate::observe::Container;

/// The least time between two readings from which a rate is told.
const MOMENT: Duration = Duration::from_millis(100);
/// How old a kept reading gets before the present one takes its place.
const WINDOW: Duration = Duration::from_secs(1);
/// How long the reading of a container is kept that nobody asks for.
const MEMORY: Duration = Duration::from_secs(300);
const TOGETHER: usize = 64;

/// `/containers/ID/stats`, as far as it matters here.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct Stats {
    cpu_stats: Cpu,
    memory_stats: Memory,
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct Cpu {
    cpu_usage: CpuUsage,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct CpuUsage {
    /// Nanoseconds since the start.
    total_usage: Option<u64>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct Memory {
    usage: Option<u64>,
    stats: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct Network {
    rx_bytes: Option<u64>,
    tx_bytes: Option<u64>,
}

impl Stats {
    fn reading(&self) -> Reading {
        let memory = &self.memory_stats;
        let stat = |name| memory.stats.as_ref()?.get(name)?.as_u64();
        // The first is of control groups v1, the second of v2.
        let cache = stat("total_inactive_file")
            .or_else(|| stat("inactive_file"))
            .unwrap_or(0);
        let sum = |of: fn(&Network) -> Option<u64>| {
            let networks = self.networks.as_ref().filter(|n| !n.is_empty())?;
            let mut all = networks.values();
            all.try_fold(0u64, |sum, network| Some(sum.saturating_add(of(network)?)))
        };
        Reading {
            cpu: self.cpu_stats.cpu_usage.total_usage,
            memory: memory.usage.map(|usage| usage.saturating_sub(cache)),
            rx: sum(|n| n.rx_bytes),
            tx: sum(|n| n.tx_bytes),
        }
    }
}

/// A reading and when it was taken.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    reading: Reading,
}

/// What a container without limits may use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Node {
    pub(crate) cpu: Option<Cores>,
    pub(crate) memory: Option<Bytes>,
}

/// Reads figures, and keeps a reading per container to compare with.
#[derive(Default)]
pub(crate) struct Sampler {
    kernel: Arc<Kernel>,
    kept: Mutex<HashMap<String, Sample>>,
}

impl Sampler {
    /// What these containers use; those that do not run are left out.
    pub(crate) async fn metrics(
        &self,
        client: &Client,
        node: Node,
        containers: Vec<(ResourceId, Container)>,
    ) -> Result<Vec<(ResourceId, Metrics)>> {
        let looks = containers
            .into_iter()
            .filter(|(_, c)| c.is_up())
            .map(|(id, container)| async move {
                let metrics = self.look(client, node, &container).await?;
                Ok(metrics.map(|metrics| (id, metrics)))
            });
        let found: Vec<Result<_>> = stream::iter(looks).buffer_unordered(TOGETHER).collect().await;
        found.into_iter().filter_map(Result::transpose).collect()
    }

    async fn look(&self, client: &Client, node: Node, container: &Container) -> Result<Option<Metrics>> {
        let local = client.endpoint().is_local();
        let Some(mut last) = self.sample(client, container, local).await? else {
            return Ok(None);
        };
        let mut before = self.kept(&container.id);
        let comparable = |before: &Sample, last: &Sample| {
            last.at.saturating_duration_since(before.at) >= MOMENT && last.reading.cpu >= before.reading.cpu
        };
        if local && !before.is_some_and(|before| comparable(&before, &last)) {
            tokio::time::sleep(MOMENT).await;
            let Some(again) = self.sample(client, container, local).await? else {
                return Ok(None);
            };
            before = Some(std::mem::replace(&mut last, again));
        }
        self.keep(&container.id, last);
        Ok(Some(figures(before.as_ref(), &last, node, container)))
    }

    async fn sample(&self, client: &Client, container: &Container, local: bool) -> Result<Option<Sample>> {
        if local && let Some(pid) = container.pid() {
            let (kernel, id) = (Arc::clone(&self.kernel), container.id.clone());
            // What the kernel knows is in memory: it does not block.
            if let Some(mut reading) = kernel.read(pid, &id) {
                if container.uses_host_network() {
                    (reading.rx, reading.tx) = (None, None);
                }
                return Ok(Some(Sample {
                    at: Instant::now(),
                    reading,
                }));
            }
        }
        let path = format!("/containers/{}/stats", container.id);
        let ask = async {
            match client
                .get::<Stats>(&path, &[("stream", "false"), ("one-shot", "true")])
                .await
            {
                Ok(stats) => Ok(Some(stats)),
                // It may have ended meanwhile.
                Err(fault) if fault.is_absent() || fault.has_status(409) => Ok(None),
                Err(fault) => Err(fault),
            }
        };
        let stats = client.look("reading a container's figures", ask).await?;
        Ok(stats.map(|stats| Sample {
            at: Instant::now(),
            reading: stats.reading(),
        }))
    }

    fn kept(&self, container: &str) -> Option<Sample> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(container).copied()
    }

    fn keep(&self, container: &str, sample: Sample) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, sample| sample.at.elapsed() < MEMORY);
        let entry = kept.entry(container.to_owned()).or_insert(sample);
        if entry.at.elapsed() >= WINDOW {
            *entry = sample;
        }
    }
}

fn figures(before: Option<&Sample>, last: &Sample, node: Node, container: &Container) -> Metrics {
    let limit = |of: Option<i64>| of.and_then(|l| u64::try_from(l).ok()).filter(|l| *l > 0);
    let cores = limit(container.host_config.nano_cpus).map(Cores).or(node.cpu);
    let total = limit(container.host_config.memory).or(node.memory.map(|m| m.0));
    let used = before.and_then(|before| cores_used(before, last));
    let memory = last.reading.memory;
    Metrics {
        cpu: CpuMetrics {
            cores,
            usage_percent: used.zip(cores).map(|(used, cores)| percent(used, cores.as_f64())),
        },
        memory: MemoryMetrics {
            total_mb: total.map(|b| b >> 20),
            used_mb: memory.map(|b| b >> 20),
            usage_percent: memory
                .zip(total)
                .map(|(used, total)| percent(used as f64, total as f64)),
        },
        network: NetworkMetrics {
            rx_bytes: last.reading.rx,
            tx_bytes: last.reading.tx,
        },
        ..Metrics::default()
    }
}

/// To two decimals.
fn percent(part: f64, whole: f64) -> f64 {
    (part / whole * 10_000.0).round() / 100.0
}

/// CPU time over time between two samples of one run.
fn cores_used(before: &Sample, after: &Sample) -> Option<f64> {
    // Less than before: it was started anew.
    let used = after.reading.cpu?.checked_sub(before.reading.cpu?)?;
    let elapsed = after.at.checked_duration_since(before.at)?.as_nanos();
    (elapsed > 0).then(|| used as f64 / elapsed as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(limits: serde_json::Value) -> Container {
        serde_json::from_value(serde_json::json!({"Id": "abc", "State": {}, "HostConfig": limits})).unwrap()
    }

    fn sample(at: Instant, cpu: u64) -> Sample {
        let stats: Stats = serde_json::from_value(serde_json::json!({
            "cpu_stats": {"cpu_usage": {"total_usage": cpu}, "throttling_data": null},
            "memory_stats": {"usage": 300 << 20, "limit": 400 << 20, "stats": {"total_inactive_file": 100 << 20}},
            "networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 7}, "eth1": {"rx_bytes": 1, "tx_bytes": 1}},
        }))
        .unwrap();
        Sample {
            at,
            reading: stats.reading(),
        }
    }

    #[test]
    fn use_is_of_the_limit_and_memory_is_without_cache() {
        let now = Instant::now();
        let first = sample(now, 1_000_000_000);
        let second = sample(now + Duration::from_secs(2), 2_000_000_000);
        let node = Node {
            cpu: Some(Cores::whole(8)),
            memory: Some(Bytes::from_mb(800)),
        };
        let limited = container(serde_json::json!({"NanoCpus": 2_000_000_000, "Memory": 400 << 20}));
        let metrics = figures(Some(&first), &second, node, &limited);
        assert_eq!(metrics.cpu.usage_percent, Some(25.0));
        assert_eq!(metrics.cpu.cores, Some(Cores::whole(2)));
        assert_eq!(metrics.memory.used_mb, Some(200));
        assert_eq!(metrics.memory.usage_percent, Some(50.0));
        assert_eq!(
            (metrics.network.rx_bytes, metrics.network.tx_bytes),
            (Some(6), Some(8))
        );
        assert_eq!(metrics.disk.used_gb, None);
        let free = container(serde_json::json!({"NanoCpus": 0, "Memory": 0}));
        assert_eq!(figures(None, &second, node, &free).cpu.usage_percent, None);
        assert_eq!(
            figures(None, &second, node, &free).cpu.cores,
            Some(Cores::whole(8))
        );
        assert_eq!(figures(None, &second, node, &free).memory.total_mb, Some(800));
        assert_eq!(
            figures(Some(&second), &first, node, &free).cpu.usage_percent,
            None
        );
    }

    #[test]
    fn what_is_missing_is_none() {
        let stats: Stats =
            serde_json::from_value(serde_json::json!({"networks": null, "memory_stats": {}})).unwrap();
        assert_eq!(stats.reading(), Reading::default());
    }
}
