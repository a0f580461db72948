//! What is shown: status as it is now, operations with their progress, events, nodes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;

use super::api::{EventFilter, EventItem, Health, ResourceStatus};
use super::{Core, Result};
use crate::access::{Principal, Visibility};
use crate::backend::{Observed, ObservedState, Stream};
use crate::error::Error;
use crate::event::Event;
use crate::id::OperationId;
use crate::ledger::{Capacity, Pool};
use crate::lifecycle::Phase;
use crate::metrics::{Metrics, ResourceMetrics};
use crate::node::Node;
use crate::operation::{Operation, OperationRecord, OperationStatus};
use crate::resource::Record;
use crate::store::EventQuery;
use crate::units::{Bytes, Cores};

/// How many events are read from the store at once.
const EVENT_BATCH: u32 = 256;

impl Core {
    pub(super) async fn status(&self, record: &Record) -> Result<ResourceStatus> {
        let slot = self.slot_of(record)?;
        slot.require_ready().await?;
        let limit = self.settings.read_timeout;
        let seen = slot
            .call("inspect", limit, slot.backend.inspect(&[record.id]))
            .await
            .map_err(|e| slot.error(e))?
            .into_iter()
            .find(|o| o.id == record.id);
        let running = seen.as_ref().is_some_and(|o| o.state == ObservedState::Running);
        let started = seen.as_ref().and_then(|o| o.started_at);
        Ok(ResourceStatus {
            resource_id: record.id,
            status: observed_phase(record, seen.as_ref()).status(),
            runtime: seen
                .as_ref()
                .map(|o| o.runtime(record))
                .or_else(|| record.runtime.clone()),
            health: health(record, running),
            last_health_check: record.last_health_check,
            uptime_seconds: started
                .filter(|_| running)
                .map(|at| self.env.now().since(at).as_secs()),
            error_message: record.error_message.clone(),
        })
    }

    pub(super) async fn metrics(&self, record: &Record) -> Result<ResourceMetrics> {
        let slot = self.slot_of(record)?;
        slot.require_ready().await?;
        let limit = self.settings.read_timeout;
        let answer = slot
            .call("metrics", limit, slot.backend.metrics(&[record.id]))
            .await
            .map_err(|e| slot.error(e))?;
        let mut metrics = answer.into_iter().find(|(id, _)| *id == record.id).map_or_else(
            || Metrics {
                cpu: crate::metrics::CpuMetrics {
                    cores: record.config.cpu(),
                    usage_percent: None,
                },
                ..Metrics::default()
            },
            |(_, metrics)| metrics,
        );
        let gpus = self.gpu_metrics(record).await;
        metrics.gpu = gpus.first().cloned();
        metrics.gpus = Some(gpus).filter(|g| !g.is_empty());
        Ok(ResourceMetrics {
            resource_id: record.id,
            timestamp: self.env.now(),
            metrics,
        })
    }

    pub(super) fn operation_view(&self, record: &OperationRecord) -> Operation {
        let mut operation = Operation::from(record);
        if record.status == OperationStatus::Running
            && let Some((message, percent)) = self.progress().get(&record.id)
        {
            operation.progress.message.clone_from(message);
            operation.progress.percent = *percent;
        }
        operation
    }

    pub(super) async fn wait(&self, id: OperationId, limit: Duration) -> Result<Operation> {
        let mut ended = self.ended.subscribe();
        let deadline = self.env.sleep(limit);
        tokio::pin!(deadline);
        loop {
            let record = self.store.operation(id).await?;
            let record = record.ok_or_else(|| Error::NotFound {
                what: format!("operation {id}"),
            })?;
            if record.status.is_final() {
                return Ok(self.operation_view(&record));
            }
            loop {
                tokio::select! {
                    biased;
                    news = ended.recv() => match news {
                        Ok(other) if other != id => {}
                        Ok(_) | Err(RecvError::Lagged(_) | RecvError::Closed) => break,
                    },
                    () = self.stopping.cancelled() => return Ok(self.operation_view(&record)),
                    () = &mut deadline => {
                        let record = self.store.operation(id).await?.unwrap_or(record);
                        return Ok(self.operation_view(&record));
                    }
                }
            }
        }
    }

    pub(super) fn events(
        self: Arc<Self>,
        visibility: Visibility,
        filter: EventFilter,
        after: Option<u64>,
    ) -> Stream<EventItem> {
        let newest = self.newest.subscribe();
        let at = after.unwrap_or(*newest.borrow());
        let state = (self, newest, at, std::collections::VecDeque::new());
        Box::pin(stream::unfold(
            state,
            move |(core, mut newest, mut at, mut ready)| {
                let (visibility, filter) = (visibility.clone(), filter.clone());
                async move {
                    loop {
                        if let Some(item) = ready.pop_front() {
                            return Some((item, (core, newest, at, ready)));
                        }
                        newest.mark_unchanged();
                        let page = match core
                            .store
                            .events(EventQuery {
                                after: at,
                                limit: EVENT_BATCH,
                            })
                            .await
                        {
                            Ok(page) => page,
                            Err(error) => {
                                tracing::error!(%error, "events cannot be read");
                                return None;
                            }
                        };
                        // A number from the future is one that this store never gave out.
                        if page.gap || at > page.newest {
                            at = page.newest;
                            return Some((EventItem::Reset(at), (core, newest, at, ready)));
                        }
                        if let Some(last) = page.events.last() {
                            at = last.id;
                            let seen = page.events.iter().filter(|stored| {
                                let event = &stored.event;
                                event
                                    .owner
                                    .as_ref()
                                    .is_none_or(|owner| visibility.includes(owner))
                                    && (filter.resource.is_none() || event.resource == filter.resource)
                                    && (filter.resource_type.is_none()
                                        || event.resource_type == filter.resource_type)
                            });
                            ready.extend(seen.map(|stored| EventItem::Event(Event::from(stored))));
                            continue;
                        }
                        tokio::select! {
                            biased;
                            () = core.stopping.cancelled() => return None,
                            changed = newest.changed() => if changed.is_err() { return None },
                        }
                    }
                }
            },
        ))
    }

    pub(super) async fn node_view(&self, caller: &Principal) -> Result<Node> {
        let capacity = self
            .slots
            .iter()
            .map(|s| s.capacity())
            .fold(Capacity::default(), Capacity::max);
        let pools = self.store.pools(&self.node).await?;
        let used = |pool| pools.get(&pool).copied().unwrap_or(0);
        let claimed = Capacity {
            cpu: Cores(used(Pool::Cpu)),
            ram: Bytes(used(Pool::Ram)),
            disk: Bytes(used(Pool::Disk)),
        };
        Ok(Node {
            id: self.node.clone(),
            hostname: self.hostname.clone(),
            backends: self.slots.iter().map(|s| s.view()).collect(),
            capacity: capacity.into(),
            claimed: claimed.into(),
            gpu_driver: self.gpu_driver(),
            gpus: self.gpu_views(Some(caller)).await?,
        })
    }
}

/// The phase that what is seen now makes of a record whose phase may be a moment old.
fn observed_phase(record: &Record, seen: Option<&Observed>) -> Phase {
    match (record.phase, seen.map(|o| &o.state)) {
        (Phase::Running, Some(state @ ObservedState::Ended { .. })) if state.ended_clean() => Phase::Stopped,
        (Phase::Running, Some(ObservedState::Ended { .. }) | None) => Phase::Error,
        (phase, _) => phase,
    }
}

fn health(record: &Record, running: bool) -> Health {
    if record.config.health_check().is_none() {
        return Health::Unknown;
    }
    match record.phase {
        Phase::Deploying | Phase::Restarting => Health::Starting,
        Phase::Running if running && record.missed_health_checks == 0 => Health::Healthy,
        Phase::Running | Phase::Error | Phase::Failed => Health::Unhealthy,
        Phase::Queued | Phase::Stopping | Phase::Stopped | Phase::Deleting | Phase::Deleted => {
            Health::Unknown
        }
    }
}
