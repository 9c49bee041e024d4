//! The maps, and the working memory of a packet.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, DevMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use datapath_common::blanks::Direct as Map;
use datapath_common::extract::eth_type;
use datapath_common::key::{HOT_WORDS, KEY_WORDS, word};
use datapath_common::maps::{
    Control, Credit, DEFAULT_SLOTS, Group, Lane, MASK_LISTS as LISTS, MAX_GROUPS, MAX_HANDLERS, MAX_LANES, MAX_MASKS,
    MAX_NESTING, MAX_PORTS, PortEntry, RING_BYTES, XdpFrame,
};
use datapath_common::table::bucket_count;
use datapath_common::{Bucket, DigestSeeds, FlowKey, FlowStats, HotSlot, Layers, MaskEntry, MaskList, Slot};

use crate::blank::Direct;
use crate::lookup::{cache_hash, plain_hash};
use crate::stats;

/// `BPF_F_MMAPABLE`.
const MMAPABLE: usize = 1 << 10;

/// See [`Control`].
#[btf_map]
pub static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();
/// See [`DigestSeeds`].
#[btf_map]
pub static SEEDS: Array<DigestSeeds, 1> = Array::new();
/// Datapath ports.
// SAFETY: its elements are ports.
pub static PORTS: Direct<PortEntry, { Map::Ports as u32 }> = unsafe { Direct::new() };
/// What CPUs write of their own.
// SAFETY: its elements are lanes.
pub static LANE: Direct<Lane, { Map::Lane as u32 }> = unsafe { Direct::new() };
/// Two buffers of masks.
#[btf_map]
pub static MASKS: Array<MaskEntry, { MAX_MASKS * 2 }, MMAPABLE> = Array::new();
/// Two buffers of lists of masks.
#[btf_map]
pub static MASK_LISTS: Array<MaskList, { LISTS * 2 }, MMAPABLE> = Array::new();
/// How often a scan has found a flow, by lane, buffer and mask.
#[btf_map]
pub static MASK_USES: Array<u64, { MAX_LANES * 2 * MAX_MASKS }, MMAPABLE> = Array::new();
/// Flow slots.
#[btf_map]
pub static SLOTS: Array<Slot, DEFAULT_SLOTS, MMAPABLE> = Array::new();
/// What lookups read of them.
// SAFETY: its elements are of this type.
pub static HOT_SLOTS: Direct<HotSlot, { Map::HotSlots as u32 }> = unsafe { Direct::new() };
/// Statistics of flows, by lane and number.
#[btf_map]
pub static FLOW_STATS: Array<FlowStats, { DEFAULT_SLOTS * MAX_LANES }, MMAPABLE> = Array::new();
/// From digest to slot.
#[btf_map]
pub static FLOWS: Array<Bucket, { bucket_count(DEFAULT_SLOTS) }, MMAPABLE> = Array::new();
/// Rings of the handlers.
#[btf_map]
pub static RINGS: ArrayOfMaps<RingBuf<u8, RING_BYTES>, MAX_HANDLERS> = ArrayOfMaps::new();
/// Credits, by handler and port.
#[btf_map]
pub static CREDITS: Array<Credit, { MAX_HANDLERS * MAX_PORTS }, MMAPABLE> = Array::new();
/// Devices that take frames from the XDP hook.
#[btf_map]
pub static DEVICES: DevMap<MAX_PORTS> = DevMap::new();
/// Ports by group.
#[btf_map]
pub static GROUP_PORTS: Array<Group, MAX_GROUPS, MMAPABLE> = Array::new();
/// Devices by group.
#[btf_map]
pub static GROUPS: ArrayOfMaps<DevMap<1>, MAX_GROUPS> = ArrayOfMaps::new();
/// The frame that is in the XDP hook, where CPUs share lanes.
#[btf_map]
pub static XDP_PORT: PerCpuArray<XdpFrame, 1> = PerCpuArray::new();
/// Working memory of the XDP hook on each CPU: it never runs inside itself.
#[btf_map]
pub static XDP_SCRATCH: PerCpuArray<XdpCpu, 1> = PerCpuArray::new();
/// Working memory of each CPU.
#[btf_map]
pub static SCRATCH: PerCpuArray<Cpu, 1> = PerCpuArray::new();

/// The clock of each CPU, for the specialised programs.
#[btf_map]
pub static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();

/// The frame that is in the XDP hook on this CPU.
///
/// # Safety
/// `lane` points to the lane of this CPU.
#[inline(always)]
pub unsafe fn arrived(lane: *mut Lane) -> Option<*mut XdpFrame> {
    if stats::is_shared() {
        return XDP_PORT.get_ptr_mut(0);
    }
    // SAFETY: the caller's promise.
    Some(unsafe { &raw mut (*lane).frame })
}

/// Working memory of a CPU.
#[repr(C, align(8))]
pub struct Cpu {
    /// How many programs are running inside each other.
    pub nesting: u32,
    /// Unused, zero.
    pub reserved: u32,
    /// The clock.
    pub clock: Clock,
    /// Working memory by nesting level.
    pub levels: [Scratch; MAX_NESTING as usize],
}

/// The clock as of the last tick.
#[repr(C, align(8))]
pub struct Clock {
    /// Tick at which it was read last.
    pub ticks: u64,
    /// What it said.
    pub coarse_ns: u64,
}

/// Working memory of a CPU in the XDP hook.
#[repr(C, align(8))]
pub struct XdpCpu {
    /// The clock.
    pub clock: Clock,
    /// Working memory of the frame.
    pub s: Scratch,
    /// Statistics numbers of the flows that the frame has met.
    pub flows: [u32; 8],
    /// How many of them the cache knew, or their masks.
    pub cached: u32,
    /// Masks that were scanned for the others.
    pub scanned: u32,
}

/// Words of room for a key, so that an index of six bits stays inside.
pub const KEY_ROOM: usize = 64;

/// Working memory of a packet.
#[repr(C, align(8))]
pub struct Scratch {
    /// The key, and zeros behind it.
    pub words: [u64; KEY_ROOM],
    /// Where the headers are.
    pub layers: Layers,
    /// Datapath port of arrival.
    pub in_port: u32,
    /// Slot whose program runs.
    pub slot: u32,
    /// Next operation.
    pub pc: u32,
    /// Bytes that the next output may send; 0 = all.
    pub trunc: u32,
    /// The headers moved since the key was extracted.
    pub stale: u32,
    /// What the program returns in the end.
    pub verdict: u32,
    /// The packet is to be looked up again.
    pub again: u32,
    /// Lookups done.
    pub lookups: u32,
    /// Slot found, plus 1; 0 = none.
    pub found: u32,
    /// First mask of the published buffer.
    pub mask_base: u32,
    /// List of masks that is scanned.
    pub mask_list: u32,
    /// Where in the list the scan is.
    pub mask_at: u32,
    /// Masks that were scanned.
    pub scanned: u32,
    /// Looks at a slot that was given to another flow meanwhile.
    pub retries: u32,
    /// Masks in the published buffer.
    pub mask_count: u32,
    /// Index of the mask that matched, or is tried.
    pub mask_index: u32,
    /// Number of the flow's statistics.
    pub stats_id: u32,
    /// Lane of this CPU.
    pub lane: u32,
    /// Generation of the slot that was found.
    pub generation: u32,
    /// Words of the key behind the first eight may not be zero.
    pub cold_used: u32,
    /// What the specialised program serves that handed the packet over; 0: none did.
    pub serves: u32,
    /// Hash of the key for the cache of flows.
    pub hash: u64,
    /// By which way of its row one comes to a place that was never used; 0: by none.
    pub free_way: u32,
    /// Unused.
    pub reserved: u32,
}

impl Scratch {
    /// The key of a packet that has not been looked at: all but its metadata is zero.
    #[inline(always)]
    pub fn begin(&mut self, lane: u32, in_port: u32, priority: u32, mark: u32) {
        // Most packets write only the words in front: the others are cleared where the packet before has used them.
        if self.cold_used != 0 {
            // SAFETY: the words of a key.
            unsafe { crate::clear_words::<KEY_WORDS>(self.words.as_mut_ptr()) };
        }
        self.cold_used = 1;
        self.words[word::IN_PORT] = u64::from(in_port);
        // SAFETY: words of the key, and the words of the layers.
        unsafe {
            crate::clear_words::<3>((&raw mut self.words[word::VLAN]).cast());
            crate::clear_words::<2>((&raw mut self.layers).cast());
            // Where both are zero, a compiler would clear them by a loop over bytes.
            (&raw mut self.words[word::DP_HASH]).write_volatile(u64::from(priority) << 32);
            (&raw mut self.words[word::SKB_MARK]).write_volatile(u64::from(mark));
        }
        self.in_port = in_port;
        self.lookups = 0;
        self.lane = lane;
    }

    /// To be called when the key is filled.
    #[inline(always)]
    pub fn extracted(&mut self) {
        // Extraction writes the words behind only for what isn't IPv4 (actions may, and say so).
        if self.words[word::ETH_DST] >> 48 == u64::from(eth_type::IPV4.to_be()) {
            self.cold_used = 0;
        }
        self.hash = cache_hash(&self.words);
    }

    /// As [`Self::extracted`], of what is IPv4 and has no tag.
    #[inline(always)]
    pub fn extracted_plain(&mut self) {
        self.cold_used = 0;
        self.hash = plain_hash(&self.words);
    }

    /// The first words of the key.
    #[inline(always)]
    pub fn hot_words(&mut self) -> &mut [u64; HOT_WORDS] {
        // SAFETY: the first words of an array that has more.
        unsafe { &mut *self.words.as_mut_ptr().cast() }
    }

    /// The key.
    #[inline(always)]
    pub fn key(&mut self) -> &mut FlowKey {
        // SAFETY: the first words of an array that is larger than a key and aligned as one.
        unsafe { &mut *self.words.as_mut_ptr().cast() }
    }
}
