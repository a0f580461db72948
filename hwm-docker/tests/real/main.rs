//! The backend on a real engine. Needs the variables that `scripts/lab up docker registry` writes.

mod exec;
mod foreign;
mod images;
mod inference;
mod lab;
mod lifecycle;
mod logs;
mod observe;
mod privilege;
mod volumes;
