//! What the kernel's refusals mean to a datapath's user.

use std::io;

use dpif::DpifError;
use nix::errno::Errno;

use crate::codec::CodecError;

/// Name of the engine.
pub(crate) const ENGINE: &str = "netlink";

/// An error of a request. `what` says what was asked of what.
pub(crate) fn of(errno: Errno, what: impl FnOnce() -> String) -> DpifError {
    match errno {
        Errno::EPERM | Errno::EACCES => DpifError::Permission(what()),
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => DpifError::Unsupported(what(), ENGINE.into()),
        other => DpifError::Io(what(), other.into()),
    }
}

/// An error of a socket.
pub(crate) fn io(error: io::Error, what: impl FnOnce() -> String) -> DpifError {
    match error.raw_os_error() {
        Some(errno) => of(Errno::from_raw(errno), what),
        None => DpifError::Io(what(), error),
    }
}

/// What the interface can't say is not supported here; what makes no sense is invalid.
pub(crate) fn codec(error: &CodecError) -> DpifError {
    match error {
        CodecError::Inexpressible(what) => DpifError::Unsupported((*what).into(), ENGINE.into()),
        other => DpifError::Invalid(other.to_string()),
    }
}

/// Sockets' errors within a batch have no text of their own.
pub(crate) struct Failed(pub(crate) DpifError);

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(io(error, || "can't speak with the openvswitch module".into()))
    }
}

impl From<DpifError> for Failed {
    fn from(error: DpifError) -> Self {
        Self(error)
    }
}
