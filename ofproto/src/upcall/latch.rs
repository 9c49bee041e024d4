//! How others wake a handler that sleeps: to end, or to say that it has passed its loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Condvar, Mutex};

/// What a handler is asked, and what it has answered.
pub(super) struct Latch {
    event: EventFd,
    exit: AtomicBool,
    /// Number of the last question.
    asked: AtomicU64,
    state: Mutex<Answered>,
    changed: Condvar,
}

/// Numbers of questions.
#[derive(Default)]
struct Answered {
    /// Asked before the last loop that is complete.
    passed: u64,
    /// Asked before the ring was last found empty.
    empty: u64,
    /// The thread has ended.
    ended: bool,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Until {
    /// The handler has passed its loop once.
    Passed,
    /// It has found its ring empty.
    Empty,
    /// Its thread has ended.
    Ended,
}

impl Latch {
    pub(super) fn new() -> std::io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            event,
            exit: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Lets the handler end.
    pub(super) fn exit(&self) {
        self.exit.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Asks the handler; the number is for [`Latch::wait`].
    pub(super) fn ask(&self) -> u64 {
        let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.wake();
        number
    }

    fn wake(&self) {
        // It can't be full: it is read with every loop, and each question adds 1.
        let _ = self.event.write(1);
    }

    /// Waits for the answer. `false`: it didn't come in time.
    pub(super) fn wait(&self, number: u64, until: Until, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        loop {
            let there = match until {
                Until::Passed => state.passed >= number,
                Until::Empty => state.empty >= number,
                Until::Ended => false,
            };
            if there || state.ended {
                return true;
            }
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
    }

    /// The handler: whether it is to end.
    pub(super) fn exits(&self) -> bool {
        self.exit.load(Ordering::SeqCst)
    }

    /// The handler, before it looks into its ring: the question that it will have answered then.
    pub(super) fn question(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// The handler has been through its loop since it saw `question`.
    pub(super) fn answer(&self, question: u64, empty: bool) {
        let mut state = self.state.lock();
        if state.passed >= question && (!empty || state.empty >= question) {
            return;
        }
        state.passed = question;
        if empty {
            state.empty = question;
        }
        self.changed.notify_all();
    }

    /// The handler: whether somebody waits for an answer.
    pub(super) fn is_asked(&self) -> bool {
        let asked = self.question();
        asked != 0 && self.state.lock().empty < asked
    }

    /// The thread has ended.
    pub(super) fn ended(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }
}

/// What a handler sleeps on: its upcalls and its latch.
pub(super) struct Sleep<'a> {
    epoll: Epoll,
    latch: &'a Latch,
}

impl<'a> Sleep<'a> {
    pub(super) fn new(upcalls: BorrowedFd<'_>, latch: &'a Latch) -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(upcalls, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        epoll.add(latch.event.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Self { epoll, latch })
    }

    /// Sleeps until there are upcalls or somebody asks, `at_most` so long.
    pub(super) fn wait(&self, at_most: Option<Duration>) -> std::io::Result<()> {
        let timeout =
            at_most.map_or(EpollTimeout::NONE, |time| EpollTimeout::try_from(time).unwrap_or(EpollTimeout::ZERO));
        let mut events = [EpollEvent::empty(); 2];
        match self.epoll.wait(&mut events, timeout) {
            Ok(n) => {
                if events.iter().take(n).any(|event| event.data() == 1) {
                    // Empty already where two questions came at once.
                    let _ = self.latch.event.read();
                }
                Ok(())
            }
            Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
