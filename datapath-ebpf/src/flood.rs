//! Flooding in the XDP hook: one frame to all ports of a group but the one that it came in by.

use aya_ebpf::bindings::{BPF_F_BROADCAST, BPF_F_EXCLUDE_INGRESS, xdp_action};
use aya_ebpf::helpers::bpf_redirect_map;
use datapath_common::maps::{Group, MAX_GROUP_PORTS};

use crate::maps::{GROUP_PORTS, GROUPS, Scratch};
use crate::stats;

/// Whether a frame will be sent to all ports of a group but the one of its device if the program returns `XDP_REDIRECT`. `group` is as
/// in a slot.
#[inline(always)]
pub fn is_flooded(group: u32, len: u32) -> bool {
    let number = group.wrapping_sub(1);
    let Some(ports) = ports(number) else { return false };
    // SAFETY: the map's element; a word that is read whole.
    let word = unsafe { core::ptr::read_volatile(ports.cast::<u64>()) };
    let (count, mtu) = (word as u32, (word >> 32) as u32);
    if count == 0 || len > mtu.saturating_add(14) {
        return false;
    }
    let Some(devices) = GROUPS.get(number) else { return false };
    let how = u64::from(BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
    // SAFETY: a helper call on a map.
    let verdict = unsafe { bpf_redirect_map(core::ptr::from_ref(devices).cast_mut().cast(), 0, how) };
    verdict as u32 == xdp_action::XDP_REDIRECT
}

/// Counts a frame for the ports that it is sent to.
#[inline(always)]
pub fn count(s: &Scratch, group: u32, len: u32) {
    let Some(ports) = ports(group.wrapping_sub(1)) else { return };
    let mut i = 0;
    while i < MAX_GROUP_PORTS {
        // SAFETY: the map's element. What the ports are doesn't change as long as a program may know the group.
        let port = unsafe { core::ptr::read_volatile((&raw const (*ports).ports).cast::<u16>().add(i)) };
        // They ascend, and behind the last there are zeros.
        if port == 0 && i != 0 {
            return;
        }
        if u32::from(port) != s.in_port
            && let Some(stats) = stats::port(s, port.into())
        {
            // SAFETY: the map's element.
            unsafe {
                stats::add(&raw mut (*stats).tx_packets, 1);
                stats::add(&raw mut (*stats).tx_bytes, len.into());
            }
        }
        i += 1;
    }
}

#[inline(always)]
fn ports(number: u32) -> Option<*const Group> {
    GROUP_PORTS.get_ptr(number)
}
