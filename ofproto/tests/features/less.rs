//! A datapath that can do less than the one behind it: it says so, its keys lack what it doesn't see, and it refuses what it
//! doesn't have.

use dpif::inproc::InprocDatapath;
use dpif::layer::{Layer, one_by_one};
use dpif::{Action, Dpif, DpifError, DpifOp, Execute, Features, FlowKey, FlowPut, KeyAttr, Result, UpcallBatch, Vlan};
use parking_lot::Mutex;

pub(crate) struct Less {
    inner: InprocDatapath,
    features: Features,
    /// What it was asked for that it can't do.
    pub(crate) refused: Mutex<Vec<String>>,
}

impl Less {
    pub(crate) fn new(inner: InprocDatapath, features: Features) -> Self {
        Self { inner, features, refused: Mutex::default() }
    }

    /// The key as this datapath sees it.
    fn see(&self, key: &mut FlowKey) {
        if self.features.max_vlan_headers < 2 && key.cvlan != Vlan::default() {
            (key.eth_type, key.cvlan) = (key.cvlan.tpid, Vlan::default());
            forget_behind(key);
        }
        if !self.features.ipv6_exthdrs {
            key.ipv6_exthdrs = 0;
        }
        for (n, lse) in key.mpls_lse.iter_mut().enumerate().skip(self.features.max_mpls_depth) {
            *lse = Default::default();
            key.mpls_labels &= !(1 << n);
        }
    }

    fn check(&self, mask: &FlowKey, actions: &[Action]) -> Result<()> {
        let Features { trunc, recirc, masked_set, set_arp, set_icmp, sample_nesting, max_vlan_headers, .. } =
            self.features;
        let bad = |action: &Action| match action {
            Action::Trunc(_) => !trunc,
            Action::Recirc(_) => !recirc,
            Action::Sample { .. } => sample_nesting == 0,
            Action::Set(set) => match set.attr {
                KeyAttr::Arp if !set_arp => true,
                KeyAttr::Icmp | KeyAttr::Icmpv6 if !set_icmp => true,
                _ => {
                    !masked_set
                        && set.mask.words().iter().any(|word| !word.to_ne_bytes().iter().all(|b| matches!(b, 0 | 255)))
                }
            },
            _ => false,
        };
        let unseen = max_vlan_headers < 2 && mask.cvlan != Vlan::default()
            || !self.features.ipv6_exthdrs && mask.ipv6_exthdrs != 0
            || mask.mpls_lse.iter().skip(self.features.max_mpls_depth).any(|lse| !lse.is_zero());
        if unseen || actions.iter().any(bad) {
            self.refused.lock().push(format!("{} of {actions:?}", if unseen { "the mask" } else { "the actions" }));
            return Err(DpifError::Invalid("it can't do that".into()));
        }
        Ok(())
    }
}

fn forget_behind(key: &mut FlowKey) {
    let FlowKey { in_port, recirc_id, eth_dst, eth_src, eth_type, vlan, .. } = *key;
    *key = FlowKey { in_port, recirc_id, eth_dst, eth_src, eth_type, vlan, ..FlowKey::ZERO };
}

impl Layer for Less {
    fn below(&self) -> &dyn Dpif {
        &self.inner
    }

    fn features(&self) -> Features {
        self.features.clone()
    }

    fn operate(&self, ops: &mut [DpifOp<'_>]) {
        one_by_one(self, ops);
    }

    fn flow_put(&self, put: &FlowPut) -> Result<()> {
        self.check(&put.mask, &put.actions)?;
        self.inner.flow_put(put)
    }

    fn execute(&self, execute: Execute<'_>) -> Result<()> {
        self.check(&FlowKey::ZERO, execute.actions)?;
        self.inner.execute(execute)
    }

    fn recv(&self, handler: u32, batch: &mut UpcallBatch) -> Result<usize> {
        let received = self.inner.recv(handler, batch)?;
        batch.upcalls_mut().iter_mut().for_each(|upcall| self.see(&mut upcall.key));
        Ok(received)
    }
}
