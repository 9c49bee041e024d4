//! Flows that were installed while a packet waited in its ring.
//!
//! Packets of a new flow come up until its megaflow is there, and each of them would be translated. So a handler looks first
//! whether the datapath would find a flow by now. A megaflow's id is a hash of the masked key and the mask; so for a packet and
//! a mask the id is known, and with it the ukey, if there is one. The masks to try are few: those with which something was
//! installed since the packet arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Cache};
use datapath_common::FlowKey;
use dpif::Ufid;
use parking_lot::Mutex;

use super::ukey::{MaskShape, MaskedKey, MaskedWords, Ukey, UkeyTable};

/// Masks that are remembered: of more, those used longest ago are forgotten, and their packets are translated.
const MOST: usize = 16;

type Masks = Arc<Vec<Arc<Recent>>>;

/// The masks of the flows that were installed last.
#[derive(Default)]
pub(crate) struct RecentMasks {
    masks: ArcSwap<Vec<Arc<Recent>>>,
    /// Held by who changes the list.
    writer: Mutex<()>,
}

/// A mask.
struct Recent {
    shape: MaskShape,
    /// When the last flow was installed with it.
    last_ns: AtomicU64,
}

impl Recent {
    /// Flows were being installed until then: a packet that arrived before may find one.
    fn until(&self, now_ns: u64) {
        // Many use few masks: write only what is news.
        if self.last_ns.load(Ordering::Relaxed) < now_ns {
            self.last_ns.fetch_max(now_ns, Ordering::Relaxed);
        }
    }

    fn is(&self, mask: &FlowKey) -> bool {
        self.shape.mask() == mask
    }
}

impl RecentMasks {
    /// A flow with this mask is being installed. Who has the mask says [until](Recent::until) when.
    fn installs(&self, mask: &FlowKey, now_ns: u64) -> Arc<Recent> {
        if let Some(recent) = self.masks.load().iter().find(|recent| recent.is(mask)) {
            recent.until(now_ns);
            return Arc::clone(recent);
        }
        let _writer = self.writer.lock();
        let mut masks = Vec::clone(&self.masks.load());
        if let Some(recent) = masks.iter().find(|recent| recent.is(mask)) {
            return Arc::clone(recent);
        }
        if masks.len() >= MOST
            && let Some(oldest) =
                masks.iter().enumerate().min_by_key(|(_, recent)| recent.last_ns.load(Ordering::Relaxed))
        {
            masks.swap_remove(oldest.0);
        }
        let recent = Arc::new(Recent { shape: MaskShape::new(mask), last_ns: AtomicU64::new(now_ns) });
        masks.push(Arc::clone(&recent));
        self.masks.store(Arc::new(masks));
        recent
    }
}

/// A handler's look at the masks: it finds flows, and says which it installs.
pub(super) struct RecentFlows<'a> {
    all: &'a RecentMasks,
    masks: Cache<&'a ArcSwap<Vec<Arc<Recent>>>, Masks>,
    /// The masks when a flow was looked for last.
    list: Masks,
    /// The words of the flow at hand.
    words: MaskedWords,
    /// The words are those of the packet at hand under this one of the masks, and this is their flow's id: the flow that has to be
    /// installed is most often the one that was looked for.
    tried: Option<(usize, Ufid)>,
    /// Those that something was installed with in this batch.
    installed: Vec<Arc<Recent>>,
}

impl<'a> RecentFlows<'a> {
    pub(super) fn new(all: &'a RecentMasks) -> Self {
        let masks = Cache::new(&all.masks);
        let (list, words) = (Masks::default(), MaskedWords::default());
        Self { all, masks, list, words, tried: None, installed: Vec::new() }
    }

    /// Room for words.
    pub(super) fn words(&mut self) -> &mut MaskedWords {
        self.tried = None;
        &mut self.words
    }

    /// The flow that the datapath would find by now for a packet with its key `key` that arrived at `arrival_ns`.
    pub(super) fn find(&mut self, ukeys: &UkeyTable, key: &FlowKey, arrival_ns: u64) -> Option<Arc<Ukey>> {
        self.tried = None;
        let masks = self.masks.load();
        if !Arc::ptr_eq(masks, &self.list) {
            self.list = Arc::clone(masks);
        }
        for (at, recent) in self.list.iter().enumerate() {
            if recent.last_ns.load(Ordering::Relaxed) < arrival_ns {
                continue;
            }
            self.words.set_under(key, &recent.shape);
            let ufid = ukeys.ufid(&self.words);
            self.tried = Some((at, ufid));
            let found = ukeys.get(ufid).filter(|ukey| ukey.flow.is(&self.words));
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Id and masked key of the flow with this mask that the packet is in which was looked for last: its key is `key`.
    pub(super) fn flow(&mut self, ukeys: &UkeyTable, key: &FlowKey, mask: &FlowKey) -> (Ufid, MaskedKey) {
        let known = self.tried.filter(|(at, _)| self.list.get(*at).is_some_and(|recent| recent.is(mask)));
        let ufid = match known {
            Some((_, ufid)) => ufid,
            None => {
                self.tried = None;
                self.words.set(key, mask);
                ukeys.ufid(&self.words)
            }
        };
        (ufid, self.words.to_key())
    }

    /// That flow is being installed.
    pub(super) fn installs(&mut self, mask: &FlowKey, now_ns: u64) {
        let known = self.tried.and_then(|(at, _)| self.list.get(at));
        match (known, self.installed.last()) {
            (Some(recent), Some(last)) if Arc::ptr_eq(recent, last) => recent.until(now_ns),
            (Some(recent), _) => {
                recent.until(now_ns);
                self.installed.push(Arc::clone(recent));
            }
            (None, _) => self.installed.push(self.all.installs(mask, now_ns)),
        }
    }

    /// The flows of the batch are there: packets that have come meanwhile had none yet.
    pub(super) fn done(&mut self, now_ns: u64) {
        self.installed.drain(..).for_each(|recent| recent.until(now_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(ukeys: &UkeyTable, flows: &mut RecentFlows<'_>, key: &FlowKey, mask: &FlowKey, now_ns: u64) {
        let (ufid, masked) = flows.flow(ukeys, key, mask);
        assert_eq!(ufid, ukeys.ufid(&MaskedWords::new(key, mask)));
        assert_eq!(masked, MaskedKey::new(key, mask));
        let ukey = Ukey::new(ufid, masked, 0, 1, Arc::from([]), Box::default());
        ukeys.install(ukey).unwrap().succeeded().unwrap();
        flows.installs(mask, now_ns);
        flows.done(now_ns);
    }

    #[test]
    fn a_packet_finds_the_flow_that_was_installed_while_it_waited() {
        let (ukeys, recent) = (UkeyTable::default(), RecentMasks::default());
        // One handler installs, another looks.
        let (mut ours, mut theirs) = (RecentFlows::new(&recent), RecentFlows::new(&recent));
        let mask = FlowKey { in_port: u32::MAX, ip_ttl: 0xff, ..FlowKey::ZERO };
        let key = FlowKey { in_port: 1, ip_ttl: 64, ip_tos: 1, ..FlowKey::ZERO };
        assert!(ours.find(&ukeys, &key, 0).is_none());
        install(&ukeys, &mut theirs, &key, &mask, 1000);
        let other = FlowKey { ip_tos: 9, ..key };
        assert!(ours.find(&ukeys, &other, 1000).is_some());
        assert!(ours.find(&ukeys, &FlowKey { ip_ttl: 63, ..key }, 1000).is_none());
        assert!(ours.find(&ukeys, &other, 1001).is_none(), "it came later: the datapath had looked");
        install(&ukeys, &mut theirs, &FlowKey { in_port: 2, ..key }, &mask, 2000);
        assert!(ours.find(&ukeys, &other, 1500).is_some());
    }

    #[test]
    fn the_flow_that_was_looked_for_is_the_flow_of_its_own_mask() {
        let (ukeys, recent) = (UkeyTable::default(), RecentMasks::default());
        let mut flows = RecentFlows::new(&recent);
        let masks = [0x0f, 0xf0, 0xff].map(|ip_tos| FlowKey { in_port: u32::MAX, ip_tos, ..FlowKey::ZERO });
        let key = |n: u32| FlowKey { in_port: n, ip_tos: n as u8, ..FlowKey::ZERO };
        for (n, mask) in (1..).zip(masks.iter().cycle().take(30)) {
            // All masks are tried, the last one of the list last.
            assert!(flows.find(&ukeys, &key(n), 0).is_none());
            install(&ukeys, &mut flows, &key(n), mask, u64::from(n));
            assert!(flows.find(&ukeys, &key(n), 0).is_some_and(|ukey| ukey.flow.mask() == *mask));
        }
    }

    #[test]
    fn only_so_many_masks_are_remembered() {
        let (ukeys, recent) = (UkeyTable::default(), RecentMasks::default());
        let mut flows = RecentFlows::new(&recent);
        let key = FlowKey { in_port: 1, ..FlowKey::ZERO };
        for n in 0..100u32 {
            let mask = FlowKey { in_port: u32::MAX, skb_mark: n, ..FlowKey::ZERO };
            install(&ukeys, &mut flows, &key, &mask, u64::from(n));
        }
        assert_eq!(recent.masks.load().len(), MOST);
        assert!(flows.find(&ukeys, &key, 99).is_some());
    }
}
