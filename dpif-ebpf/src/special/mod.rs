//! Choosing the specialised program: the datapath in the shape that its flows need.
//!
//! Which program runs is decided by what the flows need (`datapath_common::needs`), and it is changed by one write to the array of
//! programs, under traffic:
//!
//! * the *general* program alone, as long as no flow is there that a specialised one can run;
//! * the *wide* program, specialised in everything that such programs can do, in front of it: as soon as there is such a flow;
//! * a *narrow* one, for what the flows need and no more, when they have needed the same for a while;
//! * the general one alone again, for a while, where the others turn out to finish few of the packets that come ([`share`]).
//!
//! A flow that needs more than the running program serves is announced before it is published, and the wide program is put
//! there at once ([`Specialiser::added`]). That is for speed: what a program finds in a slot that it doesn't serve it hands over
//! to the general one, so a packet that runs through the old program meanwhile comes to no harm either. Narrow programs are
//! loaded by a thread of their own, since the kernel's verifier takes its time. One that it refuses is not tried again.

mod census;
mod hold;
mod share;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use datapath_common::needs::{ALL, FITS, NAMES, are_served};
use dpif::{ProgramState, Result};
use parking_lot::Mutex;

use self::census::Census;
use self::hold::Hold;
pub(crate) use self::share::Found;
use self::share::{Change, Share};
use crate::background::Background;
use crate::maps::Maps;

/// Specialised programs that stay loaded, the wide one not counted.
const KEPT: usize = 8;
/// How often it is looked whether another program would do.
const LOOK: Duration = Duration::from_millis(250);
/// As often as that at most.
const SOONEST: Duration = Duration::from_millis(10);

/// Loads programs and puts them where the port entries call them.
pub(crate) trait Programs: Send + Sync + 'static {
    /// A loaded specialised program.
    type Loaded: Send;
    /// Loads the program that serves this. Takes a while.
    fn load(&self, serves: u16) -> Result<Self::Loaded>;
    /// Puts a specialised program in front of the general one, or takes it away.
    fn install(&self, program: Option<&Self::Loaded>) -> Result<()>;
}

/// Keeps the program in the shape that the flows need.
pub(crate) struct Specialiser<P: Programs> {
    programs: P,
    census: Census,
    /// What the running program serves, and [`FITS`] if it is a specialised one. Where the general one is to stay alone, whatever the
    /// flows need: [`ALL`] without it.
    serving: AtomicU16,
    state: Mutex<State<P::Loaded>>,
    datapath: String,
}

struct State<L> {
    on: bool,
    wide: Option<L>,
    /// What was used last is last.
    narrow: Vec<(u16, L)>,
    /// What the kernel has refused to load, and why.
    refused: Vec<(u16, String)>,
    hold: Hold,
    share: Share,
    swaps: u64,
    /// Why the last change of the program failed, if it did.
    stuck: Option<String>,
}

impl<P: Programs> Specialiser<P> {
    /// For a datapath whose general program runs. `on`: whether to specialise; `hold`: for how long flows must have needed the same
    /// before the program is made for it.
    pub(crate) fn new(programs: P, datapath: &str, on: bool, hold: Duration) -> Self {
        let state = State {
            on: false,
            wide: None,
            narrow: Vec::new(),
            refused: Vec::new(),
            hold: Hold::new(hold),
            share: Share::new(),
            swaps: 0,
            stuck: None,
        };
        let specialiser = Self {
            programs,
            census: Census::default(),
            serving: AtomicU16::new(ALL),
            state: Mutex::new(state),
            datapath: datapath.into(),
        };
        specialiser.set(on);
        specialiser
    }

    /// Starts the thread that looks for a program that fits better.
    pub(crate) fn start(this: &Arc<Self>, maps: &Arc<Maps>) -> std::io::Result<Background> {
        let (this, maps) = (Arc::clone(this), Arc::clone(maps));
        let often = this.state.lock().hold.shortest().clamp(SOONEST, LOOK);
        Background::start("dpif-ebpf-special", move |stop| {
            while stop.sleep(often)? {
                let now = Instant::now();
                this.weigh(now, maps.found());
                this.look(now);
            }
            Ok(())
        })
    }

    /// Switches specialising on or off.
    pub(crate) fn set(&self, on: bool) {
        let mut state = self.state.lock();
        state.on = on;
        state.share = Share::new();
        if on && state.wide.is_none() && !state.refused.iter().any(|(serves, _)| *serves == ALL) {
            match self.programs.load(ALL) {
                Ok(loaded) => state.wide = Some(loaded),
                Err(error) => self.refuse(&mut state, ALL, error.to_string()),
            }
        }
        if on && state.wide.is_some() {
            // The next flow would do it, but there may be none.
            match self.census.needs() {
                None => self.serving.store(0, Ordering::SeqCst),
                Some(_) => self.install(&mut state, Some(ALL)),
            }
        } else {
            self.install(&mut state, None);
            self.serving.store(ALL, Ordering::SeqCst);
        }
    }

    /// A flow is going to be published that needs this.
    pub(crate) fn added(&self, needs: u16) {
        self.census.add(needs);
        if needs & FITS != 0 && !are_served(needs, self.serving.load(Ordering::SeqCst)) {
            self.widen();
        }
    }

    /// A flow is gone that needed this.
    pub(crate) fn removed(&self, needs: u16) {
        self.census.remove(needs);
    }

    fn widen(&self) {
        let mut state = self.state.lock();
        let serving = self.serving.load(Ordering::SeqCst);
        if state.share.resting().is_some() {
            return;
        }
        if self.census.needs().is_none_or(|needs| serving != 0 && are_served(FITS | needs, serving)) {
            return;
        }
        if serving & FITS != 0 {
            state.hold.widened(Instant::now());
        }
        self.install(&mut state, Some(ALL));
    }

    /// Puts the program there that serves this, which is loaded; `None`: no specialised one. On failure the program stays that is
    /// there, which is slower than could be and right all the same.
    fn install(&self, state: &mut State<P::Loaded>, serves: Option<u16>) {
        let program = match serves {
            None => None,
            Some(ALL) => state.wide.as_ref(),
            Some(serves) => state.narrow.iter().find(|(narrow, _)| *narrow == serves).map(|(_, program)| program),
        };
        let running = program.map_or(0, |_| FITS | serves.unwrap_or(0));
        let before = self.serving.load(Ordering::SeqCst);
        if before & FITS == 0 && running & FITS == 0 {
            self.serving.store(running, Ordering::SeqCst);
            return;
        }
        // Until the change is made, only what both programs serve is served: who adds a flow that needs more waits for the lock. Who
        // has added one before has counted it.
        self.serving.store(before & running, Ordering::SeqCst);
        let is_too_narrow = self.census.needs().is_some_and(|needs| !are_served(FITS | needs, running));
        if program.is_some() && is_too_narrow {
            self.serving.store(before, Ordering::SeqCst);
            return;
        }
        match self.programs.install(program) {
            Ok(()) => {
                self.serving.store(running, Ordering::SeqCst);
                state.share.changed();
                state.swaps += 1;
                state.stuck = None;
            }
            Err(error) => {
                self.serving.store(before, Ordering::SeqCst);
                coverage::inc!("dpif_ebpf_program_stuck");
                // It is tried with every flow that comes.
                if state.stuck.is_none() {
                    tracing::warn!("{}: the datapath's program can't be changed: {error}", self.datapath);
                }
                state.stuck = Some(error.to_string());
            }
        }
    }

    /// Takes the specialised program away where it finishes few of the packets, and tries it again later.
    fn weigh(&self, now: Instant, found: Found) {
        let mut state = self.state.lock();
        let special = self.serving.load(Ordering::SeqCst) & FITS != 0;
        match state.share.look(now, found, special) {
            Change::Stay => {}
            Change::Leave => {
                self.install(&mut state, None);
                // As where it is switched off: whatever flows come, the general one stays alone.
                if self.serving.load(Ordering::SeqCst) == 0 {
                    self.serving.store(ALL, Ordering::SeqCst);
                }
            }
            Change::Return => {
                let needs = self.census.needs();
                let narrow = state.narrow.iter().map(|(serves, _)| *serves).find(|serves| Some(*serves) == needs);
                self.serving.store(0, Ordering::SeqCst);
                if needs.is_some() {
                    self.install(&mut state, narrow.or(Some(ALL)));
                }
            }
        }
    }

    /// Looks whether another program would do, and changes to it if it has been so for long enough.
    fn look(&self, now: Instant) {
        let wanted = {
            let mut state = self.state.lock();
            let serving = self.serving.load(Ordering::SeqCst);
            let running = (serving & FITS != 0).then_some(serving & ALL);
            let wanted = self.census.needs();
            let is_refused = wanted.is_some_and(|wanted| state.refused.iter().any(|(serves, _)| *serves == wanted));
            if !state.on
                || state.share.resting().is_some()
                || state.wide.is_none()
                || is_refused
                || !state.hold.is_over(now, running, wanted)
            {
                return;
            }
            wanted
        };
        let loaded = match wanted {
            Some(serves) if serves != ALL && !self.is_loaded(serves) => match self.programs.load(serves) {
                Ok(program) => Some((serves, program)),
                Err(error) => return self.refuse(&mut self.state.lock(), serves, error.to_string()),
            },
            _ => None,
        };
        let mut state = self.state.lock();
        // It may have been switched off, or something else be needed since.
        if state.on && state.share.resting().is_none() && self.census.needs() == wanted {
            state.hold.narrowed(now);
            if let Some(program) = loaded {
                if state.narrow.len() >= KEPT {
                    state.narrow.remove(0);
                }
                state.narrow.push(program);
            }
            self.install(&mut state, wanted);
        }
    }

    fn is_loaded(&self, serves: u16) -> bool {
        let mut state = self.state.lock();
        let at = state.narrow.iter().position(|(narrow, _)| *narrow == serves);
        if let Some(at) = at {
            let used = state.narrow.remove(at);
            state.narrow.push(used);
        }
        at.is_some()
    }

    fn refuse(&self, state: &mut State<P::Loaded>, serves: u16, error: String) {
        coverage::inc!("dpif_ebpf_program_refused");
        tracing::warn!("{}: no program is specialised in {}: {error}", self.datapath, names(serves).join(","));
        state.refused.push((serves, error));
    }

    /// Which program runs, and why.
    pub(crate) fn describe(&self, flows: u64) -> ProgramState {
        let state = self.state.lock();
        let serving = self.serving.load(Ordering::SeqCst);
        let specialised = serving & FITS != 0;
        let (fitting, needs) = (self.census.fitting(), self.census.needs());
        let why = if !state.on {
            "switched off".into()
        } else if let Some((_, error)) = state.refused.iter().find(|(serves, _)| *serves == ALL) {
            format!("refused by the kernel: {error}")
        } else if let Some((serves, _)) = state.refused.iter().find(|(serves, _)| Some(*serves) == needs) {
            format!("one for {} was refused by the kernel", names(*serves).join(","))
        } else if let Some(Found { special, all }) = state.share.resting() {
            format!("a specialised one finished {} of 100 packets; it is tried again later", special * 100 / all.max(1))
        } else if let Some(error) = &state.stuck {
            format!("it can't be changed: {error}")
        } else if !specialised {
            format!("none of {flows} flows fits a specialised one")
        } else if needs == Some(serving & ALL) {
            format!("as {fitting} of {flows} flows need")
        } else {
            let needed = needs.map(names).filter(|names| !names.is_empty()).map_or("nothing".into(), |n| n.join(","));
            format!("{fitting} of {flows} flows need {needed}")
        };
        ProgramState {
            serves: specialised.then(|| names(serving)),
            why,
            swaps: state.swaps,
            refused: state.refused.len() as u64,
        }
    }
}

fn names(serves: u16) -> Vec<&'static str> {
    NAMES.iter().filter(|(need, _)| serves & need != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests;
