//! What the guest's first process and the host say to each other.
//!
//! The guest writes frames to a virtio port: a byte that says the kind, the payload's length as four bytes, little-endian,
//! the payload. The host never answers: what it wants was in the image from the beginning.

/// Name of the port, by which the guest finds it.
pub(crate) const PORT: &str = "sluice";
/// Folder of the job in the guest: `args` and `env` (each ended by a zero byte), `modules` (paths in load order, a line each).
pub(crate) const JOB: &str = "/job";
/// Folder whose files come back to the host.
pub(crate) const OUT: &str = "/out";

/// Bytes before the payload.
pub(crate) const HEADER: usize = 5;
/// Longest payload; what is longer is not one of ours.
pub(crate) const MAX_PAYLOAD: usize = 1 << 28;

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The command is about to start; the kernel's release.
    Ready = 1,
    /// Bytes of its standard output.
    Stdout,
    /// Bytes of its standard error.
    Stderr,
    /// The guest runs; once a second.
    Alive,
    /// A file: its mode (4 bytes, little-endian), the length of its path (2), the path below [`OUT`], its bytes.
    File,
    /// The command ended: its exit code as a shell says it (4 bytes, little-endian).
    Exit,
    /// The guest could not run it; why.
    Fault,
}

impl Kind {
    const ALL: [Self; 7] = [Self::Ready, Self::Stdout, Self::Stderr, Self::Alive, Self::File, Self::Exit, Self::Fault];
}

impl TryFrom<u8> for Kind {
    type Error = u8;
    fn try_from(byte: u8) -> Result<Self, u8> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte).ok_or(byte)
    }
}
