//! The locks and atomic numbers of what a model checker runs: the same source compiles against its types where this module is
//! another (`tests/ukey_model.rs`).

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
