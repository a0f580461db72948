//! The API over the router: every route, every role, forged tokens, streams, WebSockets, limits.
#![allow(clippy::unwrap_used)]

mod access;
mod forged;
mod house;
mod limits;
mod listener;
mod requests;
mod schema;
mod secrets;
mod shapes;
mod sockets;
mod streams;
mod tickets;
