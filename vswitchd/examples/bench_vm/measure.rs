//! The run: what is sent through which switch, and what is made of the counts.

use std::fs;
use std::io::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use testkit::report::{Relation, Results};
use testkit::wait_until;

use crate::limits::{Fate, Limit};
use crate::meter::Meter;
use crate::pktgen::{self, Packets};
use crate::sender::Wires;
use crate::switches::{Kind, Switch};
use crate::table::{FIRST_MASK, FIRST_PORT, FORWARD, MASKS, SET_UP, rules};

/// How many packets.
struct Size {
    /// New flows that are measured.
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

const WHOLE: Size = Size { set_up: 6400, warm: 1280, forward: 100_000, flows: 60_000, pause: Duration::from_millis(6) };
const SMALL: Size = Size { set_up: 640, warm: 640, forward: 20_000, flows: 0, pause: Duration::from_millis(25) };

/// How late the last packet of a measurement may be.
const LATE: Duration = Duration::from_secs(5);

/// One switch, less what bringing the packets costs.
#[derive(Default)]
struct Counts {
    set_up: f64,
    forward: f64,
    masks: f64,
}

/// What stands around the switches.
struct Bench {
    meter: Meter,
    wires: Wires,
    size: Size,
    folder: tempfile::TempDir,
    bpffs: PathBuf,
    daemon: PathBuf,
}

pub(crate) fn run() -> Result<Results> {
    let mut args = std::env::args().skip(1);
    let daemon = args.next().map(PathBuf::from).ok_or_else(|| Error::other("say where the daemon is"))?;
    let size = if args.next().as_deref() == Some("small") { SMALL } else { WHOLE };
    let meter = Meter::new()?;
    let folder = tempfile::tempdir()?;
    let bpffs = folder.path().join("bpf");
    fs::create_dir(&bpffs)?;
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    let wires = Wires::new()?;
    let own = pktgen::set_up(&wires.switch)?;
    let bench = Bench { meter, wires, size, folder, bpffs, daemon };

    let mut results = Results::default();
    results.row("ticks-per-instruction", "", [bench.meter.ticks_per_instruction()]);
    if !own {
        results.note(
            "the generator shares each packet with the switch, which must copy what it changes (before Linux 6.7)",
        );
    }
    bench.measure(&mut results)?;
    results
        .note("set-up: from packet socket and wire until the packet is out; the rule reads both UDP ports, so each has its own flow")
        .note("forward, masks: by the kernel's packet generator; all figures net of the same packets where a program drops them")
        .note(format!("masks: {} flows behind {MASKS} masks, each packet of another flow than the one before", bench.size.flows))
        .note("revalidators are paused; the rest of the daemons' work (timers, threads) is counted");
    Ok(results)
}

impl Bench {
    fn measure(&self, results: &mut Results) -> Result<()> {
        let bring = self.bring(results)?;
        let counts = Kind::ALL.map(|kind| self.switch(kind, &bring).map(|counts| (kind, counts)));
        let mut all = Vec::new();
        for counts in counts {
            all.push(counts?);
        }
        let unit = "insns";
        for (kind, counts) in &all {
            let name = kind.name();
            results.row(&format!("set-up-{name}"), unit, [counts.set_up]);
            results.row(&format!("forward-{name}"), unit, [counts.forward]);
            if counts.masks > 0.0 {
                results.row(&format!("masks-{name}"), unit, [counts.masks]);
            }
        }
        let [(_, reference), (_, netlink), (_, ebpf)] = all.as_slice() else { return Ok(()) };
        results
            .row("set-up-netlink-ratio", "", [netlink.set_up / reference.set_up])
            .row("set-up-ebpf-ratio", "", [ebpf.set_up / reference.set_up])
            .row("forward-netlink-ratio", "", [netlink.forward / reference.forward])
            .row("forward-ebpf-ratio", "", [ebpf.forward / reference.forward])
            .goal("vm-set-up-netlink-ratio", "set-up-netlink-ratio", Relation::AtMost, 0.6)
            .goal("vm-set-up-ebpf-ratio", "set-up-ebpf-ratio", Relation::AtMost, 0.3)
            .goal("vm-forward-ebpf-ratio", "forward-ebpf-ratio", Relation::AtMost, 0.6);
        if self.size.flows > 0 {
            results.row("masks-ebpf-ratio", "", [ebpf.masks / reference.masks]).goal(
                "vm-masks-ebpf-ratio",
                "masks-ebpf-ratio",
                Relation::AtMost,
                0.25,
            );
        }
        Ok(())
    }

    /// What it costs to bring a packet to where a switch would begin.
    fn bring(&self, results: &mut Results) -> Result<Counts> {
        eprintln!("  without a switch");
        let drops = Limit::attach(&self.wires.switch, Fate::Dropped, &self.bpffs)?;
        let set_up =
            self.new_flows(0, self.size.warm).and_then(|_| self.new_flows(self.size.warm, self.size.set_up))?;
        self.generate(Packets::Forward, self.size.forward / 10)?;
        let forward = self.generate(Packets::Forward, self.size.forward)?;
        let masks = match self.size.flows {
            0 => 0.0,
            flows => self.generate(Packets::Masks { flows }, 2 * u32::from(flows))?,
        };
        drop(drops);
        let bring = Counts { set_up, forward, masks };
        let redirects = Limit::attach(&self.wires.switch, Fate::Redirected, &self.bpffs)?;
        self.generate(Packets::Forward, self.size.forward / 10)?;
        let redirected = self.generate(Packets::Forward, self.size.forward)?;
        drop(redirects);
        results.row("bring-new-flow", "insns", [set_up]).row("bring-forward", "insns", [forward]).row(
            "forward-bare-redirect",
            "insns",
            [redirected - forward],
        );
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
        let size = &self.size;
        let mut counts = Counts::default();
        let before = self.wires.sent_out()?;
        self.new_flows(0, size.warm)?;
        counts.set_up = self.new_flows(size.warm, size.set_up)? - bring.set_up;
        let sent = u64::from(size.warm) + u64::from(size.set_up);
        // A slow daemon may still be at the last of them.
        let is_out = || self.wires.sent_out().is_ok_and(|out| out - before >= sent);
        wait_until(LATE, || is_out() && switch.flows_and_masks().is_ok_and(|(flows, _)| flows >= sent));
        let (out, flows) = (self.wires.sent_out()? - before, switch.flows_and_masks()?);
        eprintln!("    {sent} new flows: {out} packets out, {} flows with {} masks", flows.0, flows.1);
        expect("packets out", out, sent)?;
        expect("flows", flows.0, sent)?;
        switch.flush()?;

        self.wires.send([(FORWARD, FIRST_PORT)].into_iter(), size.pause)?;
        self.generate(Packets::Forward, size.forward / 10)?;
        let before = self.wires.sent_out()?;
        counts.forward = self.generate(Packets::Forward, size.forward)? - bring.forward;
        expect("packets out", self.wires.sent_out()? - before, size.forward.into())?;
        expect("flows", switch.flows_and_masks()?.0, 1)?;
        switch.flush()?;

        // The module forwards alike whoever has put the flows.
        if size.flows > 0 && kind != Kind::Netlink {
            let [a, b, c, _] = FIRST_MASK;
            let one = |n: u16| ([a, b, c, (n % MASKS) as u8], FIRST_PORT + n);
            self.wires.send((0..size.flows).map(one), size.pause)?;
            wait_until(LATE, || switch.flows_and_masks().is_ok_and(|(flows, _)| flows >= size.flows.into()));
            let (flows, masks) = switch.flows_and_masks()?;
            eprintln!("    {} flows behind masks: {flows} flows with {masks} masks", size.flows);
            expect("flows", flows, size.flows.into())?;
            expect("masks", masks, MASKS.into())?;
            let packets = Packets::Masks { flows: size.flows };
            self.generate(packets, size.flows.into())?;
            let (before, count) = (self.wires.sent_out()?, 2 * u32::from(size.flows));
            counts.masks = self.generate(packets, count)? - bring.masks;
            expect("packets out", self.wires.sent_out()? - before, count.into())?;
        }
        Ok(counts)
    }

    /// Instructions per packet of so many flows from this one on that are new.
    fn new_flows(&self, first: u16, count: u16) -> Result<f64> {
        let packets = (first..first + count).map(|n| (SET_UP, FIRST_PORT + n));
        let (instructions, sent) = self.meter.count(|| self.wires.send(packets, self.size.pause));
        sent.map(|()| instructions / f64::from(count))
    }

    /// Instructions per packet of the kernel's generator.
    fn generate(&self, packets: Packets, count: u32) -> Result<f64> {
        let (instructions, sent) = self.meter.count(|| pktgen::send(&self.wires.switch, packets, count));
        sent.map(|()| instructions / f64::from(count))
    }
}

/// What is not so would make the figures those of something else.
fn expect(what: &str, is: u64, should: u64) -> Result<()> {
    if is == should { Ok(()) } else { Err(Error::other(format!("{is} {what} instead of {should}"))) }
}

fn named(kind: Kind, what: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{what} {}: {error}", kind.name()))
}
