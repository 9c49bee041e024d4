//! What the kernel's verifier makes of the programs: how much it looks at, and how long a load takes.

use std::time::Instant;

use aya::programs::Program;
use aya::{EbpfLoader, VerifierLogLevel};
use datapath_common::needs;
use testkit::workspace_root;

/// Instructions that the verifier may look at in one program. It gives up at a million; a quarter of that leaves room for
/// older kernels, whose verifiers see less and walk more, and for a load in well under a second.
const BUDGET: u32 = 250_000;

#[test]
fn the_programs_stay_within_the_verifiers_budget() {
    testkit::require_root_and_bpf!("the_programs_stay_within_the_verifiers_budget");
    let mut object = std::fs::read(workspace_root().join("target/bpf/tc.o")).expect("the object");
    assert_ne!(needs::answer(&mut object, needs::ALL), 0);
    let cpus = aya::util::nr_cpus().map_or(1, |n| n as u32);
    for program in ["sluice_tc", "sluice_execute", "sluice_xdp", "sluice_tc_s", "sluice_xdp_s"] {
        for (lanes, shared) in [(cpus.min(16), 0u32), (16, 1)] {
            let mut loaded = EbpfLoader::new()
                .verifier_log_level(VerifierLogLevel::DISABLE)
                .override_global("LANES", &lanes, true)
                .override_global("SHARED_LANES", &shared, true)
                .load(&object)
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
