//! Making, adopting and ending a datapath.

mod common;

use common::Host;

#[test]
fn a_datapath_that_is_destroyed_leaves_nothing() {
    testkit::require_root_and_bpf!("a_datapath_that_is_destroyed_leaves_nothing");
    let host = Host::new("life");
    host.run(|| {
        let dpif = host.open();
        assert!(!dpif.was_adopted());
        dpif::Dpif::destroy(&dpif).unwrap();
    });
    host.assert_no_pins();
}
