//! GPUs of a node, over NVML and sysfs.

use std::fs::{self, File, TryLockError};
use std::io;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use hwm_core::accelerator::{
    AcceleratorEvent, Accelerators, DeviceGrant, Inventory, Placement, PlacementKind, PlacementRefusal,
};
use hwm_core::backend::{BackendError, BackendErrorKind, Call, Result, Stream};
use hwm_core::config::{GpuRequest, ResourceType};
use hwm_core::id::{GpuUuid, ResourceId};
use hwm_core::ledger::Claim;
use hwm_core::metrics::GpuMetrics;

use crate::engine::Engine;
use crate::node::{Look, Node};
use crate::options::Options;
use crate::plan;
use crate::slices::{self, Wanted};
use crate::worker::Worker;

/// How long a device that is given back is waited for.
const LETTING_GO: Duration = Duration::from_secs(30);

/// The GPUs of this node. See the [crate's documentation](crate).
pub struct NvmlAccelerators {
    worker: Worker,
    node: Arc<RwLock<Arc<Node>>>,
    patience: Duration,
}

/// Why GPUs cannot be managed at all. A machine without NVML, a driver or a card is none of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder of [`Options::state`] cannot be used.
    #[error("reading what was done to the GPUs before, in {folder}")]
    State {
        /// The folder.
        folder: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another daemon uses the folder.
    #[error("another daemon manages the GPUs from {folder}")]
    Locked {
        /// The folder.
        folder: String,
    },
    /// The thread for NVML could not be started.
    #[error("starting the thread for NVML")]
    Thread(#[source] io::Error),
}

impl NvmlAccelerators {
    /// Opens the GPUs and looks at them once. Where NVML cannot be loaded or does not answer in time, the
    /// inventory is what the kernel knows, with the reason; it is tried again at every look.
    ///
    /// # Errors
    ///
    /// Only what [`OpenError`] lists: never that there is no GPU.
    pub async fn open(options: Options) -> std::result::Result<Self, OpenError> {
        let folder = options.state.display().to_string();
        let failed = |source| OpenError::State {
            folder: folder.clone(),
            source,
        };
        fs::create_dir_all(&options.state).map_err(failed)?;
        let lock = File::create(options.state.join("lock")).map_err(failed)?;
        // Two daemons would undo each other's slices.
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { folder }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let patience = options.patience;
        let node = Arc::new(RwLock::new(Arc::new(Node::default())));
        let engine = Engine::open(options, node.clone()).map_err(failed)?;
        let worker = Worker::start(engine, lock).map_err(OpenError::Thread)?;
        let this = Self {
            worker,
            node,
            patience,
        };
        if let Err(error) = this.refresh().await {
            tracing::warn!(%error, "the GPUs are not known yet");
        }
        Ok(this)
    }

    /// Looks at everything again, at once.
    ///
    /// # Errors
    ///
    /// `Unavailable` or `Timeout` while NVML hangs. Cards that do not answer are in the inventory, not here.
    pub async fn refresh(&self) -> Result<()> {
        self.worker
            .call("looking at the GPUs", self.patience, |engine| {
                engine.refresh();
                Ok(())
            })
            .await
    }

    /// How long the last look at everything took.
    pub fn last_look(&self) -> Look {
        self.picture().look
    }

    /// What the node's GPUs are joined by and driven by, for people: one line each.
    pub fn describe(&self) -> Vec<String> {
        let node = self.picture();
        let cuda = node
            .cuda_version()
            .map(|c| format!(", CUDA {c}"))
            .unwrap_or_default();
        let versions = node.driver.iter().map(|d| format!("driver {d}{cuda}"));
        let cards = node.cards.iter().map(|c| {
            let links: Vec<String> = c
                .nvlinks
                .iter()
                .map(|(peer, n)| format!("{n} NVLinks to {peer}"))
                .collect();
            format!(
                "{} {} at {}, NUMA node {}, driver {}{}{}",
                c.label(),
                c.model,
                c.address,
                c.numa.map_or_else(|| "unknown".to_owned(), |n| n.to_string()),
                c.driver.as_deref().unwrap_or("none"),
                if links.is_empty() { "" } else { ", " },
                links.join(", ")
            )
        });
        versions.chain(cards).collect()
    }

    fn picture(&self) -> Arc<Node> {
        self.node.read().map(|n| n.clone()).unwrap_or_default()
    }
}

#[async_trait]
impl Accelerators for NvmlAccelerators {
    fn inventory(&self) -> Inventory {
        let mut inventory = self.picture().inventory();
        if let Some(hung) = self.worker.hung() {
            inventory.reason = Some(format!("NVML has not answered for {} s", hung.as_secs()));
        }
        inventory
    }

    fn plan(
        &self,
        request: &GpuRequest,
        workload: ResourceType,
        held: &[Claim],
    ) -> std::result::Result<Vec<Placement>, PlacementRefusal> {
        plan::plan(&self.picture(), request, workload, held)
    }

    async fn prepare(
        &self,
        call: &Call,
        owner: ResourceId,
        placement: &Placement,
        to: ResourceType,
    ) -> Result<DeviceGrant> {
        let (card, generation) = (placement.card.to_string(), call.generation);
        let doing = format!("preparing {card} for {owner}");
        let kind = placement.kind.clone();
        call.progress.report(format!("preparing {card}"), None);
        let body = move |engine: &mut Engine| match kind {
            PlacementKind::Slice { profile, start, size } => engine.make(
                owner,
                generation,
                &Wanted {
                    card,
                    profile,
                    start,
                    size,
                },
                to,
            ),
            PlacementKind::Whole if to == ResourceType::VirtualMachine => {
                engine.hand_over(owner, generation, &card)
            }
            PlacementKind::Whole => {
                engine.fence(owner, generation)?;
                slices::whole(engine, &card)
            }
            PlacementKind::Existing { uuid } if to == ResourceType::VirtualMachine => {
                let message = "a MIG instance has no PCI function that a machine could be given";
                Err(BackendError::new(
                    BackendErrorKind::Unsupported,
                    format!("granting {uuid}"),
                    message,
                ))
            }
            PlacementKind::Existing { uuid } => {
                engine.fence(owner, generation)?;
                slices::existing(engine, &card, &uuid)
            }
        };
        self.worker.call(&doing, call.timeout, body).await
    }

    async fn release(&self, call: &Call, owner: ResourceId, placement: &Placement) -> Result<()> {
        let (card, generation) = (placement.card.to_string(), call.generation);
        let doing = format!("releasing {card} from {owner}");
        // Time to say what went wrong before the caller stops listening. What is not let go by then is not about to be.
        let limit = call.timeout.mul_f64(0.8).min(LETTING_GO);
        let kind = placement.kind.clone();
        let body = move |engine: &mut Engine| match kind {
            PlacementKind::Slice { profile, start, size } => engine.unmake(
                owner,
                generation,
                &Wanted {
                    card,
                    profile,
                    start,
                    size,
                },
                limit,
            ),
            PlacementKind::Whole => engine.take_back(owner, generation, &card, limit),
            PlacementKind::Existing { .. } => engine.fence(owner, generation),
        };
        self.worker.call(&doing, call.timeout, body).await
    }

    async fn events(&self) -> Result<Stream<AcceleratorEvent>> {
        let listen = |engine: &mut Engine| Ok(engine.listen());
        let from = self
            .worker
            .call("listening to the GPUs", self.patience, listen)
            .await?;
        Ok(Box::pin(stream::unfold(from, |mut from| async move {
            Some((from.recv().await?, from))
        })))
    }

    async fn metrics(&self, uuids: &[String]) -> Result<Vec<GpuMetrics>> {
        let uuids = uuids.to_vec();
        self.worker
            .call("reading the GPUs' figures", self.patience, move |engine| {
                engine.metrics(&uuids)
            })
            .await
    }

    async fn recover(&self, card: &GpuUuid) -> Result<()> {
        let card = card.to_string();
        let doing = format!("recovering {card}");
        if self.picture().cards.iter().all(|c| c.uuid != card) {
            return Err(BackendError::new(
                BackendErrorKind::NotFound,
                doing,
                "the card is not on this node",
            ));
        }
        self.worker
            .call(&doing, self.patience, move |engine| engine.recover(&card))
            .await
    }
}
