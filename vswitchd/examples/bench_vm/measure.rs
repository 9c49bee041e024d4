//! The run: what is sent through which switch, and what is made of the counts.

use std::fs;
use std::io::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use testkit::report::{Relation, Results};
use testkit::wait_until;

use crate::limits::{Bridge, Fate, Limit};
use crate::meter::Meter;
use crate::pktgen::{self, Packets};
use crate::sender::Wires;
use crate::switches::{Kind, Switch};
use crate::table::{FIRST_MASK, FIRST_PORT, FORWARD, FORWARD_XDP, MASKS, SET_UP, rules};

/// How many packets.
struct Size {
    /// How often a measurement is repeated.
    rounds: usize,
    /// New flows that are measured in each round.
    set_up: u16,
    /// New flows before, which warm what can be warm.
    warm: u16,
    /// Packets of a single flow.
    forward: u32,
    /// Flows behind the masks; none leaves that part out.
    flows: u16,
    /// Time for a batch of new flows to be worked off.
    pause: Duration,
}

const WHOLE: Size =
    Size { rounds: 7, set_up: 3200, warm: 640, forward: 40_000, flows: 60_000, pause: Duration::from_millis(6) };
const SMALL: Size =
    Size { rounds: 1, set_up: 640, warm: 640, forward: 20_000, flows: 0, pause: Duration::from_millis(25) };

/// Goals, as parts of what the module needs for a packet with one flow: 550, 700 (50 masks, 60,000 flows) and 400 of its 1,400.
const TC_OF_MODULE: f64 = 550.0 / 1400.0;
const MASKS_OF_MODULE: f64 = 700.0 / 1400.0;
const XDP_OF_MODULE: f64 = 400.0 / 1400.0;
/// Packets that the devices may send of their own in a measurement; none of the switches makes any.
const OWN_WORDS: u64 = 10;
/// How many bridges of the kernel's are measured, one after the other.
const BRIDGES: usize = 3;
/// How late the last packet of a measurement may be.
const LATE: Duration = Duration::from_secs(5);

/// Parts of the measurement, by the words that choose them.
const PARTS: [&str; 4] = [SET_UP_PART, FORWARD_PART, MASKS_PART, XDP_PART];
const SET_UP_PART: &str = "set-up";
const FORWARD_PART: &str = "forward";
const MASKS_PART: &str = "masks";
const XDP_PART: &str = "xdp";

/// What is to be measured: the named switches and parts, of which all where none is named.
struct Only(Vec<String>);

impl Only {
    fn new(words: Vec<String>) -> Result<Self> {
        let known =
            |word: &&String| PARTS.contains(&word.as_str()) || Kind::ALL.iter().any(|kind| kind.name() == *word);
        match words.iter().find(|word| !known(word)) {
            Some(word) => Err(Error::other(format!("{word} is no switch and no part ({})", PARTS.join(", ")))),
            None => Ok(Self(words)),
        }
    }

    fn part(&self, part: &str) -> bool {
        self.0.iter().any(|word| word == part) || !self.0.iter().any(|word| PARTS.contains(&word.as_str()))
    }

    fn kind(&self, kind: Kind) -> bool {
        self.0.iter().any(|word| word == kind.name()) || self.0.iter().all(|word| PARTS.contains(&word.as_str()))
    }
}

/// One switch, less what bringing the packets costs. What is not measured is 0.
#[derive(Clone, Copy, Default)]
struct Counts {
    set_up: f64,
    forward: f64,
    masks: f64,
    xdp: f64,
    xdp_single: f64,
}

/// What stands around the switches.
struct Bench {
    meter: Meter,
    wires: Wires,
    size: Size,
    only: Only,
    folder: tempfile::TempDir,
    bpffs: PathBuf,
    daemon: PathBuf,
}

pub(crate) fn run() -> Result<Results> {
    let mut args = std::env::args().skip(1);
    let daemon = args.next().map(PathBuf::from).ok_or_else(|| Error::other("say where the daemon is"))?;
    let size = if args.next().as_deref() == Some("small") { SMALL } else { WHOLE };
    let only = Only::new(args.collect())?;
    let meter = Meter::new()?;
    let folder = tempfile::tempdir()?;
    let bpffs = folder.path().join("bpf");
    fs::create_dir(&bpffs)?;
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    let wires = Wires::new()?;
    let own = pktgen::set_up(&wires)?;
    let bench = Bench { meter, wires, size, only, folder, bpffs, daemon };

    let mut results = Results::default();
    results.row("ticks-per-instruction", "", [bench.meter.ticks_per_instruction()]);
    results.row("ns-per-instruction", "ns", [bench.meter.ns_per_instruction()]);
    if !own {
        results.note(
            "the generator shares each packet with the switch, which must copy what it changes (before Linux 6.7)",
        );
    }
    bench.measure(&mut results)?;
    results
        .note("set-up: from packet socket and wire until the packet is out; the rule reads both UDP ports, so each has its own flow")
        .note("forward, masks: by the kernel's packet generator; all figures net of the same packets where a program drops them")
        .note("xdp: a neighbour sends them through a veth, in bursts as a card has them, to where the next veth's other end drops them; net of a drop in the XDP hook")
        .note("xdp-single: likewise, by the generator, one at a time: each packet is flushed to the next device, and wakes its receiver, alone")
        .note(format!("masks: {} flows behind {MASKS} masks, each packet of another flow than the one before", bench.size.flows))
        .note("revalidators are paused; the rest of the daemons' work (timers, threads) is counted");
    Ok(results)
}

impl Bench {
    fn measure(&self, results: &mut Results) -> Result<()> {
        let bring = self.bring(results)?;
        let mut all = [Counts::default(); Kind::ALL.len()];
        for (kind, counts) in Kind::ALL.into_iter().zip(&mut all) {
            if self.only.kind(kind) {
                *counts = self.switch(kind, &bring)?;
            }
        }
        for (kind, counts) in Kind::ALL.into_iter().zip(&all) {
            for (part, count) in [
                (SET_UP_PART, counts.set_up),
                (FORWARD_PART, counts.forward),
                (MASKS_PART, counts.masks),
                (XDP_PART, counts.xdp),
                ("xdp-single", counts.xdp_single),
            ] {
                if count != 0.0 {
                    results.row(&format!("{part}-{}", kind.name()), "insns", [count]);
                }
            }
        }
        let [reference, netlink, ebpf] = all;
        let mut ratio = |row: &str, ours: f64, theirs: f64, goal: Option<f64>| {
            if ours == 0.0 || theirs == 0.0 {
                return;
            }
            results.row(row, "", [ours / theirs]);
            if let Some(goal) = goal {
                results.goal(&format!("vm-{row}"), row, Relation::AtMost, goal);
            }
        };
        ratio("set-up-netlink-ratio", netlink.set_up, reference.set_up, Some(0.6));
        ratio("set-up-ebpf-ratio", ebpf.set_up, reference.set_up, Some(0.3));
        ratio("forward-netlink-ratio", netlink.forward, reference.forward, None);
        ratio("forward-ebpf-ratio", ebpf.forward, reference.forward, Some(0.6));
        ratio("masks-ebpf-ratio", ebpf.masks, reference.masks, Some(0.25));
        // Of what the module needs for a packet with one flow.
        ratio("masks-ebpf-of-one-flow", ebpf.masks, reference.forward, Some(MASKS_OF_MODULE));
        ratio("xdp-ebpf-of-module", ebpf.xdp, reference.forward, Some(XDP_OF_MODULE));
        if ebpf.forward != 0.0 && reference.forward != 0.0 {
            results.goal("vm-forward-ebpf-of-module", "forward-ebpf-ratio", Relation::AtMost, TC_OF_MODULE);
        }
        Ok(())
    }

    /// What it costs to bring a packet to where a switch would begin, and the least that one could cost there.
    fn bring(&self, results: &mut Results) -> Result<Counts> {
        eprintln!("  without a switch");
        let netns = &self.wires.switch;
        let drops = Limit::attach(netns, Fate::Dropped, &self.bpffs)?;
        let mut bring = Counts::default();
        if self.only.part(SET_UP_PART) {
            bring.set_up = self.rounds(|| {
                self.new_flows(0, self.size.warm)?;
                self.new_flows(self.size.warm, self.size.set_up)
            })?;
            results.row("bring-new-flow", "insns", [bring.set_up]);
        }
        if self.only.part(MASKS_PART) && self.size.flows > 0 {
            bring.masks = self.generated(Packets::Masks { flows: self.size.flows }, self.size.flows.into())?;
        }
        if self.only.part(FORWARD_PART) {
            bring.forward = self.generated(Packets::Forward, self.size.forward)?;
            results.row("bring-forward", "insns", [bring.forward]);
        }
        drop(drops);
        if self.only.part(FORWARD_PART) {
            let redirects = Limit::attach(netns, Fate::Redirected, &self.bpffs)?;
            let redirected = self.forwarded(Packets::Forward)?;
            drop(redirects);
            results.row("forward-bare-redirect", "insns", [redirected - bring.forward]);
            // Each has a seed of its own, by which its few addresses may fall together.
            let bridged = median((0..BRIDGES).map(|_| {
                let _bridge = Bridge::new(netns)?;
                self.forwarded(Packets::Forward)
            }))?;
            results.row("forward-bridge", "insns", [bridged - bring.forward]);
        }
        if self.only.part(XDP_PART) {
            let drops = Limit::attach_xdp(netns, Fate::Dropped)?;
            bring.xdp = self.generated(Packets::BurstsXdp, self.size.forward)?;
            bring.xdp_single = self.generated(Packets::ForwardXdp, self.size.forward)?;
            drop(drops);
            results.row("bring-xdp", "insns", [bring.xdp]);
            results.row("bring-xdp-single", "insns", [bring.xdp_single]);
            let redirects = Limit::attach_xdp(netns, Fate::Redirected)?;
            let (bursts, single) = (self.forwarded(Packets::BurstsXdp)?, self.forwarded(Packets::ForwardXdp)?);
            drop(redirects);
            results.row("xdp-bare-redirect", "insns", [bursts - bring.xdp]);
            results.row("xdp-single-bare-redirect", "insns", [single - bring.xdp_single]);
        }
        Ok(bring)
    }

    fn switch(&self, kind: Kind, bring: &Counts) -> Result<Counts> {
        eprintln!("  {}", kind.name());
        let folder = self.folder.path();
        let switch = Switch::start(kind, &self.wires.switch, &rules(), &self.daemon, folder, &self.bpffs)
            .map_err(|error| named(kind, "starting", &error))?;
        let counts = self.through(kind, &switch, bring).map_err(|error| named(kind, "measuring", &error))?;
        switch.stop().map_err(|error| named(kind, "stopping", &error))?;
        Ok(counts)
    }

    fn through(&self, kind: Kind, switch: &Switch, bring: &Counts) -> Result<Counts> {
        let mut counts = Counts::default();
        if self.only.part(SET_UP_PART) {
            counts.set_up = self.set_up(switch)? - bring.set_up;
        }
        if self.only.part(FORWARD_PART) {
            counts.forward = self.forward(switch)? - bring.forward;
        }
        // The module forwards alike whoever has put the flows.
        if self.only.part(MASKS_PART) && self.size.flows > 0 && kind != Kind::Netlink {
            counts.masks = self.masks(switch)? - bring.masks;
        }
        if self.only.part(XDP_PART) && kind == Kind::Ebpf {
            let (bursts, single) = self.xdp(switch)?;
            (counts.xdp, counts.xdp_single) = (bursts - bring.xdp, single - bring.xdp_single);
        }
        Ok(counts)
    }

    /// Packets that each make a flow.
    fn set_up(&self, switch: &Switch) -> Result<f64> {
        let size = &self.size;
        self.rounds(|| {
            let before = self.wires.sent_out()?;
            self.new_flows(0, size.warm)?;
            // To load another program would cost more than all flows.
            switch.settle()?;
            let count = self.new_flows(size.warm, size.set_up)?;
            let sent = u64::from(size.warm) + u64::from(size.set_up);
            // A slow daemon may still be at the last of them.
            let is_out = || self.wires.sent_out().is_ok_and(|out| out - before >= sent);
            wait_until(LATE, || is_out() && switch.flows_and_masks().is_ok_and(|(flows, _)| flows >= sent));
            let (out, flows) = (self.wires.sent_out()? - before, switch.flows_and_masks()?);
            eprintln!("    {sent} new flows: {out} packets out, {} flows with {} masks: {count:.0}", flows.0, flows.1);
            expect("packets out", out, sent)?;
            expect("flows", flows.0, sent)?;
            switch.flush()?;
            Ok(count)
        })
    }

    /// Packets of a single flow.
    fn forward(&self, switch: &Switch) -> Result<f64> {
        self.wires.send([(FORWARD, FIRST_PORT)].into_iter(), self.size.pause)?;
        switch.settle()?;
        let count = self.forwarded(Packets::Forward)?;
        expect("flows", switch.flows_and_masks()?.0, 1)?;
        switch.flush()?;
        Ok(count)
    }

    /// Packets of a single flow that the XDP hook finishes: in bursts, and one at a time.
    fn xdp(&self, switch: &Switch) -> Result<(f64, f64)> {
        switch.set_xdp(true)?;
        self.wires.send([(FORWARD_XDP, FIRST_PORT)].into_iter(), self.size.pause)?;
        switch.settle()?;
        let counts = (self.forwarded(Packets::BurstsXdp)?, self.forwarded(Packets::ForwardXdp)?);
        expect("flows", switch.flows_and_masks()?.0, 1)?;
        switch.flush()?;
        switch.set_xdp(false)?;
        Ok(counts)
    }

    /// Packets of many flows behind many masks.
    fn masks(&self, switch: &Switch) -> Result<f64> {
        let size = &self.size;
        let [a, b, c, _] = FIRST_MASK;
        let one = |n: u16| ([a, b, c, (n % MASKS) as u8], FIRST_PORT + n);
        // A packet whose upcall is lost makes no flow: it is sent again, as all are.
        for _ in 0..3 {
            self.wires.send((0..size.flows).map(one), size.pause)?;
            if wait_until(LATE, || switch.flows_and_masks().is_ok_and(|(flows, _)| flows >= size.flows.into())) {
                break;
            }
            eprintln!("    {} flows; {}", switch.flows_and_masks()?.0, switch.accounts()?);
        }
        let (flows, masks) = switch.flows_and_masks()?;
        eprintln!("    {} flows behind masks: {flows} flows with {masks} masks", size.flows);
        expect("flows", flows, size.flows.into())?;
        expect("masks", masks, MASKS.into())?;
        switch.settle()?;
        let (before, program) = (self.wires.sent_out()?, switch.program()?);
        let measured = self.generated(Packets::Masks { flows: size.flows }, size.flows.into())?;
        // And once before it is measured.
        let sent = (1 + size.rounds as u64) * u64::from(size.flows);
        expect("packets out", self.wires.sent_out()? - before, sent)?;
        // Another program would have other figures.
        if switch.program()? != program {
            return Err(Error::other(format!("{program:?} has become {:?}", switch.program()?)));
        }
        switch.flush()?;
        Ok(measured)
    }

    /// Packets of a single flow, all of which have to come out.
    fn forwarded(&self, packets: Packets) -> Result<f64> {
        let out = || if packets.are_for_xdp() { self.wires.sunk() } else { self.wires.sent_out() };
        let before = out()?;
        let count = self.generated(packets, self.size.forward)?;
        let sent = (1 + self.size.rounds as u64) * u64::from(self.size.forward);
        let came = out()? - before;
        // A device that has just come up, or a bridge, has something to say of its own.
        expect("packets out", if (sent..sent + OWN_WORDS).contains(&came) { sent } else { came }, sent)?;
        Ok(count)
    }

    /// The median of all rounds.
    fn rounds(&self, mut round: impl FnMut() -> Result<f64>) -> Result<f64> {
        median((0..self.size.rounds).map(|_| round()))
    }

    /// Instructions per packet of the kernel's generator, once it has sent as many unmeasured.
    fn generated(&self, packets: Packets, count: u32) -> Result<f64> {
        self.generate(packets, count)?;
        self.rounds(|| self.generate(packets, count))
    }

    /// Instructions per packet of so many flows from this one on that are new.
    fn new_flows(&self, first: u16, count: u16) -> Result<f64> {
        let packets = (first..first + count).map(|n| (SET_UP, FIRST_PORT + n));
        let (instructions, sent) = self.meter.count(|| self.wires.send(packets, self.size.pause));
        sent.map(|()| instructions / f64::from(count))
    }

    /// Instructions per packet of the kernel's generator.
    fn generate(&self, packets: Packets, count: u32) -> Result<f64> {
        let (instructions, sent) = self.meter.count(|| pktgen::send(&self.wires, packets, count));
        sent.map(|()| instructions / f64::from(count))
    }
}

fn median(counts: impl Iterator<Item = Result<f64>>) -> Result<f64> {
    let mut counts = counts.collect::<Result<Vec<f64>>>()?;
    counts.sort_by(f64::total_cmp);
    counts.get(counts.len() / 2).copied().ok_or_else(|| Error::other("no rounds"))
}

/// What is not so would make the figures those of something else.
fn expect(what: &str, is: u64, should: u64) -> Result<()> {
    if is == should { Ok(()) } else { Err(Error::other(format!("{is} {what} instead of {should}"))) }
}

fn named(kind: Kind, what: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{what} {}: {error}", kind.name()))
}
