//! How many megaflows each port has, and how many masks.
//!
//! A port's flows are those that match on it. Who sends odd packets into a port can make flows and masks come without end, and
//! each mask costs every packet of the datapath a look. So both can be capped, by port and in all: who is over a cap gets no new
//! flow, its packets are executed all the same. A ukey is counted as long as there is something of it.
//!
//! Who comes first must not keep masks for ever that nobody uses: where flows were refused for want of a mask, twice a second the
//! masks with the fewest packets since the last time are **evicted** ([`Census::make_room`]), and their flows go with the
//! revalidators' next round. A mask that had as many packets as were refused is nobody's to take.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use datapath_common::FlowKey;

use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering, RwLock};

/// Of a cap on masks, the part that is evicted at once: one in so many.
const EVICTED_PART: usize = 8;
/// Milliseconds of use that masks are judged by.
const PERIOD_MS: u64 = 500;

/// All that is counted.
pub(crate) struct Census {
    all: Arc<All>,
}

impl Default for Census {
    fn default() -> Self {
        Self {
            all: Arc::new(All {
                tables: RwLock::new(Tables::default()),
                wanted: AtomicU64::new(0),
                since_ms: AtomicU64::new(0),
            }),
        }
    }
}

struct All {
    tables: RwLock<Tables>,
    /// Flows that were refused in this period because there were as many masks as there may be.
    wanted: AtomicU64,
    /// When this period of use began.
    since_ms: AtomicU64,
}

#[derive(Default)]
struct Tables {
    ports: HashMap<u32, Arc<PortCount>, ahash::RandomState>,
    /// By port and mask.
    uses: HashMap<(u32, FlowKey), Arc<Use>, ahash::RandomState>,
    /// How many ports use a mask.
    masks: HashMap<FlowKey, usize, ahash::RandomState>,
}

struct PortCount {
    flows: AtomicUsize,
    masks: AtomicUsize,
    refused: AtomicU64,
    /// Flows that it was refused in this period because it had as many masks as it may have.
    wanted: AtomicU64,
}

/// A mask of a port.
struct Use {
    all: Weak<All>,
    port: u32,
    mask: FlowKey,
    count: Arc<PortCount>,
    flows: AtomicUsize,
    /// Packets of its flows in this period.
    packets: AtomicU64,
    /// It has seen a period end: what it counts is of a whole one.
    settled: AtomicBool,
    /// Its flows are to go, and no other gets in.
    evicted: AtomicBool,
}

/// The most that there may be; 0 is no cap.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Caps {
    /// Flows of a port.
    pub(crate) port_flows: usize,
    /// Masks of a port's flows.
    pub(crate) port_masks: usize,
    /// Masks in all.
    pub(crate) masks: usize,
}

/// A cap that a flow would be over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Over {
    /// Its port has as many flows as it may have.
    PortFlows,
    /// Its port has as many masks as it may have, and this is another.
    PortMasks,
    /// There are as many masks as there may be, and this is another.
    Masks,
    /// Its mask is being evicted.
    Evicted,
}

/// What a port has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PortFlows {
    pub(crate) port: u32,
    pub(crate) flows: usize,
    pub(crate) masks: usize,
    /// Flows that it did not get because of a cap.
    pub(crate) refused: u64,
}

/// A ukey that is counted; dropped, it isn't any more.
pub(crate) struct Counted(Arc<Use>);

/// The masks that whoever counts has met last: to look there first costs a tenth of a look into the tables.
#[derive(Default)]
pub(crate) struct Hints {
    places: [Option<Arc<Use>>; 4],
    next: usize,
}

impl Hints {
    fn find(&self, port: u32, mask: &FlowKey) -> Option<&Arc<Use>> {
        self.places.iter().flatten().find(|place| place.port == port && place.mask == *mask)
    }

    fn keep(&mut self, place: &Arc<Use>) {
        // One that has no flow any more has a successor.
        let same = |old: &Arc<Use>| old.port == place.port && old.mask == place.mask;
        let at = self.places.iter().position(|old| old.as_ref().is_some_and(same)).unwrap_or(self.next);
        if let Some(slot) = self.places.get_mut(at) {
            *slot = Some(Arc::clone(place));
        }
        self.next = (at + 1) % self.places.len();
    }
}

impl Census {
    /// Counts a flow of a port with this mask, unless that is over a cap.
    ///
    /// # Errors
    /// The cap. It is noted for the port.
    pub(crate) fn enter(&self, hints: &mut Hints, port: u32, mask: &FlowKey, caps: Caps) -> Result<Counted, Over> {
        let hinted = hints.find(port, mask).and_then(|place| place.enter(caps).map(|done| done.map(|()| place)));
        if let Some(done) = hinted {
            return done.map(|place| Counted(Arc::clone(place))).inspect_err(|over| self.refused(port, *over));
        }
        let place = self.known(port, mask, caps);
        let place =
            place.unwrap_or_else(|| self.new_mask(port, mask, caps)).inspect_err(|over| self.refused(port, *over))?;
        hints.keep(&place);
        Ok(Counted(place))
    }

    /// As [`Census::enter`], of a flow that is there already. `None`: it is no port's.
    pub(crate) fn count(&self, port: u32, mask: &FlowKey) -> Option<Counted> {
        if mask.in_port != u32::MAX {
            return None;
        }
        self.enter(&mut Hints::default(), port, mask, Caps::default()).ok()
    }

    fn known(&self, port: u32, mask: &FlowKey, caps: Caps) -> Option<Result<Arc<Use>, Over>> {
        let tables = self.all.tables.read();
        let Some(place) = tables.uses.get(&(port, *mask)) else {
            // So that a storm of refused packets keeps nobody else out.
            return tables.ports.get(&port).and_then(|count| tables.over(count, mask, caps)).map(Err);
        };
        place.enter(caps).map(|done| done.map(|()| Arc::clone(place)))
    }

    fn new_mask(&self, port: u32, mask: &FlowKey, caps: Caps) -> Result<Arc<Use>, Over> {
        let mut tables = self.all.tables.write();
        let tables = &mut *tables;
        let count = Arc::clone(tables.ports.entry(port).or_insert_with(PortCount::new));
        // Somebody was quicker; or somebody has let the last flow go, and waits for the lock to take the mask out.
        if let Some(place) = tables.uses.get(&(port, *mask)) {
            if let Some(done) = place.enter(caps) {
                return done.map(|()| Arc::clone(place));
            }
            let place = Arc::clone(place);
            place.leave(tables);
        }
        if let Some(over) = tables.over(&count, mask, caps) {
            return Err(over);
        }
        count.one_more_flow(caps)?;
        count.masks.fetch_add(1, Ordering::Relaxed);
        *tables.masks.entry(*mask).or_default() += 1;
        let all = Arc::downgrade(&self.all);
        let place = Arc::new(Use::new(all, port, *mask, count));
        tables.uses.insert((port, *mask), Arc::clone(&place));
        Ok(place)
    }

    fn refused(&self, port: u32, over: Over) {
        if let Some(count) = self.all.tables.read().ports.get(&port) {
            count.refused.fetch_add(1, Ordering::Relaxed);
            match over {
                Over::PortMasks => count.wanted.fetch_add(1, Ordering::Relaxed),
                Over::Masks => self.all.wanted.fetch_add(1, Ordering::Relaxed),
                Over::PortFlows | Over::Evicted => 0,
            };
        }
    }

    /// A flow was refused because the datapath takes no more masks, whatever the caps are.
    pub(crate) fn datapath_is_full(&self) {
        self.all.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// After a round: if a period of use is over, evicts the masks of least use where others were wanted. Says how many. One caller at
    /// a time.
    pub(crate) fn make_room(&self, caps: Caps, now_ms: u64) -> usize {
        if now_ms.saturating_sub(self.all.since_ms.load(Ordering::Relaxed)) < PERIOD_MS {
            return 0;
        }
        self.all.since_ms.store(now_ms, Ordering::Relaxed);
        let tables = self.all.tables.read();
        let mut of_ports: HashMap<u32, Vec<Candidate>> = HashMap::new();
        let mut of_all: HashMap<FlowKey, Candidate, ahash::RandomState> = HashMap::default();
        let wanted_by_all = self.all.wanted.swap(0, Ordering::Relaxed);
        let wanted: HashMap<u32, u64> =
            tables.ports.iter().map(|(port, count)| (*port, count.wanted.swap(0, Ordering::Relaxed))).collect();
        for ((port, mask), place) in &tables.uses {
            let candidate = place.end_period();
            if wanted_by_all > 0 {
                of_all.entry(*mask).or_default().add(&candidate);
            }
            if wanted.get(port).is_some_and(|wanted| *wanted > 0) {
                of_ports.entry(*port).or_default().push(candidate);
            }
        }
        let by_port = of_ports.into_iter().map(|(port, candidates)| {
            evict(candidates, wanted.get(&port).copied().unwrap_or_default(), caps.port_masks)
        });
        // Without a cap it was the datapath that had no room for more than there are.
        let masks = if caps.masks == 0 { tables.masks.len() } else { caps.masks };
        by_port.sum::<usize>() + evict(of_all.into_values().collect(), wanted_by_all, masks)
    }

    /// Masks in all.
    pub(crate) fn n_masks(&self) -> usize {
        self.all.tables.read().masks.len()
    }

    /// Masks that the flows of a port have.
    pub(crate) fn masks_of(&self, port: u32) -> Vec<FlowKey> {
        let tables = self.all.tables.read();
        tables.uses.keys().filter(|(of, _)| *of == port).map(|(_, mask)| *mask).collect()
    }

    /// What each port has that has or had flows, by number.
    pub(crate) fn ports(&self) -> Vec<PortFlows> {
        let tables = self.all.tables.read();
        let mut ports: Vec<_> = tables.ports.iter().map(|(port, count)| count.report(*port)).collect();
        ports.sort_by_key(|port| port.port);
        ports
    }

    /// What a port has.
    pub(crate) fn port(&self, port: u32) -> PortFlows {
        let nothing = PortFlows { port, flows: 0, masks: 0, refused: 0 };
        self.all.tables.read().ports.get(&port).map_or(nothing, |count| count.report(port))
    }
}

/// A mask that may have to go: of one port, or of all that use it.
#[derive(Default)]
struct Candidate {
    places: Vec<Arc<Use>>,
    packets: u64,
    /// Something of it is too young to be judged.
    young: bool,
}

impl Candidate {
    fn add(&mut self, other: &Self) {
        self.places.extend(other.places.iter().cloned());
        self.packets += other.packets;
        self.young |= other.young;
    }
}

/// Evicts those of least use for so many flows that were refused; how many.
fn evict(mut candidates: Vec<Candidate>, wanted: u64, cap: usize) -> usize {
    candidates.retain(|candidate| !candidate.young && candidate.packets < wanted);
    candidates.sort_by_key(|candidate| candidate.packets);
    candidates.truncate(cap.div_ceil(EVICTED_PART));
    candidates
        .iter()
        .flat_map(|candidate| &candidate.places)
        .for_each(|place| place.evicted.store(true, Ordering::Relaxed));
    candidates.len()
}

impl Tables {
    /// The cap on masks that a port would be over with another one.
    fn over(&self, count: &PortCount, mask: &FlowKey, caps: Caps) -> Option<Over> {
        let is_over = |cap: usize, n: usize| cap != 0 && n >= cap;
        if is_over(caps.port_masks, count.masks.load(Ordering::Relaxed)) {
            return Some(Over::PortMasks);
        }
        (is_over(caps.masks, self.masks.len()) && !self.masks.contains_key(mask)).then_some(Over::Masks)
    }
}

impl PortCount {
    fn new() -> Arc<Self> {
        let (flows, masks) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { flows, masks, refused: AtomicU64::new(0), wanted: AtomicU64::new(0) })
    }

    fn one_more_flow(&self, caps: Caps) -> Result<(), Over> {
        let before = self.flows.fetch_add(1, Ordering::Relaxed);
        if caps.port_flows != 0 && before >= caps.port_flows {
            self.flows.fetch_sub(1, Ordering::Relaxed);
            return Err(Over::PortFlows);
        }
        Ok(())
    }

    fn report(&self, port: u32) -> PortFlows {
        PortFlows {
            port,
            flows: self.flows.load(Ordering::Relaxed),
            masks: self.masks.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

impl Use {
    /// With its first flow.
    fn new(all: Weak<All>, port: u32, mask: FlowKey, count: Arc<PortCount>) -> Self {
        let (flows, packets) = (AtomicUsize::new(1), AtomicU64::new(0));
        let (settled, evicted) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { all, port, mask, count, flows, packets, settled, evicted }
    }

    /// What it was used for in the period that has ended.
    fn end_period(self: &Arc<Self>) -> Candidate {
        let packets = self.packets.swap(0, Ordering::Relaxed);
        let young = !self.settled.swap(true, Ordering::Relaxed);
        Candidate { places: vec![Arc::clone(self)], packets, young }
    }

    /// One more flow, unless it is evicted or its port has as many as it may have. `None`: it has no flow any more, and is about to be
    /// taken out.
    fn enter(&self, caps: Caps) -> Option<Result<(), Over>> {
        // Without caps it is a flow that is there already, and is counted.
        if caps != Caps::default() && self.evicted.load(Ordering::Relaxed) && self.flows.load(Ordering::Relaxed) > 0 {
            return Some(Err(Over::Evicted));
        }
        if let Err(over) = self.count.one_more_flow(caps) {
            return Some(Err(over));
        }
        let mut flows = self.flows.load(Ordering::Relaxed);
        while flows > 0 {
            match self.flows.compare_exchange(flows, flows + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(Ok(())),
                Err(now) => flows = now,
            }
        }
        self.count.flows.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Takes it out, if it is there.
    fn leave(&self, tables: &mut Tables) {
        let key = (self.port, self.mask);
        if !tables.uses.get(&key).is_some_and(|there| std::ptr::eq(&**there, self)) {
            return;
        }
        tables.uses.remove(&key);
        self.count.masks.fetch_sub(1, Ordering::Relaxed);
        if let Some(n) = tables.masks.get_mut(&self.mask) {
            *n -= 1;
            if *n == 0 {
                tables.masks.remove(&self.mask);
            }
        }
    }
}

impl Counted {
    /// So many packets more were its flow's.
    pub(crate) fn used(&self, packets: u64) {
        if packets > 0 {
            self.0.packets.fetch_add(packets, Ordering::Relaxed);
        }
    }

    /// Its flow is to go, with its mask.
    pub(crate) fn is_evicted(&self) -> bool {
        self.0.evicted.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.flows.fetch_sub(1, Ordering::Relaxed);
        if self.0.flows.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        // From none there is no way back, so nobody else comes here; but whoever needs the mask may have taken it out.
        if let Some(all) = self.0.all.upgrade() {
            self.0.leave(&mut all.tables.write());
        }
    }
}
