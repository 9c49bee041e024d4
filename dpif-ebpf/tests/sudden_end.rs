//! A process that is killed while it changes the datapath: established traffic goes on, the next one makes sense of what it
//! finds, and in the end nothing is left.
//!
//! `SLUICE_KILLS` says how often (default 24). The victim is this test binary itself, started again with an environment
//! variable that makes one of its tests the victim's life.

mod common;

use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::*;
use dpif::{Dpif, OdpPort, PutMode, Ufid, UpcallBatch};
use dpif_ebpf::EbpfDpif;

const VICTIM: &str = "SLUICE_TEST_VICTIM";
/// Devices that the victim adds and removes as ports.
const SYSTEM: [&str; 2] = ["s0", "s1"];
const INTERNAL: [&str; 2] = ["i0", "i1"];

/// xorshift64*: the same run for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

#[test]
fn sudden_ends_leave_a_datapath_that_goes_on_and_can_be_ended() {
    testkit::require_root_and_bpf!("sudden_ends_leave_a_datapath_that_goes_on_and_can_be_ended");
    let kills: u64 = env::var("SLUICE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let host = Host::new("kill");
    let spare: Vec<_> = SYSTEM.iter().map(|name| host.neighbour(name)).collect();
    let (dpif, left, right) = two_ports(&host);
    dpif.flow_put(&flow_of_port(OdpPort(1), vec![output(OdpPort(2))])).unwrap();
    drop(dpif);

    let mut random = Random(0x5eed_0001);
    for kill in 0..kills {
        let mut victim = start_victim(&host, &(kill + 1).to_string());
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        if random.below(4) == 0 {
            // While it opens the datapath.
            sleep(Duration::from_millis(random.below(2000)));
        } else {
            let ready = lines.by_ref().map_while(Result::ok).any(|line| line.ends_with("ready"));
            assert!(ready, "kill {kill}: the victim could not open the datapath");
            sleep(Duration::from_micros(random.below(200_000)));
        }
        assert!(victim.try_wait().unwrap().is_none(), "kill {kill}: the victim ended by itself");
        victim.kill().unwrap();
        victim.wait().unwrap();

        left.socket.send(&udp(60, kill as u16)).unwrap();
        assert_eq!(right.recv().unwrap(), udp(60, kill as u16), "kill {kill}: an established flow stopped");
    }

    let dpif = host.open();
    assert!(dpif.was_adopted());
    let established = dpif.flow_get(flow_of_port(OdpPort(1), vec![]).ufid).unwrap();
    assert_eq!(established.stats.packets, kills);
    for port in dpif.ports().unwrap() {
        assert_eq!(port.error, None);
        let name = port.name.as_str();
        assert!(["left", "right"].contains(&name) || SYSTEM.contains(&name) || INTERNAL.contains(&name), "{name}");
        assert_eq!(host.shows(name, "promiscuity 1"), !INTERNAL.contains(&name), "{name}");
    }
    let links = std::fs::read_dir(host.pins().join("links")).unwrap().count();
    assert_eq!(links, dpif.ports().unwrap().len());
    // All slots but those of the flows can be had.
    dpif.flow_flush().unwrap();
    for i in 0..host.options.slots - 64 {
        let mut put = flow_of_port(OdpPort(i as u32 + 10), vec![]);
        put.ufid = Ufid(i as u128 + 1);
        dpif.flow_put(&put).unwrap();
    }
    dpif.destroy().unwrap();
    drop(dpif);
    host.assert_no_pins();
    host.assert_devices(4);
    drop(spare);
}

#[test]
fn a_datapath_that_was_half_made_or_half_ended_is_made_anew() {
    testkit::require_root_and_bpf!("a_datapath_that_was_half_made_or_half_ended_is_made_anew");
    let kills: u64 = env::var("SLUICE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(24) / 3;
    let host = Host::new("half");
    let mut random = Random(0x5eed_0002);
    for _ in 0..kills {
        let mut victim = start_victim(&host, "0");
        sleep(Duration::from_millis(random.below(3000)));
        victim.kill().unwrap();
        victim.wait().unwrap();
    }
    let dpif = host.open();
    let (_left, _right) = (host.neighbour("left"), host.neighbour("right"));
    if let Some(port) = dpif.ports().unwrap().first() {
        dpif.port_del(port.port).unwrap();
    }
    dpif.port_add(&system("left")).unwrap();
    dpif.port_add(&internal("i0")).unwrap();
    dpif.destroy().unwrap();
    drop(dpif);
    host.assert_no_pins();
    host.assert_devices(2);
}

fn start_victim(host: &Host, seed: &str) -> Child {
    host.run(|| {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "the_life_of_a_victim", "--nocapture"])
            .env(VICTIM, format!("{} {seed}", host.name))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    })
}

/// Opens the datapath and changes it until it is killed; with seed 0 makes and ends it all the time.
#[test]
fn the_life_of_a_victim() {
    let Ok(orders) = env::var(VICTIM) else { return };
    let (name, seed) = orders.split_once(' ').unwrap();
    if seed == "0" {
        make_and_end(name);
    }
    let mut random = Random(seed.parse::<u64>().unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let options = options();
    let dpif = EbpfDpif::open(name, &options).unwrap_or_else(|error| panic!("{error}"));
    let ports = dpif.ports().unwrap();
    assert!(["left", "right"].iter().all(|name| ports.iter().any(|port| port.name == *name)), "{ports:?}");
    println!("ready");
    let mut batch = UpcallBatch::default();
    loop {
        match random.below(8) {
            0 | 1 => {
                let name = SYSTEM.iter().chain(&INTERNAL).nth(random.below(4) as usize).copied().unwrap();
                match dpif.ports().unwrap().into_iter().find(|port| port.name == name) {
                    Some(port) => dpif.port_del(port.port).unwrap(),
                    None if INTERNAL.contains(&name) => drop(dpif.port_add(&internal(name)).unwrap()),
                    None => drop(dpif.port_add(&system(name)).unwrap()),
                }
            }
            2 => {
                dpif.handlers_set(random.below(4) as u32).unwrap();
                for handler in 0..4 {
                    let _ = dpif.recv(handler, &mut batch);
                }
            }
            3 => {
                let _ = dpif.flow_del(Ufid(1000 + u128::from(random.below(100))));
            }
            _ => {
                let i = random.below(100);
                let mut put = flow_of_port(OdpPort(100), vec![output(OdpPort(2)); random.below(100) as usize]);
                put.ufid = Ufid(1000 + u128::from(i));
                (put.key.dp_hash, put.mask.dp_hash) = (i as u32, u32::MAX);
                put.mask.words_mut()[1] = i % 7;
                put.mode = PutMode::CreateOrModify;
                dpif.flow_put(&put).unwrap();
            }
        }
    }
}

/// Makes the datapath and ends it, for ever.
fn make_and_end(name: &str) -> ! {
    loop {
        let dpif = EbpfDpif::open(name, &options()).unwrap_or_else(|error| panic!("{error}"));
        if dpif.ports().unwrap().is_empty() {
            dpif.port_add(&internal("i0")).unwrap();
        }
        dpif.destroy().unwrap();
    }
}
