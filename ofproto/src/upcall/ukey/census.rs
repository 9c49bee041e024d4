//! How many megaflows each port has, and how many masks.
//!
//! A port's flows are those that match on it. Who sends odd packets into a port can make flows and masks come without end, and
//! each mask costs every packet of the datapath a look. So both can be capped, by port and in all: who is over a cap gets no new
//! flow, its packets are executed all the same. A ukey is counted as long as there is something of it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use datapath_common::FlowKey;

use crate::sync::{AtomicU64, AtomicUsize, Ordering, RwLock};

/// All that is counted.
pub(crate) struct Census {
    all: Arc<All>,
}

impl Default for Census {
    fn default() -> Self {
        Self { all: Arc::new(All { tables: RwLock::new(Tables::default()) }) }
    }
}

struct All {
    tables: RwLock<Tables>,
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
}

/// A mask of a port.
struct Use {
    all: Weak<All>,
    port: u32,
    mask: FlowKey,
    count: Arc<PortCount>,
    flows: AtomicUsize,
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
            return done.map(|place| Counted(Arc::clone(place))).inspect_err(|_| self.refused(port));
        }
        let place = self.known(port, mask, caps);
        let place = place.unwrap_or_else(|| self.new_mask(port, mask, caps)).inspect_err(|_| self.refused(port))?;
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
        let place = Arc::new(Use { all, port, mask: *mask, count, flows: AtomicUsize::new(1) });
        tables.uses.insert((port, *mask), Arc::clone(&place));
        Ok(place)
    }

    fn refused(&self, port: u32) {
        if let Some(count) = self.all.tables.read().ports.get(&port) {
            count.refused.fetch_add(1, Ordering::Relaxed);
        }
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
        Arc::new(Self { flows: AtomicUsize::new(0), masks: AtomicUsize::new(0), refused: AtomicU64::new(0) })
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
    /// One more flow, unless its port has as many as it may have. `None`: it has no flow any more, and is about to be taken out.
    fn enter(&self, caps: Caps) -> Option<Result<(), Over>> {
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
