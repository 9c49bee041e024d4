//! The system calls that no library at hand wraps: this crate's unsafe code, together with [`crate::mmap`].

pub(crate) mod bpf;
pub(crate) mod device;

/// What a system call says: an error if it is negative.
fn check(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
