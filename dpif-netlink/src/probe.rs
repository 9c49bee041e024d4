//! What the module at hand can do, found out by trying.
//!
//! A flow that no packet can match is put with the action or key in question, marked as a probe so that the kernel logs nothing,
//! and deleted again.

use datapath_common::FlowKey;
use dpif::{Action, Features, FlowPut, PutMode, Result, Ufid};

use crate::attr::Writer;
use crate::flow;
use crate::kernel::{Kernel, Request};
use crate::uapi::{cmd, flow as attr};

/// The probes' own.
const PROBE_UFID: Ufid = Ufid(0x5072_6f62_6550_726f_6265_5072_6f62_6501);

/// Tries everything.
pub(crate) fn probe(kernel: &Kernel, datapath: i32) -> Result<Features> {
    Features::probe(|key, mask, actions| accepts(kernel, datapath, key, mask, actions))
}

/// Whether the kernel takes a flow. Whatever it says against one, it is not something that can be used.
fn accepts(kernel: &Kernel, datapath: i32, key: &FlowKey, mask: &FlowKey, actions: &[Action]) -> Result<bool> {
    let (mode, ufid) = (PutMode::CreateOrModify, PROBE_UFID);
    let put = FlowPut { mode, ufid, key: *key, mask: *mask, actions: actions.into() };
    let family = kernel.families.flow;
    let attrs = |to: &mut Writer| {
        to.put_flag(attr::PROBE);
        flow::write(&put, 0, true, to)
    };
    let request = Request { family, cmd: cmd::NEW, flags: 0, attrs: &attrs };
    // What can't even be said is refused before it is sent.
    let accepted = kernel.request(datapath, &request, |_, _| {}).is_ok_and(|how| how.is_ok());
    let attrs = |to: &mut Writer| {
        flow::put_ufid(PROBE_UFID, to);
        Ok(())
    };
    let delete = Request { family, cmd: cmd::DEL, flags: 0, attrs: &attrs };
    // One that was not taken is not there.
    let _ = kernel.request(datapath, &delete, |_, _| {})?;
    Ok(accepted)
}
