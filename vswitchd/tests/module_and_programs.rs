//! The kernel's `openvswitch` module and our TC programs side by side, each with three ports: the same frames come in, and what
//! comes up and what goes out has to be the same. Run by `cargo xtask test-vm`.
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
#[path = "module_and_programs/side.rs"]
mod side;

use std::collections::BTreeMap;
use std::time::Duration;

use datapath_common::extract::{clear_packet_fields, extract};
use datapath_common::packet::SlicePacket;
use datapath_common::{Be16, FlowKey};
use dpif::{Action, FlowPut, PutMode, Ufid, Upcall, UpcallKind};
use dpif_ebpf::EbpfDpif;
use dpif_netlink::NetlinkDpif;
use dpif_netlink::codec::normalize;
use fastrand::Rng;
use side::{Side, What};
use testkit::{Need, Netns, frames};

/// Frames that come in.
const FRAMES: usize = 10_800;
/// Of them at a time, each with a flow of its own.
const BATCH: usize = 100;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// Generous: the machine is emulated.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_module_and_our_programs_say_and_do_the_same() {
    const NAME: &str = "the_module_and_our_programs_say_and_do_the_same";
    let needs = [Need::OvsModule, Need::Namespaces, Need::Bpf, Need::EbpfObject];
    if !testkit::skip::have(NAME, &needs) {
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
                ..dpif_ebpf::Options::default()
            };
            let programs = EbpfDpif::open(&format!("t{}-oracle", std::process::id()), &options).unwrap();
            let module = Side::new(&netns, Box::new(module), 'm');
            let programs = Side::new(&netns, Box::new(programs), 't');
            let mut comparison = Comparison { module, programs, old, drop, seen: Seen::default() };
            comparison.run();
            comparison.seen.print();
            comparison.seen.check();
            comparison.programs.dpif.destroy().unwrap();
        })
        .unwrap();
}

struct Comparison {
    module: Side,
    programs: Side,
    /// The kernel says of a broken chain of extension headers that nothing follows (before 6.4), and cuts tagged packets shorter.
    old: bool,
    /// Both have the action.
    drop: bool,
    seen: Seen,
}

/// What was compared.
#[derive(Default)]
struct Seen {
    frames: usize,
    equal_keys: usize,
    refused: usize,
    chains: usize,
    flows: usize,
    outputs: usize,
    upcalls: usize,
    recirculated: usize,
    /// Keys of packets as they were before a tag was pushed or popped.
    stale: usize,
    actions: BTreeMap<&'static str, usize>,
    differ: Vec<String>,
}

impl Comparison {
    fn run(&mut self) {
        let mut rng = Rng::with_seed(7);
        let mut kinds = frames::kinds();
        kinds.extend(with_checksums());
        while self.seen.frames < FRAMES && self.seen.differ.len() < 10 {
            let batch: Vec<_> = (0..BATCH).filter_map(|_| self.frame(&mut rng, &kinds)).collect();
            // An emulated machine has its time: every other gets a flow.
            let chosen = batch.iter().step_by(2);
            let flows: Vec<_> = chosen.map(|(frame, key)| (frame, self.flow(&mut rng, key))).collect();
            for (_, put) in &flows {
                self.put(put);
            }
            for (frame, put) in &flows {
                self.pass(frame, put);
            }
            for side in [&self.module, &self.programs] {
                side.dpif.flow_flush().unwrap();
                side.marker();
            }
        }
    }

    /// A frame, sent to both, which nobody has a flow for; its key, where both have one and agree about it.
    fn frame(&mut self, rng: &mut Rng, kinds: &[Vec<u8>]) -> Option<(Vec<u8>, FlowKey)> {
        let mut frame = frames::by_chance(rng, kinds);
        self.seen.frames += 1;
        // By its source the frame is told from all others.
        frame[6..12].copy_from_slice(&[
            2,
            1,
            0,
            (self.seen.frames >> 16) as u8,
            (self.seen.frames >> 8) as u8,
            self.seen.frames as u8,
        ]);
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

    fn put(&mut self, put: &FlowPut) {
        for (who, side) in [("the module", &self.module), ("our programs", &self.programs)] {
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
        let ours = self.programs.send(frame);
        self.seen.flows += 1;
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

impl Seen {
    fn print(&self) {
        let Self { frames, equal_keys, refused, chains, flows, outputs, upcalls, recirculated, stale, .. } = self;
        let Self { actions, differ, .. } = self;
        println!(
            "{frames} frames: {equal_keys} keys equal, {refused} refused by both, {chains} broken chains; {flows} flows: \
             {outputs} frames out, {upcalls} packets up, {recirculated} of them recirculated, {stale} with the key from before; {} differ; actions: {actions:?}",
            differ.len()
        );
    }

    fn check(&self) {
        assert!(self.differ.is_empty(), "{}", self.differ[..self.differ.len().min(10)].join("\n"));
        assert!(self.equal_keys >= 10_000 && self.flows >= 5_000, "{} keys, {} flows", self.equal_keys, self.flows);
        assert!(self.outputs > 5_000 && self.recirculated > 1_000, "{} out, {} again", self.outputs, self.recirculated);
        for name in actions::NAMES {
            assert!(self.actions.get(name).is_some_and(|n| *n > 100), "{name}: {:?}", self.actions);
        }
    }
}
