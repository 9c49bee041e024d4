//! Each target over its corpus, and over inputs near it: as many as fit a test, the same each time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use fastrand::Rng;
use fuzz::{TARGETS, corpus, mutate};

/// Inputs that are made of the corpus.
const MUTATIONS: usize = 3000;
/// At most so long, on a machine of any speed: the corpus itself is replayed whole.
const TIME: Duration = Duration::from_secs(1);

/// Replays a target.
fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let inputs = corpus::read(name).unwrap();
    assert!(!inputs.is_empty(), "{name} has no corpus");
    let check = |what: &str, input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
            panic!("{name}: {what} fails: {}", input.escape_ascii());
        }
    };
    for (file, input) in &inputs {
        check(file, input);
    }
    let (mut rng, started) = (Rng::with_seed(1), Instant::now());
    for i in 0..MUTATIONS {
        if started.elapsed() > TIME {
            break;
        }
        let (_, base) = &inputs[rng.usize(..inputs.len())];
        let (_, other) = &inputs[rng.usize(..inputs.len())];
        let mut input = base.clone();
        mutate::mutate(&mut rng, &mut input, other);
        check(&format!("mutation {i}"), &input);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let here = [$(stringify!($name)),*];
            assert_eq!(here.to_vec(), TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
        }
    };
}

replays!(
    config control cookie ebpf_upcall execute extract flow_text netlink_actions netlink_key netlink_message odp_actions odp_key
    offload translate
);

#[test]
fn the_corpus_is_small_and_nothing_else_is_there() {
    let mut folders: Vec<_> = std::fs::read_dir(corpus::folder(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name).collect::<Vec<_>>());
    for name in folders {
        let inputs = corpus::read(&name).unwrap();
        assert!(inputs.len() <= 200, "{name}: {}", inputs.len());
        assert!(inputs.iter().all(|(_, input)| input.len() <= 1024), "{name}: an input is too long");
    }
}
