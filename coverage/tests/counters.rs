//! Counters as another crate uses them; that crate may forbid unsafe code.
#![forbid(unsafe_code)]

use coverage::{add, inc, total, totals};

fn hit_here() {
    inc!("test_two_places");
}

fn hit_there() {
    add!("test_two_places", 10);
}

#[test]
fn places_with_one_name_are_one_event() {
    hit_here();
    hit_there();
    hit_here();
    assert_eq!(total("test_two_places"), Some(12));
    assert_eq!(totals()["test_two_places"], 12);
}

#[test]
fn an_event_never_hit_is_known_and_another_is_not() {
    if std::hint::black_box(false) {
        inc!("test_never_hit");
    }
    assert_eq!(total("test_never_hit"), Some(0));
    assert_eq!(total("test_no_such_event"), None);
}

#[test]
fn no_event_is_lost_among_many_threads() {
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    inc!("test_many_threads");
                }
            });
        }
    });
    assert_eq!(total("test_many_threads"), Some(240_000));
}
