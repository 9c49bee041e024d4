//! The maps of a datapath, made or adopted, with its programs loaded against them.
//!
//! All maps are pinned as they are made. Last of all the control block gets its layout number; a datapath without it is
//! incomplete and is made anew. Adoption checks every map's shape, then loads this build's programs against the maps that
//! are there and puts them into the program array: one write, and every port runs them.

use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::{Map, MapData, RingBuf};
use aya::{Ebpf, Pod};
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_RINGBUF};
use datapath_common::blanks;
use datapath_common::maps::{
    Control, Credit, EXECUTE_SLOTS, LAYOUT_VERSION, Lane, MASK_LISTS, MAX_GROUPS, MAX_HANDLERS, MAX_LANES, MAX_MASKS,
    MAX_PORTS, PORT_CREDIT, PORT_CREDIT_BYTES, PortEntry, PortRecord, PortStats, RING_BYTES, name,
};
use datapath_common::op::DropReason;
use datapath_common::table::bucket_count;
use datapath_common::{DigestSeeds, FlowStats, HotSlot, MaskEntry, MaskList, Slot};
use dpif::{DpifError, Result};

use crate::groups::Groups;
use crate::kernel::{io_error, map_error};
use crate::lanes::Lanes;
use crate::mmap::Mapping;
use crate::options::Options;
use crate::pins::Pins;
use crate::programs::{InKernel, Loader, possible_cpus};
use crate::special::Found;
use crate::sys::bpf;
use crate::table::LookupTable;

/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

/// Maps that are pinned. The working memory of the CPUs is not: it is the programs' own.
pub(crate) const PINNED: [&str; 17] = [
    name::CONTROL,
    name::SEEDS,
    name::PORTS,
    name::LANE,
    name::MASKS,
    name::MASK_LISTS,
    name::MASK_USES,
    name::SLOTS,
    name::HOT_SLOTS,
    name::FLOW_STATS,
    name::FLOWS,
    name::RINGS,
    name::CREDITS,
    name::DEVICES,
    name::GROUP_PORTS,
    name::GROUPS,
    name::PORT_RECORDS,
];
/// Those whose elements are all in one value, in the order of [`blanks::Direct`].
pub(crate) const DIRECT_NAMES: [&str; blanks::DIRECT] = [name::LANE, name::HOT_SLOTS, name::PORTS];
/// Those that the datapath's object doesn't define.
pub(crate) const NOT_IN_OBJECT: [&str; 4] = [name::LANE, name::HOT_SLOTS, name::PORTS, name::PORT_RECORDS];
/// Maps that the port entries' object defines too.
pub(crate) const ENTRIES: [&str; 3] = [name::PROGRAMS, name::XDP_PROGRAMS, name::XDP_PORT];

/// The maps of a datapath.
pub(crate) struct Maps {
    /// One entry.
    pub(crate) control: Mapping<Control>,
    /// By slot.
    pub(crate) slots: Mapping<Slot>,
    /// What lookups read of them.
    pub(crate) hot_slots: Mapping<HotSlot>,
    /// Two buffers.
    pub(crate) masks: Mapping<MaskEntry>,
    /// Two buffers.
    pub(crate) mask_lists: Mapping<MaskList>,
    /// By lane, buffer and mask.
    pub(crate) mask_uses: Mapping<u64>,
    /// By lane and statistics number.
    pub(crate) flow_stats: Mapping<FlowStats>,
    /// What CPUs count; the last lane is userspace's.
    pub(crate) counters: Lanes,
    /// By handler and port.
    pub(crate) credits: Mapping<Credit>,
    /// By port.
    pub(crate) records: Mapping<PortRecord>,
    /// The secret of the digests.
    pub(crate) seeds: DigestSeeds,
    /// From digest to slot.
    pub(crate) flows: LookupTable,
    /// Of ports that get the same frame.
    pub(crate) groups: Groups,
    ports: Mapping<PortEntry>,
    /// What `ports` says, by port: the device's index in the upper half, its MTU in the lower one.
    devices: Box<[AtomicU64]>,
    redirects: OwnedFd,
    rings: OwnedFd,
    /// Why the program of the XDP hook is not there, if it isn't.
    pub(crate) no_xdp: Option<String>,
    /// Slots of the datapath.
    pub(crate) n_slots: usize,
    /// Lanes of statistics.
    pub(crate) lanes: usize,
    /// Whether the datapath was there already.
    pub(crate) adopted: bool,
}

impl Maps {
    /// Makes the maps of the datapath, or adopts those that were found, and loads the programs. Returns the loaded object too:
    /// it holds what the programs' logging needs.
    pub(crate) fn open(pins: &Arc<Pins>, options: &Options, found: Option<Shape>) -> Result<(Self, InKernel, Ebpf)> {
        let shape = match found {
            Some(shape) => shape,
            None => {
                pins.clear()?;
                let shape = Shape::new(options)?;
                create::<PortRecord>(pins, name::PORT_RECORDS, MAX_PORTS, 1)?;
                let [lanes, hot_slots, ports] = shape.direct();
                create::<Lane>(pins, name::LANE, 1, lanes)?;
                create::<HotSlot>(pins, name::HOT_SLOTS, 1, hot_slots)?;
                create::<PortEntry>(pins, name::PORTS, 1, ports)?;
                shape
            }
        };
        let loader = Loader::new(pins, options, &shape)?;
        let mut object = loader.object(0)?;
        if !shape.adopted {
            fill_seeds(pins)?;
        }
        let mut maps = Self::map(pins, &shape)?;
        maps.no_xdp = loader.install_general(&mut object)?;
        let programs = InKernel::new(loader, &mut object, maps.no_xdp.is_none())?;
        if !shape.adopted {
            maps.complete(pins.name());
        }
        Ok((maps, programs, object))
    }

    fn map(pins: &Pins, shape: &Shape) -> Result<Self> {
        let [lanes, hot_slots, ports] = shape.direct();
        let seeds = pins.get(name::SEEDS)?;
        let seeds = bpf::map_lookup(seeds.as_fd(), &0u32)
            .map_err(|error| io_error(format!("can't read {}", name::SEEDS), error))?
            .ok_or_else(|| DpifError::Kernel(format!("map {} is empty", name::SEEDS)))?;
        Ok(Self {
            control: mapping(pins, name::CONTROL, 1)?,
            slots: mapping(pins, name::SLOTS, shape.n_slots)?,
            hot_slots: direct(pins, name::HOT_SLOTS, hot_slots)?,
            masks: mapping(pins, name::MASKS, MAX_MASKS * 2)?,
            mask_lists: mapping(pins, name::MASK_LISTS, MASK_LISTS * 2)?,
            mask_uses: mapping(pins, name::MASK_USES, shape.lanes * 2 * MAX_MASKS)?,
            flow_stats: mapping(pins, name::FLOW_STATS, shape.n_slots * shape.lanes)?,
            counters: Lanes::new(direct(pins, name::LANE, lanes)?, shape.lanes),
            credits: mapping(pins, name::CREDITS, MAX_PORTS * MAX_HANDLERS)?,
            records: mapping(pins, name::PORT_RECORDS, MAX_PORTS)?,
            seeds,
            flows: LookupTable::new(mapping(pins, name::FLOWS, bucket_count(shape.n_slots))?),
            groups: Groups::new(mapping(pins, name::GROUP_PORTS, MAX_GROUPS)?, pins.get(name::GROUPS)?),
            ports: direct(pins, name::PORTS, ports)?,
            devices: (0..MAX_PORTS).map(|_| AtomicU64::new(0)).collect(),
            redirects: pins.get(name::DEVICES)?,
            no_xdp: None,
            rings: pins.get(name::RINGS)?,
            n_slots: shape.n_slots,
            lanes: shape.lanes,
            adopted: shape.adopted,
        })
    }

    /// Writes the control block; its layout number, last, says that the datapath is complete.
    fn complete(&self, datapath: &str) {
        let mut control = Control {
            layout: 0,
            lanes: self.lanes as u32,
            masks: 0,
            n_handlers: 0,
            n_slots: self.n_slots as u32,
            credit: PORT_CREDIT,
            credit_bytes: PORT_CREDIT_BYTES,
            name: [0; 16],
        };
        for (to, from) in control.name.iter_mut().zip(datapath.bytes()) {
            *to = from;
        }
        self.control.write(0, &control);
        self.layout().store(LAYOUT_VERSION, Ordering::Release);
    }

    /// Declares the datapath incomplete, before its pins are removed one by one.
    pub(crate) fn invalidate(&self) {
        self.layout().store(0, Ordering::SeqCst);
    }

    fn layout(&self) -> &AtomicU32 {
        self.control_u32(offset_of!(Control, layout))
    }

    /// Number of handlers that read their rings.
    pub(crate) fn n_handlers(&self) -> &AtomicU32 {
        self.control_u32(offset_of!(Control, n_handlers))
    }

    /// `buffer << 32 | count` of the published masks.
    pub(crate) fn published_masks(&self) -> &AtomicU64 {
        const { assert!(offset_of!(Control, masks) % 8 == 0) };
        // The control block has this word: `control` maps one whole entry.
        self.control
            .word(0, offset_of!(Control, masks) / 8)
            .unwrap_or_else(|| unreachable!("the control block is mapped"))
    }

    fn control_u32(&self, offset: usize) -> &AtomicU32 {
        self.control.half_word(0, offset / 4).unwrap_or_else(|| unreachable!("the control block is mapped"))
    }

    /// Sets the device of a port; an empty entry says that there is none.
    pub(crate) fn set_port(&self, port: u32, entry: &PortEntry) -> Result<()> {
        self.groups.port_changes(port, entry);
        if !self.ports.write(port as usize, entry) {
            return Err(DpifError::Invalid(format!("port {port} is beyond the last, {}", MAX_PORTS - 1)));
        }
        if let Some(device) = self.devices.get(port as usize) {
            device.store(u64::from(entry.ifindex) << 32 | u64::from(entry.mtu), Ordering::Release);
        }
        Ok(())
    }

    /// What the programs know of a port; of an adopted datapath at first what an earlier process said.
    pub(crate) fn port(&self, port: u32) -> Option<PortEntry> {
        self.ports.read(port as usize)
    }

    /// Index and MTU of a port's device.
    pub(crate) fn device(&self, port: u32) -> Option<(u32, u32)> {
        let word = self.devices.get(port as usize)?.load(Ordering::Acquire);
        let (ifindex, mtu) = ((word >> 32) as u32, word as u32);
        (ifindex != 0).then_some((ifindex, mtu))
    }

    /// Lookups that have found a flow.
    pub(crate) fn found(&self) -> Found {
        let lanes = (0..self.lanes).filter_map(|lane| self.counters.datapath(lane));
        lanes.fold(Found::default(), |found, lane| {
            let special = found.special.wrapping_add(lane.special_hit);
            let all = found.all.wrapping_add(lane.hit).wrapping_add(lane.cache_hit).wrapping_add(lane.special_hit);
            Found { special, all }
        })
    }

    /// Counts frames that userspace sent by a port.
    pub(crate) fn count_sent(&self, port: u32, packets: u64, bytes: u64) {
        if packets > 0 {
            self.add_to_port(port, offset_of!(PortStats, tx_packets), packets);
            self.add_to_port(port, offset_of!(PortStats, tx_bytes), bytes);
        }
    }

    /// Counts a frame that userspace could not send by a port.
    pub(crate) fn count_unsent(&self, port: u32, reason: DropReason) {
        self.add_to_port(port, offset_of!(PortStats, tx_dropped), 1);
        if let Some(word) = self.counters.dropped(self.lanes, reason) {
            word.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn add_to_port(&self, port: u32, offset: usize, n: u64) {
        if let Some(word) = self.counters.port_words(self.lanes, port).get(offset / 8) {
            word.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Sets the device that takes frames of the XDP hook for a port; 0: none does. In the namespace of the device.
    pub(crate) fn set_device(&self, port: u32, ifindex: u32) -> Result<()> {
        // The device, and no program to run there.
        let value = [ifindex, if ifindex == 0 { 0 } else { u32::MAX }];
        bpf::map_update(self.redirects.as_fd(), &port, &value, 0)
            .map_err(|error| io_error(format!("can't write port {port} to {}", name::DEVICES), error))
    }

    /// The ring of a handler, made if it isn't there yet.
    pub(crate) fn ring(&self, pins: &Pins, handler: u32) -> Result<RingBuf<MapData>> {
        let pin = format!("ring{handler}");
        let path = pins.path(&pin);
        let failed = |error| map_error(format!("can't make {}", path.display()), error);
        if !path.exists() {
            let ring = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, RING_BYTES as u32, 0);
            MapData::create(ring, &pin, None).and_then(|ring| ring.pin(&path).map_err(pin_failed)).map_err(failed)?;
        }
        let ring = MapData::from_pin(&path).map_err(failed)?;
        // Written each time: a process that died may have pinned it and not come this far.
        bpf::map_update(self.rings.as_fd(), &handler, &(ring.fd().as_fd().as_raw_fd() as u32), 0)
            .map_err(|error| io_error(format!("can't put {pin} into {}", name::RINGS), error))?;
        RingBuf::try_from(Map::RingBuf(ring)).map_err(failed)
    }
}

fn pin_failed(error: aya::pin::PinError) -> aya::maps::MapError {
    aya::maps::MapError::PinError { name: None, error }
}

/// Sizes of a datapath.
pub(crate) struct Shape {
    pub(crate) n_slots: usize,
    pub(crate) lanes: usize,
    adopted: bool,
}

impl Shape {
    fn new(options: &Options) -> Result<Self> {
        // The kernel counts the bytes of an array in 32 bits.
        let most = u32::MAX as usize / size_of::<Slot>().max(MAX_LANES * size_of::<FlowStats>()) - 64;
        // The verifier counts to less than this in an address, and a cached word has 24 bits for a slot.
        const { assert!((1 << 22) * size_of::<HotSlot>() <= 1 << 29 && u32::MAX as usize / size_of::<Slot>() < 1 << 22) };
        if options.slots <= EXECUTE_SLOTS || options.slots > most {
            return Err(DpifError::Invalid(format!(
                "{} flow slots: a datapath has more than {EXECUTE_SLOTS} and at most {most}",
                options.slots
            )));
        }
        Ok(Self { n_slots: options.slots, lanes: possible_cpus().min(MAX_LANES), adopted: false })
    }

    /// How many elements the direct maps have. The programs reach a power of two of them.
    pub(crate) fn direct(&self) -> [usize; blanks::DIRECT] {
        [Lanes::elements(self.lanes), self.n_slots.next_power_of_two(), MAX_PORTS]
    }
}

/// The datapath that is pinned, if it is complete.
pub(crate) fn find(pins: &Pins) -> Result<Option<Shape>> {
    if PINNED.iter().chain(&ENTRIES).any(|map| !pins.path(map).exists()) {
        return Ok(None);
    }
    let control: Mapping<Control> = mapping(pins, name::CONTROL, 1)?;
    let Some(control) = control.read(0).filter(|control| control.layout == LAYOUT_VERSION) else { return Ok(None) };
    let (n_slots, lanes) = (control.n_slots as usize, control.lanes as usize);
    if n_slots <= EXECUTE_SLOTS || lanes == 0 || lanes > MAX_LANES {
        return Err(damaged(pins, name::CONTROL));
    }
    Ok(Some(Shape { n_slots, lanes, adopted: true }))
}

fn damaged(pins: &Pins, map: &str) -> DpifError {
    DpifError::Kernel(format!(
        "{} is not what a datapath of layout {LAYOUT_VERSION} has there; remove its folder to begin anew",
        pins.path(map).display()
    ))
}

/// Maps the first `len` elements of a pinned array whose values are `T`.
fn mapping<T: Pod>(pins: &Pins, map: &str, len: usize) -> Result<Mapping<T>> {
    mapped(pins, map, len, |value_size, entries| value_size == size_of::<T>() && entries >= len)
}

/// Maps a direct map, whose one value is `len` elements.
fn direct<T: Pod>(pins: &Pins, map: &str, len: usize) -> Result<Mapping<T>> {
    mapped(pins, map, len, |value_size, entries| value_size == size_of::<T>() * len && entries == 1)
}

fn mapped<T: Pod>(pins: &Pins, map: &str, len: usize, fits: impl Fn(usize, usize) -> bool) -> Result<Mapping<T>> {
    let path = pins.path(map);
    let data = MapData::from_pin(&path).map_err(|error| map_error(format!("can't open {}", path.display()), error))?;
    let info = data.info().map_err(|error| map_error(format!("can't ask for {}", path.display()), error))?;
    if !fits(info.value_size() as usize, info.max_entries() as usize) {
        return Err(damaged(pins, map));
    }
    Mapping::new(data.fd().as_fd(), len).map_err(|error| io_error(format!("can't map {}", path.display()), error))
}

/// Makes an array that no object defines, and pins it: so many values, each of so many elements.
fn create<T: Pod>(pins: &Pins, map: &str, values: usize, elements: usize) -> Result<()> {
    let size = (size_of::<T>() * elements) as u32;
    let array = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, 4, size, values as u32, MMAPABLE);
    MapData::create(array, map, None)
        .and_then(|array| array.pin(pins.path(map)).map_err(pin_failed))
        .map_err(|error| map_error(format!("can't make {map}"), error))
}

/// The secret is the datapath's for its whole life: the digests of its flows depend on it.
fn fill_seeds(pins: &Pins) -> Result<()> {
    use std::io::Read as _;
    let failed = |error| io_error("can't make the secret of the datapath", error);
    let mut bytes = [0; size_of::<DigestSeeds>()];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).map_err(failed)?;
    let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    let mut seeds = DigestSeeds { lanes: [0; datapath_common::key::KEY_WORDS * 2], hash: 0, reserved: 0 };
    for (to, from) in seeds.lanes.iter_mut().chain([&mut seeds.hash]).zip(&mut words) {
        *to = from;
    }
    bpf::map_update(pins.get(name::SEEDS)?.as_fd(), &0u32, &seeds, 0).map_err(failed)
}
