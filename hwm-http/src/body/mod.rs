//! Bodies of requests and answers, as types: for the OpenAPI document, and for clients in Rust.
//!
//! Requests are read by [`hwm_core::validate`], which names every broken rule at once; these types say what
//! a good one looks like.

mod answers;
mod requests;

pub use answers::{
    ActionAnswer, ActionWord, Answered, CommandOutput, ConsoleAnswer, DeletedAnswer, HealthAnswer, LogList,
    LogStreamEnd, NodeList, OperationList, Pagination, ReadyAnswer, ReadyWord, ResourceList, SnapshotAnswer,
    SnapshotChanged, SnapshotList, Statistics, StatusCounts, StreamEvent, TicketAnswer, TypeCounts,
};
pub use requests::{
    Command, DesiredStatus, NewResource, NewSnapshot, NewTicket, ResourceChange, StopOptions,
};
