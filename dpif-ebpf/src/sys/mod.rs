//! The system calls that no library at hand wraps: this crate's unsafe code, together with [`crate::mmap`].

pub(crate) mod bpf;
pub(crate) mod device;
