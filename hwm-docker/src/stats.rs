//! What containers use.
//!
//! An engine samples a container once a second while someone asks, and lets the second asker within
//! that second wait. So a sample is kept for a little longer than that, and rates are those between the
//! last two samples: the first answer about a container has none.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use hwm_core::backend::Result;
use hwm_core::id::ResourceId;
use hwm_core::metrics::{CpuMetrics, MemoryMetrics, Metrics, NetworkMetrics};
use hwm_core::units::Cores;
use serde::Deserialize;

use crate::client::{Client, READ_DEADLINE, within};
use crate::observe::Container;

/// How old a sample may be before another is taken.
const FRESH: Duration = Duration::from_millis(1200);
/// How long the samples of a container are kept that nobody asks for.
const MEMORY: Duration = Duration::from_secs(600);
const TOGETHER: usize = 32;

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
    online_cpus: Option<u32>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct CpuUsage {
    /// Nanoseconds of CPU since the start.
    total_usage: Option<u64>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct Memory {
    usage: Option<u64>,
    limit: Option<u64>,
    stats: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default)]
struct Network {
    rx_bytes: Option<u64>,
    tx_bytes: Option<u64>,
}

/// One look at a container.
#[derive(Debug, Clone)]
struct Sample {
    at: Instant,
    stats: Stats,
}

#[derive(Default)]
struct Samples {
    last: Option<Sample>,
    /// The one before.
    previous: Option<Sample>,
}

/// The last samples of containers, by container id.
#[derive(Default)]
pub(crate) struct Sampler {
    kept: Mutex<HashMap<String, Kept>>,
}

/// When a container was asked for last, and its samples.
type Kept = (Instant, Arc<tokio::sync::Mutex<Samples>>);

impl Sampler {
    /// What these containers use; those that do not run are left out.
    pub(crate) async fn metrics(
        &self,
        client: &Client,
        containers: Vec<(ResourceId, Container)>,
    ) -> Result<Vec<(ResourceId, Metrics)>> {
        let looks = containers
            .into_iter()
            .filter(|(_, c)| c.is_up())
            .map(|(id, container)| async move {
                Ok(self.look(client, &container).await?.map(|metrics| (id, metrics)))
            });
        let found: Vec<Result<_>> = stream::iter(looks).buffer_unordered(TOGETHER).collect().await;
        found.into_iter().filter_map(Result::transpose).collect()
    }

    async fn look(&self, client: &Client, container: &Container) -> Result<Option<Metrics>> {
        let kept = self.kept(&container.id);
        let mut samples = kept.lock().await;
        if samples.last.as_ref().is_none_or(|s| s.at.elapsed() >= FRESH) {
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
            let Some(stats) = within(READ_DEADLINE, "reading a container's figures", ask).await? else {
                return Ok(None);
            };
            let sample = Sample {
                at: Instant::now(),
                stats,
            };
            samples.previous = samples.last.replace(sample);
        }
        let limit = container.host_config.nano_cpus.filter(|n| *n > 0);
        let cores = limit.and_then(|n| u64::try_from(n).ok()).map(Cores);
        let last = samples.last.as_ref();
        Ok(last.map(|last| figures(samples.previous.as_ref(), last, cores)))
    }

    fn kept(&self, container: &str) -> Arc<tokio::sync::Mutex<Samples>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (at, _)| at.elapsed() < MEMORY);
        let entry = kept
            .entry(container.to_owned())
            .or_insert_with(|| (Instant::now(), Arc::default()));
        entry.0 = Instant::now();
        Arc::clone(&entry.1)
    }
}

fn figures(previous: Option<&Sample>, last: &Sample, limit: Option<Cores>) -> Metrics {
    let stats = &last.stats;
    let cores = limit.or(stats.cpu_stats.online_cpus.filter(|n| *n > 0).map(Cores::whole));
    let used = previous.and_then(|p| cores_used(p, last));
    let memory = &stats.memory_stats;
    let used_memory = memory.usage.map(|usage| usage.saturating_sub(cache(memory)));
    let total_memory = memory.limit.filter(|l| *l > 0);
    let sum = |of: fn(&Network) -> Option<u64>| {
        let networks = stats.networks.as_ref().filter(|n| !n.is_empty())?;
        networks
            .values()
            .try_fold(0u64, |sum, network| Some(sum.saturating_add(of(network)?)))
    };
    Metrics {
        cpu: CpuMetrics {
            cores,
            usage_percent: used.zip(cores).map(|(used, cores)| percent(used, cores.as_f64())),
        },
        memory: MemoryMetrics {
            total_mb: total_memory.map(|b| b >> 20),
            used_mb: used_memory.map(|b| b >> 20),
            usage_percent: used_memory
                .zip(total_memory)
                .map(|(used, total)| percent(used as f64, total as f64)),
        },
        network: NetworkMetrics {
            rx_bytes: sum(|n| n.rx_bytes),
            tx_bytes: sum(|n| n.tx_bytes),
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
    let of = |s: &Sample| s.stats.cpu_stats.cpu_usage.total_usage;
    // Less than before: it was started anew.
    let used = of(after)?.checked_sub(of(before)?)?;
    let elapsed = after.at.checked_duration_since(before.at)?.as_nanos();
    (elapsed > 0).then(|| used as f64 / elapsed as f64)
}

/// What the kernel would give back: `total_inactive_file` in cgroups v1, `inactive_file` in v2.
fn cache(memory: &Memory) -> u64 {
    let stat = |name| memory.stats.as_ref()?.get(name)?.as_u64();
    stat("total_inactive_file")
        .or_else(|| stat("inactive_file"))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, json: serde_json::Value) -> Sample {
        Sample {
            at,
            stats: serde_json::from_value(json).unwrap(),
        }
    }

    #[test]
    fn use_is_of_the_limit_and_memory_is_without_cache() {
        let now = Instant::now();
        let stats = |cpu: u64| {
            serde_json::json!({
                "cpu_stats": {"cpu_usage": {"total_usage": cpu}, "online_cpus": 8, "throttling_data": null},
                "memory_stats": {"usage": 300 << 20, "limit": 400 << 20, "stats": {"total_inactive_file": 100 << 20}},
                "networks": {"eth0": {"rx_bytes": 5, "tx_bytes": 7}, "eth1": {"rx_bytes": 1, "tx_bytes": 1}},
            })
        };
        let first = sample(now, stats(1_000_000_000));
        let second = sample(now + Duration::from_secs(2), stats(2_000_000_000));
        let metrics = figures(Some(&first), &second, Some(Cores::whole(2)));
        assert_eq!(metrics.cpu.usage_percent, Some(25.0));
        assert_eq!(metrics.cpu.cores, Some(Cores::whole(2)));
        assert_eq!(metrics.memory.used_mb, Some(200));
        assert_eq!(metrics.memory.usage_percent, Some(50.0));
        assert_eq!(
            (metrics.network.rx_bytes, metrics.network.tx_bytes),
            (Some(6), Some(8))
        );
        assert_eq!(metrics.disk.used_gb, None);
        assert_eq!(figures(None, &second, None).cpu.usage_percent, None);
        assert_eq!(figures(None, &second, None).cpu.cores, Some(Cores::whole(8)));
        assert_eq!(figures(Some(&second), &first, None).cpu.usage_percent, None);
    }

    #[test]
    fn what_is_missing_is_none() {
        let empty = sample(
            Instant::now(),
            serde_json::json!({"networks": null, "memory_stats": {}}),
        );
        assert_eq!(figures(None, &empty, None), Metrics::default());
    }
}
