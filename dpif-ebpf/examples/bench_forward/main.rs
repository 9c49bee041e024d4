//! What the eBPF datapath forwards, beside its peers: `cargo xtask bench forward` and `cargo xtask bench masks`.
//!
//! Each peer forwards between two hosts of its own, over wires of the same kind: bare redirections in the TC and in the XDP hook, which
//! nothing that looks at packets can beat; the kernel's bridge; the reference's userspace datapath on packet sockets and on AF_XDP; ours
//! in the TC hook and with the XDP hook in front (native, at veth). All are up at the same time and measured in turns of some
//! milliseconds, so that a machine that changes its pace does so to all of them; ratios are taken round by round.
//!
//! Frames are made in the kernel by a program that is run on them (`BPF_F_TEST_XDP_LIVE_FRAMES`) and sends them into the wire; what
//! forwards them runs on the sender's CPU, but for the reference, which has the other one to itself. A program counts what
//! arrives and takes the time of one frame in 64: only that is a rate. Before a case is measured, one frame's content is compared
//! with what must come out.
//!
//! Arguments: `forward` or `masks`; then `--short`, `--peers=A,B` and, of `forward`, `--case=ID`, to look at less.

mod cases;
#[path = "../common/keys.rs"]
mod keys;
mod switches;
mod tcp;
mod traffic;

use std::collections::BTreeMap;
use std::io;

use cases::Case;
use switches::{PEERS, Peer};
use tcp::Stream;
use testkit::Need;
use testkit::report::{self, Relation, Results, Row};
use traffic::{Sender, check, one_by_one, teach};

/// Rounds of a case, of TCP streams, and frames of a look at latency; also of a short run.
const ROUNDS: [usize; 2] = [15, 3];
const TCP_ROUNDS: [usize; 2] = [9, 3];
const SINGLE_FRAMES: [usize; 2] = [400, 100];
/// Up to this share of lost frames, in percent, a peer that forwards in the kernel keeps its word: frames wait for nobody there.
const LOSS: f64 = 1.0;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let short = usize::from(arguments.iter().any(|argument| argument == "--short"));
    report::measure(&[Need::Namespaces, Need::Bpf, Need::EbpfObject], |results| {
        match arguments.first().map(String::as_str) {
            Some("masks") => masks(short, results),
            Some("forward") => forward(short, results),
            other => Err(io::Error::other(format!("forward or masks, not {other:?}"))),
        }
    });
}

/// The peers that were asked for by `--peers=A,B`, of these.
fn chosen(all: &[&'static str]) -> Vec<&'static str> {
    let list = std::env::args().find_map(|argument| argument.strip_prefix("--peers=").map(String::from));
    all.iter().copied().filter(|id| list.as_ref().is_none_or(|list| list.split(',').any(|name| name == *id))).collect()
}

fn forward(short: usize, results: &mut Results) -> io::Result<()> {
    let mut peers = peers(&PEERS, results)?;
    let only = std::env::args().find_map(|argument| argument.strip_prefix("--case=").map(String::from));
    for case in cases::forward().into_iter().filter(|case| only.as_ref().is_none_or(|only| case.id == *only)) {
        measure(&mut peers, &case, ROUNDS[short], results);
    }
    latency(&mut peers, ROUNDS[short], SINGLE_FRAMES[short], results);
    bulk(&mut peers, TCP_ROUNDS[short], results);

    ratio(results, "tc-of-bare", "64B-1-flows/tc-ours", "64B-1-flows/tc-bare");
    ratio(results, "tc-of-bridge", "64B-1-flows/tc-ours", "64B-1-flows/bridge");
    ratio(results, "xdp-of-bare", "64B-1-flows/xdp-ours", "64B-1-flows/xdp-bare");
    ratio(results, "tcp-of-bridge", "tcp/tc-ours", "tcp/bridge");
    results
        .goal("forward-tc-of-bare", "tc-of-bare", Relation::AtLeast, 0.9)
        .goal("forward-tc-of-bridge", "tc-of-bridge", Relation::AtLeast, 1.15)
        .goal("forward-xdp-of-bare", "xdp-of-bare", Relation::AtLeast, 0.85)
        .goal("forward-tcp-of-bridge", "tcp-of-bridge", Relation::AtLeast, 1.0);
    results.note(
        "CASE/PEER: frames per second that arrive, sent as fast as one CPU can; each flow has a megaflow of its own",
    );
    results.note("without the reference at 100,000 flows: its userspace datapath holds 65,536 for a thread");
    results.note("bare: a program that sends everything on, unseen. xdp: native at veth. The reference is its userspace datapath, with a CPU of its own");
    Ok(())
}

fn masks(short: usize, results: &mut Results) -> io::Result<()> {
    let mut peers = peers(&["tc-ours", "xdp-ours", "reference-af-packet", "reference-af-xdp"], results)?;
    for case in cases::masks() {
        measure(&mut peers, &case, ROUNDS[short], results);
    }
    drop(peers);
    for peer in chosen(&["tc-ours", "xdp-ours"]) {
        let id = format!("{peer}-200-of-1");
        let ratios = of_each_other(peer, ["200-masks-1000-flows", "1-masks-1000-flows"], ROUNDS[short])?;
        results.row(&id, "", ratios);
        results.goal(&format!("masks-{id}"), &id, Relation::AtLeast, 0.9);
    }
    results.note("200-of-1: two switches of a kind, one with 200 masks and one with one, in turns; the flows are 1000");
    results.note("CASE/PEER: frames of 64 bytes per second that arrive; each flow has a megaflow of its own, under one of so many masks");
    Ok(())
}

/// Sets up those that this machine can have.
fn peers(ids: &[&'static str], results: &mut Results) -> io::Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for id in chosen(ids) {
        match Peer::new(id) {
            Ok(peer) => peers.push(peer),
            Err(error) => {
                eprintln!("without {id}: {error}");
                results.note(format!("without {id}: {error}"));
            }
        }
    }
    if peers.is_empty() { Err(io::Error::other("there is nobody to measure")) } else { Ok(peers) }
}

/// All peers that can do a case, in turns.
fn measure(peers: &mut [Peer], case: &Case, rounds: usize, results: &mut Results) {
    let began = std::time::Instant::now();
    let mut ready = Vec::new();
    for peer in peers.iter_mut() {
        let prepared = || -> io::Result<_> {
            peer.active(true)?;
            if !peer.configure(case)? {
                return Ok(None);
            }
            let mut sender = Sender::new(&peer.wires, case)?;
            check(peer, case, &mut sender)?;
            teach(peer, case, &mut sender)?;
            let counter = peer.wires.right.count(peer.receiver)?;
            Ok(Some((sender, counter)))
        }();
        let _ = peer.active(false);
        match prepared {
            Ok(Some((sender, counter))) => ready.push((&*peer, sender, counter, Vec::new())),
            Ok(None) => {}
            Err(error) => left_out(results, case, peer, &error),
        }
    }
    for round in 0..=rounds {
        // Whoever comes behind a daemon finds other caches: each peer does in its turn.
        let first = round % ready.len().max(1);
        ready.rotate_left(first);
        for (peer, sender, counter, turns) in &mut ready {
            match sender.turn(peer, counter) {
                Ok(turn) if round > 0 => turns.push(turn),
                Ok(_) => {}
                Err(error) => left_out(results, case, peer, &error),
            }
        }
        ready.rotate_right(first);
    }
    eprintln!("{} ({:.1} s)", case.id, began.elapsed().as_secs_f64());
    for (peer, .., turns) in ready {
        let id = format!("{}/{}", case.id, peer.id);
        let lost =
            Row { id: String::new(), unit: String::new(), samples: turns.iter().map(|turn| turn.lost).collect() };
        let lost = lost.summary().map_or(0.0, |summary| summary.median);
        if !peer.is_daemon() && lost > LOSS {
            results.note(format!("{id}: {lost:.1} % of the frames never arrived"));
        }
        results.row(&id, "frames/s", turns.iter().map(|turn| turn.rate));
    }
}

/// What one case makes of another by the same kind of switch, round by round. They are measured in turns, by a switch each: a machine that
/// changes its pace between two cases would say more than they.
fn of_each_other(id: &'static str, ids: [&str; 2], rounds: usize) -> io::Result<Vec<f64>> {
    let mut ready = Vec::new();
    for case in ids {
        let case = cases::masks().into_iter().find(|found| found.id == case).ok_or(io::ErrorKind::NotFound)?;
        let mut peer = Peer::new(id)?;
        peer.configure(&case)?;
        let mut sender = Sender::new(&peer.wires, &case)?;
        check(&peer, &case, &mut sender)?;
        let counter = peer.wires.right.count(peer.receiver)?;
        ready.push((peer, sender, counter));
    }
    let mut ratios = Vec::new();
    for round in 0..=2 * rounds {
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let (peer, sender, counter) = &mut ready[at];
            rates[at] = sender.turn(peer, counter)?.rate;
        }
        if round > 0 {
            ratios.push(rates[0] / rates[1]);
        }
    }
    Ok(ratios)
}

/// How long single frames take.
fn latency(peers: &mut [Peer], rounds: usize, frames: usize, results: &mut Results) {
    let Some(case) = cases::forward().into_iter().next() else { return };
    eprintln!("latency");
    let mut times: BTreeMap<usize, [Vec<f64>; 2]> = BTreeMap::new();
    for round in 0..=rounds {
        for (at, peer) in peers.iter_mut().enumerate() {
            let measured = || -> io::Result<_> {
                peer.active(true)?;
                if round == 0 {
                    peer.configure(&case)?;
                }
                one_by_one(peer, &case, frames)
            }();
            let _ = peer.active(false);
            match measured {
                Ok(mut of_round) if round > 0 => {
                    of_round.sort_by(f64::total_cmp);
                    let [p50, p99] = times.entry(at).or_default();
                    p50.extend(of_round.get(frames / 2));
                    p99.extend(of_round.get(frames * 99 / 100));
                }
                Ok(_) => {}
                Err(error) => left_out(results, &case, peer, &error),
            }
        }
    }
    for (at, [p50, p99]) in times {
        results.row(&format!("latency-p50/{}", peers[at].id), "us", p50);
        results.row(&format!("latency-p99/{}", peers[at].id), "us", p99);
    }
    results.note(
        "latency: of single frames, from the call that sends one to that which has received it, by packet sockets",
    );
}

/// TCP between the hosts.
fn bulk(peers: &mut [Peer], rounds: usize, results: &mut Results) {
    eprintln!("TCP");
    let mut streams = Vec::new();
    for peer in peers.iter_mut() {
        let stream = peer.active(true).and_then(|()| peer.connect());
        let stream = stream.and_then(|can| if can { Stream::new(peer).map(Some) } else { Ok(None) });
        let _ = peer.active(false);
        match stream {
            Ok(Some(stream)) => streams.push((&*peer, stream, Vec::new())),
            Ok(None) => {}
            Err(error) => {
                results.note(format!("tcp: without {}: {error}", peer.id));
            }
        }
    }
    for round in 0..=rounds {
        for (peer, stream, rates) in &mut streams {
            match stream.turn(peer) {
                Ok(rate) if round > 0 => rates.push(rate),
                Ok(_) => {}
                Err(error) => eprintln!("{error}"),
            }
        }
    }
    for (peer, _, rates) in streams {
        results.row(&format!("tcp/{}", peer.id), "Gbit/s", rates);
    }
    results.note("tcp: one stream with segmentation offload; not in the XDP hook, which doesn't see what a host leaves to its device. The reference's hosts compute their checksums themselves, its datapath doesn't complete them");
}

fn left_out(results: &mut Results, case: &Case, peer: &Peer, error: &io::Error) {
    eprintln!("{} without {}: {error}", case.id, peer.id);
    results.note(format!("{} without {}: {error}", case.id, peer.id));
}

/// One row over another, round by round.
fn ratio(results: &mut Results, id: &str, over: &str, under: &str) {
    let samples = |id: &str| results.rows.iter().find(|row| row.id == id).map(|row| row.samples.clone());
    if let (Some(over), Some(under)) = (samples(over), samples(under)) {
        results.row(id, "", over.iter().zip(&under).map(|(over, under)| over / under));
    }
}
