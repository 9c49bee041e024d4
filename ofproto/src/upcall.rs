//! The upcall engine: packets for which the datapath has no flow, and the flows that it has because of them.
//!
//! **Handlers** are threads. Each sleeps until the datapath has upcalls for it, takes a batch, translates each packet, and
//! answers with one batch of operations: the megaflow, if one may be installed, and the packet itself, which is executed
//! whatever becomes of the megaflow. Upcalls of one microflow come to one handler, in order.
//!
//! **Ukeys** are what userspace knows of the megaflows that it installed: key and mask, actions, what each packet changes
//! ([`Effect`](crate::xlate::Effect)), and how far statistics have been pushed. A ukey is there before its flow and goes after
//! it, so a flow without one is a stranger's and is deleted.
//!
//! **The revalidator** looks at all megaflows at least twice a second: statistics go to the rules that they belong to, idle
//! flows go, and where the configuration has changed each flow is translated again: its actions are replaced in place if they
//! differ, and it is deleted if it turns out to be wider than the new translation allows.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::backer::Backer;
use crate::switch::SwitchError;

mod handler;
mod limit;
mod rate;
mod revalidator;
mod slow;
mod ukey;

pub(crate) use limit::FlowLimit;
pub(crate) use rate::Warnings;
pub(crate) use revalidator::{PassState, flush, revalidate};
pub(crate) use ukey::UkeyTable;

/// The threads of a switch.
pub(crate) struct Engine {
    exit: Arc<EventFd>,
    /// For each handler: whether it waits for upcalls.
    idle: Vec<Arc<AtomicBool>>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Adopts the flows that are there and starts `n_handlers` handlers and a revalidator.
    pub(crate) fn start(backer: &Arc<Backer>, n_handlers: u32) -> Result<Self, SwitchError> {
        let failed = |what: &str| {
            let what = format!("{what} of datapath {}", backer.dpif.name());
            move |error| SwitchError::Datapath(what, error)
        };
        revalidator::adopt(backer).map_err(failed("adopting the flows"))?;
        backer.dpif.handlers_set(n_handlers).map_err(failed("setting the handlers"))?;
        backer.stop_revalidator(false);
        let exit = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(std::io::Error::from)?;
        let mut engine = Self { exit: Arc::new(exit), idle: Vec::new(), threads: Vec::new() };
        match engine.spawn(backer, n_handlers) {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.stop(backer);
                Err(error.into())
            }
        }
    }

    fn spawn(&mut self, backer: &Arc<Backer>, n_handlers: u32) -> std::io::Result<()> {
        for id in 0..n_handlers {
            let idle = Arc::new(AtomicBool::new(false));
            self.idle.push(Arc::clone(&idle));
            let (backer, exit) = (Arc::clone(backer), Arc::clone(&self.exit));
            let run = move || handler::run(&backer, id, &exit, &idle);
            self.threads.push(thread::Builder::new().name(format!("handler{id}")).spawn(run)?);
        }
        let backer = Arc::clone(backer);
        let run = move || revalidator::run(&backer);
        self.threads.push(thread::Builder::new().name("revalidator0".into()).spawn(run)?);
        Ok(())
    }

    /// Ends the threads and pushes the statistics of all flows a last time. The flows stay.
    pub(crate) fn stop(self, backer: &Backer) {
        // A counter at 0 takes a 1.
        let _ = self.exit.write(1);
        backer.stop_revalidator(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the upcall engine had panicked");
            }
        }
        if let Err(error) = backer.dpif.handlers_set(0) {
            tracing::warn!("datapath {} keeps its handlers: {error}", backer.dpif.name());
        }
        revalidate(backer);
    }

    /// Waits until no upcall waits and no handler works, two seconds at most.
    pub(crate) fn drain(&self, backer: &Backer) {
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let waits = |(id, idle): (usize, &Arc<AtomicBool>)| {
                let Ok(fd) = backer.dpif.recv_fd(id as u32) else { return true };
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                // A handler stops being idle before it takes an upcall, so in this order none is missed.
                !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0) && idle.load(Ordering::SeqCst)
            };
            if self.idle.iter().enumerate().all(waits) {
                return;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Numbers of the upcall engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Megaflows installed.
    pub current: usize,
    /// On average over the last passes of the revalidator.
    pub average: usize,
    /// At most so far.
    pub max: usize,
    /// Allowed.
    pub limit: usize,
    /// Milliseconds that the last pass took.
    pub dump_ms: u64,
}

impl Summary {
    pub(crate) fn of(backer: &Backer) -> Self {
        Self {
            current: backer.ukeys.len(),
            average: backer.adapted_limit.average(),
            max: backer.ukeys.max(),
            limit: backer.flow_limit(),
            dump_ms: backer.adapted_limit.dump_ms(),
        }
    }
}
