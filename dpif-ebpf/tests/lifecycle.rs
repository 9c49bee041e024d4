//! Making, adopting and ending a datapath.

mod common;

use std::time::Duration;

use common::*;
use datapath_common::extract;
use datapath_common::packet::SlicePacket;
use dpif::{Be16, Dpif, DpifError, FlowKey, FlowPut, OdpPort, PortKind, PutMode, Ufid};
use dpif_ebpf::{Attach, EbpfDpif, Options};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use testkit::wait_until;

const NOBODY: nix::unistd::Uid = nix::unistd::Uid::from_raw(65534);

#[test]
fn a_datapath_that_is_destroyed_leaves_nothing() {
    testkit::require_root_and_bpf!("a_datapath_that_is_destroyed_leaves_nothing");
    for attach in [Attach::Auto, Attach::Clsact] {
        let mut host = Host::new("life");
        host.options.attach = attach;
        let (dpif, left, _right) = two_ports(&host);
        assert!(!dpif.was_adopted());
        dpif.port_add(&internal("br0")).unwrap();
        dpif.flow_put(&flow_of_port(OdpPort(1), vec![output(OdpPort(2))])).unwrap();
        assert!(host.shows("left", "promiscuity 1"));
        left.socket.send(&udp(60, 1)).unwrap();
        dpif.destroy().unwrap();
        drop(dpif);
        host.assert_no_pins();
        assert!(!host.shows("left", "promiscuity 1"));
        host.assert_devices(2);
        assert!(!host.netns.exec("tc qdisc show").unwrap().contains("clsact"), "{attach:?}");
    }
}

#[test]
fn a_datapath_outlives_its_process_and_is_adopted() {
    testkit::require_root_and_bpf!("a_datapath_outlives_its_process_and_is_adopted");
    for attach in [Attach::Auto, Attach::Clsact] {
        let mut host = Host::new("adopt");
        host.options.attach = attach;
        let (dpif, left, right) = two_ports(&host);
        dpif.port_add(&internal("br0")).unwrap();
        let mut long = vec![output(OdpPort(3)); 100];
        long.push(output(OdpPort(2)));
        dpif.flow_put(&flow_of_port(OdpPort(1), long.clone())).unwrap();
        dpif.flow_put(&flow_of_port(OdpPort(2), vec![])).unwrap();
        left.socket.send(&udp(60, 1)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(60, 1));
        let flows = |dpif: &EbpfDpif| {
            let mut flows = Vec::new();
            dpif.flow_dump(&mut |flow| {
                flows.push(flow.clone());
                true
            })
            .unwrap();
            flows.sort_by_key(|flow| flow.ufid);
            flows
        };
        let (before, ports) = (flows(&dpif), dpif.ports().unwrap());
        drop(dpif);

        left.socket.send(&udp(80, 2)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(80, 2), "established flows go on without a process");

        let dpif = host.open();
        assert!(dpif.was_adopted());
        assert_eq!(dpif.ports().unwrap(), ports);
        let after = flows(&dpif);
        assert_eq!(after.len(), 2);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((before.ufid, before.key, before.mask), (after.ufid, after.key, after.mask));
            assert_eq!(before.actions, after.actions);
        }
        assert_eq!((after[0].stats.packets, after[0].stats.bytes), (2, 140));
        // It is a datapath like any other now.
        left.socket.send(&udp(60, 3)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(60, 3));
        assert_eq!(dpif.flow_del(after[0].ufid).unwrap().packets, 3);
        left.socket.send(&udp(60, 4)).unwrap();
        right.assert_quiet();
        assert!(host.shows("left", "promiscuity 1"));
        dpif.destroy().unwrap();
        assert!(!host.shows("left", "promiscuity 1"));
        host.assert_no_pins();
    }
}

#[test]
fn ports_of_another_version_are_given_back() {
    testkit::require_root_and_bpf!("ports_of_another_version_are_given_back");
    for attach in [Attach::Auto, Attach::Clsact] {
        let mut host = Host::new("version");
        host.options.attach = attach;
        let (dpif, _left, _right) = two_ports(&host);
        dpif.port_add(&internal("br0")).unwrap();
        drop(dpif);
        let other = host.pins().ancestors().nth(2).unwrap().join("v1");
        std::fs::create_dir_all(&other).unwrap();
        std::fs::rename(host.pins(), other.join(&host.name)).unwrap();
        let dpif = host.open();
        assert!(!dpif.was_adopted());
        assert!(!host.shows("left", "promiscuity 1"));
        for spec in [system("left"), system("right"), internal("br0")] {
            dpif.port_add(&spec).unwrap();
        }
        dpif.destroy().unwrap();
        drop(dpif);
        host.assert_devices(2);
        host.assert_no_pins();
    }
}

#[test]
fn one_process_at_a_time_owns_a_datapath() {
    testkit::require_root_and_bpf!("one_process_at_a_time_owns_a_datapath");
    let host = Host::new("own");
    let dpif = host.open();
    let error = host.run(|| EbpfDpif::open(&host.name, &host.options)).err().unwrap();
    assert!(matches!(&error, DpifError::Exists(text) if text.contains("in use by another process")), "{error}");
    dpif.destroy().unwrap();
    drop(dpif);
    let dpif = host.open();
    assert!(!dpif.was_adopted());
    dpif.destroy().unwrap();
}

#[test]
fn what_can_not_be_opened_is_said_in_one_line() {
    testkit::require_root_and_bpf!("what_can_not_be_opened_is_said_in_one_line");
    let host = Host::new("bad");
    let open = |name: &str, options: Options| {
        let error = host.run(|| EbpfDpif::open(name, &options)).err().unwrap();
        host.assert_no_pins();
        error.to_string()
    };
    let error = open("no/name", host.options.clone());
    assert!(error.contains("is no name for an eBPF datapath"), "{error}");
    let error = open(&host.name, Options { slots: 3, ..host.options.clone() });
    assert!(error.contains("3 flow slots"), "{error}");
    let error = open(&host.name, Options { objects: Some("/nonexistent".into()), ..host.options.clone() });
    assert!(error.contains("/nonexistent/tc.o"), "{error}");
}

#[test]
fn a_missing_privilege_is_said() {
    testkit::require_root_and_bpf!("a_missing_privilege_is_said");
    const AS_NOBODY: &str = "SLUICE_TEST_AS_NOBODY";
    if std::env::var_os(AS_NOBODY).is_some() {
        // The user is changed here: the test's binary may lie where nobody may look.
        nix::unistd::setresuid(NOBODY, NOBODY, NOBODY).unwrap();
        let error = EbpfDpif::open("nobody", &options()).err().unwrap().to_string();
        assert!(error.contains("permission denied; run as root") && !error.contains('\n'), "{error}");
        return;
    }
    let test = std::env::current_exe().unwrap();
    let status = std::process::Command::new(test)
        .args(["--exact", "a_missing_privilege_is_said", "--test-threads", "1"])
        .env(AS_NOBODY, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// A folder with the eBPF objects, of which the verifier refuses this program.
fn spoiled(program: &str) -> tempfile::TempDir {
    let objects = testkit::workspace_root().join("target/bpf");
    let spoiled = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(objects.join("tc.o")).unwrap();
    let at = {
        let file = object::File::parse(&*bytes).unwrap();
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(program)).unwrap();
        let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
        (section.file_range().unwrap().0 + symbol.address()) as usize
    };
    // `r0 = r9`, which nobody has set.
    bytes[at..at + 8].copy_from_slice(&[0xbf, 0x90, 0, 0, 0, 0, 0, 0]);
    std::fs::write(spoiled.path().join("tc.o"), bytes).unwrap();
    std::fs::copy(objects.join("port-entry.o"), spoiled.path().join("port-entry.o")).unwrap();
    spoiled
}

#[test]
fn a_program_that_the_verifier_rejects_shows_the_end_of_its_log() {
    testkit::require_root_and_bpf!("a_program_that_the_verifier_rejects_shows_the_end_of_its_log");
    let spoiled = spoiled("sluice_tc");
    let host = Host::new("reject");
    let options = Options { objects: Some(spoiled.path().into()), ..host.options.clone() };
    let error = host.run(|| EbpfDpif::open(&host.name, &options)).err().unwrap().to_string();
    assert!(error.starts_with("can't load eBPF program sluice_tc: the kernel's verifier refuses it"), "{error}");
    assert!(error.ends_with("R9 !read_ok") && !error.contains('\n'), "{error}");
    host.assert_no_pins();

    // A datapath that is there goes on.
    let (dpif, left, right) = two_ports(&host);
    dpif.flow_put(&flow_of_port(OdpPort(1), vec![output(OdpPort(2))])).unwrap();
    drop(dpif);
    assert!(host.run(|| EbpfDpif::open(&host.name, &options)).is_err());
    left.socket.send(&udp(60, 1)).unwrap();
    assert_eq!(right.recv().unwrap(), udp(60, 1));
    let dpif = host.open();
    assert!(dpif.was_adopted());
    dpif.destroy().unwrap();
}

#[test]
fn a_specialised_program_that_the_verifier_rejects_leaves_the_general_one() {
    testkit::require_root_and_bpf!("a_specialised_program_that_the_verifier_rejects_leaves_the_general_one");
    for program in ["sluice_tc_s", "sluice_xdp_s"] {
        let mut host = Host::new("refused");
        let spoiled = spoiled(program);
        (host.options.objects, host.options.hold) = (Some(spoiled.path().into()), Duration::ZERO);
        let (dpif, left, right) = two_ports(&host);
        dpif.flow_put(&plain_flow()).unwrap();
        for source in 1..4 {
            left.socket.send(&udp(60, source)).unwrap();
            assert_eq!(right.recv().unwrap(), udp(60, source));
        }
        // Asked for again it is not tried again.
        dpif.set_specialise(false).unwrap();
        dpif.set_specialise(true).unwrap();
        let state = dpif.program().unwrap();
        assert_eq!((state.serves, state.swaps, state.refused), (None, 0, 1));
        let refused = format!("refused by the kernel: can't load eBPF program {program}: ");
        assert!(state.why.starts_with(&refused) && state.why.ends_with("R9 !read_ok"), "{}", state.why);
        dpif.destroy().unwrap();
    }
}

/// A flow of packets like those of [`udp`] from port 1 to port 2, which needs the time to live.
fn plain_flow() -> FlowPut {
    let mut key = FlowKey { in_port: 1, ..FlowKey::ZERO };
    extract::extract(&SlicePacket::new(udp(60, 1)), &mut key).unwrap();
    let mut mask = FlowKey { in_port: u32::MAX, recirc_id: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO };
    mask.ip_ttl = 0xff;
    let actions = vec![output(OdpPort(2))].into();
    FlowPut { mode: PutMode::Create, ufid: Ufid(1), key: key.masked(&mask), mask, actions }
}

#[test]
fn a_device_that_can_not_be_a_port_is_refused() {
    testkit::require_root_and_bpf!("a_device_that_can_not_be_a_port_is_refused");
    let host = Host::new("refuse");
    let (dpif, _left, _right) = two_ports(&host);
    let other = Host::new("other");
    let _elsewhere = other.neighbour("elsewhere");
    host.netns.ip("link add kbr0 type bridge").unwrap();
    host.netns.ip("link add slave type veth peer name slave-peer").unwrap();
    host.netns.ip("link set slave master kbr0").unwrap();
    let refusal = |spec| dpif.port_add(&spec).unwrap_err();
    for (spec, wanted) in [
        (system("missing"), "no network device missing"),
        (system("elsewhere"), "no network device elsewhere"),
        (system("left"), "left is port 1 of datapath"),
        (system("lo"), "loopback"),
        (system("slave"), "is a port of kbr0 already"),
        (system("a/b"), "no name of a network device"),
        (internal("kbr0"), "needs the device name kbr0"),
    ] {
        let error = refusal(spec).to_string();
        assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
    }
    // Another datapath in the same namespace.
    let second = Host::new("second");
    let rival = host.run(|| EbpfDpif::open(&second.name, &second.options)).unwrap();
    let error = rival.port_add(&system("left")).unwrap_err();
    assert!(matches!(&error, DpifError::Exists(text) if text.contains("eBPF datapath already")), "{error}");
    rival.destroy().unwrap();
    assert_eq!(dpif.ports().unwrap().len(), 2);
    assert!(matches!(dpif.port_del(OdpPort(9)), Err(DpifError::NoSuchPort(OdpPort(9)))));
    dpif.destroy().unwrap();
}

#[test]
fn an_internal_port_is_a_pair_that_comes_and_goes_with_it() {
    testkit::require_root_and_bpf!("an_internal_port_is_a_pair_that_comes_and_goes_with_it");
    let host = Host::new("internal");
    let dpif = host.open();
    let port = dpif.port_add(&internal("br0")).unwrap();
    let info = dpif.ports().unwrap().remove(0);
    assert_eq!((info.port, info.name.as_str(), info.kind, info.mtu), (port, "br0", PortKind::Internal, 1500));
    let shown = host.netns.ip("link show dev br0").unwrap();
    let mac: Vec<String> = info.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(shown.contains(&mac.join(":")), "{shown}");
    assert!(host.shows("br0-dp", "addrgenmode none"));
    dpif.port_del(port).unwrap();
    assert!(host.netns.ip("link show dev br0").is_err());
    assert!(host.netns.ip("link show dev br0-dp").is_err());
    // The number is not given again at once.
    assert_eq!(dpif.port_add(&internal("br1")).unwrap(), OdpPort(port.0 + 1));
    dpif.destroy().unwrap();
}

#[test]
fn an_adopted_datapath_gets_the_program_that_its_flows_need() {
    testkit::require_root_and_bpf!("an_adopted_datapath_gets_the_program_that_its_flows_need");
    let mut host = Host::new("special");
    host.options.hold = Duration::from_millis(10);
    let (dpif, left, right) = two_ports(&host);
    dpif.flow_put(&plain_flow()).unwrap();
    let serves = |dpif: &EbpfDpif| dpif.program().unwrap().serves;
    let is_narrow = |dpif: &EbpfDpif| wait_until(SOON, || serves(dpif).is_some_and(|serves| serves == ["ip"]));
    let goes = || {
        for source in 1..4 {
            left.socket.send(&udp(60, source)).unwrap();
            assert_eq!(right.recv().unwrap(), udp(60, source));
        }
    };
    assert!(is_narrow(&dpif), "{:?}", dpif.program());
    goes();
    drop(dpif);
    goes();
    let dpif = host.open();
    assert!(dpif.was_adopted());
    assert!(serves(&dpif).is_some(), "{:?}", dpif.program());
    goes();
    assert!(is_narrow(&dpif), "{:?}", dpif.program());
    goes();
    drop(dpif);

    // The next one is not to specialise: what the one before has left goes too.
    host.options.specialise = false;
    let dpif = host.open();
    assert_eq!(serves(&dpif), None);
    goes();
    assert_eq!(dpif.flow_get(Ufid(1)).unwrap().stats.packets, 15);
    dpif.destroy().unwrap();
}
