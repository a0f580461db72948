//! How what is queried is written into columns. The numbers are part of the schema.

use hwm_core::access::{Owner, Visibility};
use hwm_core::config::ResourceType;
use hwm_core::lifecycle::{Phase, Status};
use hwm_core::resource::Record;
use rusqlite::{Connection, OptionalExtension};

/// The bucket of operations in `counts`; records have buckets from 0.
pub(crate) const OPERATIONS: i64 = -1;

pub(crate) const fn phase_number(phase: Phase) -> i64 {
    match phase {
        Phase::Queued => 0,
        Phase::Deploying => 1,
        Phase::Running => 2,
        Phase::Restarting => 3,
        Phase::Stopping => 4,
        Phase::Stopped => 5,
        Phase::Failed => 6,
        Phase::Error => 7,
        Phase::Deleting => 8,
        Phase::Deleted => 9,
    }
}

const fn type_number(kind: ResourceType) -> i64 {
    match kind {
        ResourceType::VirtualMachine => 0,
        ResourceType::ApplicationContainer => 1,
        ResourceType::InferenceContainer => 2,
    }
}

const fn status_number(status: Status) -> i64 {
    match status {
        Status::Queued => 0,
        Status::Deploying => 1,
        Status::Running => 2,
        Status::Stopping => 3,
        Status::Stopped => 4,
        Status::Failed => 5,
        Status::Error => 6,
    }
}

/// What a bucket stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) node: i64,
    pub(crate) kind: ResourceType,
    pub(crate) status: Status,
    pub(crate) deleted: bool,
}

impl Bucket {
    pub(crate) fn of(record: &Record, node: i64) -> Self {
        Self {
            node,
            kind: record.config.resource_type(),
            status: record.status(),
            deleted: record.phase == Phase::Deleted,
        }
    }

    pub(crate) const fn number(self) -> i64 {
        (self.node << 6)
            | (type_number(self.kind) << 4)
            | (status_number(self.status) << 1)
            | self.deleted as i64
    }

    pub(crate) fn from_number(number: i64) -> Option<Self> {
        let kind = ResourceType::ALL
            .into_iter()
            .find(|k| type_number(*k) == (number >> 4) & 3)?;
        let status = Status::ALL
            .into_iter()
            .find(|s| status_number(*s) == (number >> 1) & 7)?;
        (number >= 0).then_some(Self {
            node: number >> 6,
            kind,
            status,
            deleted: number & 1 == 1,
        })
    }
}

/// A column that says which scope a row is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Column {
    /// Every row; no column.
    All,
    Org,
    Group,
    User,
    Agent,
}

impl Column {
    /// The column's name, and the word for it in the names of indexes.
    pub(crate) const fn names(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::All => None,
            Self::Org => Some(("in_org", "org")),
            Self::Group => Some(("in_group", "group")),
            Self::User => Some(("of_user", "user")),
            Self::Agent => Some(("of_agent", "agent")),
        }
    }
}

/// The scope that everything is in; it has no row in `scopes`.
pub(crate) const EVERYTHING: i64 = 0;

/// The names of the scopes that what `owner` owns is in: organization, group, user, agent, and user and
/// agent at once. An empty id is nobody's, so it makes no scope.
pub(crate) fn scope_names(owner: &Owner) -> [Option<String>; 5] {
    let Owner {
        org_id,
        group_id,
        user_id,
        agent_id,
        ..
    } = owner;
    let name = |kind: &str, ids: &[&String]| {
        let complete = ids.iter().all(|id| !id.is_empty());
        complete.then(|| {
            // With their lengths, so that no two lists of ids are spelled the same.
            let parts = ids.iter().map(|id| format!("/{}:{id}", id.len()));
            std::iter::once(kind.to_owned()).chain(parts).collect()
        })
    };
    [
        name("org", &[org_id]),
        name("group", &[org_id, group_id]),
        name("user", &[org_id, group_id, user_id]),
        name("agent", &[org_id, group_id, agent_id]),
        name("both", &[org_id, group_id, user_id, agent_id]),
    ]
}

/// The rows that a caller sees: those of any of these scopes, those of `twice` being in two of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scopes {
    pub(crate) any_of: Vec<(Column, i64)>,
    pub(crate) twice: Option<i64>,
}

impl Scopes {
    /// The scopes of a visibility that have rows.
    pub(crate) fn of(db: &Connection, visibility: &Visibility) -> rusqlite::Result<Self> {
        let one = |column, scope: Option<i64>| Self {
            any_of: scope.map(|scope| (column, scope)).into_iter().collect(),
            twice: None,
        };
        let owner = |org_id: &String, group_id: &str, user_id: &str, agent_id: &str| Owner {
            org_id: org_id.clone(),
            group_id: group_id.to_owned(),
            user_id: user_id.to_owned(),
            agent_id: agent_id.to_owned(),
            app_id: String::new(),
        };
        Ok(match visibility {
            Visibility::All => one(Column::All, Some(EVERYTHING)),
            Visibility::Organization { org_id } => {
                let [org, ..] = scope_names(&owner(org_id, "", "", ""));
                one(Column::Org, find_scope(db, org)?)
            }
            Visibility::Group { org_id, group_id } => {
                let [_, group, ..] = scope_names(&owner(org_id, group_id, "", ""));
                one(Column::Group, find_scope(db, group)?)
            }
            Visibility::Member {
                org_id,
                group_id,
                user_id,
                agent_id,
            } => {
                let [_, _, user, agent, both] = scope_names(&owner(org_id, group_id, user_id, agent_id));
                let user = find_scope(db, user)?.map(|scope| (Column::User, scope));
                let agent = find_scope(db, agent)?.map(|scope| (Column::Agent, scope));
                Self {
                    any_of: user.into_iter().chain(agent).collect(),
                    twice: find_scope(db, both)?,
                }
            }
        })
    }

    /// How many rows of each bucket they have together.
    pub(crate) fn counts(&self, db: &Connection) -> rusqlite::Result<std::collections::BTreeMap<i64, i64>> {
        let mut counts = std::collections::BTreeMap::new();
        let mut select = db.prepare_cached("SELECT bucket, n FROM counts WHERE scope = ?1 AND n > 0")?;
        let plus = self.any_of.iter().map(|(_, scope)| (*scope, 1));
        for (scope, sign) in plus.chain(self.twice.map(|scope| (scope, -1))) {
            let mut rows = select.query([scope])?;
            while let Some(row) = rows.next()? {
                *counts.entry(row.get(0)?).or_insert(0) += sign * row.get::<_, i64>(1)?;
            }
        }
        Ok(counts)
    }
}

fn find_scope(db: &Connection, name: Option<String>) -> rusqlite::Result<Option<i64>> {
    let Some(name) = name else { return Ok(None) };
    let mut select = db.prepare_cached("SELECT id FROM scopes WHERE name = ?1")?;
    select.query_row([name], |row| row.get(0)).optional()
}

pub(crate) fn find_node(db: &Connection, name: &str) -> rusqlite::Result<Option<i64>> {
    let mut select = db.prepare_cached("SELECT id FROM nodes WHERE name = ?1")?;
    select.query_row([name], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_reads_back() {
        for node in [1, 2, 1 << 40] {
            for kind in ResourceType::ALL {
                for status in Status::ALL {
                    for deleted in [false, true] {
                        let bucket = Bucket {
                            node,
                            kind,
                            status,
                            deleted,
                        };
                        assert_eq!(Bucket::from_number(bucket.number()), Some(bucket));
                    }
                }
            }
        }
        assert_eq!(Bucket::from_number(OPERATIONS), None);
    }

    #[test]
    fn no_two_lists_of_ids_are_one_scope() {
        let owner = |ids: [&str; 4]| {
            let [org_id, group_id, user_id, agent_id] = ids.map(str::to_owned);
            Owner {
                org_id,
                group_id,
                user_id,
                agent_id,
                app_id: String::new(),
            }
        };
        let tricky = [
            owner(["a\",\"b", "c", "d", "e"]),
            owner(["a", "b\",\"c", "d", "e"]),
            owner(["x", "b", "c", "c"]),
        ];
        let mut names: Vec<String> = tricky.iter().flat_map(scope_names).flatten().collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(scope_names(&owner(["", "g", "u", "a"])), [const { None }; 5]);
        assert!(scope_names(&owner(["o", "g", "", "a"]))[2].is_none());
    }
}
