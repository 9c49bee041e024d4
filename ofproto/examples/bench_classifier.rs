//! What a lookup in the classifier costs: `cargo xtask bench classifier`.
//!
//! The shape is that of the reference's own measurement (`ovstest test-classifier benchmark`): 13 fields of two values each, 1,000
//! rules, 8,192 packets of these values, of which one at random is looked up next, with un-wildcarding and without. There,
//! every rule looks at all 13 fields, whatever number of subtables is asked for, so that its figures are those of one subtable
//! (here the rows `one-mask`). Here the rules of the main rows have 30 masks, each of a random half of the fields.
//!
//! How many subtables a lookup has to try depends on the priorities. In the rows that are compared with the goals all rules have
//! the same one, and the first match ends the search. In `all-tried` there are a thousand, spread over all masks, so that
//! nearly all 30 subtables have to be tried for each packet.
//!
//! Time is that of the thread on its CPU: the machine may have other work. The rows `reference` are the reference's measurement on
//! this machine, in turns with ours. It goes by the clock on the wall, and so do the ratios to it, of both sides. They have goals of
//! their own, which hold on machines of any speed: those of the rows stand for a machine on which it gives 5.0 and 14.0 M/s.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath_common::extract::{eth_type, ip_proto};
use datapath_common::{Be16, Be32, Be64, FlowKey};
use ofproto::classifier::Classifier;
use ofproto::flow::Flow;
use ofproto::rule::{Rule, RuleStats};
use openflow::{FlowFlags, FlowMatch};
use testkit::report::{Relation, Results};

const RULES: usize = 1000;
const SUBTABLES: usize = 30;
const PACKETS: usize = 8192;
/// So many of them stay in the cache.
const CACHED: usize = 128;
const SAMPLES: usize = 9;
/// Lookups of a sample.
const LOOKUPS: usize = 1_000_000;
/// Our goals, and the reference's figures on the machine that they were set for, in M/s.
const GOALS: [(&str, f64, f64); 2] = [("unwildcard", 8.0, 5.0), ("plain", 16.0, 14.0)];
/// Rules of the large table.
const MANY: u32 = 100_000;
/// Rules added to the large table in a sample.
const ADDED: u32 = 1000;

fn main() {
    let mut results = Results::default();
    lookups(&mut results);
    changes(&mut results);
    for (row, goal, reference) in GOALS {
        results.goal(&format!("classifier-{row}-mps"), row, Relation::AtLeast, goal);
        let of_reference = of_reference(row);
        results.goal(&format!("classifier-{of_reference}"), &of_reference, Relation::AtLeast, goal / reference);
    }
    results.print();
}

/// Numbers at random that are the same in each run (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The fields' values.
const VALUES: [[u64; 2]; 13] = [
    [0xc0a8_0001, 0xc0a0_4455],
    [0xc0a8_0002, 0xc0a0_4455],
    [0, 0xfedc_ba98_7654_3210],
    [0, 0xfedc_ba98_7654_3210],
    [1, 0xfffe],
    [101, 0],
    [eth_type::IPV4 as u64, eth_type::ARP as u64],
    [49362, 80],
    [6667, 22],
    [0x0002_e30f_80a4, 0x5e33_7f5f_1e99],
    [0x4a27_71ae_64c1, 0xffff_ffff_ffff],
    [ip_proto::TCP as u64, ip_proto::ICMP as u64],
    [48, 0],
];

/// A flow with these bits in its fields, cut to each field's width.
fn flow(bits: impl Fn(usize) -> u64) -> Flow {
    let mac = |bits: u64| {
        let [_, _, mac @ ..] = bits.to_be_bytes();
        mac
    };
    let mut flow = Flow::ZERO;
    flow.key = FlowKey {
        ipv4_src: Be32::new(bits(0) as u32),
        ipv4_dst: Be32::new(bits(1) as u32),
        tun_id: Be64::new(bits(2)),
        in_port: (bits(4) as u16).into(),
        vlan: datapath_common::Vlan { tci: Be16::new(bits(5) as u16), ..Default::default() },
        eth_type: Be16::new(bits(6) as u16),
        tp_src: Be16::new(bits(7) as u16),
        tp_dst: Be16::new(bits(8) as u16),
        eth_src: mac(bits(9)),
        eth_dst: mac(bits(10)),
        ip_proto: bits(11) as u8,
        ip_tos: bits(12) as u8 & 0xfc,
        ..FlowKey::ZERO
    };
    flow.set_metadata(bits(3));
    flow
}

/// Each field has the one or the other value, by a bit of `pattern`.
fn packet(pattern: u64) -> Flow {
    flow(|field| VALUES[field][(pattern >> field & 1) as usize])
}

/// The fields that `which` has a bit for.
fn mask(which: u64) -> Flow {
    flow(|field| if which >> field & 1 != 0 { u64::MAX } else { 0 })
}

fn rule(value: &Flow, mask: &Flow, priority: u16) -> Arc<Rule> {
    Arc::new(Rule {
        r#match: FlowMatch::default(),
        value: value.masked(mask),
        mask: *mask,
        priority,
        cookie: 0,
        idle_timeout: 0,
        hard_timeout: 0,
        importance: 0,
        flags: FlowFlags::default(),
        conjunctions: Arc::default(),
        actions: Arc::default(),
        created_ms: 0,
        modified_ms: 0,
        stats: Arc::new(RuleStats::new(0)),
    })
}

fn classifier(rng: &mut Rng, masks: &[Flow], priorities: u64) -> Classifier {
    let mut classifier = Classifier::default();
    // Rules that would replace another one are not counted.
    for _ in 0..100 * RULES {
        if classifier.len() == RULES {
            break;
        }
        let mask = &masks[rng.next() as usize % masks.len()];
        classifier.insert(rule(&packet(rng.next()), mask, (rng.next() % priorities * 65) as u16));
    }
    classifier
}

fn lookups(results: &mut Results) {
    let mut rng = Rng(1);
    let packets: Vec<_> = (0..PACKETS).map(|_| packet(rng.next())).collect();
    let mut masks: Vec<Flow> = Vec::new();
    while masks.len() < SUBTABLES {
        let mask = mask(rng.next());
        if !masks.contains(&mask) {
            masks.push(mask);
        }
    }
    let mut note = |what: &str, classifier: &Classifier| {
        let hits = packets.iter().filter(|packet| classifier.lookup_plain(packet).is_some()).count();
        let (rules, subtables) = (classifier.len(), classifier.n_subtables());
        let hits = 100 * hits / packets.len();
        results.note(format!("{what}: {rules} rules in {subtables} subtables, {hits} % of the packets match"));
    };
    let one_priority = classifier(&mut rng, &masks, 1);
    let all_tried = classifier(&mut rng, &masks, 1000);
    let one_mask = classifier(&mut rng, &[mask(u64::MAX)], 1000);
    note("unwildcard, plain", &one_priority);
    note("all-tried", &all_tried);
    note("one-mask", &one_mask);
    let cached = &packets[..CACHED];
    let cases: [(&str, &Classifier, bool, &[Flow]); 8] = [
        ("unwildcard", &one_priority, true, &packets),
        ("plain", &one_priority, false, &packets),
        ("unwildcard-cached", &one_priority, true, cached),
        ("plain-cached", &one_priority, false, cached),
        ("unwildcard-all-tried", &all_tried, true, &packets),
        ("plain-all-tried", &all_tried, false, &packets),
        ("unwildcard-one-mask", &one_mask, true, &packets),
        ("plain-one-mask", &one_mask, false, &packets),
    ];
    let ovstest = testkit::tools::ovstest();
    let mut samples = cases.map(|_| Vec::new());
    let (mut theirs, mut ratios) = (GOALS.map(|_| Vec::new()), GOALS.map(|_| Vec::new()));
    for round in 0..=SAMPLES {
        let taken = cases.map(|(_, classifier, unwildcards, packets)| lookup_all(classifier, packets, unwildcards));
        let reference = ovstest.as_deref().and_then(reference);
        // The first round warms up.
        if round == 0 {
            continue;
        }
        for (taken, samples) in taken.iter().zip(&mut samples) {
            samples.push(millions_a_second(taken.on_cpu));
        }
        // The first two rows are those of the goals.
        for (which, theirs_took) in reference.into_iter().flatten().enumerate() {
            theirs[which].push(millions_a_second(theirs_took));
            ratios[which].push(theirs_took.as_secs_f64() / taken[which].on_wall.as_secs_f64());
        }
    }
    for ((id, ..), samples) in cases.iter().zip(samples) {
        results.row(id, "M/s", samples);
    }
    if ovstest.is_some() {
        for ((row, ..), (theirs, ratios)) in GOALS.iter().zip(theirs.into_iter().zip(ratios)) {
            results.row(&format!("{row}-reference"), "M/s", theirs).row(&of_reference(row), "", ratios);
        }
    } else {
        results.note("without the reference: its measurement is not built");
    }
    results.note(format!("lookups on one thread; {SAMPLES} samples of {LOOKUPS} lookups; {PACKETS} packets at random"));
    results.note(format!(
        "cached: {CACHED} packets, whose fields are in the cache as those of a packet are that was just received"
    ));
}

/// What the thread has had of its CPU so far.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

/// What all lookups of a sample took.
struct Taken {
    on_cpu: Duration,
    on_wall: Duration,
}

fn millions_a_second(taken: Duration) -> f64 {
    LOOKUPS as f64 / taken.as_secs_f64() / 1e6
}

/// The row of our figure over the reference's.
fn of_reference(row: &str) -> String {
    format!("{row}-of-reference")
}

/// What the reference takes for as many lookups, in the order of [`GOALS`].
fn reference(ovstest: &Path) -> Option<[Duration; 2]> {
    let mut command = Command::new(ovstest);
    command.args(["test-classifier", "benchmark"]);
    // Rules, priorities, subtables, threads, lookups.
    command.args([RULES, 1, SUBTABLES, 1, LOOKUPS].map(|n| n.to_string()));
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let ms = |line: &str| line.strip_prefix("classifier lookups:")?.split_whitespace().next()?.parse().ok();
    // First without wildcards, then with them.
    let mut took = text.lines().filter_map(ms).map(Duration::from_millis);
    let (plain, unwildcard) = (took.next()?, took.next()?);
    Some([unwildcard, plain])
}

fn lookup_all(classifier: &Classifier, packets: &[Flow], unwildcards: bool) -> Taken {
    let mut state = 1u64;
    let mut hits = 0;
    let (start, wall) = (cpu_time(), Instant::now());
    for _ in 0..LOOKUPS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let packet = &packets[(state >> 33) as usize & (packets.len() - 1)];
        let found = if unwildcards {
            let mut wildcards = Flow::ZERO;
            let found = classifier.lookup(packet, &mut wildcards);
            black_box(&wildcards);
            found
        } else {
            classifier.lookup_plain(packet)
        };
        hits += usize::from(found.is_some());
    }
    black_box(hits);
    Taken { on_cpu: cpu_time() - start, on_wall: wall.elapsed() }
}

/// What it costs to change a large table while readers have a version of it.
fn changes(results: &mut Results) {
    let mask = flow(|field| if field == 1 || field == 6 { u64::MAX } else { 0 });
    let route = |n: u32| {
        let mut value = packet(0);
        value.key.ipv4_dst = Be32::new(n.wrapping_mul(0x9e37_79b1));
        rule(&value, &mask, 10)
    };
    let (mut load, mut load_singly, mut add) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        let rules: Vec<_> = (0..MANY + ADDED).map(route).collect();
        let (first, more) = rules.split_at(MANY as usize);
        let start = cpu_time();
        let mut classifier = Classifier::default();
        first.iter().for_each(|rule| drop(classifier.insert(Arc::clone(rule))));
        load.push((cpu_time() - start).as_secs_f64() * 1e3);

        let start = cpu_time();
        let mut published = Classifier::default();
        for rule in first {
            let mut next = published.clone();
            next.insert(Arc::clone(rule));
            published = next;
        }
        load_singly.push((cpu_time() - start).as_secs_f64() * 1e3);
        assert_eq!(published.len(), classifier.len());

        let start = cpu_time();
        for rule in more {
            let mut next = published.clone();
            next.insert(Arc::clone(rule));
            published = next;
        }
        add.push((cpu_time() - start).as_secs_f64() * 1e6 / f64::from(ADDED));
    }
    results.row("load-100000", "ms", load);
    results.row("load-100000-singly", "ms", load_singly);
    results.row("add-to-100000", "us", add);
    results.note("load-100000: 100,000 rules of one mask as one change; singly: each in a version of its own");
    results.note(
        "add-to-100000: a version of a table of 100,000 rules with one more rule, while the one before is in use",
    );
}
