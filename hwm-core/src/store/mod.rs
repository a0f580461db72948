//! The contract between the manager and what keeps its records.
//!
//! # What a store promises
//!
//! * **Atomicity.** A [`Transaction`] happens whole or not at all; readers see it whole.
//! * **Durability.** When [`Store::commit`] has answered, what it committed survives a power cut. A store
//!   for tests may promise less and says so.
//! * **Uniqueness.** A claim key with one holder has one; a pool is never claimed beyond its limit. Both are
//!   judged inside the commit.
//! * **Order.** Events are numbered in the order of their commits, ever growing, never reused.
//! * **Secrets.** [`Store::record`] answers a config with its secrets; everything else that a store answers
//!   has marks in their place, and so has a record whose phase is [`Phase::Deleted`].
//! * **Cancellation.** A commit whose future is dropped may or may not happen.

pub mod memory;

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::access::Visibility;
use crate::config::ResourceType;
use crate::event::{NewEvent, StoredEvent};
use crate::id::{NodeId, OperationId, ResourceId, SnapshotId};
use crate::ledger::{Claim, ClaimKey, Pool, PoolLimit};
use crate::lifecycle::{Phase, Status};
use crate::operation::OperationRecord;
use crate::resource::Record;
use crate::snapshot::Snapshot;
use crate::units::Timestamp;

/// What a store's method answers.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Keeps records. See the [module's contract](self).
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Commits, and answers the events with their numbers.
    async fn commit(&self, transaction: Transaction) -> Result<Vec<StoredEvent>, CommitError>;

    /// One record, deleted ones included.
    async fn record(&self, id: ResourceId) -> Result<Option<Record>>;

    /// A page of the records that a query selects, with its counts.
    async fn list(&self, query: ListQuery) -> Result<ListPage>;

    /// Ids of the records of a backend in one of these phases, in their order, after `after`; at most
    /// `limit`.
    async fn ids_in_phases(
        &self,
        backend: &crate::id::BackendName,
        phases: &[Phase],
        after: Option<ResourceId>,
        limit: usize,
    ) -> Result<Vec<ResourceId>>;

    /// The claims of a node that a filter selects, in the order of their keys and holders.
    async fn claims(&self, node: &NodeId, filter: ClaimFilter) -> Result<Vec<Claim>>;

    /// How much of each pool of a node is claimed, 0 included; kept up to date, not summed.
    async fn pools(&self, node: &NodeId) -> Result<BTreeMap<Pool, u64>>;

    /// One operation.
    async fn operation(&self, id: OperationId) -> Result<Option<OperationRecord>>;

    /// Operations that a query selects, in the order in which they were first committed: newest first, but
    /// oldest first when it asks for the unfinished ones of one resource.
    async fn operations(&self, query: OperationQuery) -> Result<OperationPage>;

    /// Events after a number, oldest first.
    async fn events(&self, query: EventQuery) -> Result<EventPage>;

    /// The snapshots of a machine, oldest first.
    async fn snapshots(&self, resource: ResourceId) -> Result<Vec<Snapshot>>;

    /// The answer that was remembered under a key.
    async fn remembered(&self, key: &str) -> Result<Option<Remembered>>;

    /// A note of the manager's own, by name.
    async fn note(&self, name: &str) -> Result<Option<String>>;

    /// Drops finished operations, events, remembered answers and deleted records older than these moments,
    /// the snapshots of such records with them. Answers how many of the four went.
    async fn prune(&self, limits: PruneLimits) -> Result<u64>;
}

/// Everything that happens at once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Transaction {
    /// Records to write, each with the revision that the stored one must have.
    pub records: Vec<RecordWrite>,
    /// Operations to write.
    pub operations: Vec<OperationRecord>,
    /// Claims to give back, before new ones are taken. What is not held is passed over.
    pub release: Vec<Release>,
    /// Claims to take. Taking again what the holder has sets its amount.
    pub claim: Vec<Claim>,
    /// Limits that the pools must keep after this, on every node; a pool without one, and one that does not
    /// grow by this, is not judged.
    pub limits: Vec<PoolLimit>,
    /// Snapshots to write.
    pub snapshots: Vec<Snapshot>,
    /// Snapshots to forget, after those to write.
    pub forget_snapshots: Vec<SnapshotId>,
    /// Events to number and keep.
    pub events: Vec<NewEvent>,
    /// An answer to remember; refused when the key is taken.
    pub remember: Option<Remembered>,
    /// Notes to write.
    pub notes: Vec<(String, String)>,
}

/// A record to write.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordWrite {
    /// The record as it is to be.
    pub record: Record,
    /// The revision that the stored record must have; none for a record that must not exist.
    pub expected: Option<u64>,
}

/// Claims to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Who holds them.
    pub holder: ResourceId,
    /// Which; all when none.
    pub keys: Option<Vec<ClaimKey>>,
}

/// Why a commit did not happen. Where several reasons apply, it is the first of: the key is taken, a record is
/// stale, a claim is held, a pool is exceeded. So a request that is repeated finds its answer, not itself in
/// the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A record is not at the revision that was expected.
    #[error("resource {id} has changed meanwhile")]
    Stale {
        /// The resource.
        id: ResourceId,
    },
    /// A key has another holder.
    #[error("{key} is held by {holder}")]
    Held {
        /// The key.
        key: ClaimKey,
        /// Who has it.
        holder: ResourceId,
    },
    /// A pool would be claimed beyond its limit.
    #[error("{pool:?} is exhausted: {requested} more than {used} of {limit}")]
    Exceeded {
        /// The pool.
        pool: Pool,
        /// What this transaction adds, over what it gives back.
        requested: u64,
        /// What is claimed before it.
        used: u64,
        /// The most.
        limit: u64,
    },
    /// An idempotency key is taken.
    #[error("an answer is already remembered under this key")]
    Remembered,
    /// The store failed; whether it happened is not known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A failure of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {message}")]
pub struct StoreError {
    /// What was being done, to what.
    pub doing: String,
    /// What went wrong, and the way out where one is known.
    pub message: String,
}

impl StoreError {
    /// A failure.
    pub fn new(doing: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            message: message.into(),
        }
    }
}

/// Which claims of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimFilter {
    /// All.
    All,
    /// Those of one holder.
    Holder(ResourceId),
    /// Those of these keys, whoever holds them.
    Keys(Vec<ClaimKey>),
    /// Those whose written key begins so, for example `gpu/`.
    Prefix(String),
}

/// By what a list is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SortBy {
    /// When it was made.
    #[default]
    CreatedAt,
    /// When it was changed last.
    UpdatedAt,
    /// Its name, by code point.
    Name,
    /// Its status, by the contract's word.
    Status,
}

/// Which way a list is sorted. Equal keys are sorted by id, the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SortOrder {
    /// Smallest first.
    Asc,
    /// Largest first.
    #[default]
    Desc,
}

/// Which records, and which page of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListQuery {
    /// Whose.
    pub visibility: Visibility,
    /// Of these types; any when empty.
    pub types: Vec<ResourceType>,
    /// In this status.
    pub status: Option<Status>,
    /// On this node.
    pub node: Option<NodeId>,
    /// With this text in name or description, letter case aside.
    pub search: Option<String>,
    /// Whether deleted ones are included.
    pub include_deleted: bool,
    /// By what they are sorted.
    pub sort_by: SortBy,
    /// Which way.
    pub order: SortOrder,
    /// Where the page begins.
    pub position: Position,
    /// How many, 1..200.
    pub limit: u32,
}

impl Default for ListQuery {
    fn default() -> Self {
        Self {
            visibility: Visibility::All,
            types: Vec::new(),
            status: None,
            node: None,
            search: None,
            include_deleted: false,
            sort_by: SortBy::default(),
            order: SortOrder::default(),
            position: Position::Offset(0),
            limit: 10,
        }
    }
}

impl ListQuery {
    /// Whether it selects a record; the page aside.
    pub fn selects(&self, record: &Record) -> bool {
        let found = |needle: &String| {
            let needle = fold(needle);
            fold(&record.name).contains(&needle)
                || record
                    .description
                    .as_deref()
                    .is_some_and(|d| fold(d).contains(&needle))
        };
        (self.include_deleted || record.phase != Phase::Deleted)
            && self.visibility.includes(&record.owner)
            && (self.types.is_empty() || self.types.contains(&record.config.resource_type()))
            && self.status.is_none_or(|s| s == record.status())
            && self.node.as_ref().is_none_or(|n| *n == record.node)
            && self.search.as_ref().is_none_or(found)
    }
}

/// Text as it is compared when letter case does not matter: every character in lower case, whatever is
/// around it.
pub fn fold(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

impl SortBy {
    /// The cursor that names a record.
    pub fn cursor(self, record: &Record) -> Cursor {
        let key = match self {
            Self::CreatedAt => record.created_at.as_millis().to_string(),
            Self::UpdatedAt => record.updated_at.as_millis().to_string(),
            Self::Name => record.name.clone(),
            Self::Status => record.status().as_str().to_owned(),
        };
        Cursor { key, id: record.id }
    }

    /// Whether a cursor can be of a list sorted so.
    pub fn fits(self, cursor: &Cursor) -> bool {
        match self {
            Self::CreatedAt | Self::UpdatedAt => cursor.key.parse::<i64>().is_ok(),
            Self::Name => true,
            Self::Status => Status::parse(&cursor.key).is_some(),
        }
    }
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// After so many.
    Offset(u64),
    /// After the record that this cursor names: its sort key and id. The cost does not grow with depth.
    /// After one that does not [fit](SortBy::fits) there is nothing.
    After(Cursor),
}

/// The last record of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Its sort key: milliseconds, name or status word.
    pub key: String,
    /// Its id.
    pub id: ResourceId,
}

/// A page of records.
#[derive(Debug, Clone, PartialEq)]
pub struct ListPage {
    /// The records.
    pub records: Vec<Record>,
    /// How many the query selects in all.
    pub total: u64,
    /// The counts over all that the query selects.
    pub counts: Counts,
    /// Where the next page begins; none when this is the last.
    pub next: Option<Cursor>,
}

/// How many records of each status and type. What is 0 may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// By status.
    pub by_status: BTreeMap<Status, u64>,
    /// By type.
    pub by_type: BTreeMap<ResourceType, u64>,
}

/// Which operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationQuery {
    /// Whose.
    pub visibility: Visibility,
    /// Of this resource.
    pub resource: Option<ResourceId>,
    /// Only those that are not final.
    pub unfinished: bool,
    /// After so many.
    pub offset: u64,
    /// How many.
    pub limit: u32,
}

/// A page of operations.
#[derive(Debug, Clone, PartialEq)]
pub struct OperationPage {
    /// The operations.
    pub operations: Vec<OperationRecord>,
    /// How many the query selects in all.
    pub total: u64,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// After this number.
    pub after: u64,
    /// How many.
    pub limit: u32,
}

/// A run of events.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPage {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// Whether events after the asked number were already dropped: list again.
    pub gap: bool,
    /// The newest number given out; 0 before the first.
    pub newest: u64,
}

/// An answer kept for an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The caller and the key.
    pub key: String,
    /// A digest of the request.
    pub fingerprint: String,
    /// The answer.
    pub answer: serde_json::Value,
    /// When.
    pub time: Timestamp,
}

/// How old what is dropped must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneLimits {
    /// Operations finished before this.
    pub operations: Timestamp,
    /// Events before this.
    pub events: Timestamp,
    /// Answers remembered before this.
    pub remembered: Timestamp,
    /// Records deleted before this.
    pub deleted: Timestamp,
}
