//! Traffic on one CPU: the TC program is run on packets of all flows as a port's entry would run it.

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::Ordering;

use aya::maps::MapData;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, loaded_programs};
use datapath_common::maps::name;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::plan::{self, FLOWS};
use crate::{Shared, StopAtEnd};

/// `TC_ACT_SHOT`: sent nowhere.
const SHOT: u32 = 2;
/// `TC_ACT_REDIRECT`: sent by the last operation of a program.
const REDIRECT: u32 = 7;

/// What one CPU has seen.
pub(crate) struct Seen {
    /// Packets that ran a program, by flow.
    pub(crate) hits: Vec<u64>,
    /// Packets that found no flow, by flow.
    pub(crate) misses: Vec<u64>,
    /// Packets whose flow changed its state during the run, or might have.
    pub(crate) between: u64,
    /// Those of them that found the last state that was possible.
    pub(crate) newer: u64,
}

/// Runs packets until the end.
pub(crate) fn run(cpu: usize, pins: &Path, shared: &Shared) -> Seen {
    let _stop = StopAtEnd(shared);
    let mut only = CpuSet::new();
    only.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &only).expect("to stay on a CPU");
    let program = program_of(pins);
    // `struct __sk_buff` with the port's number in `cb[0]`.
    let mut context = [0; 192];
    context[48] = 1;
    let frames: Vec<_> = (0..FLOWS).map(plan::frame).collect();
    let mut out = [0; 256];
    let mut rng = fastrand::Rng::with_seed(cpu as u64);
    let mut seen = Seen { hits: vec![0; FLOWS], misses: vec![0; FLOWS], between: 0, newer: 0 };
    while !shared.stopped() {
        let flow = plan::pick(&mut rng, 0, 1);
        let from = shared.done[flow].load(Ordering::SeqCst);
        let options = TestRunOptions {
            data_in: Some(&frames[flow]),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let run = program.test_run(options).expect("a test run");
        let to = shared.begun[flow].load(Ordering::SeqCst);
        seen.between += u64::from(from != to);
        let packet = &out[..run.data_size_out as usize];
        let wrong = match run.return_value {
            REDIRECT => {
                seen.hits[flow] += 1;
                match plan::program_of(flow, &frames[flow], packet) {
                    Ok(number) if (from..=to).contains(&number) && plan::state(flow, number).is_some() => {
                        seen.newer += u64::from(from != to && number == to);
                        None
                    }
                    Ok(number) => Some(format!("ran the program of state {number}")),
                    Err(text) => Some(text),
                }
            }
            SHOT => {
                seen.misses[flow] += 1;
                if packet != frames[flow] {
                    Some("was changed and not sent".into())
                } else if (from..=to).all(|number| plan::state(flow, number).is_some()) {
                    Some("found no flow".into())
                } else {
                    None
                }
            }
            verdict => Some(format!("had the verdict {verdict}")),
        };
        if let Some(wrong) = wrong {
            shared.report(format!("CPU {cpu}: a packet of flow {flow} in states {from} to {to} {wrong}"));
        }
    }
    seen
}

/// The TC program of the datapath with these pins.
fn program_of(pins: &Path) -> SchedClassifier {
    const NAME: &str = "sluice_tc";
    let control = MapData::from_pin(pins.join(name::CONTROL)).expect("the control block");
    let map = control.info().expect("its description").id();
    for info in loaded_programs().flatten() {
        if info.name_as_str() == Some(NAME) && info.map_ids().ok().flatten().is_some_and(|maps| maps.contains(&map)) {
            return SchedClassifier::from_program_info(info, Cow::Borrowed(NAME)).expect("a classifier");
        }
    }
    panic!("{NAME} is not loaded");
}
