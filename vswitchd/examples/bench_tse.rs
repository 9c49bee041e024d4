//! What an attack on the tables costs those who have flows already: `cargo xtask bench tse`.
//!
//! Tuple-space explosion (Csikor and others, CoNEXT 2019): an access list has three rules, each for one value of another field; a packet
//! that misses all of them by one chosen bit of each makes a mask of its own, of which there are 32 × 16 × 16. An attacker behind port 3
//! sends a thousand such packets a second. Behind port 1 a host sends a thousand established flows as fast as one CPU can, to port 2; what
//! arrives there is counted by a program, for a while in calm, for a while under attack, in turns.

use std::io::{self, Error};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpif_ebpf::{EbpfDpif, Options as DpOptions};
use ofproto::{BridgeSettings, FailMode, Options, PortKind, PortVlan, Switch};
use openflow::{FlowMod, NoPortNames};
use testkit::bpf::Hook;
use testkit::live::frames::{Flow, SMALL, fix_ip};
use testkit::live::{Counter, Generator, Wires};
use testkit::report::{self, Relation, Results};
use testkit::{Need, Netns, RawSocket, veth_pair};

/// Established flows read both ports, so that each has a megaflow of its own. The attacker meets the access list.
const RULES: [&str; 6] = [
    "table=0,priority=9,in_port=1,udp,actions=move:NXM_OF_UDP_SRC[]->NXM_NX_REG0[0..15],move:NXM_OF_UDP_DST[]->NXM_NX_REG1[0..15],output:2",
    "table=0,priority=1,ip,actions=resubmit(,7)",
    "table=7,priority=3,udp,nw_src=10.0.0.1,actions=output:2",
    "table=7,priority=2,udp,tp_src=32896,actions=output:2",
    "table=7,priority=1,udp,tp_dst=80,actions=output:2",
    "table=7,priority=0,actions=drop",
];
/// What the rules of the access list want.
const ALLOWED: (u32, u16, u16) = (0x0a00_0001, 32896, 80);
const FLOWS: usize = 1_000;
/// Packets of the attacker in a second, and how many he sends at a time.
const ATTACK_RATE: f64 = 1_000.0;
const ATTACK_CALL: u64 = 5;
/// Rounds, each of so many turns in calm and as many under attack; also of a short run.
const ROUNDS: [usize; 2] = [6, 2];
const TURNS: usize = 10;
/// How long the attack goes on before it is looked at, and how long the flows get to be established.
const BUILD_UP: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);
/// Frames of a turn.
const CALL: u32 = 32_768;

fn main() {
    let short = usize::from(std::env::args().any(|argument| argument == "--short"));
    report::measure(&[Need::Namespaces, Need::Bpf, Need::EbpfObject], |results| measure(ROUNDS[short], results));
}

fn measure(rounds: usize, results: &mut Results) -> io::Result<()> {
    let lab = Lab::new()?;
    let established = Established::new(&lab)?;
    let mut rows: [Vec<f64>; 5] = Default::default();
    for round in 0..=rounds {
        lab.switch.flush().map_err(Error::other)?;
        established.install(&lab)?;
        let calm = established.rates(&lab)?;
        let (attacked, attack) = under_attack(&lab, || {
            std::thread::sleep(BUILD_UP);
            established.rates(&lab)
        })?;
        let attacked = attacked?;
        let masks = lab.switch.n_masks() as f64;
        let ratio = mean(&attacked) / mean(&calm);
        eprintln!(
            "round {round} of {rounds}: {ratio:.2} of {:.0} frames/s, {masks} masks, {attack:.0} packets/s of the attacker",
            mean(&calm)
        );
        if round > 0 {
            [calm, attacked, vec![ratio], vec![masks], vec![attack]]
                .into_iter()
                .zip(&mut rows)
                .for_each(|(new, row)| row.extend(new));
        }
    }
    let refused: u64 =
        lab.switch.port_megaflows().iter().filter(|port| port.name == "p3").map(|port| port.refused).sum();
    let [calm, attacked, ratio, masks, attack] = rows;
    results
        .row("established/calm", "frames/s", calm)
        .row("established/attacked", "frames/s", attacked)
        .row("attacked-of-calm", "", ratio)
        .row("masks-under-attack", "", masks)
        .row("attack", "packets/s", attack)
        .goal("tse-attacked-of-calm", "attacked-of-calm", Relation::AtLeast, 0.8)
        .note(format!("{FLOWS} established flows of 64-byte frames, each with a megaflow of its own, in the TC hook"))
        .note(format!("the attacker's port was refused {refused} flows by port-mask-limit; masks of least use are evicted meanwhile"));
    Ok(())
}

/// Does something while the attacker is at it; the packets that he sent in a second come with it.
fn under_attack<T>(lab: &Lab, work: impl FnOnce() -> T) -> io::Result<(T, f64)> {
    let socket = RawSocket::open(&lab.attacker, "eth0")?;
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| -> io::Result<()> {
            let mut rng = fastrand::Rng::with_seed(1);
            while !over.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * ATTACK_RATE) as u64;
                for _ in 0..due.saturating_sub(sent.load(Ordering::Relaxed)).min(ATTACK_CALL) {
                    socket.send(&attack_frame(&mut rng))?;
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        let rate = sent.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
        attack.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((result, rate))
    })
}

/// A packet that differs from each rule's value first in a bit of chance's choice.
fn attack_frame(rng: &mut fastrand::Rng) -> Vec<u8> {
    // What follows the bit is whatever it is.
    let miss = |rng: &mut fastrand::Rng, value: u32, bits: u32| {
        let bit = 1u32 << rng.u32(0..bits);
        value ^ bit ^ (rng.u32(..) & (bit - 1))
    };
    let mut frame = Flow::number(0, SMALL).frame();
    let (address, src, dst) = ALLOWED;
    frame[26..30].copy_from_slice(&miss(rng, address, 32).to_be_bytes());
    frame[34..36].copy_from_slice(&(miss(rng, src.into(), 16) as u16).to_be_bytes());
    frame[36..38].copy_from_slice(&(miss(rng, dst.into(), 16) as u16).to_be_bytes());
    frame[Flow::CHECKSUM..Flow::CHECKSUM + 2].fill(0);
    fix_ip(&mut frame);
    frame
}

/// A switch with ports 1 to 3.
struct Lab {
    switch: Switch,
    wires: Wires,
    attacker: Netns,
}

impl Lab {
    fn new() -> io::Result<Self> {
        let wires = Wires::new("tse")?;
        let attacker = Netns::new("attacker")?;
        attacker.silence()?;
        veth_pair(&wires.switch, "p3", &attacker, "eth0")?;
        let options = DpOptions { bpffs: "/run/sluice-test/bpf".into(), ..DpOptions::default() };
        let name = format!("t{}-tse", std::process::id());
        let mods: Vec<_> = RULES
            .iter()
            .map(|text| FlowMod::parse(text, &NoPortNames))
            .collect::<Result<_, _>>()
            .map_err(Error::other)?;
        let switch = wires.switch.run(|| -> io::Result<Switch> {
            let dpif = Arc::new(EbpfDpif::open(&name, &options).map_err(Error::other)?);
            let options = Options { n_handlers: Some(1), n_revalidators: Some(1), ..Options::default() };
            let switch = Switch::new(dpif, options);
            let settings = BridgeSettings { fail_mode: FailMode::Secure, ..BridgeSettings::default() };
            switch.bridge_add("br0", settings).map_err(Error::other)?;
            for name in ["p1", "p2", "p3"] {
                switch.port_add("br0", name, PortKind::System, PortVlan::default(), None).map_err(Error::other)?;
            }
            switch.flows_replace("br0", Some(&mods)).map_err(Error::other)?;
            switch.start().map_err(Error::other)?;
            Ok(switch)
        })??;
        Ok(Self { switch, wires, attacker })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.wires.switch.run(|| self.switch.destroy()) {
            eprintln!("the datapath is left: {error}");
        }
    }
}

/// The flows that were there before.
struct Established {
    generator: Generator,
    counter: Counter,
}

impl Established {
    fn new(lab: &Lab) -> io::Result<Self> {
        let flows: Vec<_> = (0..FLOWS).map(|number| Flow::number(number, SMALL)).collect();
        let generator = Generator::new(&flows, lab.wires.left.device)?;
        Ok(Self { generator, counter: lab.wires.right.count(Hook::Tc)? })
    }

    fn send(&self, lab: &Lab, frames: u32) -> io::Result<()> {
        lab.wires.left.netns.run(|| self.generator.send(frames))?
    }

    /// Sends gently until all have their megaflows.
    fn install(&self, lab: &Lab) -> io::Result<()> {
        let began = Instant::now();
        while (lab.switch.dpif().stats().map_err(Error::other)?.flows as usize) < FLOWS {
            if began.elapsed() > PATIENCE {
                return Err(Error::other("the established flows don't come about"));
            }
            self.send(lab, 100)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Frames that arrive in a second, turn by turn.
    fn rates(&self, lab: &Lab) -> io::Result<Vec<f64>> {
        let turn = || {
            self.counter.reset()?;
            self.generator.send(CALL)?;
            self.counter.rate()
        };
        lab.wires.left.netns.run(|| (0..TURNS).map(|_| turn()).collect())?
    }
}

fn mean(rates: &[f64]) -> f64 {
    rates.iter().sum::<f64>() / rates.len().max(1) as f64
}
