//! Which port is a station behind? The table of a learning switch (IEEE 802.1D).
//!
//! Entries are learned from the source addresses that packets come with, age when no packet comes any more, and have to make
//! room, the least recently seen first, when the table is full. Translations depend on the table, so whoever changes what a
//! lookup would answer has to say so: every change returns whether it was one.
//!
//! Nearly every packet that is translated comes from a known station where it is known to be, so to note that takes no more than a
//! reader's lock. The order by age is put right where it matters: when somebody has to go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use openflow::OfPort;
use parking_lot::RwLock;

/// Seconds after which an entry is forgotten, unless a bridge says otherwise.
pub const DEFAULT_AGING_S: u32 = 300;
/// Entries that a table has, unless a bridge says otherwise.
pub const DEFAULT_MAX_ENTRIES: u32 = 8192;

/// The table of one bridge.
#[derive(Debug)]
pub struct MacTable {
    state: RwLock<State>,
}

/// An entry, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    /// The VLAN, 0 for frames without one.
    pub vlan: u16,
    /// The station.
    pub mac: [u8; 6],
    /// Where it is.
    pub port: OfPort,
    /// When it was seen last.
    pub used_ms: u64,
}

#[derive(Debug)]
struct State {
    aging_ms: u64,
    max_entries: usize,
    entries: HashMap<Station, Entry, ahash::RandomState>,
    /// The stations by when they had been seen last when they were put here: a counter tells apart what is of the same millisecond.
    by_age: BTreeMap<(u64, u64), Station>,
    next: u64,
    /// Ports that are gone: what packets of theirs still say late is not heard.
    closed: BTreeSet<OfPort>,
}

type Station = (u16, [u8; 6]);

#[derive(Debug)]
struct Entry {
    port: OfPort,
    used_ms: AtomicU64,
    /// Its place by age.
    place: (u64, u64),
}

impl Entry {
    fn used_ms(&self) -> u64 {
        self.used_ms.load(Ordering::Relaxed)
    }
}

impl MacTable {
    /// An empty table.
    pub fn new(aging_s: u32, max_entries: u32) -> Self {
        let state = State {
            aging_ms: u64::from(aging_s) * 1000,
            max_entries: max_entries.max(1) as usize,
            entries: HashMap::default(),
            by_age: BTreeMap::new(),
            next: 0,
            closed: BTreeSet::new(),
        };
        Self { state: RwLock::new(state) }
    }

    /// Changes the limits. Says whether entries had to go.
    pub fn configure(&self, aging_s: u32, max_entries: u32) -> bool {
        let mut state = self.state.write();
        state.aging_ms = u64::from(aging_s) * 1000;
        state.max_entries = max_entries.max(1) as usize;
        let mut changed = false;
        while state.entries.len() > state.max_entries {
            changed |= state.evict_oldest();
        }
        changed
    }

    /// The port that the station is behind, if known.
    pub fn lookup(&self, vlan: u16, mac: [u8; 6]) -> Option<OfPort> {
        self.state.read().entries.get(&(vlan, mac)).map(|entry| entry.port)
    }

    /// A port is there: stations may be behind it.
    pub fn open(&self, port: OfPort) {
        self.state.write().closed.remove(&port);
    }

    /// A port goes. Its stations are forgotten, and none is learned until it is opened again.
    pub fn close(&self, port: OfPort) {
        self.state.write().closed.insert(port);
        self.forget(|entry| entry.port == port);
    }

    /// The station sent a packet from `port`. Says whether that is news: a new station, or one that moved.
    pub fn learn(&self, vlan: u16, mac: [u8; 6], port: OfPort, now_ms: u64) -> bool {
        // A group address is no station's.
        if mac[0] & 1 != 0 {
            return false;
        }
        let station = (vlan, mac);
        // Statistics come late: what a flow counted before the station moved is no news.
        let is_news = |state: &State| match state.entries.get(&station) {
            _ if state.closed.contains(&port) => false,
            Some(old) if old.port == port => {
                old.used_ms.fetch_max(now_ms, Ordering::Relaxed);
                false
            }
            old => old.is_none_or(|old| old.used_ms() <= now_ms),
        };
        if !is_news(&self.state.read()) {
            return false;
        }
        let mut state = self.state.write();
        if !is_news(&state) {
            return false;
        }
        if !state.remove(station) && state.entries.len() >= state.max_entries {
            state.evict_oldest();
        }
        state.insert(station, port, now_ms);
        true
    }

    /// Forgets what was not seen for too long. Says whether there was any.
    pub fn expire(&self, now_ms: u64) -> bool {
        let may_be_old = |state: &State| {
            let oldest = state.by_age.keys().next();
            oldest.is_some_and(|(seen_ms, _)| now_ms.saturating_sub(*seen_ms) >= state.aging_ms)
        };
        if !may_be_old(&self.state.read()) {
            return false;
        }
        let mut state = self.state.write();
        let mut changed = false;
        loop {
            state.settle_oldest();
            if !may_be_old(&state) {
                return changed;
            }
            changed |= state.evict_oldest();
        }
    }

    /// Forgets all stations for which `which` says so. Says whether there was any.
    pub fn forget(&self, which: impl Fn(&MacEntry) -> bool) -> bool {
        let mut state = self.state.write();
        let gone: Vec<_> = state.list().filter(&which).map(|entry| (entry.vlan, entry.mac)).collect();
        for station in &gone {
            state.remove(*station);
        }
        !gone.is_empty()
    }

    /// All entries, the one not seen for longest first.
    pub fn entries(&self) -> Vec<MacEntry> {
        let mut entries: Vec<_> = self.state.read().list().collect();
        entries.sort_by_key(|entry| entry.used_ms);
        entries
    }
}

impl State {
    fn list(&self) -> impl Iterator<Item = MacEntry> + '_ {
        self.by_age.values().filter_map(|station| {
            let entry = self.entries.get(station)?;
            let (vlan, mac) = *station;
            Some(MacEntry { vlan, mac, port: entry.port, used_ms: entry.used_ms() })
        })
    }

    fn insert(&mut self, station: Station, port: OfPort, used_ms: u64) {
        let place = (used_ms, self.next);
        self.next += 1;
        self.by_age.insert(place, station);
        self.entries.insert(station, Entry { port, used_ms: used_ms.into(), place });
    }

    fn remove(&mut self, station: Station) -> bool {
        match self.entries.remove(&station) {
            Some(entry) => {
                self.by_age.remove(&entry.place);
                true
            }
            None => false,
        }
    }

    /// Lets those change places that were seen again, until the first is the one that was not seen for longest.
    fn settle_oldest(&mut self) {
        while let Some(((seen_ms, _), station)) = self.by_age.first_key_value()
            && let Some(entry) = self.entries.get(station)
            && entry.used_ms() > *seen_ms
        {
            let (station, port, used_ms) = (*station, entry.port, entry.used_ms());
            self.remove(station);
            self.insert(station, port, used_ms);
        }
    }

    fn evict_oldest(&mut self) -> bool {
        self.settle_oldest();
        match self.by_age.values().next().copied() {
            Some(station) => self.remove(station),
            None => false,
        }
    }
}

impl Default for MacTable {
    fn default() -> Self {
        Self::new(DEFAULT_AGING_S, DEFAULT_MAX_ENTRIES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> [u8; 6] {
        [0x50, 0x54, 0, 0, 0, n]
    }

    #[test]
    fn nobody_is_learned_behind_a_port_that_is_gone() {
        let table = MacTable::new(DEFAULT_AGING_S, DEFAULT_MAX_ENTRIES);
        table.learn(0, mac(1), OfPort(1), 0);
        table.learn(0, mac(2), OfPort(2), 0);
        table.close(OfPort(1));
        assert!(!table.learn(0, mac(1), OfPort(1), 5) && !table.learn(0, mac(2), OfPort(1), 5));
        assert_eq!((table.lookup(0, mac(1)), table.lookup(0, mac(2))), (None, Some(OfPort(2))));
        table.open(OfPort(1));
        assert!(table.learn(0, mac(1), OfPort(1), 6));
    }

    #[test]
    fn only_news_is_news() {
        let table = MacTable::default();
        assert!(table.learn(0, mac(1), OfPort(1), 0));
        assert!(!table.learn(0, mac(1), OfPort(1), 10));
        assert!(table.learn(0, mac(1), OfPort(2), 20), "it moved");
        assert!(table.learn(5, mac(1), OfPort(1), 20), "another VLAN is another station");
        assert!(!table.learn(0, [1, 0, 0, 0, 0, 1], OfPort(1), 20), "a group is no station");
        assert_eq!(table.lookup(0, mac(1)), Some(OfPort(2)));
    }

    #[test]
    fn stations_age_and_packets_keep_them_young() {
        let table = MacTable::new(300, 10);
        table.learn(0, mac(1), OfPort(1), 0);
        table.learn(0, mac(2), OfPort(2), 0);
        table.learn(0, mac(1), OfPort(1), 299_000);
        assert!(!table.expire(299_999));
        assert!(table.expire(300_000));
        assert_eq!((table.lookup(0, mac(1)), table.lookup(0, mac(2))), (Some(OfPort(1)), None));
    }

    #[test]
    fn what_was_counted_before_a_move_is_no_news() {
        let table = MacTable::default();
        table.learn(0, mac(1), OfPort(1), 10);
        assert!(table.learn(0, mac(1), OfPort(2), 20));
        table.learn(0, mac(1), OfPort(2), 30);
        assert!(!table.learn(0, mac(1), OfPort(1), 29));
        assert!(table.learn(0, mac(1), OfPort(1), 30), "as late as the last one seen");
    }

    #[test]
    fn threads_learn_and_forget_at_once() {
        let table = MacTable::new(1, 8);
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let table = &table;
                scope.spawn(move || {
                    for now in 0..20_000u64 {
                        table.learn(0, mac((now % 16) as u8), OfPort(u16::from(thread % 2)), now);
                        table.expire(now.saturating_sub(500));
                    }
                });
            }
        });
        let state = table.state.read();
        assert!(state.entries.len() <= 8);
        assert_eq!(state.by_age.len(), state.entries.len());
        assert!(state.by_age.iter().all(|(place, station)| state.entries[station].place == *place));
    }

    #[test]
    fn the_least_recently_seen_makes_room() {
        let table = MacTable::new(300, 2);
        table.learn(0, mac(1), OfPort(1), 0);
        table.learn(0, mac(2), OfPort(1), 1);
        table.learn(0, mac(1), OfPort(1), 2);
        table.learn(0, mac(3), OfPort(1), 3);
        let macs: Vec<_> = table.entries().iter().map(|entry| entry.mac[5]).collect();
        assert_eq!(macs, [1, 3]);
    }
}
