//! What the kernel's verifier makes of the programs: how much it looks at, and how long a load takes.

use std::time::Instant;

use aya::programs::Program;
use aya::{EbpfLoader, VerifierLogLevel};
use datapath_common::needs;

#[path = "common/object.rs"]
mod object;

/// Instructions that the verifier may look at in one program. It gives up at a million; a quarter of that leaves room for
/// older kernels, whose verifiers see less and walk more, and for a load in well under a second.
const BUDGET: u32 = 250_000;

#[test]
fn the_programs_stay_within_the_verifiers_budget() {
    testkit::require_root_and_bpf!("the_programs_stay_within_the_verifiers_budget");
    let cpus = aya::util::nr_cpus().map_or(1, |n| n as u32);
    for program in ["sluice_tc", "sluice_execute", "sluice_xdp", "sluice_tc_s", "sluice_xdp_s"] {
        for (lanes, shared) in [(cpus.min(16), false), (16, true)] {
            let object = object::filled(needs::ALL, lanes, shared);
            let mut loaded = EbpfLoader::new()
                .verifier_log_level(VerifierLogLevel::DISABLE)
                .override_global("LANES", &lanes, true)
                .load(&object.bytes)
                .expect("the object's maps");
            let start = Instant::now();
            let info = match loaded.program_mut(program).expect("the program") {
                Program::SchedClassifier(classifier) => classifier.load().and_then(|()| classifier.info()),
                Program::Xdp(xdp) => xdp.load().and_then(|()| xdp.info()),
                other => panic!("{program} is {other:?}"),
            };
            let took = start.elapsed();
            let count = info.unwrap_or_else(|error| panic!("{program}: {error}")).verified_instruction_count();
            let count = count.expect("the number of verified instructions");
            println!("{program}, {lanes} lanes, shared {shared}: {count} instructions verified, loaded in {took:.0?}");
            assert!(count <= BUDGET, "{program} costs the verifier {count} instructions, more than {BUDGET}");
        }
    }
}

#[test]
fn the_verifier_accepts_every_specialised_program() {
    testkit::require_root_and_bpf!("the_verifier_accepts_every_specialised_program");
    // In an emulated machine each takes seconds.
    let every = std::env::var("SLUICE_EVERY").map_or(1, |every| every.parse().expect("a number"));
    for serves in (0..=needs::ALL).step_by(every) {
        let object = object::filled(serves, 1, false);
        let mut loaded = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::DEBUG)
            .load(&object.bytes)
            .expect("the object's maps");
        for program in ["sluice_tc_s", "sluice_xdp_s"] {
            let result = match loaded.program_mut(program).expect("the program") {
                Program::SchedClassifier(classifier) => classifier.load(),
                Program::Xdp(xdp) => xdp.load(),
                other => panic!("{program} is {other:?}"),
            };
            result.unwrap_or_else(|error| panic!("{program} that serves {serves:#x}: {error}"));
        }
    }
}
