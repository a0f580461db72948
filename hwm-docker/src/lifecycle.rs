//! Containers made, started, stopped and removed. Every step may be repeated.

use std::sync::Arc;
use std::time::Duration;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use futures_util::TryFutureExt;
use hwm_core::backend::{BackendError, BackendErrorKind, Call, Result, StopOptions, Workload};
use hwm_core::config::Config;
use hwm_core::device::DeviceGrant;
use hwm_core::id::ResourceId;

use crate::Inner;
use crate::client::{Fault, within};
use crate::fence::superseded;
use crate::image;
use crate::live::{self, Change};
use crate::observe::{Activity, Container, Found, find, ids_of};
use crate::spec::{self, BindMount, GpuAttachment, Limits, Plan, SPEC, container_name};

/// How long a change may run on in the background while the engine keeps silent: as long as it runs, the
/// resource has no other outcome.
const OUTCOME_DEADLINE: Duration = Duration::from_secs(600);
/// What an engine may take beyond the grace to stop a container.
const STOP_SLACK: Duration = Duration::from_secs(30);
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

impl Inner {
    pub(crate) async fn create(self: &Arc<Self>, call: &Call, workload: &Workload) -> Result<()> {
        let id = workload.id;
        let doing = format!("creating container {}", container_name(id));
        self.fence.pass(id, call.generation, &doing)?;
        if let Some(container) = self.ours(id, &doing).await? {
            return newest(&container, call, &doing);
        }
        let image = self
            .images
            .ensure(&self.client, &workload.config, &call.progress)
            .await?;
        let body = self.body(call, workload, &image).await?;
        let (inner, generation, what) = (Arc::clone(self), call.generation, doing.clone());
        self.fence
            .through_gate(id, self.client.change_limit(), &doing, async move {
                inner.fence.pass(id, generation, &what)?;
                inner.make(id, body, &what).await
            })
            .await
    }

    pub(crate) async fn start(self: &Arc<Self>, call: &Call, workload: &Workload) -> Result<()> {
        let id = workload.id;
        let doing = format!("starting container {}", container_name(id));
        self.fence.pass(id, call.generation, &doing)?;
        let found = self.ours(id, &doing).await?;
        if let Some(container) = &found {
            newest(container, call, &doing)?;
            match container.activity() {
                Activity::Running => return Ok(()),
                Activity::Paused => return self.unpause(container, &doing).await,
                Activity::Created | Activity::Ended => {}
            }
        }
        let image = image::reference(&workload.config)?.whole();
        let body = self.body(call, workload, &image).await?;
        let limits = Limits::of(&workload.config);
        let step = found.as_ref().map_or(Step::Make, |c| Step::of(c, &body, limits));
        if matches!(step, Step::Make | Step::Remake) {
            self.images
                .ensure(&self.client, &workload.config, &call.progress)
                .await?;
        }
        let (inner, generation, what) = (Arc::clone(self), call.generation, doing.clone());
        self.fence
            .through_gate(id, self.client.change_limit(), &doing, async move {
                inner.fence.pass(id, generation, &what)?;
                inner.bring_up(id, found, step, body, limits, &what).await
            })
            .await
    }

    async fn bring_up(
        &self,
        id: ResourceId,
        found: Option<Container>,
        step: Step,
        body: ContainerCreateBody,
        limits: Limits,
        doing: &str,
    ) -> Result<()> {
        let name = match (step, found) {
            (Step::Keep, Some(container)) => container.id,
            (Step::Update, Some(container)) => {
                let update = live::update(&self.client, &container, limits);
                let updated = async {
                    match update.await {
                        Ok(()) => Ok(true),
                        // Podman before version 5 has no such call.
                        Err(fault) if fault.is_absent() => Ok(false),
                        Err(fault) => Err(fault),
                    }
                };
                if !within(OUTCOME_DEADLINE, doing, updated).await? {
                    self.delete(&container.id, doing).await?;
                    self.make(id, body, doing).await?;
                }
                container_name(id)
            }
            (Step::Remake, Some(container)) => {
                self.delete(&container.id, doing).await?;
                self.make(id, body, doing).await?;
                container_name(id)
            }
            (_, None) | (Step::Make, Some(_)) => {
                self.make(id, body, doing).await?;
                container_name(id)
            }
        };
        let start = async { Ok(self.client.docker().start_container(&name, None).await?) };
        within(OUTCOME_DEADLINE, doing, start).await
    }

    pub(crate) async fn stop(&self, call: &Call, id: ResourceId, options: StopOptions) -> Result<()> {
        let doing = format!("stopping container {}", container_name(id));
        self.fence.pass(id, call.generation, &doing)?;
        let Some(container) = self.mine(id, &doing).await? else {
            return Ok(());
        };
        if !container.is_up() {
            return Ok(());
        }
        if container.activity() == Activity::Paused && !options.force {
            // What is frozen hears no signal.
            self.unpause(&container, &doing).await?;
        }
        let grace = options.grace.unwrap_or(self.options.stop_grace);
        let docker = self.client.docker();
        if options.force || grace.is_zero() {
            let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
            let kill = async { Ok(docker.kill_container(&container.id, Some(kill)).await?) };
            let killed = self.client.change(&doing, ended_is_fine(kill)).await;
            if container.activity() == Activity::Paused {
                // Engines differ in whether a frozen container can be killed; thawed, the signal arrives.
                self.unpause(&container, &doing).await?;
                if killed.is_err() {
                    let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
                    let kill = async { Ok(docker.kill_container(&container.id, Some(kill)).await?) };
                    self.client.change(&doing, ended_is_fine(kill)).await?;
                }
            } else {
                killed?;
            }
        } else {
            let seconds = i32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
            let stop = StopContainerOptionsBuilder::default().t(seconds).build();
            let stop = async { Ok(docker.stop_container(&container.id, Some(stop)).await?) };
            within(grace.saturating_add(STOP_SLACK), &doing, ended_is_fine(stop)).await?;
        }
        self.until_down(id, &doing).await
    }

    /// Returns when a container that was told to end has ended.
    async fn until_down(&self, id: ResourceId, doing: &str) -> Result<()> {
        let mut pause = Duration::from_millis(5);
        let waited = async {
            while self.mine(id, doing).await?.is_some_and(|c| c.is_up()) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(250));
            }
            Ok(())
        };
        match tokio::time::timeout(STOP_SLACK, waited).await {
            Ok(done) => done,
            Err(_) => Err(BackendError::new(
                BackendErrorKind::Timeout,
                doing,
                "it was killed and still runs: look at the engine and the kernel's log",
            )),
        }
    }

    pub(crate) async fn remove(self: &Arc<Self>, call: &Call, id: ResourceId) -> Result<()> {
        let doing = format!("removing container {}", container_name(id));
        self.fence.pass(id, call.generation, &doing)?;
        let (inner, what) = (Arc::clone(self), doing.clone());
        self.fence
            .through_gate(id, self.client.change_limit(), &doing, async move {
                loop {
                    let ids = ids_of(&inner.client, &inner.options.owner, id);
                    let ids = inner.client.look(&what, ids).await?;
                    if ids.is_empty() {
                        return Ok(());
                    }
                    for container in ids {
                        inner.delete(&container, &what).await?;
                    }
                }
            })
            .await
    }

    pub(crate) async fn update(self: &Arc<Self>, call: &Call, workload: &Workload) -> Result<()> {
        let id = workload.id;
        let doing = format!("changing the limits of container {}", container_name(id));
        self.fence.pass(id, call.generation, &doing)?;
        let Some(container) = self.ours(id, &doing).await? else {
            return Err(BackendError::new(
                BackendErrorKind::NotFound,
                doing,
                "it does not exist",
            ));
        };
        let limits = Limits::of(&workload.config);
        let (inner, what) = (Arc::clone(self), doing.clone());
        self.fence
            .through_gate(id, self.client.change_limit(), &doing, async move {
                let update = live::update(&inner.client, &container, limits);
                within(OUTCOME_DEADLINE, &what, update).await
            })
            .await
    }

    /// The resource's container. Something else under its name is a conflict.
    async fn ours(&self, id: ResourceId, doing: &str) -> Result<Option<Container>> {
        match self
            .client
            .look(doing, find(&self.client, &self.options.owner, id))
            .await?
        {
            Found::Ours(container) => Ok(Some(*container)),
            Found::Nothing => Ok(None),
            Found::Foreign => Err(foreign(id, doing)),
        }
    }

    /// The resource's container. Something else under its name is none of our business.
    async fn mine(&self, id: ResourceId, doing: &str) -> Result<Option<Container>> {
        match self
            .client
            .look(doing, find(&self.client, &self.options.owner, id))
            .await?
        {
            Found::Ours(container) => Ok(Some(*container)),
            Found::Nothing | Found::Foreign => Ok(None),
        }
    }

    /// Running resource, for what needs a container that exists.
    pub(crate) async fn existing(&self, id: ResourceId, doing: &str) -> Result<Container> {
        self.mine(id, doing).await?.ok_or_else(|| {
            BackendError::new(
                BackendErrorKind::NotFound,
                doing,
                format!("resource {id} has no container"),
            )
        })
    }

    async fn unpause(&self, container: &Container, doing: &str) -> Result<()> {
        let thaw = async { Ok(self.client.docker().unpause_container(&container.id).await?) };
        self.client.change(doing, ended_is_fine(thaw)).await
    }

    /// Creates the container; one of ours that is there already will do.
    async fn make(&self, id: ResourceId, body: ContainerCreateBody, doing: &str) -> Result<()> {
        let options = CreateContainerOptionsBuilder::default()
            .name(&container_name(id))
            .build();
        let create = self.client.docker().create_container(Some(options), body);
        match tokio::time::timeout(OUTCOME_DEADLINE, create.map_err(Fault::from)).await {
            Ok(Ok(created)) => {
                for warning in created.warnings {
                    tracing::debug!(container = %container_name(id), warning, "the engine warned");
                }
                Ok(())
            }
            Ok(Err(fault)) if fault.has_status(409) => match self.ours(id, doing).await? {
                Some(_) => Ok(()),
                None => Err(fault.during(doing)),
            },
            Ok(Err(fault)) => Err(fault.during(doing)),
            Err(_) => Err(crate::client::late(OUTCOME_DEADLINE, doing)),
        }
    }

    /// Removes a container by id, running or not.
    async fn delete(&self, container: &str, doing: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let delete = async {
            let answer = self
                .client
                .docker()
                .remove_container(container, Some(options))
                .await;
            match answer.map_err(Fault::from) {
                Err(fault) if fault.is_absent() => Ok(()),
                // Another removal is under way: the caller looks again.
                Err(fault) if fault.has_status(409) => {
                    tokio::time::sleep(REMOVAL_PAUSE).await;
                    Ok(())
                }
                other => other,
            }
        };
        within(OUTCOME_DEADLINE, doing, delete).await
    }

    /// The body of the workload's container as it would be made now, with paths resolved anew and the
    /// model on this host.
    async fn body(&self, call: &Call, workload: &Workload, image: &str) -> Result<ContainerCreateBody> {
        let volumes = self.volumes(&workload.config).await?;
        let model = match &workload.config {
            Config::Inference(c) => Some(self.models.ensure(&c.model_path, &call.progress).await?),
            Config::Container(_) | Config::Machine(_) => None,
        };
        let plan = Plan {
            workload,
            image,
            volumes: &volumes,
            model: model.as_ref(),
            gpus: self.attachment(&workload.grants).await?,
        };
        spec::body(&self.policy, &plan)
    }

    async fn volumes(&self, config: &Config) -> Result<Vec<BindMount>> {
        let Config::Container(config) = config else {
            return Ok(Vec::new());
        };
        if config.volumes.is_empty() {
            return Ok(Vec::new());
        }
        let (roots, wanted) = (self.volume_roots.clone(), config.volumes.clone());
        let doing = "preparing volumes";
        let failed = |message: String| BackendError::new(BackendErrorKind::Invalid, doing, message);
        tokio::task::spawn_blocking(move || {
            let prepare = wanted.into_iter().map(|v| {
                let source = roots
                    .prepare(&v.host_path)
                    .map_err(|e| format!("hostPath {} {e}", v.host_path))?;
                Ok(BindMount {
                    source,
                    target: v.container_path,
                    read_only: v.read_only,
                })
            });
            prepare.collect::<std::result::Result<_, String>>()
        })
        .await
        .map_err(|e| failed(e.to_string()))?
        .map_err(failed)
    }

    async fn attachment(&self, grants: &[DeviceGrant]) -> Result<GpuAttachment> {
        if grants.is_empty() {
            return Ok(GpuAttachment::Nvidia);
        }
        self.engine.about(&self.client).await?.gpus.ok_or_else(|| {
            BackendError::new(
                BackendErrorKind::Unsupported,
                "attaching GPUs",
                "this node's container engine has no way to: install NVIDIA's container toolkit",
            )
        })
    }
}

/// What a start has to do first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Keep,
    Update,
    Make,
    Remake,
}

impl Step {
    fn of(container: &Container, body: &ContainerCreateBody, limits: Limits) -> Self {
        let wanted = body.labels.as_ref().and_then(|l| l.get(SPEC)).map(String::as_str);
        if container.spec() != wanted {
            return Self::Remake;
        }
        match live::change(&container.host_config, limits) {
            Change::Nothing => Self::Keep,
            Change::Update => Self::Update,
            Change::Remake => Self::Remake,
        }
    }
}

/// Refuses a call that is older than what the container was made from; this survives our own restart.
fn newest(container: &Container, call: &Call, doing: &str) -> Result<()> {
    match container.generation() {
        Some(made) if made > call.generation => Err(superseded(doing, call.generation, made)),
        _ => Ok(()),
    }
}

fn foreign(id: ResourceId, doing: &str) -> BackendError {
    let message = format!(
        "a container called {} is there and is not ours: rename or remove it",
        container_name(id)
    );
    BackendError::new(BackendErrorKind::Conflict, doing, message)
}

/// A container that has ended, or has gone, does not mind.
async fn ended_is_fine(
    call: impl Future<Output = std::result::Result<(), Fault>>,
) -> std::result::Result<(), Fault> {
    match call.await {
        Err(fault) if fault.is_absent() => Ok(()),
        Err(fault) if fault.has_status(409) && fault.message().contains("is not running") => Ok(()),
        Err(fault) if fault.message().contains("is not paused") => Ok(()),
        other => other,
    }
}
