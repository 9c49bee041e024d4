//! Meters: how much of something a datapath lets through.
//!
//! A meter has bands, each a token bucket of its own (OpenFlow 1.3, section 5.7). A packet takes its size out of every bucket
//! that has so much; of the bands whose bucket has not, the one with the highest rate decides what becomes of it. The only kind
//! of band is one that drops.

/// A meter as it is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MeterConfig {
    /// What its bands count.
    pub unit: MeterUnit,
    /// Its bands, at least one.
    pub bands: Vec<MeterBand>,
}

/// What a meter counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MeterUnit {
    /// Rates are kilobits per second, bursts are kilobits.
    Kbps,
    /// Rates are packets per second, bursts are packets. A super-packet is one.
    Pktps,
}

/// A band that drops what exceeds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MeterBand {
    /// What is let through in a second, not 0.
    pub rate: u32,
    /// What is let through at once after a pause; 0 is what the rate lets through in a second.
    pub burst: u32,
}

/// What a datapath's meters can do. All zero where it has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MeterFeatures {
    /// Meters that there may be; their ids are lower than this.
    pub max_meters: u32,
    /// Bands that a meter may have.
    pub max_bands: u32,
}

/// What a meter has counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MeterStats {
    /// Packets that came to it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What each band dropped.
    pub bands: Vec<BandStats>,
}

/// What a band has dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BandStats {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}
