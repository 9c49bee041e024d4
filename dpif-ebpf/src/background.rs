//! Threads that wait for something until they are told to stop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

/// A thread that is stopped, and waited for, when this is dropped.
pub(crate) struct Background {
    // Its other end is the thread's; dropping it hangs up.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// How the thread learns that it is to stop.
pub(crate) struct Stop(OwnedFd);

impl Background {
    /// Starts a thread. An error that ends it is logged.
    pub(crate) fn start(
        name: &'static str,
        work: impl FnOnce(Stop) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        // A child process that had the other end would keep the thread waiting.
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC)?;
        let run = move || {
            if let Err(error) = work(Stop(stopped)) {
                tracing::error!("thread {name} has ended: {error}");
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Stop {
    /// Waits until `source` can be read; false if it is time to stop.
    pub(crate) fn wait_for(&self, source: &impl AsFd) -> io::Result<bool> {
        loop {
            let mut wait =
                [PollFd::new(source.as_fd(), PollFlags::POLLIN), PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wait, PollTimeout::NONE) {
                Ok(_) if wait[1].any() == Some(true) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Stop {
    /// Waits for this long; false if it is time to stop.
    pub(crate) fn sleep(&self, time: Duration) -> io::Result<bool> {
        let mut wait = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut wait, PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)) {
            Ok(n) => Ok(n == 0),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
