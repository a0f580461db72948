//! What must be so, from what was said and done.

use std::collections::{BTreeMap, BTreeSet};

use hwm_core::access::{Owner, Permission, Principal};
use hwm_core::id::ResourceId;
use hwm_core::lifecycle::Phase;
use hwm_core::resource::Record;

/// What callers were told last that would become of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Queued,
    Running,
    Stopped,
    Deleted,
}

/// What happened to a resource since then, of what nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hurt {
    /// It was killed or stopped by somebody else: it may be in error, or ended.
    Ended,
    /// It was removed by somebody else: it is made again, unless that happened while it came up.
    Removed,
    /// A request about it got no answer, or failed: it may have happened, or not.
    Unanswered,
}

#[derive(Debug, Clone)]
pub(crate) struct Thing {
    pub(crate) owner: Owner,
    pub(crate) want: Want,
    pub(crate) hurt: BTreeSet<Hurt>,
    /// The last name that was accepted, unless a rename got no answer.
    pub(crate) name: Option<String>,
    /// The host port that it asks for.
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) things: BTreeMap<ResourceId, Thing>,
    /// Creates that got no answer: so many may be there beyond the others.
    pub(crate) unanswered_creates: usize,
}

impl Reference {
    /// What a caller must see in a list, and what it must not. What is in doubt is in neither.
    pub(crate) fn visible(&self, to: &Principal) -> (BTreeSet<ResourceId>, BTreeSet<ResourceId>) {
        let (mut must, mut must_not) = (BTreeSet::new(), BTreeSet::new());
        for (id, thing) in &self.things {
            if !to.may(Permission::Read, &thing.owner) {
                must_not.insert(*id);
            } else if thing.want != Want::Deleted && !thing.hurt.contains(&Hurt::Unanswered) {
                must.insert(*id);
            }
        }
        (must, must_not)
    }

    /// Judges the records of a node on which nothing is under way.
    pub(crate) fn judge(&self, records: &BTreeMap<ResourceId, Record>) -> Vec<String> {
        let mut wrong = Vec::new();
        let unknown = records.keys().filter(|id| !self.things.contains_key(id)).count();
        if unknown > self.unanswered_creates {
            wrong.push(format!(
                "{unknown} resources are there that nobody was told of; {} creates got no answer",
                self.unanswered_creates
            ));
        }
        for (id, thing) in &self.things {
            let Some(record) = records.get(id) else {
                wrong.push(format!("{id} was accepted and is gone"));
                continue;
            };
            let allowed = thing.allowed();
            if !allowed.contains(&record.phase) {
                wrong.push(format!(
                    "{id} is {} ({:?}); wanted is {:?}, hurt {:?}",
                    record.phase, record.error_message, thing.want, thing.hurt
                ));
            }
            if let Some(name) = &thing.name
                && *name != record.name
            {
                wrong.push(format!(
                    "{id} is called {} and should be called {name}",
                    record.name
                ));
            }
            if record.owner != thing.owner {
                wrong.push(format!("{id} belongs to {:?}", record.owner));
            }
        }
        wrong
    }
}

impl Thing {
    fn allowed(&self) -> Vec<Phase> {
        let mut allowed = match self.want {
            Want::Queued => vec![Phase::Queued],
            Want::Running => vec![Phase::Running],
            // What is stopped before it was ever deployed may go back to where it was.
            Want::Stopped => vec![Phase::Stopped, Phase::Queued],
            Want::Deleted => vec![Phase::Deleted],
        };
        if self.hurt.contains(&Hurt::Ended) && self.want == Want::Running {
            allowed.extend([Phase::Error, Phase::Stopped]);
        }
        if self.hurt.contains(&Hurt::Removed) && self.want == Want::Running {
            allowed.push(Phase::Failed);
        }
        if self.hurt.contains(&Hurt::Unanswered) {
            allowed.extend([
                Phase::Queued,
                Phase::Running,
                Phase::Stopped,
                Phase::Error,
                Phase::Deleted,
            ]);
        }
        allowed
    }
}
