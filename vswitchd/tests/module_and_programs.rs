//! The kernel's `openvswitch` module and our programs side by side, each with three ports: the same frames come in, and what
//! comes up and what goes out has to be the same. Run by `cargo xtask test-vm`, for the general TC program, for specialised ones,
//! and with the XDP hook in front.
//!
//! Each generated frame is missed by both datapaths: the upcalls' keys and packets are compared, one as the module's attributes say
//! them, the other as our record does. Then both get the same megaflow for it (a mask and actions by chance, of those that both
//! have), the frame comes in again, and the frames that leave each port are compared, and the upcalls that the actions make. What
//! recirculates is missed, and so compared as a packet that the actions before have changed.

#[path = "module_and_programs/actions.rs"]
mod actions;
#[path = "../../dpif-netlink/tests/generate/mod.rs"]
mod generate;
#[path = "../../dpif-netlink/tests/kernel/oracle.rs"]
mod oracle;
#[path = "module_and_programs/seen.rs"]
mod seen;
#[path = "module_and_programs/side.rs"]
mod side;
#[path = "module_and_programs/straight.rs"]
mod straight;

use std::time::Duration;

use datapath_common::extract::{clear_packet_fields, extract};
use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, FlowKey};
use dpif::{Action, FlowPut, PutMode, Ufid, Upcall, UpcallKind};
use dpif_ebpf::EbpfDpif;
use dpif_netlink::NetlinkDpif;
use dpif_netlink::codec::normalize;
use fastrand::Rng;
use seen::Seen;
use side::{Side, What};
use testkit::{Need, Netns, frames};

/// Frames that come in.
const FRAMES: usize = 10_800;
/// Of them at a time, each with a flow of its own.
const BATCH: usize = 100;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// What the verifier may take for a program, in an emulated machine on a busy one.
const LOADED: Duration = Duration::from_secs(180);
/// Generous: the machine is emulated.
const SOON: Duration = Duration::from_secs(20);

/// Which of our programs are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Programs {
    /// The general one in the TC hook.
    General,
    /// Specialised ones in front of it, for flows that they can run.
    Specialised,
    /// Both, and both kinds of flows, with the XDP hook in front.
    BehindXdp,
}

#[test]
fn the_module_and_our_programs_say_and_do_the_same() {
    compare("the_module_and_our_programs_say_and_do_the_same", Programs::General);
}

#[test]
fn the_module_and_each_specialised_program_say_and_do_the_same() {
    compare("the_module_and_each_specialised_program_say_and_do_the_same", Programs::Specialised);
}

#[test]
fn the_module_and_our_programs_behind_the_xdp_hook_say_and_do_the_same() {
    const NAME: &str = "the_module_and_our_programs_behind_the_xdp_hook_say_and_do_the_same";
    testkit::require!(NAME; Need::XdpToVeth);
    compare(NAME, Programs::BehindXdp);
}

fn compare(name: &str, which: Programs) {
    if !testkit::skip::have(name, &[Need::OvsModule, Need::Namespaces, Need::Bpf, Need::EbpfObject]) {
        return;
    }
    let netns = Netns::new("oracle").unwrap();
    netns.silence().unwrap();
    netns
        .run(|| {
            let module =
                NetlinkDpif::open(&dpif_netlink::Options { name: "dp-module".into(), dispatch: None }).unwrap();
            let old = !module.probed().hash_sym_l4;
            let drop = module.probed().explicit_drop;
            let options = dpif_ebpf::Options {
                bpffs: "/run/sluice-test/bpf".into(),
                slots: 4096,
                specialise: which != Programs::General,
                hold: Duration::ZERO,
                ..dpif_ebpf::Options::default()
            };
            let programs = EbpfDpif::open(&format!("t{}-oracle{}", std::process::id(), which as u8), &options).unwrap();
            let module = Side::new(&netns, Box::new(module), 'm');
            let mut programs = Side::new(&netns, Box::new(programs), 't');
            if which == Programs::BehindXdp {
                programs.enter_xdp(&netns);
            }
            let mut comparison = Comparison { which, module, programs, old, drop, seen: Seen::default() };
            comparison.run();
            comparison.seen.print();
            comparison.seen.check(which, old);
            comparison.module.dpif.destroy().unwrap();
            comparison.programs.dpif.destroy().unwrap();
        })
        .unwrap();
}

struct Comparison {
    which: Programs,
    module: Side,
    programs: Side,
    /// The kernel says of a broken chain of extension headers that nothing follows (before 6.4), and cuts tagged packets shorter.
    old: bool,
    /// Both have the action.
    drop: bool,
    seen: Seen,
}

impl Comparison {
    fn run(&mut self) {
        let mut rng = Rng::with_seed(7);
        let mut kinds = frames::kinds();
        // The first ones are IPv4, and no fragments.
        let mut plain = kinds[..5].to_vec();
        kinds.extend(with_checksums());
        plain.extend(with_checksums().drain(..4));
        while self.seen.frames < FRAMES && self.seen.differ.len() < 10 {
            let wanted = self.wanted();
            let kinds = if wanted.is_some() { &plain } else { &kinds };
            let batch: Vec<_> = (0..BATCH).filter_map(|_| self.frame(&mut rng, kinds, wanted.is_some())).collect();
            // An emulated machine has its time: every other gets a flow.
            let chosen = batch.iter().step_by(2).enumerate();
            let flows: Vec<_> = chosen.map(|(n, (frame, key))| (frame, self.flows(&mut rng, key, wanted, n))).collect();
            for put in flows.iter().flat_map(|(_, puts)| puts) {
                self.put(put, wanted.is_some());
            }
            let program = self.program(wanted.is_some());
            for (frame, puts) in &flows {
                *self.seen.programs.entry(program.clone()).or_default() += 1;
                // The first time a specialised program has to hand it over: only then is its flow in the cache.
                for _ in 0..if self.which == Programs::General { 1 } else { 2 } {
                    self.pass(frame, &puts[0]);
                }
            }
            for side in [&self.module, &self.programs] {
                side.dpif.flow_flush().unwrap();
                side.marker();
            }
        }
    }

    /// What the flows of the next batch are to need, if they are to be such that a specialised program can run them.
    fn wanted(&self) -> Option<u16> {
        let batch = self.seen.frames / BATCH;
        let straight = match self.which {
            Programs::General => false,
            Programs::Specialised => true,
            Programs::BehindXdp => batch.is_multiple_of(2),
        };
        // One after the other: each program is loaded once.
        straight.then(|| straight::WANTED[self.seen.frames * straight::WANTED.len() / FRAMES])
    }

    /// What the program serves that runs now, once it is the one that the flows need. `special`: there are flows that a specialised
    /// one can run.
    fn program(&self, special: bool) -> String {
        let state = || self.programs.dpif.program().expect("a program");
        let whys: &[&str] = if special { &["as "] } else { &["as ", "none ", "switched off"] };
        let settled = || whys.iter().any(|why| state().why.starts_with(why));
        assert!(testkit::wait_until(LOADED, settled), "{:?}", state());
        assert_eq!(state().refused, 0);
        state().serves.map_or("general".into(), |serves| format!("[{}]", serves.join(",")))
    }

    /// A frame, sent to both, which nobody has a flow for; its key, where both have one and agree about it.
    fn frame(&mut self, rng: &mut Rng, kinds: &[Vec<u8>], straight: bool) -> Option<(Vec<u8>, FlowKey)> {
        let mut frame = frames::by_chance(rng, kinds);
        self.seen.frames += 1;
        // By this the frame is told from all others.
        let [.., a, b, c] = self.seen.frames.to_be_bytes();
        let address = [2, 1, 0, a, b, c];
        if straight {
            frame[..6].copy_from_slice(&address);
            frame[7..12].fill_with(|| rng.u8(..));
        } else {
            frame[6..12].copy_from_slice(&address);
        }
        if oracle::has_a_known_difference(&frame) || oracle::ends_before_the_switch(&frame) || side::is_marker(&frame) {
            return None;
        }
        let theirs = self.module.send(&frame);
        let ours = self.programs.send(&frame);
        if let (What { upcalls: theirs, .. }, What { upcalls: ours, .. }) = (&theirs, &ours)
            && let ([theirs], [ours]) = (&theirs[..], &ours[..])
            && self.same(theirs, ours)
        {
            self.seen.equal_keys += usize::from(theirs.key == stackless(ours.key));
            // A flow of a stack without an end, or cut off before it began, has more labels than any packet that comes.
            let without_labels = matches!(ours.key.eth_type.get(), 0x8847 | 0x8848) && ours.key.mpls_labels == 0;
            return (theirs.key == ours.key && !without_labels).then_some((frame, ours.key));
        }
        if theirs.is_nothing() && ours.is_nothing() {
            self.seen.refused += 1;
        } else {
            self.differ(&frame, "a miss", &theirs, &ours);
        }
        None
    }

    /// Whether two upcalls say the same.
    fn same(&mut self, theirs: &Upcall, ours: &Upcall) -> bool {
        let beside = |upcall: &Upcall| (upcall.kind, upcall.packet.clone(), upcall.orig_len, upcall.cookie.clone());
        let key = stackless(ours.key);
        let chain = self.old && theirs.key != key && oracle::differ_in_a_broken_chain(&key, &theirs.key);
        self.seen.chains += usize::from(chain);
        (theirs.key == key || chain) && beside(theirs) == beside(ours)
    }

    /// The flows for a frame, the first of which it meets first.
    fn flows(&mut self, rng: &mut Rng, key: &FlowKey, wanted: Option<u16>, number: usize) -> Vec<FlowPut> {
        match wanted {
            Some(wanted) => straight::flow(rng, key, wanted, 1000 + number as u32),
            None => vec![self.flow(rng, key)],
        }
    }

    /// A megaflow for packets like the one with this key, and actions that fit them.
    fn flow(&mut self, rng: &mut Rng, key: &FlowKey) -> FlowPut {
        let mask = mask(rng, key);
        let actions = actions::list(rng, key, self.drop);
        for action in &actions {
            *self.seen.actions.entry(actions::name(action)).or_default() += 1;
        }
        let ufid = Ufid(rng.u128(..));
        FlowPut { mode: PutMode::Create, ufid, key: *key, mask, actions: actions.into() }
    }

    fn put(&mut self, put: &FlowPut, straight: bool) {
        let ours = if straight { straight::as_ours(put) } else { put.clone() };
        for (who, side, put) in [("the module", &self.module, put), ("our programs", &self.programs, &ours)] {
            if let Err(error) = side.dpif.flow_put(put) {
                let actions = dpif::odp::format_actions(&put.actions, None);
                let key = dpif::odp::format_flow_key(&put.key.masked(&put.mask), &put.mask, None);
                self.seen.differ.push(format!("{who}: {error}: {key}, actions:{actions}"));
            }
        }
    }

    /// The frame comes in again, and now there is a flow.
    fn pass(&mut self, frame: &[u8], put: &FlowPut) {
        let theirs = self.module.send(frame);
        let mut ours = self.programs.send(frame);
        if self.which == Programs::BehindXdp && theirs.frames != ours.frames {
            self.programs.add_late(&mut ours);
        }
        self.seen.flows += 1;
        self.seen.in_xdp += usize::from(ours.in_xdp);
        self.seen.outputs += theirs.frames.iter().map(Vec::len).sum::<usize>();
        self.seen.upcalls += theirs.upcalls.len();
        self.seen.recirculated += theirs.upcalls.iter().filter(|upcall| upcall.key.recirc_id != 0).count();
        let retagged = put.actions.iter().any(|action| matches!(action, Action::PushVlan(_) | Action::PopVlan));
        let cut = put.actions.iter().find_map(|action| match action {
            Action::Trunc(len) => Some(*len as usize),
            _ => None,
        });
        let same_upcalls = theirs.upcalls.len() == ours.upcalls.len()
            && theirs.upcalls.iter().zip(&ours.upcalls).all(|(theirs, ours)| {
                // Each datapath has a hash of its own.
                let mut ours = ours.clone();
                ours.key.dp_hash = theirs.key.dp_hash;
                if let Some(len) = cut.filter(|len| self.old && theirs.packet.data.len() == *len) {
                    // Of what goes up, an old module counts the outermost tag too.
                    let longer = ours.packet.data.len().saturating_sub(len);
                    if longer <= TAG {
                        ours.packet.data.truncate(len);
                    }
                }
                if retagged && theirs.kind == UpcallKind::Action && theirs.key != ours.key {
                    // Of such a packet the module says the key that it had before, ours the one that it has.
                    self.seen.stale += 1;
                    if extracted(&ours) != ours.key || metadata(&theirs.key) != metadata(&ours.key) {
                        return false;
                    }
                    ours.key = theirs.key;
                }
                self.same(theirs, &ours)
            });
        if theirs.frames != ours.frames || !same_upcalls {
            self.differ(frame, &dpif::odp::format_actions(&put.actions, None), &theirs, &ours);
        }
    }

    fn differ(&mut self, frame: &[u8], what: &str, theirs: &What, ours: &What) {
        self.seen.differ.push(format!("{frame:02x?}: {what}\n module   {theirs}\n programs {ours}"));
    }
}

/// What a key says beside its packet.
fn metadata(key: &FlowKey) -> FlowKey {
    let mut key = *key;
    clear_packet_fields(&mut key);
    key
}

/// The key that an upcall's packet has, with the metadata that the upcall says.
fn extracted(upcall: &Upcall) -> FlowKey {
    let mut key = metadata(&upcall.key);
    extract(&SlicePacket::new(upcall.packet.data.as_slice()), &mut key).unwrap();
    key
}

/// A key as an upcall of the module can say it: of an MPLS stack without an end it doesn't say the labels.
fn stackless(mut key: FlowKey) -> FlowKey {
    if key.mpls_labels == 0 {
        key.mpls_lse = Default::default();
    }
    key
}

/// A mask by chance that both datapaths take as it is, and under which no two frames of a batch are of one flow: it has the source.
fn mask(rng: &mut Rng, key: &FlowKey) -> FlowKey {
    let mut mask = generate::mask(rng, key);
    (mask.in_port, mask.eth_src, mask.eth_type) = (u32::MAX, [0xff; 6], Be16::MAX);
    // What actions ask for, which change what these say.
    if matches!(key.eth_type.get(), 0x0800 | 0x86dd) {
        (mask.ip_proto, mask.ip_frag) = (u8::MAX, u8::MAX);
    }
    // Our programs know neither connections nor tunnels.
    (mask.ct_state, mask.ct_zone, mask.ct_mark, mask.ct_label) = (0, 0, 0, [0; 16]);
    (mask.ct_orig_proto, mask.tun_flags, mask.dp_hash) = (0, 0, 0);
    normalize(key, &mask, true)
}

/// Packets whose transport checksum is there, and so has to be kept right.
fn with_checksums() -> Vec<Vec<u8>> {
    let of = |kind: usize, at: usize| {
        let mut frame = frames::kinds().swap_remove(kind);
        frame[at..at + 2].copy_from_slice(&[0x12, 0x34]);
        frame
    };
    // UDP and TCP over IPv4, UDP and neighbour discovery over IPv6.
    vec![of(0, 40), of(0, 40), of(1, 50), of(1, 50), of(6, 60), of(7, 56)]
}
