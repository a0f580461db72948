//! Why a request is refused: broken rules, and what others hold.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::ResourceId;

/// One broken rule of a request, with the field it is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Violation {
    /// Path of the field, for example `config.containerPorts[1].hostPort`; empty for the whole body.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Violation {
    /// A broken rule of a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// What kind of claim two workloads could not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictKind {
    /// A GPU, whole or in part.
    Gpu,
    /// A port of the node.
    Port,
    /// An address on a VLAN.
    Address,
    /// A folder of the host that only one may write to.
    Volume,
    /// CPU, memory or disk.
    Capacity,
}

/// A claim that cannot be had: who holds what, and what would free it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// The kind of claim.
    pub kind: ConflictKind,
    /// What was asked for, for example `host port 8080/tcp` or `GPU-5c0f… (index 0)`.
    pub wanted: String,
    /// Who holds it. Left empty towards a caller who may not see the holders.
    pub holders: Vec<Holder>,
    /// What would free it or do instead.
    pub remedy: String,
}

/// A resource that holds something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// The resource.
    pub resource_id: ResourceId,
    /// Its name.
    pub name: String,
    /// What it holds.
    pub holds: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be had", self.wanted)?;
        for (i, holder) in self.holders.iter().enumerate() {
            let lead = if i == 0 { ": held by" } else { " and" };
            write!(f, "{lead} \"{}\" ({})", holder.name, holder.resource_id)?;
        }
        write!(f, "; {}", self.remedy)
    }
}
