//! The datapath's object as it is loaded, without a datapath: for what the verifier makes of it.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use datapath_common::HotSlot;
use datapath_common::blanks::Filling;
use datapath_common::maps::{DEFAULT_SLOTS, Lane, MAX_PORTS, PortEntry};

/// The object, and the maps whose addresses are in it.
pub(crate) struct Filled {
    pub(crate) bytes: Vec<u8>,
    _maps: [MapData; 3],
}

/// Fills in the blanks of the object that was built: for specialised programs that serve this, and so many lanes.
pub(crate) fn filled(serves: u16, lanes: u32, shared: bool) -> Filled {
    let mut bytes = std::fs::read(testkit::workspace_root().join("target/bpf/tc.o")).expect("the object");
    let slots = DEFAULT_SLOTS as u32;
    let map = |name: &str, size: usize, len: u32| {
        let array = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, size as u32 * len, 1, 0);
        MapData::create(array, name, None).expect("a map")
    };
    let lens = [lanes.next_power_of_two(), slots, MAX_PORTS as u32];
    let maps = [
        map("lane", size_of::<Lane>(), lens[0]),
        map("hot_slots", size_of::<HotSlot>(), lens[1]),
        map("ports", size_of::<PortEntry>(), lens[2]),
    ];
    let fds = [0, 1, 2].map(|i: usize| (maps[i].fd().as_fd().as_raw_fd(), lens[i]));
    let filling = Filling { serves, shared, slots, port: 0, maps: fds };
    assert!(filling.fill(&mut bytes).is_some(), "the object has nothing to fill in, or something that nobody knows");
    Filled { bytes, _maps: maps }
}
