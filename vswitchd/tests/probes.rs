//! The tracing probes of the daemon, as tracers find them: in the notes of its file.

use std::collections::BTreeMap;

use object::{Object as _, ObjectSection as _};

/// The probes of a file with the number of their arguments: name, then arguments as `SIZE@WHERE`. The layout is that of
/// SystemTap's `sys/sdt.h`, version 3.
fn probes(file: &[u8]) -> BTreeMap<String, usize> {
    let file = object::File::parse(file).expect("an ELF file");
    let notes = file.section_by_name(".note.stapsdt").expect("probes").data().expect("its bytes");
    let word = |at: usize| notes.get(at..at + 4).map(|word| u32::from_le_bytes(word.try_into().unwrap()) as usize);
    let (mut found, mut at) = (BTreeMap::new(), 0);
    while let (Some(name), Some(description), Some(kind)) = (word(at), word(at + 4), word(at + 8)) {
        let begin = at + 12 + name.next_multiple_of(4);
        let body = &notes[begin..begin + description];
        assert_eq!((&notes[at + 12..at + 12 + name], kind), (&b"stapsdt\0"[..], 3));
        // Behind where it is, where it was linked to, and its semaphore, of which there are none.
        assert_eq!(body[16..24], [0; 8], "a semaphore");
        let mut texts = body[24..].split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        let (provider, name) = (texts.next().unwrap(), texts.next().unwrap());
        let arguments = texts.next().unwrap().split_whitespace().count();
        let before = found.insert(format!("{provider}:{name}"), arguments);
        assert!(before.is_none_or(|before| before == arguments), "{provider}:{name} has two shapes");
        at = begin + description.next_multiple_of(4);
    }
    found
}

#[test]
fn the_daemon_has_the_probes_that_tracers_look_for() {
    let file = std::fs::read(env!("CARGO_BIN_EXE_vswitchd")).expect("the daemon");
    let found = probes(&file);
    for (probe, arguments) in [
        ("main:run_start", 0),
        ("main:poll_block", 0),
        ("dpif_recv:recv_upcall", 6),
        ("dpif_netlink_operate__:op_flow_put", 4),
        ("dpif_netlink_operate__:op_flow_del", 4),
        ("dpif_netlink_operate__:op_flow_get", 4),
        ("dpif_netlink_operate__:op_flow_execute", 5),
        ("udpif_revalidator:start_dump", 2),
        ("udpif_revalidator:sweep_done", 3),
        ("revalidate_ukey__:entry", 6),
        ("revalidate_ukey__:exit", 3),
        ("revalidate:flow_result", 4),
        ("revalidator_sweep__:flow_sweep_result", 4),
    ] {
        assert_eq!(found.get(probe), Some(&arguments), "{probe}: {found:#?}");
    }
}
