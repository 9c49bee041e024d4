//! The revalidators' threads: a leader, and followers who work on what it begins.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex};

use super::{Phase, Round};
use crate::backer::Backer;

/// The followers, as the leader sees them.
#[derive(Default)]
pub(super) struct Crew {
    state: Mutex<State>,
    begin: Condvar,
    end: Condvar,
}

#[derive(Default)]
struct State {
    /// Work in progress, for who comes in time.
    task: Option<(Phase, Arc<Round>)>,
    /// Counts the tasks, so that nobody takes one twice.
    number: u64,
    /// Followers at work.
    busy: usize,
    /// Followers in all.
    followers: usize,
    /// They are to end.
    dismissed: bool,
}

/// What a follower's thread does until it is to end.
pub(crate) fn follow(backer: &Backer) {
    let crew = &backer.revalidation.crew;
    let mut done = 0;
    let mut state = crew.state.lock();
    loop {
        let task = state.task.clone().filter(|_| state.number != done);
        match task {
            _ if state.dismissed => return,
            None => crew.begin.wait(&mut state),
            Some((phase, round)) => {
                done = state.number;
                state.busy += 1;
                drop(state);
                {
                    let _busy = Busy(crew);
                    phase.work(backer, &round);
                }
                state = crew.state.lock();
            }
        }
    }
}

/// A follower at work; the leader learns of its end however it ends.
struct Busy<'a>(&'a Crew);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.state.lock().busy -= 1;
        self.0.end.notify_all();
    }
}

impl Crew {
    /// Does a phase of a round with all followers who have time. Returns when all of it is done.
    pub(super) fn work(&self, backer: &Backer, phase: Phase, round: &Arc<Round>) {
        round.taken.store(0, Ordering::Relaxed);
        {
            let mut state = self.state.lock();
            if state.followers > 0 {
                state.task = Some((phase, Arc::clone(round)));
                state.number += 1;
                self.begin.notify_all();
            }
        }
        phase.work(backer, round);
        let mut state = self.state.lock();
        // Whoever comes now comes too late: there is nothing left to do.
        state.task = None;
        while state.busy > 0 {
            self.end.wait(&mut state);
        }
    }

    /// So many followers are going to be there.
    pub(super) fn hire(&self, followers: usize) {
        let mut state = self.state.lock();
        (state.followers, state.dismissed) = (followers, false);
    }

    /// Ends the followers.
    pub(super) fn dismiss(&self) {
        let mut state = self.state.lock();
        (state.followers, state.dismissed) = (0, true);
        self.begin.notify_all();
    }

    /// Number of followers.
    pub(super) fn len(&self) -> usize {
        self.state.lock().followers
    }
}
