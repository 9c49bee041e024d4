//! Counters of a bridge's tables: how many packets found a rule in each, and how many found none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tables of a bridge, 0 to 254.
const TABLES: usize = 255;

/// Counters of a bridge's tables. They outlive the versions of the tables, as the bridge does.
#[derive(Debug)]
pub struct TableStats {
    bridge: Arc<str>,
    /// Packets that found a rule, and those that found none, by table.
    tables: Box<[[AtomicU64; 2]; TABLES]>,
}

impl TableStats {
    /// Counters at zero of a bridge called `bridge`.
    pub fn new(bridge: &str) -> Self {
        Self { bridge: bridge.into(), tables: Box::new([const { [const { AtomicU64::new(0) }; 2] }; TABLES]) }
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Packets found a rule in a table.
    pub fn matched(&self, table: u8, packets: u64) {
        self.add(table, 0, packets);
    }

    /// Packets found no rule in a table.
    pub fn missed(&self, table: u8, packets: u64) {
        self.add(table, 1, packets);
    }

    /// Packets of a table that found a rule, and that found none.
    pub fn get(&self, table: u8) -> (u64, u64) {
        let count = |which: usize| {
            let count = self.tables.get(usize::from(table)).and_then(|counts| counts.get(which));
            count.map_or(0, |count| count.load(Ordering::Relaxed))
        };
        (count(0), count(1))
    }

    fn add(&self, table: u8, which: usize, packets: u64) {
        if let Some(count) = self.tables.get(usize::from(table)).and_then(|counts| counts.get(which)) {
            count.fetch_add(packets, Ordering::Relaxed);
        }
    }
}
