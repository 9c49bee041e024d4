//! The switch daemon.
#![forbid(unsafe_code)]

pub mod config;
pub mod plan;
pub mod reconcile;
pub mod unixctl;
pub mod vlog;
