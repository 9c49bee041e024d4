//! The packet as the XDP hook shows it: a frame in one piece, its bytes in place.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::bpf_xdp_load_bytes;
use datapath_common::Be16;
use datapath_common::key::Vlan;
use datapath_common::packet::PacketRead;

use crate::loads::{loads, read_by_load};

/// A frame in an XDP program.
#[derive(Clone, Copy)]
pub struct Xdp(pub *mut xdp_md);

loads!(Xdp, xdp_md, bpf_xdp_load_bytes);

impl PacketRead for Xdp {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).data_end.wrapping_sub((*self.0).data) }
    }
    /// None: where a device takes tags off frames, the port has told it not to.
    #[inline(always)]
    fn accelerated_vlan(&self) -> Vlan {
        Vlan { tpid: Be16::ZERO, tci: Be16::ZERO }
    }
    read_by_load!(or_zero);
}
