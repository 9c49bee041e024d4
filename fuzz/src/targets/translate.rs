//! Is a megaflow ever wider than what translation looked at? (`ofproto::xlate`)
//!
//! Input: tags of the ports (two bytes); how many rules each of two bridges has of a world of 65,536 (a byte), and which (two bytes each);
//! rules as text, a part; the port (a byte); the frame. The bridges are connected by patch ports.
//!
//! Packets that differ only in bits that the megaflow leaves open are translated to the same actions, also behind a
//! recirculation; and a flow of the megaflow's key matches the packet.

#[path = "../../../ofproto/tests/common/mod.rs"]
mod world;

use std::hash::{DefaultHasher, Hasher as _};

use datapath_common::key::KEY_WORDS;
use datapath_common::{Be16, FlowKey};
use dpif::Action;
use ofproto::bridge::Config;
use ofproto::flow::{Flow, is_present};
use ofproto::table::Tables;
use ofproto::xlate::translate;
use ofproto::{PortVlan, Trunks};
use openflow::{FlowMod, OfPort};

use self::world::{MACS, Rng, Side, accepted, key_of, random_flow, random_frame, two_bridges, with_recirculation};
use crate::input::{Input, text};

/// Most rules of a bridge.
const MAX_RULES: usize = 24;
/// Most rules of the text.
const MAX_LINES: usize = 16;
/// Changes of a packet that are tried, of one bit and of many.
const CHANGES: usize = 6;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let tags = input.u16();
    let rules = [rules(&mut input), rules(&mut input)];
    let lines = text(input.part());
    let (port, frame) = (input.u8(), input.rest());
    let Some(config) = config(tags, rules, &lines) else { return };
    let in_port = [1, 2, 3, 11, 12, 0][usize::from(port % 6)];
    // A frame of the rules' world, where the input has none.
    let mut rng = Rng(digest(bytes));
    let frame = if frame.len() < 14 { random_frame(&mut Rng(port.into())) } else { frame.to_vec() };
    let Some(key) = key_of(&frame, in_port) else { return };

    let mut left = vec![(key, 0)];
    // What is left to do after a recirculation lives as long as the translation that leads there.
    let mut translations = Vec::new();
    while let Some((key, passes)) = left.pop() {
        let xlate = translate(&config, &key).expect("the port is there");
        for action in &xlate.odp_actions {
            if let Action::Recirc(id) = action
                && passes < 3
            {
                left.push((FlowKey { recirc_id: *id, ..key }, passes + 1));
            }
        }
        assert!(key.masked(&xlate.mask).matches(&xlate.mask, &key));
        let present = Flow::from_key(&key, OfPort(1)).present_fields();
        let free: Vec<usize> = (0..KEY_WORDS * 64)
            .filter(|i| present.words()[i / 64] & !xlate.mask.words()[i / 64] & (1 << (i % 64)) != 0)
            .collect();
        for n in 0..2 * CHANGES {
            if free.is_empty() {
                break;
            }
            let change: Vec<usize> = if n < CHANGES {
                vec![free[rng.below(free.len())]]
            } else {
                let keep = rng.pick(&[1, 2, 4, 16]);
                free.iter().copied().filter(|_| rng.one_in(keep)).collect()
            };
            let other = flipped(&key, &change);
            let again = translate(&config, &other).expect("the port is there");
            assert_eq!(
                (&xlate.odp_actions, xlate.error),
                (&again.odp_actions, again.error),
                "packet {key:?}\nother {other:?}\nmask {:?}",
                xlate.mask
            );
        }
        translations.push(xlate);
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn flipped(key: &FlowKey, bits: &[usize]) -> FlowKey {
    let mut other = *key;
    for bit in bits {
        other.words_mut()[bit / 64] ^= 1 << (bit % 64);
    }
    // Where there is no tag, there is none of its bits.
    for tag in [&mut other.vlan, &mut other.cvlan].into_iter().filter(|tag| !is_present(**tag)) {
        tag.tci = Be16::ZERO;
    }
    other
}

fn rules(input: &mut Input<'_>) -> Vec<FlowMod> {
    let n = usize::from(input.u8()) % (MAX_RULES + 1);
    let mut rules: Vec<_> = (0..n).filter_map(|_| accepted(&random_flow(&mut Rng(input.u16().into())))).collect();
    with_recirculation(&mut Rng(n as u64), &mut rules, 8);
    rules
}

fn config(mut tags: u16, rules: [Vec<FlowMod>; 2], lines: &str) -> Option<Config> {
    let text: Vec<_> = lines.lines().take(MAX_LINES).filter_map(accepted).collect();
    let mut side = |mut flows: Vec<FlowMod>| {
        let vlans = std::array::from_fn(|_| {
            let vlan = match tags & 7 {
                1 => PortVlan::Access(10),
                2 => PortVlan::Trunk(Trunks::of([10, 20])),
                3 => PortVlan::NativeTagged(10, Trunks::of([20])),
                4 => PortVlan::NativeUntagged(20, Trunks::of([10])),
                _ => PortVlan::default(),
            };
            tags = tags.rotate_right(3);
            vlan
        });
        flows.extend(text.iter().cloned());
        let mut tables = Tables::default();
        tables.apply(&flows, 0).ok()?;
        let stations = vec![(0, MACS[0], 1), (10, MACS[1], 2), (20, MACS[2], 3)];
        Some(Side { vlans, tables, stations })
    };
    let [first, second] = rules;
    Some(two_bridges([side(first)?, side(second)?]))
}
