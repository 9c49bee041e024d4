//! What a storm of misses by one port costs the others: `cargo xtask bench storm`.
//!
//! A neighbour sends packets of new flows to port 1 as fast as one core can, in calls of 64. Behind ports 2 and 3 others open
//! connections, one after the other: a request of a new flow, an answer of another, each with a megaflow of its own. The same is
//! done without the storm before.

#[path = "bench_upcall/generator.rs"]
#[allow(dead_code, reason = "only its sending half is used here")]
mod generator;
#[path = "../tests/lab/mod.rs"]
mod lab;

// For its allocator: the switch is measured with the one that the daemon has.
use vswitchd as _;

use std::time::Duration;

use generator::Generator;
use lab::Datapath;
use lab::storm::{Storm, pin_threads};
use testkit::report::{self, Relation, Results};

/// Rounds that count, each with so many connections.
const ROUNDS: usize = 5;
const CONNECTIONS: u32 = 1_000;
/// Where the handler runs, alone; all else runs on the other.
const HANDLER_CPU: usize = 1;
const OTHER_CPU: usize = 0;

fn main() {
    report::measure(Datapath::Ebpf.needs(), |results| {
        measure(results);
        Ok(())
    });
}

/// Sets this thread's scheduler; those that it starts get it too.
fn schedule(policy: i32, priority: i32) -> bool {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the pointer is that of the live `parameter`.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) == 0 }
}

fn measure(results: &mut Results) {
    let real_time = schedule(libc::SCHED_FIFO, 1);
    let mut storm = Storm::new(Datapath::Ebpf);
    pin_threads("", OTHER_CPU).expect("to pin the threads");
    assert_eq!(pin_threads("handler", HANDLER_CPU).expect("to pin the handler"), 1);
    let mut generator = Generator::between(&storm.lab.hosts, "v1", "v1");

    let (mut idle, mut stormy, mut medians, mut bound) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut lost, mut upcalls_lost, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let quiet = storm.idle(CONNECTIONS);
        let mut ordinary = false;
        let run = storm.stormy(CONNECTIONS, || {
            // The storm is nobody's work of importance: it gets what the switch and the neighbours leave of its CPU.
            ordinary = ordinary || schedule(libc::SCHED_OTHER, 0);
            generator.fill(64);
            64
        });
        let [storming, client, server] = run.upcalls;
        let seconds = run.took.as_secs_f64();
        eprintln!(
            "round {round} of {ROUNDS}: idle p50 {:.0} p99 {:.0} us, storm p50 {:.0} p99 {:.0} us, {} frames in {:.2} s, upcalls of 1: {storming:?}, of 2: {client:?}, of 3: {server:?}",
            quiet.quantile_us(0.5),
            quiet.quantile_us(0.99),
            run.quantile_us(0.5),
            run.quantile_us(0.99),
            run.sent,
            seconds
        );
        std::thread::sleep(Duration::from_millis(500));
        if round == 0 {
            continue;
        }
        idle.push(quiet.quantile_us(0.99));
        stormy.push(run.quantile_us(0.99));
        medians.push(run.quantile_us(0.5));
        bound.push(run.quantile_us(0.99) / (5.0 * quiet.quantile_us(0.99)).max(2_000.0));
        lost.push(f64::from(run.lost + quiet.lost));
        upcalls_lost.push((client.1 + server.1) as f64);
        rates.push([run.sent as f64 / seconds, storming.0 as f64 / seconds, storming.1 as f64 / seconds]);
    }
    results
        .row("setup-p99-idle", "us", idle)
        .row("setup-p99-storm", "us", stormy)
        .row("setup-p50-storm", "us", medians)
        .row("setup-p99-of-bound", "", bound)
        .row("connections-lost", "", lost)
        .row("upcalls-lost", "", upcalls_lost)
        .row("storm-sent", "packets/s", rates.iter().map(|rates| rates[0]))
        .row("storm-queued", "packets/s", rates.iter().map(|rates| rates[1]))
        .row("storm-lost", "packets/s", rates.iter().map(|rates| rates[2]));
    results
        .goal("storm-setup-p99", "setup-p99-of-bound", Relation::AtMost, 1.0)
        .goal("storm-connections-lost", "connections-lost", Relation::AtMost, 0.0)
        .goal("storm-upcalls-lost", "upcalls-lost", Relation::AtMost, 0.0);
    results.note(format!(
        "CPU {HANDLER_CPU}: the handler, alone. CPU {OTHER_CPU}: the storm's sender, the neighbours that connect, the revalidator"
    ));
    let scheduler = if real_time { "SCHED_FIFO, but the storm's sender" } else { "the usual scheduler" };
    results.note(format!("all threads under {scheduler}; one handler, one revalidator"));
    results.note("a connection: a request of a new flow and an answer of a new flow, 60 bytes each; 1,000 a round, one after the other, 0.2 ms apart");
    results.note("the bound: the larger of 5 times the idle p99 of the round, and 2 ms");
}
