//! The network namespace of a datapath: the one that the opening thread was in.
//!
//! Devices are named and numbered within a namespace, and the kernel takes the calling thread's. Whoever calls from a thread
//! that has moved elsewhere is served by a thread that goes back.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::panic::resume_unwind;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::sys::device;

const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace.
pub(crate) struct Netns {
    file: File,
    inode: u64,
    cookie: u64,
}

impl Netns {
    /// The calling thread's.
    pub(crate) fn current() -> io::Result<Self> {
        let file = File::open(OWN)?;
        Ok(Self { inode: file.metadata()?.ino(), file, cookie: device::netns_cookie()? })
    }

    /// A number that no other namespace has or will have until the machine is restarted.
    pub(crate) fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if std::fs::metadata(OWN).is_ok_and(|own| own.ino() == self.inode) {
            return Ok(work());
        }
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}
