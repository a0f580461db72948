//! Finds every violation of a request at once, each with its field path. Pure.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::id::NodeId;

/// A request to create a resource, valid as far as can be told without the node.
#[derive(Debug, Clone, PartialEq)]
pub struct CreateRequest {
    /// A label, 1..100 characters.
    pub name: String,
    /// For people, at most 500 characters.
    pub description: Option<String>,
    /// Where it is to run; the only node when absent.
    pub node: Option<NodeId>,
    /// What is wanted.
    pub config: Config,
    /// Free for the client.
    pub metadata: BTreeMap<String, String>,
    /// Whether it deploys by itself.
    pub auto_start: bool,
}
