//! Flows that were installed while a packet waited in its ring.
//!
//! Packets of a new flow come up until its megaflow is there, and each of them would be translated. So a handler looks first
//! whether the datapath would find a flow by now. A megaflow's id is a hash of the masked key and the mask; so for a packet and
//! a mask the id is known, and with it the ukey, if there is one. The masks to try are few: those with which something was
//! installed since the packet arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use datapath_common::FlowKey;
use parking_lot::Mutex;

use super::ukey::{MaskedWords, Ukey, UkeyTable};

/// Masks that are remembered: of more, those used longest ago are forgotten, and their packets are translated.
const MOST: usize = 16;

/// The masks of the flows that were installed last.
#[derive(Default)]
pub(crate) struct RecentMasks {
    masks: ArcSwap<Vec<Arc<Recent>>>,
    /// Held by who changes the list.
    writer: Mutex<()>,
}

/// A mask.
pub(super) struct Recent {
    mask: FlowKey,
    /// When the last flow was installed with it.
    last_ns: AtomicU64,
}

impl Recent {
    /// Flows were being installed until then: a packet that arrived before may find one.
    pub(super) fn until(&self, now_ns: u64) {
        // Many use few masks: write only what is news.
        if self.last_ns.load(Ordering::Relaxed) < now_ns {
            self.last_ns.fetch_max(now_ns, Ordering::Relaxed);
        }
    }
}

impl RecentMasks {
    /// A flow with this mask is being installed. Who has the mask says [until](Recent::until) when.
    pub(super) fn installs(&self, mask: &FlowKey, now_ns: u64) -> Arc<Recent> {
        if let Some(recent) = self.masks.load().iter().find(|recent| recent.mask == *mask) {
            recent.until(now_ns);
            return Arc::clone(recent);
        }
        let _writer = self.writer.lock();
        let mut masks = Vec::clone(&self.masks.load());
        if let Some(recent) = masks.iter().find(|recent| recent.mask == *mask) {
            return Arc::clone(recent);
        }
        if masks.len() >= MOST
            && let Some(oldest) =
                masks.iter().enumerate().min_by_key(|(_, recent)| recent.last_ns.load(Ordering::Relaxed))
        {
            masks.swap_remove(oldest.0);
        }
        let recent = Arc::new(Recent { mask: *mask, last_ns: AtomicU64::new(now_ns) });
        masks.push(Arc::clone(&recent));
        self.masks.store(Arc::new(masks));
        recent
    }

    /// The flow that the datapath would find by now for a packet with its key `key` that arrived at `arrival_ns`.
    pub(super) fn find(
        &self,
        ukeys: &UkeyTable,
        key: &FlowKey,
        arrival_ns: u64,
        words: &mut MaskedWords,
    ) -> Option<Arc<Ukey>> {
        let masks = self.masks.load();
        masks.iter().filter(|recent| recent.last_ns.load(Ordering::Relaxed) >= arrival_ns).find_map(|recent| {
            words.set(key, &recent.mask);
            ukeys.get(ukeys.ufid(words)).filter(|ukey| ukey.flow.is(words))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upcall::ukey::MaskedWords;

    fn install(ukeys: &UkeyTable, recent: &RecentMasks, key: &FlowKey, mask: &FlowKey, now_ns: u64) {
        let words = MaskedWords::new(key, mask);
        let ukey = Ukey::new(ukeys.ufid(&words), words.to_key(), 0, 1, Arc::from([]), Box::default());
        ukeys.install(ukey).unwrap().succeeded().unwrap();
        recent.installs(mask, now_ns);
    }

    #[test]
    fn a_packet_finds_the_flow_that_was_installed_while_it_waited() {
        let (ukeys, recent, mut words) = (UkeyTable::default(), RecentMasks::default(), MaskedWords::default());
        let mask = FlowKey { in_port: u32::MAX, ip_ttl: 0xff, ..FlowKey::ZERO };
        let key = FlowKey { in_port: 1, ip_ttl: 64, ip_tos: 1, ..FlowKey::ZERO };
        assert!(recent.find(&ukeys, &key, 0, &mut words).is_none());
        install(&ukeys, &recent, &key, &mask, 1000);
        let other = FlowKey { ip_tos: 9, ..key };
        assert!(recent.find(&ukeys, &other, 1000, &mut words).is_some());
        assert!(recent.find(&ukeys, &FlowKey { ip_ttl: 63, ..key }, 1000, &mut words).is_none());
        assert!(recent.find(&ukeys, &other, 1001, &mut words).is_none(), "it came later: the datapath had looked");
        install(&ukeys, &recent, &FlowKey { in_port: 2, ..key }, &mask, 2000);
        assert!(recent.find(&ukeys, &other, 1500, &mut words).is_some());
    }

    #[test]
    fn only_so_many_masks_are_remembered() {
        let (ukeys, recent, mut words) = (UkeyTable::default(), RecentMasks::default(), MaskedWords::default());
        let key = FlowKey { in_port: 1, ..FlowKey::ZERO };
        for n in 0..100u32 {
            install(&ukeys, &recent, &key, &FlowKey { in_port: u32::MAX, skb_mark: n, ..FlowKey::ZERO }, u64::from(n));
        }
        assert_eq!(recent.masks.load().len(), MOST);
        assert!(recent.find(&ukeys, &key, 99, &mut words).is_some());
    }
}
