//! The table of the in-process datapath against a linear list of the same flows.

use dpif::inproc::{Event, InprocDatapath, SlowTable};
use dpif::*;
use proptest::prelude::*;

/// Keys and masks over few values of few fields, hot and cold, so that flows and packets meet.
fn key() -> impl Strategy<Value = FlowKey> {
    (0u32..3, 0u32..4, 0u32..3, 0u8..3).prop_map(|(in_port, skb_mark, dp_hash, ttl)| FlowKey {
        in_port,
        skb_mark,
        dp_hash,
        ip_ttl: ttl,
        ..FlowKey::ZERO
    })
}

fn mask() -> impl Strategy<Value = FlowKey> {
    let bits = |max| prop_oneof![Just(0), Just(1), Just(max)];
    (bits(u32::MAX), bits(u32::MAX), bits(u32::MAX), bits(u32::from(u8::MAX))).prop_map(
        |(in_port, skb_mark, dp_hash, ttl)| FlowKey { in_port, skb_mark, dp_hash, ip_ttl: ttl as u8, ..FlowKey::ZERO },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Put(Box<FlowKey>, Box<FlowKey>),
    Del(prop::sample::Index),
    Look(Box<FlowKey>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (key(), mask()).prop_map(|(k, m)| Step::Put(Box::new(k), Box::new(m))),
        1 => any::<prop::sample::Index>().prop_map(Step::Del),
        6 => key().prop_map(|k| Step::Look(Box::new(k))),
    ]
}

/// Whether some packet matches both flows.
fn overlap(a: &(FlowKey, FlowKey), b: &(FlowKey, FlowKey)) -> bool {
    let words = |k: &FlowKey| *k.words();
    let (ak, am, bk, bm) = (words(&a.0), words(&a.1), words(&b.0), words(&b.1));
    (0..ak.len()).all(|i| (ak[i] ^ bk[i]) & am[i] & bm[i] == 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_table_finds_what_a_list_finds(steps in prop::collection::vec(step(), 1..80)) {
        let dp = InprocDatapath::new("dp");
        let mut slow = SlowTable::default();
        let mut flows: Vec<(Ufid, (FlowKey, FlowKey))> = vec![];
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put(key, mask) => {
                    let (key, mask) = (*key, *mask);
                    // Userspace installs no overlapping flows.
                    if flows.iter().any(|f| overlap(&f.1, &(key, mask))) {
                        continue;
                    }
                    let ufid = Ufid(i as u128);
                    dp.flow_put(&FlowPut { mode: PutMode::Create, ufid, key, mask, actions: Default::default() }).unwrap();
                    slow.put(ufid, &key, &mask);
                    flows.push((ufid, (key, mask)));
                }
                Step::Del(index) if !flows.is_empty() => {
                    let (ufid, _) = flows.swap_remove(index.index(flows.len()));
                    dp.flow_del(ufid).unwrap();
                    slow.del(ufid);
                }
                Step::Del(_) => {}
                Step::Look(key) => {
                    // Metadata comes from the key, the TTL from the packet.
                    let mut ip = [0; 34];
                    ip[12..].copy_from_slice(&[8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, key.ip_ttl, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                    let packet = Packet::new(ip);
                    let execute = Execute { packet: &packet, key: &key, actions: &[Action::Recirc(0)] };
                    let trace = dp.process_execute(execute).unwrap();
                    let found = trace.events.iter().find_map(|e| match e {
                        Event::Lookup { key, ufid, masks } => Some((**key, *ufid, *masks)),
                        _ => None,
                    });
                    let (extracted, ufid, masks) = found.unwrap();
                    prop_assert_eq!(extracted.ip_ttl, key.ip_ttl);
                    prop_assert_eq!(ufid.into_iter().collect::<Vec<_>>(), slow.matches(&extracted));
                    if ufid.is_none() {
                        prop_assert_eq!(u64::from(masks), dp.stats().unwrap().masks);
                    }
                }
            }
        }
    }
}
