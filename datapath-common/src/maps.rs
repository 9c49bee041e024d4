//! Map names, sizes, and the values of the small maps.

use crate::op::DROP_REASONS;

/// Version of everything in this crate that both sides read. It names the folder of the pins, so that a daemon never adopts a
/// datapath whose memory it would misread. A test fails when a shared type changes and this does not.
pub const LAYOUT_VERSION: u32 = 11;

/// Datapath ports, 0 included.
pub const MAX_PORTS: usize = 4096;
/// Masks in the list.
pub const MAX_MASKS: usize = 256;
/// Groups of ports that the XDP hook floods frames to.
pub const MAX_GROUPS: usize = 64;
/// Ports of a group.
pub const MAX_GROUP_PORTS: usize = 32;
/// Lists of masks of a buffer: one for each port, and [`ANY_PORT`].
pub const MASK_LISTS: usize = MAX_PORTS + 1;
/// The list of the masks that have flows of no port in particular.
pub const ANY_PORT: u32 = MAX_PORTS as u32;
/// Slots of a datapath unless the operator says otherwise.
pub const DEFAULT_SLOTS: usize = 65536;
/// The first slots belong to packet execution, one for each queue of the execute device.
pub const EXECUTE_SLOTS: usize = 64;
/// Handlers, and so rings.
pub const MAX_HANDLERS: usize = 16;
/// Lanes of statistics.
pub const MAX_LANES: usize = 16;
/// Bytes of a handler's ring; a power of two and a multiple of the page size.
pub const RING_BYTES: usize = 4 << 20;
/// Records that one port may have outstanding in one ring.
pub const PORT_CREDIT: u64 = 1024;
/// Bytes that one port may have outstanding in one ring: a quarter, so that one port's storm leaves room for the others.
pub const PORT_CREDIT_BYTES: u64 = (RING_BYTES / 4) as u64;
/// How often a packet may be looked up (`OVS_RECURSION_LIMIT` allows as many recirculations).
pub const MAX_LOOKUPS: u32 = 6;
/// How deep the program may run inside itself on one CPU.
pub const MAX_NESTING: u32 = 6;
/// Places of a lane's flow cache, eight bytes each: 1 MiB, at most 17 MiB for all lanes. What is not used is not touched, so
/// few flows take few cache lines of the CPU.
pub const FLOW_CACHE_PLACES: usize = 131_072;
/// Places of one cache line, any of which a packet's flow may be in.
pub const FLOW_CACHE_WAYS: usize = 8;

/// Names of the maps, as in the object file and in the pin folder.
pub mod name {
    /// [`super::Control`], memory-mapped, one entry.
    pub const CONTROL: &str = "CONTROL";
    /// [`crate::DigestSeeds`], one entry.
    pub const SEEDS: &str = "SEEDS";
    /// [`super::PortEntry`] by datapath port, memory-mapped, all in one value.
    pub const PORTS: &str = "PORTS";
    /// [`super::Lane`] by number, memory-mapped, all in one value. The last lane is userspace's.
    pub const LANE: &str = "LANE";
    /// [`crate::MaskEntry`] by `buffer * MAX_MASKS + index`, memory-mapped.
    pub const MASKS: &str = "MASKS";
    /// [`crate::MaskList`] by `buffer * MASK_LISTS + list`, memory-mapped.
    pub const MASK_LISTS: &str = "MASK_LISTS";
    /// How often a scan has found a flow under a mask: a 64-bit word by `(lane * 2 + buffer) * MAX_MASKS + index`, memory-mapped.
    pub const MASK_USES: &str = "MASK_USES";
    /// [`crate::Slot`] by slot number, memory-mapped.
    pub const SLOTS: &str = "SLOTS";
    /// [`crate::HotSlot`] by slot number, memory-mapped, all in one value.
    pub const HOT_SLOTS: &str = "HOT_SLOTS";
    /// [`crate::FlowStats`] by `lane * slots + stats_id`, memory-mapped.
    pub const FLOW_STATS: &str = "FLOW_STATS";
    /// [`crate::Bucket`] by number, memory-mapped.
    pub const FLOWS: &str = "FLOWS";
    /// Ring buffer by handler.
    pub const RINGS: &str = "RINGS";
    /// [`super::Credit`] by `handler * MAX_PORTS + port`, memory-mapped.
    pub const CREDITS: &str = "CREDITS";
    /// Working memory of a CPU by nesting level.
    pub const SCRATCH: &str = "SCRATCH";
    /// Program slots that the port entries tail-call.
    pub const PROGRAMS: &str = "PROGRAMS";
    /// Devices that take frames from the XDP hook, by datapath port.
    pub const DEVICES: &str = "DEVICES";
    /// [`super::Group`] by number, memory-mapped.
    pub const GROUP_PORTS: &str = "GROUP_PORTS";
    /// Device map by group.
    pub const GROUPS: &str = "GROUPS";
    /// [`super::XdpFrame`] by CPU: what the port entry tells the datapath's program, where CPUs share lanes.
    pub const XDP_PORT: &str = "XDP_PORT";
    /// Program slots that the port entries of the XDP hook tail-call.
    pub const XDP_PROGRAMS: &str = "XDP_PROGRAMS";
    /// [`super::PortRecord`] by datapath port, memory-mapped. The programs don't know it.
    pub const PORT_RECORDS: &str = "PORT_RECORDS";
}

/// Index into `PROGRAMS` of the TC datapath.
pub const PROGRAM_TC: u32 = 0;
/// Index into `PROGRAMS` of packet execution.
pub const PROGRAM_EXECUTE: u32 = 1;
/// Index into `PROGRAMS` of the general TC program, which a specialised one hands packets over to.
pub const PROGRAM_TC_GENERAL: u32 = 2;

/// Index into `XDP_PROGRAMS` of the XDP datapath.
pub const PROGRAM_XDP: u32 = 0;
/// Index into `XDP_PROGRAMS` of the general XDP program.
pub const PROGRAM_XDP_GENERAL: u32 = 1;

/// Bytes of an Ethernet header without a tag.
const ETHERNET_HEADER: u32 = 14;

/// `PortEntry::flags`: the device sends frames that the XDP hook redirects to it.
pub const PORT_TAKES_XDP: u32 = 1;

/// What userspace tells the programs while they run.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// [`LAYOUT_VERSION`] of the daemon that made the maps.
    pub layout: u32,
    /// Lanes of statistics.
    pub lanes: u32,
    /// `buffer << 32 | count` of the published list of masks: read and replaced whole.
    pub masks: u64,
    /// Handlers that read their rings; 0 while no daemon does.
    pub n_handlers: u32,
    /// Slots of the datapath.
    pub n_slots: u32,
    /// [`PORT_CREDIT`] in force.
    pub credit: u64,
    /// [`PORT_CREDIT_BYTES`] in force.
    pub credit_bytes: u64,
    /// Datapath name, for whoever finds the pins; zero-padded.
    pub name: [u8; 16],
}

/// A datapath port.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortEntry {
    /// Device to send to; 0 = no such port.
    pub ifindex: u32,
    /// The device's MTU: bytes behind the Ethernet header (and its outer VLAN tag).
    pub mtu: u32,
    /// [`PORT_TAKES_XDP`].
    pub flags: u32,
    /// The longest frame, in bytes, that the XDP hook may redirect to the device; 0 = none. It says once more what the others say.
    pub xdp_len: u32,
}

impl PortEntry {
    /// The entry of a device that is there.
    pub fn new(ifindex: u32, mtu: u32, flags: u32) -> Self {
        let takes_xdp = ifindex != 0 && flags & PORT_TAKES_XDP != 0;
        Self { ifindex, mtu, flags, xdp_len: if takes_xdp { mtu.saturating_add(ETHERNET_HEADER) } else { 0 } }
    }
}

/// Ports that get the same frame.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// How many ports there are; 0: the group can't be used. It is read and replaced together with `mtu`.
    pub count: u32,
    /// The smallest of their MTUs ([`PortEntry::mtu`]).
    pub mtu: u32,
    /// The ports, ascending; behind them zeros.
    pub ports: [u16; MAX_GROUP_PORTS],
}

/// The frame that is in the XDP hook, for the programs that call each other there.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFrame {
    /// Datapath port of arrival.
    pub port: u32,
    /// What the specialised program serves that handed the frame over; 0: none did.
    pub serves: u32,
}

/// What userspace remembers of a port across its own life. It is written before the device is touched and cleared after the
/// device has its settings back, so that whoever finds it knows what to finish or to undo.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRecord {
    /// [`PortState`] as a number.
    pub state: u32,
    /// 0: a system device; 1: internal, a veth pair made for the port.
    pub kind: u32,
    /// Cookie of the network namespace that the devices lie in (`SO_NETNS_COOKIE`), never reused.
    pub netns: u64,
    /// The device whose frames the datapath takes; of an internal port the datapath's end.
    pub ifindex: u32,
    /// The device that the operator sees: of an internal port the host's end, else `ifindex`.
    pub host_ifindex: u32,
    /// What the port changed about the device, to be undone: `SAVED_*`.
    pub saved: u32,
    /// How the program is attached: 1 by a TCX link, 2 by a clsact filter.
    pub attach: u16,
    /// What attached the program of the XDP hook: 0 nothing, 1 the driver, 2 the generic hook.
    pub xdp: u16,
    /// Name of the device that the operator sees, zero-padded.
    pub name: [u8; 16],
    /// Name of an internal port's other end, zero-padded.
    pub peer: [u8; 16],
}

/// How far a port has come.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// No port.
    Free = 0,
    /// Being added: to be undone.
    Adding = 1,
    /// A port.
    Ready = 2,
    /// Being removed, or detached since its device is gone: to be finished.
    Removing = 3,
}

/// `PortRecord::saved`: the port set the device promiscuous.
pub const SAVED_PROMISC: u32 = 1;
/// `PortRecord::saved`: the port switched large receive offload off.
pub const SAVED_LRO: u32 = 2;
/// `PortRecord::saved`: the port switched receive VLAN offload off.
pub const SAVED_RXVLAN: u32 = 8;
/// `PortRecord::saved`: the port gave the device its clsact qdisc.
pub const SAVED_CLSACT: u32 = 4;

/// Statistics of a datapath port: in one lane, or the sum over them.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Packets that came in.
    pub rx_packets: u64,
    /// Bytes that came in.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that came in and could not be parsed.
    pub rx_dropped: u64,
    /// Packets that could not be sent.
    pub tx_dropped: u64,
    /// Packets whose upcall was lost.
    pub upcall_lost: u64,
    /// Packets sent up.
    pub upcalls: u64,
}

/// Statistics of a datapath, in one lane.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DpStats {
    /// Lookups that found a flow, but for those that the cache answered.
    pub hit: u64,
    /// Lookups that found none.
    pub missed: u64,
    /// Misses and userspace actions whose upcall was lost.
    pub lost: u64,
    /// Masks looked at, but for those that the cache named.
    pub mask_hit: u64,
    /// Lookups that the cache answered: a flow found under the one mask that was looked at.
    pub cache_hit: u64,
    /// Likewise, by a specialised program; they are not among those.
    pub special_hit: u64,
    /// Lookups repeated because a slot was given to another flow meanwhile.
    pub retried: u64,
    /// Lookups of packets that recirculate.
    pub recirculated: u64,
    /// Misses whose upcall was queued.
    pub queued_misses: u64,
    /// Userspace actions whose upcall was queued.
    pub queued_actions: u64,
    /// Userspace actions whose upcall was lost; they are among `lost`.
    pub lost_actions: u64,
    /// Packets dropped, by [`crate::op::DropReason`].
    pub dropped: [u64; DROP_REASONS],
}

/// What a CPU writes of its own while packets pass, in one piece of memory: a program finds it once for each packet. CPUs beyond
/// [`MAX_LANES`] share lanes.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Lane {
    /// Statistics of the datapath.
    pub stats: DpStats,
    /// The frame that is in the XDP hook, unless CPUs share lanes.
    pub frame: XdpFrame,
    /// Unused, zero: what follows begins with a cache line.
    pub reserved: [u64; 4],
    /// The flows found last, by packet hash.
    pub cache: [u64; FLOW_CACHE_PLACES],
    /// Statistics of the ports.
    pub ports: [PortStats; MAX_PORTS],
}

/// Credit of a port in a ring. The datapath counts what it produces, the handler what it has consumed.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Records written.
    pub produced: u64,
    /// Record bytes written.
    pub produced_bytes: u64,
    /// Records read and released.
    pub consumed: u64,
    /// Record bytes read and released.
    pub consumed_bytes: u64,
    /// Records that were not written for want of credit or room.
    pub lost: u64,
}

#[cfg(feature = "user")]
mod pod {
    use super::{Control, Credit, DpStats, Group, Lane, PortEntry, PortRecord, PortStats};
    use crate::{Bucket, Digest, DigestSeeds, FlowStats, HotSlot, MaskEntry, MaskList, Slot, SlotRef};

    macro_rules! pod {
        ($($t:ty),*) => { $(
            // SAFETY: `repr(C)`, without padding (guarded by the layout test), valid for every bit pattern.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(
        Bucket,
        Control,
        Credit,
        DpStats,
        Group,
        Lane,
        PortEntry,
        PortRecord,
        PortStats,
        Digest,
        DigestSeeds,
        FlowStats,
        HotSlot,
        MaskEntry,
        MaskList,
        Slot,
        SlotRef
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::*;
    use core::mem::{offset_of, size_of};

    /// Sizes and offsets of what both sides read. When this fails because you changed a type: raise [`LAYOUT_VERSION`] and
    /// write the new numbers here.
    #[test]
    fn layout_is_the_one_of_the_version() {
        let layout = [
            size_of::<FlowKey>(),
            offset_of!(FlowKey, eth_type),
            offset_of!(FlowKey, tcp_flags),
            offset_of!(FlowKey, ip_frag),
            offset_of!(FlowKey, ct_label),
            offset_of!(FlowKey, mpls_lse),
            offset_of!(FlowKey, nsh_context),
            offset_of!(FlowKey, tun_id),
            offset_of!(FlowKey, tun_opts_len),
            size_of::<MaskEntry>(),
            size_of::<MaskList>(),
            offset_of!(MaskList, index),
            size_of::<Digest>(),
            size_of::<DigestSeeds>(),
            size_of::<Op>(),
            size_of::<Slot>(),
            offset_of!(Slot, key),
            offset_of!(Slot, rewrite),
            offset_of!(Slot, group),
            offset_of!(Slot, ops),
            size_of::<HotSlot>(),
            offset_of!(HotSlot, key),
            size_of::<SlotRef>(),
            size_of::<Bucket>(),
            size_of::<FlowStats>(),
            size_of::<UpcallHeader>(),
            offset_of!(UpcallHeader, key),
            size_of::<Control>(),
            offset_of!(Control, masks),
            size_of::<PortEntry>(),
            size_of::<Group>(),
            size_of::<PortRecord>(),
            size_of::<PortStats>(),
            size_of::<DpStats>(),
            offset_of!(Lane, frame),
            offset_of!(Lane, cache),
            offset_of!(Lane, ports),
            size_of::<Lane>(),
            size_of::<Credit>(),
            MAX_PORTS,
            MAX_MASKS,
            MASK_LISTS,
            MAX_GROUPS,
            EXECUTE_SLOTS,
            FLOW_CACHE_PLACES,
            MAX_HANDLERS,
            OpKind::Psample as usize,
        ];
        assert_eq!(LAYOUT_VERSION, 11);
        assert_eq!(
            layout,
            [
                304, 14, 22, 35, 72, 168, 192, 240, 301, 344, 264, 8, 24, 624, 24, 1280, 64, 408, 476, 480, 128, 64, 8,
                64, 32, 488, 56, 56, 8, 16, 72, 64, 64, 216, 216, 256, 1_048_832, 1_310_976, 40, 4096, 256, 4097, 64,
                64, 131_072, 16, 27
            ]
        );
    }
}
