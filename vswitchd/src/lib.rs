//! The switch daemon, as a library.
//!
//! What the switch should be comes from the command line and a file ([`cli`], [`config`]), becomes a list of changes
//! ([`plan`]) and is applied whole or not at all ([`reconcile`]) to whatever implements
//! [`Switch`](reconcile::Switch), which in the daemon is [`Bridges`](switch::Bridges). Around that is what makes a program a daemon: a life with a beginning and an end
//! ([`daemon`], [`pidfile`], [`dirs`]), a control socket ([`unixctl`]) and a log ([`vlog`]).
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod dirs;
#[doc(hidden)]
pub mod fuzzing;
pub mod pidfile;
pub mod plan;
pub mod reconcile;
pub mod switch;
pub mod unixctl;
pub mod vlog;

/// Flows are made by handlers and let go by revalidators, so most memory is freed by another thread than that which asked for it.
/// The C library's allocator then goes its long way for each new flow.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
