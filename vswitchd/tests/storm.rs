//! A storm of misses by one port doesn't take the others' upcalls. How long those take is what `cargo xtask bench storm`
//! measures; here the bound is one that a machine with other work keeps too.

mod lab;

use std::time::Duration;

use lab::storm::Storm;
use lab::{Datapath, udp};
use testkit::RawSocket;

#[test]
fn a_storm_of_one_port_costs_no_other_port_a_packet_on_ebpf() {
    storm("a_storm_of_one_port_costs_no_other_port_a_packet_on_ebpf", Datapath::Ebpf);
}

#[test]
fn a_storm_of_one_port_costs_no_other_port_a_packet_in_this_process() {
    storm("a_storm_of_one_port_costs_no_other_port_a_packet_in_this_process", Datapath::Userspace);
}

/// New flows, as fast as one thread sends.
fn blow(socket: &RawSocket, next: &mut u32) -> u64 {
    (0..64).fold(0, |sent, _| {
        *next = next.wrapping_add(1);
        let [a, b, c, d] = next.to_be_bytes();
        let ports = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        sent + u64::from(socket.send(&udp(9, 1, ports, 60)).is_ok())
    })
}

fn storm(name: &str, datapath: Datapath) {
    if !testkit::skip::have(name, datapath.needs()) {
        return;
    }
    let mut storm = Storm::new(datapath);
    let idle = storm.idle(100);
    assert_eq!((idle.lost, idle.upcalls[1], idle.upcalls[2]), (0, (100, 0), (100, 0)));
    let (socket, mut next) = (storm.lab.socket(1), 0);
    let run = storm.stormy(200, || blow(&socket, &mut next));
    let [storming, client, server] = run.upcalls;
    println!(
        "{datapath:?}: idle {} us, storm {} us, {} frames, {storming:?}",
        idle.quantile_us(0.99),
        run.quantile_us(0.99),
        run.sent
    );
    assert!(storming.1 > 0, "that was no storm: {storming:?} of {}", run.sent);
    assert_eq!((run.lost, client, server), (0, (200, 0), (200, 0)), "connections lost, upcalls queued and lost");
    // A datapath in this process shares its processors with the storm.
    let bound = Duration::from_millis(500).as_micros() as f64;
    assert!(
        datapath != Datapath::Ebpf || run.quantile_us(0.9) < bound,
        "{} us, idle {} us",
        run.quantile_us(0.9),
        idle.quantile_us(0.9)
    );

    // Who storms is seen: its counts at once, its rates when ports are looked at again, which is once a second.
    let show = storm.lab.switch.upcall_show();
    let counted = line_of(&show, "v1");
    assert!(number(counted, "(upcalls ") > 1000 && number(counted, "(lost ") > 0, "{show}");
    for other in ["v2", "v3"] {
        let line = line_of(&show, other);
        assert_eq!((number(line, "(upcalls "), number(line, "(lost ")), (300, 0), "{show}");
    }
    let rates = testkit::wait_until(Duration::from_secs(10), || {
        let show = storm.lab.switch.upcall_show();
        let line = line_of(&show, "v1");
        number(line, "(per second ") > 0 && number(line, "(lost per second ") > 0
    });
    assert!(rates, "{}", storm.lab.switch.upcall_show());
}

/// What `upcall/show` says of a port.
fn line_of<'a>(show: &'a str, port: &str) -> &'a str {
    let wanted = format!(" {port}: (upcalls ");
    show.lines().find(|line| line.contains(&wanted)).unwrap_or_else(|| panic!("nothing of {port}: {show}"))
}

/// The number that follows `what`.
fn number(line: &str, what: &str) -> u64 {
    let digits = line.split_once(what).and_then(|(_, rest)| rest.split(')').next());
    digits.and_then(|digits| digits.trim().parse().ok()).unwrap_or_else(|| panic!("no {what} in {line}"))
}
