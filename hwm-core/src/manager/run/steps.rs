//! The steps: each idempotent, keyed by the resource id, its beginning committed.

use std::sync::Arc;
use std::time::Duration;

use super::call::{applied, unsupported};
use super::{FIRST_CHECK, Fault, Outcome, Run};
use crate::accelerator::Placement;
use crate::backend::{
    Observed, ObservedState, SnapshotReport, SnapshotSpec, Snapshots, StopOptions, Workload,
};
use crate::config::HealthCheck;
use crate::error::Error;
use crate::id::SnapshotId;
use crate::manager::slot::Slot;
use crate::operation::Step;
use crate::resource::{Applied, Record};
use crate::store::Release;

impl Run<'_> {
    pub(super) async fn bring_up(&self) -> Result<Outcome, Fault> {
        let record = self.regain_gpus().await?;
        if !record.allocation.gpus.is_empty() || !record.allocation.retired.is_empty() {
            let places: Vec<String> = record.allocation.gpus.iter().map(Placement::describe).collect();
            self.enter(Step::PrepareDevices, &format!("preparing {}", places.join("; ")))
                .await?;
            self.prepare_devices(&record).await?;
        }
        let record = self.enter(Step::Create, "making the workload").await?;
        let workload = Workload::of(&record, self.operation.generation);
        let limit = self.core.settings.create_timeout;
        self.persist("create", limit, |call| {
            let workload = &workload;
            async move { self.slot.backend.create(&call, workload).await }
        })
        .await?;
        let record = self.enter(Step::Start, "starting it").await?;
        let started = Workload::of(&record, self.operation.generation);
        self.start(&started).await?;
        let applied = applied(&started);
        if let Some(check) = started.config.health_check() {
            self.keep_applied(&applied).await?;
            self.enter(Step::AwaitHealthy, "waiting until it is healthy")
                .await?;
            return Ok(Outcome::Up(self.await_healthy(&check).await?, applied));
        }
        Ok(Outcome::Up(self.see_started(&started).await?, applied))
    }

    async fn start(&self, workload: &Workload) -> Result<(), Fault> {
        let limit = self.core.settings.change_timeout;
        self.persist("start", limit, |call| async move {
            self.slot.backend.start(&call, workload).await
        })
        .await
    }

    /// What became of it, once it was started. What went down with its daemon is started again.
    async fn see_started(&self, workload: &Workload) -> Result<Observed, Fault> {
        let epoch = |slot: &Slot| slot.report().and_then(|r| r.epoch);
        let mut before = epoch(self.slot);
        loop {
            let seen = self.see().await?;
            if !matches!(seen.state, ObservedState::Ended { .. }) {
                return Ok(seen);
            }
            self.slot.probe().await;
            let now = epoch(self.slot);
            if now == before {
                return Ok(seen);
            }
            before = now;
            self.start(workload).await?;
        }
    }

    pub(super) async fn take_down(&self) -> Result<(), Fault> {
        self.enter(Step::Stop, "stopping it").await?;
        let arguments = &self.operation.arguments;
        let grace = arguments.grace_seconds.map(|s| Duration::from_secs(s.into()));
        let options = StopOptions {
            force: arguments.force,
            grace,
        };
        self.stop(options).await
    }

    pub(super) async fn stop(&self, options: StopOptions) -> Result<(), Fault> {
        let grace = options.grace.unwrap_or(self.core.settings.stop_grace);
        let limit = self.core.settings.change_timeout + grace;
        let id = self.operation.resource;
        self.persist("stop", limit, |call| async move {
            self.slot.backend.stop(&call, id, options).await
        })
        .await
    }

    pub(super) async fn remove(&self) -> Result<(), Fault> {
        self.enter(Step::Remove, "removing it").await?;
        self.remove_workload().await?;
        let record = self.record().await?;
        if !record.allocation.gpus.is_empty() || !record.allocation.retired.is_empty() {
            self.enter(Step::ReleaseDevices, "giving back GPUs").await?;
            self.release_devices(&record).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_workload(&self) -> Result<(), Fault> {
        let limit = self.core.settings.change_timeout;
        let id = self.operation.resource;
        self.persist("remove", limit, |call| async move {
            self.slot.backend.remove(&call, id).await
        })
        .await
    }

    pub(super) async fn update(&self) -> Result<Applied, Fault> {
        let record = self.enter(Step::Update, "changing what runs").await?;
        let Some(live) = self.slot.backend.facets().live_update else {
            return Err(unsupported("changing what runs", self.slot));
        };
        let workload = Workload::of(&record, self.operation.generation);
        let limit = self.core.settings.change_timeout;
        self.persist("update", limit, |call| {
            let (live, workload) = (live.clone(), &workload);
            async move { live.update(&call, workload).await }
        })
        .await?;
        Ok(applied(&workload))
    }

    /// The record with places for its GPUs, which it may have given back while it was stopped.
    async fn regain_gpus(&self) -> Result<Record, Fault> {
        let record = self.record().await?;
        let conflict = |error: Error| Fault::Failed {
            code: error.code(),
            message: error.to_string(),
        };
        let Some(places) = self.core.regained(&record).await.map_err(conflict)? else {
            return Ok(record);
        };
        let amended = self.amend(|draft| self.core.regain(draft, &places)).await?;
        Ok(amended.unwrap_or(record))
    }

    /// Takes the GPUs of what is stopped back, where it is not to keep them, or not any longer.
    pub(super) async fn give_back_gpus(&self, was_down: bool) -> Result<bool, Fault> {
        let record = self.record().await?;
        let due = if was_down {
            self.core.gpus_due_in(&record)
        } else {
            self.core.settings.hold_gpus
        };
        let has = !record.allocation.gpus.is_empty() || !record.allocation.retired.is_empty();
        if !has || due.is_none_or(|due| !due.is_zero()) {
            return Ok(false);
        }
        self.enter(Step::ReleaseDevices, "giving back GPUs").await?;
        self.release_devices(&record).await?;
        Ok(true)
    }

    pub(super) async fn prepare_devices(&self, record: &Record) -> Result<(), Fault> {
        let Some(accelerators) = self.core.accelerators.clone() else {
            return Err(Fault::Failed {
                code: "UNSUPPORTED",
                message: "this server was started without GPUs".into(),
            });
        };
        let limit = self.core.settings.change_timeout;
        for placement in &record.allocation.retired {
            let accelerators = &accelerators;
            self.persist("release-device", limit, |call| async move {
                accelerators.release(&call, record.id, placement).await
            })
            .await?;
        }
        let mut grants = Vec::with_capacity(record.allocation.gpus.len());
        for placement in &record.allocation.gpus {
            let accelerators = &accelerators;
            let kind = record.config.resource_type();
            let grant = self
                .persist("prepare-device", limit, |call| async move {
                    accelerators.prepare(&call, record.id, placement, kind).await
                })
                .await?;
            grants.push(grant);
        }
        self.amend(|draft| {
            let allocation = &mut draft.record.allocation;
            allocation.grants.clone_from(&grants);
            let kept: Vec<_> = allocation.gpus.iter().flat_map(|p| p.keys()).collect();
            let retired = std::mem::take(&mut allocation.retired);
            let keys = retired
                .iter()
                .flat_map(|p| p.keys())
                .filter(|key| !kept.contains(key))
                .collect();
            draft.tx.release.push(Release {
                holder: draft.record.id,
                keys: Some(keys),
            });
        })
        .await?;
        Ok(())
    }

    pub(super) async fn release_devices(&self, record: &Record) -> Result<(), Fault> {
        let Some(accelerators) = self.core.accelerators.clone() else {
            return Ok(());
        };
        let limit = self.core.settings.change_timeout;
        for placement in record.allocation.gpus.iter().chain(&record.allocation.retired) {
            let accelerators = &accelerators;
            self.persist("release-device", limit, |call| async move {
                accelerators.release(&call, record.id, placement).await
            })
            .await?;
        }
        Ok(())
    }

    pub(super) async fn await_healthy(&self, check: &HealthCheck) -> Result<Observed, Fault> {
        let Some(health) = self.slot.backend.facets().health else {
            return Err(unsupported("health checks", self.slot));
        };
        let give_up = self.core.env.now() + check.deadline;
        let limit = self.core.settings.read_timeout;
        let mut pause = FIRST_CHECK.min(check.interval);
        loop {
            let seen = self.see().await?;
            if seen.state != ObservedState::Running {
                return Ok(seen);
            }
            let detail = match self
                .slot
                .call("health", limit, health.check(self.operation.resource, check))
                .await
            {
                Ok(report) if report.healthy => return Ok(seen),
                Ok(report) => report.detail,
                Err(error) => error.to_string(),
            };
            if self.core.env.now() >= give_up {
                return Err(Fault::Failed {
                    code: "TIMEOUT",
                    message: format!(
                        "{} did not answer 2xx within {} s: {detail}",
                        check.path,
                        check.deadline.as_secs()
                    ),
                });
            }
            self.core.env.sleep(pause).await;
            pause = (pause * 2).min(check.interval);
        }
    }

    pub(super) async fn take_snapshot(&self) -> Result<SnapshotReport, Fault> {
        let record = self.enter(Step::Snapshot, "taking the snapshot").await?;
        let (facet, id) = self.snapshot_facet()?;
        let snapshots = self.core.store.snapshots(record.id).await?;
        let Some(snapshot) = snapshots.into_iter().find(|s| s.id == id) else {
            return Err(Fault::Failed {
                code: "NOT_FOUND",
                message: format!("snapshot {id} not found"),
            });
        };
        let spec = SnapshotSpec {
            id,
            name: snapshot.name,
            memory: snapshot.memory,
        };
        let workload = Workload::of(&record, self.operation.generation);
        self.persist("snapshot-create", self.core.settings.create_timeout, |call| {
            let (facet, workload, spec) = (facet.clone(), &workload, &spec);
            async move { facet.create(&call, workload, spec).await }
        })
        .await
    }

    pub(super) async fn restore_snapshot(&self) -> Result<Outcome, Fault> {
        let record = self.enter(Step::Snapshot, "going back to the snapshot").await?;
        let (facet, id) = self.snapshot_facet()?;
        let workload = Workload::of(&record, self.operation.generation);
        let running = self
            .persist("snapshot-restore", self.core.settings.create_timeout, |call| {
                let (facet, workload) = (facet.clone(), &workload);
                async move { facet.restore(&call, workload, id).await }
            })
            .await?;
        let seen = self.observed().await?;
        Ok(Outcome::SnapshotRestored { running, seen })
    }

    pub(super) async fn delete_snapshot(&self) -> Result<(), Fault> {
        self.enter(Step::Snapshot, "removing the snapshot").await?;
        let (facet, id) = self.snapshot_facet()?;
        let resource = self.operation.resource;
        self.persist("snapshot-delete", self.core.settings.create_timeout, |call| {
            let facet = facet.clone();
            async move { facet.delete(&call, resource, id).await }
        })
        .await
    }

    pub(super) fn snapshot_facet(&self) -> Result<(Arc<dyn Snapshots>, SnapshotId), Fault> {
        match (
            self.slot.backend.facets().snapshots,
            self.operation.arguments.snapshot,
        ) {
            (Some(facet), Some(id)) => Ok((facet, id)),
            _ => Err(unsupported("snapshots", self.slot)),
        }
    }
}
