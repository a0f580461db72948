//! What Prometheus reads: requests, and what the manager counts. One registry per router.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use hwm_core::accelerator::GpuHealth;
use hwm_core::manager::Manager;
use hwm_core::metrics::GpuMetrics;
use hwm_core::node::NodeGpu;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::error::ApiError;

/// The media type of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: MethodLabel,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: MethodLabel,
    route: String,
}

/// A method that is known; clients can make up others, and must not make up time series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct MethodLabel(&'static str);

impl MethodLabel {
    fn of(method: &Method) -> Self {
        Self(match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            "OPTIONS" => "OPTIONS",
            "PUT" => "PUT",
            _ => "other",
        })
    }
}

impl EncodeLabelValue for MethodLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

type Seconds = Family<RouteLabels, Histogram, fn() -> Histogram>;

/// Counts requests.
pub(crate) struct HttpMetrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Seconds,
}

fn latency() -> Histogram {
    const BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
    Histogram::new(BUCKETS)
}

impl HttpMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register(
            "hwm_http_requests",
            "Requests by method, route and status",
            Family::clone(&requests),
        );
        let seconds = Seconds::new_with_constructor(latency);
        registry.register_with_unit(
            "hwm_http_request_duration",
            "Time to the head of the answer, by method and route",
            Unit::Seconds,
            seconds.clone(),
        );
        Self {
            registry,
            requests,
            seconds,
        }
    }

    pub(crate) fn observe(&self, method: &Method, route: &str, status: StatusCode, elapsed: Duration) {
        let method = MethodLabel::of(method);
        self.requests
            .get_or_create(&RequestLabels {
                method,
                route: route.to_owned(),
                status: status.as_u16(),
            })
            .inc();
        self.seconds
            .get_or_create(&RouteLabels {
                method,
                route: route.to_owned(),
            })
            .observe(elapsed.as_secs_f64());
    }

    /// The text of all figures as they are now.
    pub(crate) async fn text(&self, manager: &Manager) -> Result<String, ApiError> {
        let mut text = String::new();
        let managers = manager_registry(manager).await?;
        let failed = |_| ApiError::internal("writing metrics");
        encode_registry(&mut text, &self.registry).map_err(failed)?;
        encode_registry(&mut text, &managers).map_err(failed)?;
        encode_eof(&mut text).map_err(failed)?;
        Ok(text)
    }
}

type Labels = Vec<(&'static str, String)>;

/// The manager's figures at this moment.
async fn manager_registry(manager: &Manager) -> Result<Registry, ApiError> {
    let mut registry = Registry::default();
    let counters = manager.counters();

    let operations: Family<Labels, Counter> = Family::default();
    for ((action, status), count) in counters.operations {
        let status = serde_json::to_value(status)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        let labels = vec![("action", action.as_str().to_owned()), ("status", status)];
        operations.get_or_create(&labels).inc_by(count);
    }
    registry.register("hwm_operations", "Operations that ended", operations);

    let calls: Family<Labels, Counter> = Family::default();
    let seconds: Family<Labels, Counter<f64, std::sync::atomic::AtomicU64>> = Family::default();
    for ((backend, method, ok), count, micros) in counters.backend_calls {
        let labels = vec![
            ("backend", backend),
            ("method", method.to_owned()),
            ("outcome", if ok { "ok" } else { "failed" }.to_owned()),
        ];
        calls.get_or_create(&labels).inc_by(count);
        seconds.get_or_create(&labels).inc_by(micros as f64 / 1e6);
    }
    registry.register("hwm_backend_calls", "Calls to backends", calls);
    registry.register_with_unit(
        "hwm_backend_call_time",
        "Time spent in calls to backends",
        Unit::Seconds,
        seconds,
    );

    let commits = Counter::<u64>::default();
    commits.inc_by(counters.store_commits);
    registry.register("hwm_store_commits", "Commits to the store", commits);

    let running = Gauge::<i64>::default();
    running.set(i64::try_from(counters.running).unwrap_or(i64::MAX));
    registry.register(
        "hwm_operations_running",
        "Operations that run at present",
        running,
    );

    let claims: Family<Labels, Gauge> = Family::default();
    for (kind, amount) in manager.claim_counts().await? {
        claims
            .get_or_create(&vec![("kind", kind)])
            .set(i64::try_from(amount).unwrap_or(i64::MAX));
    }
    registry.register("hwm_claims", "What is claimed on the node", claims);
    gpu_figures(&mut registry, &manager.gpus().await?);
    Ok(registry)
}

type Figure = fn(&GpuMetrics) -> Option<f64>;

/// Figures of GPUs and of their slices. One that cannot be had is left out.
fn gpu_figures(registry: &mut Registry, gpus: &[NodeGpu]) {
    let figures: [(&str, &str, Option<Unit>, Figure); 5] = [
        ("hwm_gpu_usage_percent", "How busy it is", None, |m| {
            m.usage_percent
        }),
        ("hwm_gpu_memory_used", "Memory used", Some(Unit::Bytes), |m| {
            m.memory_used_mb.map(|mb| (mb << 20) as f64)
        }),
        (
            "hwm_gpu_memory_total",
            "Memory there is",
            Some(Unit::Bytes),
            |m| m.memory_total_mb.map(|mb| (mb << 20) as f64),
        ),
        (
            "hwm_gpu_temperature",
            "Temperature of the card",
            Some(Unit::Celsius),
            |m| m.temperature_c,
        ),
        (
            "hwm_gpu_power",
            "Power that the card draws",
            Some(Unit::Other("watts".to_owned())),
            |m| m.power_w,
        ),
    ];
    for (name, help, unit, figure) in figures {
        let family: Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>> = Family::default();
        for gpu in gpus {
            let instances = gpu
                .instances
                .iter()
                .map(|i| (i.uuid.clone(), i.profile.as_str(), &i.metrics));
            let devices = [(Some(String::new()), "", &gpu.metrics)]
                .into_iter()
                .chain(instances);
            for (instance, profile, metrics) in devices {
                if let (Some(instance), Some(value)) = (instance, metrics.as_ref().and_then(figure)) {
                    let mut labels = gpu_labels(gpu);
                    labels.extend([("instance", instance), ("profile", profile.to_owned())]);
                    family.get_or_create(&labels).set(value);
                }
            }
        }
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, family),
            None => registry.register(name, help, family),
        }
    }
    let usable: Family<Labels, Gauge> = Family::default();
    for gpu in gpus {
        let is = matches!(gpu.health, GpuHealth::Ok | GpuHealth::Degraded);
        usable.get_or_create(&gpu_labels(gpu)).set(is.into());
    }
    registry.register("hwm_gpu_usable", "Whether it can be handed out", usable);
}

fn gpu_labels(gpu: &NodeGpu) -> Labels {
    vec![
        ("gpu", gpu.index.to_string()),
        ("uuid", gpu.uuid.to_string()),
        ("model", gpu.model.clone()),
    ]
}
