//! What may happen to a resource. Total and pure.
//!
//! ```text
//!              create/start                        up
//!   Queued ───────────────▶ Deploying ───────────────────────▶ Running
//!     ▲  ▲                   │   │  permanent failure            │ │ ▲
//!     │  └── cancelled ──────┘   └──────────────▶ Failed         │ │ │ up
//!     │ (first deployment)                          │ start      │ │ │
//!     │                                             ▼            │ │ Restarting
//!     │            start                        Deploying        │ │ ▲
//!   Stopped ─────────────▶ Deploying                             │ └─┘ restart
//!     ▲                                                          │
//!     │          down                            stop            │ broke by itself
//!     └──────────────────── Stopping ◀───────────────────────────┤──────────────▶ Error
//!                                                                │                 │ start, stop
//!   any ── delete ──▶ Deleting ── proved gone ──▶ Deleted        │ ended with 0    ▼
//!                        └── failed removal ──▶ Failed           └──────▶ Stopped  …
//! ```
//!
//! A [`Phase`] is what hwm knows; a [`Status`] is the contract's word for it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a resource is going through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Accepted, not deployed.
    Queued,
    /// Being brought up.
    Deploying,
    /// Up.
    Running,
    /// Going down and up again.
    Restarting,
    /// Being brought down.
    Stopping,
    /// Down as asked, or ended by itself with zero.
    Stopped,
    /// A deployment or an operation failed.
    Failed,
    /// It was up and broke.
    Error,
    /// Being removed.
    Deleting,
    /// Removed; the record stays.
    Deleted,
}

/// The contract's seven words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Status {
    /// Accepted, not yet deployed.
    Queued,
    /// Being brought up.
    Deploying,
    /// Up, and healthy where a health check is configured.
    Running,
    /// Being brought down.
    Stopping,
    /// Down.
    Stopped,
    /// A deployment or an operation failed.
    Failed,
    /// It was up and broke.
    Error,
}

/// What should be true of a resource in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// It runs.
    Running,
    /// It exists and does not run.
    Stopped,
    /// It does not exist.
    Deleted,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Action {
    /// First deployment.
    Create,
    /// Bring up.
    Start,
    /// Bring down.
    Stop,
    /// Bring down and up.
    Restart,
    /// Apply a config change to what runs.
    Update,
    /// Remove.
    Delete,
    /// Take a snapshot.
    SnapshotCreate,
    /// Go back to a snapshot.
    SnapshotRestore,
    /// Remove a snapshot.
    SnapshotDelete,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Update,
        Self::Delete,
        Self::SnapshotCreate,
        Self::SnapshotRestore,
        Self::SnapshotDelete,
    ];

    /// The word in JSON and in errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::SnapshotCreate => "snapshot-create",
            Self::SnapshotRestore => "snapshot-restore",
            Self::SnapshotDelete => "snapshot-delete",
        }
    }

    /// Whether it jumps the queue: what has not begun is cancelled in its favour.
    pub const fn overtakes(self) -> bool {
        match self {
            Self::Stop | Self::Delete => true,
            Self::Create
            | Self::Start
            | Self::Restart
            | Self::Update
            | Self::SnapshotCreate
            | Self::SnapshotRestore
            | Self::SnapshotDelete => false,
        }
    }

    /// Whether the resource is up when it is done.
    pub const fn brings_up(self) -> bool {
        match self {
            Self::Create | Self::Start | Self::Restart | Self::SnapshotRestore => true,
            Self::Stop | Self::Update | Self::Delete | Self::SnapshotCreate | Self::SnapshotDelete => false,
        }
    }

    /// Whether it can be given up half-way and undone.
    pub const fn is_cancellable(self) -> bool {
        match self {
            Self::Create | Self::Start | Self::Restart | Self::SnapshotCreate => true,
            Self::Stop | Self::Update | Self::Delete | Self::SnapshotRestore | Self::SnapshotDelete => false,
        }
    }

    /// The phase of a resource while this runs; the one it was in where nothing shows.
    pub const fn phase_during(self, before: Phase) -> Phase {
        match self {
            Self::Create | Self::Start => Phase::Deploying,
            Self::Stop => Phase::Stopping,
            Self::Restart => Phase::Restarting,
            Self::Delete => Phase::Deleting,
            Self::Update | Self::SnapshotCreate | Self::SnapshotRestore | Self::SnapshotDelete => before,
        }
    }

    /// The phase of a resource once this succeeded.
    pub const fn phase_after(self, before: Phase) -> Phase {
        match self {
            Self::Create | Self::Start | Self::Restart => Phase::Running,
            Self::Stop => Phase::Stopped,
            Self::Delete => Phase::Deleted,
            Self::Update | Self::SnapshotCreate | Self::SnapshotRestore | Self::SnapshotDelete => before,
        }
    }

    /// What is wanted of the resource from now on; none where that stays.
    pub const fn desires(self) -> Option<Desired> {
        match self {
            Self::Create | Self::Start | Self::Restart => Some(Desired::Running),
            Self::Stop => Some(Desired::Stopped),
            Self::Delete => Some(Desired::Deleted),
            Self::Update | Self::SnapshotCreate | Self::SnapshotRestore | Self::SnapshotDelete => None,
        }
    }
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Deploying,
        Self::Running,
        Self::Restarting,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Error,
        Self::Deleting,
        Self::Deleted,
    ];

    /// The contract's word. A deleted resource is seen only by those who ask for deleted ones, as `stopped`.
    pub const fn status(self) -> Status {
        match self {
            Self::Queued => Status::Queued,
            Self::Deploying => Status::Deploying,
            Self::Running => Status::Running,
            Self::Restarting => Status::Deploying,
            Self::Stopping | Self::Deleting => Status::Stopping,
            Self::Stopped | Self::Deleted => Status::Stopped,
            Self::Failed => Status::Failed,
            Self::Error => Status::Error,
        }
    }

    /// Whether CPU and RAM are claimed in this phase.
    pub const fn takes_capacity(self) -> bool {
        match self {
            Self::Deploying | Self::Running | Self::Restarting | Self::Stopping | Self::Deleting => true,
            Self::Queued | Self::Stopped | Self::Failed | Self::Error | Self::Deleted => false,
        }
    }
}

impl Status {
    /// All seven, in the contract's order.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Deploying,
        Self::Running,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Error,
    ];

    /// The contract's spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Deploying => "deploying",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Error => "error",
        }
    }

    /// Reads the contract's spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restarting => "restarting",
            Self::Deleting => "being deleted",
            Self::Deleted => "deleted",
            Self::Queued
            | Self::Deploying
            | Self::Running
            | Self::Stopping
            | Self::Stopped
            | Self::Failed
            | Self::Error => self.status().as_str(),
        })
    }
}

/// The answer to "may this be done now?"
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Run,
    /// It is so already: succeed at once.
    AlreadyThere,
    /// It may not; why, and the way out.
    Refuse(&'static str),
}

/// Judges an action on a resource that will be in `phase` once everything queued before it is done.
pub const fn admit(phase: Phase, action: Action) -> Admission {
    use Admission::{AlreadyThere, Refuse, Run};
    if let Phase::Deleting | Phase::Deleted = phase {
        return match action {
            Action::Delete => AlreadyThere,
            _ => Refuse("it is being deleted; create another"),
        };
    }
    match action {
        Action::Create => match phase {
            Phase::Queued => Run,
            _ => Refuse("it was deployed before; use start"),
        },
        Action::Start => match phase {
            Phase::Running | Phase::Restarting | Phase::Deploying => AlreadyThere,
            _ => Run,
        },
        Action::Stop => match phase {
            Phase::Stopped | Phase::Stopping => AlreadyThere,
            _ => Run,
        },
        Action::Restart => match phase {
            Phase::Running | Phase::Error | Phase::Deploying | Phase::Restarting => Run,
            Phase::Queued | Phase::Stopped | Phase::Stopping | Phase::Failed => {
                Refuse("only what runs or broke can be restarted; use start")
            }
            Phase::Deleting | Phase::Deleted => Refuse("it is being deleted; create another"),
        },
        Action::Update => match phase {
            Phase::Running => Run,
            _ => Refuse("nothing runs to be changed; the change applies at the next start"),
        },
        Action::Delete => Run,
        Action::SnapshotCreate => match phase {
            Phase::Running | Phase::Stopped => Run,
            _ => Refuse("a snapshot needs a machine that is running or stopped"),
        },
        Action::SnapshotRestore => match phase {
            Phase::Running | Phase::Stopped | Phase::Failed | Phase::Error => Run,
            _ => Refuse("a restore needs a machine that is running, stopped, failed or in error"),
        },
        Action::SnapshotDelete => match phase {
            Phase::Queued => Refuse("it was never deployed and has no snapshots"),
            _ => Run,
        },
    }
}

/// What the backend sees of a workload, as far as the lifecycle cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seen {
    /// The backend has nothing of it.
    Absent,
    /// It is made and does not run, and never ran.
    Created,
    /// It runs.
    Up,
    /// It ended by itself.
    Ended {
        /// Whether it ended well: exit code zero, or a clean shutdown from inside.
        clean: bool,
    },
    /// It went down together with the daemon or the host.
    WentDownWithHost,
}

/// What to do about what the backend sees of a resource on which no operation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// All is as it should be.
    Keep,
    /// Record that it ended, and apply its restart policy.
    Becomes(Phase),
    /// It should run: bring it up.
    BringUp,
    /// It should not run: bring it down.
    TakeDown,
    /// It should not exist: remove it.
    Remove,
}

/// Judges what was seen of a resource in `phase` of which `desired` is wanted.
pub const fn observe(phase: Phase, desired: Desired, seen: Seen) -> Reaction {
    use Reaction::{Becomes, BringUp, Keep, Remove, TakeDown};
    match phase {
        // An operation owns these phases and will look for itself.
        Phase::Deploying | Phase::Restarting | Phase::Stopping | Phase::Deleting => Keep,
        Phase::Deleted => match seen {
            Seen::Absent => Keep,
            Seen::Created | Seen::Up | Seen::Ended { .. } | Seen::WentDownWithHost => Remove,
        },
        Phase::Running => match seen {
            Seen::Up => Keep,
            Seen::Ended { clean: true } => Becomes(Phase::Stopped),
            Seen::Ended { clean: false } => Becomes(Phase::Error),
            Seen::Absent | Seen::Created | Seen::WentDownWithHost => BringUp,
        },
        // Nothing of it was to be left: a daemon went on alone with what was given up.
        Phase::Queued => match seen {
            Seen::Absent => Keep,
            Seen::Created | Seen::Up | Seen::Ended { .. } | Seen::WentDownWithHost => Remove,
        },
        Phase::Stopped | Phase::Failed => match seen {
            Seen::Up => TakeDown,
            Seen::Absent | Seen::Created | Seen::Ended { .. } | Seen::WentDownWithHost => Keep,
        },
        Phase::Error => match (seen, desired) {
            // It came back without us, and it is wanted.
            (Seen::Up, Desired::Running) => Becomes(Phase::Running),
            (Seen::Up, Desired::Stopped | Desired::Deleted) => TakeDown,
            (Seen::Absent | Seen::Created | Seen::Ended { .. } | Seen::WentDownWithHost, _) => Keep,
        },
    }
}

#[cfg(test)]
mod tests;
