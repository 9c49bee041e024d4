//! What the module at hand can do, found out by trying.
//!
//! A flow that no packet can match (its recirculation id is one that nobody gives) is put with the action or key in question,
//! marked as a probe so that the kernel logs nothing, and deleted again.

use datapath_common::key::MAC_PROTO_ETHERNET;
use datapath_common::{Be16, Be32, FlowKey};
use dpif::{Action, CtAction, Features, FlowPut, HashAlg, PutMode, Result, Ufid};

use crate::flow;
use crate::kernel::{Kernel, Request};
use crate::uapi::{cmd, flow as attr};

/// A recirculation id that is not given to anybody.
const NOBODYS_RECIRC_ID: u32 = u32::MAX;
/// The probes' own.
const PROBE_UFID: Ufid = Ufid(0x5072_6f62_6550_726f_6265_5072_6f62_6501);
/// Deepest nest of samples that is tried.
const MAX_SAMPLE_NESTING: usize = 10;

/// What was found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probed {
    /// `ipv6_exthdrs` in keys (Linux 5.18).
    pub ipv6_exthdrs: bool,
    /// Packets truncated (4.8).
    pub trunc: bool,
    /// `clone` (4.11).
    pub clone: bool,
    /// `check_pkt_len` (5.2).
    pub check_pkt_len: bool,
    /// `ct`.
    pub ct: bool,
    /// `ct_clear` (4.15).
    pub ct_clear: bool,
    /// `dec_ttl` (5.6).
    pub dec_ttl: bool,
    /// `add_mpls` (5.17).
    pub add_mpls: bool,
    /// `drop` with a reason (6.7).
    pub explicit_drop: bool,
    /// `psample` (6.11).
    pub psample: bool,
    /// The symmetric hash (6.4).
    pub hash_sym_l4: bool,
    /// Samples within samples.
    pub sample_nesting: usize,
    /// Labels of a stack.
    pub max_mpls_depth: usize,
    /// Tags of a frame.
    pub max_vlan_headers: usize,
}

impl Probed {
    /// As the datapath interface asks for it.
    pub fn features(&self) -> Features {
        Features {
            max_vlan_headers: self.max_vlan_headers,
            max_mpls_depth: self.max_mpls_depth,
            recirc: true,
            trunc: self.trunc,
            clone: self.clone,
            sample_nesting: self.sample_nesting,
            check_pkt_len: self.check_pkt_len,
            explicit_drop: self.explicit_drop,
            ct: self.ct,
            required_handlers: None,
        }
    }
}

/// Tries everything.
pub(crate) fn probe(kernel: &Kernel, datapath: i32) -> Result<Probed> {
    let prober = Prober { kernel, datapath };
    let action = |action: Action| prober.accepts(&ipv4(), vec![action]);
    let sample = |depth: usize| {
        (0..depth).fold(Vec::new(), |actions, _| vec![Action::Sample { probability: u32::MAX, actions }])
    };
    let mut sample_nesting = 0;
    while sample_nesting < MAX_SAMPLE_NESTING && prober.accepts(&ipv4(), sample(sample_nesting + 1))? {
        sample_nesting += 1;
    }
    let mut max_mpls_depth = 0;
    while max_mpls_depth < 3 && prober.accepts(&mpls(max_mpls_depth + 1), Vec::new())? {
        max_mpls_depth += 1;
    }
    let mut max_vlan_headers = 0;
    while max_vlan_headers < 2 && prober.accepts(&vlan(max_vlan_headers + 1), Vec::new())? {
        max_vlan_headers += 1;
    }
    let (lse, eth_type) = (Be32::new(0x140), Be16::new(0x8847));
    Ok(Probed {
        ipv6_exthdrs: prober
            .accepts(&FlowKey { eth_type: Be16::new(0x86dd), ipv6_exthdrs: 1, ..ipv4() }, Vec::new())?,
        trunc: action(Action::Trunc(64))?,
        clone: action(Action::Clone(Vec::new()))?,
        check_pkt_len: action(Action::CheckPktLen { pkt_len: 64, if_greater: Vec::new(), if_less_equal: Vec::new() })?,
        ct: action(Action::Ct(CtAction::default()))?,
        ct_clear: action(Action::CtClear)?,
        dec_ttl: action(Action::DecTtl(Vec::new()))?,
        add_mpls: action(Action::AddMpls { lse, eth_type, flags: 1 })?,
        explicit_drop: action(Action::Drop(0))?,
        psample: action(Action::Psample { group: 1, cookie: Vec::new() })?,
        hash_sym_l4: action(Action::Hash { alg: HashAlg::SymL4, basis: 0 })?,
        sample_nesting,
        max_mpls_depth,
        max_vlan_headers,
    })
}

struct Prober<'a> {
    kernel: &'a Kernel,
    datapath: i32,
}

impl Prober<'_> {
    /// Whether the kernel takes a flow with this key, matched exactly where it says something, and these actions. Whatever it
    /// says against it, it is not something that can be used.
    fn accepts(&self, key: &FlowKey, actions: Vec<Action>) -> Result<bool> {
        let mut mask = FlowKey { recirc_id: u32::MAX, eth_type: Be16::MAX, ..FlowKey::ZERO };
        mask.words_mut().iter_mut().zip(key.words()).for_each(|(mask, key)| *mask |= key);
        let put = FlowPut { mode: PutMode::CreateOrModify, ufid: PROBE_UFID, key: *key, mask, actions: actions.into() };
        let family = self.kernel.families.flow;
        let attrs = |to: &mut crate::attr::Writer| {
            to.put_flag(attr::PROBE);
            flow::write(&put, 0, true, to)
        };
        let request = Request { family, cmd: cmd::NEW, flags: 0, attrs: &attrs };
        let accepted = self.kernel.request(self.datapath, &request, |_, _| {})?.is_ok();
        let attrs = |to: &mut crate::attr::Writer| {
            flow::put_ufid(PROBE_UFID, to);
            Ok(())
        };
        let delete = Request { family, cmd: cmd::DEL, flags: 0, attrs: &attrs };
        // One that was not taken is not there.
        let _ = self.kernel.request(self.datapath, &delete, |_, _| {})?;
        Ok(accepted)
    }
}

fn ipv4() -> FlowKey {
    FlowKey {
        recirc_id: NOBODYS_RECIRC_ID,
        mac_proto: MAC_PROTO_ETHERNET,
        eth_type: Be16::new(0x0800),
        ip_proto: 255,
        ..FlowKey::ZERO
    }
}

fn mpls(labels: usize) -> FlowKey {
    let mut key = FlowKey { recirc_id: NOBODYS_RECIRC_ID, eth_type: Be16::new(0x8847), ..FlowKey::ZERO };
    for (i, lse) in key.mpls_lse.iter_mut().take(labels).enumerate() {
        *lse = Be32::new(if i + 1 == labels { 0x1140 } else { 0x1040 });
    }
    key.mpls_labels = (1 << labels) - 1;
    key
}

fn vlan(tags: usize) -> FlowKey {
    let tag = |there| {
        if there {
            datapath_common::Vlan { tpid: Be16::new(0x8100), tci: Be16::new(0x1001) }
        } else {
            Default::default()
        }
    };
    FlowKey { vlan: tag(tags >= 1), cvlan: tag(tags >= 2), ..ipv4() }
}
